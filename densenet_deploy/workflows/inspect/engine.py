"""Inspect an engine: what its header and sidecar say, and what its convolutions run in. Nothing is loaded or run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from densenet_deploy.engines.precision import EnginePrecision, precision_of
from densenet_deploy.errors import printable
from densenet_deploy.records import to_plain
from densenet_deploy.reports import Report
from densenet_deploy.runtime.engine_files import Plan, read_plan
from densenet_deploy.workflows.inspect.inspect import InspectOptions, InspectReport, inspect_spec
from densenet_deploy.workflows.notes import untrained_note

_NO_SIDECAR: Final = "no sidecar: only what the engine itself says is known, and its origin is not"


@dataclass(frozen=True, kw_only=True)
class InspectEngineReport(Report):
    """An engine with its facts, what runs in which precision, and what its architecture costs, where that is known."""

    kind: ClassVar[str] = "inspect"

    plan: Plan
    runs: EnginePrecision
    architecture: InspectReport | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the report with plain types."""
        header, facts = self.plan.header, self.plan.sidecar
        costs: dict[str, Any] = {"parameters": None, "macs": None, "blocks": []}
        return {
            **(costs if self.architecture is None else self.architecture.to_json()),
            "model": str(self.plan.path),
            "precision": "unknown" if facts is None else facts.precision,
            "runs": to_plain(self.runs.summary()),
            "flavour": header.flavour,
            "version": header.version if facts is None else facts.version,
            "targets": list(header.targets if facts is None else facts.targets),
            "profiles": [] if facts is None else [[b.min, b.opt, b.max] for b in facts.profiles],
            "inputs": [] if facts is None else [{"name": t.name, "shape": list(t.shape)} for t in facts.inputs],
            "outputs": [] if facts is None else [{"name": t.name, "shape": list(t.shape)} for t in facts.outputs],
            "gpu": None if facts is None else facts.gpu,
            "onnx_sha256": None if facts is None else facts.onnx_sha256,
            "bytes": len(self.plan.data),
            "notes": list(self.notes),
            **({"argv": list(self.argv)} if self.argv else {}),
        }

    def to_text(self) -> str:
        """Return lines for people."""
        header, facts = self.plan.header, self.plan.sidecar
        targets = ", ".join(header.targets if facts is None else facts.targets) or "unknown GPUs"
        lines = [
            f"{printable(self.plan.path)}: {len(self.plan.data) / 2**20:.1f} MiB, {header.flavour} {header.version}",
            f"built for   {targets}",
        ]
        if facts is not None:
            batches = ", ".join(f"{b.min}/{b.opt}/{b.max}" for b in facts.profiles)
            lines += [f"batches     {batches} (min/opt/max)", f"asked       {facts.precision}"]
        lines.append(f"runs        convolutions: {self.runs.summary()}")
        return "\n".join(lines if self.architecture is None else [*lines, "", self.architecture.to_text()])


def inspect_engine(path: Path, batch: int = 1) -> InspectEngineReport:
    """Inspect an engine file, with or without a sidecar.

    Raises:
        ModelFileError: if it is not an engine, or not the one that its sidecar describes.
        ManifestError: if its sidecar cannot be read.
    """
    options = InspectOptions(batch=batch)
    plan = read_plan(path, trust_engine=True)  # it is read as text, not loaded
    if plan.sidecar is None:
        return InspectEngineReport(plan=plan, runs=precision_of(plan), notes=(_NO_SIDECAR,))
    manifest = plan.sidecar.manifest
    architecture = None if manifest is None else inspect_spec(str(path), plan.sidecar.precision, manifest, options)
    notes = untrained_note(manifest)
    return InspectEngineReport(plan=plan, runs=precision_of(plan), architecture=architecture, notes=notes)
