"""What holds of every pass: results stay, and a graph without a match stays as it was."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.graph_pass import GraphPass, PassReport, apply_passes
from tests.graph.onnx_text import outputs_of

# One float32 rounding of each constant and of sums over at most 100 products near 1: some ulps of their largest sum.
ROUNDING = 1e-5


def rewritten(model: ir.Model, item: str | GraphPass) -> PassReport:
    """Run the pass on `model`, which it must change without changing what comes out; return its report."""
    before = outputs_of(model)
    (report,) = apply_passes(model, [item])
    assert report.changed
    assert_tidy(model)
    for old, new in zip(before, outputs_of(model), strict=True):
        np.testing.assert_allclose(new, old, rtol=ROUNDING, atol=ROUNDING * np.abs(old).max())
    return report


def skipped(model: ir.Model, item: str | GraphPass) -> str:
    """Run the pass on `model`, which must stay the same byte for byte; return the reasons."""
    apply_passes(model, ())  # drop what nothing reads
    text = ir.to_proto(model).SerializeToString(deterministic=True)
    (report,) = apply_passes(model, [item])
    assert report.changed == ()
    assert ir.to_proto(model).SerializeToString(deterministic=True) == text
    return "; ".join(report.skipped)


def assert_tidy(model: ir.Model) -> None:
    """Check that every node is read or leaves the graph, and that no node outside the graph reads its values."""
    for node in model.graph:
        assert any(value.uses() or value.is_graph_output() for value in node.outputs), f"{node.op_type} is left over"
    values = (
        *model.graph.inputs,
        *model.graph.initializers.values(),
        *(v for node in model.graph for v in node.outputs),
    )
    for value in (*model.graph.inputs, *model.graph.initializers.values(), *values):
        assert all(use.node.graph is model.graph for use in value.uses()), f"{value.name} is read by a removed node"
