"""The smallest network within a limit, among networks that follow each other in size, in few trials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from densenet_deploy.pruning.widths import Schedule

MOST_TRIALS: Final = 6
_BY_PREDICTION: Final = 3
_RESOLUTION: Final = 50


def most_steps(plan: Schedule, measure: Callable[[int], float], least: float, *, predicts: bool) -> int:
    """Return the largest number of steps that was found to keep a measure of `least`; 0 if not even the first does.

    Networks after more steps are smaller and, but for noise, worse. The first trials are at the steps where the
    predicted SQNR, moved by what the last trial measured, meets the limit; the others halve what is undecided, until
    that is a fiftieth of all steps or six trials were made. Before 0 is returned, the first step was tried.

    Args:
        plan: the networks.
        measure: of the network after a number of steps; larger is better.
        least: the limit.
        predicts: whether the measure is an SQNR in dB, which the plan predicts.
    """
    low, high, offset = 0, len(plan.steps) + 1, 0.0  # `low` keeps the limit, `high` does not, or does not exist
    tolerance, trials = max(1, len(plan.steps) // _RESOLUTION), 0
    while high - low > 1 and (low == 0 or (trials < MOST_TRIALS and high - low > tolerance)):
        count = (low + high) // 2
        if predicts and trials < _BY_PREDICTION:
            fitting = (n for n in range(high - 1, low, -1) if plan.predicted_db(n) + offset >= least)
            count = next(fitting, low + 1)
        value = measure(count)
        trials += 1
        low, high = (count, high) if value >= least else (low, count)
        if predicts and plan.predicted_db(count) < float("inf"):
            offset = value - plan.predicted_db(count)
    return low
