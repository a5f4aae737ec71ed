"""Make inner tensors of a graph its outputs, so that any backend shows them."""

from __future__ import annotations

from collections.abc import Collection

import onnx


def expose_values(model: onnx.ModelProto, names: Collection[str] | None = None) -> onnx.ModelProto:
    """Return a copy of `model` whose outputs are the values `names` (None: every value that a node makes), in order.

    A backend cannot fuse across such an output, so rounding may differ from the deployed graph's in the last bits.
    """
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    known = {info.name: info for info in (*model.graph.value_info, *model.graph.output)}
    made = [name for node in model.graph.node for name in node.output if name and (names is None or name in names)]
    del exposed.graph.output[:]
    exposed.graph.output.extend(known.get(name) or onnx.helper.make_empty_tensor_value_info(name) for name in made)
    return exposed
