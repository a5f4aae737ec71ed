"""Errors of numbers by hand, and as scikit-learn computes them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from densenet_deploy.analysis.regression import NumberAnswers, OutputErrors

TRUTH = np.array([[1.0, 10.0], [2.0, 20.0]])
ANSWERS = NumberAnswers(TRUTH, TRUTH + np.array([[3.0, 0.0], [-1.0, -4.0]]))


def test_errors_by_hand():
    assert (ANSWERS.count, ANSWERS.mae, ANSWERS.rmse) == (2, 2.0, pytest.approx(np.sqrt(26 / 4)))
    assert ANSWERS.by_output(("age", "weight")) == (
        OutputErrors(0, "age", 2.0, pytest.approx(np.sqrt(5))),
        OutputErrors(1, "weight", 2.0, pytest.approx(np.sqrt(8))),
    )
    assert [one.label for one in ANSWERS.by_output()] == [None, None]


def test_the_errors_of_some_images_are_those_of_these_images():
    assert (ANSWERS.chosen([1]).mae, ANSWERS.chosen([1]).count) == (2.5, 1)


def test_they_are_those_of_scikit_learn():
    from sklearn.metrics import mean_absolute_error, mean_squared_error

    rng = np.random.default_rng(0)
    truth, values = rng.standard_normal((2, 50, 3))
    answers = NumberAnswers(truth, values)
    assert answers.mae == pytest.approx(mean_absolute_error(truth, values))
    assert answers.rmse == pytest.approx(np.sqrt(mean_squared_error(truth, values)))


def test_the_root_of_the_mean_square_of_large_errors_does_not_overflow():
    answers = NumberAnswers(np.array([[0.0], [0.0]]), np.array([[3e300], [4e300]]))
    assert answers.rmse == pytest.approx(math.sqrt(12.5) * 1e300)
    assert NumberAnswers(np.zeros((2, 1)), np.zeros((2, 1))).rmse == 0.0
