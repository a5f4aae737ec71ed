"""What pruning and INT8 fine-tuning bring: `uv run --group bench python benchmarks/compress.py FOLDER`.

`FOLDER` is that of `compress_networks.py`: trained DenseNet-121 for 64x64 images, images to calibrate on, and images
that chose nothing. Each network is exported, pruned in several ways, quantized for both CPU backends with and without
fine-tuning, and compared with NNCF's INT8 of the plain export.

**Accuracy.** SQNR of the logits against the float network, and top-1, on the held-out images, by the file's own
backend. **Speed.** Every file is alone in a process, files take turns, and the result is the median ratio over the
rounds: of OpenVINO files to NNCF's, of ONNX Runtime's to the float file.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
from int8_peers import quantize_with_nncf
from machine import RESULTS, Machine, print_table, write_results

import densenet_deploy as dd
from densenet_deploy.bench.candidate import Candidate
from densenet_deploy.bench.rounds import compare_speed
from densenet_deploy.parity.compare import ParityMeter
from densenet_deploy.quantization.calibration_data import open_calibration_data
from densenet_deploy.records import to_plain
from densenet_deploy.runtime.batching import run_batched
from densenet_deploy.runtime.images import load_image
from densenet_deploy.runtime.preprocess import prepare_batch

NETWORKS: Final = {"digits_121": "rendered_digits", "characters_121_seed0": "characters"}
CALIBRATION: Final = 256
ENGINES: Final = ("openvino", "onnxruntime")

Facts = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """A trained network, its images, and where files made of it go."""

    name: str
    weights: Path
    calibration: Path
    held_out: Path
    folder: Path

    def file(self, name: str, suffix: str = ".onnx") -> Path:
        return self.folder / f"{name}{suffix}"


def files_of(network: Network, options: argparse.Namespace) -> Iterator[tuple[str, Path, str, Facts]]:
    """Make the files; yield each with its name, its backend, and what making it cost and removed."""
    plain = network.file("float")
    model = dd.export(network.weights, out=plain, force=True)
    for engine in ENGINES:
        yield f"float, {engine}", plain, engine, {"macs": 1.0}
    images = list(open_calibration_data(network.calibration, model.manifest.preprocessing, CALIBRATION))
    start, peer = perf_counter(), network.file("nncf", ".xml")
    quantize_with_nncf(plain, images, "performance", peer)
    yield "NNCF, openvino", peer, "openvino", {"macs": 1.0, "seconds": perf_counter() - start}
    seconds = options.finetune_seconds
    for ratio, tuned in itertools.product((0.0, *options.ratios), (False, True) if seconds else (False,)):
        floating = network.file(f"float.{ratio}.{tuned}")
        limit: Facts = {"finetune_seconds": seconds} if tuned else {}
        made: Facts = {"macs": 1.0}
        if ratio:
            start = perf_counter()
            how = dd.PruneOptions(ratio=ratio, widths="per-layer", samples=CALIBRATION, finetune=tuned, **limit)
            report = dd.prune(plain, network.calibration, how, out=floating, force=True).report
            made = {"macs": report.macs_after / report.macs_before, "seconds": perf_counter() - start}
            name = f"pruned {ratio:g}{', distilled' if tuned else ''}"
            yield f"{name}, float, onnxruntime", floating, "onnxruntime", made
        else:
            name, floating = "whole", plain
        for engine in ENGINES:
            start, path = perf_counter(), network.file(f"int8.{ratio}.{tuned}.{engine}")
            chosen = dd.QuantizeOptions(recipe=engine, samples=CALIBRATION, never_slower=False, finetune=tuned, **limit)
            report = dd.quantize(floating, network.calibration, chosen, out=path, force=True).report
            facts = {"macs": made["macs"], "seconds": perf_counter() - start, "finetune": to_plain(report.finetune)}
            yield f"{name}, INT8{', fine-tuned' if tuned else ''}, {engine}", path, engine, facts


def accuracy(path: Path, engine: str, inputs: np.ndarray, classes: np.ndarray, expected: np.ndarray) -> Facts:
    """Return SQNR against the float network and top-1, on held-out images."""
    with dd.open_runner(path, engine, "cpu") as runner:
        found = next(iter(run_batched(runner, inputs).values()))
    meter = ParityMeter()
    meter.update(expected, found)
    parity = meter.result()
    return {
        "sqnr_db": None if parity.max_abs == 0 else parity.sqnr_db,
        "centred_sqnr_db": None if parity.max_abs == 0 else parity.centred_sqnr_db,
        "top1": float((found.argmax(1) == classes).mean()),
    }


def speed(files: dict[str, tuple[Path, str]], batch: int, rounds: int) -> Facts:
    """Return for every file its latency and how many times as fast it is as its engine's baseline."""
    results: Facts = {}
    for engine in ENGINES:
        own = {name: path for name, (path, backend) in files.items() if backend == engine}
        base = "NNCF, openvino" if engine == "openvino" else f"float, {engine}"
        found = compare_speed({name: Candidate(path, engine, batch) for name, path in own.items()}, rounds=rounds)
        for name in own:
            gain = found.speedup(name, over=base)
            results[name] = {"ms": found.latency_ms(name), "speedup": [gain.median, gain.low, gain.high], "over": base}
    return results


def measured(network: Network, options: argparse.Namespace) -> Facts:
    """Return all that is measured of one network."""
    network.folder.mkdir(parents=True, exist_ok=True)
    manifest = dd.load(network.weights).manifest
    paths = sorted(network.held_out.glob("*/*.png"))
    inputs = prepare_batch([load_image(path) for path in paths], manifest.preprocessing)
    classes = np.array([manifest.labels.index(path.parent.name) for path in paths])
    rows, files, expected = {}, {}, None
    for name, path, engine, facts in files_of(network, options):
        if expected is None:
            with dd.open_runner(path, "onnxruntime", "cpu") as runner:
                expected = next(iter(run_batched(runner, inputs).values()))
        rows[name] = {**facts, **accuracy(path, engine, inputs, classes, expected)}
        files[name] = (path, engine)
        print(name, rows[name], flush=True)
    times = (
        {f"batch {batch}": speed(files, batch, options.rounds) for batch in options.batches} if options.rounds else {}
    )
    return {"network": network.name, "images": len(inputs), "files": rows, "speed": times}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    machine = Machine.this("densenet-deploy", "onnxruntime-gpu", "openvino", "nncf", "torch", "onnx")
    results = []
    for name in options.networks:
        images = options.folder / NETWORKS[name]
        weights = options.folder / name / "best.safetensors"
        network = Network(name, weights, images / "calibration", images / "held_out", options.folder / "files" / name)
        results.append(measured(network, options))
        write_results(options.output, machine, {"results": results})
    for one in results:
        print(f"\n{one['network']}, {one['images']} images\n")
        gains = [{name: row["speedup"][0] for name, row in rows.items()} for rows in one["speed"].values()]
        lines = [
            (name, f"{row['macs']:.2f}", row["sqnr_db"], f"{row['top1']:.2%}", *(f"{gain[name]:.2f}" for gain in gains))
            for name, row in one["files"].items()
        ]
        print_table(("file", "MACs", "SQNR dB", "top-1", *one["speed"]), lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of images and networks")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.25, 0.5])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--finetune-seconds", type=float, default=540.0, help="of each fine-tuning; 0 for none")
    parser.add_argument("--rounds", type=int, default=9, help="of timing; 0 times nothing")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "compress.json")
    return parser


if __name__ == "__main__":
    main()
