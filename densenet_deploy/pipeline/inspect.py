"""Inspect: parameters, MACs and activation memory, by block, of a variant, a checkpoint or an ONNX file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from densenet_deploy.analysis.cost import ModelCost, model_cost
from densenet_deploy.analysis.memory import ActivationMemory, activation_memory
from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import ManifestError, ModelFileError, UsageError
from densenet_deploy.manifest import Manifest
from densenet_deploy.options import require_range
from densenet_deploy.packages import require_packages
from densenet_deploy.pipeline.load import Architecture, ModelRequest, build, untrained_note
from densenet_deploy.variants import Variant, find_variant, variant_for
from densenet_deploy.variants.spec import DenseNetSpec

_BYTES: Final = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class InspectReport:
    """What a model is and costs for `batch` pictures of `image_size` pixels.

    `cost` is the architecture's; of a file, `file_cost` is what its graph holds and executes, which is less where norms
    were folded and pooling moved. A file that does not say which DenseNet it is has its graph's as `cost`, and
    `memory` None.
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

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types; `macs` are of one picture."""
        return {
            "model": self.name,
            "precision": self.precision,
            "image_size": self.image_size,
            "batch": self.batch,
            **self.cost.to_json(),
            "file_parameters": None if self.file_cost is None else self.file_cost.parameters,
            "file_macs": None if self.file_cost is None else self.file_cost.macs,
            "activation_memory": None if self.memory is None else self.memory.to_json(),
            "weights": None if self.manifest is None else self.manifest.weights.source,
            "labels": None if self.manifest is None else len(self.manifest.labels),
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return lines for people."""
        total = f"{self.cost.parameters:,} parameters, {self.cost.macs / 1e9:.3f} GMACs a picture"
        lines = [f"{self.name} ({self.precision}, {self.image_size}x{self.image_size}): {total}", ""]
        lines.append(f"{'block':20} {'parameters':>12} {'MMACs':>10}")
        lines += [f"{block.name:20} {block.parameters:12,} {block.macs / 1e6:10.1f}" for block in self.cost.blocks]
        if self.file_cost is not None:
            stored, macs = self.file_cost.parameters, self.file_cost.macs / 1e9
            lines += ["", f"the file, rewritten: {stored:,} parameters, {macs:.3f} GMACs"]
        if self.memory is not None:
            bus, copies = self.memory.bus_bytes / 2**20, self.memory.copies_bytes / 2**20
            lines += ["", f"peak activations, batch {self.batch}: {bus:.1f} MiB in place, {copies:.1f} MiB with copies"]
        if self.manifest is not None:
            lines.append(f"weights {self.manifest.weights.source}, {len(self.manifest.labels)} labels")
        return "\n".join(lines)


def inspect_variant(
    name: str | None, architecture: Architecture | None = None, image_size: int | None = None, batch: int = 1
) -> InspectReport:
    """Inspect a variant by name, or the custom network that `architecture` makes of it; nothing is built.

    Raises:
        UsageError: if the name or a number cannot be meant.
    """
    request = ModelRequest(variant=name, architecture=architecture or Architecture())
    variant = _variant(request)
    size = variant.preprocessing.image_size if image_size is None else image_size
    return _of_spec(variant.artifact_name, variant.spec, size, batch, None)


def inspect_file(path: Path, image_size: int | None = None, batch: int = 1) -> InspectReport:
    """Inspect a checkpoint or an ONNX file.

    Raises:
        InputError: if the file cannot be used.
        MissingPackageError: if it takes a package that is not installed.
    """
    require_range("batch", batch, 1, 65536)
    artifact = Artifact.open(path)
    if artifact.kind == "checkpoint":
        model = build(ModelRequest(weights=str(path)))
        size = model.manifest.preprocessing.image_size if image_size is None else image_size
        return _of_spec(str(path), model.variant.spec, size, batch, model.manifest, model.notes)
    if artifact.kind != "onnx":
        raise ModelFileError(path, f"is an {artifact.kind} file", "inspect the ONNX file it was made from")
    report = _of_onnx(artifact, batch)
    if image_size not in (None, report.image_size):
        raise UsageError(f"image-size={image_size}", f"the file takes {report.image_size} pixels", "leave it out")
    return report


def inspect_spec(name: str, precision: str, manifest: Manifest, batch: int = 1) -> InspectReport:
    """Inspect the architecture that `manifest` describes, running in `precision`.

    Raises:
        ManifestError: if it is of no network for its pictures.
    """
    spec, size = DenseNetSpec.from_facts(manifest.spec), manifest.preprocessing.image_size
    if size < spec.smallest_image_size:
        raise ManifestError(f"spec of {name}", f"is of no network for {size} pixels", "export the model again")
    memory = activation_memory(spec, size, batch, _BYTES.get(precision, 4))
    return InspectReport(name, precision, size, batch, model_cost(spec, size), memory, manifest, ())


def _variant(request: ModelRequest) -> Variant:
    variant = find_variant("121" if request.variant is None else request.variant)
    changes = request.architecture.changes()
    return variant_for(dataclasses.replace(variant.spec, **changes)) if changes else variant  # type: ignore[arg-type]


def _of_spec(
    name: str,
    spec: DenseNetSpec,
    image_size: int,
    batch: int,
    manifest: Manifest | None,
    notes: tuple[str, ...] = (),
) -> InspectReport:
    require_range("batch", batch, 1, 65536)
    require_range("image-size", image_size, spec.smallest_image_size, 8192)
    memory = activation_memory(spec, image_size, batch)
    return InspectReport(name, "fp32", image_size, batch, model_cost(spec, image_size), memory, manifest, notes)


def _of_onnx(artifact: Artifact, batch: int) -> InspectReport:
    require_packages("export", "onnx")
    from densenet_deploy.analysis.onnx_cost import onnx_cost
    from densenet_deploy.graph.onnx_file import image_size_of, load_onnx

    path, manifest, precision = artifact.path, artifact.manifest, artifact.precision
    proto = load_onnx(path)
    size, file_cost, notes = image_size_of(proto, path), onnx_cost(proto), untrained_note(manifest)
    if manifest is None:
        return InspectReport(str(path), precision, size, batch, file_cost, None, None, notes)
    spec = DenseNetSpec.from_facts(manifest.spec)
    if size < spec.smallest_image_size:
        raise ManifestError(f"spec of {path}", f"is of no network for {size} pixels", "export the model again")
    memory = activation_memory(spec, size, batch, _BYTES.get(precision, 4))
    return InspectReport(str(path), precision, size, batch, model_cost(spec, size), memory, manifest, notes, file_cost)
