"""Random graphs: DenseNets of every spelling, and networks that are none."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import strategies as st

from tests.properties.graph_writer import GraphWriter, Tensor

SEEDS = st.integers(0, 2**32 - 1)
LARGEST = 10  # channels of a tensor of what is no DenseNet, about


def _pixels(draw: st.DrawFn, shortest: int, longest: int) -> Tensor:
    """Images of one to four channels, half of them square."""
    channels, height = draw(st.sampled_from((3, 3, 1, 2, 4))), draw(st.integers(shortest, longest))
    width = height if draw(st.booleans()) else draw(st.integers(shortest, longest))
    return Tensor("input", channels, (height, width))


@st.composite
def dense_graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """A DenseNet: its norms folded or not, its Concats flat or in steps, any head, any reader besides."""
    graph = GraphWriter(draw, draw(SEEDS), plain=draw(st.integers(0, 9)) == 0)
    pixels = _pixels(draw, 8, 15)
    tensor = _stem(graph, pixels)
    blocks = draw(st.integers(1, 2))
    for block in range(blocks):
        tensor = _block(graph, tensor, draw(st.integers(1, 3)), draw(st.integers(1, 4)))
        if block + 1 < blocks:
            tensor = _transition(graph, tensor)
    _head(graph, tensor)
    graph.extra_readers(draw(st.sampled_from((0, 0, 0, 1, 2))))
    return graph.model(pixels)


def _stem(graph: GraphWriter, pixels: Tensor) -> Tensor:
    tensor = graph.conv(pixels, graph.draw(st.integers(2, 6)), 3)
    if graph.chance(70):
        tensor = graph.norm(tensor)
    if graph.chance(70):
        tensor = graph.relu(tensor)
    return graph.pool(tensor, "MaxPool", 3, 1) if tensor.size > 4 and graph.chance(40) else tensor


def _block(graph: GraphWriter, tensor: Tensor, layers: int, growth: int) -> Tensor:
    in_steps, parts, joined = graph.chance(50), [tensor], tensor
    for _ in range(layers):
        if len(parts) == 1 and graph.chance(30):
            joined = graph.concat(parts)
        parts.append(_layer(graph, joined, growth))
        joined = graph.concat([joined, parts[-1]] if in_steps else _in_order(graph, parts))
    return joined


def _in_order(graph: GraphWriter, parts: list[Tensor]) -> list[Tensor]:
    """The parts of a Concat, now and then turned round, or one of them twice."""
    if graph.chance(4):
        return parts[::-1]
    return [*parts, parts[0]] if graph.chance(4) else parts


def _layer(graph: GraphWriter, source: Tensor, growth: int) -> Tensor:
    tensor = graph.norm(source)
    if graph.chance(95) or graph.plain:
        tensor = graph.relu(tensor)
    if graph.chance(70):
        tensor = graph.conv(tensor, 2 * growth, 1, same_size=True)
        tensor = graph.relu(graph.norm(tensor) if graph.chance(60) else tensor)
    tensor = graph.conv(tensor, growth, 3, same_size=True)
    if graph.chance(15):
        tensor = graph.norm(tensor)
    return graph.relu(tensor) if graph.chance(15) else tensor


def _transition(graph: GraphWriter, source: Tensor) -> Tensor:
    tensor = graph.relu(graph.norm(source))
    kernel = graph.one_of(1, 1, 1, 3) if tensor.size > 2 else 1
    tensor = graph.conv(tensor, graph.draw(st.integers(2, 6)), kernel)  # type: ignore[arg-type]
    if tensor.size < 4:
        return tensor
    return graph.pool(tensor, "AveragePool", graph.one_of(2, 2, 3), 2)  # type: ignore[arg-type]


def _head(graph: GraphWriter, source: Tensor) -> None:
    tensor = graph.norm(source)
    if graph.chance(90) or graph.plain:
        tensor = graph.relu(tensor)
    if graph.chance(50):
        axes = graph.constant("axes", np.array([2, 3]))
        rows = graph.node("ReduceMean", [tensor.name, axes], tensor.channels, (), keepdims=0)
    else:
        pooled = graph.node("GlobalAveragePool", [tensor.name], tensor.channels, (1, 1))
        rows = graph.node("Flatten", [pooled.name], tensor.channels, ())
    weight, bias = graph.weights("fc", (5, rows.channels), rows.channels**-0.5), graph.weights("fb", (5,))
    graph.leave(graph.node("Gemm", [rows.name, weight, bias], 5, (), transB=1))


@st.composite
def other_graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """A network of the same operators, and some more, put together without a plan."""
    graph = GraphWriter(draw, draw(SEEDS))
    pixels = _pixels(draw, 4, 9)
    maps = [pixels]
    for _ in range(draw(st.integers(1, 12))):
        source = draw(st.sampled_from(maps[-4:]))
        maps.append(draw(st.sampled_from(STEPS))(graph, source, maps))
    graph.leave(graph.node("Neg", [maps[-1].name], maps[-1].channels, maps[-1].sides))
    graph.extra_readers(draw(st.integers(0, 2)))
    return graph.model(pixels)


def _conv(graph: GraphWriter, source: Tensor, _: list[Tensor]) -> Tensor:
    kernel = graph.one_of(1, 3) if source.size > 4 else 1
    return graph.conv(source, graph.draw(st.integers(1, 6)), kernel)  # type: ignore[arg-type]


def _pool(graph: GraphWriter, source: Tensor, _: list[Tensor]) -> Tensor:
    op_type = graph.one_of("AveragePool", "MaxPool")
    return graph.pool(source, str(op_type), 2, graph.draw(st.integers(1, 2))) if source.size > 3 else graph.relu(source)


def _join(graph: GraphWriter, source: Tensor, maps: list[Tensor]) -> Tensor:
    """A Concat of what has the same size, along the channels or rows of pixels, a tensor possibly twice."""
    if graph.chance(15):
        return graph.pool(_along_rows(graph, source), "MaxPool", 1, 1)
    fitting = [tensor for tensor in maps if tensor.sides == source.sides and tensor.channels <= LARGEST]
    parts = graph.draw(st.lists(st.sampled_from(fitting or [source]), min_size=1, max_size=3))
    return graph.concat(parts)


def _along_rows(graph: GraphWriter, source: Tensor) -> Tensor:
    """Both halves of an image, put together again upside down."""
    names = []
    for stem, start, end in (("top", 0, source.sides[0] // 2), ("bottom", source.sides[0] // 2, source.sides[0])):
        ends = [graph.constant(f"{stem}.{i}", np.array([n])) for i, n in enumerate((start, end, graph.one_of(2, -2)))]
        cut = graph.node("Slice", [source.name, *ends], source.channels, source.sides)
        graph.tensors.remove(cut)  # of half that height
        graph.outputs.pop(cut.name, None)
        names.append(cut.name)
    return graph.node("Concat", names[::-1], source.channels, source.sides, axis=graph.one_of(2, -2))


def _scaled(graph: GraphWriter, source: Tensor, _: list[Tensor]) -> Tensor:
    """A Mul or Add with a constant for each channel, for all of them, for each pixel, or with itself."""
    shapes = (
        (source.channels, 1, 1),
        (),
        (1,),
        (1, source.channels, 1, 1),
        source.sides,
        (1, 1, 1, 1, 1),
    )
    shape = graph.draw(st.sampled_from(shapes))
    op_type = str(graph.one_of("Mul", "Add"))
    inputs = [source.name, source.name if graph.chance(10) else graph.weights("factor", shape)]
    if len(shape) == 5:
        inputs[1] = graph.weights("factor", (1, source.channels, 1, 1))
    return graph.node(op_type, inputs[:: graph.draw(st.sampled_from((1, -1)))], source.channels, source.sides)


def _layer_of_a_dense_net(graph: GraphWriter, source: Tensor, _: list[Tensor]) -> Tensor:
    """What passes look for: a norm and its ReLU before a 1x1 Conv, or a pool behind one."""
    if graph.chance(50):
        tensor = graph.norm(source)
        tensor = graph.branch(tensor) if graph.chance(10) else graph.relu(tensor)
        return graph.conv(tensor, graph.draw(st.integers(1, 6)), 1)
    tensor = graph.conv(source, graph.draw(st.integers(1, 6)), 1)
    return graph.pool(tensor, "AveragePool", 2, 2) if tensor.size > 3 else graph.norm(tensor)


STEPS = (
    _conv,
    _layer_of_a_dense_net,
    _layer_of_a_dense_net,
    lambda graph, source, _: graph.branch(source),
    _conv,
    lambda graph, source, _: graph.norm(source),
    lambda graph, source, _: graph.norm(source),
    lambda graph, source, _: graph.relu(source),
    _pool,
    _join,
    _join,
    _scaled,
)
