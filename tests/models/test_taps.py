"""What a run of a network shows: its cost, the shapes of its maps, the outputs of its inner modules."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torchvision.models import resnet50

from densenet_deploy.analysis.cost import model_cost
from densenet_deploy.models.build import build_model, empty_model
from densenet_deploy.models.taps import IntermediateOutputs, counted_cost, first_weights, traced_shapes
from densenet_deploy.variants.spec import DenseNetSpec

SPEC = DenseNetSpec(growth_rate=4, blocks=(3, 2), init_features=6, num_classes=5, bn_size=2)


def test_a_resnet_costs_what_is_published() -> None:
    with torch.device("meta"):
        module = resnet50()
    parameters, macs = counted_cost(module, 224)
    assert parameters == 25_557_032
    assert round(macs / 1e9, 2) == 4.09  # torchvision's documentation


@pytest.mark.parametrize("spec", [SPEC, dataclasses.replace(SPEC, bn_size=0, stem="cifar", head="multiscale")])
def test_a_densenet_counted_by_running_costs_what_its_numbers_say(spec: DenseNetSpec) -> None:
    cost = model_cost(spec, 32)
    assert counted_cost(empty_model(spec), 32) == (cost.parameters, cost.macs)


def test_counting_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    counted_cost(empty_model(SPEC), 32)
    assert capfd.readouterr() == ("", "")


def test_counting_leaves_no_hooks() -> None:
    module = empty_model(SPEC)
    counted_cost(module, 32)
    traced_shapes(module, 32)
    assert not any(inner._forward_hooks for inner in module.modules())


def test_traced_shapes_are_those_of_the_architecture() -> None:
    shapes = traced_shapes(build_model(SPEC), 32)
    assert shapes["conv0"] == (6, 16, 16)
    assert [shapes[f"denseblock1.denselayer{layer}"] for layer in (1, 2, 3)] == [(4, 8, 8)] * 3
    assert shapes["transition1"][0] == SPEC.channels_in[1]
    assert shapes["denseblock2.denselayer2"] == (4, 4, 4)
    assert len(shapes) == 1 + 5 + 1
    assert traced_shapes(empty_model(SPEC), 32) == shapes


def test_first_weights_read_everything_before_them() -> None:
    weights = first_weights(build_model(SPEC))
    assert [weights[f"denseblock1.denselayer{layer}"].shape[1] for layer in (1, 2, 3)] == [6, 10, 14]
    plain = first_weights(build_model(dataclasses.replace(SPEC, bn_size=0)))
    assert plain["denseblock1.denselayer1"].shape == (4, 6, 3, 3)
    assert not isinstance(plain["denseblock1.denselayer1"], nn.Parameter)


def test_intermediate_outputs_are_those_of_the_innermost_modules_in_order() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()), nn.Flatten())
    outputs = IntermediateOutputs(model, "mine")(torch.ones(1, 3, 2, 2))
    assert list(outputs) == ["0.0", "0.1", "1", "mine"]


def test_intermediate_outputs_are_what_each_module_returned() -> None:
    model = build_model(SPEC)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        outputs = IntermediateOutputs(model, "logits")(images)
        assert torch.equal(outputs["logits"], model(images))
        assert torch.equal(outputs["features.conv0"], model.features.conv0(images))
    # the ReLU behind the first norm works in place: the copy of the norm's output still has its negative values
    assert outputs["features.norm0"].min() < 0
    assert not any(inner._forward_hooks for inner in model.modules())
