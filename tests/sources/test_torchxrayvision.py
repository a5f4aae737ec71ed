"""TorchXRayVision's DenseNets: one channel, thresholds, and scores that the library puts on a scale of its own."""

import math
from pathlib import Path

import pytest
import torch

from densenet_deploy.errors import CheckpointError
from densenet_deploy.facts import ModelFacts
from densenet_deploy.sources import load
from densenet_deploy.sources.torchxrayvision import FINDINGS, TorchXRayVisionFormat
from tests.sources.torch_networks import agree, images, scrambled

xrv = pytest.importorskip("torchxrayvision")


@pytest.fixture(scope="module")
def thresholds():
    values = torch.linspace(0.05, 0.9, 18)
    values[[3, 17]] = math.nan
    return values


@pytest.fixture(scope="module")
def net(thresholds):
    net = xrv.models.DenseNet(8, (2, 2, 2), 16, op_threshs=thresholds)
    return scrambled(net)


@pytest.fixture(scope="module")
def loaded(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("xrv") / "nih-densenet121.pt"
    torch.save(net.state_dict(), path)
    return load(path)


def test_its_facts_are_the_librarys(loaded, thresholds):
    facts = loaded.facts
    assert (facts.image_size, facts.resize, facts.channels, facts.task) == (224, 224, 1, "multilabel")
    assert (facts.mean, facts.std) == ((0.5,), (1 / 2048,))
    assert [round(value, 6) for value in facts.thresholds[:3]] == [round(float(t), 6) for t in thresholds[:3]]
    assert (facts.thresholds[3], facts.thresholds[17]) == (1.0, 1.0)
    assert loaded.labels == FINDINGS == tuple(xrv.datasets.default_pathologies)
    assert any("2 of 18 outputs have no threshold" in note for note in loaded.notes)
    assert any("crops the middle square" in note for note in loaded.notes)
    assert not any("ignored" in note for note in loaded.notes)


def test_an_image_of_the_library_has_the_values_of_these_facts(loaded):
    grey = torch.tensor([0.0, 100.0, 255.0])
    theirs = torch.from_numpy(xrv.utils.normalize(grey.numpy(), 255))
    torch.testing.assert_close((grey / 255 - loaded.facts.mean[0]) / loaded.facts.std[0], theirs)


def test_the_same_findings_are_positive(net, loaded):
    batch = images(1, count=64)
    with torch.inference_mode():
        theirs, ours = net(batch), torch.sigmoid(loaded.module(batch))
    limits = torch.tensor(loaded.facts.thresholds)
    assert torch.equal(theirs > 0.5, ours > limits)
    assert (theirs > 0.5).any()


def test_a_module_of_the_library_becomes_the_network_of_its_logits(net, loaded):
    taken = load(net)
    assert taken.variant.spec == loaded.variant.spec
    assert agree(taken.module, loaded.module, 1)
    assert taken.facts == loaded.facts
    assert taken.labels == FINDINGS


def test_a_module_without_thresholds_is_recognised_as_any_other(thresholds):
    plain = scrambled(xrv.models.DenseNet(8, (2, 2), 16, num_classes=3))
    assert load(plain).variant.spec.num_classes == 3
    assert load(plain).facts == ModelFacts(channels=1)
    sigmoid = scrambled(xrv.models.DenseNet(8, (2, 2), 16, num_classes=3, apply_sigmoid=True))
    assert load(sigmoid).variant is None


def test_whole_pickles_are_not_run_and_the_way_out_works(net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(net, tmp_path / "whole.pt")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "whole.pt")
    assert "torchxrayvision.models.DenseNet" in caught.value.why
    recipe = caught.value.fix.partition("installed: ")[2]
    exec(recipe, {"torch": torch, "path": tmp_path / "whole.pt"}, {})  # as the user does it
    assert agree(load(Path("weights.pth")).module, load(net).module, 1)


def test_other_outputs_have_no_labels_of_the_library():
    tensors = {"op_threshs": torch.full((3,), 0.25)}
    assert TorchXRayVisionFormat().facts(tensors).labels is None
    assert len(TorchXRayVisionFormat().notes(tensors)) == 2
    assert TorchXRayVisionFormat().renames(tensors) == {"op_threshs": None}
    assert TorchXRayVisionFormat().recognises(tensors)
    assert not TorchXRayVisionFormat().recognises(["classifier.weight"])
