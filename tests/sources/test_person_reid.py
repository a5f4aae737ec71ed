"""Re-identification: the ClassBlock of Person_reID_baseline_pytorch, and the heads of deep-person-reid."""

import torch
from torch import nn

from densenet_deploy.sources import WeightsConstraint, load
from densenet_deploy.sources.person_reid import PersonReidFormat
from tests.sources.torch_networks import CHANNELS, agree, features, images, network, scrambled


class ClassBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.add_block = nn.Sequential(nn.Linear(CHANNELS, 24), nn.BatchNorm1d(24), nn.Dropout(0.5))
        self.classifier = nn.Sequential(nn.Linear(24, 13))

    def forward(self, row):
        return self.classifier(self.add_block(row))


class Baseline(nn.Module):
    """ft_net_dense: torchvision's classifier stays, and `features` are pooled as they are."""

    def __init__(self):
        super().__init__()
        self.model, self.classifier = network(), ClassBlock()

    def forward(self, batch):
        return self.classifier(features(self.model, batch, relu=False))


class TorchReid(nn.Module):
    """deep-person-reid's densenet with `fc_dims`, in training mode's path."""

    def __init__(self):
        super().__init__()
        self.features = network().features
        self.fc = nn.Sequential(nn.Linear(CHANNELS, 24), nn.BatchNorm1d(24), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(24, 13)

    def embed(self, batch):
        return self.fc(features(self, batch))

    def forward(self, batch):
        return self.classifier(self.embed(batch))


def test_a_class_block_has_no_relu_and_the_unused_classifier_is_dropped(tmp_path):
    net = scrambled(Baseline())
    torch.save(net.state_dict(), tmp_path / "net_last.pth")
    loaded = load(tmp_path / "net_last.pth")
    spec = loaded.variant.spec
    assert (spec.hidden, spec.pooling, spec.num_classes) == ("linear:24 norm", "avg", 13)
    assert agree(net, loaded.module)
    assert any("model.classifier.weight" in note for note in loaded.notes)
    assert load(net).variant.spec == spec


def test_torchreid_with_a_hidden_layer_and_as_features(tmp_path):
    net = scrambled(TorchReid())
    wrapped = {"state_dict": {f"module.{name}": tensor for name, tensor in net.state_dict().items()}, "rank1": 0.9}
    torch.save(wrapped, tmp_path / "model.pth.tar-60")
    loaded = load(tmp_path / "model.pth.tar-60")
    assert loaded.variant.spec.hidden == "linear:24 norm relu"
    assert agree(net, loaded.module)
    embedding = load(tmp_path / "model.pth.tar-60", WeightsConstraint(head="features"))
    with torch.inference_mode():
        torch.testing.assert_close(embedding.module(images()), net.embed(images()))
    assert embedding.variant.spec.output_width == 24


def test_only_torchvisions_own_classifier_is_dropped():
    names = ["classifier.weight", "classifier.bias", "classifier.add_block.0.weight"]
    assert PersonReidFormat().renames(names) == {"classifier.weight": None, "classifier.bias": None}
    assert PersonReidFormat().recognises(names)
    assert not PersonReidFormat().recognises(names[:2])
