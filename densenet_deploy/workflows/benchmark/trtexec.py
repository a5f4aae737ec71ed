"""Benchmark TensorRT plans as `trtexec` does, so that its figures and these can be laid side by side.

Each plan and batch size is run three times: computing alone, which is what `trtexec` is asked for by the line that the
report prints; with copies to the GPU and back; and one inference at a time with copies, which is what a camera's loop
sees. Loading a plan and making its context are timed apart.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from densenet_deploy.artifacts import Artifact, write_file
from densenet_deploy.bench.contender import peak_memory_bytes
from densenet_deploy.bench.gpu.loop import GpuLoop, LoopOptions
from densenet_deploy.bench.machine import Machine
from densenet_deploy.errors import BackendError, DeviceError, ModelFileError
from densenet_deploy.options import require_range
from densenet_deploy.runtime.cudart import load_cuda
from densenet_deploy.runtime.engine_files import Plan, read_plan, require_gpu, require_version
from densenet_deploy.runtime.runner import Device, backends
from densenet_deploy.runtime.tensorrt.engine import Engine, engine_from_plan
from densenet_deploy.runtime.trt import load_tensorrt
from densenet_deploy.workflows.benchmark.benchmark import PACKAGES, target_of
from densenet_deploy.workflows.benchmark.report import file_content
from densenet_deploy.workflows.benchmark.trtexec_report import GpuMeasurement, TrtexecReport
from densenet_deploy.workflows.stages import Listener, ignore

_CAMERA_ITERATIONS: Final = 10


@dataclass(frozen=True)
class TrtexecOptions:
    """What to time; see `LoopOptions`.

    Attributes:
        batches: images an inference.
        seconds: how long computing alone is timed; the other two runs take a fifth of it each.
        warm_up_seconds: before each run.
        device: None means the first GPU.
    """

    batches: tuple[int, ...] = (1,)
    seconds: float = 10.0
    warm_up_seconds: float = 0.5
    device: str | None = None

    def __post_init__(self) -> None:
        require_range("seconds", self.seconds, 0.0, 86400.0)
        require_range("warm-up", self.warm_up_seconds, 0.0, 3600.0)
        for size in self.batches:
            require_range("batch", size, 1, 65536)
        if self.device is not None:
            Device.parse(self.device)


def benchmark_like_trtexec(
    models: Sequence[Path],
    options: TrtexecOptions | None = None,
    out: str | None = None,
    *,
    force: bool = False,
    listener: Listener = ignore,
) -> TrtexecReport:
    """Time plans and, where `out` is given, write the report to that `.json` or `.csv` file.

    >>> benchmark_like_trtexec([Path("densenet121.fp16.engine")]).results[0].alone.compute.median    # doctest: +SKIP

    Raises:
        UsageError: if a word or number cannot be meant.
        InputError: if a model is no TensorRT plan that can be used, or another file stands at `out` (without `force`).
        BackendError: if no GPU answers, TensorRT is not installed, or no plan takes any of the batch sizes.
    """
    options = options or TrtexecOptions()
    target = target_of(out, force=force)
    plans = [_plan(model) for model in models]
    listener("looking at the machine")
    machine = Machine.this(*PACKAGES)
    results: list[GpuMeasurement] = []
    notes: list[str] = []
    for plan in plans:
        listener(f"{plan.path.name}: load")
        start = time.perf_counter()
        engine = _engine(plan, options.device)
        load_seconds = time.perf_counter() - start
        for batch in dict.fromkeys(options.batches):
            listener(f"{plan.path.name}: batch {batch}, about {1.4 * options.seconds:g} s")
            try:
                results.append(_measured(engine, plan, batch, options, load_seconds))
            except _BatchRefusedError as exc:
                notes.append(f"{plan.path}: {exc.why}; left out")
    if not results:
        raise BackendError("batch", "; ".join(notes) or "no model was given", "give another --batch")
    report = TrtexecReport(tuple(results), machine, tuple(notes))
    if target is None:
        return report
    write_file(target, file_content(report, target.suffix))
    return replace(report, file=target)


class _BatchRefusedError(BackendError):
    """The plan does not run such a batch at once."""


def _plan(model: Path) -> Plan:
    artifact = Artifact.open(model)
    if artifact.kind != "engine":
        fix = "build one with build-trt, or time it without --trtexec"
        raise ModelFileError(model, "is no TensorRT plan, which is all that trtexec times", fix)
    return read_plan(model)


def _engine(plan: Plan, word: str | None) -> Engine:
    flavour = plan.header.flavour
    trt = load_tensorrt(flavour)
    require_version(plan, flavour, trt.version)
    cuda = load_cuda(backends.get(flavour).extra)
    device = None if word is None else Device.parse(word)
    if device is not None and device.word != "cuda":
        raise DeviceError(device, "is no NVIDIA GPU, which is all that trtexec times", "use --device cuda:N")
    gpu = cuda.gpu(device.index if device else 0)
    require_gpu(plan, gpu.compute_capability)
    cuda.use(gpu.index)
    cuda.spin_while_waiting()
    return engine_from_plan(plan, trt, cuda, gpu)


def _measured(engine: Engine, plan: Plan, batch: int, options: TrtexecOptions, load_seconds: float) -> GpuMeasurement:
    if not any(profile.min <= batch <= profile.max for profile in engine.profiles):
        takes = ", ".join(f"{profile.min} to {profile.max}" for profile in engine.profiles)
        raise _BatchRefusedError(f"batch {batch}", f"takes batches of {takes}, not {batch}", "give another --batch")
    loop = GpuLoop(engine, batch)
    alone = LoopOptions(warm_up_ms=options.warm_up_seconds * 1e3, duration_ms=options.seconds * 1e3)
    copied = replace(alone, transfers=True, duration_ms=options.seconds * 200)
    return GpuMeasurement(
        plan=plan,
        engine=engine,
        batch=batch,
        alone=loop.run(alone),
        copied=loop.run(copied),
        one_by_one=loop.run(replace(copied, depth=1, iterations=_CAMERA_ITERATIONS)),
        options=alone,
        load_seconds=load_seconds,
        context_seconds=loop.context_seconds,
        first_seconds=loop.first_seconds,
        peak_memory_bytes=peak_memory_bytes(),
    )
