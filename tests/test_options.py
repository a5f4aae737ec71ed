"""Options of the right class, numbers inside their range, and words among their choices."""

import math

import pytest
import torch

import densenet_deploy as dd
from densenet_deploy import CastOptions
from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.options import or_default, require_choice, require_range


@pytest.mark.parametrize("value", [1, 5, 10, 1.0, 9.99])
def test_a_value_inside_its_range_comes_back(value):
    assert require_range("batch", value, 1, 10) is value


@pytest.mark.parametrize("value", [0, 11, -1, 0.999, math.inf, -math.inf, math.nan])
def test_a_value_outside_is_named_with_its_range(value):
    with pytest.raises(UsageError) as caught:
        require_range("batch", value, 1, 10)
    assert caught.value.subject == f"batch={value}"


def test_a_choice_comes_back():
    assert require_choice("stem", "cifar", ("imagenet", "cifar")) == "cifar"


def test_another_word_names_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        require_choice("stem", "cifr", ("imagenet", "cifar"))
    assert caught.value.subject == "cifr"


def test_options_are_those_given_or_those_that_nobody_changed():
    given = CastOptions(precision="bf16")
    assert or_default(given, CastOptions) is given
    assert or_default(None, CastOptions) == CastOptions()


@pytest.mark.parametrize(
    "call",
    [
        lambda wrong: dd.benchmark("missing.onnx", wrong),
        lambda wrong: dd.cast("missing.onnx", wrong),
        lambda wrong: dd.compare("missing.onnx", "missing.onnx", options=wrong),
        lambda wrong: dd.evaluate("missing.onnx", "missing", wrong),
        lambda wrong: dd.export("missing.onnx", wrong),
        lambda wrong: dd.inspect("121", wrong),
        lambda wrong: dd.open_runner(torch.nn.Identity(), options=wrong),
        lambda wrong: dd.predict("missing.onnx", "missing.png", options=wrong),
        lambda wrong: dd.prune("missing.onnx", "missing", wrong),
        lambda wrong: dd.quantize("missing.onnx", "missing", wrong),
        lambda wrong: dd.sensitivity("missing.onnx", "missing", wrong),
        lambda wrong: dd.train("missing", wrong),
        lambda wrong: dd.tune(["missing.onnx"], wrong),
    ],
)
def test_other_things_than_options_are_named_before_the_work(call):
    with pytest.raises(UsageError) as caught:
        call("fp16")
    assert str(caught.value.subject) == "options='fp16'"
