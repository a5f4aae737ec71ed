"""Simplify: onnxsim, then our exact passes, then the ONNX checker; the result is compared with the original."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Unpack

from densenet_deploy.artifacts import StrPath
from densenet_deploy.errors import ModelFileError
from densenet_deploy.model import Model
from densenet_deploy.packages import installed_version, require_packages
from densenet_deploy.parity.compare import Parity
from densenet_deploy.reports import Report, line, wrote
from densenet_deploy.workflows.compare import ParityOfOutputs, require_parity, seeded_parity
from densenet_deploy.workflows.float_model import normalized_form, pixel_form
from densenet_deploy.workflows.load import LoadOptions, load, preprocessing_of
from densenet_deploy.workflows.outputs import Destination

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from densenet_deploy.graph.graph_pass import PassReport

PRODUCER: Final = "densenet-deploy"
PARITY_SAMPLES: Final = 4


@dataclass(frozen=True)
class PassSummary:
    """What one pass did: how many nodes it changed, and a sentence for each near miss that it skipped."""

    name: str
    changed: int
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class SimplifiedGraph:
    """A simplified, checked graph, what each pass did, and what was not done on purpose."""

    proto: onnx.ModelProto
    passes: tuple[PassReport, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SimplifyReport(Report, ParityOfOutputs):
    """The graph before and after in nodes by operator, and its parity with the original."""

    kind: ClassVar[str] = "simplify"
    derived: ClassVar[tuple[str, ...]] = ("nodes_before", "nodes_after", "parity")

    onnx: Path | None
    operators_before: Mapping[str, int]
    operators_after: Mapping[str, int]
    passes: tuple[PassSummary, ...]
    outputs: Mapping[str, Parity]

    @property
    def nodes_before(self) -> int:
        """Nodes of the original."""
        return sum(self.operators_before.values())

    @property
    def nodes_after(self) -> int:
        """Nodes of the result."""
        return sum(self.operators_after.values())

    def to_text(self) -> str:
        before, after = self.operators_before, self.operators_after
        changed = [name for name in sorted({*before, *after}) if before.get(name, 0) != after.get(name, 0)]
        return "\n".join(
            [
                *wrote(self.onnx),
                line("nodes", f"{self.nodes_before} -> {self.nodes_after}"),
                *(f"  {name:24}  {before.get(name, 0):4} -> {after.get(name, 0)}" for name in changed),
                *(line("pass", f"{summary.name}: {summary.changed} changed") for summary in self.passes),
                line("parity", self.parity),
            ]
        )


def simplify(source: Any, *, out: StrPath | None = None, force: bool = False, **stated: Unpack[LoadOptions]) -> Model:
    """Simplify an ONNX graph and compare it with the original; the file, if any, is called `NAME.simplified.onnx`.

    >>> simplify("digits.onnx").report.nodes_after
    161

    Args:
        source: whatever `load` takes that holds an ONNX graph.
        out: a file, or a folder for the file; None writes nothing.
        force: replace whatever stands at `out`.
        **stated: facts about the source; see `load`.

    Raises:
        ModelFileError: if the source is not an ONNX image model.
        OutputExistsError: if another artifact stands where the result should go.
        GateError: if the result computes something else; then nothing is written.
    """
    require_packages("export", "onnx", "onnxscript", "onnxsim")
    original = load(source, **stated)
    name = f"{original.name}.simplified"
    size = len(original.to_bytes()) if original.is_onnx else 0
    destination = Destination.of(out, f"{name}.onnx", original.manifest, force=force, size_bytes=size)
    result, report = simplified(original, name)
    result = destination.write(result)
    return result.replaced(report=dataclasses.replace(report, onnx=result.path))


def simplified(original: Model, name: str) -> tuple[Model, SimplifyReport]:
    """Return the simplified form of an ONNX model in memory, checked and compared. Errors as `simplify`."""
    from densenet_deploy.graph.onnx_file import operators

    plain = normalized_form(original)
    graph = simplify_graph(plain.ir(), original.onnx.graph.name or original.name)
    result = Model.from_onnx(name, graph.proto, plain.manifest)
    result = result if plain is original else pixel_form(result)
    outputs = seeded_parity(original, result, preprocessing_of(original), PARITY_SAMPLES)
    require_parity(outputs, "fp32", name, "the simplified model computes something else", "keep the original")
    report = SimplifyReport(
        onnx=None,
        operators_before=operators(original.onnx),
        operators_after=operators(result.onnx),
        passes=tuple(PassSummary(done.name, len(done.changed), done.skipped) for done in graph.passes),
        outputs=outputs,
        notes=(*original.notes, *graph.notes),
    )
    return result, report


def simplify_graph(graph: ir.Model, name: str) -> SimplifiedGraph:
    """Run onnxsim, the exact passes and the checker on a graph, which is then called `name`.

    Raises:
        ModelFileError: if onnxsim or the checker refuse it.
    """
    import onnx
    import onnx_ir

    from densenet_deploy.graph.graph_pass import EXACT, apply_passes
    from densenet_deploy.graph.simplify import simplify_onnx

    first = simplify_onnx(onnx_ir.to_proto(graph))
    rewritten = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(first.model))
    passes = apply_passes(rewritten, EXACT)
    return SimplifiedGraph(finished(onnx_ir.to_proto(rewritten), name), passes, first.notes)


def finished(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return `proto` after it was called `name`, its weights put in the order in which they are read, and checked.

    Raises:
        ModelFileError: if the checker refuses it.
    """
    import onnx

    graph = proto.graph
    places: dict[str, int] = {}
    for value in (value for node in graph.node for value in node.input):
        places.setdefault(value, len(places))
    weights = sorted(graph.initializer, key=lambda weight: places.get(weight.name, len(places)))
    del graph.initializer[:]
    graph.initializer.extend(weights)
    proto.producer_name, proto.producer_version, graph.name = PRODUCER, installed_version(PRODUCER) or "", name
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ModelFileError(name, f"the ONNX checker refuses it: {exc}", "report this model") from exc
    return proto
