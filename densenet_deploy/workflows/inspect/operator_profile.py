"""Where the time of a model goes, operator by operator, from its backend's own profile."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from densenet_deploy.analysis.cost import network_part
from densenet_deploy.manifest import Preprocessing, Size
from densenet_deploy.options import or_default, require_range
from densenet_deploy.records import fields_to_plain, to_plain
from densenet_deploy.reports import table
from densenet_deploy.runtime.batching import fixed_batch, image_shape
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.preprocess import nearest_pixels
from densenet_deploy.runtime.runner import (
    Device,
    ModelSource,
    Placement,
    ProfileRequest,
    RunnerOptions,
    backends,
    open_runner,
    runner_source,
)
from densenet_deploy.runtime.timing import OperatorTime, time_runs

_CALLS: Final = 10
_SHOWN: Final = 10


@dataclass(frozen=True)
class ProfileOptions:
    """Where to run; None means the backend's defaults. Times are those of the median of `calls` calls."""

    backend: str | None = None
    device: str | None = None
    threads: int | None = None
    calls: int = _CALLS

    def __post_init__(self) -> None:
        require_range("calls", self.calls, 1, 10_000)


@dataclass(frozen=True)
class Share:
    """The time of `count` operators of one kind or block together: milliseconds per call, and a fraction of all."""

    name: str
    count: int
    ms: float
    fraction: float


@dataclass(frozen=True)
class OperatorProfile:
    """The operators of one model; `latency_ms` is the median call without a profiler, which slows calls down."""

    placement: Placement
    batch: int
    latency_ms: float
    operators: tuple[OperatorTime, ...]

    @property
    def by_operator(self) -> tuple[Share, ...]:
        """By kind of operator, the slowest first."""
        return _shares(self.operators, lambda entry: entry.operator)

    @property
    def by_block(self) -> tuple[Share, ...]:
        """By block, the slowest first; `other` are operators that the backend added, such as changes of layout."""
        return _shares(self.operators, lambda entry: network_part(entry.name))

    @property
    def by_precision(self) -> tuple[Share, ...]:
        """By the type computed in and the provider, the slowest first."""
        return _shares(self.operators, lambda entry: f"{entry.precision} on {entry.provider}")

    def to_json(self) -> dict[str, Any]:
        """Return the profile with plain types."""
        shares = {name: to_plain(getattr(self, name)) for name in ("by_operator", "by_block", "by_precision")}
        return fields_to_plain(self) | shares

    def to_text(self) -> str:
        """Return tables for people: kinds, blocks, precisions, and the slowest operators."""
        total = sum(entry.ms for entry in self.operators)
        lines = [
            f"{self.latency_ms:.3f} ms per call of batch {self.batch}, {total:.3f} ms in operators under the profiler",
            f"({self.placement})",
        ]
        for title, shares in (
            ("operator", self.by_operator),
            ("block", self.by_block),
            ("precision", self.by_precision),
        ):
            lines += ["", *table((title, "count", "ms", "share"), map(_row, _shown(shares)), right=(1, 2, 3))]
        slowest = sorted(self.operators, key=lambda entry: -entry.ms)[:_SHOWN]
        rows = ([entry.name, f"{entry.ms:.3f}", f"{entry.operator}, {entry.precision}"] for entry in slowest)
        return "\n".join([*lines, "", *table(("slowest", "ms", "operator"), rows, right=(1,))])


def _shown(shares: tuple[Share, ...]) -> list[Share]:
    """The first ten, and the rest as one."""
    shown, rest = list(shares[:_SHOWN]), shares[_SHOWN:]
    if not rest:
        return shown
    count, ms, fraction = (sum(getattr(share, name) for share in rest) for name in ("count", "ms", "fraction"))
    return [*shown, Share(f"{len(rest)} more", count, ms, fraction)]


def _row(share: Share) -> list[str]:
    return [share.name, str(share.count), f"{share.ms:.3f}", f"{share.fraction:.1%}"]


def profile_model(
    source: ModelSource, batch: int = 1, options: ProfileOptions | None = None, image_size: Size = 224
) -> OperatorProfile:
    """Profile a model on seeded noise.

    Args:
        source: whatever `open_runner` takes.
        batch: images per call; a model with a fixed batch keeps its own.
        options: where to run.
        image_size: for a module that does not state its own.

    Raises:
        InputError: if the model cannot be used.
        BackendError: if the backend is not available, or does not report times by operator.
    """
    options = or_default(options, ProfileOptions)
    runner_options = RunnerOptions(threads=options.threads)
    with open_runner(source, options.backend, options.device, runner_options) as runner:
        known = runner.manifest.preprocessing if runner.manifest else Preprocessing.default(image_size)
        shape = (size or usual for size, usual in zip(image_shape(runner), known.shape, strict=True))
        batch = fixed_batch(runner) or batch
        noise: Array = np.random.default_rng(0).standard_normal((batch, *shape), np.float32)
        if runner.inputs[0].dtype == np.uint8:
            noise = nearest_pixels(noise, known)
        feeds, placement = {runner.inputs[0].name: noise}, runner.placement
        seconds = time_runs(lambda: runner.run(feeds), warmup=2, repeats=options.calls)
    kind = backends.get(placement.backend)
    request = ProfileRequest(
        runner_source(source), Device.parse(placement.device), runner_options, feeds, options.calls
    )
    return OperatorProfile(placement, batch, statistics.median(seconds) * 1e3, kind.profile(request))


def _shares(operators: Iterable[OperatorTime], key: Callable[[OperatorTime], str]) -> tuple[Share, ...]:
    groups: dict[str, list[float]] = defaultdict(list)
    for entry in operators:
        groups[key(entry)].append(entry.ms)
    total = sum(map(sum, groups.values()))
    shares = (Share(name, len(ms), sum(ms), sum(ms) / total if total else 0.0) for name, ms in groups.items())
    return tuple(sorted(shares, key=lambda share: -share.ms))
