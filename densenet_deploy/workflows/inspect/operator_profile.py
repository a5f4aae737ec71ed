"""Where the time of a model goes, operator by operator, from its backend's own profile."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from densenet_deploy.analysis.cost import block_of
from densenet_deploy.artifacts import Artifact
from densenet_deploy.options import require_range
from densenet_deploy.runtime.batching import fixed_batch, input_size
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
from densenet_deploy.workflows.load import is_checkpoint, load

_CALLS: Final = 10
_SHOWN: Final = 10


@dataclass(frozen=True)
class ProfileOptions:
    """Where to run; None means the backend's defaults. The median of `calls` calls counts."""

    backend: str | None = None
    device: str | None = None
    threads: int | None = None
    calls: int = _CALLS

    def __post_init__(self) -> None:
        require_range("calls", self.calls, 1, 10_000)


@dataclass(frozen=True)
class Share:
    """What `count` operators of one kind or block took together, in milliseconds of a call, and as a fraction."""

    name: str
    count: int
    ms: float
    fraction: float


@dataclass(frozen=True)
class OperatorProfile:
    """The operators of one model. `latency_ms` is the median call without a profiler, which slows calls down."""

    placement: Placement
    batch: int
    latency_ms: float
    operators: tuple[OperatorTime, ...]

    @property
    def by_operator(self) -> tuple[Share, ...]:
        """The slowest kind first."""
        return _shares(self.operators, lambda entry: entry.operator)

    @property
    def by_block(self) -> tuple[Share, ...]:
        """The slowest block first; `other` is what the optimizer named itself, such as a change of layout."""
        return _shares(self.operators, lambda entry: block_of(entry.name))

    @property
    def by_precision(self) -> tuple[Share, ...]:
        """By the type computed in and what ran it, the slowest first."""
        return _shares(self.operators, lambda entry: f"{entry.precision} on {entry.provider}")

    def to_json(self) -> dict[str, object]:
        """Return the profile with plain types."""
        return {
            "placement": asdict(self.placement),
            "batch": self.batch,
            "latency_ms": self.latency_ms,
            "by_operator": [asdict(share) for share in self.by_operator],
            "by_block": [asdict(share) for share in self.by_block],
            "by_precision": [asdict(share) for share in self.by_precision],
            "operators": [asdict(entry) for entry in self.operators],
        }

    def to_text(self) -> str:
        """Return tables for people: kinds, blocks, precisions, and the slowest operators."""
        total = sum(entry.ms for entry in self.operators)
        lines = [
            f"{self.latency_ms:.3f} ms a call of batch {self.batch}, {total:.3f} ms in operators under the profiler",
            f"({self.placement})",
        ]
        for title, shares in (
            ("operator", self.by_operator),
            ("block", self.by_block),
            ("precision", self.by_precision),
        ):
            lines += ["", f"{title:36} {'count':>5} {'ms':>9} {'share':>6}"]
            shown, rest = shares[:_SHOWN], shares[_SHOWN:]
            lines += [f"{share.name:36} {share.count:5} {share.ms:9.3f} {share.fraction:6.1%}" for share in shown]
            if rest:
                count, ms = sum(share.count for share in rest), sum(share.ms for share in rest)
                lines.append(f"{f'{len(rest)} more':36} {count:5} {ms:9.3f} {sum(s.fraction for s in rest):6.1%}")
        lines += ["", f"{'slowest':56} {'ms':>9}  operator"]
        slowest = sorted(self.operators, key=lambda entry: -entry.ms)[:_SHOWN]
        lines += [f"{entry.name:56} {entry.ms:9.3f}  {entry.operator}, {entry.precision}" for entry in slowest]
        return "\n".join(lines)


def profile_file(path: Path, batch: int = 1, options: ProfileOptions | None = None) -> OperatorProfile:
    """Profile an artifact, or a checkpoint, whose module is built first.

    Raises:
        InputError: if the file cannot be used.
        BackendError: if the backend cannot be had, or tells no times by operator.
    """
    source = load(path) if is_checkpoint(path) else Artifact.open(path)
    return profile_model(source, batch, options)


def profile_model(
    source: ModelSource, batch: int = 1, options: ProfileOptions | None = None, image_size: int = 224
) -> OperatorProfile:
    """Profile `source` on seeded noise, at its own batch where that is fixed; see `profile_file`.

    `image_size` is for a module that does not say what it was made for.
    """
    options = options or ProfileOptions()
    runner_options = RunnerOptions(threads=options.threads)
    with open_runner(source, options.backend, options.device, runner_options) as runner:
        known = runner.manifest.preprocessing.image_size if runner.manifest else image_size
        size, batch = input_size(runner) or known, fixed_batch(runner) or batch
        noise = np.random.default_rng(0).standard_normal((batch, 3, size, size), np.float32)
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
