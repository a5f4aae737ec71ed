"""The elimination against least squares solved anew for every set of channels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from densenet_deploy.pruning.elimination import DAMPING, LeastSquares, eliminate

CHANNELS, GROUP, OUTPUTS, ROWS = 5, 4, 3, 200


def layer(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U with channels that resemble each other, Y of other weights and noise, and W₀."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((CHANNELS * GROUP, CHANNELS * GROUP))
    u = rng.standard_normal((ROWS, CHANNELS * GROUP)) @ (np.eye(CHANNELS * GROUP) + 0.3 * mixing)
    w = rng.standard_normal((CHANNELS * GROUP, OUTPUTS))
    return u, u @ w + 0.1 * rng.standard_normal((ROWS, OUTPUTS)), w + 0.05 * rng.standard_normal(w.shape)


def by_brute_force(u: np.ndarray, y: np.ndarray, w: np.ndarray, kept: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """(weights, objective) of the ridge regression as one ordinary regression with extra rows, by NumPy's SVD."""
    columns = [channel * GROUP + place for channel in kept for place in range(GROUP)]
    ridge = np.sqrt(DAMPING * (u**2).sum() / u.shape[1])
    augmented = np.vstack([u[:, columns], ridge * np.eye(u.shape[1])[:, columns]])
    target = np.vstack([y, ridge * w])
    found = np.linalg.lstsq(augmented, target, rcond=None)[0]
    return found, float(((target - augmented @ found) ** 2).sum())


@pytest.mark.parametrize("kept", [(0, 1, 2, 3, 4), (1, 3), (4,), (0, 2, 4)])
def test_the_refit_is_the_ridge_regression(kept: tuple[int, ...]) -> None:
    problem = LeastSquares.of(*layer(), CHANNELS)
    weights, objective = by_brute_force(*layer(), kept)
    np.testing.assert_allclose(problem.fitted(kept), weights, atol=1e-9)
    assert problem.objective(kept) == pytest.approx(objective, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_every_removal_is_the_cheapest_and_costs_what_a_new_fit_says(seed: int) -> None:
    problem = LeastSquares.of(*layer(seed), CHANNELS)
    found = eliminate(problem, 1)
    left = set(range(CHANNELS))
    assert found.objectives[0] == pytest.approx(by_brute_force(*layer(seed), tuple(sorted(left)))[1], rel=1e-9)
    for removed, objective in zip(found.removed, found.objectives[1:], strict=True):
        expected = {channel: by_brute_force(*layer(seed), tuple(sorted(left - {channel})))[1] for channel in left}
        assert removed == min(expected, key=expected.__getitem__)
        assert objective == pytest.approx(expected[removed], rel=1e-8)
        left.remove(removed)
    assert found.kept == tuple(sorted(left))


def test_removing_nothing_keeps_everything() -> None:
    problem = LeastSquares.of(*layer(), CHANNELS)
    found = eliminate(problem, CHANNELS)
    assert (found.removed, found.kept) == ((), (0, 1, 2, 3, 4))
    assert found.objectives == (pytest.approx(problem.objective(range(CHANNELS)), rel=1e-9),)


def test_exact_outputs_of_the_old_weights_give_the_old_weights() -> None:
    u, _, w = layer()
    problem = LeastSquares.of(u, u @ w, w, CHANNELS)
    np.testing.assert_allclose(problem.fitted(range(CHANNELS)), w, atol=1e-12)
    assert problem.objective(range(CHANNELS)) == pytest.approx(0, abs=1e-9)


def test_a_channel_of_zeros_goes_first_and_for_nothing() -> None:
    u, _, w = layer()
    u[:, 2 * GROUP : 3 * GROUP] = 0
    w[2 * GROUP : 3 * GROUP] = 0
    found = eliminate(LeastSquares.of(u, u @ w, w, CHANNELS), 4)
    assert found.removed == (2,)
    assert found.objectives[1] == pytest.approx(found.objectives[0], abs=1e-9)


def test_among_channels_that_cost_the_same_the_last_goes() -> None:
    problem = LeastSquares.of(np.zeros((8, 3)), np.zeros((8, 2)), np.zeros((3, 2)), 3)
    assert eliminate(problem, 1).removed == (2, 1)
    assert not problem.fitted((0,)).any()


def test_a_twin_is_replaced_by_the_refit() -> None:
    """Two equal channels: one goes, and the weights of the other become the sum of both."""
    rng = np.random.default_rng(0)
    twin = rng.standard_normal((50, 1))
    u, w = np.hstack([twin, twin, rng.standard_normal((50, 1))]), np.array([[1.0], [2.0], [5.0]])
    problem = LeastSquares.of(u, u @ w, w, 3)
    (removed,) = eliminate(problem, 2).removed
    assert removed in (0, 1)
    np.testing.assert_allclose(problem.fitted(eliminate(problem, 2).kept), [[3], [5]], atol=1e-3)  # less the ridge


def test_the_signal_is_the_variance_and_not_the_mean() -> None:
    problem = LeastSquares.of(np.eye(4), np.array([[5.0], [5], [7], [7]]), np.zeros((4, 1)), 4)
    assert problem.signal == 4.0
    assert list(problem.columns([3, 1])) == [3, 1]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_greedy_is_not_far_from_the_best_set(count: int) -> None:
    problem = LeastSquares.of(*layer(), CHANNELS)
    best = min(problem.objective(kept) for kept in itertools.combinations(range(CHANNELS), count))
    assert problem.objective(eliminate(problem, count).kept) <= 1.5 * best
