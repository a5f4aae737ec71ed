"""What quantize demands of the file that it has written, before anybody gets it."""

from __future__ import annotations

import pytest

from densenet_deploy.errors import GateError
from densenet_deploy.workflows.quantize.layer_choice import Speed
from densenet_deploy.workflows.quantize.options import options_of
from densenet_deploy.workflows.quantize.quantize import _LayerChoice, _require_int8


@pytest.mark.parametrize(
    ("speed", "word"),
    [
        (None, "no convolution"),
        (Speed(2.0, 1.9, 1.05, (1.0, 1.1)), "no convolution"),
        (Speed(2.0, 2.5, 0.8, (0.7, 0.9), ("stem",)), "0.80 x float"),
        (Speed(2.0, 1.9, 1.05, (1.0, 1.1), ("stem",)), "each of its blocks"),
    ],
)
def test_a_float_file_is_not_called_int8(speed: Speed | None, word: str) -> None:
    choice = _LayerChoice(frozenset(), (), speed)
    _require_int8(["conv0"], choice, "net.onnx")
    with pytest.raises(GateError) as caught:
        _require_int8([], choice, "net.onnx")
    assert (caught.value.subject, word in caught.value.why) == ("net.onnx", True)


def test_options_of_an_observer_come_from_its_words_or_a_file(tmp_path) -> None:
    named = options_of("openvino", {"observer": "percentile"}, ["percentile=99.5"])
    assert (named.recipe, named.observer_options.percentile) == ("openvino", 99.5)
    assert options_of("openvino", {"observer": "percentile"}).observer_options is None
    file = tmp_path / "mine.toml"
    file.write_text('base = "openvino"\nobserver = "percentile"\n[observer-options]\npercentile = 99.0\n')
    assert options_of(str(file), {}).observer_options.percentile == 99.0
    assert options_of(str(file), {}, ["percentile=98"]).observer_options.percentile == 98
