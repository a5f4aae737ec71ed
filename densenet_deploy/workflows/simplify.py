"""Simplify: onnxsim, then our exact passes, then the ONNX checker; the file is proved to compute what it computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from densenet_deploy.artifacts import Artifact, output_path, prepare_output, write_file
from densenet_deploy.errors import GateError, ModelFileError, printable
from densenet_deploy.packages import require_packages
from densenet_deploy.parity.compare import Parity
from densenet_deploy.parity.gates import DEFAULT_GATES, failed_gates

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from densenet_deploy.graph.graph_pass import PassReport

PRODUCER: Final = "densenet-deploy"


@dataclass(frozen=True)
class Simplified:
    """A simplified, checked model, what each pass did, and what was left alone on purpose."""

    model: onnx.ModelProto
    passes: tuple[PassReport, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class SimplifyReport:
    """The file written, its size before and after in nodes, and its parity with the original."""

    onnx: Path
    operators_before: Mapping[str, int]
    operators_after: Mapping[str, int]
    passes: tuple[PassReport, ...]
    parity: Parity
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types."""
        return {
            "onnx": str(self.onnx),
            "nodes_before": sum(self.operators_before.values()),
            "nodes_after": sum(self.operators_after.values()),
            "operators_before": dict(self.operators_before),
            "operators_after": dict(self.operators_after),
            "passes": [report.to_json() for report in self.passes],
            "parity": self.parity.to_json(),
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return lines for people."""
        before, after = self.operators_before, self.operators_after
        changed = [name for name in sorted({*before, *after}) if before.get(name, 0) != after.get(name, 0)]
        return "\n".join(
            [
                f"wrote       {printable(self.onnx)}",
                f"nodes       {sum(before.values())} -> {sum(after.values())}",
                *(f"  {name:24}  {before.get(name, 0):4} -> {after.get(name, 0)}" for name in changed),
                *(f"pass        {report.name}: {len(report.changed)} changed" for report in self.passes),
                f"parity      {self.parity}",
            ]
        )


def simplified(model: ir.Model, graph_name: str) -> Simplified:
    """Run onnxsim, the exact passes and the checker on `model`.

    Raises:
        ModelFileError: if onnxsim or the checker refuse the model.
    """
    import onnx
    import onnx_ir

    from densenet_deploy.graph.graph_pass import EXACT, apply_passes
    from densenet_deploy.graph.simplify import simplify_onnx

    first = simplify_onnx(onnx_ir.to_proto(model))
    rewritten = onnx_ir.from_proto(first.model)
    passes = apply_passes(rewritten, EXACT)
    rewritten.producer_name, rewritten.graph.name = PRODUCER, graph_name
    proto = onnx_ir.to_proto(rewritten)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ModelFileError(graph_name, f"the ONNX checker refuses it: {exc}", "report this model") from exc
    return Simplified(proto, passes, first.notes)


def simplify(model: Path, out: str | None = None, *, force: bool = False) -> SimplifyReport:
    """Simplify an ONNX file; by default the result stands beside it as `NAME.simplified.onnx`.

    Raises:
        ModelFileError: if the file is no ONNX image model.
        OutputExistsError: if something else stands where the result should go.
        GateError: if the result computes something else; then nothing is written.
    """
    require_packages("export", "onnx", "onnxscript", "onnxsim")
    import onnx_ir

    from densenet_deploy.graph.onnx_file import load_onnx, operators
    from densenet_deploy.workflows.validate import compare_files

    manifest, name = Artifact.open(model).manifest, f"{model.stem}.simplified.onnx"
    path = output_path(out, name) if out is not None else model.with_name(name)
    prepare_output(path, manifest, force=force, size_bytes=model.stat().st_size)
    original = load_onnx(model)
    result = simplified(onnx_ir.from_proto(original), original.graph.name or model.stem)
    data = result.model.SerializeToString()
    parity = compare_files(model, data)
    failures = failed_gates(parity, DEFAULT_GATES["fp32"])
    if failures:
        raise GateError(
            path, f"the simplified model computes something else: {'; '.join(failures)}", "keep the original"
        )
    write_file(path, data)
    before, after = operators(original), operators(result.model)
    return SimplifyReport(path, before, after, result.passes, parity, result.notes)
