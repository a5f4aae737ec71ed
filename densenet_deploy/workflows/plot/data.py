"""What each figure is drawn from, gathered from a variant, a checkpoint, an ONNX file, or reports in JSON."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from densenet_deploy.analysis.growth import growth_steps
from densenet_deploy.analysis.plots.connections import ConnectionsData
from densenet_deploy.analysis.plots.cost import CostData
from densenet_deploy.analysis.plots.growth import GrowthData
from densenet_deploy.analysis.plots.pareto import ParetoData
from densenet_deploy.analysis.plots.reuse import ReuseData
from densenet_deploy.analysis.reuse import reuse_maps
from densenet_deploy.artifacts import Artifact, write_file
from densenet_deploy.errors import BackendError, DataError, ModelFileError, UsageError
from densenet_deploy.facts import Architecture
from densenet_deploy.model import Model
from densenet_deploy.packages import require_packages
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.variants import variant_with
from densenet_deploy.variants.spec import DenseNetSpec
from densenet_deploy.workflows.inspect.inspect import (
    InspectOptions,
    InspectReport,
    inspect_file,
    inspect_variant,
)
from densenet_deploy.workflows.load import ModelRequest, build, is_checkpoint, preprocessing_of
from densenet_deploy.workflows.plot.pareto_points import pareto_points
from densenet_deploy.workflows.plot.sensitivity_data import sensitivity_data

if TYPE_CHECKING:
    import onnx

    from densenet_deploy.models.build import DenseNet

_FIRST_CONV: Final = re.compile(r"features\.(denseblock\d+\.denselayer\d+)\.conv1")
_SEEN: Final = re.compile(r"features\.(conv0|denseblock\d+\.denselayer\d+(?=\.conv)|transition\d+(?=\.conv$))")


@dataclass(frozen=True)
class PlotRequest:
    """What to draw: `models` (files), or a variant with changes.

    `image_size` None means the model's own; `batch` is for memory.
    """

    models: tuple[Path, ...] = ()
    variant: str | None = None
    architecture: Architecture = field(default_factory=Architecture)
    image_size: int | None = None
    batch: int = 1

    @property
    def title(self) -> str:
        """What a figure calls the model."""
        if self.models:
            return ", ".join(path.name for path in self.models)
        return variant_with(self.variant, self.architecture.changes()).artifact_name

    @property
    def variant_options(self) -> tuple[str, ...]:
        """The options that were given and name a variant or change it."""
        return (*(() if self.variant is None else ("--variant",)), *self.architecture.options())


@dataclass(frozen=True)
class Gathered:
    """The data of a figure, and remarks on them."""

    data: object
    notes: tuple[str, ...] = ()


def gather(name: str, request: PlotRequest) -> Gathered:
    """Return what the figure called `name` is drawn from.

    Raises:
        UsageError: if too few or too many models were given, or it is not known where its data come from.
        InputError: if a file cannot be used for it.
    """
    if name not in _SOURCES:
        raise UsageError(f"plot {name}", "has no source of data in the command", "call its function in Python")
    return _SOURCES[name](request)


def _reuse(request: PlotRequest) -> Gathered:
    path = _single(request)
    if path is not None and not is_checkpoint(path):
        proto, spec = _densenet_file(path)
        note = "the file's own weights: norm2 is folded into each conv1, which weighs its outputs differently"
        return Gathered(ReuseData(request.title, reuse_maps(spec, _file_weights(proto))), (note,))
    require_packages("export", "torch")
    from densenet_deploy.models.taps import first_weights

    model = _built(request, path)
    weights = {name: weight.numpy() for name, weight in first_weights(_module(model)).items()}
    return Gathered(ReuseData(request.title, reuse_maps(_known_spec(model), weights)), model.notes)


def _connections(request: PlotRequest) -> Gathered:
    spec, image_size = _spec(request)
    return Gathered(ConnectionsData(request.title, spec, image_size))


def _growth(request: PlotRequest) -> Gathered:
    path = _single(request)
    if path is not None and not is_checkpoint(path):
        return Gathered(GrowthData(request.title, growth_steps(_shapes_of_run(path, _densenet_file(path)[0]))))
    require_packages("export", "torch")
    from densenet_deploy.models.build import empty_model
    from densenet_deploy.models.taps import traced_shapes

    spec, image_size = _spec(request)
    return Gathered(GrowthData(request.title, growth_steps(traced_shapes(empty_model(spec), image_size))))


def _cost(request: PlotRequest) -> Gathered:
    report = _inspected(request)
    return Gathered(CostData(request.title, report.cost, report.memory, request.batch), report.notes)


def _pareto(request: PlotRequest) -> Gathered:
    if not request.models or request.variant_options:
        fix = "give the JSON of benchmark and evaluate, of inspect --sweep, or of tune"
        others = "".join(f", not from {option}" for option in request.variant_options[:1])
        raise UsageError("plot pareto", f"is drawn from reports{others}", fix)
    points = pareto_points(request.models)
    return Gathered(ParetoData(request.title, points))


def _sqnr(request: PlotRequest) -> Gathered:
    if (path := _single(request)) is None:
        raise UsageError("plot sqnr", "is drawn from a report, not from a variant", "give the JSON of sensitivity")
    return Gathered(sensitivity_data(path))


_SOURCES: Final[Mapping[str, Callable[[PlotRequest], Gathered]]] = {
    "reuse": _reuse,
    "connections": _connections,
    "growth": _growth,
    "cost": _cost,
    "pareto": _pareto,
    "sqnr": _sqnr,
}


def _single(request: PlotRequest) -> Path | None:
    """The one file to draw, or None for a variant.

    Raises:
        UsageError: unless exactly one of them was given.
    """
    if len(request.models) > 1:
        raise UsageError("plot", f"was given {len(request.models)} models", "give one")
    if request.models and request.variant_options:
        raise UsageError("plot", f"was given both a MODEL and {request.variant_options[0]}", "give one of them")
    if not request.models and not request.variant_options:
        raise UsageError("plot", "has nothing to draw", "give a MODEL or --variant")
    return request.models[0] if request.models else None


def _inspected(request: PlotRequest) -> InspectReport:
    path, options = _single(request), InspectOptions(request.image_size, request.batch)
    if path is not None:
        return inspect_file(path, options)
    return inspect_variant(request.variant, request.architecture, options)


def _spec(request: PlotRequest) -> tuple[DenseNetSpec, int]:
    """The architecture, and the size of the figures in pixels."""
    path = _single(request)
    if path is None:
        variant = variant_with(request.variant, request.architecture.changes())
        return variant.spec, request.image_size or variant.preprocessing.image_size
    if is_checkpoint(path):
        model = _built(request, path)
        return _known_spec(model), preprocessing_of(model).image_size
    manifest = Artifact.open(path).manifest
    if manifest is None:
        raise ModelFileError(path, "does not say which DenseNet it is", "plot a model that was exported here")
    return DenseNetSpec.from_facts(manifest.spec), manifest.preprocessing.image_size


def _built(request: PlotRequest, path: Path | None) -> Model:
    weights = "none" if path is None else str(path)
    wanted = ModelRequest(
        variant=request.variant, weights=weights, architecture=request.architecture, image_size=request.image_size
    )
    return build(wanted)


def _known_spec(model: Model) -> DenseNetSpec:
    assert model.spec is not None
    return model.spec


def _module(model: Model) -> DenseNet:
    from densenet_deploy.models.build import DenseNet

    assert isinstance(model.module, DenseNet)
    return model.module


def _densenet_file(path: Path) -> tuple[onnx.ModelProto, DenseNetSpec]:
    if path.suffix.lower() != ".onnx":
        raise BackendError(path, "shows neither weights nor inner tensors", "plot the ONNX file it was made from")
    require_packages("export", "onnx")
    from densenet_deploy.graph.onnx_file import load_onnx

    manifest, proto = Artifact.open(path).manifest, load_onnx(path)
    if manifest is None:
        raise ModelFileError(path, "does not say which DenseNet it is", "plot a model that was exported here")
    return proto, DenseNetSpec.from_facts(manifest.spec)


def _file_weights(model: onnx.ModelProto) -> dict[str, Any]:
    """The stored float weights of the layers' first convolutions."""
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    found = ((_FIRST_CONV.fullmatch(node.name), node) for node in model.graph.node if node.op_type == "Conv")
    weights = {match[1]: stored.get(node.input[1]) for match, node in found if match is not None}
    return {name: numpy_helper.to_array(tensor) for name, tensor in weights.items() if tensor is not None}


def _shapes_of_run(path: Path, model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Run the file on one grey figure with the layers' last convolutions as outputs, and return their shapes."""
    from densenet_deploy.graph.onnx_file import expose_values

    nodes = ((_SEEN.match(node.name), node.output[0]) for node in model.graph.node if node.op_type == "Conv")
    made = {match[1]: output for match, output in nodes if match is not None}  # of a layer's two, the last
    if not made:
        raise DataError(path, "has no convolution with the name of a dense layer", "plot the float model")
    with tempfile.TemporaryDirectory() as folder:
        exposed = Path(folder) / "exposed.onnx"
        write_file(exposed, expose_values(model, set(made.values())).SerializeToString())
        with open_runner(exposed, "onnxruntime", "cpu") as runner:
            spec = runner.inputs[0]
            figure = np.zeros(tuple(size or 1 for size in spec.shape), spec.dtype)
            results = runner.run({spec.name: figure})
    return {name: results[output].shape[1:] for name, output in made.items()}
