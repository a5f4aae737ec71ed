"""What is measured of a trial: its speed, beside a reference in alternating rounds, and the quality of its answers.

Every result is cached, so that an interrupted tuning measures only what is missing.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from densenet_deploy.analysis.choice import Accuracy, score_of
from densenet_deploy.artifacts import sha256_of
from densenet_deploy.bench.candidate import Candidate, CandidateWorker
from densenet_deploy.bench.rounds import Interval, RoundResults, measure_rounds
from densenet_deploy.errors import BackendError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.parity.compare import Parity, compare_outputs, outputs_of, worst
from densenet_deploy.runtime.cpus import cpu_name, usable_cpus
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.meaning import class_outputs
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.workflows.evaluate import evaluate
from densenet_deploy.workflows.evaluation.tasks import images_of, is_table
from densenet_deploy.workflows.samples import image_samples, seeded_samples
from densenet_deploy.workflows.tune.cache import Facts, ResultCache
from densenet_deploy.workflows.tune.candidates import ModelFile, Trial
from densenet_deploy.workflows.tune.models import FloatModel, data_digests, versions

PARITY_SAMPLES: Final = 64
_REFERENCE: Final = "reference"


@dataclass(frozen=True)
class Budget:
    """How long trials are timed: the number of rounds, and the seconds of each."""

    rounds: int
    seconds_per_round: float


@dataclass(frozen=True)
class Failure:
    """Why a trial could not be measured."""

    reason: str


@dataclass(frozen=True)
class TrialSpeed:
    """How fast a trial ran.

    Attributes:
        speed: its images/s over those of the reference, from the ratios of each round.
        peak_memory_bytes: of its process.
        device, precision: where and in what it ran, as the backend reports.
    """

    speed: Interval
    peak_memory_bytes: int
    device: str
    precision: str


@dataclass(frozen=True)
class SpeedResults:
    """The speeds of trials that were timed together, and the median calls of the reference in the same rounds."""

    reference_ms: tuple[float, ...]
    speeds: tuple[TrialSpeed | Failure, ...]


@dataclass(frozen=True)
class Quality:
    """The quality of the answers of a file on a backend.

    Attributes:
        parity: with the FP32 model, of the worst output, on `images` of `kind`.
        top1, auroc, mae: the main figure of the model's task on `labelled` images; None without any.
    """

    parity: Parity
    images: int
    kind: str
    top1: float | None = None
    labelled: int = 0
    auroc: float | None = None
    mae: float | None = None

    @property
    def is_broken(self) -> bool:
        """Whether there are NaN or infinite values."""
        return bool(self.parity.nonfinite)

    @property
    def accuracy(self) -> Accuracy | None:
        """Top-1, AUROC or mean absolute error, if it is known."""
        return Accuracy.of(self)

    @property
    def score(self) -> float:
        """Larger is better; see `analysis.choice.score_of`."""
        if self.is_broken:
            return -math.inf
        return score_of(self.accuracy, self.parity.sqnr_db)

    def drop(self, best: float | None) -> float | None:
        """Return the percentage points lost to the best FP32 model; without labels, of images with another class."""
        if self.accuracy is not None and best is not None:
            return None if self.accuracy.metric.is_error else 100 * (best - self.accuracy.value)
        return None if self.parity.top1_agreement is None else 100 * (1 - self.parity.top1_agreement)


@dataclass(frozen=True)
class _QualityResult:
    found: Quality | Failure


class Measurer(Protocol):
    """What a search asks; `reference` runs beside every group of trials."""

    @property
    def reference(self) -> Trial: ...

    def speeds(self, trials: Sequence[Trial], budget: Budget) -> SpeedResults:
        """Time `trials` beside the reference; the results are in the same order."""

    def quality(self, file: ModelFile, backend: str) -> Quality | Failure:
        """Compare the answers with those of the FP32 model."""


@dataclass(frozen=True)
class LocalMeasurer:
    """Measures on this machine.

    Attributes:
        reference: runs beside every group of trials, so that speeds of different groups can be compared.
        models: the FP32 models by name; answers are compared with theirs, on the backend of the reference.
        results: of earlier measurements.
        device: None means the best of each backend.
        calibration, data: images to compare answers on, preferably `data`; without either, seeded inputs.
        samples: how many images of the calibration data are used.
    """

    reference: Trial
    models: Mapping[str, FloatModel]
    results: ResultCache
    device: str | None = None
    calibration: Path | None = None
    samples: int = 512
    data: Path | None = None

    def speeds(self, trials: Sequence[Trial], budget: Budget) -> SpeedResults:
        """Time `trials` and the reference, each in its own process.

        Raises:
            DensenetDeployError: if the reference itself cannot run.
        """
        key = {
            "step": "speed",
            "trials": [self._facts(trial) for trial in (self.reference, *trials)],
            "rounds": budget.rounds,
            "seconds_per_round": budget.seconds_per_round,
            "machine": [cpu_name(), usable_cpus()],
            "versions": versions(),
        }
        return self.results.get(SpeedResults, key, lambda: self._timed(trials, budget))

    def quality(self, file: ModelFile, backend: str) -> Quality | Failure:
        """Compare answers on up to 64 images, and measure the accuracy on labelled images."""
        model = self.models[file.base]
        key = {
            "step": "quality",
            "model": file.sha256,
            "float": model.file.sha256,
            "backends": [self.reference.backend, backend],
            "device": self.device,
            "calibration": data_digests(self.calibration, model.preprocessing, self.samples),
            "data": self._data_digests,
            "versions": versions(),
        }
        return self.results.get(_QualityResult, key, lambda: _QualityResult(self._compared(file, backend, model))).found

    @functools.cached_property
    def _references(self) -> dict[str, list[dict[str, Array]]]:
        """The answers of the FP32 models by name, as they become known."""
        return {}

    @functools.cached_property
    def _data_digests(self) -> Facts | None:
        if self.data is None:
            return None
        table = {self.data.name: sha256_of(self.data)} if is_table(self.data) else {}
        root = self.data.parent if is_table(self.data) else self.data
        return table | {os.path.relpath(path, root): sha256_of(path) for path in images_of(self.data)}

    def _facts(self, trial: Trial) -> Facts:
        facts = {"model": trial.file.sha256, "backend": trial.backend, "threads": trial.threads, "batch": trial.batch}
        return facts | {"device": self.device}

    def _timed(self, trials: Sequence[Trial], budget: Budget) -> SpeedResults:
        with contextlib.ExitStack() as stack:
            workers = {_REFERENCE: stack.enter_context(self._worker(self.reference))}
            _ = workers[_REFERENCE].opening  # raises before others are started
            workers |= {str(n): stack.enter_context(self._worker(trial)) for n, trial in enumerate(trials)}
            found = measure_rounds(workers, rounds=budget.rounds, seconds_per_round=budget.seconds_per_round)
        if _REFERENCE in found.failures:
            raise found.failures[_REFERENCE]
        reference_ms = tuple(timing.median * 1e3 for timing in found.timings[_REFERENCE])
        return SpeedResults(reference_ms, tuple(self._speed(trial, str(n), found) for n, trial in enumerate(trials)))

    def _worker(self, trial: Trial) -> CandidateWorker:
        candidate = Candidate(trial.file.path, trial.backend, trial.batch, self.device, threads=trial.threads)
        return CandidateWorker(candidate)

    def _speed(self, trial: Trial, name: str, found: RoundResults) -> TrialSpeed | Failure:
        if name in found.failures:
            return Failure(f"cannot run: {found.failures[name].why}")
        ratio, scale = found.speedup(name, over=_REFERENCE), trial.batch / self.reference.batch
        placement = found.openings[name].placement
        return TrialSpeed(
            speed=Interval(ratio.median * scale, ratio.low * scale, ratio.high * scale),
            peak_memory_bytes=max(timing.peak_memory_bytes for timing in found.timings[name]),
            device=placement.device,
            precision=placement.precision,
        )

    def _compared(self, file: ModelFile, backend: str, model: FloatModel) -> Quality | Failure:
        samples, kind = self._samples(model.preprocessing)
        try:
            answers, classes = self._answers(file.path, backend, samples)
            report = None if self.data is None else evaluate(file.path, self.data, backend=backend, device=self.device)
        except BackendError as exc:
            return Failure(f"cannot run: {exc.why}")
        if file.base not in self._references:
            self._references[file.base], _ = self._answers(model.file.path, self.reference.backend, samples)
        parity = worst(compare_outputs(self._references[file.base], answers, classes))[1]
        if report is None:
            return Quality(parity, len(samples), kind)
        return Quality(parity, len(samples), kind, report.top1, report.count, report.auroc, report.mae)

    def _answers(
        self, path: Path, backend: str, samples: Sequence[Array]
    ) -> tuple[list[dict[str, Array]], frozenset[str]]:
        """Return the outputs for each sample, and the names of those that hold scores of classes."""
        with open_runner(path, backend, self.device) as runner:
            return list(outputs_of(runner, samples)), class_outputs(runner)

    def _samples(self, preprocessing: Preprocessing) -> tuple[list[Array], str]:
        if self.data is not None:
            images = images_of(self.data)
            return list(image_samples(images, preprocessing, PARITY_SAMPLES)), "images of the labelled data"
        if self.calibration is not None:
            from densenet_deploy.quantization.calibration_data import open_calibration_data

            opened = open_calibration_data(self.calibration, preprocessing, self.samples)
            return list(itertools.islice(opened, PARITY_SAMPLES)), "calibration images"
        return list(seeded_samples(PARITY_SAMPLES, preprocessing)), "seeded inputs"
