"""The networks of torchvision as checkpoints, with their own classifiers and with others."""

import pytest
import torch
import torchvision

from densenet_deploy.errors import CheckpointError
from densenet_deploy.sources import WeightsConstraint, load
from densenet_deploy.sources.weights import weights_sha256
from densenet_deploy.variants import find_variant

pytestmark = pytest.mark.slow


def test_torchvision_checkpoints_load_as_they_are(tmp_path):
    theirs = torchvision.models.densenet121(num_classes=4)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    loaded = load(tmp_path / "weights.pth", WeightsConstraint(variant=find_variant("121"), num_classes=4))
    assert weights_sha256(theirs.state_dict()) == loaded.origin.sha256
    assert loaded.variant.name == "121"
    assert load(theirs.eval()).variant == loaded.variant


def test_another_stem_or_classifier_is_named_with_the_way_out(tmp_path):
    net = torchvision.models.densenet121(num_classes=4)
    net.classifier = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(1024, 4))
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    assert load(tmp_path / "weights.pth").variant.spec.num_classes == 4
    net.classifier = torch.nn.Conv2d(1024, 4, 3)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "weights.pth")
    assert "classifier.weight" in caught.value.why
    assert "densenet_deploy.load(module)" in caught.value.fix
