"""Small, valid ONNX files that libraries never finish with, or that take all the memory there is."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

_OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]


def without_end(path: Path) -> Path:
    """A function that calls another twice, which calls another twice, …: inlined, 2^40 nodes."""
    functions = [helper.make_function("own", "F0", ["a"], ["c"], [helper.make_node("Relu", ["a"], ["c"])], _OPSETS)]
    for depth in range(1, 41):
        twice = [
            helper.make_node(f"F{depth - 1}", ["a"], ["b"], domain="own"),
            helper.make_node(f"F{depth - 1}", ["b"], ["c"], domain="own"),
        ]
        functions.append(helper.make_function("own", f"F{depth}", ["a"], ["c"], twice, _OPSETS))
    return _saved(path, [helper.make_node("F40", ["input"], ["logits"], domain="own")], functions=functions)


def without_measure(path: Path) -> Path:
    """A constant of 120 GB, given by its shape: folding it allocates it."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [4], [1, 3, 100_000, 100_000])
    nodes = [
        helper.make_node(
            "ConstantOfShape", ["shape"], ["big"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1])
        ),
        helper.make_node("ReduceMax", ["big"], ["largest"]),
        helper.make_node("Add", ["input", "largest"], ["logits"]),
    ]
    return _saved(path, nodes, initializers=[shape])


def _saved(
    path: Path,
    nodes: list[onnx.NodeProto],
    functions: list[onnx.FunctionProto] | None = None,
    initializers: list[onnx.TensorProto] | None = None,
) -> Path:
    sizes = ["N", 3, 32, 32]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in ("input", "logits")]
    graph = helper.make_graph(nodes, "hostile", ends[:1], ends[1:], initializers or [])
    model = helper.make_model(graph, opset_imports=_OPSETS, functions=functions or [], ir_version=10)
    onnx.save(model, path)
    return path
