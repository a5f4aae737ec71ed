"""A graph in parts: what is kept between them, how large it is, and other weights behind a cut."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from densenet_deploy.pruning.segments import SegmentedGraph, batched

GRAPH = """
<ir_version: 9, opset_import: ["" : 17]>
g (float[N,2,4,3] x) => (float[N,2,4,3] y)
<float[1] two = {2.0}, float[1] three = {3.0}, float[N,2,4,3] a, float[N,2,4,3] b, float[N,4,4,3] c>
{ [a] a = Mul(x, two)  [b] b = Mul(a, three)  [c] c = Concat<axis=1>(a, b)  [d] y = ReduceMax<axes=[1], keepdims=1>(c) }
"""
MAP, CONCAT = 2 * 4 * 3 * 4, 4 * 4 * 3 * 4  # bytes


def _graph(*cuts: str) -> SegmentedGraph:
    return SegmentedGraph(onnx.parser.parse_model(GRAPH), cuts)


def _images(count: int = 2) -> np.ndarray:
    return np.arange(count * 24, dtype=np.float32).reshape(count, 2, 4, 3)


@pytest.mark.parametrize(
    ("cuts", "size"), [(("a",), MAP), (("b",), MAP), (("c",), 2 * MAP), (("d",), CONCAT), (("a", "c", "d"), CONCAT)]
)
def test_a_state_is_as_large_as_what_later_nodes_read(cuts, size):
    assert _graph(*cuts).state_bytes() == size


def test_only_what_is_read_later_is_kept():
    graph, states = _graph("b", "c", "d"), [{"x": _images()}]
    assert graph.input == "x"
    for number, names in enumerate([{"a"}, {"a", "b"}, {"c"}]):
        graph.advance(number, states, {})
        assert set(states[0]) == names
    doubled = 2 * _images()
    np.testing.assert_array_equal(states[0]["c"], np.concatenate([doubled, 3 * doubled], axis=1))


def test_weights_behind_a_cut_may_be_others_and_every_batch_is_run():
    graph = _graph("b", "c")
    states = [{"x": _images()}, {"x": -_images(1)}]
    graph.advance(0, states, {})
    graph.advance(1, states, {"three": np.float32([10]), "two": np.float32([0])})
    assert [state["b"].shape[0] for state in states] == [2, 1]
    np.testing.assert_array_equal(states[0]["b"], 20 * _images())
    np.testing.assert_array_equal(states[1]["b"], -20 * _images(1))


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (2, [2]), (3, [3]), (4, [3, 1]), (6, [3, 3])])
def test_images_come_in_batches_of_at_most_three(count, sizes):
    images = _images(max(count, 1))[:count]
    found = list(batched((image[None] for image in images), 3))
    assert [len(one) for one in found] == sizes
    assert not count or np.array_equal(np.concatenate(found), images)
