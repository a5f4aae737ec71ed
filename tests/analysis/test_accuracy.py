"""Accuracy by hand: small answers whose every figure can be counted."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.analysis.accuracy import Answers, Confusion


def _answers(truth, best, confidence):
    return Answers(np.array(truth), np.array(best), np.array(confidence, float))


FOUR = _answers([0, 0, 2, 2], [[0, 1], [1, 0], [2, 0], [2, 1]], [0.9, 0.6, 0.8, 0.7])


def test_top1_and_top5_count_images():
    assert (FOUR.count, FOUR.top1, FOUR.top5) == (4, 0.75, 1.0)


def test_a_class_that_is_none_of_the_best_is_in_neither():
    assert _answers([3], [[0, 1]], [1.0]).top5 == 0


def test_classes_have_their_own_accuracy_and_one_without_images_has_none():
    zero, two = FOUR.by_class()
    assert (zero.index, zero.count, zero.right, zero.answered, zero.top1) == (0, 2, 1, 1, 0.5)
    assert (two.index, two.count, two.right, two.answered, two.top1) == (2, 2, 2, 2, 1.0)


def test_the_confusion_matrix_holds_every_image_once():
    assert FOUR.confusion() == (Confusion(0, 0, 1), Confusion(0, 1, 1), Confusion(2, 2, 2))


def test_confidence_that_is_earned_has_no_calibration_error():
    earned = _answers([0] * 4 + [1], [[0]] * 5, [0.8] * 5)
    assert earned.top1 == 0.8
    assert earned.calibration_error == pytest.approx(0)


def test_confidence_that_is_not_earned_shows_as_its_excess():
    boasting = _answers([0, 1], [[0], [0]], [1.0, 1.0])
    assert boasting.calibration_error == pytest.approx(0.5)


def test_the_error_of_bins_is_weighted_by_their_images():
    """Three images of 0.95, all right (0.05 off), and one of 0.5, wrong (0.5 off)."""
    answers = _answers([0, 0, 0, 1], [[0]] * 4, [0.95, 0.95, 0.95, 0.5])
    low, high = answers.reliability()
    assert (low.count, low.accuracy, low.confidence) == (1, 0.0, 0.5)
    assert (high.count, high.accuracy) == (3, 1.0)
    assert high.low < 0.95 <= high.high
    assert answers.calibration_error == pytest.approx(0.75 * 0.05 + 0.25 * 0.5)


@pytest.mark.parametrize("confidence", [0.0, 1 / 15, 1.0])
def test_scores_on_the_edge_of_a_bin_are_in_one(confidence):
    (only,) = _answers([0], [[0]], [confidence]).reliability()
    assert only.count == 1
    assert only.low <= confidence <= only.high
