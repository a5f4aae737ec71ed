"""Bottlenecks are found, and layers that cannot lose a channel are named with the reason."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from densenet_deploy.graph.bottlenecks import find_bottlenecks
from densenet_deploy.graph.graph_pass import EXACT, apply_passes
from tests.foreign_networks import Encoding, plain

LAYER = """
  e = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x, stem)
  a = Relu(e)
  b = Conv(a, narrow)
  h = Relu(b)
  c = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(h, wide)
  y = Concat<axis=1>(e, c)
"""
SHAPES = {"stem": (4, 3, 3, 3), "narrow": (6, 4, 1, 1), "wide": (2, 6, 3, 3)}


def found_in(body: str, shapes: dict[str, tuple[int, ...]] = SHAPES, output: str = "y") -> tuple[list, tuple[str, ...]]:
    found = find_bottlenecks(_model(body, shapes, output).graph)
    return list(found.found), found.refused


def _model(body: str, shapes: dict[str, tuple[int, ...]], output: str) -> ir.Model:
    declared = ", ".join(f"float[{', '.join(map(str, shape))}] {name}" for name, shape in shapes.items())
    header = '<ir_version: 10, opset_import: ["" : 20]>'
    values = f"(float[1, 3, 8, 8] x, {declared}) => (float[1, 6, 8, 8] {output})"
    proto = onnx.parser.parse_model(f"{header} net {values} {{{body}}}")
    del proto.graph.input[1:]
    for name, shape in shapes.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    for node in proto.graph.node:
        node.name = node.output[0]
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def test_a_bottleneck_is_two_convolutions_and_a_relu() -> None:
    (only,), refused = found_in(LAYER)
    assert (only.name, str(only.activation.name), str(only.reading.name), only.width) == ("b", "h", "c", 6)
    assert refused == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("h = Relu(b)", "h = Sigmoid(b)"), "c: it reads the Sigmoid h, not the ReLU"),
        (("y = Concat<axis=1>(e, c)", "y = Concat<axis=1>(e, c) z = Exp(h)"), "c: its bottleneck h has other readers"),
        (("y = Concat<axis=1>(e, c)", "y = Concat<axis=1>(e, c) z = Exp(b)"), "c: its bottleneck b has other readers"),
        (("Conv(a, narrow)", "Conv<group=2>(a, narrow2)"), "c: b has groups"),
        (("pads=[1, 1, 1, 1]>(h", 'auto_pad="SAME_UPPER">(h'), "c: c pads by itself"),
        (("y = Concat<axis=1>(e, c)", "y = Concat<axis=1>(e, c) z = Exp(narrow)"), "c: b shares its weights"),
        (("b = Conv(a, narrow)", "m = Exp(narrow) b = Conv(a, m)"), "c: the weights of b are not float32 constants"),
    ],
)
def test_another_layer_is_named_with_the_reason(change: tuple[str, str], reason: str) -> None:
    assert change[0] in LAYER
    found, refused = found_in(LAYER.replace(*change), SHAPES | {"narrow2": (6, 2, 1, 1)})
    assert found == []
    assert [sentence.startswith(reason) for sentence in refused] == [True], refused


def test_a_layer_without_bottleneck_says_so() -> None:
    body = LAYER.replace("b = Conv(a, narrow)", "").replace("h = Relu(b)", "h = Relu(e)")
    found, refused = found_in(body, SHAPES | {"wide": (2, 4, 3, 3)})
    assert found == []
    assert refused == ("c: a layer without bottleneck: its ReLU follows the Conv e, not a 1x1 convolution",)


def test_what_is_not_appended_to_a_bus_is_none_of_its_layers() -> None:
    """A ResNet's bottleneck ends in a sum."""
    assert found_in(LAYER.replace("y = Concat<axis=1>(e, c)", "y = Exp(c)")) == ([], ())


@pytest.mark.parametrize("flat", [True, False])
def test_those_of_other_exporters_are_found_after_the_exact_passes(flat: bool) -> None:
    model = ir.from_proto(onnx.shape_inference.infer_shapes(plain(Encoding(flat=flat))))
    apply_passes(model, EXACT)
    found, refused = find_bottlenecks(ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model))).graph)
    assert (len(found), refused) == (4, ())
