"""Checkpoints as people have them: wrapping, prefix, head and channels drawn at random, each equal to its module.

The module that a checkpoint was made from says what is right: outputs to 90 dB, and labels, task and facts exactly.
"""

from __future__ import annotations

import itertools
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densenet_deploy.sources import load
from tests.sources.torch_networks import CHANNELS, agree, features, network, scrambled


class Wrapped(nn.Module):
    """A backbone whose classifier is not used, and a head of its own under other names."""

    def __init__(self, channels: int, name: str, head: nn.Module) -> None:
        super().__init__()
        backbone = network(channels=channels)
        del backbone.classifier
        setattr(self, "backbone_of_mine", backbone)  # noqa: B010 - as code that is not typed does it
        self.add_module(name, head)
        self.head_name = name

    def forward(self, batch: Tensor) -> Tensor:
        return self.get_submodule(self.head_name)(features(self.backbone_of_mine, batch))


# name → (builds the head, hidden layers, bias, outputs)
HEADS: dict[str, tuple[Any, str, bool, int]] = {
    "linear": (lambda: nn.Linear(CHANNELS, 7), "", True, 7),
    "one output": (lambda: nn.Linear(CHANNELS, 1), "", True, 1),
    "no bias": (lambda: nn.Linear(CHANNELS, 7, bias=False), "", False, 7),
    "dropout": (lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(CHANNELS, 6)), "", True, 6),
    "two layers": (
        lambda: nn.Sequential(
            OrderedDict(fc1=nn.Linear(CHANNELS, 20), relu=nn.ReLU(), drop=nn.Dropout(), fc2=nn.Linear(20, 9))
        ),
        "linear:20 relu",
        True,
        9,
    ),
    "three layers": (
        lambda: nn.Sequential(
            *(nn.Linear(CHANNELS, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))
        ),
        "linear:24 relu linear:24 relu",
        True,
        3,
    ),
    "linear twice": (lambda: nn.Sequential(nn.Linear(CHANNELS, 12), nn.Linear(12, 4)), "linear:12", True, 4),
    "bottleneck": (
        lambda: nn.Sequential(
            *(nn.Linear(CHANNELS, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 11, bias=False))
        ),
        "linear:16 norm relu",
        False,
        11,
    ),
    "norm neck": (
        lambda: nn.Sequential(
            OrderedDict(bottleneck=nn.BatchNorm1d(CHANNELS), classifier=nn.Linear(CHANNELS, 13, bias=False))
        ),
        "norm",
        False,
        13,
    ),
}
PREFIXES = ("", "module.", "module.densenet121.", "encoder.", "cnn.", "base_model.", "net.backbone.", "0.", "0.0.")
WRAPPINGS: dict[str, Any] = {
    "state dict": lambda state: state,
    "pytorch": lambda state: {"epoch": 7, "state_dict": state, "best_loss": 0.2, "optimizer": {"state": {}}},
    "net_dict": lambda state: {"net_dict": state, "args": {"lr": 0.1}},
    "student": lambda state: {"student": state, "teacher": {name: tensor + 1 for name, tensor in state.items()}},
    "nested": lambda state: {"checkpoint": {"model_state": state}, "step": torch.tensor(3)},
    "lightning": lambda state: {
        "state_dict": {**state, "criterion.pos_weight": torch.ones(5), "val_acc.tp": torch.zeros(5, dtype=torch.int64)},
        "callbacks": {"EarlyStopping": {"best": torch.tensor(0.5)}},
        "pytorch-lightning_version": "2.4.0",
    },
    "old names": lambda state: {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): t for name, t in state.items()
    },
    "root": lambda state: {name.replace("features.", ""): tensor for name, tensor in state.items()},
    "final": lambda state: {name.replace("norm5", "norm_final"): tensor for name, tensor in state.items()},
    "half": lambda state: {"model": {name: t.half().float() for name, t in state.items()}},
}
SUFFIXES = (".pth", ".pth.tar", ".pt", ".ckpt", ".bin", ".pt.best")


def _drawn(count: int) -> list[tuple[str, str, str, int, str]]:
    """Combinations in which every head, prefix, wrapping, channel count and suffix occurs several times."""
    generator = random.Random(14)
    columns = (list(HEADS), list(PREFIXES), list(WRAPPINGS), [1, 2, 3, 4], list(SUFFIXES))
    drawn = [generator.sample(list(itertools.islice(itertools.cycle(column), count)), count) for column in columns]
    return list(zip(*drawn, strict=True))


@pytest.mark.parametrize(("head", "prefix", "wrapping", "channels", "suffix"), _drawn(72))
def test_what_is_loaded_is_the_module_it_was_made_from(
    tmp_path: Path, head: str, prefix: str, wrapping: str, channels: int, suffix: str
) -> None:
    build, hidden, bias, outputs = HEADS[head]
    module = scrambled(network(build(), channels))
    if wrapping == "half":
        module.load_state_dict(
            {name: t.half().float() if t.is_floating_point() else t for name, t in module.state_dict().items()}
        )
    state = {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}
    torch.save(WRAPPINGS[wrapping](state), tmp_path / f"mine{suffix}")
    loaded = load(tmp_path / f"mine{suffix}")
    spec = loaded.variant.spec
    assert (loaded.name, spec.in_channels, spec.num_classes) == ("mine", channels, outputs)
    assert (spec.hidden, spec.bias, spec.pooling, spec.head) == (hidden, bias, "relu-avg", "classifier")
    assert agree(module, loaded.module, channels)
    assert loaded.facts.given() == {"channels": channels}
    assert loaded.labels == ()
    assert loaded.notes[-1].startswith("assumed: conv0 stride 2, max pool 3x3/2, ReLU, global average pool")
    assert ("ReLU after" in loaded.notes[-1]) == ("relu" in hidden)


@pytest.mark.parametrize("name", ["fc", "head", "last_linear", "classifier", "linear"])
@pytest.mark.parametrize("head", ["linear", "two layers", "bottleneck", "norm neck"])
def test_a_head_beside_the_backbone_is_found_under_any_name(tmp_path: Path, name: str, head: str) -> None:
    build, hidden, bias, _ = HEADS[head]
    module = scrambled(Wrapped(1, name, build()))
    torch.save({"state_dict": module.state_dict()}, tmp_path / "mine.pth")
    loaded = load(tmp_path / "mine.pth")
    assert (loaded.variant.spec.hidden, loaded.variant.spec.bias) == (hidden, bias)
    assert agree(module, loaded.module, 1)


@pytest.mark.parametrize("head", ["two layers", "three layers", "bottleneck", "norm neck"])
def test_safetensors_files_whose_names_are_sorted_are_the_same(tmp_path: Path, head: str) -> None:
    import safetensors.torch

    module = scrambled(network(HEADS[head][0]()))
    safetensors.torch.save_file(dict(sorted(module.state_dict().items())), tmp_path / "mine.safetensors")
    assert agree(module, load(tmp_path / "mine.safetensors").module)


class Convolutional(nn.Module):
    """A 1x1 convolution before the global pool, or behind it."""

    def __init__(self, *, pools_first: bool, bias: bool) -> None:
        super().__init__()
        self.features = network().features
        self.last_conv = nn.Conv2d(CHANNELS, 7, 1, bias=bias)
        self.pools_first = pools_first

    def forward(self, batch: Tensor) -> Tensor:
        maps = torch.relu(self.features(batch))
        if self.pools_first:
            return self.last_conv(maps.mean((2, 3), keepdim=True)).flatten(1)
        return self.last_conv(maps).mean((2, 3))


@pytest.mark.parametrize("pools_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_1x1_convolution_is_a_classifier_wherever_the_code_pools(
    tmp_path: Path, pools_first: bool, bias: bool
) -> None:
    module = scrambled(Convolutional(pools_first=pools_first, bias=bias))
    torch.save({f"module.{name}": tensor for name, tensor in module.state_dict().items()}, tmp_path / "conv.pth")
    loaded = load(tmp_path / "conv.pth")
    assert (loaded.variant.spec.num_classes, loaded.variant.spec.bias) == (7, bias)
    assert agree(module, loaded.module)
    assert "no activation after last_conv, a 1x1 convolution" in loaded.notes[-1]
    assert load(module).variant.spec == loaded.variant.spec
