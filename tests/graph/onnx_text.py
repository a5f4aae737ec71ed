"""Small graphs as text, and the numbers they compute."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

HEADER = '<ir_version: 9, opset_import: ["" : 17, "other" : 1]>'


def numbers(shape: tuple[int, ...], seed: int) -> str:
    """Write seeded numbers from 0.5 to 1.5 as ONNX text."""
    values = np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype(np.float32).ravel()
    return "{" + ", ".join(map(str, values.tolist())) + "}"


def weights(**shapes: tuple[int, ...]) -> str:
    """Declare initializers of those shapes as ONNX text."""
    return ", ".join(
        f"float[{','.join(map(str, shape))}] {name} = {numbers(shape, seed)}"
        for seed, (name, shape) in enumerate(shapes.items())
    )


def constants(**arrays: object) -> str:
    """Declare float32 initializers of those numbers as ONNX text."""
    return ", ".join(_declared(name, np.asarray(array, np.float32)) for name, array in arrays.items())


def _declared(name: str, array: np.ndarray) -> str:
    kind = f"float[{','.join(map(str, array.shape))}]" if array.ndim else "float"
    return f"{kind} {name} = {{{', '.join(map(repr, array.ravel().tolist()))}}}"


def value_named(model: ir.Model, name: str) -> ir.Value:
    """The value called `name`: an input, an initializer, or what a node makes."""
    made = [value for node in model.graph for value in node.outputs]
    return next(
        value for value in (*model.graph.inputs, *model.graph.initializers.values(), *made) if value.name == name
    )


def maker_of(model: ir.Model, name: str) -> ir.Node:
    """The node that makes the value called `name`."""
    node = value_named(model, name).producer()
    assert node is not None
    return node


def numbers_of(value: ir.Value | None) -> np.ndarray:
    """The numbers of an initializer."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def model_of(
    body: str,
    initializers: str,
    inputs: str = "float[N,3,5,5] x",
    outputs: str = "float[N,4,5,5] y",
    header: str = HEADER,
) -> ir.Model:
    """Parse a graph whose nodes are `body`."""
    text = f"{header} g ({inputs}) => ({outputs}) <{initializers}> {{ {body} }}"
    proto = onnx.parser.parse_model(text)
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def operators(model: ir.Model) -> list[str]:
    """Operators in execution order."""
    return [node.op_type for node in model.graph]


def outputs_of(model: ir.Model) -> list[np.ndarray]:
    """Check `model` in full and run it on seeded inputs, with ONNX Runtime's own optimizations switched off."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {
        node.name: rng.standard_normal([size if isinstance(size, int) else 2 for size in node.shape], np.float32)
        for node in session.get_inputs()
    }
    return session.run(None, feeds)
