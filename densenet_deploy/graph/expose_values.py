"""Make inner tensors of a graph its outputs, so that any backend shows them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import onnx

_CONVERSIONS: Final = ("QuantizeLinear", "DequantizeLinear")


def expose_values(model: onnx.ModelProto, names: Collection[str] | None = None) -> onnx.ModelProto:
    """Return a copy of `model` whose outputs are the values `names`, in execution order.

    Without names that is every value that a node makes, but not what Q/DQ nodes make: those are forms of other values.

    A backend cannot fuse across such an output, so rounding may differ from the deployed graph's in the last bits.
    """
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    known = {info.name: info for info in (*model.graph.value_info, *model.graph.output)}
    made = [
        name
        for node in model.graph.node
        for name in node.output
        if name and (name in names if names is not None else node.op_type not in _CONVERSIONS)
    ]
    del exposed.graph.output[:]
    exposed.graph.output.extend(known.get(name) or onnx.helper.make_empty_tensor_value_info(name) for name in made)
    return exposed
