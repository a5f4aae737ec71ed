"""Which layers are worth INT8: by what they cost in accuracy, and by what they gain in time on this machine."""

from __future__ import annotations

import functools
import itertools
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from densenet_deploy.artifacts import write_file
from densenet_deploy.bench.candidate import Candidate
from densenet_deploy.bench.rounds import Interval, Left, RoundResults, compare_speed
from densenet_deploy.errors import GateError
from densenet_deploy.model import Model
from densenet_deploy.parity.compare import compare_outputs, worst
from densenet_deploy.quantization.mixed_precision import Layer, MixedPrecision, Names, blocks_of, find_float_layers
from densenet_deploy.runtime.batching import run_each, shared_cpus
from densenet_deploy.runtime.feeds import Array, Feeds
from densenet_deploy.runtime.meaning import class_outputs
from densenet_deploy.runtime.runner import REFERENCE_BACKEND, Runner, RunnerOptions
from densenet_deploy.workflows.compression import accuracy_of, judgement, require_labelled_folder, worst_sqnr_db
from densenet_deploy.workflows.evaluate import evaluate
from densenet_deploy.workflows.evaluation.report import EvaluateReport
from densenet_deploy.workflows.evaluation.tasks import judged_by
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.preparation import Int8Preparation

if TYPE_CHECKING:
    from densenet_deploy.quantization.int8_writer import Int8File

TRIAL_SAMPLES: Final = 32
FIRST_SAMPLES: Final = 8
_CLEARLY_AHEAD_DB: Final = 3.0
_BEHIND_DB: Final = 0.5
_GROUPS: Final = 8
_SECONDS_PER_ROUND: Final = 0.05
_FEWEST_ROUNDS: Final = 6  # the interval of fewer reaches from the smallest ratio to the largest
_MOST_ROUNDS: Final = 40
_TIE: Final = 0.02


@dataclass(frozen=True)
class Speed:
    """Medians of single calls in milliseconds, and how many times as fast INT8 is; batch 1 unless the file's is fixed.

    Attributes:
        speedup, speedup_interval: the median of the rounds' ratios and its 95 % interval.
        put_back: the blocks that were faster in float.
        verdict: what the interval shows: INT8 is `faster` or `slower`, it is a `tie`, or the time was too short and the
            race is `undecided`.
        untimed: the blocks that were not timed alone, since the time was too short.
    """

    float_ms: float
    int8_ms: float
    speedup: float
    speedup_interval: tuple[float, float]
    put_back: tuple[str, ...] = ()
    verdict: str = "faster"
    untimed: tuple[str, ...] = ()

    def __str__(self) -> str:
        low, high = self.speedup_interval
        interval = f"{self.speedup:.2f} x [{low:.2f}, {high:.2f}]"
        parts = [f"{self.int8_ms:.2f} ms, {interval} as fast as float's {self.float_ms:.2f} ms"]
        parts += [f"put back to float: {', '.join(self.put_back)}"] if self.put_back else []
        parts += {"tie": ["a tie"], "undecided": ["undecided: give --speed-seconds more"]}.get(self.verdict, [])
        parts += [f"not timed alone: {', '.join(self.untimed)}"] if self.untimed else []
        return "; ".join(parts)


class Trials:
    """Writes INT8 forms that leave other layers float, and measures them against the float model."""

    def __init__(self, ready: Int8Preparation, model: Model) -> None:
        """Nothing is run before it is asked for; `baseline_db` may be asked for in a thread beside the rest."""
        self._writer, self._model, self._ready = ready.writer, model, ready
        self.layers = tuple(Layer(name, stage_of(name), ready.writer.macs[name]) for name in ready.writer.layers)
        self._last: _Form | None = None

    @functools.cached_property
    def _expected(self) -> list[Feeds]:
        return list(self._ready.floats.first(TRIAL_SAMPLES))

    @property
    def runs_here(self) -> bool:
        """Whether the backend that the recipe writes for is installed and runs its files."""
        return self._writer.backend is not None

    @property
    def count(self) -> int:
        """How many samples SQNR is measured on, at most."""
        return len(self._expected)

    @property
    def class_outputs(self) -> frozenset[str]:
        """The outputs whose largest value names a class, of the form that was run last."""
        return frozenset() if self._last is None else class_outputs(self._last.runner)

    def noise(self, float_layers: Collection[str]) -> float:
        """Return the noise power of the outputs when `float_layers` stay float, relative to that of the signal."""
        return float(10 ** (-self.sqnr_db(float_layers) / 10))

    def sqnr_db(self, float_layers: Collection[str], count: int = TRIAL_SAMPLES) -> float:
        """Return the SQNR of the worst output in dB on the first `count` samples; minus infinity for NaN or Inf."""
        expected = self._expected[:count]
        return worst_sqnr_db(compare_outputs(expected, self.outputs(float_layers, len(expected))))

    def outputs(self, float_layers: Collection[str], count: int) -> Iterator[Feeds]:
        """Yield what the form that leaves these layers float gives for the first `count` samples.

        The last form stays open and its outputs are kept, so that asking for more of them runs the rest.
        """
        names = Names(float_layers)
        if self._last is None or self._last.float_layers != names:
            self.close()
            calls, threads = shared_cpus(self._writer.backend or REFERENCE_BACKEND)
            options = RunnerOptions(threads=threads, calls=calls)
            runner = self._written(names).runner(self._writer.backend, "cpu", options)
            self._last = _Form(names, runner, self._ready.data, calls)
        return self._last.first(count)

    def replace(self, float_layers: Collection[str], file: Int8File) -> None:
        """Let `file` take the place of the form that leaves these layers float."""
        self._writer.keep(float_layers, file)
        self.close()

    def close(self) -> None:
        """Close the form that was run last."""
        if self._last is not None:
            self._last.close()
            self._last = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def evaluated(self, float_layers: Collection[str], data: Any) -> EvaluateReport:
        """Evaluate the form that leaves these layers float."""
        return evaluate(self._written(float_layers), data)

    def baseline_db(self, count: int = TRIAL_SAMPLES) -> float:
        """Return the SQNR of the worst output in dB of the INT8 form of general tools; see `Int8Writer.baseline`."""
        expected, (calls, threads) = self._expected[:count], shared_cpus(REFERENCE_BACKEND)
        samples = itertools.islice(self._ready.data, count)
        with self._baseline.runner(REFERENCE_BACKEND, "cpu", RunnerOptions(threads=threads)) as runner:
            found = (outputs for _, outputs in run_each(runner, samples, calls))
            return float(worst(compare_outputs(expected, found))[1].sqnr_db)

    @functools.cached_property
    def _baseline(self) -> Model:
        return Model.from_bytes("baseline", self._writer.baseline())

    def float_evaluated(self, data: Any) -> EvaluateReport:
        """Evaluate the float model."""
        return evaluate(self._model, data)

    def require_accuracy(self, option: str) -> None:
        """Check that models of this task have an accuracy; errors as `judged_by`."""
        with self._model.runner(self._writer.backend, "cpu") as runner:
            judged_by(runner, self._model.name, option)

    def compare_speed(self, choices: Mapping[str, Collection[str] | None], left: Left) -> RoundResults:
        """Time files that leave the layers of `choices` float; None is the float model. `left`: see `bench.rounds`."""
        with tempfile.TemporaryDirectory() as folder:
            return compare_speed(
                self._candidates(choices, Path(folder)),
                rounds=_MOST_ROUNDS,
                seconds_per_round=_SECONDS_PER_ROUND,
                left=left,
            )

    def _candidates(
        self, choices: Mapping[str, Collection[str] | None], folder: Path
    ) -> Iterator[tuple[str, Candidate]]:
        """Yield what is timed, by name: `int8` is the very file that may be shipped, others only run like it."""
        for place, (name, layers) in enumerate(choices.items()):
            path = self._model.path if layers is None else None
            if path is None:
                path = folder / f"{place}.onnx"
                write_file(path, self._bytes_of(name, layers))
            yield name, Candidate(path, self._writer.backend, self._batch, "cpu")

    def _bytes_of(self, name: str, layers: Collection[str] | None) -> bytes:
        if layers is None:
            return self._model.to_bytes()
        return (self._writer.write(layers) if name == "int8" else self._writer.timed(layers)).data

    @functools.cached_property
    def _batch(self) -> int:
        """Images of a call: as many as the float graph takes, one if it takes any number."""
        graph = self._writer.float_graph.graph
        stored = {tensor.name for tensor in graph.initializer}
        image = next(value for value in graph.input if value.name not in stored)
        return image.type.tensor_type.shape.dim[0].dim_value or 1

    def _written(self, float_layers: Collection[str]) -> Model:
        return Model.from_bytes("trial", self._writer.write(float_layers).data)


class _Form:
    """An INT8 form that is open, and its outputs for the first samples."""

    def __init__(self, float_layers: Names, runner: Runner, data: Iterable[Array], calls: int) -> None:
        self.float_layers = float_layers
        self.runner, self._data, self._calls, self._found = runner, data, calls, list[Feeds]()

    def first(self, count: int) -> Iterator[Feeds]:
        yield from self._found[:count]
        known = len(self._found)
        rest = itertools.islice(self._data, known, max(known, count))
        for _, outputs in run_each(self.runner, rest, self._calls):
            if len(self._found) < TRIAL_SAMPLES:
                self._found.append(outputs)
            yield outputs

    def close(self) -> None:
        self.runner.close()


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
        require_labelled_folder(calibration)
        trials.require_accuracy("--max-drop")
        report = trials.float_evaluated(calibration)
        least, notes = accuracy_of(report) - options.max_drop / 100, judgement(report)

        def is_enough(names: Names) -> bool:
            return accuracy_of(trials.evaluated(names, calibration)) >= least

        found = find_float_layers(trials.layers, trials.noise, is_enough)
    else:
        least = options.min_sqnr or 0.0
        found = find_float_layers(trials.layers, trials.noise, lambda names: trials.sqnr_db(names) >= least)
    if not found.satisfied:
        raise GateError("INT8", "misses --max-drop or --min-sqnr even with every layer float", "ask for less")
    return found, notes


def demanded(trials: Trials, float_layers: Names, options: QuantizeOptions, calibration: Any, count: int) -> float:
    """Return what `max_drop` or `min_sqnr` is about, of the form that leaves these layers float; 0 without them.

    More than `min_sqnr`, on the first `count` samples, counts as just that.
    """
    if options.max_drop is not None:
        return accuracy_of(trials.evaluated(float_layers, calibration))
    return 0.0 if options.min_sqnr is None else min(options.min_sqnr, trials.sqnr_db(float_layers, count))


def layers_behind_baseline(trials: Trials, float_layers: Names) -> tuple[Names, str | None]:
    """Return `float_layers` and what has to stay float too, so that INT8 is not behind that of general tools.

    Where it is clearly ahead on the first eight samples, more are not run.

    Layers are tried in groups that follow each other, for a bounded number of trials: where INT8 is behind, it is so
    for a kind of layer that no recipe knows, and for a network that is no DenseNet from end to end.

    Returns:
        The layers, and a sentence with the reason; None where INT8 is good enough as it is.
    """
    few = min(FIRST_SAMPLES, trials.count)
    with ThreadPoolExecutor(1) as beside:  # loading either keeps one core busy
        baseline = beside.submit(trials.baseline_db, few)
        ours = trials.sqnr_db(float_layers, few)
    if ours >= baseline.result() + _CLEARLY_AHEAD_DB:
        return float_layers, None
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
        groups, lambda firsts: trials.noise(named(firsts)), lambda firsts: trials.sqnr_db(named(firsts)) >= least
    )
    chosen = named(Names(found.float_layers))
    kept = ", ".join(layer.name for layer in layers if layer.name in chosen)
    plain = f"the plain Q/DQ form of general tools keeps {least + _BEHIND_DB:.1f} dB on the same images"
    return chosen, f"accuracy: with all layers in INT8 {whole:.1f} dB are left, {plain}: these stay float: {kept}"


def verdict(gain: Interval) -> str:
    """Say what a ratio of speeds shows: `faster`, `slower`, a `tie` (within 2 %), or `undecided`.

    >>> verdict(Interval(1.2, 1.1, 1.3)), verdict(Interval(1.0, 0.99, 1.01)), verdict(Interval(1.2, 0.9, 1.4))
    ('faster', 'tie', 'undecided')
    """
    if gain.low >= 1 - _TIE and gain.high <= 1 + _TIE:
        return "tie"
    return "faster" if gain.low > 1 else "slower" if gain.high < 1 else "undecided"


def layers_for_speed(
    trials: Trials, float_layers: Names, seconds: float, now: Callable[[], float] = time.monotonic
) -> tuple[Names, Speed]:
    """Put back every block that is certainly faster in float, or all if INT8 gains nothing; return what was measured.

    INT8 is timed against float until the ratio is decided. What is left of `seconds` goes to forms that leave one block
    float, as many as the time of the first suggests, in execution order; each is timed until it is clear whether it is
    faster than INT8. Where a block went back, the result is timed once more.
    """
    began, end = now(), now() + seconds

    def until_decided(found: RoundResults) -> tuple[str, ...]:
        return () if now() >= end or _shown(found, "int8", "float") != "undecided" else ("float", "int8")

    def until_not_faster(found: RoundResults) -> tuple[str, ...]:
        left = (
            [] if now() >= end else [name for name in found.timings if name != "int8" and _may_be_faster(found, name)]
        )
        return ("int8", *left) if left else ()

    first = trials.compare_speed({"float": None, "int8": float_layers}, until_decided)
    chosen, slow, untimed = float_layers, tuple[str, ...](), tuple[str, ...]()
    groups = blocks_of([layer for layer in trials.layers if layer.name not in float_layers])
    if _gains_nothing(first):
        slow = tuple(groups)
    else:
        per_form = (now() - began) / 2
        affordable = int((end - now()) / per_form) - 2 if per_form else len(groups)  # INT8, and the last comparison
        timed = {name: groups[name] for name in list(groups)[: max(0, affordable)]}
        untimed = tuple(name for name in groups if name not in timed)
        slow = _faster_in_float(trials, float_layers, timed, until_not_faster)
        chosen = float_layers.union(layer.name for name in slow for layer in groups[name])
    if slow and chosen != float_layers:
        first = trials.compare_speed({"float": None, "int8": chosen}, until_decided)
        slow = tuple(groups) if _gains_nothing(first) else slow
    if len(slow) == len(groups):
        chosen = Names(layer.name for layer in trials.layers)
    gain = first.speedup("int8", over="float")
    times = first.latency_ms("float"), first.latency_ms("int8")
    return chosen, Speed(*times, gain.median, (gain.low, gain.high), slow, _shown(first, "int8", "float"), untimed)


def _faster_in_float(
    trials: Trials, float_layers: Names, blocks: Mapping[str, Sequence[Layer]], left: Left
) -> tuple[str, ...]:
    """Return the names of the `blocks` that are certainly faster in float than in INT8."""
    if not blocks:
        return ()
    forms = {name: float_layers.union(layer.name for layer in layers) for name, layers in blocks.items()}
    found = trials.compare_speed({"int8": float_layers, **forms}, left)
    return tuple(name for name in forms if _shown(found, name, "int8") == "faster")


def _may_be_faster(found: RoundResults, name: str) -> bool:
    """Whether it is open if the form `name` is faster than INT8: not so if it gains 2 % at most."""
    is_open = _shown(found, name, "int8") == "undecided"
    is_known = len(found.timings[name]) >= _FEWEST_ROUNDS
    return is_open and not (is_known and found.speedup(name, over="int8").high <= 1 + _TIE)


def _gains_nothing(found: RoundResults) -> bool:
    """Whether INT8 is certainly no faster than float."""
    shown = _shown(found, "int8", "float")
    return shown == "slower" or (shown == "tie" and found.speedup("int8", over="float").median <= 1)


def _shown(found: RoundResults, name: str, over: str) -> str:
    """The verdict on `name` over another; fewer than six rounds decide nothing."""
    return "undecided" if len(found.timings[name]) < _FEWEST_ROUNDS else verdict(found.speedup(name, over=over))


def stage_of(name: str) -> str:
    """Return the stem, block, transition or head that a convolution called `name` belongs to.

    >>> stage_of("features.denseblock1.denselayer2.conv1"), stage_of("/features/conv0/Conv")
    ('features.denseblock1', 'features.conv0')
    """
    parts = [part for part in re.split(r"[./]", name) if part]
    return ".".join(parts[:2])
