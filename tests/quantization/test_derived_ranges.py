"""Extremes that follow from others are those that the tensors have."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from densenet_deploy.graph.onnx_file import expose_values
from densenet_deploy.quantization.derived_ranges import derivable, derived
from densenet_deploy.quantization.observers.observer import ChannelRanges
from tests.graph.onnx_text import constants, model_of, weights
from tests.properties.test_graph_passes import opened

BODY = """
a = Conv(x, w)  n = BatchNormalization(a, g, b, m, v)  r = Relu(n)  c = Concat<axis=1>(a, r)
k = BatchNormalization(x, g, b, m, v)  t = Concat<axis=2>(a, r)  p = MaxPool<kernel_shape=[2, 2]>(r)  q = Relu(p)
d = Concat<axis=1>(c, r)  s = Relu(d)  y = Add(s, d)
"""
NUMBERS = constants(g=[2, -1, 0], b=[1, 0, 3], m=[0.5, 0, -1], v=[1, 4, 1])


@pytest.fixture
def model() -> ir.Model:
    proto = ir.to_proto(model_of(BODY, f"{weights(w=(3, 3, 1, 1))}, {NUMBERS}", outputs="float[N,9,5,5] y"))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def test_the_outputs_of_norms_relus_and_concats_along_channels_follow(model: ir.Model) -> None:
    names = [node.outputs[0].name for node in derivable(model.graph, {"a"})]
    assert names == ["n", "r", "c", "d", "s"], "not of x, which is unknown; not of a pool; not of a Concat of rows"
    assert [node.outputs[0].name for node in derivable(model.graph, {"a", "r"}, ("Concat",))] == ["c", "d"]


def test_a_norm_in_training_mode_has_extremes_of_its_own(model: ir.Model) -> None:
    norm = model.graph[1]
    norm.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    assert list(derivable(model.graph, {"a"})) == []


def test_what_follows_is_what_the_tensors_reach(model: ir.Model) -> None:
    pixels = np.random.default_rng(0).normal(0, 3, (4, 3, 5, 5)).astype(np.float32)
    session = opened(expose_values(ir.to_proto(model)))
    names = [output.name for output in session.get_outputs()]
    seen = {
        name: ChannelRanges(array.min((0, 2, 3)), array.max((0, 2, 3)))
        for name, array in zip(names, session.run(None, {"x": pixels}), strict=True)
    }
    found = derived(model.graph, {"a": seen["a"]})
    assert set(found) == {"a", "n", "r", "c", "d", "s"}
    for name, extremes in found.items():
        np.testing.assert_allclose(extremes.low, seen[name].low, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(extremes.high, seen[name].high, rtol=1e-6, atol=1e-6)
    assert found["r"].low.dtype == np.float32


def test_what_is_known_stays(model: ir.Model) -> None:
    wide = ChannelRanges(np.full(3, -9, np.float32), np.full(3, 9, np.float32))
    assert derived(model.graph, {"a": wide, "r": wide})["r"] is wide
