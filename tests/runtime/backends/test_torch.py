"""The torch backend runs any module of one image input, whatever it returns, and names its outputs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from densenet_deploy.errors import BackendError, FeedError
from densenet_deploy.runtime.runner import ModuleSource, open_runner


class Pair(NamedTuple):
    main: Tensor
    aux: Tensor


class Head(nn.Module):
    """A convolution whose result leaves in the form that `form` makes of logits and feature map."""

    def __init__(self, form=lambda logits, features: logits, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.form = form

    def forward(self, images: Tensor) -> object:
        features = self.conv(images)
        return self.form(features.mean((2, 3)), features)


def _images(channels: int = 3, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, channels, size, size), np.float32)


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (lambda logits, features: logits, ["logits"]),
        (lambda logits, features: (logits,), ["logits"]),
        (lambda logits, features: (logits, features), ["output0", "output1"]),
        (lambda logits, features: [logits, features], ["output0", "output1"]),
        (lambda logits, features: {"logits": logits, "map": features, "none": None}, ["logits", "map"]),
        (Pair, ["main", "aux"]),
        (lambda logits, features: {"a": (logits, {"b": features})}, ["a.0", "a.1.b"]),
    ],
)
def test_outputs_are_named_by_what_the_module_returns(form, names):
    with open_runner(Head(form), device="cpu") as runner:
        assert [spec.name for spec in runner.outputs] == names
        results = runner(_images())
        assert list(results) == names
    assert runner.outputs[0].shape == (None, 4)
    for spec in runner.outputs[1:]:
        assert spec.shape == (None, 4, None, None)
    np.testing.assert_array_equal(results[names[0]].shape, (2, 4))


def test_names_can_be_given():
    source = ModuleSource(Head(lambda logits, features: (features, logits)), output_names=("map", "logits"))
    with open_runner(source, device="cpu") as runner:
        assert [spec.name for spec in runner.outputs] == ["map", "logits"]
        assert runner(_images())["logits"].shape == (2, 4)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_channels_are_those_of_the_first_convolution(channels):
    with open_runner(Head(channels=channels), device="cpu") as runner:
        assert runner.inputs[0].shape == (None, channels, None, None)
        assert runner(_images(channels))["logits"].shape == (2, 4)
        with pytest.raises(FeedError) as caught:
            runner(_images(channels + 1))
    assert caught.value.subject == "input"


def test_channels_can_be_given_and_are_unknown_without_a_convolution():
    class Gray(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Head()

        def forward(self, images: Tensor) -> object:
            return self.inner(images.repeat(1, 3, 1, 1))

    with open_runner(ModuleSource(Gray(), channels=1), device="cpu") as runner:
        assert runner(_images(1))["logits"].shape == (2, 4)
    with open_runner(nn.Flatten(), device="cpu") as runner:
        assert runner.inputs[0].shape == (None, None, None, None)
        assert runner(_images(5))["logits"].shape == (2, 5 * 16 * 16)


def test_a_module_for_another_size_opens_and_refuses_what_does_not_fit():
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2 * 16 * 16, 5))
    with open_runner(module, device="cpu") as runner:
        assert [str(spec) for spec in runner.outputs] == ["logits (N, N) float32"]
        assert runner(_images())["logits"].shape == (2, 5)
        with pytest.raises(FeedError) as caught:
            runner(_images(size=20))
    assert caught.value.subject == "input"


def test_the_module_of_the_caller_is_unchanged():
    module = Head().train()
    with open_runner(module, device="cpu") as runner:
        runner(_images())
    assert module.training
    assert not hasattr(module, "manifest")


@pytest.mark.parametrize("result", [None, "text", {}, ()])
def test_a_module_without_a_tensor_is_refused(result):
    with pytest.raises(BackendError) as caught:
        open_runner(Head(lambda logits, features: result), device="cpu")
    assert caught.value.subject == type(result).__name__


def test_reduced_precision_parameters_are_refused():
    with pytest.raises(BackendError) as caught:
        open_runner(Head().to(torch.float16), device="cpu")
    assert caught.value.subject == "conv.weight"
