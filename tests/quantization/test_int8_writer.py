"""Which tensors the writer needs ranges of; what it writes is covered with the recipes."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from densenet_deploy.quantization.int8_writer import tensors_to_observe
from tests.graph.onnx_text import model_of, weights

BLOCK = """
a = Conv(x, w)  r = Relu(a)  b = Conv(r, v)  c = Concat<axis=1>(x, b)
n = Shape(c)  one = Constant<value = int64[1] {-1}>()  i = Constant<value = int64[1] {0}>()
batch = Gather(n, i)  size = Concat<axis=0>(batch, one)  f = Reshape(c, size)  y = Relu(f)
"""
SHAPES = weights(w=(4, 3, 1, 1), v=(2, 4, 1, 1))


def _typed() -> ir.Model:
    model = model_of(BLOCK, SHAPES, outputs="float[N,M] y")
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True))


def test_feature_maps_of_convolutions_relus_and_concats_are_observed():
    """Not the output of a Conv that a ReLU follows, nor the input of the graph, whose range is known."""
    assert tensors_to_observe(_typed()) == ("r", "b", "c")


def test_sizes_and_rows_of_numbers_are_not_observed():
    names = tensors_to_observe(_typed())
    assert not {"batch", "one", "size", "y"} & set(names)
