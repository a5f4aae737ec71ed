"""All that one NVIDIA GPU can answer with what is installed, in under 8 minutes: `uv run python benchmarks/gpu.py`.

Every contender has its own process: PyTorch (eager, CUDA graph, compiled), ONNX Runtime's CUDA provider through our
runner (with and without a CUDA graph), and TensorRT or TensorRT-RTX engines through our runner, in FP32, FP16 and INT8.
Two times are taken of each: from an array of the host to an array of the host, and, where the contender can, with both
on the GPU. Outputs are compared with ONNX Runtime on the CPU in FP32.

`pytest -m gpu` runs too, and so does the exchange of arrays with PyTorch. What cannot run here, or not before the
seconds are used up, is listed with the reason. The networks are untrained (see `lifelike.py`): their times are those of
trained ones, their accuracy says nothing. PyTorch and ONNX Runtime compute FP32 convolutions in TF32 where the GPU has
it, as they do by default; engines are built without.

`--device cpu` tries the script where there is no GPU, with the contenders that do not need one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np
from lifelike import save_lifelike
from machine import RESULTS, Machine, print_table, seconds_of, write_results

from densenet_deploy.bench.machine import gpus
from densenet_deploy.engines.options import BatchProfile, BuildOptions
from densenet_deploy.errors import DensenetDeployError
from densenet_deploy.parity.compare import Parity, ParityMeter
from densenet_deploy.runtime.nvidia import NvidiaOptions
from densenet_deploy.runtime.runner import RunnerOptions, open_runner
from densenet_deploy.workflows.build_engine import build_engine
from densenet_deploy.workflows.cast import CastOptions, cast
from densenet_deploy.workflows.export import ExportOptions, export
from densenet_deploy.workflows.load import load

SECONDS: Final = 450.0
VARIANTS: Final = ("121", "201")
BATCHES: Final = (1, 8, 32)
COMPARED_BATCH: Final = 8
_ROOT: Final = Path(__file__).parents[1]
_IMAGES: Final = _ROOT / "calibration" / "samples"
_WARM_UP_CALLS: Final = 5
_LEAST_CALLS, _MOST_CALLS, _SECONDS_EACH = 10, 300, 1.0
_PACKAGES: Final = ("densenet-deploy", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")


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

    def batch(self, count: int) -> np.ndarray:
        return noise(count, load(self.file(".pth"), variant=self.variant).manifest.preprocessing.shape)


@dataclass(frozen=True)
class Call:
    """One contender at one batch size: each call runs one batch. `on_gpu` takes and leaves arrays on the GPU."""

    batch: int
    from_host: Callable[[], np.ndarray]
    on_gpu: Callable[[], object] | None = None


def noise(count: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Seeded noise, (N, C, H, W) float32: like normalized images in range, and of no meaning."""
    return np.random.default_rng(1).standard_normal((count, *shape), np.float32)


# -- PyTorch


def torch_calls(job: Job) -> Iterator[Call]:
    """Eager, captured as a CUDA graph, or compiled; channels last, and for FP16 weights and activations in FP16."""
    import torch

    dtype = {"fp32": torch.float32, "fp16": torch.float16}[job.precision]
    model = load(job.file(".pth"), variant=job.variant)
    module = model.module.eval().to(job.device, dtype, memory_format=torch.channels_last)
    torch.backends.cudnn.benchmark = True
    run = torch.compile(module) if "compiled" in job.contender else module
    synchronize = torch.cuda.synchronize if job.device == "cuda" else lambda: None

    def prepared(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(job.device, dtype, memory_format=torch.channels_last)

    for count in job.batches:
        array = job.batch(count)
        static = prepared(array)
        with torch.inference_mode():
            replay = _captured(run, static) if "graph" in job.contender else None

        @torch.inference_mode()
        def compute(images: torch.Tensor, static: torch.Tensor = static, replay: Any = replay) -> torch.Tensor:
            if replay is None:
                return run(images)
            static.copy_(images)
            return replay()

        def from_host(array: np.ndarray = array, compute: Any = compute) -> np.ndarray:
            return compute(prepared(array)).float().cpu().numpy()

        def on_gpu(images: torch.Tensor = static, compute: Any = compute) -> None:
            compute(images)
            synchronize()

        yield Call(count, from_host, on_gpu if job.device == "cuda" else None)


def _captured(run: Any, images: Any) -> Callable[[], Any]:
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

    def replay() -> Any:
        graph.replay()
        return result

    return replay


# -- our runner


def onnxruntime_calls(job: Job) -> Iterator[Call]:
    """ONNX Runtime through our runner, which keeps inputs and outputs bound to memory on the GPU."""
    graphs = "graph" in job.contender
    provider = None if job.device == "cpu" else "cuda"
    for count in job.batches:
        file = job.file(f".b{count}.{job.precision}.onnx" if graphs else f".{job.precision}.onnx")
        options = RunnerOptions(nvidia=NvidiaOptions(provider, graphs=graphs or None))
        with open_runner(file, "onnxruntime", job.device, options) as runner:
            yield _call_of(runner, count, job.batch(count))


def engine_calls(job: Job) -> Iterator[Call]:
    """An engine of whichever TensorRT is installed and supports the GPU, through our runner."""
    import torch

    profiles = tuple(BatchProfile(min=count, opt=count, max=count) for count in job.batches)
    options = BuildOptions("auto", job.precision, profiles=profiles)
    calibration = _IMAGES if job.precision == "int8" else None
    model = build_engine(
        job.file(".fp32.onnx"), options, calibration=calibration, out=job.file(f".{job.precision}.engine")
    )
    assert model.path is not None
    with open_runner(model.path, device=job.device) as runner:
        for count in job.batches:
            array = job.batch(count)
            images = torch.from_numpy(array).cuda()
            torch.cuda.synchronize()
            on_gpu = partial(runner.run_on_gpu, {"input": images})  # type: ignore[attr-defined]
            yield _call_of(runner, count, array, on_gpu)


def _call_of(runner: Any, count: int, array: np.ndarray, on_gpu: Callable[[], object] | None = None) -> Call:
    return Call(count, lambda: next(iter(runner.run({"input": array}).values())), on_gpu)


# -- arrays that stay on the GPU


def exchanged_arrays() -> dict[str, bool]:
    """Whether our arrays and PyTorch's become each other without a copy, by what was tried."""
    import torch

    from densenet_deploy.runtime.cudart import load_cuda
    from densenet_deploy.runtime.feeds import TensorSpec
    from densenet_deploy.runtime.tensorrt.device_arrays import GpuArray, view_of

    cuda, spec = load_cuda(), TensorSpec("input", (None, 3), np.dtype(np.float32))
    tensor = torch.arange(6, dtype=torch.float32, device="cuda").reshape(2, 3)
    ours = GpuArray(cuda, 0, (2, 3), np.dtype(np.float32))
    theirs = torch.from_dlpack(ours)
    theirs.copy_(tensor)
    torch.cuda.synchronize()
    interface = torch.as_tensor(ours, device="cuda")
    found = {
        "view_of reads a tensor where it is": view_of(tensor, spec, cuda, 0).address == tensor.data_ptr(),
        "view_of reads a DLPack capsule where it is": view_of(_OnlyDlpack(tensor), spec, cuda, 0).address
        == tensor.data_ptr(),
        "torch.from_dlpack shares our memory": bool(np.array_equal(ours.to_host(), tensor.cpu().numpy())),
        "torch.as_tensor shares our memory": interface.data_ptr() == theirs.data_ptr(),
        "a transposed tensor is refused": _refuses(lambda: view_of(tensor.reshape(3, 2).t(), spec, cuda, 0)),
        "a tensor of the host is refused": _refuses(lambda: view_of(tensor.cpu(), spec, cuda, 0)),
        "float16 is refused": _refuses(lambda: view_of(tensor.half(), spec, cuda, 0)),
    }
    del ours  # the tensors keep the memory
    return found | {"memory outlives our array": bool(torch.equal(theirs, tensor))}


@dataclass(frozen=True)
class _OnlyDlpack:
    """Offers a tensor through DLPack alone, as libraries do that do not know CUDA's array interface."""

    tensor: Any

    def __dlpack__(self, **options: Any) -> object:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> object:
        return self.tensor.__dlpack_device__()


def _refuses(call: Callable[[], object]) -> bool:
    try:
        call()
    except DensenetDeployError:
        return True
    return False


# -- the process of a contender


CONTENDERS: Final = {
    "torch eager fp32": torch_calls,
    "torch eager fp16": torch_calls,
    "onnxruntime fp32": onnxruntime_calls,
    "onnxruntime fp16": onnxruntime_calls,
    "torch graph fp32": torch_calls,
    "torch graph fp16": torch_calls,
    "onnxruntime graph fp32": onnxruntime_calls,
    "onnxruntime graph fp16": onnxruntime_calls,
    "engine fp32": engine_calls,
    "engine fp16": engine_calls,
    "engine int8": engine_calls,
    "torch compiled fp32": torch_calls,
    "torch compiled fp16": torch_calls,
}
"""In the order in which they run: the seconds may not suffice for the last."""

ON_CPU: Final = ("torch eager fp32", "onnxruntime fp32")


def measure(job: Job) -> Iterator[dict[str, Any]]:
    """Measure one contender at each batch size."""
    reference = np.load(job.file(".npy"))
    for call in CONTENDERS[job.contender](job):
        outputs = call.from_host()
        parity = _parity(reference, outputs) if call.batch == COMPARED_BATCH else None
        yield {
            "contender": job.contender,
            "variant": job.variant,
            "batch": call.batch,
            "host_ms": _median_ms(call.from_host),
            "gpu_ms": None if call.on_gpu is None else _median_ms(call.on_gpu),
            "max_abs": None if parity is None else parity.max_abs,
            "sqnr_db": None if parity is None or not parity.max_abs else parity.sqnr_db,
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


# -- the parent


def prepare(variant: str, batches: Sequence[int], folder: Path) -> None:
    """Write the files of `variant` that the contenders read, and the reference outputs."""
    job = Job("", variant, (), "cpu", folder)
    shape = load(variant).manifest.preprocessing.shape
    save_lifelike(variant, [noise(COMPARED_BATCH, shape)], job.file(".pth"))
    for count in (None, *batches):
        ending = "" if count is None else f".b{count}"
        model = export(
            job.file(".pth"), ExportOptions(batch=count), variant=variant, out=job.file(f"{ending}.fp32.onnx")
        )
        cast(model, CastOptions("fp16", gates=()), out=job.file(f"{ending}.fp16.onnx"))
    with open_runner(job.file(".fp32.onnx"), "onnxruntime", "cpu") as runner:
        np.save(job.file(".npy"), next(iter(runner.run({"input": noise(COMPARED_BATCH, shape)}).values())))


def in_its_process(arguments: Sequence[str], deadline: float) -> tuple[list[dict[str, Any]], str | None]:
    """Run this script with `arguments`; return the lines of JSON that it prints, and why it ended early, if it did."""
    left = deadline - perf_counter()
    if left <= 0:
        return [], "the seconds are used up"
    command = [sys.executable, __file__, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=left)
    except subprocess.TimeoutExpired as exc:
        output = exc.stdout.decode() if isinstance(exc.stdout, bytes) else exc.stdout or ""
        return _lines_of(output), "the seconds are used up"
    failure = None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    return _lines_of(done.stdout), failure


def _lines_of(output: str) -> list[dict[str, Any]]:
    found = []
    for text in output.splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(text))
    return [line for line in found if isinstance(line, dict)]


def gpu_tests(deadline: float) -> dict[str, str]:
    """The outcome of each `pytest -m gpu` test: `passed`, or `failed` or `skipped` with the reason."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "tests.xml")
        options = ["-m", "gpu", "-q", "-n0", "-p", "no:cacheprovider", f"--junitxml={report}", "tests/runtime"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            left = max(1.0, deadline - perf_counter())
            subprocess.run([sys.executable, "-m", "pytest", *options], cwd=_ROOT, capture_output=True, timeout=left)
        if not report.exists():
            return {"pytest -m gpu": "did not end before the seconds were used up, or could not start"}
        return {
            f"{case.get('classname')}::{case.get('name')}": _outcome(case) for case in ET.parse(report).iter("testcase")
        }


def _outcome(case: ET.Element) -> str:
    for kind, word in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        if (found := case.find(kind)) is not None:
            return f"{word}: {found.get('message')}"
    return "passed"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.contender == "arrays":
        print(json.dumps(exchanged_arrays()))
    elif options.contender is not None:
        (variant,) = options.variants
        for row in measure(Job(options.contender, variant, tuple(options.batches), options.device, options.folder)):
            print(json.dumps(row), flush=True)
    else:
        _measure_all(options)


def _measure_all(options: argparse.Namespace) -> None:
    on_gpu = options.device == "cuda"
    if on_gpu and not gpus():
        sys.exit("no NVIDIA GPU answers on this machine; --device cpu tries the script without one")
    start = perf_counter()
    deadline = start + options.seconds
    machine = Machine.this(*_PACKAGES)
    tests = gpu_tests(deadline) if on_gpu else {}
    arrays, no_arrays = in_its_process(["--contender", "arrays"], deadline) if on_gpu else ([], None)
    results: list[dict[str, Any]] = []
    skipped: dict[str, str] = {} if no_arrays is None else {"arrays": no_arrays}
    with tempfile.TemporaryDirectory() as folder:
        for variant in options.variants:
            prepare(variant, options.batches, Path(folder))
        shared = ["--device", options.device, "--folder", folder, "--batches", *map(str, options.batches)]
        for contender in CONTENDERS if on_gpu else ON_CPU:
            for variant in options.variants:
                rows, why = in_its_process(["--contender", contender, "--variants", variant, *shared], deadline)
                results += rows
                if why is not None:
                    skipped[f"{contender}, {variant}"] = why
    seconds = perf_counter() - start
    written = {"device": options.device, "seconds": seconds, "results": results, "skipped": skipped}
    write_results(options.output, machine, {**written, "arrays": arrays[0] if arrays else {}, "tests": tests})
    _print(results, skipped)


def _print(results: Sequence[dict[str, Any]], skipped: dict[str, str]) -> None:
    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    rows = [
        (row["variant"], row["batch"], row["contender"], *(shown(row[key]) for key in ("host_ms", "gpu_ms", "sqnr_db")))
        for row in sorted(results, key=lambda row: (row["variant"], row["batch"]))
    ]
    print_table(("variant", "batch", "contender", "host to host, ms", "on the GPU, ms", "SQNR, dB"), rows)
    for name, why in skipped.items():
        print(f"not measured: {name}: {why}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
