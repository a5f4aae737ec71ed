"""A small dense block whose Concats are flat lists, or grow in steps."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.graph_pass import PassReport, apply_passes
from tests.graph.onnx_text import model_of, outputs_of

LAYERS = "a = Neg(x)  b = Relu(x)  d = Sigmoid(x)  "
FLAT = LAYERS + "p = Concat<axis=1>(x, a)  q = Concat<axis=1>(x, a, b)  y = Concat<axis=1>(x, a, b, d)  z = Neg(p)"
STEPS = LAYERS + "p = Concat<axis=1>(x, a)  q = Concat<axis=1>(p, b)  y = Concat<axis=1>(q, d)  z = Neg(p)"
OUTPUTS = "float[N,12,5,5] y, float[N,9,5,5] q, float[N,6,5,5] z"


def block(body: str, outputs: str = OUTPUTS) -> ir.Model:
    """The block that `body` writes."""
    return model_of(body, "", outputs=outputs)


def inputs_of_concats(model: ir.Model) -> dict[str, list[str]]:
    """What each Concat reads, by its output."""
    concats = [node for node in model.graph if node.op_type == "Concat"]
    return {node.outputs[0].name: [value.name for value in node.inputs] for node in concats}


def rewritten_bit_for_bit(model: ir.Model, name: str) -> PassReport:
    """Run the pass on `model`, whose outputs must stay the very same, and return its report."""
    before = outputs_of(model)
    (report,) = apply_passes(model, [name])
    for old, new in zip(before, outputs_of(model), strict=True):
        np.testing.assert_array_equal(new, old)
    return report
