"""Which layers are worth INT8: by what they cost in accuracy, and by what they gain in time on this machine."""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from densenet_deploy.artifacts import Artifact, write_file
from densenet_deploy.bench.candidate import Candidate
from densenet_deploy.bench.rounds import Interval, RoundResults, compare_speed
from densenet_deploy.errors import GateError, UsageError
from densenet_deploy.manifest import Manifest
from densenet_deploy.parity.compare import ParityMeter
from densenet_deploy.quantize.mixed_precision import Layer, MixedPrecision, Names, blocks_of, find_float_layers
from densenet_deploy.runtime.batching import run_batched
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.workflows.evaluate import evaluate
from densenet_deploy.workflows.quantize.int8 import Int8Writer
from densenet_deploy.workflows.quantize.options import QuantizeOptions

TRIAL_SAMPLES: Final = 32
_SECONDS_PER_ROUND: Final = 0.05
_ROUNDS: Final = 5
_CERTAIN_ROUNDS: Final = 11


@dataclass(frozen=True)
class Speed:
    """Medians of single calls, in milliseconds, and how many times as fast INT8 is; batch 1 unless the file's is fixed.

    `put_back` names the blocks that were faster in float.
    """

    float_ms: float
    int8_ms: float
    speedup: Interval
    put_back: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the measurement with plain types."""
        return {
            "float_ms": self.float_ms,
            "int8_ms": self.int8_ms,
            "speedup": self.speedup.median,
            "speedup_interval": [self.speedup.low, self.speedup.high],
            "put_back": list(self.put_back),
        }

    def __str__(self) -> str:
        back = f"; put back to float: {', '.join(self.put_back)}" if self.put_back else ""
        interval = f"{self.speedup.median:.2f} x [{self.speedup.low:.2f}, {self.speedup.high:.2f}]"
        return f"{self.int8_ms:.2f} ms, {interval} as fast as float's {self.float_ms:.2f} ms{back}"


class Trials:
    """Writes files with other layers left float, and tries them against the float model."""

    def __init__(self, writer: Int8Writer, manifest: Manifest | None, model: Path, samples: Iterable[Array]) -> None:
        """Run the float model on the first 32 of `samples`."""
        self._writer, self._manifest, self._model = writer, manifest, model
        self._samples = list(itertools.islice(samples, TRIAL_SAMPLES))
        self.layers = tuple(Layer(name, block_of(name), writer.macs[name]) for name in writer.layers)
        with open_runner(model, writer.backend, "cpu") as runner:
            self._output = runner.outputs[0].name
            self._wanted = [run_batched(runner, sample)[self._output] for sample in self._samples]

    @property
    def count(self) -> int:
        """How many samples SQNR is measured on."""
        return len(self._samples)

    def noise(self, float_layers: Collection[str]) -> float:
        """Return the noise power of the outputs when `float_layers` stay float, relative to that of the signal."""
        return float(10 ** (-self.sqnr_db(float_layers) / 10))

    def sqnr_db(self, float_layers: Collection[str]) -> float:
        """Return the SQNR of the outputs in dB; minus infinity if any is NaN or infinite."""
        meter = ParityMeter()
        with tempfile.TemporaryDirectory() as folder:
            path = self._written(Path(folder), float_layers)
            with open_runner(path, self._writer.backend, "cpu") as runner:
                for sample, wanted in zip(self._samples, self._wanted, strict=True):
                    meter.update(wanted, run_batched(runner, sample)[self._output])
        parity = meter.result()
        return -float("inf") if parity.nonfinite else parity.sqnr_db

    def top1(self, float_layers: Collection[str], data: Path) -> float:
        """Return the top-1 accuracy on the class folders in `data`, as a fraction."""
        with tempfile.TemporaryDirectory() as folder:
            return evaluate(self._written(Path(folder), float_layers), data).top1

    def race(self, candidates: Mapping[str, Collection[str]], rounds: int) -> RoundResults:
        """Time the float model, under the name `float`, against files that leave the layers of `candidates` float."""
        fixed = Artifact.open(self._model).manifest
        batch = (fixed.batch if fixed is not None else None) or 1
        backend = self._writer.backend
        with tempfile.TemporaryDirectory() as folder:
            paths = {"float": self._model}
            for name, float_layers in candidates.items():
                paths[name] = self._written(Path(folder), float_layers, f"{len(paths)}.onnx")
            timed = {name: Candidate(path, backend, batch, "cpu") for name, path in paths.items()}
            return compare_speed(timed, rounds=rounds, seconds_per_round=_SECONDS_PER_ROUND)

    def _written(self, folder: Path, float_layers: Collection[str], name: str = "trial.onnx") -> Path:
        path = folder / name
        write_file(path, self._writer.write(self._manifest, float_layers).data)
        return path


def layers_for_accuracy(trials: Trials, options: QuantizeOptions, calibration: Path, model: Path) -> MixedPrecision:
    """Return the cheapest layers to leave float for `max_drop` or `min_sqnr`.

    Raises:
        GateError: if not even a float file is good enough.
        UsageError: if `max_drop` is asked for and `calibration` is no folder.
        DataError: if it is no tree of class folders.
    """
    if options.max_drop is not None:
        if not calibration.is_dir():
            why = "holds no labels, which --max-drop needs"
            raise UsageError(calibration, why, "calibrate on a folder with one folder a class, or use --min-sqnr")
        least = evaluate(model, calibration).top1 - options.max_drop / 100
        found = find_float_layers(trials.layers, trials.noise, lambda names: trials.top1(names, calibration) >= least)
    else:
        wanted = options.min_sqnr or 0.0
        found = find_float_layers(trials.layers, trials.noise, lambda names: trials.sqnr_db(names) >= wanted)
    if not found.satisfied:
        raise GateError(model, "misses --max-drop or --min-sqnr even with every layer float", "ask for less")
    return found


def layers_for_speed(trials: Trials, float_layers: Names) -> tuple[Names, Speed]:
    """Put back every block that runs faster in float, and everything if INT8 gains nothing; say what was measured."""
    groups = blocks_of([layer for layer in trials.layers if layer.name not in float_layers])
    sets = {name: float_layers | {layer.name for layer in layers} for name, layers in groups.items()}
    first = trials.race({"int8": float_layers, **sets}, _ROUNDS)
    slow = tuple(name for name in sets if first.speedup(name, over="int8").low > 1)
    chosen = float_layers.union(*(sets[name] for name in slow))
    last = trials.race({"int8": chosen}, _CERTAIN_ROUNDS)
    gain = last.speedup("int8", over="float")
    if gain.median <= 1:
        slow, chosen = tuple(groups), Names(layer.name for layer in trials.layers)
    return chosen, Speed(last.latency_ms("float"), last.latency_ms("int8"), gain, slow)


def block_of(name: str) -> str:
    """Return the block that a convolution called `name` belongs to: its path without the parts inside the block.

    >>> block_of("features.denseblock1.denselayer2.conv1"), block_of("/features/conv0/Conv")
    ('features.denseblock1', 'features.conv0')
    """
    parts = [part for part in re.split(r"[./]", name) if part]
    return ".".join(parts[:2])
