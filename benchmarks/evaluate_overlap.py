"""Does `evaluate` decode while the model runs? `uv run python benchmarks/evaluate_overlap.py`.

Three candidates take turns on the same JPEG files: decoding and preparing alone, with the thread pool of `evaluate`;
the model alone, on images that are already prepared; and `evaluate`. The limit: at most 10 % fewer images/s than the
slower of the two alone.

This is meaningful only where each of the two has processors of its own: one thread for the model, and the other
processor for decoding. Where both use all processors, the default of `evaluate`, the best possible result is that none
of them idles: 1 / (1/decoding + 1/model) images/s. That figure is reported as well.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from machine import RESULTS, Machine, print_table, take_turns, write_results
from PIL import Image

from densenet_deploy.bench.rounds import Interval
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.parity.samples import natural_images
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.image_folders import PreparedImages
from densenet_deploy.runtime.runner import RunnerOptions
from densenet_deploy.workflows.evaluate import EvaluateOptions, evaluate

LIMIT: Final = 0.10
DIGITS: Final = Path(__file__).resolve().parent.parent / "examples/digits/densenet_digits.safetensors"
_SIZE: Final = (640, 480)
_QUALITY: Final = 90
_SCENES: Final = 25  # generated images; the others are shifted copies of these
_BATCH: Final = EvaluateOptions.batch


@dataclass(frozen=True)
class Overlap:
    """Images/s of each candidate, the median over the rounds, and the ratio of `evaluate` to two reference values.

    Attributes:
        of_slower: `evaluate` over the slower of the two alone, from the ratios of the rounds.
        of_shared: `evaluate` over the rate that both would reach if they shared the processors without loss.
        holds: whether the median of `of_slower` is within the limit; None where both use the same processors.
    """

    model: str
    model_threads: int
    decode_threads: int
    images: int
    decode: float
    inference: float
    evaluate: float
    of_slower: Interval
    of_shared: Interval
    limit: float
    holds: bool | None


@dataclass(frozen=True)
class Task:
    """A model, images with their classes, and threads; each measurement returns images/s."""

    model: Path
    images: Path
    truth: Path
    threads: int
    decode_threads: int

    def measured(self, rounds: int) -> Overlap:
        """Measure the three in alternation; the first round is not counted."""
        with Classifier.open(self.model, "onnxruntime", "cpu", RunnerOptions(threads=self.threads)) as classifier:
            prepared = [image.pixels for _, image in self._pool(classifier)]
            batches = [np.stack(prepared[start : start + _BATCH]) for start in range(0, len(prepared), _BATCH)]
            turns = {
                "decode": lambda: _rate(len(prepared), lambda: deque(self._pool(classifier), maxlen=0)),
                "inference": lambda: _rate(len(prepared), lambda: [classifier.logits(batch) for batch in batches]),
                "evaluate": self._evaluate,
            }
            take_turns(turns, rounds=1)
            return self._summed_up(take_turns(turns, rounds=rounds), len(prepared))

    def _pool(self, classifier: Classifier) -> PreparedImages:
        paths = sorted(self.images.glob("*.jpg"))
        return PreparedImages(paths, classifier.preprocessing, ahead=2 * _BATCH, threads=self.decode_threads)

    def _evaluate(self) -> float:
        options = EvaluateOptions(ground_truth=self.truth, decode_threads=self.decode_threads)
        where = {"backend": "onnxruntime", "device": "cpu"}
        threads = RunnerOptions(threads=self.threads)
        return evaluate(self.model, self.images, options, **where, runner_options=threads).images_per_second

    def _summed_up(self, rates: Mapping[str, Sequence[float]], images: int) -> Overlap:
        rounds = list(zip(rates["decode"], rates["inference"], rates["evaluate"], strict=True))
        of_slower = Interval.of([both / min(decode, model) for decode, model, both in rounds])
        of_shared = Interval.of([both * (1 / decode + 1 / model) for decode, model, both in rounds])
        apart = self.threads + self.decode_threads <= usable_cpus()
        return Overlap(
            model=self.model.stem,
            model_threads=self.threads,
            decode_threads=self.decode_threads,
            images=images,
            decode=median(rates["decode"]),
            inference=median(rates["inference"]),
            evaluate=median(rates["evaluate"]),
            of_slower=of_slower,
            of_shared=of_shared,
            limit=LIMIT,
            holds=of_slower.median >= 1 - LIMIT if apart else None,
        )


def _rate(images: int, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return images / (time.perf_counter() - start)


def draw_images(folder: Path, count: int) -> None:
    """Write JPEG files of 640x480 pixels with the spectrum of natural scenes, which compress like photographs."""
    folder.mkdir()
    plain = Preprocessing(_SIZE[0], mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    scenes = [
        (values[0].transpose(1, 2, 0) * 255).astype(np.uint8) for values in natural_images(min(_SCENES, count), plain)
    ]
    for number in range(count):
        shifted = np.roll(scenes[number % len(scenes)], 29 * number, axis=(0, 1))[: _SIZE[1]]
        Image.fromarray(shifted).save(folder / f"{number:04}.jpg", quality=_QUALITY)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    machine = Machine.this("densenet-deploy", "numpy", "pillow", "onnxruntime", "onnxruntime-gpu")
    results: list[Overlap] = []
    cpus = usable_cpus()
    shares = {(max(1, cpus // 2), max(1, cpus - cpus // 2)): None, (cpus, cpus): None}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_images(folder / "images", options.images)
        truth = folder / "truth.txt"
        truth.write_text("0\n" * options.images)
        models = options.model or [exported(folder, "--weights", str(DIGITS)), exported(folder, "--variant", "121")]
        for model in models:
            for threads, decode_threads in shares:
                task = Task(model, folder / "images", truth, threads, decode_threads)
                results.append(task.measured(options.rounds))
    write_results(options.output, machine, {"results": [asdict(found) for found in results]})
    header = (
        "model",
        "threads",
        "decode/s",
        "model/s",
        "evaluate/s",
        "of the slower [95 %]",
        "of shared",
        "within 10 %",
    )
    print_table(header, [*map(_row, results)])


def exported(folder: Path, *words: str) -> Path:
    """Return the file that `export` makes of `words` in a folder of its own, below `folder`."""
    place = folder / words[-1].rpartition("/")[2].partition(".")[0]
    command = [sys.executable, "-m", "densenet_deploy", "export", *words, "-q", "-o", f"{place}/"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (model,) = place.glob("*.onnx")
    return model


def _row(found: Overlap) -> tuple[object, ...]:
    words = {True: "yes", False: "no", None: "same cores"}
    rates = (f"{found.decode:.1f}", f"{found.inference:.1f}", f"{found.evaluate:.1f}")
    slower = f"{found.of_slower.median:.3f} [{found.of_slower.low:.3f}, {found.of_slower.high:.3f}]"
    threads = f"{found.model_threads} + {found.decode_threads}"
    return found.model, threads, *rates, slower, f"{found.of_shared.median:.3f}", words[found.holds]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, action="append", help="ONNX files to use instead of digits and 121")
    parser.add_argument("--images", type=int, default=400, help="JPEG files of 640x480 (default 400)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=RESULTS / "evaluate_overlap.json")
    return parser


if __name__ == "__main__":
    main()
