"""The trained networks that compression is measured on: `uv run python benchmarks/compress_networks.py FOLDER`.

Two DenseNet-121 for 64x64 images, trained by `densenet-deploy train`: on rendered digits (10 classes) and on rendered
characters (100 classes). With `--distill`, also a DenseNet-201 on the characters, and for three seeds a DenseNet-121
that is trained alone and one that this DenseNet-201 teaches, on the same images for as many epochs. The best epoch is
chosen on a tenth of the training images; the accuracy that is written is that of images that chose nothing.

What is independent runs side by side: some minutes on a GPU with a dozen cores; hours on two cores, where
`--epochs` and `--images` try it out. `--small` only distils, on rendered digits of 32 pixels: a DenseNet-BC of 40
layers teaches one of 22, within an hour on two cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any, Final

import numpy as np
from machine import RESULTS, Machine, print_table, write_results

from densenet_deploy.bench.machine import gpus
from densenet_deploy.runtime.cpus import usable_cpus

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from examples import rendered_characters, rendered_digits  # noqa: E402
from examples.digits_data import Digits  # noqa: E402
from examples.digits_data import write_images as write_images_of_digits  # noqa: E402

SEEDS: Final = (0, 1, 2)
CALIBRATION, HELD_OUT = 512, 2000
TRAINING: Final = (
    *("--optimizer", "adamw", "--lr", "4e-3", "--weight-decay", "0.02"),
    *("--schedule", "cosine", "--warmup-epochs", "1", "--batch-size", "128"),
    *("--no-flip", "--no-check"),
)

_FEW_THREADS: Final = {**os.environ, "OMP_NUM_THREADS": str(max(1, usable_cpus() // 8))}


@dataclass(frozen=True)
class Run:
    """One training: `name` is that of its folder, `data` that of its images; `teacher` is the name of another run."""

    name: str
    data: str
    variant: str = "121"
    seed: int = 0
    teacher: str | None = None
    pixels: int = 64

    def command(self, folder: Path, epochs: int, amp: str | None) -> list[str]:
        taught = [] if self.teacher is None else ["--teacher", str(folder / self.teacher / "best.safetensors")]
        precision = [] if amp is None else ["--amp", amp]
        plain = ["--data", str(folder / self.data / "training"), "--variant", self.variant, "--epochs", str(epochs)]
        size = ["--image-size", str(self.pixels), "--resize", str(self.pixels)]
        out = ["--seed", str(self.seed), "-o", str(folder / self.name), "--resume", "--quiet", "--json"]
        return [sys.executable, "-m", "densenet_deploy", "train", *plain, *TRAINING, *size, *precision, *taught, *out]


NETWORKS: Final = (Run("digits_121", "rendered_digits"), Run("characters_121_seed0", "characters"))
TEACHER: Final = Run("characters_201", "characters", "201")
STUDENT: Final = Run("characters_121", "characters")
SMALL_TEACHER: Final = Run("digits_bc_40", "rendered_digits", "cifar-bc-40-12", pixels=32)
SMALL_STUDENT: Final = Run("digits_bc_22", "rendered_digits", "cifar-bc-22-8", pixels=32)


def alone(student: Run) -> list[Run]:
    """Return the trainings of a student without a teacher, one for each seed."""
    return [replace(student, name=f"{student.name}_seed{seed}", seed=seed) for seed in SEEDS]


def taught(student: Run, teacher: Run) -> list[Run]:
    """Return the same with a teacher."""
    return [replace(run, name=f"{student.name}_taught_seed{run.seed}", teacher=teacher.name) for run in alone(student)]


def write_images(folder: Path, training: int, names: Collection[str]) -> None:
    """Write the sets called `names`: `training` images of each, and those for calibration and the last measurement."""
    writers = {"rendered_digits": write_digits, "characters": write_characters}
    splits = (("training", training), ("calibration", CALIBRATION), ("held_out", HELD_OUT))
    with ProcessPoolExecutor() as pool:
        waiting = [
            pool.submit(writers[name], folder / name / split, split, count)
            for name in names
            for split, count in splits
            if not (folder / name / split).exists()
        ]
        for one in waiting:
            one.result()


def write_characters(folder: Path, split: str, count: int) -> None:
    """Write rendered characters."""
    rendered_characters.write_split(folder, split, count, processes=1)


def write_digits(folder: Path, split: str, count: int) -> None:
    """Write rendered digits; those to train on have none of the nuisance to all of it, as the characters have."""
    if split != "training":
        rendered_digits.write_split(folder, split, count)
        return
    nuisance = rendered_digits.Nuisance()
    turns = [range(start, count, 40) for start in range(40)]  # each shows one digit, and ten of them each nuisance
    parts = [rendered_digits.images_of(split, turn, nuisance.eased(turn[0] // 10 / 3)) for turn in turns]
    images, digits = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "digits"))
    write_images_of_digits(folder, Digits(images, digits))


def trained(run: Run, folder: Path, options: argparse.Namespace, deadline: float) -> dict[str, Any]:
    """Train in a process of its own; return how right the network is on images that chose nothing."""
    row: dict[str, Any] = {"run": run.name, "variant": run.variant, "seed": run.seed, "teacher": run.teacher}
    start, command = perf_counter(), run.command(folder, options.epochs, options.amp)
    try:
        left = max(1.0, deadline - start)
        done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=left, env=_FEW_THREADS)
    except subprocess.TimeoutExpired:
        return {**row, "error": "the seconds were used up"}
    if done.returncode:
        return {**row, "error": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
    from densenet_deploy.workflows.evaluate import evaluate

    report = evaluate(folder / run.name / "best.safetensors", folder / run.data / "held_out")
    row |= {"top1": report.top1, "top5": report.top5, "seconds": perf_counter() - start}
    print(f"{run.name}: top-1 {report.top1:.4f} in {row['seconds']:.0f} s", file=sys.stderr, flush=True)
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    machine = Machine.this("densenet-deploy", "torch", "torchvision")
    folder: Path = options.folder
    start = perf_counter()
    deadline = start + options.seconds
    write_images(folder, options.images, ["rendered_digits"] if options.small else ["rendered_digits", "characters"])
    print(f"images written in {perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    teacher, student = (SMALL_TEACHER, SMALL_STUDENT) if options.small else (TEACHER, STUDENT)
    distills = options.distill or options.small
    without, with_teacher = (alone(student), taught(student, teacher)) if distills else ([], [])
    first = [*(() if options.small else NETWORKS), *([teacher] if distills else [])]
    first += [run for run in without if run not in first]
    results: list[dict[str, Any]] = []
    with ThreadPoolExecutor(options.side_by_side) as pool:
        waiting = {pool.submit(trained, run, folder, options, deadline): run for run in first}
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for one in done:
                results.append(one.result())
                if waiting.pop(one) == teacher and "error" not in results[-1]:
                    waiting |= {pool.submit(trained, run, folder, options, deadline): run for run in with_teacher}
            written = _written(results, {"alone": without, "taught": with_teacher}, options)
            write_results(options.output, machine, written | {"seconds": perf_counter() - start})
    columns = ("run", "variant", "seed", "teacher", "top1", "error")
    print_table(columns, [[row.get(name, "") for name in columns] for row in results])


def _written(
    results: Sequence[dict[str, Any]], groups: Mapping[str, Sequence[Run]], options: argparse.Namespace
) -> dict[str, Any]:
    written: dict[str, Any] = {"results": results, "training": " ".join(TRAINING)}
    written |= {"epochs": options.epochs, "images": options.images, "held_out": HELD_OUT, "amp": options.amp}
    for name, runs in groups.items():
        names = [run.name for run in runs]
        scores = [row["top1"] for row in results if row["run"] in names and "top1" in row]
        if len(scores) > 1:
            written[name] = {"mean": mean(scores), "standard_deviation": stdev(scores), "seeds": len(scores)}
    return written


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of images and networks; what is there already is kept")
    parser.add_argument("--distill", action="store_true", help="also the DenseNet-201 and the students of three seeds")
    parser.add_argument("--small", action="store_true", help="distil smaller networks, and train nothing else")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--images", type=int, default=12_000, help="training images of each set")
    parser.add_argument("--amp", choices=("bf16", "fp16"))
    parser.add_argument("--seconds", type=float, default=86_400, help="after which nothing more is trained")
    parser.add_argument("--side-by-side", type=int, default=8 if gpus() else 1, help="trainings at once")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "distillation.json")
    return parser


if __name__ == "__main__":
    main()
