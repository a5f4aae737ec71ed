"""Small graphs written by a recipe, as lines of text, and what they compute."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from densenet_deploy.quantization.recipes.recipe import RecipeOptions, recipes
from densenet_deploy.quantization.scales import QuantizedType

Types = dict[str, QuantizedType]

HALF = QuantizedType(0.5, 0)
SIGNED = QuantizedType(0.5, 128)
FINE = QuantizedType(0.25, 0)
SHIFTED = QuantizedType(0.25, 100)

CONSTANTS = {
    "w": [[1, 1], [-1, 1]],
    "v": [[0, 1], [1, -1]],
    "u": [[1, 0, 1, -1], [0, 1, 1, 1]],
    "wide": [[[[0, 1, 0], [1, 1, 0], [0, 0, -1]]] * 2] * 2,
    "bias": [1, -2],
    "each": [[2], [-1]],
    "zero": [[[0]]],
    "three": 3,
    "low": [[[0]], [[2]]],
    "high": [[[3]], [[1]]],
    "gamma": [2, -1],
    "beta": [1, 0],
    "mean": [0, 1],
    "variance": [1, 1],
    "gamma4": [1, -1, 2, 1],
    "beta4": [0, 1, 1, 4],
    "mean4": [0, 0, 0, 0],
    "variance4": [1, 1, 1, 1],
    "square": [[1, 2], [-1, 1]],
    "tiny": [2.0**-26, 2.0**-26],
}
"""Small integers, which are exact at the scales of the tests."""


def graph_of(
    body: str,
    inputs: str = "float[1,2,4,4] x",
    outputs: str = "float[1,2,H,W] y",
    *,
    shapes: bool = True,
    opset: int = 20,
) -> ir.Model:
    """A graph that reads CONSTANTS; without `shapes`, those of its inner values are unknown."""
    text = f'<ir_version: 9, opset_import: ["" : {opset}, "other" : 1]> g ({inputs}) => ({outputs}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    for name, numbers in CONSTANTS.items():
        array = np.float32(numbers)
        array = array[:, :, None, None] if array.ndim == 2 and name != "square" else array
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto) if shapes else proto)


def write(recipe: str, model: ir.Model, types: Types, **options: object) -> tuple[str, ...]:
    """Let the recipe write the model, and return what it returns."""
    return recipes.get(recipe)().write(model, types, RecipeOptions(**options))  # type: ignore[arg-type]


def lines(model: ir.Model) -> list[str]:
    """One line for each node that an output needs, in execution order: scalars by value, other constants by shape."""
    needed = set(model.graph.outputs)
    for node in reversed(model.graph):
        if not needed.isdisjoint(node.outputs):
            needed.update(node.inputs)
    return [_line(node) for node in model.graph if not needed.isdisjoint(node.outputs)]


def _line(node: ir.Node) -> str:
    inputs = ", ".join("" if value is None else _text(value) for value in node.inputs)
    attributes = "".join(f" {name}={attribute.value}" for name, attribute in sorted(node.attributes.items()))
    attributes = attributes.replace(", ", ",")
    return f"{', '.join(str(value.name) for value in node.outputs)} = {node.op_type}({inputs}){attributes}"


def _text(value: ir.Value) -> str:
    if value.const_value is None:
        return str(value.name)
    array = value.const_value.numpy()
    kind = f"{array.dtype.kind}{array.itemsize * 8}"
    return f"{kind}:{array:g}" if array.ndim == 0 else f"{kind}{list(array.shape)}".replace(" ", "")


def same(model: ir.Model, before: list[np.ndarray], tolerance: float = 1e-5) -> None:
    """Assert that the model computes what it did before, up to the rounding of scales (of float32, if not said)."""
    for found, wanted in zip(outputs_of(model), before, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


@dataclass(frozen=True)
class Case:
    """A graph, the types of its values, and what a recipe makes of it; long lines may be wrapped."""

    name: str
    body: str
    types: Types
    integer: tuple[str, ...]
    lines: str
    options: dict[str, object] = field(default_factory=dict)
    graph: dict[str, object] = field(default_factory=dict)
    tolerance: float = 1e-5

    def check(self, recipe: str, **options: object) -> None:
        """Assert that the recipe writes these lines, and that they compute what the graph computed."""
        model = graph_of(self.body, **self.graph)  # type: ignore[arg-type]
        before = outputs_of(model)
        assert write(recipe, model, self.types, **(options | self.options)) == self.integer
        assert "\n".join(lines(model)).split() == self.lines.split()
        same(model, before, self.tolerance)


def each(*cases: Case) -> pytest.MarkDecorator:
    """Run a test for each of the cases, under its name."""
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def constant_of(model: ir.Model, name: str) -> list:
    """The numbers of an initializer."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy().tolist()


def outputs_of(model: ir.Model) -> list[np.ndarray]:
    """Check the model in full and run it on whole numbers, with ONNX Runtime's own optimizations switched off."""
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]  # types of the float graph
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {node.name: rng.integers(0, 4, node.shape).astype(np.float32) for node in session.get_inputs()}
    return session.run(None, feeds)
