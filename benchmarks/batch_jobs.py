"""Do batch jobs keep up with their parts, and stay flat in memory? `uv run python benchmarks/batch_jobs.py`.

Three candidates take turns on the same JPEG files: decoding and preparing alone, the model alone on images that are
already prepared, and the worker of a batch job (`run -o`). Decoding and the model share the CPUs, so the best that the
job can reach is 1 / (1/decoding + 1/model) images/s.

Then jobs of 2,000 and of 20,000 images (the same files, named again and again in a table) are run, and the largest
resident memory of the driver and of its worker is read. The limit: 32 MiB more for ten times the images.

With `--ray` (needs Ray) both jobs also run on Ray. What ten times the images take longer is the rate of each engine
beyond its start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from evaluate_overlap import DIGITS, draw_images, exported
from machine import RESULTS, Machine, print_table, take_turns, write_results

from densenet_deploy import BatchJobOptions, predict
from densenet_deploy.bench.rounds import Interval
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.image_folders import PreparedImages
from densenet_deploy.runtime.runner import RunnerOptions

LIMIT_MIB: Final = 32.0
_BATCH: Final = 16


@dataclass(frozen=True)
class Speed:
    """Images/s of each candidate, medians over the rounds, and the job over what its parts reach on the same CPUs."""

    images: int
    decode: float
    inference: float
    job: float
    of_shared: Interval


@dataclass(frozen=True)
class Memory:
    """The largest resident memory of the driver and of its worker, in MiB, in a job of so many images."""

    images: int
    driver_mib: float
    worker_mib: float
    images_per_second: float
    seconds: float


def speed_of(model: Path, folder: Path, place: Path, rounds: int) -> Speed:
    """Measure the three in alternation; the first round is not counted."""
    paths, cpus = sorted(folder.glob("*.jpg")), usable_cpus()
    with Classifier.open(model, "onnxruntime", "cpu", RunnerOptions(threads=cpus, spin=False)) as classifier:

        def read() -> PreparedImages:
            return PreparedImages(paths, classifier.preprocessing, ahead=2 * _BATCH, threads=cpus)

        pixels = [image.pixels for _, image in read()]
        batches = [np.stack(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]

        def job() -> float:
            options = BatchJobOptions(format="jsonl", shard_size=len(paths), force=True)
            report = predict(model, paths, out=place / "speed", job=options, backend="onnxruntime", device="cpu")
            assert report.images_per_second is not None
            return report.images_per_second

        turns = {
            "decode": lambda: _rate(len(paths), lambda: deque(read(), maxlen=0)),
            "inference": lambda: _rate(len(paths), lambda: [classifier.logits(batch) for batch in batches]),
            "job": job,
        }
        take_turns(turns, rounds=1)
        rates = take_turns(turns, rounds=rounds)
    shares = [
        both * (1 / decode + 1 / inference)
        for decode, inference, both in zip(rates["decode"], rates["inference"], rates["job"], strict=True)
    ]
    decode, inference, both = (median(rates[name]) for name in ("decode", "inference", "job"))
    return Speed(len(paths), decode, inference, both, Interval.of(shares))


def memory_of(model: Path, folder: Path, place: Path, images: int, engine: str = "local") -> Memory:
    """Run a job in a process of its own, and read what it and its worker take until it ends."""
    paths = sorted(folder.glob("*.jpg"))
    table = place / f"{images}.csv"
    table.write_text("\n".join(["file", *(str(paths[number % len(paths)]) for number in range(images))]))
    command = [
        sys.executable,
        "-m",
        "densenet_deploy",
        "run",
        str(model),
        str(table),
        "-o",
        str(place / f"{engine}{images}"),
    ]
    command += ["--format", "jsonl", "--json", "--backend", "onnxruntime", "--device", "cpu", "--engine", engine]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        driver = worker = 0.0
        while process.poll() is None:
            driver = max(driver, _peak_mib(process.pid))
            worker = max([worker, *map(_peak_mib, _children(process.pid))])
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        assert process.stdout is not None
        report = json.loads(process.stdout.read())
    assert (process.returncode, report["rows"], report["bad"]) == (0, images, 0)
    return Memory(images, driver, worker, report["images_per_second"], seconds)


def beyond_start(jobs: Sequence[Memory]) -> float:
    """Return the images/s of what the larger of two jobs took longer."""
    small, large = jobs
    return (large.images - small.images) / (large.seconds - small.seconds)


def _rate(images: int, work: object) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return images / (time.perf_counter() - start)


def _peak_mib(pid: int) -> float:
    """Return the largest resident memory that a process has had, in MiB; 0 of one that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return []


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    machine = Machine.this("densenet-deploy", "numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "ray")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        draw_images(place / "images", options.images)
        model = options.model or exported(place, "--weights", str(DIGITS))
        speed = speed_of(model, place / "images", place, options.rounds)
        memory = [memory_of(model, place / "images", place, count) for count in options.counts]
        on_ray = [memory_of(model, place / "images", place, count, "ray") for count in options.counts if options.ray]
    growth = max(getattr(memory[-1], part) - getattr(memory[0], part) for part in ("driver_mib", "worker_mib"))
    facts = {"speed": asdict(speed), "memory": [asdict(one) for one in memory], "growth_mib": growth}
    facts |= {"limit_mib": LIMIT_MIB, "holds": growth <= LIMIT_MIB}
    facts["beyond_start"] = {"local": beyond_start(memory)} | ({"ray": beyond_start(on_ray)} if options.ray else {})
    write_results(options.output, machine, {"results": facts})
    rates = [f"{rate:.1f}" for rate in (speed.decode, speed.inference, speed.job)]
    share = f"{speed.of_shared.median:.3f} [{speed.of_shared.low:.3f}, {speed.of_shared.high:.3f}]"
    print_table(("images", "decode/s", "model/s", "job/s", "of shared [95 %]"), [[speed.images, *rates, share]])
    rows = [
        [one.images, f"{one.driver_mib:.1f}", f"{one.worker_mib:.1f}", f"{one.images_per_second:.1f}"] for one in memory
    ]
    print_table(("images", "driver MiB", "worker MiB", "images/s"), rows)
    print_table(("engine", "images/s beyond its start"), [(*one,) for one in facts["beyond_start"].items()])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="an ONNX file to use instead of digits")
    parser.add_argument("--images", type=int, default=400, help="JPEG files of 640x480 (default 400)")
    parser.add_argument("--counts", type=int, nargs=2, default=[2000, 20000], help="images of the two jobs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ray", action="store_true", help="run both jobs on Ray, too")
    parser.add_argument("--output", type=Path, default=RESULTS / "batch_jobs.json")
    return parser


if __name__ == "__main__":
    main()
