"""Networks made ready: new classifiers, frozen parts, groups of weights, averages."""

from __future__ import annotations

import copy

import pytest
import torch

from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.models.build import PlainLayer, build_model
from densenet_deploy.training.network import (
    MovingAverage,
    first_non_finite,
    frozen_parts,
    norms_in_training,
    optimizer_of,
    save_memory,
    start_training,
    weights_in,
    with_new_classifier,
)
from densenet_deploy.training.options import TrainOptions
from densenet_deploy.variants.spec import DenseNetSpec

SPEC = DenseNetSpec(growth_rate=2, blocks=(1, 1, 1), init_features=4, bn_size=2, stem="cifar", num_classes=5)


def test_a_new_classifier_leaves_the_features_as_they_are():
    network = build_model(SPEC, seed=3)
    fresh = with_new_classifier(network, 7, seed=1)
    assert fresh.classifier.weight.shape == (7, SPEC.row_width)
    assert fresh.spec.num_classes == 7
    same = {name for name, tensor in weights_in(network).items() if name.startswith("features.")}
    assert all(torch.equal(weights_in(network)[name], weights_in(fresh)[name]) for name in same)
    assert torch.equal(fresh.classifier.weight, with_new_classifier(network, 7, seed=1).classifier.weight)
    assert not torch.equal(fresh.classifier.weight, with_new_classifier(network, 7, seed=2).classifier.weight)


def test_a_network_of_features_gets_a_classifier():
    network = build_model(DenseNetSpec(**{**SPEC.__dict__, "head": "features"}))
    assert with_new_classifier(network, 3, seed=0)(torch.zeros(1, 3, 8, 8)).shape == (1, 3)


@pytest.mark.parametrize(
    ("freeze", "trained"),
    [
        (None, {"conv0", "denseblock1", "transition1", "denseblock2", "transition2", "denseblock3", "norm5"}),
        ("until=denseblock2", {"transition2", "denseblock3", "norm5"}),
        ("until=conv0", {"denseblock1", "transition1", "denseblock2", "transition2", "denseblock3", "norm5"}),
        ("features", set()),
    ],
)
def test_what_is_frozen_keeps_weights_and_statistics(freeze, trained):
    network = build_model(SPEC)
    before = {name: tensor.clone() for name, tensor in weights_in(network).items()}
    start_training(network, frozen_parts(network, freeze))
    optimizer = optimizer_of(network, TrainOptions(lr=0.1), is_pretrained=False)
    network(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    optimizer.step()
    changed = {name for name, tensor in weights_in(network).items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[1] for name in changed if name.startswith("features.")} == trained
    assert "classifier.weight" in changed
    norms = sum(name.endswith("running_mean") for name in changed)
    assert norms == len(norms_in_training(network))


def test_an_unknown_part_is_named():
    with pytest.raises(UnknownNameError, match="denseblock1"):
        frozen_parts(build_model(SPEC), "until=denseblok1")


def test_nothing_left_to_train_is_refused():
    network = build_model(SPEC)
    network.requires_grad_(False)
    with pytest.raises(UsageError):
        optimizer_of(network, TrainOptions(), is_pretrained=False)


def test_the_classifier_has_its_own_learning_rate():
    network = build_model(SPEC)
    body, head = optimizer_of(network, TrainOptions(lr=1e-4, head_lr=1e-2), is_pretrained=True).param_groups
    assert (body["lr"], head["lr"]) == (1e-4, 1e-2)
    assert {id(tensor) for tensor in head["params"]} == {id(tensor) for tensor in network.classifier.parameters()}
    assert len(body["params"]) + 2 == len(list(network.parameters()))
    assert body["momentum"] == 0.9
    assert body["nesterov"]
    adamw = optimizer_of(network, TrainOptions(optimizer="adamw", weight_decay=0.5), is_pretrained=False)
    assert adamw.param_groups[1]["weight_decay"] == 0.5


def test_memory_is_saved_in_every_dense_layer():
    network = build_model(SPEC)
    save_memory(network)
    layers = [layer for layer in network.modules() if isinstance(layer, PlainLayer)]
    assert len(layers) == 3
    assert all(layer.memory_efficient for layer in layers)


def test_an_average_moves_towards_the_weights():
    network = build_model(SPEC)
    average = MovingAverage(network, 0.75)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for tensor in weights_in(other).values():
            tensor.add_(4.0)
    average.update(other)
    for name, tensor in weights_in(average.network).items():
        torch.testing.assert_close(tensor, weights_in(network)[name] + 1.0)
    assert not any(tensor.requires_grad for tensor in average.network.parameters())


def test_the_first_value_that_is_not_finite_is_named():
    network = build_model(SPEC)
    assert first_non_finite(network) is None
    network.features.norm5.running_var[1] = float("inf")
    assert first_non_finite(network) == "features.norm5.running_var"
