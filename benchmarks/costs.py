"""What export, quantize and run cost as they grow: `uv run python benchmarks/costs.py`.

One size at a time is varied from a common starting point: DenseNet-121, batch 1, 224 x 224 pixels, 64 calibration
images, one thread. `export` and `quantize` are whole processes, measured in elapsed time and largest resident set;
`run` is the median call of the FP32 file in its own process, as `densenet-deploy benchmark` measures it, with the
memory of that process. The networks have random weights (`lifelike.py`), which change no cost.

The Markdown table that it prints stands in `docs/reference/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
from lifelike import save_lifelike
from machine import RESULTS, Machine, print_table, write_results
from PIL import Image

from densenet_deploy.manifest import Preprocessing
from densenet_deploy.parity.samples import natural_images
from densenet_deploy.variants import find_variant

_KIB, _MIB = 2**10, 2**20
_DISTINCT_IMAGES: Final = 64
_NORM_IMAGES: Final = 8  # that the statistics of a network are measured on
_RUN_SECONDS: Final = "3"


@dataclass(frozen=True)
class Point:
    """One configuration."""

    variant: str
    image_size: int
    images: int
    batch: int
    threads: int


@dataclass(frozen=True)
class Cost:
    """What one command costs at one point: seconds of the process, or for `run` of a call, and peak memory."""

    command: str
    varied: str
    value: str
    seconds: float
    peak_memory_bytes: int


VARIED: Final[Mapping[str, tuple[Any, ...]]] = {
    "variant": ("121", "169", "201", "264"),
    "image_size": (224, 320, 512),
    "images": (64, 512, 4096),
    "batch": (1, 8, 32),
    "threads": (1, 2),
}
"""The values of each size; the first are the starting point."""

COMMANDS: Final = {
    "export": ("variant", "image_size"),
    "quantize": ("variant", "image_size", "images"),
    "run": ("variant", "image_size", "batch", "threads"),
}
"""The commands, and the sizes on which their cost depends."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    varied = {**VARIED, **{name: tuple(getattr(options, name)) for name in ("variant", "image_size", "images")}}
    start = Point(**{name: values[0] for name, values in varied.items()})
    machine = Machine.this("densenet-deploy", "torch", "onnxruntime", "openvino")
    with tempfile.TemporaryDirectory() as folder:
        costs = list(costs_of(start, varied, Path(folder)))
    write_results(options.output, machine, {"results": [asdict(cost) for cost in costs]})
    _print(costs)


def costs_of(start: Point, varied: Mapping[str, tuple[Any, ...]], folder: Path) -> Iterator[Cost]:
    """Measure every command along every size that it depends on; a point that two of them share is measured once."""
    measured: dict[tuple[str, Point], tuple[float, int]] = {}
    for command, dimensions in COMMANDS.items():
        for dimension in dimensions:
            for value in varied[dimension]:
                point = replace(start, **{dimension: value})
                key = command, point
                if key not in measured:
                    measured[key] = _MEASURES[command](point, folder)
                yield Cost(command, dimension, str(value), *measured[key])


# -- the commands


def measure_export(point: Point, folder: Path) -> tuple[float, int]:
    weights = _weights(point, folder)
    *_, seconds, memory = _process("export", weights, *_facts(point), "--out", _onnx(point, folder), "--force")
    return seconds, memory


def measure_quantize(point: Point, folder: Path) -> tuple[float, int]:
    """For ONNX Runtime, without the race, which takes a time of its own."""
    images, onnx = _images(point, folder), _exported(point, folder)
    options = ("--recipe", "onnxruntime", "--samples", str(point.images), "--no-never-slower", "--force")
    *_, seconds, memory = _process("quantize", onnx, "--calibration", images, *options, "--out", folder / "int8.onnx")
    return seconds, memory


def measure_run(point: Point, folder: Path) -> tuple[float, int]:
    options = ("--batch", str(point.batch), "--threads", str(point.threads), "--seconds", _RUN_SECONDS)
    output, *_ = _process("benchmark", _exported(point, folder), "--backend", "onnxruntime", *options, "--json")
    (result,) = json.loads(output)["results"]
    return result["latency_ms"]["p50"] * 1e-3, result["peak_memory_bytes"]


_MEASURES: Final = {"export": measure_export, "quantize": measure_quantize, "run": measure_run}


def _process(command: str, *arguments: str | Path) -> tuple[str, float, int]:
    """Run the command to its end; return its output, and its elapsed seconds and largest resident set in bytes.

    Raises:
        CalledProcessError: if it fails.
    """
    line = [sys.executable, "-m", "densenet_deploy", command, *map(str, arguments)]
    start = perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(line, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, line)
        output.seek(0)
        return output.read().decode(), seconds, usage.ru_maxrss * _KIB


# -- what they read


def _facts(point: Point) -> tuple[str, ...]:
    return "--variant", point.variant, "--image-size", str(point.image_size), "--resize", str(point.image_size)


def _weights(point: Point, folder: Path) -> Path:
    path = folder / f"{point.variant}.pth"
    if not path.exists():
        images = natural_images(_NORM_IMAGES, find_variant(point.variant).preprocessing)
        save_lifelike(point.variant, [np.concatenate(list(images))], path)
    return path


def _onnx(point: Point, folder: Path) -> Path:
    return folder / f"{point.variant}.{point.image_size}.onnx"


def _exported(point: Point, folder: Path) -> Path:
    path = _onnx(point, folder)
    if not path.exists():
        _process("export", _weights(point, folder), *_facts(point), "--out", path)
    return path


def _images(point: Point, folder: Path) -> Path:
    """Make a folder of JPEG files, of which the first 64 differ: decoding and inference take as long for copies."""
    images = folder / f"images.{point.image_size}.{point.images}"
    if not images.exists():
        images.mkdir()
        values = Preprocessing(image_size=point.image_size, mean=(0.0,) * 3, std=(1.0,) * 3)
        drawn = [
            Image.fromarray((255 * image[0].transpose(1, 2, 0)).astype(np.uint8))
            for image in natural_images(min(point.images, _DISTINCT_IMAGES), values)
        ]
        for number in range(point.images):
            drawn[number % len(drawn)].save(images / f"{number:05}.jpg", quality=90)
    return images


# -- the results


def _print(costs: Sequence[Cost]) -> None:
    rows = [
        (cost.command, cost.varied.replace("_", " "), cost.value, _shown(cost), f"{cost.peak_memory_bytes // _MIB} MiB")
        for cost in costs
    ]
    print_table(("command", "varied", "value", "time", "peak memory"), rows)


def _shown(cost: Cost) -> str:
    return f"{cost.seconds * 1e3:.1f} ms" if cost.command == "run" else f"{cost.seconds:.1f} s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", nargs="+", default=list(VARIED["variant"]))
    parser.add_argument("--image-size", nargs="+", type=int, default=list(VARIED["image_size"]))
    parser.add_argument("--images", nargs="+", type=int, default=list(VARIED["images"]), help="calibration images")
    parser.add_argument("--output", type=Path, default=RESULTS / "costs.json")
    return parser


if __name__ == "__main__":
    main()
