"""Which source takes what, and what nobody takes."""

from pathlib import Path

import pytest

from densenet_deploy.errors import CheckpointError, InputError, UnknownNameError, UsageError
from densenet_deploy.sources import Match, WeightsConstraint, load, source_for, sources


def kind_of(source):
    return type(source_for(source)).__name__


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("none", "UntrainedSource"),
        ("121", "UntrainedSource"),
        ("DenseNet-169", "UntrainedSource"),
        ("cifar-bc-40-12", "UntrainedSource"),
        ("imagenet", "TorchvisionSource"),
        ("DenseNet169_Weights.IMAGENET1K_V1", "TorchvisionSource"),
        ("mine.pth", "FileSource"),
        (Path("mine.SAFETENSORS"), "FileSource"),
        ("mine.onnx", "GraphSource"),
        ("mine.engine", "GraphSource"),
        (b"bytes", "GraphSource"),
    ],
)
def test_a_name_or_suffix_decides_the_source(source, kind):
    assert kind_of(source) == kind


def test_a_public_name_wins_over_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet").mkdir()
    assert kind_of("imagenet") == "TorchvisionSource"


def test_an_existing_file_of_another_suffix_is_refused_as_a_file(tmp_path):
    (tmp_path / "weights.h5").write_bytes(b"x")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "weights.h5")
    assert caught.value.subject == str(tmp_path / "weights.h5")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError) as caught:
        load(tmp_path / "nothing.pth")
    assert caught.value.subject == str(tmp_path / "nothing.pth")


@pytest.mark.parametrize(("name", "nearest"), [("imagenette", "imagenet"), ("1211", "121"), ("cifar-bc-100", "cifar")])
def test_an_unknown_name_lists_what_is_possible(name, nearest):
    with pytest.raises(UnknownNameError) as caught:
        load(name)
    assert caught.value.subject == name
    assert f"did you mean '{nearest}" in caught.value.fix


def test_a_name_of_a_family_with_impossible_numbers_names_the_nearest_depth():
    with pytest.raises(UsageError) as caught:
        load("cifar-41-12")
    assert "40" in caught.value.fix


@pytest.mark.parametrize("source", [None, 3, ["a.pth"], object()])
def test_other_types_are_not_sources(source):
    with pytest.raises(UsageError) as caught:
        load(source)
    assert caught.value.subject == type(source).__name__


def test_every_source_says_no_to_what_it_does_not_know():
    assert {kind().matches(object()) for kind in sources.items().values()} == {Match.NO}


def test_the_constraint_is_passed_on():
    assert load("cifar-7-1").variant.spec.num_classes == 10
    assert load("cifar-7-1", WeightsConstraint(num_classes=3)).variant.spec.num_classes == 3
