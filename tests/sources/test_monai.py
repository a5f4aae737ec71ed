"""MONAI's DenseNets: a state dict and a module of the library compute the same here; volumes are refused."""

import pytest
import torch

from densenet_deploy.errors import CheckpointError
from densenet_deploy.sources import load
from densenet_deploy.sources.monai import MonaiFormat
from tests.sources.torch_networks import agree, scrambled

nets = pytest.importorskip("monai.networks.nets")


def monai_net(channels, init_features):
    net = nets.DenseNet(2, channels, 6, init_features, growth_rate=4, block_config=(2, 3, 2), bn_size=2)
    return scrambled(net)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("channels", "init_features"), [(1, 8), (2, 9), (3, 12)])
def test_its_checkpoints_compute_what_its_module_does(tmp_path, channels, init_features):
    net = monai_net(channels, init_features)
    torch.save(net.state_dict(), tmp_path / "best_metric_model.pth")
    loaded = load(tmp_path / "best_metric_model.pth")
    spec = loaded.variant.spec
    assert (spec.in_channels, spec.num_classes, spec.blocks) == (channels, 6, (2, 3, 2))
    assert agree(net, loaded.module, channels)
    assert load(net).variant.spec == spec


def test_volumes_are_refused_as_3d(tmp_path):
    net = nets.DenseNet(3, 1, 6, 8, growth_rate=4, block_config=(2, 2), bn_size=2)
    torch.save(net.state_dict(), tmp_path / "volume.pth")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "volume.pth")
    assert "3-D" in caught.value.why


def test_names_become_torchvisions():
    names = ["features.denseblock1.denselayer1.layers.norm1.weight", "class_layers.out.bias", "features.conv0.weight"]
    assert MonaiFormat().recognises(names)
    assert not MonaiFormat().recognises(names[1:])
    assert MonaiFormat().renames(names) == {
        names[0]: "features.denseblock1.denselayer1.norm1.weight",
        names[1]: "classifier.bias",
        names[2]: names[2],
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_how_it_prepares_images_otherwise_is_said():
    net = monai_net(1, 8)
    for source in (net, net.state_dict()):
        assert any("MONAI resizes by averages" in note for note in load(source).notes)
