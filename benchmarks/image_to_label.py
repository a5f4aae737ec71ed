"""How long does it take from an image to its label, and what does fast decoding change?

Each candidate runs alone in its own process; in each round every candidate classifies the same 1920x1080 image a few
times, in turn, and its median is kept. `before` is the path of the releases before this benchmark, frozen here on plain
Pillow: the whole image is decoded, copied, resized, cropped and normalized. The last part compares the inputs and
answers of fast decoding with exact ones, on photographs and on the labelled digits, enlarged to JPEGs of 1024x1024.

    uv run python benchmarks/image_to_label.py --model densenet121.int8.openvino.onnx
    uv run python benchmarks/image_to_label.py --pixels densenet121.uint8.onnx --model densenet121.onnx
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from machine import RESULTS, Machine, print_table, take_turns, write_results
from PIL import Image, ImageOps

from densenet_deploy import Classifier, evaluate, export
from densenet_deploy.bench.rounds import Interval
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.image_damage import why_not_whole
from densenet_deploy.runtime.preprocess import read_input
from densenet_deploy.workflows.evaluate import EvaluateOptions

DIGITS: Final = Path(__file__).resolve().parent.parent / "examples/digits"
SIZE: Final = (1920, 1080)
GOALS: Final = {"jpeg": 0.9, "jpeg, fast": 0.55}
_CALLS: Final = 5
_QUALITY: Final = 90
_DIGIT_SIDE: Final = 1024


@dataclass(frozen=True)
class Timing:
    """One candidate: medians over the rounds of milliseconds per image, and of the ratio to its reference value."""

    backend: str
    candidate: str
    ms: float
    over: str
    ratio: Interval
    goal: float | None


@dataclass(frozen=True)
class Difference:
    """What fast decoding changes on one set of images.

    Attributes:
        input_sqnr_db: of the normalized inputs, the lowest over the images.
        logits_sqnr_db: of the logits over all images.
        top1_agreement: of the answers, a fraction.
        top1, top1_fast: against the labels; None where there are none.
    """

    images: str
    count: int
    input_sqnr_db: float
    logits_sqnr_db: float
    top1_agreement: float
    top1: float | None = None
    top1_fast: float | None = None


# -- candidates, each in its own process


def before(path: Path, frame: np.ndarray | None, preprocessing: Preprocessing) -> np.ndarray:
    """Prepare an image as it was done before: every step on the whole image."""
    if frame is not None:
        image = Image.fromarray(frame)
    else:
        with path.open("rb") as file:
            opened = Image.open(file)
            assert why_not_whole(file, opened.format) is None
            opened.load()
            orientation = opened.getexif().get(0x0112)
            image = opened.convert("RGB") if opened.mode != "RGB" else opened.copy()
            image.info = {}
        if orientation in range(2, 9):
            image.getexif()[0x0112] = orientation
            image = ImageOps.exif_transpose(image)
    _, rows, columns = preprocessing.shape
    width, height = (int(preprocessing.resize * side / min(image.size)) for side in image.size)
    left, top = round((width - columns) / 2), round((height - rows) / 2)
    crop = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + columns, top + rows))
    result = np.empty(preprocessing.shape, np.float32)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    np.divide(np.asarray(crop).transpose(2, 0, 1), np.float32(255), out=result)
    np.subtract(result, mean, out=result)
    return np.divide(result, std, out=result)


def candidates(classify: Classifier, path: Path) -> dict[str, Callable[[], Any]]:
    """Return what each candidate does with one image."""
    frame = np.asarray(Image.open(path))
    fast = Classifier(classify._runner, fast=True)  # noqa: SLF001 - one model for both
    plain = classify.preprocessing
    prepared = read_input(path, plain)
    return {
        "runner": lambda: classify(prepared),
        "jpeg": lambda: classify(path),
        "jpeg, fast": lambda: fast(path),
        "array": lambda: classify(frame),
        "array, fast": lambda: fast(frame),
        **(
            {}
            if plain.takes_pixels
            else {
                "jpeg, before": lambda: classify.answer(classify.logits(before(path, None, plain)[None])[0]),
                "array, before": lambda: classify.answer(classify.logits(before(path, frame, plain)[None])[0]),
            }
        ),
    }


def serve(model: Path, backend: str, name: str, path: Path) -> None:
    """Answer each line of stdin with the median of a few calls, in milliseconds, and the label."""
    with Classifier.open(model, backend, "cpu") as classify:
        call = candidates(classify, path)[name]
        label = call().top[0].index
        for _ in sys.stdin:
            seconds = []
            for _ in range(_CALLS):
                start = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - start)
            print(json.dumps([median(seconds) * 1e3, label]), flush=True)


class Worker:
    """A candidate in its own process; calling it gives one measurement."""

    def __init__(self, model: Path, backend: str, name: str, path: Path) -> None:
        arguments = [sys.executable, __file__, "--serve", name, "--backend", backend, "--model", model, "--image", path]
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.label: int | None = None

    def __call__(self) -> float:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write("\n")
        stdin.flush()
        milliseconds, self.label = json.loads(stdout.readline())
        return float(milliseconds)

    def close(self) -> None:
        self._process.communicate()


REFERENCES: Final = {
    "jpeg": "jpeg, before",
    "jpeg, fast": "jpeg, before",
    "array": "array, before",
    "array, fast": "array, before",
    "uint8: runner": "runner",
    "uint8: jpeg": "jpeg",
    "uint8: array": "array",
}


def timings(models: Mapping[str, Path], backend: str, path: Path, rounds: int) -> tuple[list[Timing], bool]:
    """Measure all candidates on `backend`; also return whether the exact ones agree on the label."""
    names = {name: ("", name) for name in ("runner", "jpeg, before", "jpeg", "jpeg, fast", "array, before", "array")}
    names["array, fast"] = ("", "array, fast")
    if "uint8: " in models:
        names |= {f"uint8: {name}": ("uint8: ", name) for name in ("runner", "jpeg", "array")}
    workers = {title: Worker(models[kind], backend, name, path) for title, (kind, name) in names.items()}
    try:
        take_turns(workers, rounds=1)
        found = take_turns(workers, rounds=rounds)
    finally:
        for worker in workers.values():
            worker.close()
    rows = []
    for title, ms in found.items():
        over = REFERENCES.get(title, title)
        ratio = Interval.of([mine / theirs for mine, theirs in zip(ms, found[over], strict=True)])
        rows.append(Timing(backend, title, median(ms), over, ratio, GOALS.get(title)))
    over_runner = [array - runner for array, runner in zip(found["array"], found["runner"], strict=True)]
    print(f"{backend}: an array to its label takes {median(over_runner):.2f} ms over the runner's call")
    return rows, len({worker.label for title, worker in workers.items() if "fast" not in title}) == 1


# -- what fast decoding changes


def sqnr_db(expected: np.ndarray, found: np.ndarray) -> float:
    error = float(np.square(expected - found, dtype=np.float64).sum())
    return float("inf") if error == 0 else 10 * float(np.log10(np.square(expected, dtype=np.float64).sum() / error))


def difference(title: str, model: Path, files: Sequence[Path]) -> Difference:
    """Compare inputs and logits of fast and exact decoding."""
    with Classifier.open(model, device="cpu") as classify:
        exact, fast = (
            [read_input(path, classify.preprocessing, fast=is_fast).pixels for path in files]
            for is_fast in (False, True)
        )
        logits = [np.concatenate([classify.logits(pixels[None]) for pixels in inputs]) for inputs in (exact, fast)]
    return Difference(
        title,
        len(files),
        min(sqnr_db(*(pixels.astype(np.float32) for pixels in pair)) for pair in zip(exact, fast, strict=True)),
        sqnr_db(*logits),
        float(np.mean(logits[0].argmax(1) == logits[1].argmax(1))),
    )


def photographs(folder: Path) -> list[Path]:
    """Write crops of two photographs, enlarged to full HD and to 4000x3000, as JPEGs."""
    from sklearn.datasets import load_sample_images

    files = []
    for number, photo in enumerate(map(Image.fromarray, load_sample_images().images)):
        for corner in ((0, 0), (160, 67), (320, 134)):
            for size in (SIZE, (4000, 3000)):
                width = round(240 * size[0] / size[1])
                part = photo.crop((*corner, min(corner[0] + width, photo.width), min(corner[1] + 240, photo.height)))
                files.append(folder / f"{number}-{corner[0]}-{size[0]}.jpg")
                part.resize(size, Image.Resampling.BICUBIC).save(files[-1], quality=_QUALITY)
    return files


def digits(folder: Path) -> list[Path]:
    """Write the labelled digits as large JPEGs, in the same folders."""
    files = []
    for path in sorted((DIGITS / "held_out").glob("*/*.png")):
        target = folder / path.parent.name / f"{path.stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        large = Image.open(path).convert("RGB").resize((_DIGIT_SIDE, _DIGIT_SIDE), Image.Resampling.BICUBIC)
        large.save(target, quality=_QUALITY)
        files.append(target)
    return files


def differences(model: Path, folder: Path) -> list[Difference]:
    """Compare on photographs with the model, and on the digits with the network that was trained on them."""
    trained = folder / "digits.onnx"
    export(DIGITS / "densenet_digits.safetensors", out=trained)
    files = digits(folder / "digits")
    tops = [
        evaluate(trained, folder / "digits", EvaluateOptions(fast_decode=is_fast)).top1 for is_fast in (False, True)
    ]
    of_digits = difference(f"digits, {_DIGIT_SIDE}x{_DIGIT_SIDE}", trained, files)
    (folder / "photos").mkdir()
    photos = difference("photographs", model, photographs(folder / "photos"))
    return [photos, Difference(**(asdict(of_digits) | {"top1": tops[0], "top1_fast": tops[1]}))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="takes float32")
    parser.add_argument("--pixels", type=Path, help="the same model, exported with --input uint8")
    parser.add_argument("--backend", action="append", help="default: onnxruntime and openvino")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS / "image_to_label.json")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--image", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.model, given.backend[0], given.serve, given.image)
        return
    machine = Machine.this("densenet-deploy", "numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "openvino")
    models = {"": given.model} | ({"uint8: ": given.pixels} if given.pixels is not None else {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = folder / "full_hd.jpg"
        (folder / "one").mkdir()
        image.write_bytes(photographs(folder / "one")[0].read_bytes())
        rows, agree = [], {}
        for backend in given.backend or ["onnxruntime", "openvino"]:
            found, agree[backend] = timings(models, backend, image, given.rounds)
            rows += found
        changed = differences(given.model, folder)
    print_table(
        ("backend", "candidate", "ms", "over", "ratio", "goal"),
        [(row.backend, row.candidate, f"{row.ms:.2f}", row.over, row.ratio, row.goal or "") for row in rows],
    )
    print_table(
        ("images", "count", "input dB", "logits dB", "same answer", "top-1", "top-1 fast"),
        [
            (one.images, one.count, f"{one.input_sqnr_db:.1f}", f"{one.logits_sqnr_db:.1f}",
             f"{one.top1_agreement:.2%}", one.top1, one.top1_fast)
            for one in changed
        ],
    )  # fmt: skip
    results = {
        "results": list(map(asdict, rows)),
        "labels_agree": agree,
        "fast_decoding": list(map(asdict, changed)),
    }
    write_results(given.output, machine, results)


if __name__ == "__main__":
    main()
