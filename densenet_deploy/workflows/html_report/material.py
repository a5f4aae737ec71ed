"""All that a report is made of: models, and what other commands said about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from densenet_deploy.errors import UsageError
from densenet_deploy.options import require_range
from densenet_deploy.workflows.html_report.inputs import Accuracy, Benchmark, Measured, Quantization, Validation
from densenet_deploy.workflows.html_report.models import FileFacts, ModelFacts, look_at
from densenet_deploy.workflows.html_report.tuning import Tuning
from densenet_deploy.workflows.stages import Listener, ignore


@dataclass(frozen=True)
class ReportSources:
    """What to report on: `models`, and files that hold what commands printed with `--json`.

    `max_drop`: percentage points of top-1 that the choice may lose to the most accurate, where `tune` did not choose.
    """

    models: tuple[Path, ...]
    benchmarks: tuple[Path, ...] = ()
    evaluations: tuple[Path, ...] = ()
    validations: tuple[Path, ...] = ()
    sensitivities: tuple[Path, ...] = ()
    quantizations: tuple[Path, ...] = ()
    tunings: tuple[Path, ...] = ()
    max_drop: float = 1.0

    def __post_init__(self) -> None:
        require_range("max-drop", self.max_drop, 0.0, 100.0)
        if not self.models:
            raise UsageError("report", "was given no model", "name the files it is about")

    def by_option(self) -> dict[str, tuple[Path, ...]]:
        """The files by the option that gives them."""
        return {
            "--tune": self.tunings,
            "--benchmark": self.benchmarks,
            "--evaluate": self.evaluations,
            "--validate": self.validations,
            "--sensitivity": self.sensitivities,
            "--quantize": self.quantizations,
        }


@dataclass(frozen=True)
class Material:
    """The sources, read."""

    sources: ReportSources
    models: tuple[ModelFacts, ...]
    benchmarks: tuple[Benchmark, ...] = ()
    accuracies: tuple[Accuracy, ...] = ()
    validations: tuple[Validation, ...] = ()
    quantizations: tuple[Quantization, ...] = ()
    tunings: tuple[Tuning, ...] = ()
    inputs: tuple[FileFacts, ...] = field(default=())

    @property
    def max_drop(self) -> float:
        return self.sources.max_drop

    @property
    def results(self) -> tuple[Measured, ...]:
        return tuple(result for benchmark in self.benchmarks for result in benchmark.results)

    def accuracy_of(self, model: ModelFacts) -> Accuracy | None:
        """What the last evaluation of it found, if there was one."""
        return next((found for found in reversed(self.accuracies) if model.is_meant_by(found.model)), None)


def gather_material(sources: ReportSources, listener: Listener = ignore) -> Material:
    """Read the reports first, which is quick, and then look at the models.

    Raises:
        DataError: if a file is no report of the command it is said to be of.
        UsageError, InputError: if a model cannot be used.
    """
    listener("reading reports")
    read = Material(
        sources,
        (),
        tuple(map(Benchmark.read, sources.benchmarks)),
        tuple(map(Accuracy.read, sources.evaluations)),
        tuple(map(Validation.read, sources.validations)),
        tuple(map(Quantization.read, sources.quantizations)),
        tuple(map(Tuning.read, sources.tunings)),
        _hashed([path for paths in sources.by_option().values() for path in paths]),
    )
    listener("looking at models")
    return dataclasses.replace(read, models=look_at(sources.models))


def _hashed(paths: Sequence[Path]) -> tuple[FileFacts, ...]:
    return tuple(map(FileFacts.of, paths))
