"""Inspect: what a variant, a checkpoint, a module or an ONNX file holds, costs and computes in, and where time goes."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Unpack

from densenet_deploy.analysis.cost import BlockCost, LayerCost, ModelCost, model_cost, network_part
from densenet_deploy.analysis.memory import ActivationMemory, TrainingMemory, activation_memory, training_memory
from densenet_deploy.artifacts import Artifact, StrPath
from densenet_deploy.errors import ManifestError, ModelFileError, UsageError, printable
from densenet_deploy.facts import Architecture
from densenet_deploy.graph.layer_precision import LayerPrecision, layer_precisions
from densenet_deploy.manifest import Manifest, Preprocessing, Size, sides
from densenet_deploy.model import Model, untrained_note
from densenet_deploy.options import or_default, require_choice, require_range
from densenet_deploy.packages import require_packages
from densenet_deploy.reports import Report, mib, table
from densenet_deploy.variants import is_variant, variant_with
from densenet_deploy.variants.spec import DenseNetSpec
from densenet_deploy.workflows.inspect.operator_profile import OperatorProfile, ProfileOptions, profile_model
from densenet_deploy.workflows.load import LoadOptions, load

if TYPE_CHECKING:
    from densenet_deploy.workflows.inspect.engine import InspectEngineReport

_BYTES: Final = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class InspectOptions:
    """What to inspect.

    >>> InspectOptions(image_size=320, batch=8).batch
    8

    Attributes:
        image_size: pixels; None means the model's own.
        batch: images per call, for memory and the profile.
        precision: of the activations: fp32, fp16, bf16, int8; None means the file's, else fp32.
        training: measure the memory of a training step, which needs PyTorch.
        profile: run the model under its backend's profiler; None: do not.
    """

    image_size: Size | None = None
    batch: int = 1
    precision: str | None = None
    training: bool = False
    profile: ProfileOptions | None = None

    def __post_init__(self) -> None:
        require_range("batch", self.batch, 1, 65536)
        if self.precision is not None:
            require_choice("precision", self.precision, tuple(_BYTES))


@dataclass(frozen=True, kw_only=True)
class InspectReport(Report):
    """What a model is and costs for `batch` images of `image_size` pixels; MACs are those of one image.

    Attributes:
        blocks: the cost of the architecture; of a file that does not say which DenseNet it is, that of its graph.
        file_parameters, file_macs: what the graph of a file holds and executes, which is less where norms were folded
            and pooling moved.
        layers: of a file, with the precision that its graph gives each.
        activation_memory, training_memory: None where the architecture is unknown.
        training_step: the measured memory of a training step.
        weights, labels: the source of the weights and the number of labels, where the model states them.
        manifest: all that the model states; not in the JSON.
    """

    kind: ClassVar[str] = "inspect"
    derived: ClassVar[tuple[str, ...]] = ("parameters", "macs")

    model: str
    precision: str
    image_size: Size
    batch: int
    blocks: tuple[BlockCost, ...]
    file_parameters: int | None = None
    file_macs: int | None = None
    layers: tuple[LayerPrecision, ...] = ()
    activation_memory: ActivationMemory | None = None
    training_memory: TrainingMemory | None = None
    training_step: Mapping[str, Any] | None = None
    profile: OperatorProfile | None = None
    weights: str | None = None
    labels: int | None = None
    manifest: Manifest | None = field(default=None, compare=False, metadata={"json": False})

    @property
    def cost(self) -> ModelCost:
        return ModelCost(self.blocks)

    @property
    def parameters(self) -> int:
        return self.cost.parameters

    @property
    def macs(self) -> int:
        return self.cost.macs

    def described(self, manifest: Manifest | None, notes: tuple[str, ...]) -> InspectReport:
        """Return the report with what a model states."""
        if manifest is None:
            return dataclasses.replace(self, notes=notes)
        weights, labels = manifest.weights.source, len(manifest.labels)
        return dataclasses.replace(self, manifest=manifest, weights=weights, labels=labels, notes=notes)

    def to_text(self) -> str:
        total = f"{self.parameters:,} parameters, {self.macs / 1e9:.3f} GMACs per image"
        size = "x".join(map(str, sides(self.image_size)))
        lines = [f"{printable(self.model)} ({self.precision}, {size}): {total}", "", *self._block_lines()]
        if self.file_parameters is not None and self.file_macs is not None:
            macs = f"{self.file_macs / 1e9:.3f} GMACs"
            lines += ["", f"graph of the file: {self.file_parameters:,} parameters, {macs} per image"]
        if self.layers:
            counts = Counter(layer.precision for layer in self.layers)
            lines.append("layers compute in " + ", ".join(f"{name}: {count}" for name, count in counts.most_common()))
        lines += ["", *self._memory_lines()]
        if self.weights is not None:
            lines.append(f"weights {printable(self.weights)}, {self.labels} labels")
        if self.profile is not None:
            lines += ["", self.profile.to_text()]
        return "\n".join(lines).rstrip()

    def _block_lines(self) -> list[str]:
        peaks = (
            {block.name: block.bus_bytes for block in self.activation_memory.blocks} if self.activation_memory else {}
        )
        header = ["block", "parameters", "MMACs", *(["peak MiB"] if peaks else [])]
        rows = [
            [block.name, f"{block.parameters:,}", f"{block.macs / 1e6:.1f}"]
            + ([f"{peaks[block.name] / 2**20:.2f}" if block.name in peaks else ""] if peaks else [])
            for block in self.blocks
        ]
        return table(header, rows, right=(1, 2, 3))

    def _memory_lines(self) -> list[str]:
        lines, batch = [], f"batch {self.batch}"
        if (memory := self.activation_memory) is not None:
            copies = mib(memory.copies_bytes)
            lines.append(f"peak activations, {batch}: {mib(memory.bus_bytes)} in place, {copies} with copies")
        if (kept := self.training_memory) is not None:
            lean = mib(kept.checkpointed_bytes)
            lines.append(f"kept for the backward pass, {batch}: {mib(kept.plain_bytes)}, {lean} with checkpointing")
        if (step := self.training_step) is not None:
            weights = mib(step["weights_bytes"])
            lines.append(
                f"peak of a training step, fp32: {mib(step['peak_bytes'])} with gradients, plus {weights} of weights"
            )
        return lines


def inspect(
    source: Any = None, options: InspectOptions | None = None, **stated: Unpack[LoadOptions]
) -> InspectReport | InspectEngineReport:
    """Inspect a model: what it holds, costs and computes in.

    >>> inspect("121").parameters
    7978856

    Args:
        source: the name of a variant, the path of an engine, or whatever `load` takes; None is the `variant` or the
            `architecture` that is stated, or DenseNet-121.
        options: what to inspect.
        **stated: facts about the source; see `load`.

    Raises:
        UsageError: if the name or an option is invalid.
        InputError: if the file cannot be used.
        MissingPackageError: if a package is missing.
        BackendError: if the backend for the profile cannot be used.
    """
    options = or_default(options, InspectOptions)
    is_named = source is None or (isinstance(source, str) and is_variant(source))
    if is_named and stated.keys() <= ({"architecture", "variant"} if source is None else {"architecture"}):
        return inspect_variant(source or stated.get("variant"), stated.get("architecture"), options)
    if stated or not isinstance(source, (str, os.PathLike)):
        return _of_model(load(source, **stated), options)
    if Path(source).suffix.lower() != ".engine":
        return inspect_file(source, options)
    from densenet_deploy.workflows.inspect.engine import inspect_engine

    return inspect_engine(Path(source), options.batch)


def inspect_variant(
    name: str | None,
    architecture: Architecture | None = None,
    options: InspectOptions | None = None,
    channels: int | None = None,
) -> InspectReport:
    """Inspect a variant by name, or the custom network that `architecture` and the `channels` of images make of it.

    The network is built only for a profile, with random weights.

    Raises:
        UsageError: if the name or a number is invalid.
        MissingPackageError: if a training step or a profile is requested and PyTorch is not installed.
    """
    options, changes = or_default(options, InspectOptions), architecture or Architecture()
    variant = variant_with(name, changes.changes(), channels)
    size = options.image_size or variant.preprocessing.image_size
    report = _of_spec(variant.artifact_name, variant.spec, size, options)
    if options.profile is None:
        return report
    stated: LoadOptions = {"architecture": changes, "image_size": size}
    if name is not None:
        stated["variant"] = name
    if channels is not None:
        stated["channels"] = channels
    model = load(None, **stated)
    return dataclasses.replace(report, profile=profile_model(model, options.batch, options.profile))


def inspect_file(path: StrPath, options: InspectOptions | None = None) -> InspectReport:
    """Inspect a checkpoint or an ONNX file.

    Raises:
        InputError: if the file cannot be used.
        MissingPackageError: if a package is missing.
        BackendError: if the backend for the profile cannot be used.
    """
    artifact = Artifact.open(path)
    if artifact.kind not in ("checkpoint", "onnx"):
        raise ModelFileError(path, f"is an {artifact.kind} file", "inspect the ONNX file from which it was made")
    is_ours = artifact.kind == "onnx" and artifact.manifest is not None
    model = Model(str(path), artifact.manifest, artifact=artifact, notes=untrained_note(artifact.manifest))
    return _of_model(model if is_ours else load(path).replaced(name=str(path)), or_default(options, InspectOptions))


def _of_model(model: Model, options: InspectOptions) -> InspectReport:
    report = (_of_graph if model.is_onnx else _of_module)(model, options).described(model.manifest, model.notes)
    if options.profile is None:
        return report
    return dataclasses.replace(report, profile=profile_model(model, options.batch, options.profile, report.image_size))


def _of_module(model: Model, options: InspectOptions) -> InspectReport:
    known = model.manifest.preprocessing if model.manifest is not None else Preprocessing()
    size, spec = options.image_size or known.image_size, model.spec
    if spec is not None:
        return _of_spec(model.name, spec, size, options)
    if model.module is None:
        raise ModelFileError(model.name, "does not say which network it is", "inspect the ONNX file or the module")
    from densenet_deploy.models.taps import counted_cost

    parameters, macs = counted_cost(copy.deepcopy(model.module).to("meta"), size, known.shape[0])
    network = BlockCost("network", (LayerCost(model.name, parameters, macs, ()),))
    return InspectReport(
        model=model.name, precision=options.precision or "fp32", image_size=size, batch=options.batch, blocks=(network,)
    )


def _of_graph(model: Model, options: InspectOptions) -> InspectReport:
    require_packages("export", "onnx")
    from densenet_deploy.analysis.onnx_cost import onnx_cost
    from densenet_deploy.graph.onnx_file import image_shape_of, with_image_size
    from densenet_deploy.workflows.load import preprocessing_of

    if options.precision not in (None, model.precision):
        raise UsageError(f"precision={options.precision}", f"the model holds {model.precision}", "leave it out")
    proto, size = model.onnx, preprocessing_of(model).image_size
    if None in image_shape_of(proto, model.name)[1:]:
        if options.image_size is None:
            why = "takes images of any size, on which its cost depends"
            raise ModelFileError(model.name, why, f"state one, such as --image-size {size}")
        size = options.image_size
        proto = with_image_size(proto, *sides(size))
    cost, layers = onnx_cost(proto), layer_precisions(proto)
    if options.image_size not in (None, size):
        raise UsageError(f"image-size={options.image_size}", f"the model takes {size} pixels", "leave it out")
    if model.manifest is None or not model.manifest.spec:
        return InspectReport(
            model=model.name,
            precision=model.precision,
            image_size=size,
            batch=options.batch,
            blocks=cost.blocks,
            layers=layers,
        )
    report = inspect_spec(model.name, model.precision, model.manifest, options, size)
    return dataclasses.replace(report, file_parameters=cost.parameters, file_macs=cost.macs, layers=layers)


def _of_spec(
    name: str, spec: DenseNetSpec, image_size: Size, options: InspectOptions, precision: str = ""
) -> InspectReport:
    for side in sides(image_size):
        require_range("image-size", side, spec.smallest_image_size, 8192)
    precision = precision or options.precision or "fp32"
    return InspectReport(
        model=name,
        precision=precision,
        image_size=image_size,
        batch=options.batch,
        blocks=model_cost(spec, image_size).blocks,
        activation_memory=activation_memory(spec, image_size, options.batch, _BYTES.get(precision, 4)),
        training_memory=training_memory(spec, image_size, options.batch),
        training_step=_training_step(spec, image_size, options),
    )


def inspect_spec(
    name: str, precision: str, manifest: Manifest, options: InspectOptions, image_size: Size | None = None
) -> InspectReport:
    """Inspect the architecture that `manifest` describes, running in `precision`.

    Raises:
        ManifestError: if its numbers do not make a network for the image size.
    """
    image_size = image_size or manifest.preprocessing.image_size
    spec = DenseNetSpec.from_facts(manifest.spec)
    if min(sides(image_size)) < spec.smallest_image_size:
        why = f"does not make a network for {image_size} pixels"
        raise ManifestError(f"spec of {name}", why, "export the model again")
    return _of_spec(name, spec, image_size, options, precision).described(manifest, untrained_note(manifest))


def _training_step(spec: DenseNetSpec, image_size: Size, options: InspectOptions) -> Mapping[str, Any] | None:
    if not options.training:
        return None
    require_packages("export", "torch")
    from densenet_deploy.models.build import empty_model
    from densenet_deploy.models.live_memory import training_memory_of

    measured = training_memory_of(empty_model(spec), image_size, options.batch, spec.in_channels)
    return dataclasses.asdict(measured.by_part(network_part))
