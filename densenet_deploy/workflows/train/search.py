"""Search: which numbers of an architecture are worth their cost, by short trainings of which the better ones go on.

Successive halving (Jamieson & Talwalkar 2016, https://arxiv.org/abs/1502.07943), with thirds for halves. In each rung
all candidates that are left are trained from scratch for equally many epochs, with the whole schedule; about a third
goes on to the next rung, of about three times as many epochs. Accuracy is weighed against cost, so what goes on is
chosen by Pareto fronts of top-1 and MACs, as in multi-objective halving (Schmucker et al. 2021,
https://arxiv.org/abs/2106.12639). The last candidates are exported and timed against each other.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from densenet_deploy.analysis.choice import ParetoPoint, pareto_front, undominated
from densenet_deploy.analysis.cost import model_cost
from densenet_deploy.artifacts import write_file
from densenet_deploy.errors import UsageError
from densenet_deploy.facts import Architecture
from densenet_deploy.model import Model
from densenet_deploy.options import require_range
from densenet_deploy.packages import is_installed
from densenet_deploy.records import to_plain, write_json
from densenet_deploy.training.options import TrainOptions
from densenet_deploy.variants import variant_with
from densenet_deploy.variants.spec import DenseNetSpec
from densenet_deploy.variants.sweep import Sweep
from densenet_deploy.workflows.load import LoadOptions
from densenet_deploy.workflows.stages import Stages
from densenet_deploy.workflows.train.folder import TrainingFolder
from densenet_deploy.workflows.train.report import Rung, SearchReport, SearchTrial, TrainReport

_REDUCTION: Final = 3
_FINALISTS: Final = 3
_MOST_CANDIDATES: Final = 81
_MOST_EPOCHS: Final = 10_000_000
_TIMING_ROUNDS: Final = 5


@dataclass(frozen=True)
class SearchOptions:
    """What to search, and at what cost.

    >>> SearchOptions(("growth-rate=12,24", "bn-size=2,4"), budget=60).budget
    60

    Attributes:
        sweeps: numbers of the architecture with their values, such as `growth-rate=12,24,32`; with several of them,
            every combination is a candidate.
        budget: epochs of all trainings together; None: whatever the last rung's `epochs` lead to.

    Raises:
        UnknownNameError: if an architecture has no such number.
        UsageError: if values are missing or too many, or a number is given twice.
    """

    sweeps: Sequence[str]
    budget: int | None = None

    def __post_init__(self) -> None:
        names = [sweep.name for sweep in self.parsed()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None or not names:
            why = "is given twice" if twice else "names no number"
            raise UsageError(f"search {twice or ''}".strip(), why, "give each once, such as --search growth-rate=12,24")
        if self.budget is not None:
            require_range("budget", self.budget, 1, _MOST_EPOCHS)

    def parsed(self) -> list[Sweep]:
        """Return the sweeps as values."""
        return [Sweep.parse(text, "search") for text in self.sweeps]


@dataclass(frozen=True)
class Candidate:
    """An architecture to try: its name, and what is stated to make it."""

    name: str
    variant: str | None
    architecture: Architecture
    spec: DenseNetSpec


def candidates_of(options: SearchOptions, stated: LoadOptions) -> list[Candidate]:
    """Return every combination of the values, each a change to the architecture that is `stated`.

    >>> [one.name for one in candidates_of(SearchOptions(["growth-rate=12,24"]), {"variant": "121"})]
    ['growth-rate=12', 'growth-rate=24']

    Raises:
        UsageError: if a combination makes no network, two make the same one, or there are too many.
    """
    architecture, sweeps = stated.get("architecture") or Architecture(), options.parsed()
    if math.prod(len(sweep.values) for sweep in sweeps) > _MOST_CANDIDATES:
        fix = "leave out some values"
        raise UsageError("search", f"makes more than {_MOST_CANDIDATES} candidates", fix)
    found: dict[DenseNetSpec, Candidate] = {}
    for values in itertools.product(*(sweep.values for sweep in sweeps)):
        chosen = dict(zip((sweep.name for sweep in sweeps), values, strict=True))
        name = ",".join(f"{number}={value}" for number, value in chosen.items())
        variant = chosen.get("variant", stated.get("variant"))
        spec = variant_with(variant, architecture.changes(), stated.get("channels")).spec
        changes: dict[str, Any] = {}
        for sweep in sweeps:
            if sweep.name != "variant":
                changes |= sweep.changes(spec, chosen[sweep.name])
        candidate = Candidate(
            name, variant, dataclasses.replace(architecture, **changes), dataclasses.replace(spec, **changes)
        )
        other = found.setdefault(candidate.spec, candidate)
        if other is not candidate:
            raise UsageError(f"search {name}", f"is the same network as {other.name}", "leave one of them out")
    return list(found.values())


def rungs_of(candidates: int, epochs: int, budget: int | None) -> tuple[Rung, ...]:
    """Return how many candidates are trained for how many epochs, rung after rung.

    >>> [(rung.candidates, rung.epochs) for rung in rungs_of(9, 9, None)]
    [(9, 3), (3, 9)]

    Args:
        candidates: at the beginning; each rung leaves a third of them, and the last one at most three.
        epochs: of the last rung, at most.
        budget: of epochs in all; the last rung has the most that it allows.

    Raises:
        UsageError: if the budget does not suffice for one epoch of each candidate.
    """
    counts = [candidates]
    while counts[-1] > _FINALISTS:
        counts.append(max(_FINALISTS, math.ceil(counts[-1] / _REDUCTION)))

    def rungs(last: int) -> tuple[Rung, ...]:
        most: dict[int, int] = {}
        for place, count in enumerate(counts):  # equally long trainings would only repeat each other
            most.setdefault(max(1, last // _REDUCTION ** (len(counts) - 1 - place)), count)
        return tuple(Rung(count, length) for length, count in most.items())

    if budget is None:
        return rungs(epochs)
    fitting = (last for last in range(epochs, 0, -1) if epochs_of(rungs(last)) <= budget)
    last = next(fitting, None)
    if last is None:
        why = f"does not suffice for one epoch of each of {candidates} candidates"
        raise UsageError(f"budget={budget}", why, f"give at least {candidates}, or fewer values to --search")
    return rungs(last)


def epochs_of(rungs: Sequence[Rung]) -> int:
    """Return the epochs of all trainings together."""
    return sum(rung.candidates * rung.epochs for rung in rungs)


def promoted(trials: Sequence[SearchTrial], count: int) -> list[SearchTrial]:
    """Return the `count` trials that go on, in their order.

    Whole fronts of top-1 and MACs pass, the best first. Of the front for which there is too little room the most
    accurate passes, then always the one farthest from those that passed, in top-1 and in the logarithm of MACs.
    """
    left, passing = list(trials), list[SearchTrial]()
    while len(passing) < count:
        front = [left[place] for place in undominated([(-one.top1, one.macs) for one in left])]
        left = [one for one in left if one not in front]
        passing += front if len(front) <= count - len(passing) else _spread(front, passing, count - len(passing))
    return [one for one in trials if one in passing]


def _spread(front: Sequence[SearchTrial], passed: Sequence[SearchTrial], count: int) -> list[SearchTrial]:
    spans = [max(values) - min(values) or 1.0 for values in zip(*map(_coordinates, front), strict=True)]

    def apart(one: SearchTrial, other: SearchTrial) -> float:
        pairs = zip(_coordinates(one), _coordinates(other), spans, strict=True)
        return math.hypot(*((a - b) / span for a, b, span in pairs))

    chosen = [max(front, key=lambda one: one.top1)]
    while len(chosen) < count:
        others = [one for one in front if one not in chosen]
        chosen.append(max(others, key=lambda one: min(apart(one, other) for other in (*passed, *chosen))))
    return chosen


def _coordinates(trial: SearchTrial) -> tuple[float, float]:
    return trial.top1, math.log(trial.macs)


@dataclass
class Search:
    """Trains the candidates rung by rung; `folder` gets a folder per candidate and the best network.

    Args:
        train: `train` with everything but the options, architecture and folder; it returns the best network.
        options: of training; its epochs are those of the last rung.
        folder: of the results; None keeps them in memory.
        stages: of the whole.
        force, resume: see `train`.
    """

    train: Any
    options: TrainOptions
    folder: Path | None
    stages: Stages
    force: bool
    resume: bool

    def run(self, search: SearchOptions, stated: LoadOptions) -> Model:
        """Return the most accurate network of the last rung, with a report of all."""
        candidates = {one.name: one for one in candidates_of(search, stated)}
        rungs = rungs_of(len(candidates), self.options.epochs, search.budget)
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise UsageError("search", "is for one process", "start it without torchrun")
        if self.folder is not None:
            own = TrainingFolder(self.folder)
            files = (own.state, own.best, own.last, self.folder / "search.json", self.folder / "search.png")
            own.require_none(files, may_stay=self.force or self.resume)
        names, models, trials = list(candidates), dict[str, Model](), dict[str, SearchTrial]()
        plan = " + ".join(f"{rung.candidates} x {rung.epochs}" for rung in rungs)
        cost = f"{plan} epochs; fewer with --budget"
        with self.stages("search", cost) as step:
            total, done = epochs_of(rungs), 0
            for rung in rungs:
                passing = promoted([trials[name] for name in names], rung.candidates) if trials else []
                names = [one.candidate for one in passing] or names
                models = {}
                for name in names:
                    models[name] = self._trained(candidates[name], rung.epochs, stated)
                    trials[name] = self._trial(candidates[name], models[name], rung.epochs)
                    done += rung.epochs
                    step(done, total)
        with self.stages("time the last rung", f"{len(names)} networks in ONNX Runtime"):
            trials |= timed({name: trials[name] for name in names}, models)
        return self._best(models, trials, rungs)

    def _trained(self, candidate: Candidate, epochs: int, stated: LoadOptions) -> Model:
        facts: LoadOptions = {**stated, "architecture": candidate.architecture}
        if candidate.variant is not None:
            facts["variant"] = candidate.variant
        warmup = self.options.warmup_epochs * epochs / self.options.epochs  # for the same part of the epochs
        options = dataclasses.replace(self.options, epochs=epochs, warmup_epochs=warmup)
        out = None if self.folder is None else self.folder / candidate.name / f"epochs-{epochs}"
        model: Model = self.train(options, out=out, force=self.force, resume=self.resume and out is not None, **facts)
        return model

    def _trial(self, candidate: Candidate, model: Model, epochs: int) -> SearchTrial:
        report = model.report
        assert isinstance(report, TrainReport)
        assert model.manifest is not None
        spec = DenseNetSpec.from_facts(model.manifest.spec)
        return SearchTrial(
            candidate=candidate.name,
            variant=report.variant,
            parameters=report.parameters,
            macs=model_cost(spec, model.manifest.preprocessing.image_size).macs,
            epochs=epochs,
            top1=report.top1,
            best_epoch=report.best_epoch,
            checkpoint=report.checkpoint,
        )

    def _best(self, models: Mapping[str, Model], trials: dict[str, SearchTrial], rungs: Sequence[Rung]) -> Model:
        front = pareto_front([_point(trials[name]) for name in models])
        for name in models:
            trials[name] = dataclasses.replace(trials[name], on_front=_point(trials[name]) in front)
        name = min(models, key=lambda name: (-trials[name].top1, trials[name].macs))
        model = models[name]
        report = model.report
        assert isinstance(report, TrainReport)
        ordered = sorted(trials.values(), key=lambda one: (-one.epochs, one.macs))
        found = SearchReport(
            chosen=name,
            rungs=tuple(rungs),
            epochs=epochs_of(rungs),
            trials=tuple(ordered),
            figure=None if self.folder is None else self._draw([trials[name] for name in models], name),
        )
        note = "the best epoch and the best network were chosen on the images that top-1 is measured on"
        files: dict[str, Path | None] = {"checkpoint": None, "last": None}
        if self.folder is not None:
            own, theirs = TrainingFolder(self.folder), (report.checkpoint, report.last)
            for place, file in zip((own.best, own.last), theirs, strict=True):
                assert file is not None
                write_file(place, file.read_bytes())
            files = {"checkpoint": own.best, "last": own.last}
        changed: dict[str, Any] = {**files, "search": found, "notes": (*report.notes, note)}
        changed["stages"] = self.stages.seconds
        report = dataclasses.replace(report, **changed)
        if self.folder is not None:
            write_file(self.folder / "search.json", f"{write_json(to_plain(found))}\n".encode())
        return dataclasses.replace(model, report=report)

    def _draw(self, trials: Sequence[SearchTrial], chosen: str) -> Path | None:
        """Draw accuracy against latency, and return the figure; None where matplotlib is not installed."""
        if self.folder is None or not is_installed("matplotlib"):
            return None
        from densenet_deploy.analysis.plots.pareto import ParetoData
        from densenet_deploy.analysis.plots.plot import draw, rendered

        title = f"{len(trials)} networks after {trials[0].epochs} epochs"
        points = [dataclasses.replace(_point(one), chosen=one.candidate == chosen) for one in trials]
        figure = draw("pareto", ParetoData(title, points, chosen_by="train"))
        path = self.folder / "search.png"
        write_file(path, rendered(figure, "png", title))
        return path


def timed(trials: Mapping[str, SearchTrial], models: Mapping[str, Model]) -> dict[str, SearchTrial]:
    """Return the trials with the latency of one image in ONNX Runtime, measured in alternating rounds."""
    from densenet_deploy.bench.candidate import Candidate as Contender
    from densenet_deploy.bench.rounds import Interval, compare_speed
    from densenet_deploy.workflows.export import export

    with tempfile.TemporaryDirectory() as folder:
        contenders = {}
        for number, (name, model) in enumerate(models.items()):
            path = Path(folder) / f"{number}.onnx"
            export(model, out=path)
            contenders[name] = Contender(path, "onnxruntime")
        result = compare_speed(contenders, rounds=_TIMING_ROUNDS)
    measured = {}
    for name, trial in trials.items():
        latency = Interval.of([timing.median * 1e3 for timing in result.timings[name]])
        interval = (latency.low, latency.high)
        measured[name] = dataclasses.replace(trial, latency_ms=latency.median, latency_interval_ms=interval)
    return measured


def _point(trial: SearchTrial) -> ParetoPoint:
    assert trial.latency_ms is not None
    label = f"{trial.candidate}, {trial.macs / 1e6:.4g} M MACs"
    return ParetoPoint(label, trial.latency_ms, trial.top1, trial.latency_interval_ms)
