"""Write each Concat of a dense block as the Concat before it and the new tensor, instead of a flat list of all.

A block's Concats grow by one tensor per layer; flat, each copies all of it again from as many inputs. Concat is
associative: the values stay the same bit for bit, and every Concat keeps its name. The opposite rewrite is
`concat-flat`; which of them runs faster depends on the target.
"""

from __future__ import annotations

import onnx_ir as ir

from densenet_deploy.graph.bus import Runs, channel_concats, runs_of
from densenet_deploy.graph.graph_pass import GraphPass, PassOutcome, graph_passes
from densenet_deploy.graph.nodes import set_inputs


@graph_passes.register("concat-incremental")
class ConcatIncrementally(GraphPass):
    """Let every Concat along the channels read the earlier Concat that holds most of its first tensors."""

    def call(self, model: ir.Model) -> PassOutcome:
        concats = channel_concats(model.graph)
        runs = runs_of(concats)
        changed, skipped = [], []
        for place, node in enumerate(concats):
            run = runs[node.outputs[0]]
            prefix = _longest_prefix(run, runs, concats[:place])
            inputs = run if prefix is None else (prefix, *run[len(runs[prefix]) :])
            if prefix is None and len(run) > 2:
                skipped.append(f"{node.name or node.op_type}: no earlier Concat holds its first tensors")
            elif len(inputs) < len(node.inputs):
                set_inputs(node, inputs)
                changed.append(node.name or node.op_type)
        return PassOutcome.of(model, changed, skipped)


def _longest_prefix(run: tuple[ir.Value, ...], runs: Runs, earlier: list[ir.Node]) -> ir.Value | None:
    """Return the output of the Concat among `earlier` that holds the most of what `run` begins with, at least two."""
    outputs = [node.outputs[0] for node in earlier]
    fitting = [
        value for value in outputs if 2 <= len(runs[value]) < len(run) and run[: len(runs[value])] == runs[value]
    ]
    return max(fitting, key=lambda value: len(runs[value]), default=None)
