"""How wide each bottleneck stays: all by one ratio, or step by step where an operation costs least accuracy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from densenet_deploy.errors import UsageError

_STEP: Final = 8
_LEAST_SHARE: Final = 8  # a bottleneck keeps at least an eighth of its channels


@dataclass(frozen=True)
class Curve:
    """What narrowing one bottleneck costs and saves.

    Attributes:
        name: of the layer.
        macs: multiply-accumulates per channel.
        noise: power at the outputs, relative to their variance, after 0, 1, 2, … channels are gone.
        width: channels before.
    """

    name: str
    width: int
    macs: int
    noise: tuple[float, ...]


@dataclass(frozen=True)
class Schedule:
    """Networks from the whole one to the smallest, each one step narrower in one layer than the one before.

    Attributes:
        widths: before the first step.
        steps: name of a layer, and its width after the step.
        noise: the predicted noise at the outputs after 0, 1, 2, … steps.
    """

    widths: Mapping[str, int]
    steps: tuple[tuple[str, int], ...]
    noise: tuple[float, ...]

    def at(self, count: int) -> dict[str, int]:
        """Return the widths after `count` steps."""
        return {**self.widths, **dict(self.steps[:count])}

    def predicted_db(self, count: int) -> float:
        """Return the SQNR that is predicted after `count` steps."""
        return math.inf if self.noise[count] <= 0 else -10 * math.log10(self.noise[count])


def uniform_widths(widths: Mapping[str, int], ratio: float) -> dict[str, int]:
    """Return what remains of `widths` when a share `ratio` of each is removed, rounded to whole channels.

    >>> uniform_widths({"conv1": 128}, 0.25)
    {'conv1': 96}

    Raises:
        UsageError: if a layer would have no channels, or all keep theirs.
    """
    left = {name: round(width * (1 - ratio)) for name, width in widths.items()}
    empty = next((name for name, width in left.items() if width < 1), None)
    if empty is not None:
        why = f"leaves {empty} without channels: it has {widths[empty]}"
        raise UsageError(f"ratio={ratio:g}", why, f"give at most {1 - 0.5 / min(widths.values()):.3g}")
    if left == dict(widths):
        why = f"removes no channel: the bottlenecks have {min(widths.values())} to {max(widths.values())}"
        raise UsageError(f"ratio={ratio:g}", why, f"give at least {0.5 / max(widths.values()):.3g}")
    return left


def step_of(width: int) -> int:
    """Return by how many channels a bottleneck of `width` narrows at once: 8, or an eighth of narrow ones."""
    return max(1, min(_STEP, width // _LEAST_SHARE))


def least_width(width: int) -> int:
    """Return the smallest width that a schedule leaves of `width`: an eighth, in whole steps."""
    step = step_of(width)
    return max(1, math.ceil(width / _LEAST_SHARE / step) * step)


def schedule(curves: Sequence[Curve]) -> Schedule:
    """Return the steps in the order in which each removes multiply-accumulates for the least noise.

    Widths are multiples of `step_of`. A layer's next step is the one to the width with the least noise per operation
    saved, so that a costly channel does not hide cheap ones behind it.
    """
    widths = {curve.name: curve.width for curve in curves}
    current, total = dict(widths), sum(curve.noise[0] for curve in curves)
    steps: list[tuple[str, int]] = []
    noise = [total]
    segments = [part for curve in curves for part in _segments(curve)]
    for _, name, width, added in sorted(segments, key=lambda part: part[0]):
        current[name], total = width, total + added
        steps.append((name, width))
        noise.append(total)
    return Schedule(widths, tuple(steps), tuple(noise))


def _segments(curve: Curve) -> list[tuple[float, str, int, float]]:
    """(noise per MAC saved, layer, width after, noise added) of each step: the lower convex hull of a curve."""
    step, least = step_of(curve.width), least_width(curve.width)
    places = [curve.width, *range((curve.width - 1) // step * step, least - 1, -step)]
    hull: list[int] = []
    for width in places:
        while len(hull) > 1 and _slope(curve, hull[-2], hull[-1]) >= _slope(curve, hull[-1], width):
            hull.pop()
        hull.append(width)
    return [
        (_slope(curve, wide, narrow), curve.name, narrow, _noise(curve, narrow) - _noise(curve, wide))
        for wide, narrow in itertools.pairwise(hull)
    ]


def _slope(curve: Curve, wide: int, narrow: int) -> float:
    return (_noise(curve, narrow) - _noise(curve, wide)) / ((wide - narrow) * curve.macs)


def _noise(curve: Curve, width: int) -> float:
    return curve.noise[curve.width - width]
