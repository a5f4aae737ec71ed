"""Class names beside the weights become labels, if they are numbered as the outputs are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from densenet_deploy.sources.checkpoint_file import CheckpointFile
from densenet_deploy.sources.class_names import ClassNames, class_names_in
from densenet_deploy.sources.weights import weights_from


def read(content):
    return weights_from(CheckpointFile(Path("there.pth"), 10**6, content))


@pytest.fixture
def state(model):
    """The weights of a network of five classes, without counters."""
    return {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}


def test_a_file_without_class_names_has_none():
    assert class_names_in({"state_dict": {}}, ("state_dict",)) == ClassNames(None, (), ())
    assert class_names_in([{}], ("0",)) == ClassNames()


@pytest.mark.parametrize("key", ["class_to_idx", "classes", "class_names"])
@pytest.mark.parametrize("kind", [list, np.array])
def test_class_names_beside_the_weights_are_labels(key, kind, state):
    names = ("e", "d", "c", "b", "a")
    stated = {name: index for index, name in enumerate(names)} if key == "class_to_idx" else kind(names)
    weights = read({"state_dict": state, key: stated})
    assert weights.facts.labels == names
    assert not any(key in note for note in weights.notes)


@pytest.mark.parametrize("key", ["idx_to_class", "index_to_class", "idx2class", "id2label", "class_names", "labels"])
@pytest.mark.parametrize("number", [int, str, np.int64, torch.tensor])
def test_class_names_by_their_numbers_are_labels(key, number, state):
    weights = read({"state_dict": state, key: {number(index): "edcba"[index] for index in (4, 0, 3, 1, 2)}})
    assert weights.facts.labels == tuple("edcba")
    assert not any(key in note for note in weights.notes)


@pytest.mark.parametrize("number", [int, str, np.int64, torch.tensor])
def test_numbers_of_classes_may_be_of_any_kind(number, state):
    stated = {name: number(index) for index, name in enumerate("edcba")}
    assert read({"state_dict": state, "class2idx": stated}).facts.labels == tuple("edcba")


def test_class_names_may_lie_on_the_way_to_the_weights_and_the_nearest_win(state):
    inner, outer = {"classes": list("edcba")}, {"classes": list("vwxyz")}
    assert read({"run": {"state_dict": state, **inner}, **outer}).facts.labels == tuple("edcba")
    assert read({"run": {"state_dict": state}, **outer}).facts.labels == tuple("vwxyz")
    weights = read({**state, **inner})
    assert (weights.facts.labels, weights.notes) == (tuple("edcba"), ())


@pytest.mark.parametrize(
    ("stated", "why"),
    [
        ({"class_to_idx": {"a": 1, "b": 2}}, "its 2 classes have the numbers 1 to 2, not 0 to 1"),
        ({"class_to_idx": {"a": 0, "b": 2}}, "its 2 classes have the numbers 0 to 2, not 0 to 1"),
        ({"class_to_idx": {"a": 0, "b": 0}}, "its 2 classes have the numbers 0 to 0, not 0 to 1"),
        ({"class_to_idx": {"a": "x"}}, "its classes do not have whole numbers"),
        ({"class_to_idx": {"a": 0.5, "b": 1}}, "its classes do not have whole numbers"),
        ({"idx_to_class": {1: "a", 2: "b"}}, "its 2 classes have the numbers 1 to 2, not 0 to 1"),
        ({"classes": {"one": "a"}}, "its classes do not have whole numbers"),
    ],
    ids=str,
)
def test_classes_that_are_not_counted_from_0_are_not_used_and_that_is_said(stated, why, state):
    (key,) = stated
    weights = read({"state_dict": state, **stated})
    assert weights.facts.labels is None
    assert weights.notes[1:] == (f"{key} not used as labels: {why}; state --labels",)
    assert read({"state_dict": state, **stated, "class_names": list("edcba")}).facts.labels == tuple("edcba")


@pytest.mark.parametrize(
    "stated", [{"classes": 5}, {"classes": [1, 2]}, {"classes": {}}, {"class_to_idx": []}], ids=str
)
def test_what_does_not_name_classes_is_not_labels(stated, state):
    weights = read({"state_dict": state, **stated})
    assert weights.facts.labels is None
    assert weights.notes[1:] == (f"ignored beside the weights: {next(iter(stated))}",)
