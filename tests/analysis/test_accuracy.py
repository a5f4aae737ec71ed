"""Accuracy by hand: small answers whose every figure can be counted."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.analysis.accuracy import (
    PUBLISHED,
    TOP,
    Answers,
    ClassAccuracy,
    Confusion,
    Published,
    ReliabilityBin,
)


def _answers(truth, best, confidence):
    return Answers(np.array(truth), np.array(best), np.array(confidence, float))


FOUR = _answers([0, 0, 2, 2], [[0, 1], [1, 0], [2, 0], [2, 1]], [0.9, 0.6, 0.8, 0.7])


def test_top1_and_top5_count_images():
    assert (FOUR.count, FOUR.top1, FOUR.top5) == (4, 0.75, 1.0)
    assert FOUR.predicted.tolist() == [0, 1, 2, 2]
    assert FOUR.right.tolist() == [True, False, True, True]
    assert TOP == 5


def test_a_class_that_is_none_of_the_best_is_in_neither():
    answers = _answers([3, 4], [[0, 1, 2], [1, 0, 4]], [1.0, 1.0])
    assert (answers.top1, answers.top5) == (0.0, 0.5)


def test_classes_have_their_own_accuracy_and_one_without_images_has_none():
    assert FOUR.by_class() == (ClassAccuracy(0, 2, 1, 1), ClassAccuracy(2, 2, 2, 2))
    assert [one.top1 for one in FOUR.by_class()] == [0.5, 1.0]


def test_the_last_class_may_never_be_right_or_answered_and_answers_may_lie_beyond_it():
    answers = _answers([0, 7, 7, 2, 2], [[0], [2], [9], [2], [0]], [1.0] * 5)
    assert answers.by_class() == (ClassAccuracy(0, 1, 1, 2), ClassAccuracy(2, 2, 1, 2), ClassAccuracy(7, 2, 0, 0))
    assert [one.top1 for one in answers.by_class()] == [1.0, 0.5, 0.0]


def test_the_confusion_matrix_holds_every_image_once():
    answers = _answers([2, 0, 2, 0, 2, 0], [[2], [1], [2], [1], [0], [0]], [1.0] * 6)
    assert answers.confusion() == (Confusion(0, 0, 1), Confusion(0, 1, 2), Confusion(2, 0, 1), Confusion(2, 2, 2))


def test_confidence_that_is_earned_has_no_calibration_error():
    earned = _answers([0] * 4 + [1], [[0]] * 5, [0.8] * 5)
    assert earned.top1 == 0.8
    assert earned.calibration_error == pytest.approx(0)


@pytest.mark.parametrize(("truth", "confidence"), [([0, 1], 1.0), ([0, 0], 0.5)], ids=["boasting", "timid"])
def test_confidence_that_is_not_the_accuracy_shows_as_their_distance(truth, confidence):
    assert _answers(truth, [[0], [0]], [confidence] * 2).calibration_error == pytest.approx(0.5)


def test_bins_that_are_too_sure_and_bins_that_are_not_sure_enough_do_not_make_up_for_one_another():
    """Three right images of 0.9375 (0.0625 below), and a wrong one of 0.5 (0.5 above): weighted 3/4 and 1/4."""
    answers = _answers([0, 0, 0, 1], [[0]] * 4, [0.9375, 0.9375, 0.9375, 0.5])
    assert answers.calibration_error == 0.75 * 0.0625 + 0.25 * 0.5


def test_bins_hold_the_mean_score_and_the_fraction_that_is_right():
    answers = _answers([0, 1, 0, 1], [[0], [0], [0], [0]], [0.9375, 1.0, 0.96875, 0.5])
    assert answers.reliability() == (
        ReliabilityBin(7 / 15, 8 / 15, 1, 0.5, 0.0),
        ReliabilityBin(14 / 15, 1.0, 3, (0.9375 + 1.0 + 0.96875) / 3, 2 / 3),
    )


@pytest.mark.parametrize(
    ("confidence", "number"),
    [(0.0, 0), (1e-9, 0), (1 / 15, 0), (1 / 15 + 1e-9, 1), (14 / 15 + 1e-9, 14), (1.0, 14), (1.0 + 1e-9, 14)],
)
def test_a_bin_holds_its_upper_edge_and_the_first_its_lower_one_too(confidence, number):
    (only,) = _answers([0], [[0]], [confidence]).reliability()
    assert (only.low, only.high, only.count) == (number / 15, (number + 1) / 15, 1)


# Percent, as torchvision's documentation lists them for IMAGENET1K_V1.
TORCHVISION = {
    "densenet121": (74.434, 91.972),
    "densenet161": (77.138, 93.56),
    "densenet169": (75.6, 92.806),
    "densenet201": (76.896, 93.37),
    "resnet50": (76.13, 92.862),
    "resnet101": (77.374, 93.546),
}


def test_published_figures_are_those_of_torchvision_and_the_paper():
    assert PUBLISHED.keys() == TORCHVISION.keys() | {"densenet264"}
    for name, (top1, top5) in TORCHVISION.items():
        assert 100 * PUBLISHED[name].top1 == pytest.approx(top1)
        assert 100 * PUBLISHED[name].top5 == pytest.approx(top5)
    assert PUBLISHED["densenet264"] == Published(1 - 0.2215, None, "the DenseNet paper")


@pytest.mark.slow  # torchvision takes seconds to import
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_still_publishes_them(name):
    from torchvision.models import get_model_weights

    metrics = get_model_weights(name)["IMAGENET1K_V1"].meta["_metrics"]["ImageNet-1K"]
    assert TORCHVISION[name] == (metrics["acc@1"], metrics["acc@5"])
