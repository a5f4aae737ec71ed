"""Which layers are worth INT8: by what they cost in accuracy, and by what they gain in time on this machine."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from densenet_deploy.artifacts import write_file
from densenet_deploy.bench.candidate import Candidate
from densenet_deploy.bench.rounds import RoundResults, compare_speed
from densenet_deploy.errors import DataError, GateError, UsageError
from densenet_deploy.model import Model
from densenet_deploy.parity.compare import compare_outputs, outputs_of, worst
from densenet_deploy.quantization.mixed_precision import Layer, MixedPrecision, Names, blocks_of, find_float_layers
from densenet_deploy.runtime.batching import fixed_batch
from densenet_deploy.runtime.runner import REFERENCE_BACKEND
from densenet_deploy.workflows.evaluate import evaluate
from densenet_deploy.workflows.evaluation.report import EvaluateReport
from densenet_deploy.workflows.evaluation.tasks import judged_by
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.preparation import Int8Preparation

TRIAL_SAMPLES: Final = 32
_BEHIND_DB: Final = 0.5
_GROUPS: Final = 8
_SECONDS_PER_ROUND: Final = 0.05
_ROUNDS: Final = 5
_CERTAIN_ROUNDS: Final = 11


@dataclass(frozen=True)
class Speed:
    """Medians of single calls in milliseconds, and how many times as fast INT8 is; batch 1 unless the file's is fixed.

    Attributes:
        speedup, speedup_interval: the median of the rounds' ratios and its 95 % interval.
        put_back: the blocks that were faster in float.
    """

    float_ms: float
    int8_ms: float
    speedup: float
    speedup_interval: tuple[float, float]
    put_back: tuple[str, ...] = ()

    def __str__(self) -> str:
        back = f"; put back to float: {', '.join(self.put_back)}" if self.put_back else ""
        low, high = self.speedup_interval
        interval = f"{self.speedup:.2f} x [{low:.2f}, {high:.2f}]"
        return f"{self.int8_ms:.2f} ms, {interval} as fast as float's {self.float_ms:.2f} ms{back}"


class Trials:
    """Writes INT8 forms that leave other layers float, and measures them against the float model."""

    def __init__(self, ready: Int8Preparation, model: Model) -> None:
        """Run the float model on the first 32 calibration samples."""
        self._writer, self._model = ready.writer, model
        self._samples = list(itertools.islice(ready.data, TRIAL_SAMPLES))
        self.layers = tuple(Layer(name, stage_of(name), ready.writer.macs[name]) for name in ready.writer.layers)
        with model.runner(ready.writer.backend, "cpu") as runner:
            self._expected = list(outputs_of(runner, self._samples))
            self._batch = fixed_batch(runner) or 1

    @property
    def count(self) -> int:
        """How many samples SQNR is measured on."""
        return len(self._samples)

    def noise(self, float_layers: Collection[str]) -> float:
        """Return the noise power of the outputs when `float_layers` stay float, relative to that of the signal."""
        return float(10 ** (-self.sqnr_db(float_layers) / 10))

    def sqnr_db(self, float_layers: Collection[str]) -> float:
        """Return the SQNR of the worst output in dB; minus infinity if a value is NaN or infinite."""
        with self._written(float_layers).runner(self._writer.backend, "cpu") as runner:
            parity = worst(compare_outputs(self._expected, outputs_of(runner, self._samples)))[1]
        return -float("inf") if parity.nonfinite else parity.sqnr_db

    def evaluated(self, float_layers: Collection[str], data: Any) -> EvaluateReport:
        """Evaluate the form that leaves these layers float."""
        return evaluate(self._written(float_layers), data)

    def baseline_db(self) -> float:
        """Return the SQNR of the worst output in dB of the INT8 form of general tools; see `Int8Writer.baseline`."""
        with Model.from_bytes("baseline", self._writer.baseline()).runner(REFERENCE_BACKEND, "cpu") as runner:
            return float(worst(compare_outputs(self._expected, outputs_of(runner, self._samples)))[1].sqnr_db)

    def float_evaluated(self, data: Any) -> EvaluateReport:
        """Evaluate the float model."""
        return evaluate(self._model, data)

    def require_accuracy(self, option: str) -> None:
        """Check that models of this task have an accuracy; errors as `judged_by`."""
        with self._model.runner(self._writer.backend, "cpu") as runner:
            judged_by(runner, self._model.name, option)

    def compare_speed(self, choices: Mapping[str, Collection[str]], rounds: int) -> RoundResults:
        """Time the float model, under the name `float`, against files that leave the layers of `choices` float."""
        models = {"float": self._model} | {name: self._written(layers) for name, layers in choices.items()}
        with _files(models) as paths:
            candidates = {
                name: Candidate(path, self._writer.backend, self._batch, "cpu") for name, path in paths.items()
            }
            return compare_speed(candidates, rounds=rounds, seconds_per_round=_SECONDS_PER_ROUND)

    def _written(self, float_layers: Collection[str]) -> Model:
        return Model.from_bytes("trial", self._writer.write(float_layers).data)


@contextlib.contextmanager
def _files(models: Mapping[str, Model]) -> Iterator[dict[str, Path]]:
    """Give each model a file for the block: one in memory gets a temporary one."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            name: model.path or Path(folder) / f"{place}.onnx" for place, (name, model) in enumerate(models.items())
        }
        for name, model in models.items():
            if model.path is None:
                write_file(paths[name], model.to_bytes())
        yield paths


def layers_for_accuracy(
    trials: Trials, options: QuantizeOptions, calibration: Any
) -> tuple[MixedPrecision, tuple[str, ...]]:
    """Return the cheapest layers to leave float for `max_drop` or `min_sqnr`, and notes on how they were judged.

    Raises:
        GateError: if not even a float file is good enough.
        UsageError: if `max_drop` is asked for and `calibration` is not a folder, or the task has no accuracy.
        DataError: if it does not hold class folders, or shows no accuracy.
    """
    notes: tuple[str, ...] = ()
    if options.max_drop is not None:
        if not isinstance(calibration, (str, os.PathLike)) or not Path(calibration).is_dir():
            why = "holds no labels, which --max-drop needs"
            raise UsageError(calibration, why, "calibrate on a folder with one subfolder per class, or use --min-sqnr")
        trials.require_accuracy("--max-drop")
        report = trials.float_evaluated(calibration)
        least, notes = _accuracy(report) - options.max_drop / 100, _judgement(report)

        def is_enough(names: Names) -> bool:
            return _accuracy(trials.evaluated(names, calibration)) >= least

        found = find_float_layers(trials.layers, trials.noise, is_enough)
    else:
        least = options.min_sqnr or 0.0
        found = find_float_layers(trials.layers, trials.noise, lambda names: trials.sqnr_db(names) >= least)
    if not found.satisfied:
        raise GateError("INT8", "misses --max-drop or --min-sqnr even with every layer float", "ask for less")
    return found, notes


def _accuracy(report: EvaluateReport) -> float:
    if report.accuracy is None:
        why = "no label has both positive and negative calibration images, which an AUROC needs"
        raise DataError("--max-drop", why, "calibrate on folders of at least two labels, or use --min-sqnr")
    return report.accuracy.value


def _judgement(report: EvaluateReport) -> tuple[str, ...]:
    """What `--max-drop` was taken to mean, where that is not top-1."""
    return () if report.task == "multiclass" else ("--max-drop: points of the mean AUROC", *report.notes)


def layers_behind_baseline(trials: Trials, float_layers: Names) -> tuple[Names, str | None]:
    """Return `float_layers` and what has to stay float too, so that INT8 is not behind that of general tools.

    Layers are tried in groups that follow each other, for a bounded number of trials: where INT8 is behind, it is so
    for a kind of layer that no recipe knows, and for a network that is no DenseNet from end to end.

    Returns:
        The layers, and a sentence with the reason; None where INT8 is good enough as it is.
    """
    least = trials.baseline_db() - _BEHIND_DB
    whole = trials.sqnr_db(float_layers)
    if whole >= least:
        return float_layers, None
    layers = [layer for layer in trials.layers if layer.name not in float_layers]
    size = -(-len(layers) // _GROUPS)
    parts = {first.name: layers[i : i + size] for i in range(0, len(layers), size) for first in layers[i : i + 1]}

    def named(firsts: Names) -> Names:
        return float_layers.union(layer.name for first in firsts for layer in parts[first])

    groups = [Layer(name, name, sum(layer.cost for layer in part)) for name, part in parts.items()]
    found = find_float_layers(
        groups,
        lambda firsts: trials.noise(named(firsts)),
        lambda firsts: trials.sqnr_db(named(firsts)) >= least,
    )
    chosen = named(Names(found.float_layers))
    kept = ", ".join(layer.name for layer in layers if layer.name in chosen)
    plain = f"the plain Q/DQ form of general tools keeps {least + _BEHIND_DB:.1f} dB on the same images"
    return chosen, f"accuracy: with all layers in INT8 {whole:.1f} dB are left, {plain}: these stay float: {kept}"


def layers_for_speed(trials: Trials, float_layers: Names) -> tuple[Names, Speed]:
    """Put back every block that runs faster in float, or all if INT8 gains nothing; return what was measured."""
    groups = blocks_of([layer for layer in trials.layers if layer.name not in float_layers])
    sets = {name: float_layers | {layer.name for layer in layers} for name, layers in groups.items()}
    first = trials.compare_speed({"int8": float_layers, **sets}, _ROUNDS)
    slow = tuple(name for name in sets if first.speedup(name, over="int8").low > 1)
    chosen = float_layers.union(*(sets[name] for name in slow))
    last = trials.compare_speed({"int8": chosen}, _CERTAIN_ROUNDS)
    gain = last.speedup("int8", over="float")
    if gain.median <= 1:
        slow, chosen = tuple(groups), Names(layer.name for layer in trials.layers)
    interval = (gain.low, gain.high)
    return chosen, Speed(last.latency_ms("float"), last.latency_ms("int8"), gain.median, interval, slow)


def stage_of(name: str) -> str:
    """Return the stem, block, transition or head that a convolution called `name` belongs to.

    >>> stage_of("features.denseblock1.denselayer2.conv1"), stage_of("/features/conv0/Conv")
    ('features.denseblock1', 'features.conv0')
    """
    parts = [part for part in re.split(r"[./]", name) if part]
    return ".".join(parts[:2])
