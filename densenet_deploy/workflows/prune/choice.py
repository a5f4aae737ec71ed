"""How wide the layers stay: by a ratio, or as narrow as a limit allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from densenet_deploy.errors import GateError, UsageError
from densenet_deploy.model import Model
from densenet_deploy.pruning.widths import Curve, Schedule, least_width, schedule, uniform_widths
from densenet_deploy.runtime.runner import REFERENCE_BACKEND
from densenet_deploy.workflows.compare import measured_parity
from densenet_deploy.workflows.compression import Finetuning, accuracy_of, judgement, worst_sqnr_db
from densenet_deploy.workflows.evaluate import evaluate
from densenet_deploy.workflows.evaluation.tasks import judged_by
from densenet_deploy.workflows.prune.options import PruneOptions
from densenet_deploy.workflows.prune.preparation import Preparation, fixed_batch_of, judging_folder
from densenet_deploy.workflows.stages import Stages

if TYPE_CHECKING:
    from densenet_deploy.pruning.reconstruction import PrunedGraph

MOST_TRIALS: Final = 6
_BY_PREDICTION: Final = 3
_RESOLUTION: Final = 50
_GAIN_IMAGES: Final = 8


@dataclass(frozen=True)
class JudgedAccuracy:
    """Top-1, or the mean AUROC, of the original and of the result on `images` that did not choose the channels."""

    before: float
    after: float
    images: int

    def __str__(self) -> str:
        return f"{self.before:.2%} -> {self.after:.2%} on {self.images} images held out"


@dataclass(frozen=True, eq=False)
class Choice:
    """The pruned graph, and how it was found."""

    pruned: PrunedGraph
    trials: int = 1
    accuracy: JudgedAccuracy | None = None
    notes: tuple[str, ...] = ()
    finetuning: Finetuning | None = None


def choose(ready: Preparation, options: PruneOptions, stages: Stages) -> Choice:
    """Return the pruned graph that `options` ask for.

    Raises:
        GateError: if no channel can be removed within a limit.
        UsageError: if `max_drop` is asked of a model whose task has no accuracy, or widths per layer cannot remove as
            much as `ratio` says.
    """
    size = f"{len(ready.widths)} layers on {ready.reconstruction.count} images"
    if options.ratio is not None and options.is_per_layer:
        _require_reachable(ready, options.ratio)
    if not options.is_per_layer:
        assert options.ratio is not None
        with stages("prune", size) as step:
            return Choice(ready.reconstruction.pruned(uniform_widths(ready.widths, options.ratio), step))
    with stages("choose widths", size) as step:
        plan = _plan(ready, step)
    if options.ratio is not None:
        with stages("prune", size) as step:
            return Choice(ready.reconstruction.pruned(_of_same_cost(ready, plan, options.ratio), step))
    with stages("prune", f"up to {MOST_TRIALS} networks of {size}") as step:
        if options.min_sqnr is not None:
            return _within_sqnr(ready, plan, options.min_sqnr, step)
        assert options.max_drop is not None
        return _within_drop(ready, plan, options.max_drop, step)


def _plan(ready: Preparation, step: Callable[[int, int | None], None]) -> Schedule:
    """Order the steps by what each costs at the outputs and saves in multiply-accumulates."""
    import numpy as np

    from densenet_deploy.pruning.elimination import eliminate
    from densenet_deploy.pruning.noise import noise_gains

    made = {bottleneck.name: str(bottleneck.reading.outputs[0].name) for bottleneck in ready.found.found}
    few = fixed_batch_of(ready.model) or _GAIN_IMAGES
    gains = noise_gains(ready.proto, list(made.values()), np.concatenate(ready.images.choosing[:few]))
    curves = []
    for number, (name, problem) in enumerate(ready.reconstruction.problems(), start=1):
        found = eliminate(problem, least_width(ready.widths[name]))
        unit = gains[made[name]] / problem.signal if problem.signal else 0.0
        noise = tuple(max(objective, 0.0) * unit for objective in found.objectives)
        curves.append(Curve(name, ready.widths[name], ready.macs_per_channel[name], noise))
        step(number, len(ready.widths))
    return schedule(curves)


def _of_same_cost(ready: Preparation, plan: Schedule, ratio: float) -> dict[str, int]:
    """Return the widths after the fewest steps that save as much as a uniform ratio does."""
    most = ready.macs_of(uniform_widths(ready.widths, ratio))
    return next(widths for count in range(len(plan.steps) + 1) if ready.macs_of(widths := plan.at(count)) <= most)


def _require_reachable(ready: Preparation, ratio: float) -> None:
    """Check that the narrowest widths of a schedule remove as much as a uniform ratio does."""
    least = ready.macs_of({name: least_width(width) for name, width in ready.widths.items()})
    if least > ready.macs_of(uniform_widths(ready.widths, ratio)):
        most = 1 - least / ready.macs_of(ready.widths)
        why = f"is more than widths per layer can remove: {most:.0%} of the multiply-accumulates at most"
        raise UsageError(f"ratio={ratio:g}", why, "give less, or go without --widths per-layer")


class _Trials:
    """Prunes and measures networks of a plan; `best` is the last one that kept the limit `least`."""

    def __init__(
        self,
        ready: Preparation,
        plan: Schedule,
        least: float,
        value_of: Callable[[Model], float],
        step: Callable[[int, int | None], None],
    ) -> None:
        self._ready, self._plan, self._least, self._value_of, self._step = ready, plan, least, value_of, step
        self.best: PrunedGraph | None = None
        self.values: dict[int, float] = {}

    def measured(self, count: int) -> float:
        pruned = self._ready.reconstruction.pruned(self._plan.at(count))
        value = self._value_of(Model.from_onnx("trial", pruned.proto, self._ready.model.manifest))
        self.values[count] = value
        if value >= self._least:
            self.best = pruned
        self._step(len(self.values), None)
        return value

    def smallest(self, limit: str, figure: Callable[[float], str], *, predicts: bool) -> tuple[PrunedGraph, float]:
        """Return the smallest network found within the limit, and its value.

        Raises:
            GateError: if there is none.
        """
        count = most_steps(self._plan, self.measured, self._least, predicts=predicts)
        if self.best is None:
            name, width = self._plan.steps[0]
            why = f"misses {limit} when the cheapest step is taken: {figure(self.values[1])} with {name} at {width}"
            raise GateError(self._ready.model.name, why, "keep the model as it is, or ask for less")
        return self.best, self.values[count]


def _within_sqnr(ready: Preparation, plan: Schedule, least: float, step: Callable[[int, int | None], None]) -> Choice:

    def sqnr_db(trial: Model) -> float:
        return worst_sqnr_db(measured_parity(ready.model, trial, ready.images.judging))

    trials = _Trials(ready, plan, least, sqnr_db, step)
    best, _ = trials.smallest(f"--min-sqnr {least:g}", lambda value: f"{value:.1f} dB", predicts=True)
    return Choice(best, len(trials.values))


def _within_drop(ready: Preparation, plan: Schedule, drop: float, step: Callable[[int, int | None], None]) -> Choice:
    with ready.model.runner(REFERENCE_BACKEND, "cpu") as runner:
        judged_by(runner, ready.model.name, "--max-drop")
    with judging_folder(Path(str(ready.data.origin)), ready.data, ready.reconstruction.count) as judging:
        original = evaluate(ready.model, judging)
        before = accuracy_of(original)
        trials = _Trials(ready, plan, before - drop / 100, lambda trial: accuracy_of(evaluate(trial, judging)), step)
        best, after = trials.smallest(f"--max-drop {drop:g}", lambda value: f"{value:.2%}", predicts=False)
    coarse = (
        (f"one of the {original.count} images held out is {100 / original.count:.1f} points: give more of them",)
        if 100 / original.count > drop
        else ()
    )
    accuracy = JudgedAccuracy(before, after, original.count)
    return Choice(best, len(trials.values), accuracy, (*judgement(original), *coarse))


def held_out_accuracy(ready: Preparation, pruned: PrunedGraph) -> float:
    """Return what `max_drop` judges, of another graph: on all images of the folder that did not choose."""
    with judging_folder(Path(str(ready.data.origin)), ready.data, ready.reconstruction.count) as judging:
        return accuracy_of(evaluate(Model.from_onnx("trial", pruned.proto, ready.model.manifest), judging))


def most_steps(plan: Schedule, measure: Callable[[int], float], least: float, *, predicts: bool) -> int:
    """Return the largest number of steps that was found to keep a measure of `least`; 0 if not even the first does.

    Networks after more steps are smaller and, but for noise, worse. The first trials are at the steps where the
    predicted SQNR, moved by what the last trial measured, meets the limit; the others halve what is undecided, until
    that is a fiftieth of all steps or six trials were made. Before 0 is returned, the first step was tried.

    Args:
        plan: the networks.
        measure: of the network after a number of steps; larger is better.
        least: the limit.
        predicts: whether the measure is an SQNR in dB, which the plan predicts.
    """
    low, high, offset = 0, len(plan.steps) + 1, 0.0  # `low` keeps the limit, `high` does not, or does not exist
    tolerance, trials = max(1, len(plan.steps) // _RESOLUTION), 0
    while high - low > 1 and (low == 0 or (trials < MOST_TRIALS and high - low > tolerance)):
        count = (low + high) // 2
        if predicts and trials < _BY_PREDICTION:
            fitting = (n for n in range(high - 1, low, -1) if plan.predicted_db(n) + offset >= least)
            count = next(fitting, low + 1)
        value = measure(count)
        trials += 1
        low, high = (count, high) if value >= least else (low, count)
        if predicts and plan.predicted_db(count) < float("inf"):
            offset = value - plan.predicted_db(count)
    return low
