"""AUROC, average precision and F1 by hand, and as scikit-learn computes them."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.analysis.multilabel import LabelAnswers, LabelMetrics, auroc, average_precision, macro

NAN = float("nan")


def _both(truth, outputs):
    arrays = np.array(truth, bool), np.array(outputs, np.float32)
    return auroc(*arrays), average_precision(*arrays)


@pytest.mark.parametrize(
    ("truth", "outputs", "expected"),
    [
        ([1, 1, 0, 0], [4, 3, 2, 1], (1.0, 1.0)),
        ([0, 0, 1, 1], [4, 3, 2, 1], (0.0, (1 / 3 + 2 / 4) / 2)),
        ([1, 0, 1, 0], [4, 3, 2, 1], (3 / 4, (1 + 2 / 3) / 2)),
        ([1, 0], [5, 5], (0.5, 0.5)),
        ([1, 1, 0, 0, 0], [2, 1, 1, 1, 0], ((3 + 2) / 6, (1 + 2 / 4) / 2)),
        ([0, 1, 1], [-1e30, -1e30, 3e38], (3 / 4, (1 + 2 / 3) / 2)),
    ],
    ids=["perfect", "reversed", "one pair wrong", "all tied", "some tied", "large"],
)
def test_areas_are_counted_by_pairs_and_steps(truth, outputs, expected):
    assert _both(truth, outputs) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("truth", [[1, 1], [0, 0], []])
def test_one_class_alone_has_no_area(truth):
    assert _both(truth, range(len(truth))) == (None, None)


@pytest.mark.parametrize("seed", range(20))
def test_they_are_those_of_scikit_learn_with_ties(seed):
    from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

    rng = np.random.default_rng(seed)
    truth = rng.random(200) < rng.uniform(0.02, 0.98)
    truth[:2] = True, False
    outputs = rng.integers(-4, 4, 200).astype(np.float32) if seed % 2 else rng.standard_normal(200)
    expected = roc_auc_score(truth, outputs), average_precision_score(truth, outputs)
    assert _both(truth, outputs) == pytest.approx(expected, abs=1e-12)
    positive = outputs >= 1
    answers = LabelAnswers(truth[:, None].astype(float), outputs[:, None], positive[:, None], outputs[:, None])
    (label,) = answers.by_label()
    own = (label.f1, label.precision, label.recall)
    scores = [score(truth, positive, zero_division=np.nan) for score in (f1_score, precision_score, recall_score)]
    assert own == pytest.approx(scores)


TWO = LabelAnswers(
    truth=np.array([[1, 0], [0, NAN], [1, 1], [NAN, 0]]),
    outputs=np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.1, 0.4]]),
    positive=np.array([[True, False], [True, False], [False, True], [True, True]]),
    scores=np.zeros((4, 2)),
)


def test_unknown_cells_count_in_nothing():
    assert TWO.by_label(("a", "b")) == (
        LabelMetrics(0, "a", 3, 2, 2, 1 / 2, (1 + 2 / 3) / 2, 2 / 4, 1 / 2, 1 / 2),
        LabelMetrics(1, "b", 3, 1, 2, 1 / 2, 1 / 2, 2 / 3, 1 / 2, 1.0),
    )
    assert TWO.count == 4


def test_labels_without_names_have_none():
    assert [one.label for one in TWO.by_label()] == [None, None]


def test_the_answers_to_some_images_are_those_of_these_images():
    assert (
        TWO.chosen([2, 0]).by_label()
        == LabelAnswers(
            np.array([[1.0, 1], [1, 0]]),
            np.array([[0.7, 0.3], [0.9, 0.1]]),
            np.array([[False, True], [True, False]]),
            np.zeros((2, 2)),
        ).by_label()
    )


@pytest.mark.parametrize(
    ("truth", "positive", "expected"),
    [
        ([1, 0], [False, False], (0.0, None, 0.0)),  # nothing was answered: no precision
        ([0, 0], [True, False], (None, 0.0, None)),  # nothing was to be found: no recall, and no F1
        ([0, 0], [False, False], (None, None, None)),
        ([1, 1], [True, True], (1.0, 1.0, 1.0)),
        ([1, 0], [False, True], (0.0, 0.0, 0.0)),
        ([NAN, NAN], [True, True], (None, None, None)),
    ],
)
def test_what_the_images_do_not_show_is_none(truth, positive, expected):
    answers = LabelAnswers(np.array([truth]).T, np.zeros((2, 1)), np.array([positive]).T, np.zeros((2, 1)))
    (label,) = answers.by_label()
    assert (label.f1, label.precision, label.recall) == expected


def test_the_mean_leaves_out_what_is_undefined():
    assert (macro([0.5, None, 1.0, 0.0]), macro([None]), macro([])) == (0.5, None, None)
