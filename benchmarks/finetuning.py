"""What `quantize --finetune` brings: `uv run python benchmarks/finetuning.py [FOLDER]`.

The digits model, and with `FOLDER`, that of `compress_networks.py`, the DenseNets-121 trained there. Each is quantized
for both CPU backends: as the recipe writes it, with weights rounded anew, and, with `--seconds`, with gradient steps as
well. SQNR of the logits against the float network and top-1, on held-out images, by the file's own backend.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from compress import NETWORKS
from machine import RESULTS, Machine, print_table, write_results

import densenet_deploy as dd
from densenet_deploy.parity.compare import ParityMeter
from densenet_deploy.quantization.calibration_data import open_calibration_data
from densenet_deploy.runtime.images import load_image
from densenet_deploy.runtime.preprocess import prepare_batch

ROOT: Final = Path(__file__).resolve().parent.parent
DIGITS: Final = ROOT / "examples/digits"
RECIPES: Final = ("openvino", "onnxruntime")
_SHORTEST: Final = 1.0  # rounding takes longer, so that no step is made

Facts = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """A trained network, images to calibrate on, and images that nothing learnt from, a folder per class."""

    name: str
    weights: Path
    calibration: Path
    held_out: Path
    samples: int


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    machine = Machine.this("densenet-deploy", "onnxruntime-gpu", "openvino", "torch", "onnx")
    results = [row for network in _networks(options) for row in rows_of(network, options)]
    write_results(options.output, machine, {"images": options.images, "results": results})
    heads = ("network", "recipe", "file", "SQNR dB", "top-1", "steps", "seconds")
    print_table(heads, [[row[head] for head in row] for row in results])


def rows_of(network: Network, options: argparse.Namespace) -> Iterator[Facts]:
    """Quantize a network in every way, and judge the files."""
    plain = dd.export(network.weights)
    images, labels = _held_out(plain, network.held_out, options.images)
    with plain.runner("onnxruntime", "cpu") as runner:
        wanted = [next(iter(runner.run(batch).values())).copy() for batch in images]
    for recipe in RECIPES:
        for name, seconds in (("the recipe's", None), ("rounded anew", _SHORTEST), ("and learnt", options.seconds)):
            if seconds == 0:
                continue
            how = dd.QuantizeOptions(
                recipe=recipe,
                samples=network.samples,
                never_slower=False,
                finetune=seconds is not None,
                **({} if seconds is None else {"finetune_seconds": seconds}),
            )
            print(f"{network.name}, {recipe}, {name}", file=sys.stderr)
            made = dd.quantize(plain, network.calibration, how)
            found = made.report.finetune
            steps, took = (0, made.report.seconds) if found is None else (found.steps, found.seconds)
            facts = {"network": network.name, "recipe": recipe, "file": name}
            yield facts | _judged(made, recipe, images, labels, wanted) | {"steps": steps, "seconds": round(took, 1)}


def _judged(
    model: dd.Model, backend: str, images: Sequence[Any], labels: Sequence[int], wanted: Sequence[Any]
) -> Facts:
    meter, right = ParityMeter(), 0
    with model.runner(backend, "cpu") as runner:
        for batch, label, expected in zip(images, labels, wanted, strict=True):
            found = next(iter(runner.run(batch).values()))
            meter.update(expected, found)
            right += int(found.argmax()) == label
    return {"sqnr_db": round(meter.result().sqnr_db, 2), "top1": round(right / len(images), 4)}


def _held_out(model: dd.Model, folder: Path, most: int) -> tuple[list[Any], list[int]]:
    """Return a drawn part of the images (1, C, H, W), and the class of each."""
    assert model.manifest is not None
    preprocessing = model.manifest.preprocessing
    names = sorted(place.name for place in folder.iterdir())
    data = open_calibration_data(folder, preprocessing, most)
    paths = list(data.paths)  # type: ignore[attr-defined]
    images = [prepare_batch([load_image(path, preprocessing.shape[0])], preprocessing) for path in paths]
    return [np.asarray(image, np.float32) for image in images], [names.index(path.parent.name) for path in paths]


def _networks(options: argparse.Namespace) -> Iterator[Network]:
    digits = DIGITS / "densenet_digits.safetensors"
    yield Network("digits", digits, ROOT / "calibration/samples", DIGITS / "held_out", 128)
    for name in options.networks if options.folder is not None else ():
        place = options.folder / NETWORKS[name]
        yield Network(name, options.folder / name / "best.safetensors", place / "calibration", place / "held_out", 256)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="of `compress_networks.py`")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--seconds", type=float, default=0.0, help="of gradient steps after rounding (default: none)")
    parser.add_argument("--images", type=int, default=1000, help="held-out images to judge on, at most")
    parser.add_argument("--output", type=Path, default=RESULTS / "finetuning.json")
    return parser


if __name__ == "__main__":
    main()
