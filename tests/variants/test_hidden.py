"""Hidden layers of a head as a line of text."""

import pytest

from densenet_deploy.errors import UsageError
from densenet_deploy.variants.hidden import HiddenLayer, hidden_layers, hidden_text, named_hidden_layers

LINE = "norm linear:8 relu linear:4:nobias norm"
LAYERS = (
    HiddenLayer("norm"),
    HiddenLayer("linear", 8, bias=True),
    HiddenLayer("relu"),
    HiddenLayer("linear", 4, bias=False),
    HiddenLayer("norm"),
)


def test_a_line_and_its_layers():
    assert hidden_layers(LINE) == LAYERS
    assert hidden_text(LAYERS) == LINE
    assert (hidden_layers(""), hidden_text(())) == ((), "")


def test_layers_are_numbered_by_kind_and_read_what_the_one_before_makes():
    assert [(name, width) for name, _, width in named_hidden_layers(LINE, 16)] == [
        ("norm1", 16),
        ("linear1", 16),
        ("relu1", 8),
        ("linear2", 8),
        ("norm2", 4),
    ]


@pytest.mark.parametrize(
    "text", ["linear", "linear:", "linear:0", "linear:8:bias", "linear:12345678", "gelu", "norm,relu"]
)
def test_other_words_are_refused(text):
    with pytest.raises(UsageError) as caught:
        hidden_layers(f"norm {text}")
    assert caught.value.subject == f"hidden={text}"


def test_a_head_has_at_most_32_layers():
    assert len(hidden_layers("norm " * 32)) == 32
    with pytest.raises(UsageError):
        hidden_layers("norm " * 33)


def test_the_widest_layer():
    assert hidden_layers("linear:9999999")[0].width == 9999999
