"""timm's modules and folders: the same function, and the facts of its pretrained configuration."""

import json

import pytest
import safetensors.torch
import torch

from densenet_deploy.facts import ModelFacts
from densenet_deploy.sources import WeightsConstraint, load
from tests.sources.torch_networks import agree, scrambled

timm = pytest.importorskip("timm")
DenseNet = pytest.importorskip("timm.models.densenet").DenseNet

CONFIG = {
    "input_size": (3, 96, 80),
    "crop_pct": 0.8,
    "interpolation": "bicubic",
    "mean": (0.5, 0.4, 0.3),
    "std": (0.1, 0.2, 0.3),
}
FACTS = ModelFacts((96, 80), 3, (120, 100), "bicubic", (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))


def timm_net(**options):
    net = DenseNet(growth_rate=4, block_config=(2, 3), num_classes=7, **options)
    net.pretrained_cfg = CONFIG
    return scrambled(net)


def test_a_module_is_recognised_with_its_facts():
    loaded = load(timm_net())
    assert (loaded.variant.spec.blocks, loaded.facts) == ((2, 3), FACTS)


def test_facts_of_other_channels_are_left_out():
    loaded = load(timm_net(in_chans=1))
    assert (loaded.variant.spec.in_channels, loaded.facts.channels, loaded.facts.mean) == (1, 1, None)
    assert loaded.notes[0].startswith("left out, since they do not fit the weights")


@pytest.mark.parametrize(("architecture", "stem"), [("densenet264d", "deep"), ("densenetblur121d", "deep-blur")])
def test_the_name_of_the_architecture_decides_between_stems(tmp_path, architecture, stem):
    from timm.layers import BlurPool2d

    net = timm_net(stem_type="deep", aa_layer=BlurPool2d if stem == "deep-blur" else None)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": architecture, "pretrained_cfg": CONFIG}))
    loaded = load(tmp_path)
    assert loaded.variant.spec.stem == stem
    assert agree(net, loaded.module)
    assert loaded.facts == FACTS


@pytest.mark.parametrize("stem", ["deep", "deep-blur"])
def test_a_stem_that_is_stated_is_built(tmp_path, stem):
    from timm.layers import BlurPool2d

    net = timm_net(stem_type="deep", aa_layer=BlurPool2d if stem == "deep-blur" else None)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    loaded = load(tmp_path / "weights.pth", WeightsConstraint(architecture={"stem": stem}))
    assert loaded.variant.spec.stem == stem
    assert agree(net, loaded.module)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet121", "densenet161", "densenet169", "densenet201", "densenetblur121d"])
def test_networks_of_full_size_agree(tmp_path, name):
    net = scrambled(timm.create_model(name))
    safetensors.torch.save_file(net.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": name, "pretrained_cfg": net.pretrained_cfg}
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    loaded = load(tmp_path)
    assert agree(net, loaded.module, size=224)
    assert (loaded.facts.resize, loaded.facts.interpolation) == (256, "bicubic")
    assert loaded.variant.artifact_name.replace("-", "") == name
