"""Inspect: what a variant, a checkpoint or an ONNX file holds, costs and computes in, and where its time goes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from densenet_deploy.analysis.cost import ModelCost, model_cost, network_part
from densenet_deploy.analysis.memory import ActivationMemory, TrainingMemory, activation_memory, training_memory
from densenet_deploy.analysis.onnx_precision import LayerPrecision, layer_precisions
from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import ManifestError, ModelFileError, UsageError, printable
from densenet_deploy.facts import Architecture
from densenet_deploy.manifest import Manifest
from densenet_deploy.options import require_choice, require_range
from densenet_deploy.packages import require_packages
from densenet_deploy.variants import variant_with
from densenet_deploy.variants.spec import DenseNetSpec
from densenet_deploy.workflows.inspect.operator_profile import (
    OperatorProfile,
    ProfileOptions,
    profile_file,
    profile_model,
)
from densenet_deploy.workflows.load import ModelRequest, build, load
from densenet_deploy.workflows.notes import untrained_note

if TYPE_CHECKING:
    from densenet_deploy.models.live_memory import LiveMemory

_BYTES: Final = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
_MIB: Final = 2**20


@dataclass(frozen=True)
class InspectOptions:
    """What to look at.

    Attributes:
        image_size: pixels; None means the model's own.
        batch: images at once, for memory and the profile.
        precision: of the activations: fp32, fp16, bf16, int8; None means the file's, else fp32.
        training: measure the memory of a training step, which takes PyTorch.
        profile: run the model under its backend's profiler; None: do not.
    """

    image_size: int | None = None
    batch: int = 1
    precision: str | None = None
    training: bool = False
    profile: ProfileOptions | None = None

    def __post_init__(self) -> None:
        require_range("batch", self.batch, 1, 65536)
        if self.precision is not None:
            require_choice("precision", self.precision, tuple(_BYTES))


@dataclass(frozen=True)
class InspectReport:
    """What a model is and costs for `batch` images of `image_size` pixels.

    `cost` is the architecture's; of a file, `file_cost` is what its graph holds and executes, which is less where norms
    were folded and pooling moved. A file that does not say which DenseNet it is has its graph's as `cost`, and
    `memory` None. `layers` are a file's, with the precision that its graph gives each.
    """

    name: str
    precision: str
    image_size: int
    batch: int
    cost: ModelCost
    memory: ActivationMemory | None
    manifest: Manifest | None
    notes: tuple[str, ...]
    file_cost: ModelCost | None = None
    layers: tuple[LayerPrecision, ...] = ()
    kept_for_training: TrainingMemory | None = None
    training_step: LiveMemory | None = None
    profile: OperatorProfile | None = None

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types; `macs` are of one image."""
        return {
            "model": self.name,
            "precision": self.precision,
            "image_size": self.image_size,
            "batch": self.batch,
            **self.cost.to_json(),
            "file_parameters": None if self.file_cost is None else self.file_cost.parameters,
            "file_macs": None if self.file_cost is None else self.file_cost.macs,
            "layers": [layer.to_json() for layer in self.layers],
            "activation_memory": None if self.memory is None else self.memory.to_json(),
            "training_memory": None if self.kept_for_training is None else self.kept_for_training.to_json(),
            "training_step": None if self.training_step is None else asdict(self.training_step),
            "profile": None if self.profile is None else self.profile.to_json(),
            "weights": None if self.manifest is None else self.manifest.weights.source,
            "labels": None if self.manifest is None else len(self.manifest.labels),
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return lines for people."""
        total = f"{self.cost.parameters:,} parameters, {self.cost.macs / 1e9:.3f} GMACs an image"
        lines = [f"{printable(self.name)} ({self.precision}, {self.image_size}x{self.image_size}): {total}", ""]
        lines += self._block_lines()
        if self.file_cost is not None:
            stored, macs = self.file_cost.parameters, self.file_cost.macs / 1e9
            lines += ["", f"the file, rewritten: {stored:,} parameters, {macs:.3f} GMACs"]
        if self.layers:
            counts = Counter(layer.precision for layer in self.layers)
            lines.append("layers compute in " + ", ".join(f"{name}: {count}" for name, count in counts.most_common()))
        lines += ["", *self._memory_lines()]
        if self.manifest is not None:
            lines.append(f"weights {printable(self.manifest.weights.source)}, {len(self.manifest.labels)} labels")
        if self.profile is not None:
            lines += ["", self.profile.to_text()]
        return "\n".join(lines).rstrip()

    def _block_lines(self) -> list[str]:
        memory = {} if self.memory is None else {block.name: block for block in self.memory.blocks}
        lines = [f"{'block':20} {'parameters':>12} {'MMACs':>10}" + (f" {'peak MiB':>9}" if memory else "")]
        for block in self.cost.blocks:
            peak = f" {memory[block.name].bus_bytes / _MIB:9.2f}" if block.name in memory else ""
            lines.append(f"{block.name:20} {block.parameters:12,} {block.macs / 1e6:10.1f}{peak}")
        return lines

    def _memory_lines(self) -> list[str]:
        lines = []
        if self.memory is not None:
            bus, copies = self.memory.bus_bytes / _MIB, self.memory.copies_bytes / _MIB
            lines.append(f"peak activations, batch {self.batch}: {bus:.1f} MiB in place, {copies:.1f} MiB with copies")
        if self.kept_for_training is not None:
            plain = self.kept_for_training.plain_bytes / _MIB
            lean = self.kept_for_training.checkpointed_bytes / _MIB
            lines.append(f"kept to train, batch {self.batch}: {plain:.1f} MiB, {lean:.1f} MiB with checkpointing")
        if self.training_step is not None:
            peak, weights = self.training_step.peak_bytes / _MIB, self.training_step.weights_bytes / _MIB
            lines.append(f"peak of a step, fp32: {peak:.1f} MiB with gradients, beside {weights:.1f} MiB of weights")
        return lines


def inspect_variant(
    name: str | None, architecture: Architecture | None = None, options: InspectOptions | None = None
) -> InspectReport:
    """Inspect a variant by name, or the custom network that `architecture` makes of it.

    Nothing is built, unless a profile is asked for, which the untrained network is run for.

    Raises:
        UsageError: if the name or a number cannot be meant.
        MissingPackageError: if a training step or a profile is asked for and PyTorch is not installed.
    """
    options = options or InspectOptions()
    request = ModelRequest(variant=name, architecture=architecture or Architecture(), image_size=options.image_size)
    variant = variant_with(name, request.architecture.changes())
    size = options.image_size or variant.preprocessing.image_size
    report = _of_spec(variant.artifact_name, variant.spec, size, options)
    if options.profile is None:
        return report
    profile = profile_model(build(request), options.batch, options.profile)
    return dataclasses.replace(report, profile=profile)


def inspect_file(path: Path, options: InspectOptions | None = None) -> InspectReport:
    """Inspect a checkpoint or an ONNX file.

    Raises:
        InputError: if the file cannot be used.
        MissingPackageError: if it takes a package that is not installed.
        BackendError: if the backend for the profile cannot be had.
    """
    options = options or InspectOptions()
    artifact = Artifact.open(path)
    if artifact.kind == "checkpoint":
        report = _of_checkpoint(path, options)
    elif artifact.kind == "onnx":
        report = _of_onnx(artifact, options)
    else:
        raise ModelFileError(path, f"is an {artifact.kind} file", "inspect the ONNX file it was made from")
    if options.profile is None:
        return report
    return dataclasses.replace(report, profile=profile_file(path, options.batch, options.profile))


def inspect_spec(name: str, precision: str, manifest: Manifest, options: InspectOptions | None = None) -> InspectReport:
    """Inspect the architecture that `manifest` describes, running in `precision`.

    Raises:
        ManifestError: if it is of no network for its images.
    """
    return _of_manifest(name, precision, manifest, manifest.preprocessing.image_size, options or InspectOptions())


def _of_checkpoint(path: Path, options: InspectOptions) -> InspectReport:
    model = load(path)
    assert model.manifest is not None
    assert model.spec is not None
    size = options.image_size or model.manifest.preprocessing.image_size
    report = _of_spec(str(path), model.spec, size, options)
    return dataclasses.replace(report, manifest=model.manifest, notes=model.notes)


def _of_spec(name: str, spec: DenseNetSpec, image_size: int, options: InspectOptions) -> InspectReport:
    require_range("image-size", image_size, spec.smallest_image_size, 8192)
    precision = options.precision or "fp32"
    return InspectReport(
        name,
        precision,
        image_size,
        options.batch,
        model_cost(spec, image_size),
        activation_memory(spec, image_size, options.batch, _BYTES[precision]),
        manifest=None,
        notes=(),
        kept_for_training=training_memory(spec, image_size, options.batch),
        training_step=_training_step(spec, image_size, options),
    )


def _of_manifest(
    name: str, precision: str, manifest: Manifest, image_size: int, options: InspectOptions
) -> InspectReport:
    spec = DenseNetSpec.from_facts(manifest.spec)
    if image_size < spec.smallest_image_size:
        raise ManifestError(f"spec of {name}", f"is of no network for {image_size} pixels", "export the model again")
    report = _of_spec(name, spec, image_size, options)
    memory = activation_memory(spec, image_size, options.batch, _BYTES.get(precision, 4))
    return dataclasses.replace(report, precision=precision, memory=memory, manifest=manifest)


def _training_step(spec: DenseNetSpec, image_size: int, options: InspectOptions) -> LiveMemory | None:
    if not options.training:
        return None
    require_packages("export", "torch")
    from densenet_deploy.models.build import empty_model
    from densenet_deploy.models.live_memory import training_memory_of

    return training_memory_of(empty_model(spec), image_size, options.batch).by_part(network_part)


def _of_onnx(artifact: Artifact, options: InspectOptions) -> InspectReport:
    require_packages("export", "onnx")
    from densenet_deploy.analysis.onnx_cost import onnx_cost
    from densenet_deploy.graph.onnx_file import image_size_of, load_onnx

    path, manifest, precision = artifact.path, artifact.manifest, artifact.precision
    if options.precision not in (None, precision):
        raise UsageError(f"precision={options.precision}", f"the file holds {precision}", "leave it out")
    proto = load_onnx(path)
    size, file_cost, notes = image_size_of(proto, path), onnx_cost(proto), untrained_note(manifest)
    if options.image_size not in (None, size):
        raise UsageError(f"image-size={options.image_size}", f"the file takes {size} pixels", "leave it out")
    layers = layer_precisions(proto)
    if manifest is None:
        return InspectReport(str(path), precision, size, options.batch, file_cost, None, None, notes, layers=layers)
    report = _of_manifest(str(path), precision, manifest, size, options)
    return dataclasses.replace(report, notes=notes, file_cost=file_cost, layers=layers)
