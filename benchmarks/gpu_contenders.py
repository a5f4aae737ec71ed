"""The process of one contender of `gpu.py`: one network at each batch size, a line of JSON for each.

Two times are taken of a contender: from an array of the host to an array of the host, and with both on the GPU. Each
output is compared with that of ONNX Runtime on the CPU in FP32, and the worse of both is reported.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np
from lifelike import save_lifelike
from machine import seconds_of

from densenet_deploy.engines.options import BatchProfile, BuildOptions
from densenet_deploy.model import Model
from densenet_deploy.parity.compare import Parity, ParityMeter
from densenet_deploy.runtime.nvidia import NvidiaOptions
from densenet_deploy.runtime.runner import RunnerOptions, open_runner
from densenet_deploy.workflows.build_engine import build_engine
from densenet_deploy.workflows.cast import CastOptions, cast
from densenet_deploy.workflows.export import export
from densenet_deploy.workflows.load import load

PREPARE: Final = "prepare"
_IMAGES: Final = Path(__file__).parents[1] / "calibration" / "samples"
_IMAGES_OF_STATISTICS: Final = 8
_WARM_UP_CALLS: Final = 5
_LEAST_CALLS, _MOST_CALLS, _SECONDS_EACH = 10, 300, 0.5


@dataclass(frozen=True)
class Job:
    """What one process measures: a contender with one network, and the files that it finds in `folder`."""

    contender: str
    variant: str
    batches: tuple[int, ...]
    device: str
    folder: Path

    @property
    def precision(self) -> str:
        return self.contender.split()[-1]

    def file(self, ending: str) -> Path:
        return self.folder / f"{self.variant}{ending}"

    def images(self) -> np.ndarray:
        """Seeded noise for the largest batch, (N, C, H, W) float32: in range like normalized images, of no meaning."""
        shape = load(self.variant).manifest.preprocessing.shape
        return np.random.default_rng(1).standard_normal((max(self.batches), *shape), np.float32)


@dataclass(frozen=True)
class Call:
    """One contender at one batch size: each call runs one batch.

    Attributes:
        on_gpu: the same with input and output on the GPU, complete when it returns.
        to_host: the logits in what `on_gpu` returned.
    """

    batch: int
    from_host: Callable[[], np.ndarray]
    on_gpu: Callable[[], Any] | None = None
    to_host: Callable[[Any], np.ndarray] = np.asarray
    contender: str | None = None


# -- PyTorch


def torch_calls(job: Job) -> Iterator[Call]:
    """Eager, captured as a CUDA graph, or compiled (both ways); channels last, for FP16 with all values in FP16.

    FP32 is computed without TF32, as everything else here; what PyTorch does by default on a GPU is called tf32.
    """
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = job.precision == "tf32"
    dtype = torch.float16 if job.precision == "fp16" else torch.float32
    module = load(job.file(".pth"), variant=job.variant).module
    assert module is not None
    module = module.eval().to(job.device, dtype, memory_format=torch.channels_last)
    if is_compiled := "compiled" in job.contender:
        module = torch.compile(module, dynamic=False)
    images = job.images()
    with torch.inference_mode():
        for array in (images[:count] for count in job.batches):
            if "graph" in job.contender:
                yield _torch_call(job, array, dtype, partial(_captured, module))
                continue
            yield _torch_call(job, array, dtype, lambda _resident: module)
            if is_compiled and job.device == "cuda":
                name = job.contender.replace("compiled", "compiled graph")
                yield _torch_call(job, array, dtype, partial(_captured, module), name)


def _torch_call(
    job: Job, array: np.ndarray, dtype: Any, prepared: Callable[[Any], Callable[[Any], Any]], name: str | None = None
) -> Call:
    import torch

    def moved() -> Any:
        return torch.from_numpy(array).to(job.device, dtype, memory_format=torch.channels_last)

    resident = moved()
    run = prepared(resident)

    def on_gpu() -> Any:
        result = run(resident)
        torch.cuda.synchronize()
        return result

    def to_host(result: Any) -> np.ndarray:
        return result.float().cpu().numpy()

    return Call(len(array), lambda: to_host(run(moved())), on_gpu if job.device == "cuda" else None, to_host, name)


def _captured(run: Callable[[Any], Any], images: Any) -> Callable[[Any], Any]:
    """Record `run(images)` as a CUDA graph, after a few calls on another stream as PyTorch asks for."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(images)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run(images)

    def replay(given: Any) -> Any:
        if given is not images:
            images.copy_(given)
        graph.replay()
        return result

    return replay


# -- our runner


def onnxruntime_calls(job: Job) -> Iterator[Call]:
    """ONNX Runtime through our runner, which binds inputs and outputs to memory on the GPU.

    For arrays that are on the GPU already it is called directly, with the same settings.
    """
    graphs = "graph" in job.contender
    provider = None if job.device == "cpu" else "cuda"
    images = job.images()
    for count in job.batches:
        file = job.file(f".b{count}.{job.precision}.onnx" if graphs else f".{job.precision}.onnx")
        options = RunnerOptions(nvidia=NvidiaOptions(provider, graphs=graphs or None))
        array = images[:count]
        with open_runner(file, "onnxruntime", job.device, options) as runner:
            on_gpu = None if job.device == "cpu" else _bound(file, array, {"enable_cuda_graph": str(int(graphs))})
            yield Call(count, _from_host(runner, array), on_gpu, lambda value: value.numpy())


def onnxruntime_nhwc_calls(job: Job) -> Iterator[Call]:
    """ONNX Runtime with the layout of tensor cores, which our runner does not ask for: `prefer_nhwc`."""
    images = job.images()
    for count in job.batches:
        array, file = images[:count], job.file(f".b{count}.{job.precision}.onnx")
        on_gpu = _bound(file, array, {"enable_cuda_graph": str(int("graph" in job.contender)), "prefer_nhwc": "1"})
        yield Call(count, lambda call=on_gpu: call().numpy(), on_gpu, lambda value: value.numpy())


def _bound(file: Path, array: np.ndarray, settings: dict[str, str]) -> Callable[[], Any]:
    """Return a call of ONNX Runtime's CUDA provider with `array` on the GPU; it returns the logits there."""
    import onnxruntime

    onnxruntime.preload_dlls(directory="")
    session_options = onnxruntime.SessionOptions()
    session_options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    providers = [("CUDAExecutionProvider", {"use_tf32": "0", **settings})]
    session = onnxruntime.InferenceSession(str(file), session_options, providers)
    binding = session.io_binding()
    image = onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
    (logits,) = session.get_outputs()
    rows = onnxruntime.OrtValue.ortvalue_from_shape_and_type((len(array), logits.shape[1]), np.float32, "cuda", 0)
    binding.bind_ortvalue_input("input", image)
    binding.bind_ortvalue_output(logits.name, rows)

    def call() -> Any:
        session.run_with_iobinding(binding)
        return rows

    return call


def engine_calls(job: Job) -> Iterator[Call]:
    """An engine of whichever TensorRT is installed and supports the GPU, through our runner."""
    import torch

    profiles = tuple(BatchProfile(min=count, opt=count, max=count) for count in job.batches)
    options = BuildOptions("auto", job.precision, profiles=profiles)
    calibration = _IMAGES if job.precision == "int8" else None
    engine = job.file(f".{job.precision}.engine")
    build_engine(job.file(".fp32.onnx"), options, calibration=calibration, out=engine)
    images = job.images()
    with open_runner(engine, device=job.device) as runner:
        for count in job.batches:
            array = images[:count]
            resident = torch.from_numpy(array).cuda()
            torch.cuda.synchronize()

            def on_gpu(resident: Any = resident) -> Any:
                return runner.run_on_gpu({"input": resident})["logits"]  # type: ignore[attr-defined]

            yield Call(count, _from_host(runner, array), on_gpu, lambda logits: logits.to_host())


def _from_host(runner: Any, array: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: runner.run({"input": array})["logits"]


# -- the process


CONTENDERS: Final = {
    "onnxruntime fp16": onnxruntime_calls,
    "torch eager fp16": torch_calls,
    "onnxruntime fp32": onnxruntime_calls,
    "torch eager fp32": torch_calls,
    "onnxruntime graph fp16": onnxruntime_calls,
    "torch graph fp16": torch_calls,
    "onnxruntime graph fp32": onnxruntime_calls,
    "torch graph fp32": torch_calls,
    "engine fp16": engine_calls,
    "engine fp32": engine_calls,
    "engine int8": engine_calls,
    "torch compiled fp16": torch_calls,
    "onnxruntime nhwc graph fp16": onnxruntime_nhwc_calls,
    "torch eager tf32": torch_calls,
    "torch graph tf32": torch_calls,
    "torch compiled fp32": torch_calls,
}
"""In the order in which they run: the seconds may not suffice for the last."""

ON_CPU: Final = ("onnxruntime fp32", "torch eager fp32")


def measure(job: Job) -> Iterator[dict[str, Any]]:
    """Measure one contender at each batch size."""
    reference = np.load(job.file(".npy"))
    for call in CONTENDERS[job.contender](job):
        parity = [_parity(reference[: call.batch], call.from_host())]
        if call.on_gpu is not None:
            parity.append(_parity(reference[: call.batch], call.to_host(call.on_gpu())))
        worst = max(parity, key=lambda found: found.max_abs)
        yield {
            "contender": call.contender or job.contender,
            "variant": job.variant,
            "batch": call.batch,
            "host_ms": _median_ms(call.from_host),
            "gpu_ms": None if call.on_gpu is None else _median_ms(call.on_gpu),
            "max_abs": worst.max_abs,
            "sqnr_db": worst.sqnr_db if worst.max_abs else None,
        }


def _parity(reference: np.ndarray, outputs: np.ndarray) -> Parity:
    meter = ParityMeter()
    meter.update(reference, outputs)
    return meter.result()


def _median_ms(call: Callable[[], object]) -> float:
    for _ in range(_WARM_UP_CALLS):
        call()
    seconds: list[float] = []
    deadline = perf_counter() + _SECONDS_EACH
    while len(seconds) < _LEAST_CALLS or (perf_counter() < deadline and len(seconds) < _MOST_CALLS):
        seconds.append(seconds_of(call))
    return median(seconds) * 1e3


def prepare(job: Job) -> None:
    """Write the files of the variant that the contenders read, and the reference outputs."""
    images = job.images()
    save_lifelike(job.variant, [images[:_IMAGES_OF_STATISTICS]], job.file(".pth"))
    exported = export(job.file(".pth"), variant=job.variant, out=job.file(".fp32.onnx"))
    for model in (exported, cast(exported, CastOptions("fp16", gates=()), out=job.file(".fp16.onnx"))):
        for count in job.batches:
            _with_batch(model, count).save(job.file(f".b{count}.{model.precision}.onnx"))
    with open_runner(exported, "onnxruntime", "cpu") as runner:
        np.save(job.file(".npy"), runner.run({"input": images})["logits"])


def _with_batch(model: Model, count: int) -> Model:
    """The same graph for one batch size, which a CUDA graph needs; no node of ours depends on it."""
    proto = type(model.onnx)()
    proto.CopyFrom(model.onnx)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = count
    del proto.graph.value_info[:]
    assert model.manifest is not None
    return Model.from_onnx(model.name, proto, replace(model.manifest, batch=count))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contender", choices=(PREPARE, *CONTENDERS))
    parser.add_argument("--variant", required=True)
    parser.add_argument("--batches", nargs="+", type=int, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args(arguments)
    job = Job(options.contender, options.variant, tuple(options.batches), options.device, options.folder)
    if job.contender == PREPARE:
        prepare(job)
        return
    for row in measure(job):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
