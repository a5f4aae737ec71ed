"""fastai's learners: the body is cut before torchvision's ReLU, the head pools maxima and means."""

import pytest
import torch
from torch import nn

from densenet_deploy.sources import load
from densenet_deploy.sources.fastai import FastaiFormat
from tests.sources.torch_networks import CHANNELS, agree, network, scrambled


class ConcatPool(nn.Module):
    """fastai's AdaptiveConcatPool2d."""

    def __init__(self):
        super().__init__()
        self.ap, self.mp = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)

    def forward(self, maps):
        return torch.cat([self.mp(maps), self.ap(maps)], 1)


def learner(pool, width, channels=3):
    """What `vision_learner` builds of a DenseNet."""
    head = nn.Sequential(
        *(pool, nn.Flatten(), nn.BatchNorm1d(width), nn.Dropout(0.25), nn.Linear(width, 40, bias=False)),
        *(nn.ReLU(inplace=True), nn.BatchNorm1d(40), nn.Dropout(0.5), nn.Linear(40, 6, bias=False)),
    )
    return scrambled(nn.Sequential(nn.Sequential(network(channels=channels).features), head))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("pool", "width", "pooling", "channels"),
    [(ConcatPool(), 2 * CHANNELS, "max-avg", 3), (nn.AdaptiveAvgPool2d(1), CHANNELS, "avg", 1)],
)
def test_its_checkpoints_compute_what_its_module_does(tmp_path, pool, width, pooling, channels, prefix):
    net = learner(pool, width, channels)
    state = {f"{prefix}{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"model": state, "opt": {}}, tmp_path / "stage-1.pth")
    loaded = load(tmp_path / "stage-1.pth")
    spec = loaded.variant.spec
    assert (spec.pooling, spec.hidden, spec.bias) == (pooling, "norm linear:40:nobias relu norm", False)
    assert agree(net, loaded.module, channels)
    assert "without ReLU" in loaded.notes[-1] or "maximum and average pool" in loaded.notes[-1]
    assert any("fastai crops the middle square" in note for note in loaded.notes)
    assert load(net).variant.spec == spec


def test_it_is_recognised_by_the_first_norm():
    assert FastaiFormat().recognises(["1.2.running_mean"])
    assert not FastaiFormat().recognises(["1.4.weight", "classifier.weight"])
    assert FastaiFormat().renames(["1.2.weight"]) == {}
