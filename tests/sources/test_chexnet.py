"""CheXNet's checkpoints: DataParallel, a `densenet121` inside, old names, and a Sequential of Linear and Sigmoid."""

import pytest
import torch
from torch import nn

from densenet_deploy.sources import load
from densenet_deploy.sources.chexnet import ChexnetFormat
from tests.sources.torch_networks import CHANNELS, images, network


def saved(tmp_path, outputs, head=None):
    head = head or nn.Sequential(nn.Linear(CHANNELS, outputs), nn.Sigmoid())
    module = network(head)
    names = {
        f"module.densenet121.{name.replace('norm1.', 'norm.1.').replace('conv2.', 'conv.2.')}": tensor
        for name, tensor in module.state_dict().items()
    }
    torch.save({"epoch": 7, "arch": "densenet121", "state_dict": names}, tmp_path / "model.pth.tar")
    return module, load(tmp_path / "model.pth.tar")


def test_14_outputs_are_labels_whose_sigmoid_the_task_applies(tmp_path):
    module, loaded = saved(tmp_path, 14)
    with torch.inference_mode():
        torch.testing.assert_close(torch.sigmoid(loaded.module(images())), module(images()))  # rounding only
    assert loaded.facts.given() == {"channels": 3, "task": "multilabel"}
    assert any("CheXNet" in note for note in loaded.notes)
    assert "what follows classifier.0 left out" in loaded.notes[-1]


@pytest.mark.parametrize("outputs", [1, 13, 15])
def test_other_outputs_are_not_called_labels(tmp_path, outputs):
    _, loaded = saved(tmp_path, outputs)
    assert loaded.facts.given() == {"channels": 3}
    assert not any("CheXNet" in note for note in loaded.notes)
    assert "what follows classifier.0 left out" in loaded.notes[-1]


def test_two_layers_are_another_head(tmp_path):
    _, loaded = saved(tmp_path, 14, nn.Sequential(nn.Linear(CHANNELS, 20), nn.ReLU(), nn.Linear(20, 14)))
    assert loaded.facts.task is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["classifier.0.weight", "classifier.0.bias"], True),
        (["classifier.0.weight"], True),
        (["classifier.weight"], False),
        (["classifier.0.weight", "classifier.2.weight"], False),
        (["features.classifier.0.weight"], False),
    ],
)
def test_it_is_recognised_by_its_only_layer(names, expected):
    assert ChexnetFormat().recognises([*names, "features.conv0.weight"]) == expected
    assert ChexnetFormat().renames(names) == {}
