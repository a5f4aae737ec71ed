"""All that the page is made of: the models, and the reports of other commands."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Generic, TypeVar

from densenet_deploy.artifacts import (
    Artifact,
    StrPath,
    joined_sha256,
    os_errors_about,
    require_file,
    sha256_of,
    write_file,
)
from densenet_deploy.bench.machine import Machine
from densenet_deploy.bench.measurement import Measurement
from densenet_deploy.errors import DataError, DensenetDeployError, MissingPackageError, UsageError, printable
from densenet_deploy.graph.layer_precision import LayerPrecision
from densenet_deploy.manifest import Manifest
from densenet_deploy.model import Model
from densenet_deploy.onnx_envelope import external_files
from densenet_deploy.options import require_range
from densenet_deploy.records import from_plain, parse_json
from densenet_deploy.reports import Report
from densenet_deploy.runtime.sidecar import sidecar_path
from densenet_deploy.workflows.benchmark import BenchmarkReport
from densenet_deploy.workflows.compare import ComparisonReport
from densenet_deploy.workflows.decision import Decision, MeasuredCandidate
from densenet_deploy.workflows.evaluation.report import EvaluateReport
from densenet_deploy.workflows.html_report.page import DECISION
from densenet_deploy.workflows.inspect.engine import inspect_engine
from densenet_deploy.workflows.inspect.inspect import InspectReport, inspect_file
from densenet_deploy.workflows.quantize.quantize import QuantizeReport
from densenet_deploy.workflows.sensitivity import SensitivityReport
from densenet_deploy.workflows.stages import Listener, ignore
from densenet_deploy.workflows.tune.report import TuneReport

R = TypeVar("R", bound=Report)


@dataclass(frozen=True)
class Loaded(Generic[R]):
    """A report and the file from which it was read."""

    path: Path
    report: R

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class Earlier:
    """What an earlier page or tuning decided, and on which machine; `name` is that of its file."""

    name: str
    decision: Decision
    machine: Machine | None = None

    @classmethod
    def read(cls, path: Path) -> Earlier:
        """Read a page of `report`, or the JSON of `tune`.

        Raises:
            InputError: if the file does not exist.
            DataError: if it holds neither.
        """
        if path.suffix.lower() not in (".html", ".htm"):
            report = TuneReport.read(path)
            return cls(path.name, report.decision, report.machine)
        require_file(path)
        with os_errors_about(path):
            text = path.read_text("utf-8", "replace")
        finder = _DecisionFinder()
        finder.feed(text)

        def fail(where: str = "", why: str = "it holds no candidates") -> DensenetDeployError:
            fix = "give a page that report made of measured models, or the JSON of tune"
            return DataError(path, f"is not a page to compare with: {f'{where} {why}'.strip()}", fix)

        try:
            facts = parse_json(finder.content)
        except ValueError as exc:
            raise fail() from exc
        return dataclasses.replace(from_plain(cls, facts, fail=fail), name=path.name)


class _DecisionFinder(HTMLParser):
    """Finds the decision that a page holds for programs."""

    content = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        if tag == "meta" and facts.get("name") == DECISION and not self.content:
            self.content = facts.get("content") or ""


@dataclass(frozen=True)
class ReportSources:
    """What to report on: models, and the reports of other commands, each as an object or a file with its JSON.

    Attributes:
        models: artifacts and checkpoints, or models in memory that have an ONNX graph.
        max_drop: percentage points of top-1, or of AUROC, that the choice may lose, where `tune` did not choose.
        against: an earlier page, or the JSON of an earlier `tune`, to compare with.
    """

    models: Sequence[StrPath | Model]
    benchmarks: Sequence[StrPath | BenchmarkReport] = ()
    evaluations: Sequence[StrPath | EvaluateReport] = ()
    validations: Sequence[StrPath | ComparisonReport] = ()
    sensitivities: Sequence[StrPath | SensitivityReport] = ()
    quantizations: Sequence[StrPath | QuantizeReport] = ()
    tunings: Sequence[StrPath | TuneReport] = ()
    max_drop: float = 1.0
    against: StrPath | None = None

    def __post_init__(self) -> None:
        require_range("max-drop", self.max_drop, 0.0, 100.0)
        if not self.models:
            raise UsageError("report", "was given no model", "name the model files")

    def by_option(self) -> dict[str, list[StrPath]]:
        """The files by the option that gives them."""
        given: dict[str, Sequence[StrPath | Report]] = {
            "--tune": self.tunings,
            "--benchmark": self.benchmarks,
            "--evaluate": self.evaluations,
            "--validate": self.validations,
            "--sensitivity": self.sensitivities,
            "--quantize": self.quantizations,
        }
        given |= {} if self.against is None else {"--against": [self.against]}
        return {option: [one for one in reports if not isinstance(one, Report)] for option, reports in given.items()}

    @property
    def paths(self) -> list[str]:
        """The files of the models."""
        return [str(_file_of(model)) for model in self.models]

    @property
    def names(self) -> list[str]:
        """The names of the models: file names, or those of models in memory."""
        return [_file_of(model).name for model in self.models]


@dataclass(frozen=True)
class FileFacts:
    """A file, its length in bytes and the SHA-256 of its bytes, in hex."""

    path: Path
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileFacts:
        """Read the file.

        Raises:
            InputError: if there is none.
        """
        with os_errors_about(path):
            return cls(path, path.stat().st_size, sha256_of(path))


@dataclass(frozen=True)
class ModelSummary:
    """A model of the page.

    Attributes:
        files: all that belongs to it; the first is the model itself.
        layers, evidence: in which precision its layers compute, and how that is known.
        architecture: None where the file does not say which network it is.
        alias: the name of a model that was given as an object, which reports may use.
        temporary: the file of a model that was in memory; `path` is then only a name.
    """

    kind: str
    precision: str
    files: tuple[FileFacts, ...]
    manifest: Manifest | None = None
    layers: tuple[LayerPrecision, ...] = ()
    evidence: str = ""
    architecture: InspectReport | None = None
    notes: tuple[str, ...] = ()
    alias: str = ""
    temporary: Path | None = None

    @property
    def path(self) -> Path:
        return self.files[0].path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def sha256(self) -> str:
        """Of the model, as reports name it: with its weights, without the sidecar of an engine."""
        files = self.files[:1] if self.kind == "engine" else self.files
        return joined_sha256([file.sha256 for file in files])

    @property
    def bytes(self) -> int:
        """Of all its files together."""
        return sum(file.bytes for file in self.files)

    @property
    def counts(self) -> dict[str, int]:
        """How many layers compute in each precision."""
        return dict(Counter(layer.precision for layer in self.layers).most_common())

    def is_called(self, name: str) -> bool:
        """Whether a report that names a model `name` is about this one: folders may differ, the file name may not."""
        return any(same_name(name, own) for own in (self.name, self.alias) if own)


def same_name(one: str, other: str) -> bool:
    """Whether two reports mean the same file: folders may differ, the file name may not."""
    return Path(one).name == Path(other).name


@dataclass(frozen=True)
class Material:
    """The sources, read; `shipped` is the file that the last `tune` chose, if it is here and not among the models."""

    sources: ReportSources
    models: tuple[ModelSummary, ...]
    benchmarks: tuple[Loaded[BenchmarkReport], ...] = ()
    evaluations: tuple[Loaded[EvaluateReport], ...] = ()
    validations: tuple[Loaded[ComparisonReport], ...] = ()
    sensitivities: tuple[Loaded[SensitivityReport], ...] = ()
    quantizations: tuple[Loaded[QuantizeReport], ...] = ()
    tunings: tuple[Loaded[TuneReport], ...] = ()
    inputs: tuple[FileFacts, ...] = ()
    earlier: Earlier | None = None
    shipped: ModelSummary | None = None

    @property
    def results(self) -> tuple[Measurement, ...]:
        return tuple(result for loaded in self.benchmarks for result in loaded.report.results)

    @property
    def reports(self) -> tuple[Loaded[Any], ...]:
        """All reports, in the order of a workflow."""
        measured: tuple[Loaded[Any], ...] = (*self.tunings, *self.benchmarks, *self.evaluations)
        return (*self.quantizations, *self.sensitivities, *self.validations, *measured)

    @property
    def float_models(self) -> list[Path]:
        """The FP32 ONNX files among the models."""
        found = [model for model in self.models if model.kind == "onnx" and model.precision == "fp32"]
        return [model.path for model in found if model.temporary is None]

    def model_called(self, name: str) -> ModelSummary | None:
        """Return the model that a report calls `name`, if it is one of these."""
        return next((model for model in self.models if model.is_called(name)), None)

    @property
    def shown(self) -> tuple[ModelSummary, ...]:
        """The models, and the file to ship where it is another one."""
        return (*self.models, *(() if self.shipped is None else (self.shipped,)))

    @property
    def evaluated(self) -> list[EvaluateReport]:
        """The last evaluation first: those of models of their own, then those of `--against`."""
        own = [loaded.report for loaded in reversed(self.evaluations)]
        return [*own, *(one.second for one in own if one.second is not None)]

    def judged(self, one: MeasuredCandidate, name: str) -> MeasuredCandidate:
        """Return a candidate with the main figure that `evaluate` found of its model, which reports call `name`."""
        model = self.model_called(name)
        is_same = functools.partial(same_name, name) if model is None else model.is_called
        fresh = (report for report in self.evaluated if not self.is_stale(report))
        found = next((report for report in fresh if is_same(report.model)), None)
        if found is None:
            return one
        return dataclasses.replace(one, accuracy=found.accuracy, labelled=found.count, images=found.truth_sha256)

    def is_stale(self, result: Measurement | EvaluateReport) -> bool:
        """Whether a result was measured on other bytes than the model of that name holds now, as far as is known."""
        model = self.model_called(result.model)
        return model is not None and bool(result.sha256) and result.sha256 != model.sha256


def load_material(sources: ReportSources, folder: Path | None = None, listener: Listener = ignore) -> Material:
    """Read the reports first, which is quick, and then the models; those in memory are written to `folder`.

    It may be left out where there are none of these.

    Raises:
        DataError: if a file does not hold the report of the command that its option names.
        UsageError: if two models have the same file name.
        InputError: if a model cannot be used.
    """
    listener("reading reports")
    read = Material(
        sources,
        (),
        _read(BenchmarkReport, sources.benchmarks),
        _read(EvaluateReport, sources.evaluations),
        _read(ComparisonReport, sources.validations),
        _read(SensitivityReport, sources.sensitivities),
        _read(QuantizeReport, sources.quantizations),
        _read(TuneReport, sources.tunings),
        tuple(FileFacts.of(Path(path)) for paths in sources.by_option().values() for path in paths),
        None if sources.against is None else Earlier.read(Path(sources.against)),
    )
    listener("reading models")
    repeated = [name for name, count in Counter(sources.names).items() if count > 1]
    if repeated:  # reports could not tell them apart
        raise UsageError(repeated[0], "is the file name of two models", "rename one of them")
    read = dataclasses.replace(read, models=tuple(_summary(model, folder) for model in sources.models))
    return dataclasses.replace(read, shipped=_shipped(read))


def _read(kind: type[R], reports: Iterable[StrPath | R]) -> tuple[Loaded[R], ...]:
    return tuple(
        Loaded(Path(kind.kind), one) if isinstance(one, Report) else Loaded(Path(one), kind.read(Path(one)))
        for one in reports
    )


def _shipped(material: Material) -> ModelSummary | None:
    trial = material.tunings[-1].report.chosen if material.tunings else None
    if trial is None or material.model_called(str(trial.model)) is not None:
        return None
    path = next(filter(Path.is_file, (trial.model, trial.path)), None)
    if path is None:
        return None
    try:
        return _look(path)
    except DensenetDeployError as exc:  # another file by now: its hash says so
        return ModelSummary("unknown", "unknown", (FileFacts.of(path),), evidence=printable(exc))


def _file_of(model: StrPath | Model) -> Path:
    if not isinstance(model, Model):
        return Path(model)
    return model.path or Path(f"{model.name}.onnx")


def _summary(model: StrPath | Model, folder: Path | None) -> ModelSummary:
    """The facts of a model; one that has no file is written to `folder`, but shown by its name."""
    if not isinstance(model, Model):
        return _look(Path(model))
    if model.path is not None:
        return dataclasses.replace(_look(model.path), alias=model.name)
    assert folder is not None, "a model in memory needs a folder"
    path = folder / _file_of(model).name
    write_file(path, model.to_bytes())
    summary = _look(path)
    (file,) = summary.files
    named = dataclasses.replace(file, path=Path(path.name))
    return dataclasses.replace(summary, files=(named,), alias=model.name, temporary=path)


def _look(path: Path) -> ModelSummary:
    artifact = Artifact.open(path)
    files = tuple(map(FileFacts.of, [path, *_companions(artifact)]))
    if artifact.kind == "engine":
        return _engine_facts(path, files)
    if artifact.kind == "openvino":
        why = "OpenVINO files are not analysed; benchmark reports the precision it ran in"
        return ModelSummary(artifact.kind, "unknown", files, evidence=why)
    try:
        report = inspect_file(path)
    except MissingPackageError as exc:
        why = printable(exc)
        return ModelSummary(artifact.kind, artifact.precision, files, artifact.manifest, evidence=why, notes=(why,))
    evidence = "read from the graph" if report.layers else "PyTorch computes in the type of the weights"
    architecture = report if report.activation_memory is not None else None
    return ModelSummary(
        artifact.kind, report.precision, files, report.manifest, report.layers, evidence, architecture, report.notes
    )


def _engine_facts(path: Path, files: tuple[FileFacts, ...]) -> ModelSummary:
    report = inspect_engine(path)
    return ModelSummary(
        "engine",
        report.precision,
        files,
        report.manifest,
        tuple(LayerPrecision(conv.name, "convolution", conv.precision) for conv in report.convolutions),
        f"read back from the engine ({report.runs.source})",
        report.architecture,
        report.notes,
    )


def _companions(artifact: Artifact) -> list[Path]:
    """The files that a model needs beside itself, and an engine's sidecar."""
    path = artifact.path
    if artifact.kind == "openvino":
        return [path.with_suffix(".bin")]
    if artifact.kind == "engine":
        return [sidecar for sidecar in [sidecar_path(path)] if sidecar.exists()]
    if artifact.kind != "onnx":
        return []
    with os_errors_about(path), path.open("rb") as file:
        return [path.parent / name for name in sorted(external_files(file))]
