"""Write each Concat of a dense block as one flat list, instead of the Concat before it and one new tensor.

Concat is associative: the values stay the same bit for bit, and every Concat keeps its name. Nothing reads a Concat
any more that only fed other Concats. The opposite rewrite is `concat-incremental`; which of them runs faster depends on
the target.
"""

from __future__ import annotations

import onnx_ir as ir

from densenet_deploy.graph.bus import channel_concats, runs_of
from densenet_deploy.graph.graph_pass import GraphPass, PassOutcome, graph_passes
from densenet_deploy.graph.nodes import set_inputs


@graph_passes.register("concat-flat")
class ConcatFlat(GraphPass):
    """Let every Concat along the channels read the tensors that its input Concats read."""

    def call(self, model: ir.Model) -> PassOutcome:
        concats = channel_concats(model.graph)
        runs = runs_of(concats)
        changed = [node for node in concats if runs[node.outputs[0]] != tuple(node.inputs)]
        for node in changed:
            set_inputs(node, runs[node.outputs[0]])
        return PassOutcome.of(model, [node.name or "Concat" for node in changed])
