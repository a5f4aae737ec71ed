"""INT8 against stock tools, in speed, accuracy and cost: `uv run --group bench python benchmarks/int8.py`.

**Speed.** DenseNet-121 and 201 at 224x224 with 1000 classes and random weights, with BatchNormalization statistics from
images (`lifelike.py`); no other property of the weights affects the time of a call. Every file is alone in a process,
the files of one engine take turns, and the result is the median ratio over the rounds. Both peers get both graphs,
PyTorch's plain export and the file that `export` writes, and every INT8 file is written without regard to speed
(`--no-never-slower`).

**Accuracy.** SQNR of the logits against the FP32 file, and top-1, on held-out images of two trained networks: the
digits model in `examples/digits` and the DenseNet-121 of `examples/train_rendered_digits.py`, trained on demand. All
tools calibrate on the same images; each peer is tried in all its settings.

**Sizes.** MiB of the files whose speed is measured.

**Calibration.** Peak memory and time with the entropy observer, each run in its own process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from bare_export import export_plainly
from int8_peers import (
    ACTIVATIONS,
    METHODS,
    PRESETS,
    Images,
    StaticQuantization,
    quantize_with_nncf,
    quantize_with_onnxruntime,
)
from lifelike import save_lifelike
from machine import RESULTS, Machine, print_table, write_results

from densenet_deploy.artifacts import Artifact
from densenet_deploy.bench.candidate import Candidate
from densenet_deploy.bench.rounds import RoundResults, compare_speed
from densenet_deploy.parity.compare import ParityMeter
from densenet_deploy.parity.samples import natural_images
from densenet_deploy.quantization.calibration_data import open_calibration_data
from densenet_deploy.runtime.batching import run_batched
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.variants import find_variant
from densenet_deploy.workflows.evaluate import evaluate
from densenet_deploy.workflows.export import export
from densenet_deploy.workflows.load import load
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.quantize import quantize

ROOT: Final = Path(__file__).resolve().parent.parent
DIGITS: Final = ROOT / "examples/digits"
RENDERED: Final = ROOT / "artifacts/rendered_digits"
ENGINES: Final = ("onnxruntime", "openvino")
GRAPHS: Final = ("plain", "export")
SPEED_IMAGES: Final = 32
CALIBRATION_IMAGES: Final = 256
CALIBRATION_COUNTS: Final = (64, 1024)

Facts = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """An FP32 network as both graphs, in `folder`, with prepared calibration images.

    Attributes:
        calibration: a folder of images or an array file.
        held_out: images in one subfolder per class, to measure accuracy on.
    """

    name: str
    folder: Path
    calibration: Path
    held_out: Path | None = None

    def graph(self, name: str) -> Path:
        return self.folder / f"{name}.onnx"

    def ours(self, recipe: str, **options: Any) -> Path:
        """Write our INT8 file; `options` are fields of `QuantizeOptions`."""
        path = self.folder / f"ours.{recipe}{len(list(self.folder.iterdir()))}.onnx"
        chosen = QuantizeOptions(recipe=recipe, samples=CALIBRATION_IMAGES, never_slower=False, **options)
        quantize(self.graph("export"), self.calibration, chosen, out=path)
        return path

    def images(self) -> Images:
        manifest = Artifact.open(self.graph("export")).manifest
        assert manifest is not None
        return list(open_calibration_data(self.calibration, manifest.preprocessing, CALIBRATION_IMAGES))


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    machine = Machine.this("densenet-deploy", "onnxruntime-gpu", "openvino", "nncf", "torch", "onnx")
    results: Facts = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        needed = options.variants if {"speed", "sizes"} & set(options.parts) else ()
        networks = [_random_network(variant, folder) for variant in needed]
        if "speed" in options.parts:
            results["speed"] = [row for network in networks for row in speed_of(network, options)]
        if "sizes" in options.parts:
            results["sizes"] = [sizes_of(network) for network in networks]
        if "accuracy" in options.parts:
            results["accuracy"] = [accuracy_of(network) for network in _trained_networks(folder, options.rendered)]
        if "calibration" in options.parts:
            results["calibration"] = calibration_costs(folder, options.variants[0], options.counts)
    write_results(options.output, machine, {"results": results})
    _print(results)


# -- speed


def speed_of(network: Network, options: argparse.Namespace) -> list[Facts]:
    """Measure all files of each engine at each batch size."""
    files = {"onnxruntime": _onnxruntime_files(network), "openvino": _openvino_files(network)}
    rows = []
    for engine, batch in itertools.product(ENGINES, options.batches):
        candidates = {
            name: Candidate(path, engine, batch, "cpu", precision="bf16" if "BF16" in name else None)
            for name, path in files[engine].items()
        }
        print(f"measuring {network.name} on {engine}, batch {batch}", file=sys.stderr)
        result = compare_speed(candidates, rounds=options.rounds, seconds_per_round=options.turn_seconds)
        rows.append({"network": network.name, "engine": engine, "batch": batch, **_facts_of(result)})
    return rows


def sizes_of(network: Network) -> Facts:
    """MiB of the files of both engines; an OpenVINO model has its weights in a second one."""
    files = {"onnxruntime": _onnxruntime_files(network), "openvino": _openvino_files(network)}
    sizes = {engine: {name: _mib(path) for name, path in paths.items()} for engine, paths in files.items()}
    return {"network": network.name, **sizes}


def _mib(path: Path) -> float:
    weights = path.with_suffix(".bin")
    return round((path.stat().st_size + (weights.stat().st_size if weights.exists() else 0)) / 2**20, 1)


def _onnxruntime_files(network: Network) -> dict[str, Path]:
    files = {f"FP32, {graph}": network.graph(graph) for graph in GRAPHS}
    for graph, activations in itertools.product(GRAPHS, ACTIVATIONS):
        path = network.folder / f"static.{graph}.{activations}.onnx"
        quantize_with_onnxruntime(network.graph(graph), network.images(), StaticQuantization(activations), path)
        files[f"quantize_static {activations}, {graph}"] = path
    return files | {"ours": network.ours("onnxruntime")}


def _openvino_files(network: Network) -> dict[str, Path]:
    files = {f"FP32, {graph}": network.graph(graph) for graph in GRAPHS}
    files["BF16, plain"] = network.graph("plain")
    for graph in GRAPHS:
        path = network.folder / f"nncf.{graph}.xml"
        quantize_with_nncf(network.graph(graph), network.images(), "performance", path)
        files[f"NNCF, {graph}"] = path
    return files | {"ours": network.ours("openvino")}


def _facts_of(result: RoundResults) -> Facts:
    """Milliseconds of every candidate, and the speedup of ours over it, with a 95 % interval."""
    return {
        "latency_ms": {name: round(result.latency_ms(name), 3) for name in result.timings},
        "ours_over": {
            name: [round(value, 3) for value in (gain.median, gain.low, gain.high)]
            for name, gain in ((name, result.speedup("ours", over=name)) for name in result.timings if name != "ours")
        },
        "export_over_plain": round(result.speedup("FP32, export", over="FP32, plain").median, 3),
    }


def _random_network(variant: str, folder: Path) -> Network:
    calibration, preprocessing = folder / f"{variant}.npy", find_variant(variant).preprocessing
    images = np.concatenate(list(natural_images(SPEED_IMAGES, preprocessing)))
    np.save(calibration, images)
    weights = folder / f"{variant}.pth"
    save_lifelike(variant, np.split(images, SPEED_IMAGES // 8), weights)
    return _exported(f"DenseNet {variant}", weights, folder, calibration)


def _exported(name: str, weights: Path, folder: Path, calibration: Path, held_out: Path | None = None) -> Network:
    """Write both graphs of a network into a folder of its own."""
    place = folder / name.replace(" ", "_")
    place.mkdir()
    export(weights, out=place / "export.onnx")
    manifest = Artifact.open(place / "export.onnx").manifest
    assert manifest is not None
    module = load(weights).module
    export_plainly(module, manifest.preprocessing.image_size, place / "plain.onnx")
    return Network(name, place, calibration, held_out)


# -- accuracy


def accuracy_of(network: Network) -> Facts:
    """SQNR and top-1 of every INT8 file on its engine."""
    assert network.held_out is not None
    rows = {}
    for name, engine, path in _accuracy_files(network):
        rows[name] = {"engine": engine, **_judged(network, path, engine)}
        print(f"{network.name}: {name}: {rows[name]}", file=sys.stderr)
    return {"network": network.name, "float_top1": evaluate(network.graph("export"), network.held_out).top1, **rows}


def _accuracy_files(network: Network) -> Iterator[tuple[str, str, Path]]:
    images = network.images()
    for graph, activations, method in itertools.product(GRAPHS, ACTIVATIONS, METHODS):
        how, path = StaticQuantization(activations, method), network.folder / "static.onnx"
        quantize_with_onnxruntime(network.graph(graph), images, how, path)
        yield f"quantize_static {how}, {graph}", "onnxruntime", path
    for graph, preset in itertools.product(GRAPHS, PRESETS):
        path = network.folder / f"nncf.{graph}.{preset}.xml"
        quantize_with_nncf(network.graph(graph), images, preset, path)
        yield f"NNCF {preset}, {graph}", "openvino", path
    for recipe in ENGINES:
        yield f"ours, {recipe}", recipe, network.ours(recipe)
        yield f"ours, {recipe}, without correction", recipe, network.ours(recipe, correct=False)
        yield f"ours, {recipe}, without equalization", recipe, network.ours(recipe, equalize=False)
        plain = network.ours(recipe, equalize=False, correct=False)
        yield f"ours, {recipe}, without either", recipe, plain


def _judged(network: Network, path: Path, engine: str) -> Facts:
    held_out = network.held_out
    manifest = Artifact.open(network.graph("export")).manifest
    assert held_out is not None
    assert manifest is not None
    data = open_calibration_data(held_out, manifest.preprocessing, 2**30)
    meter, right = ParityMeter(), 0
    labels = sorted(folder.name for folder in held_out.iterdir())
    with open_runner(network.graph("export"), engine, "cpu") as ours, open_runner(path, engine, "cpu") as theirs:
        for sample, image in zip(data, data.paths, strict=True):  # type: ignore[attr-defined]
            wanted, found = (next(iter(run_batched(runner, sample).values())) for runner in (ours, theirs))
            meter.update(wanted, found)
            right += labels[int(found.argmax())] == image.parent.name
    parity = meter.result()
    return {
        "sqnr_db": round(parity.sqnr_db, 2),
        "top1": round(right / len(data.paths), 4),  # type: ignore[attr-defined]
        "top1_agreement": parity.top1_agreement,
    }


def _trained_networks(folder: Path, rendered: Path) -> Iterator[Network]:
    samples = ROOT / "calibration/samples"
    digits = DIGITS / "densenet_digits.safetensors"
    yield _exported("digits", digits, folder, samples, DIGITS / "held_out")
    weights = rendered / "densenet_rendered_digits.safetensors"
    if not weights.exists():
        print(f"training a DenseNet-121 into {rendered}, about ten minutes on one core", file=sys.stderr)
        command = [sys.executable, "-m", "examples.train_rendered_digits", "-o", str(rendered)]
        subprocess.run(command, check=True, cwd=ROOT)
    yield _exported("rendered digits", weights, folder, rendered / "calibration", rendered / "held_out")


# -- calibration


def calibration_costs(folder: Path, variant: str, counts: Sequence[int]) -> list[Facts]:
    """Time and peak memory of our calibration for each number of images, and of the peer's for the smallest."""
    place = folder / "calibration"
    place.mkdir()
    model = place / "export.onnx"
    export(variant, out=model)
    preprocessing = find_variant(variant).preprocessing
    shape = (max(counts), 3, preprocessing.image_size, preprocessing.image_size)
    images = np.lib.format.open_memmap(place / "all.npy", "w+", np.float32, shape)
    for index, image in enumerate(natural_images(max(counts), preprocessing)):
        images[index] = image[0]
    images.flush()
    runs = [("densenet-deploy", count) for count in counts] + [("quantize_static", min(counts))]
    return [_calibrated_alone(tool, model, place / "all.npy", count) for tool, count in runs]


def _calibrated_alone(tool: str, model: Path, images: Path, count: int) -> Facts:
    program = Path(__file__).with_name("calibrate_alone.py")
    command = [sys.executable, str(program), tool, str(model), str(images), str(count)]
    print(f"calibrating with {tool} on {count} images", file=sys.stderr)
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    return {"tool": tool, "images": count, **json.loads(done.stdout.splitlines()[-1])}


# -- report


def _print(results: Mapping[str, Any]) -> None:
    for row in results.get("speed", ()):
        print(f"\n{row['network']} on {row['engine']}, batch {row['batch']}\n")
        lines = [(name, ms, *_gain(row, name)) for name, ms in row["latency_ms"].items()]
        print_table(("file", "ms", "speedup of ours", "95 %"), lines)
    for sizes in results.get("sizes", ()):
        for engine in ENGINES:
            print(f"\n{sizes['network']}, files for {engine}\n")
            print_table(("file", "MiB"), list(sizes[engine].items()))
    for network in results.get("accuracy", ()):
        print(f"\n{network['network']}, FP32 top-1 {network['float_top1']:.2%}\n")
        rows = {name: facts for name, facts in network.items() if isinstance(facts, dict)}
        print_table(("file", "SQNR dB", "top-1"), [(n, f["sqnr_db"], f"{f['top1']:.2%}") for n, f in rows.items()])
    if "calibration" in results:
        print("\nCalibration with the entropy method\n")
        costs = [
            (row["tool"], row["images"], f"{row['seconds']:.0f}", f"{row['peak_memory_bytes'] / 2**20:.0f}")
            for row in results["calibration"]
        ]
        print_table(("tool", "images", "seconds", "peak MiB"), costs)


def _gain(row: Mapping[str, Any], name: str) -> tuple[str, str]:
    if name not in row["ours_over"]:
        return "", ""
    median, low, high = row["ours_over"][name]
    return f"{median:.2f}", f"{low:.2f}-{high:.2f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["speed", "sizes", "accuracy", "calibration"])
    parser.add_argument("--variants", nargs="+", default=["121", "201"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--turn-seconds", type=float, default=0.3)
    parser.add_argument("--rendered", type=Path, default=RENDERED, help="folder of the trained DenseNet-121")
    parser.add_argument("--counts", nargs="+", type=int, default=list(CALIBRATION_COUNTS))
    parser.add_argument("--output", type=Path, default=RESULTS / "int8.json")
    return parser


if __name__ == "__main__":
    main()
