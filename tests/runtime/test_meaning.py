"""What outputs mean: which one answers, its task, and the scores that are made of its numbers, or are there already."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pytest

from densenet_deploy.errors import ModelFileError, UnknownNameError, UsageError
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.runtime.feeds import TensorSpec
from densenet_deploy.runtime.meaning import OutputMeaning, class_outputs, name_of_output, require_labels, shared_labels
from tests.function_runner import FunctionRunner, Shape

OURS = Manifest("121", {}, WeightsOrigin("a.pth", "0" * 64), Preprocessing())
THEIRS = dataclasses.replace(OURS, variant="third-party")


def runner(
    outputs: Mapping[str, Shape] | None = None,
    activations: Mapping[str, str] | None = None,
    manifest: Manifest | None = None,
) -> FunctionRunner:
    """A model that is only asked what it returns."""
    made = FunctionRunner(lambda _: {}, outputs={"out": (None, 3)} if outputs is None else outputs, manifest=manifest)
    made.activations = activations
    return made


def meaning(*args, labels=(), task=None, **kwargs) -> OutputMeaning:
    return OutputMeaning.of(runner(*args, **kwargs), labels, task)


# --- which output answers


@pytest.mark.parametrize(
    ("outputs", "labels", "answers"),
    [
        ({"out": (None, 3)}, "", "out"),
        ({"out": (4, None)}, "", "out"),
        ({"map": (None, 3, 7, 7), "out": (None, 3)}, "", "out"),
        ({"out": (None, 3, 1, 1)}, "", "out"),
        ({"out": (None, 3, 1)}, "", "out"),
        ({"out": (None, 3, None, None)}, "", "out"),
        ({"features": (None, 1024), "logits": (None, 3)}, "", "logits"),
        ({"logits": (None, 3), "features": (None, 1024)}, "", "logits"),
        ({"logits": (None, 3), "other": (None, 2)}, "ab", "logits"),  # its labels are refused later, by their number
        ({"a": (None, 2), "b": (None, 3)}, "xyz", "b"),
        ({"a": (None, 3), "b": (None, 2)}, "xyz", "a"),
        ({"logits": (None, 3, 7, 7), "scores": (None, 3)}, "", "scores"),
    ],
)
def test_one_output_answers(outputs, labels, answers):
    found = meaning(outputs, labels=tuple(labels), task="multiclass")
    assert found.output == TensorSpec(answers, outputs[answers], np.dtype(np.float32))
    assert found.assumptions == ()


@pytest.mark.parametrize("labels", ["", "xy", "xyz"])
def test_of_several_that_may_answer_the_first_does_and_that_is_said(labels):
    found = meaning({"b": (None, 2), "a": (None, 2), "map": (None, 2, 7, 7)}, labels=tuple(labels), task="multilabel")
    assert found.output.name == "b"
    assert found.assumptions == ("of the outputs b, a the first is taken",)


def test_one_number_per_image_may_lack_an_axis_of_classes():
    found = meaning({"label": (3,), "out": (None,)})
    assert (found.output.shape, found.task, found.classes) == ((None, 1), "regression", 1)
    assert meaning({"out": (None,)}, activations={"out": "sigmoid"}).task == "multilabel"
    assert meaning({"number": (None,), "row": (None, 3)}, task="multiclass").output.name == "row"
    assert found.rows(np.float32([1, 2, 3])).tolist() == [[1], [2], [3]]


@pytest.mark.parametrize("shape", [(5,), (), (None, 3, 7, 7), (None, 3, 1, 7), (None, 3, 7, 1), (None, 3, 2)])
def test_a_model_without_a_row_of_numbers_per_image_is_refused(shape):
    with pytest.raises(ModelFileError) as caught:
        meaning({"out": shape}, task="multiclass")
    assert caught.value.subject.startswith("out")


def test_the_number_of_classes_is_that_of_the_columns():
    assert meaning({"out": (None, 3)}, task="features").classes == 3
    assert meaning({"out": (5, None)}, task="features").classes is None


# --- the task


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression", "features"])
def test_the_caller_states_the_task_then_the_manifest(task):
    for manifest in (None, OURS, THEIRS, dataclasses.replace(OURS, task="features")):
        found = meaning(None, {"out": "sigmoid"}, manifest, task=task)
        assert (found.task, found.assumptions) == (task, ())
    for manifest in (OURS, THEIRS):
        found = meaning(None, {"out": "sigmoid"}, dataclasses.replace(manifest, task=task))
        assert (found.task, found.assumptions) == (task, ())


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        meaning(task="multi-label")
    assert (caught.value.subject, caught.value.why) == ("multi-label", "unknown task")


@pytest.mark.parametrize(
    ("outputs", "activations", "task"),
    [
        ({"out": (None, 3)}, {"out": "softmax"}, "multiclass"),
        ({"out": (None, None)}, {"out": "softmax"}, "multiclass"),
        ({"out": (None, 3)}, {"out": "sigmoid"}, "multilabel"),
        ({"out": (None, 1)}, {"out": "sigmoid"}, "multilabel"),
        ({"out": (None, 1)}, {"out": "softmax"}, "regression"),
        ({"out": (None, 1)}, {}, "regression"),
        ({"out": (None, 1, 1, 1)}, {}, "regression"),
        ({"out": (None, 1)}, None, "regression"),
        ({"features": (None, 3)}, {}, "features"),
        ({"features": (None, 3)}, None, "features"),
        ({"features": (None, 1)}, {}, "regression"),
        ({"features": (None, 3)}, {"features": "softmax"}, "multiclass"),
    ],
)
@pytest.mark.parametrize("manifest", [None, OURS, THEIRS])
def test_a_graph_shows_its_task(outputs, activations, task, manifest):
    found = meaning(outputs, activations, manifest)
    assert found.task == task
    assert ["one number" in sentence for sentence in found.assumptions] == ([True] if task == "regression" else [])


@pytest.mark.parametrize("activations", [None, {}, {"other": "sigmoid"}])
def test_what_nothing_shows_is_assumed_to_be_multiclass_and_said_but_of_our_own_networks(activations):
    for manifest in (None, THEIRS):
        found = meaning(None, activations, manifest)
        (sentence,) = found.assumptions
        assert found.task == "multiclass"
        assert "multiclass is assumed" in sentence
    assert meaning(None, activations, OURS).task == "multiclass"
    assert meaning(None, activations, OURS).assumptions == ()


def test_all_assumptions_are_said():
    first, task = meaning({"a": (None, 3), "b": (None, 3)}).assumptions
    assert "first" in first
    assert "multiclass" in task


@pytest.mark.parametrize("manifest", [None, dataclasses.replace(OURS, task="multiclass")])
def test_a_softmax_is_not_asked_of_one_number(manifest):
    with pytest.raises(UsageError) as caught:
        meaning({"out": (None, 1)}, None, manifest, task=None if manifest else "multiclass")
    assert caught.value.subject == "task=multiclass"
    assert caught.value.exit_code == 2
    assert meaning({"out": (None, 2)}, task="multiclass").task == "multiclass"


# --- the end of the network


@pytest.mark.parametrize(
    ("activations", "manifest", "known"),
    [
        (None, None, None),
        (None, THEIRS, None),
        (None, OURS, "none"),
        ({}, None, "none"),
        ({"other": "softmax"}, THEIRS, "none"),
        ({"out": "softmax"}, None, "softmax"),
        ({"out": "sigmoid"}, OURS, "sigmoid"),
        ({"out": "unknown"}, THEIRS, None),  # the mean of several networks' scores must not get a second softmax
    ],
)
def test_the_activation_is_known_of_our_networks_and_where_the_graph_can_be_read(activations, manifest, known):
    assert meaning(None, activations, manifest, task="multiclass").activation == known


def scores(task: str, activation: str | None, *row: float) -> list[float]:
    output = TensorSpec("out", (None, len(row)), np.dtype(np.float32))
    found = OutputMeaning(output, task, activation).scores(np.array(row, np.float32))
    return np.asarray(found, float).tolist()


SOFTMAX = [math.exp(x) / (1 + math.exp(1) + math.exp(-2)) for x in (0, 1, -2)]
SIGMOID = [1 / (1 + math.exp(-x)) for x in (0, 1, -2)]


@pytest.mark.parametrize(
    ("task", "activation", "expected"),
    [
        ("multiclass", None, SOFTMAX),
        ("multiclass", "none", SOFTMAX),
        ("multiclass", "softmax", [0, 1, -2]),
        ("multiclass", "sigmoid", [0, 1, -2]),  # scores of the graph's own
        ("multilabel", None, SIGMOID),
        ("multilabel", "none", SIGMOID),
        ("multilabel", "sigmoid", [0, 1, -2]),
        ("multilabel", "softmax", [0, 1, -2]),
        ("regression", None, [0, 1, -2]),
        ("regression", "none", [0, 1, -2]),
        ("features", None, [0, 1, -2]),
    ],
)
def test_scores_are_made_where_the_graph_has_not_made_them(task, activation, expected):
    assert scores(task, activation, 0, 1, -2) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("row", "are_scores"),
    [
        ((0.25, 0.75), True),
        ((0, 1), True),
        ((0.25, 0.7509), True),  # a thousandth more or less: scores of half precision
        ((0.25, 0.7491), True),
        ((0.25, 0.7511), False),
        ((0.25, 0.7489), False),
        ((0.25, 0.5), False),
        ((-0.25, 1.25), False),
    ],
)
def test_numbers_that_can_only_be_a_distribution_are_one_where_the_end_is_unknown(row, are_scores):
    softmax = [1 / (1 + math.exp(row[1] - row[0])), 1 / (1 + math.exp(row[0] - row[1]))]
    assert scores("multiclass", None, *row) == pytest.approx(row if are_scores else softmax, rel=1e-6)
    assert scores("multiclass", "none", *row) == pytest.approx(softmax, rel=1e-6)  # of float32 numbers


@pytest.mark.parametrize(("row", "are_scores"), [((0, 1), True), ((-0.125, 1), False), ((0, 1.125), False)])
def test_numbers_within_one_are_scores_of_labels_where_the_end_is_unknown(row, are_scores):
    sigmoid = [1 / (1 + math.exp(-x)) for x in row]
    assert scores("multilabel", None, *row) == pytest.approx(row if are_scores else sigmoid, rel=1e-12)
    assert scores("multilabel", "none", *row) == pytest.approx(sigmoid, rel=1e-12)


# --- rows


def rows(array: np.ndarray) -> np.ndarray:
    return meaning(task="regression").rows(array)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1, 1), (2, 3, 1), (2, 3, 1, 1, 1), (0, 3), (0, 3, 7, 7)])
def test_an_output_is_read_as_rows(shape):
    array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    found = rows(array)
    assert found.shape == (shape[0], 3) if shape[0] else len(found) == 0
    np.testing.assert_array_equal(found.ravel(), array.ravel())


@pytest.mark.parametrize("shape", [(2, 3, 2, 1), (1, 3, 1, 2), (2, 3, 7)])
def test_a_map_that_the_model_did_not_announce_is_refused(shape):
    with pytest.raises(ModelFileError) as caught:
        rows(np.zeros(shape, np.float32))
    assert str(shape) in caught.value.why
    assert caught.value.subject == "out (N, 3) float32"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_broken_numbers_are_refused(value):
    with pytest.raises(ModelFileError) as caught:
        rows(np.array([[0, 1, 2], [0, value, 2]], np.float32))
    assert caught.value.subject == "out"


# --- thresholds


def positive(scores: np.ndarray, *thresholds: float) -> list[bool]:
    manifest = dataclasses.replace(OURS, task="multilabel", thresholds=thresholds)
    return meaning(None, None, manifest).positive(scores).tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_a_label_is_positive_from_its_threshold(dtype):
    at = np.array([0.3, 0.7, 0.5], dtype)
    below = np.nextafter(at, dtype(0))
    assert positive(at, 0.3, 0.7, 0.5) == [True] * 3
    assert positive(below, 0.3, 0.7, 0.5) == [False] * 3


def test_labels_of_several_outputs_are_found_with_their_indices():
    assert shared_labels(("crane", "dog", "crane", "cat", "dog", "crane")) == {"crane": [0, 2, 5], "dog": [1, 4]}
    assert shared_labels(("crane", "Crane")) == shared_labels(()) == {}
    assert name_of_output("a\nb", 7, is_shared=True) == "a\\nb (7)"
    assert name_of_output("a\nb", 7, is_shared=False) == "a\\nb"


def test_one_threshold_is_for_all_labels_and_one_half_where_there_is_none():
    assert positive(np.array([0.2, 0.3, 0.4]), 0.3) == [False, True, True]
    assert positive(np.array([0.499, 0.5, 0.501])) == [False, True, True]


@pytest.mark.parametrize("count", [2, 4])
def test_another_number_of_thresholds_is_refused(count):
    manifest = dataclasses.replace(OURS, task="multilabel", thresholds=(0.5,) * count)
    with pytest.raises(UsageError) as caught:
        meaning(None, None, manifest)
    assert caught.value.subject == "thresholds"
    assert meaning({"out": (None, count)}, None, manifest).thresholds == (0.5,) * count


@pytest.mark.parametrize("count", [1, 2])
def test_thresholds_that_fit_no_row_are_refused_when_the_rows_come(count):
    manifest = dataclasses.replace(OURS, task="multilabel", thresholds=(0.5,) * count)
    found = meaning({"out": (None, None)}, None, manifest)
    assert found.rows(np.zeros((1, count), np.float32)).shape == (1, count)
    if count > 1:
        with pytest.raises(UsageError) as caught:
            found.rows(np.zeros((1, 3), np.float32))
        assert caught.value.subject == "thresholds"


@pytest.mark.parametrize("count", [2, 4])
def test_another_number_of_labels_is_refused(count):
    with pytest.raises(UsageError) as caught:
        require_labels(("a",) * count, 3)
    assert (caught.value.subject, caught.value.why) == ("labels", f"{count} labels for 3 classes")
    for labels, classes in (((), 3), (("a",) * 3, 3), (("a",) * count, None)):
        require_labels(labels, classes)


@pytest.mark.parametrize("task", ["multiclass", "regression", "features"])
def test_only_a_multilabel_model_has_the_thresholds_of_its_manifest(task):
    manifest = dataclasses.replace(OURS, task=task, thresholds=(0.1, 0.2))
    assert meaning(None, None, manifest).thresholds == (0.5,)


def with_numbers(outputs: Mapping[str, Shape], *numbers: str) -> FunctionRunner:
    """A model whose outputs `numbers` are whole."""
    made = runner(outputs)
    made.outputs = tuple(
        dataclasses.replace(spec, dtype=np.dtype(np.int64)) if spec.name in numbers else spec for spec in made.outputs
    )
    return made


def test_the_best_scores_beside_their_classes_are_not_scores_of_classes():
    with pytest.raises(ModelFileError) as caught:
        OutputMeaning.of(with_numbers({"best": (None, 2), "classes": (None, 2)}, "classes"), task="multiclass")
    assert caught.value.subject.startswith("best")
    assert "TopK" in caught.value.fix


def test_the_number_of_the_best_class_does_not_answer():
    both = {"class": (None, 1), "scores": (None, 3)}
    assert OutputMeaning.of(with_numbers(both, "class"), task="multiclass").output.name == "scores"
    for alone in ((None,), (None, 1)):
        with pytest.raises(ModelFileError, match="does not include one row"):
            OutputMeaning.of(with_numbers({"class": alone}, "class"), task="multiclass")


@pytest.mark.parametrize(
    ("task", "outputs", "labels", "activations", "found"),
    [
        ("multiclass", {"logits": (None, 3)}, (), {}, {"logits"}),
        ("multilabel", {"logits": (None, 3)}, (), {}, set()),
        ("regression", {"logits": (None, 3)}, (), {}, set()),
        ("features", {"features": (None, 3)}, (), {}, set()),
        (None, {"y": (None, 3)}, (), {}, {"y"}),
        (None, {"y": (None, 3)}, (), {"y": "softmax"}, {"y"}),
        (None, {"y": (None, 3)}, (), {"y": "sigmoid"}, set()),
        ("multiclass", {"y": (None, 3)}, (), {"y": "sigmoid"}, {"y"}),  # the owner knows better
        (None, {"y": (None, 1)}, (), {}, set()),
        (None, {"y": (None, None)}, (), {}, {"y"}),
        (None, {"y": (None, 3, 4, 4)}, (), {}, set()),
        (None, {"logits": (None, 3), "aux": (None, 3), "v": (None, 8)}, (), {}, {"logits", "aux"}),
        (None, {"one": (None, 3), "two": (None, 8)}, ("a", "b", "c"), {}, {"one"}),
        (None, {"one": (None, 3), "two": (None, 8)}, (), {}, {"one", "two"}),
    ],
)  # fmt: skip
def test_which_outputs_hold_scores_of_classes(task, outputs, labels, activations, found):
    facts = dataclasses.replace(OURS, labels=labels, task=task)
    assert class_outputs(runner(outputs, activations, facts)) == found
