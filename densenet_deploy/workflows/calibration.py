"""Ranges of inner tensors, from the cache or from a run over the calibration data."""

from __future__ import annotations

import tempfile
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from densenet_deploy.artifacts import sha256_of, write_file
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.runner import RunnerOptions, open_runner
from densenet_deploy.workflows.stages import Step

if TYPE_CHECKING:
    import onnx

    from densenet_deploy.quantize.cache import CalibrationCache
    from densenet_deploy.quantize.calibration_data import CalibrationData
    from densenet_deploy.quantize.observers.observer import ChannelRanges


@dataclass(frozen=True)
class Observation:
    """What to observe: the inner `tensors` of `model`, float32 (N, C, ...), by the observer of that name."""

    model: onnx.ModelProto
    tensors: tuple[str, ...]
    observer: str = "minmax"


@dataclass(frozen=True)
class Observed:
    """The ranges of each tensor by name, and a sentence about where they came from."""

    ranges: dict[str, ChannelRanges]
    note: str


def observe(
    wanted: Observation,
    data: CalibrationData,
    preprocessing: Preprocessing,
    cache: CalibrationCache | None = None,
    step: Step = lambda _done, _total: None,
) -> Observed:
    """Return the ranges that `wanted` names on `data`.

    Raises:
        UnknownNameError: if there is no such observer.
        DataError: if the data are too few, all alike, or not normalized.
        ModelFileError: if an activation is NaN or Inf.
    """
    from densenet_deploy.graph.onnx_file import expose_values
    from densenet_deploy.quantize.cache import CalibrationKey, Hit
    from densenet_deploy.quantize.calibrate import CalibrationPlan, Checkpoint, collect_ranges

    plan = CalibrationPlan(wanted.observer, tensors=wanted.tensors)
    count = len(data) if isinstance(data, Sized) else None
    with tempfile.TemporaryDirectory() as folder:
        exposed = Path(folder) / "exposed.onnx"
        write_file(exposed, expose_values(wanted.model, wanted.tensors).SerializeToString())
        key = CalibrationKey(sha256_of(exposed), data.digests() or {}, preprocessing, plan)
        found = cache.lookup(key) if cache else None
        if isinstance(found, Hit):
            return Observed(dict(found.ranges), "calibration: from the cache")
        checkpoint = Checkpoint(cache.folder / f"{key.digest}.partial.npz", key.digest) if cache else None
        with open_runner(exposed, options=RunnerOptions(check_values=False, arena=False)) as runner:
            ranges = collect_ranges(runner, data, plan, checkpoint, lambda done: step(done, count), data.origin)
    if cache:
        cache.store(key, ranges)
    return Observed(ranges, f"calibration: {found.reason}" if found else "calibration: not cached")
