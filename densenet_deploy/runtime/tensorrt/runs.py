"""A batch through an engine: from host memory in portions, or where it lies on the GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from densenet_deploy.errors import FeedError
from densenet_deploy.runtime.feeds import Array, TensorSpec
from densenet_deploy.runtime.tensorrt.engine import Engine
from densenet_deploy.runtime.tensorrt.gpu_arrays import GpuArray, view_of
from densenet_deploy.runtime.tensorrt.lane import Setup
from densenet_deploy.runtime.tensorrt.lanes import Lanes
from densenet_deploy.runtime.tensorrt.portions import portions

_WARM_RUNS: Final = 2  # the second records a graph


def run_portions(lanes: Lanes, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run checked host arrays of one batch, however large, and return newly allocated outputs."""
    engine = lanes.engine
    total = _common_batch(engine, {name: array.shape for name, array in feeds.items()})
    results = {spec.name: np.empty(_shape(spec, total), spec.dtype) for spec in engine.outputs}
    for portion in portions(total, engine.profiles):
        with lanes.lend(portion.profile, portion.batch) as lane:
            lane.run(portion, feeds, results)
    return results


def run_in_place(lanes: Lanes, feeds: Mapping[str, object], outputs: Mapping[str, object]) -> dict[str, Any]:
    """Run arrays on the GPU and return those of `outputs`, and new ones where it has none.

    Raises:
        FeedError: if an array has the wrong name, type, shape, layout or device.
    """
    engine = lanes.engine
    engine.cuda.use(engine.gpu.index)
    _check_names(engine, feeds, outputs)
    views = [view_of(feeds[spec.name], spec, engine.cuda, engine.gpu.index) for spec in engine.inputs]
    batch = _common_batch(engine, {spec.name: view.shape for spec, view in zip(engine.inputs, views, strict=True)})
    profile = _profile_of(engine, batch)
    results: dict[str, Any] = {}
    for spec in engine.outputs:
        sized = TensorSpec(spec.name, _shape(spec, batch), spec.dtype)
        given = outputs.get(spec.name)
        results[spec.name] = GpuArray(engine.cuda, engine.gpu.index, sized) if given is None else given
        views.append(view_of(results[spec.name], sized, engine.cuda, engine.gpu.index, writable=True))
    setup = Setup(profile, batch, tuple(view.address for view in views))
    with lanes.lend(profile, batch) as lane:
        lane.run_in_place(setup, tuple({view.stream for view in views if view.stream is not None}))
    return results


def warm_up(lanes: Lanes) -> str:
    """Run zeros until what is compiled or recorded at first is done, and say what became of CUDA graphs."""
    best = lanes.engine.profiles[0].opt
    zeros = {spec.name: np.zeros(_shape(spec, best), spec.dtype) for spec in lanes.engine.inputs}
    for _ in range(_WARM_RUNS):
        run_portions(lanes, zeros)
    with lanes.lend(0, best) as lane:
        return lane.graph_note


def _shape(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    return (batch, *(size or 1 for size in spec.shape[1:]))


def _common_batch(engine: Engine, shapes: Mapping[str, tuple[int, ...]]) -> int:
    batches = {shape[0] for shape in shapes.values()}
    if len(batches) != 1:
        raise FeedError(
            ", ".join(map(str, engine.inputs)), f"were fed batches {sorted(batches)}", "feed one batch size"
        )
    return batches.pop()


def _profile_of(engine: Engine, batch: int) -> int:
    """The profile that runs all of the batch as it is: in place nothing can be split or filled up."""
    plan = portions(batch, engine.profiles)
    if len(plan) != 1 or plan[0].batch != batch:
        takes = ", ".join(f"{p.min} to {p.max}" for p in engine.profiles)
        raise FeedError(f"batch {batch}", f"the engine takes {takes}", "split it, or use run() with host arrays")
    return plan[0].profile


def _check_names(engine: Engine, feeds: Mapping[str, object], outputs: Mapping[str, object]) -> None:
    wanted = [spec.name for spec in engine.inputs]
    if feeds.keys() != set(wanted):
        raise FeedError(", ".join(feeds) or "nothing", "was fed", f"feed exactly: {', '.join(wanted)}")
    known = [spec.name for spec in engine.outputs]
    if strangers := outputs.keys() - set(known):
        raise FeedError(", ".join(sorted(strangers)), "is no output", f"outputs are: {', '.join(known)}")
