"""What a convolution reads for each pixel of its output."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from densenet_deploy.graph.windows import Window


@pytest.mark.parametrize(
    ("strides", "dilations", "pads"), [((1, 1), (1, 1), (1, 1, 1, 1)), ((2, 1), (1, 2), (0, 2, 1, 0))]
)
def test_patches_are_what_a_convolution_reads(strides: tuple, dilations: tuple, pads: tuple) -> None:
    rng = np.random.default_rng(0)
    maps, weight = rng.standard_normal((2, 3, 9, 10)).astype(np.float32), rng.standard_normal((4, 3, 3, 3)).astype("f4")
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], strides=strides, dilations=dilations, pads=pads)
    kinds = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("x", "w", "y")]
    graph = onnx.helper.make_graph([node], "g", kinds[:1], kinds[2:], [onnx.numpy_helper.from_array(weight, "w")])
    model = onnx.helper.make_model(graph)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": maps})
    image, row, column = (array.ravel() for array in np.indices((2, *expected.shape[2:])))
    window = Window.of(ir.from_proto(model).graph[0])
    assert window == Window((3, 3), strides, dilations, pads)
    assert window.output_size(9, 10) == expected.shape[2:]
    patches = window.patches(maps, (image, row, column))
    np.testing.assert_allclose(patches @ weight.reshape(4, -1).T, expected[image, :, row, column], atol=1e-4)
