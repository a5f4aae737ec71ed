"""Inspect an engine: what its header and sidecar say, and what its convolutions run in. Nothing is loaded or run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from densenet_deploy.engines.precision import EngineConvolution, PrecisionSummary, precision_of
from densenet_deploy.errors import printable
from densenet_deploy.manifest import Manifest
from densenet_deploy.model import untrained_note
from densenet_deploy.reports import Report, line, mib
from densenet_deploy.runtime.engine_files import read_plan
from densenet_deploy.workflows.inspect.inspect import InspectOptions, InspectReport, inspect_spec

_NO_SIDECAR: Final = "no sidecar: only what the engine itself says is known, and its origin is not"


@dataclass(frozen=True)
class EngineTensor:
    """Name and shape of an input or output; a dimension of None is the profile's."""

    name: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class InspectEngineReport(Report):
    """An engine with its facts, what runs in which precision, and what its architecture costs, where that is known.

    Attributes:
        precision: that was asked for; `unknown` without a sidecar, which also knows what follows `targets`.
        runs: what its convolutions run in, read back from the engine.
        profiles: least, optimal and largest batch of each profile.
        architecture: its costs; in the JSON beside the other keys.
        convolutions, manifest: of the engine; not in the JSON.
    """

    kind: ClassVar[str] = "inspect"

    model: str
    precision: str = "unknown"
    runs: PrecisionSummary
    flavour: str
    version: str
    targets: tuple[str, ...]
    profiles: tuple[tuple[int, int, int], ...] = ()
    inputs: tuple[EngineTensor, ...] = ()
    outputs: tuple[EngineTensor, ...] = ()
    gpu: str | None = None
    onnx_sha256: str | None = None
    bytes: int
    architecture: InspectReport | None = field(default=None, metadata={"json": False})
    convolutions: tuple[EngineConvolution, ...] = field(default=(), metadata={"json": False})
    manifest: Manifest | None = field(default=None, metadata={"json": False})

    def to_json(self) -> dict[str, Any]:
        """Return the report with plain types."""
        unknown: dict[str, Any] = {"parameters": None, "macs": None, "blocks": []}
        return {**(unknown if self.architecture is None else self.architecture.to_json()), **super().to_json()}

    @classmethod
    def from_json(cls, facts: object, origin: object = "report") -> Self:
        """Read what `to_json` returned; errors as for every report."""
        report = super().from_json(facts, origin)
        is_known = isinstance(facts, Mapping) and facts.get("parameters") is not None
        return dataclasses.replace(report, architecture=InspectReport.from_json(facts, origin) if is_known else None)

    def to_text(self) -> str:
        title = f"{printable(self.model)}: {mib(self.bytes)}, {self.flavour} {self.version}"
        lines = [title, line("built for", ", ".join(self.targets) or "unknown GPUs")]
        if self.profiles:
            batches = ", ".join("/".join(map(str, profile)) for profile in self.profiles)
            lines += [line("batches", f"{batches} (min/opt/max)"), line("asked", self.precision)]
        lines.append(line("runs", f"convolutions: {self.runs}"))
        return "\n".join(lines if self.architecture is None else [*lines, "", self.architecture.to_text()])


def inspect_engine(path: Path, batch: int = 1) -> InspectEngineReport:
    """Inspect an engine file, with or without a sidecar.

    Raises:
        ModelFileError: if it is not an engine, or not the one that its sidecar describes.
        ManifestError: if its sidecar cannot be read.
    """
    engine = read_plan(path, trust_engine=True)  # it is read as text, not loaded
    runs, sidecar, header = precision_of(engine), engine.sidecar, engine.header
    report = InspectEngineReport(
        model=str(path),
        runs=runs.summary(),
        flavour=header.flavour,
        version=header.version,
        targets=header.targets,
        bytes=len(engine.data),
        convolutions=tuple(runs.convolutions),
        notes=(_NO_SIDECAR,),
    )
    if sidecar is None:
        return report
    manifest, options = sidecar.manifest, InspectOptions(batch=batch)
    is_ours = manifest is not None and not manifest.is_third_party
    return dataclasses.replace(
        report,
        precision=sidecar.precision,
        version=sidecar.version,
        targets=sidecar.targets,
        profiles=tuple((batches.min, batches.opt, batches.max) for batches in sidecar.profiles),
        inputs=tuple(EngineTensor(tensor.name, tensor.shape) for tensor in sidecar.inputs),
        outputs=tuple(EngineTensor(tensor.name, tensor.shape) for tensor in sidecar.outputs),
        gpu=sidecar.gpu,
        onnx_sha256=sidecar.onnx_sha256,
        architecture=inspect_spec(str(path), sidecar.precision, manifest, options) if manifest and is_ours else None,
        manifest=manifest,
        notes=untrained_note(manifest),
    )
