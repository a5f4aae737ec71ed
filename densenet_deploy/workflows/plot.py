"""Plot: one figure of a model, as a matplotlib figure or as a PNG, JPEG or SVG file.

The data come from a variant, a checkpoint, an ONNX file, or the JSON of other commands.

Three kinds of entries in that JSON give points of latency and accuracy: one with both (`tune`), one with a published
accuracy (`inspect --sweep`), and one with latency only (`benchmark`), whose accuracy is that of the report of
`evaluate` on the same model. The accuracy is the main figure of the task: top-1, the mean AUROC, or the mean absolute
error.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from densenet_deploy.analysis.choice import METRICS, Accuracy, Metric, ParetoPoint, place_of
from densenet_deploy.analysis.plots.connections import ConnectionsData
from densenet_deploy.analysis.plots.cost import CostData
from densenet_deploy.analysis.plots.growth import GrowthData, growth_steps
from densenet_deploy.analysis.plots.pareto import ParetoData
from densenet_deploy.analysis.plots.plot import SUFFIXES, draw, plots, rendered
from densenet_deploy.analysis.plots.reuse import ReuseData, reuse_maps
from densenet_deploy.analysis.plots.training import TrainingCurves
from densenet_deploy.artifacts import (
    Artifact,
    StrPath,
    is_checkpoint_name,
    os_errors_about,
    output_path,
    require_room,
    write_file,
)
from densenet_deploy.errors import BackendError, DataError, ModelFileError, UsageError, printable
from densenet_deploy.facts import Architecture
from densenet_deploy.manifest import Size
from densenet_deploy.model import Model, untrained_note
from densenet_deploy.packages import require_packages
from densenet_deploy.records import parse_json
from densenet_deploy.reports import Report
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.variants import variant_with
from densenet_deploy.variants.spec import DenseNetSpec
from densenet_deploy.workflows.inspect.inspect import InspectOptions, inspect_file, inspect_variant
from densenet_deploy.workflows.load import LoadOptions, load, preprocessing_of
from densenet_deploy.workflows.outputs import refuse_other_file
from densenet_deploy.workflows.sensitivity import SensitivityReport

if TYPE_CHECKING:
    import onnx
    from matplotlib.figure import Figure


_FIRST_CONV: Final = re.compile(r"features\.(denseblock\d+\.denselayer\d+)\.conv1")
_TRACED: Final = re.compile(r"features\.(conv0|denseblock\d+\.denselayer\d+(?=\.conv)|transition\d+(?=\.conv$))")


@dataclass(frozen=True)
class PlotRequest:
    """What to draw.

    Attributes:
        models: files; none for a variant.
        variant, architecture: a variant by name, and changes to its numbers.
        image_size: pixels; None means the model's own.
        batch: images per call, for memory.
    """

    models: tuple[StrPath, ...] = ()
    variant: str | None = None
    architecture: Architecture = field(default_factory=Architecture)
    image_size: Size | None = None
    batch: int = 1

    @property
    def title(self) -> str:
        """The name of the model in figures."""
        if self.models:
            return ", ".join(Path(path).name for path in self.models)
        return variant_with(self.variant, self.architecture.changes()).artifact_name

    @property
    def variant_options(self) -> tuple[str, ...]:
        """The options that were given to name or change a variant."""
        return (*(() if self.variant is None else ("--variant",)), *self.architecture.options())


@dataclass(frozen=True, kw_only=True)
class PlotReport(Report):
    """The figure called `plot` was written to `file`."""

    kind: ClassVar[str] = "plot"

    plot: str
    file: Path
    bytes: int

    def to_text(self) -> str:
        return f"wrote {printable(self.file)}"


def plot_figure(name: str, request: PlotRequest) -> Figure:
    """Return the figure called `name` of what `request` describes.

    >>> figure = plot_figure("cost", PlotRequest(variant="121"))    # doctest: +SKIP

    Raises:
        UnknownNameError: naming the nearest known figure.
        UsageError, InputError: if the request is invalid, or a file of it cannot be used.
        MissingPackageError: if matplotlib, or a package that reads the model, is not installed.
    """
    plots.get(name)
    require_packages("plot", "matplotlib")
    return draw(name, gather(name, request).data)


def plot(name: str, request: PlotRequest, out: StrPath | None = None, *, force: bool = False) -> PlotReport:
    """Write the figure called `name` to `out`, by default `artifacts/MODEL.NAME.png`; the suffix selects the format.

    A file that holds the same figure of a model is replaced, and anything else only with `force`.

    Raises:
        OutputExistsError: if another file exists where the figure should go.
        UnknownNameError, UsageError, InputError, MissingPackageError: see `plot_figure`.
        ResourceError: if the file cannot be written.
    """
    plots.get(name)
    require_packages("plot", "matplotlib")
    path, description = _target(name, request, out), f"densenet-deploy plot {name}"
    refuse_other_file(path, description.encode(), "this figure", force=force)
    require_room(path)
    gathered = gather(name, request)
    data = rendered(draw(name, gathered.data), path.suffix[1:].lower(), description)
    write_file(path, data)
    return PlotReport(plot=name, file=path, bytes=len(data), notes=gathered.notes)


def _target(name: str, request: PlotRequest, out: StrPath | None) -> Path:
    suffix = Path(out or "").suffix.lower()
    model = Path(request.models[0]).stem if request.models else request.title
    try:
        default_name = f"{model}.{name}{suffix if suffix in SUFFIXES else SUFFIXES[0]}"
        return output_path(None if out is None else str(out), default_name)
    except UsageError as exc:
        raise UsageError(out, exc.why, f"name a file with one of {', '.join(SUFFIXES)}, or a folder") from exc


@dataclass(frozen=True)
class FigureData:
    """The data of a figure, and remarks about them."""

    data: object
    notes: tuple[str, ...] = ()


def gather(name: str, request: PlotRequest) -> FigureData:
    """Return the data of the figure called `name`.

    Raises:
        UsageError: if too few or too many models were given, or the figure has no source of data here.
        InputError: if a file cannot be used for it.
    """
    if name not in _SOURCES:
        raise UsageError(f"plot {name}", "has no source of data here", "call its function in Python")
    return _SOURCES[name](request)


def _reuse(request: PlotRequest) -> FigureData:
    path = _single(request)
    if path is not None and not is_checkpoint_name(path):
        proto, spec = _densenet_file(path)
        note = "the weights of the file, in which each conv1 includes norm2, which scales its outputs"
        return FigureData(ReuseData(request.title, reuse_maps(spec, _file_weights(proto))), (note,))
    require_packages("export", "torch")
    from densenet_deploy.models.build import DenseNet
    from densenet_deploy.models.taps import first_weights

    stated: LoadOptions = {"architecture": request.architecture}
    if request.variant is not None:
        stated["variant"] = request.variant
    model = load(None, **stated) if path is None else load(path)
    if not isinstance(model.module, DenseNet):
        raise ModelFileError(model.name, "is not one of our DenseNets", "plot a model exported here")
    weights = {name: weight.numpy() for name, weight in first_weights(model.module).items()}
    return FigureData(ReuseData(request.title, reuse_maps(_known_spec(model), weights)), untrained_note(model.manifest))


def _connections(request: PlotRequest) -> FigureData:
    spec, image_size = _spec(request)
    return FigureData(ConnectionsData(request.title, spec, image_size))


def _growth(request: PlotRequest) -> FigureData:
    path = _single(request)
    if path is not None and not is_checkpoint_name(path):
        return FigureData(GrowthData(request.title, growth_steps(_shapes_of_run(path, _densenet_file(path)[0]))))
    require_packages("export", "torch")
    from densenet_deploy.models.build import empty_model
    from densenet_deploy.models.taps import traced_shapes

    spec, image_size = _spec(request)
    return FigureData(GrowthData(request.title, growth_steps(traced_shapes(empty_model(spec), image_size))))


def _cost(request: PlotRequest) -> FigureData:
    path, options = _single(request), InspectOptions(request.image_size, request.batch)
    if path is not None:
        report = inspect_file(path, options)
    else:
        report = inspect_variant(request.variant, request.architecture, options)
    return FigureData(CostData(request.title, report.cost, report.activation_memory, request.batch), report.notes)


def _pareto(request: PlotRequest) -> FigureData:
    if not request.models or request.variant_options:
        fix = "give the JSON of benchmark and evaluate, of inspect --sweep, or of tune"
        others = "".join(f", not from {option}" for option in request.variant_options[:1])
        raise UsageError("plot pareto", f"is drawn from reports{others}", fix)
    metric, points = pareto_points([Path(path) for path in request.models])
    return FigureData(ParetoData(request.title, points, metric))


def _sqnr(request: PlotRequest) -> FigureData:
    if (path := _single(request)) is None:
        raise UsageError("plot sqnr", "is drawn from a report, not from a variant", "give the JSON of sensitivity")
    return FigureData(SensitivityReport.read(path).plot_data)


def _training(request: PlotRequest) -> FigureData:
    fix = "give the metrics.jsonl of train"
    if (path := _single(request)) is None:
        raise UsageError("plot training", "is drawn from metrics, not from a variant", fix)
    with os_errors_about(path):
        lines = path.read_bytes().splitlines()
    try:
        records: list[Any] = [parse_json(line) for line in lines]
    except ValueError as exc:
        raise DataError(path, "holds a line that is not JSON", fix) from exc
    return FigureData(TrainingCurves.of(request.title, records))


_SOURCES: Final[Mapping[str, Callable[[PlotRequest], FigureData]]] = {
    "reuse": _reuse,
    "connections": _connections,
    "growth": _growth,
    "cost": _cost,
    "pareto": _pareto,
    "sqnr": _sqnr,
    "training": _training,
}


def _single(request: PlotRequest) -> Path | None:
    """Return the one file to draw, or None for a variant."""
    if len(request.models) > 1:
        raise UsageError("plot", f"was given {len(request.models)} models", "give one")
    if request.models and request.variant_options:
        raise UsageError("plot", f"was given both a MODEL and {request.variant_options[0]}", "give one of them")
    if not request.models and not request.variant_options:
        raise UsageError("plot", "has nothing to draw", "give a MODEL or --variant")
    return Path(request.models[0]) if request.models else None


def _spec(request: PlotRequest) -> tuple[DenseNetSpec, Size]:
    """The architecture, and the size of the images in pixels."""
    path = _single(request)
    if path is None:
        variant = variant_with(request.variant, request.architecture.changes())
        return variant.spec, request.image_size or variant.preprocessing.image_size
    model = _loaded(path)
    return _known_spec(model), preprocessing_of(model).image_size


def _loaded(path: Path) -> Model:
    """Return the model in a file; an artifact is not read further than its facts."""
    artifact = Artifact.open(path)
    return load(path) if artifact.kind == "checkpoint" else Model(path.name, artifact.manifest, artifact=artifact)


def _known_spec(model: Model) -> DenseNetSpec:
    if model.spec is None:
        raise ModelFileError(
            model.path or model.name, "does not say which DenseNet it is", "plot a model exported here"
        )
    return model.spec


def _densenet_file(path: Path) -> tuple[onnx.ModelProto, DenseNetSpec]:
    if path.suffix.lower() != ".onnx":
        raise BackendError(path, "shows neither weights nor inner tensors", "plot the ONNX file from which it was made")
    require_packages("export", "onnx")
    model = _loaded(path)
    return model.onnx, _known_spec(model)


def _file_weights(model: onnx.ModelProto) -> dict[str, Any]:
    """The stored float weights of the layers' first convolutions."""
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    found = ((_FIRST_CONV.fullmatch(node.name), node) for node in model.graph.node if node.op_type == "Conv")
    weights = {match[1]: stored.get(node.input[1]) for match, node in found if match is not None}
    return {name: numpy_helper.to_array(tensor) for name, tensor in weights.items() if tensor is not None}


def _shapes_of_run(path: Path, model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Run the file on one black image with the layers' last convolutions as outputs, and return their shapes."""
    from densenet_deploy.graph.onnx_file import expose_values

    nodes = ((_TRACED.match(node.name), node.output[0]) for node in model.graph.node if node.op_type == "Conv")
    values = {match[1]: output for match, output in nodes if match is not None}  # of a layer's two, the last
    if not values:
        raise DataError(path, "has no convolution with the name of a dense layer", "plot the FP32 model")
    with open_runner(expose_values(model, set(values.values())), "onnxruntime", "cpu") as runner:
        spec = runner.inputs[0]
        results = runner.run({spec.name: np.zeros(tuple(size or 1 for size in spec.shape), spec.dtype)})
    return {name: results[output].shape[1:] for name, output in values.items()}


@dataclass(frozen=True)
class Latency:
    """Statistics of all calls of a benchmark, in milliseconds."""

    p50: float | None = None
    mean: float | None = None


@dataclass(frozen=True)
class PublishedTop1:
    """An accuracy that others published, a fraction."""

    top1: float


@dataclass(frozen=True)
class Entry:
    """A model in one of the reports; the fields are their JSON keys."""

    model: str | None = None
    name: str | None = None
    backend: str | None = None
    threads: int | None = None
    batch: int | None = None
    latency_ms: float | Latency | None = None
    rounds_ms: tuple[float, ...] | None = None
    interval_ms: tuple[float, float] | None = None
    latency_interval_ms: tuple[float, float] | None = None
    top1: float | None = None
    auroc: float | None = None
    mae: float | None = None
    published: PublishedTop1 | None = None

    @property
    def median_ms(self) -> float | None:
        """The median of the rounds' medians, to which the interval belongs."""
        if self.rounds_ms:
            return statistics.median(self.rounds_ms)
        if isinstance(self.latency_ms, Latency):
            return self.latency_ms.mean if self.latency_ms.p50 is None else self.latency_ms.p50
        return self.latency_ms

    def points(self, merits: Mapping[str, Accuracy]) -> Iterator[tuple[str, ParetoPoint]]:
        """Yield the key of the metric and the point of the entry, if both latency and merit are known."""
        title = self.model or self.name or ""
        measured = Accuracy.of(self) or merits.get(title)
        merit = Accuracy("top1", self.published.top1) if measured is None and self.published is not None else measured
        if merit is not None and self.median_ms:
            label = _point_label(title, self.backend, self.threads, self.batch)
            interval = self.latency_interval_ms or self.interval_ms
            yield merit.key, ParetoPoint(label, self.median_ms, merit.value, interval, published=measured is None)


@dataclass(frozen=True, kw_only=True)
class PointsReport(Report):
    """The report of any command that measures latency or accuracy."""

    kind: ClassVar[str] = "benchmark, evaluate, inspect --sweep or tune"

    model: str | None = None
    top1: float | None = None
    auroc: float | None = None
    mae: float | None = None
    results: tuple[Entry, ...] = ()
    points: tuple[Entry, ...] = ()
    pareto: tuple[Entry, ...] = ()


def pareto_points(paths: Sequence[Path]) -> tuple[Metric, tuple[ParetoPoint, ...]]:
    """Return a point for every entry of the reports that has both latency and accuracy, and what that is.

    Raises:
        DataError: if a file does not hold such a report, no entry has both, or models of several tasks are among them.
    """
    reports, names = [PointsReport.read(path) for path in paths], ", ".join(map(str, paths))
    merits = {one.model: merit for one in reports if one.model is not None and (merit := Accuracy.of(one)) is not None}
    entries = (entry for one in reports for entry in (*one.results, *one.points, *one.pareto))
    found = [pair for entry in entries for pair in entry.points(merits)]
    if not found:
        why = "hold no model with both latency_ms and an accuracy (top1, auroc or mae)"
        fix = "give the JSON of benchmark with that of evaluate for the same models, of inspect --sweep, or of tune"
        raise DataError(names, why, fix)
    keys = list(dict.fromkeys(key for key, _ in found))
    if len(keys) > 1:
        raise DataError(names, f"hold models that are compared by {' and by '.join(keys)}", "draw one task at a time")
    return METRICS[keys[0]], tuple(point for _, point in found)


def _point_label(model: str, backend: str | None, threads: int | None, batch: int | None) -> str:
    """The model without folder and suffix, its backend and threads, and its batch where that is not 1."""
    name = printable(model.rpartition("/")[2].removesuffix(".onnx"), 80)
    return ", ".join(filter(None, [name, place_of(printable(backend or "", 20), threads, batch)]))
