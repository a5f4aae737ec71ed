"""Plot: one figure of a model, as a matplotlib figure or as a PNG, JPEG or SVG file.

The data come from a variant, a checkpoint, an ONNX file, or reports in JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from densenet_deploy.analysis.plots.connections import ConnectionsData
from densenet_deploy.analysis.plots.cost import CostData
from densenet_deploy.analysis.plots.growth import GrowthData, growth_steps
from densenet_deploy.analysis.plots.pareto import ParetoData
from densenet_deploy.analysis.plots.plot import SUFFIXES, draw, plots, rendered
from densenet_deploy.analysis.plots.reuse import ReuseData, reuse_maps
from densenet_deploy.analysis.plots.training import TrainingCurves
from densenet_deploy.artifacts import Artifact, StrPath, os_errors_about, output_path, require_room, write_file
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
from densenet_deploy.workflows.inspect.inspect import InspectOptions, InspectReport, inspect_file, inspect_variant
from densenet_deploy.workflows.load import LoadOptions, is_checkpoint, load, preprocessing_of
from densenet_deploy.workflows.outputs import refuse_other_file
from densenet_deploy.workflows.plot.points import pareto_points
from densenet_deploy.workflows.sensitivity import SensitivityReport

if TYPE_CHECKING:
    import onnx
    from matplotlib.figure import Figure

    from densenet_deploy.models.build import DenseNet


@dataclass(frozen=True, kw_only=True)
class PlotReport(Report):
    """The figure called `plot` was written to `file`."""

    kind: ClassVar[str] = "plot"

    plot: str
    file: Path
    bytes: int

    def to_text(self) -> str:
        """Return a line for people."""
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
    if path is not None and not is_checkpoint(path):
        proto, spec = _densenet_file(path)
        note = "the weights of the file, in which each conv1 includes norm2, which scales its outputs"
        return FigureData(ReuseData(request.title, reuse_maps(spec, _file_weights(proto))), (note,))
    require_packages("export", "torch")
    from densenet_deploy.models.taps import first_weights

    stated: LoadOptions = {"architecture": request.architecture}
    if request.variant is not None:
        stated["variant"] = request.variant
    model = load(None, **stated) if path is None else load(path)
    weights = {name: weight.numpy() for name, weight in first_weights(_module(model)).items()}
    return FigureData(ReuseData(request.title, reuse_maps(_known_spec(model), weights)), untrained_note(model.manifest))


def _connections(request: PlotRequest) -> FigureData:
    spec, image_size = _spec(request)
    return FigureData(ConnectionsData(request.title, spec, image_size))


def _growth(request: PlotRequest) -> FigureData:
    path = _single(request)
    if path is not None and not is_checkpoint(path):
        return FigureData(GrowthData(request.title, growth_steps(_shapes_of_run(path, _densenet_file(path)[0]))))
    require_packages("export", "torch")
    from densenet_deploy.models.build import empty_model
    from densenet_deploy.models.taps import traced_shapes

    spec, image_size = _spec(request)
    return FigureData(GrowthData(request.title, growth_steps(traced_shapes(empty_model(spec), image_size))))


def _cost(request: PlotRequest) -> FigureData:
    report = _inspected(request)
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
    if (path := _single(request)) is None:
        raise UsageError(
            "plot training", "is drawn from metrics, not from a variant", "give the metrics.jsonl of train"
        )
    with os_errors_about(path):
        lines = path.read_bytes().splitlines()
    try:
        records: list[Any] = [parse_json(line) for line in lines]
    except ValueError as exc:
        raise DataError(path, "holds a line that is not JSON", "give the metrics.jsonl of train") from exc
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


def _inspected(request: PlotRequest) -> InspectReport:
    path, options = _single(request), InspectOptions(request.image_size, request.batch)
    if path is not None:
        return inspect_file(path, options)
    return inspect_variant(request.variant, request.architecture, options)


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


def _module(model: Model) -> DenseNet:
    from densenet_deploy.models.build import DenseNet

    if not isinstance(model.module, DenseNet):
        raise ModelFileError(model.name, "is not one of our DenseNets", "plot a model exported here")
    return model.module


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
