"""INT8 for OpenVINO: Q/DQ pairs where values are produced, one scale per bus.

Every segment of a dense block is quantized once, where it is produced, with the scale that the whole bus shares; a
Concat of such segments is a copy of quantized values, and nothing is ever requantized. Clips (Max and Min with
constants, see `norm-to-clip`) work on quantized values, which OpenVINO keeps in 8 bits; it would compute a Max between
a Dequantize and a Quantize in float. Each convolution reads clipped values, or the output of its ReLU in unsigned 8
bits, and int8 weights through a DequantizeLinear. That makes L quantizers per block, where a tool that treats Concats
as unrelated needs O(L²).

**Averages.** Of four quantized values, a fourth of all averages lie halfway between two. With the same scale before and
behind the pool, rounding errors of float32 decide where these go, and the same way for all: OpenVINO rounded each up,
ONNX Runtime most to even, an eighth of a step apart on average in every channel. So a pool gives values at a scale that
is larger by 2⁻¹², which rounds all of them down in either: calibration sees that, and corrects it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.nodes import constant, is_operator, new_initializer, new_node, only_reader
from densenet_deploy.quantization.recipes.recipe import (
    Recipe,
    RecipeOptions,
    read_dequantized_weights,
    recipes,
    source_of,
)
from densenet_deploy.quantization.scales import QuantizedType, hold_bound, quantize_rows

_TIE_BREAK: Final = 1 + 2.0**-12
"""Far more than float32 rounds, 2⁻²³, and too little to move another value: 255 moves by a sixteenth of a step."""


@recipes.register("openvino")
class OpenVINORecipe(Recipe):
    """Q/DQ around the convolutions and on the segments of every bus; integer clips."""

    passes = ("norm-to-clip",)
    stores_bus = True
    reads_image = True

    def write(self, model: ir.Model, types: Mapping[str, QuantizedType], options: RecipeOptions) -> tuple[str, ...]:
        return _Writer(model.graph, types, options).write()

    def simulate(self, model: ir.Model, types: Mapping[str, QuantizedType], options: RecipeOptions) -> None:
        self.write(model, types, options)


class _Writer:
    """Keeps the quantized form of every value that has one."""

    def __init__(self, graph: ir.Graph, types: Mapping[str, QuantizedType], options: RecipeOptions) -> None:
        self._graph, self._types, self._options = graph, _without_ties(graph, types), options
        self._quantized: dict[ir.Value, ir.Value] = {}  # by the value that the nodes of the graph read
        self._numbers: dict[ir.Value, ir.Value] = {}  # of Concats of quantized values

    def write(self) -> tuple[str, ...]:
        convs = [node for node in self._graph if self._can_be_integer(node)]
        pools = [node for node in self._graph if self._is_pool(node)]
        clips = [node for node in self._graph if self._is_clip(node)]
        for clip in clips:
            hold_bound(self._graph, clip, self._types[str(clip.outputs[0].name)])
        joined = self._joined()
        made = {node.outputs[0] for node in (*pools, *clips, *joined)}
        read: list[ir.Value | None] = [source_of(node) for node in (*pools, *convs, *clips)]
        read += [value for node in joined for value in node.inputs]
        for value in dict.fromkeys(read):
            if value is not None and value not in made:
                self._insert_pair(value)
        for pool in pools:
            self._write_quantized(pool, [])
        for clip in clips:
            self._write_clip(clip)
        for conv in convs:
            self._read_quantized(conv)
            self._quantize_weights(conv)
        return tuple(str(conv.name) for conv in convs)

    def _can_be_integer(self, node: ir.Node) -> bool:
        return (
            is_operator(node, "Conv")
            and node.name not in self._options.float_nodes
            and self._type_of(node.inputs[0]) is not None
            and constant(node.inputs[1]) is not None
        )

    def _is_clip(self, node: ir.Node) -> bool:
        """Whether `node` is a Max or a Min with a constant that may compare quantized values."""
        is_clip = is_operator(node, "Max") or is_operator(node, "Min")
        is_clip = is_clip and node.name not in self._options.float_nodes and constant(node.inputs[1]) is not None
        return is_clip and self._keeps_type(node)

    def _is_pool(self, node: ir.Node) -> bool:
        """Whether `node` is a MaxPool that may compare quantized values, and the only reader of its input."""
        return is_operator(node, "MaxPool") and only_reader(source_of(node)) is node and self._keeps_type(node)

    def _keeps_type(self, node: ir.Node) -> bool:
        """Whether input and output of `node` have the same type, and the output stays in the graph."""
        given = self._type_of(node.inputs[0])
        is_same = given is not None and given == self._type_of(node.outputs[0])
        return is_same and not node.outputs[0].is_graph_output()

    def _type_of(self, value: ir.Value | None) -> QuantizedType | None:
        return self._types.get(str(value.name))  # type: ignore[union-attr]  # no operator here leaves an input out

    def _joined(self) -> list[ir.Node]:
        """Return the Concats with known types of all inputs and the output."""
        concats = (node for node in self._graph if is_operator(node, "Concat"))
        return [node for node in concats if all(map(self._type_of, (*node.inputs, *node.outputs)))]

    def _insert_pair(self, value: ir.Value) -> None:
        """Let every reader of `value` read it through Quantize and Dequantize."""
        readers = tuple(value.uses())
        numbers = self._scale_of(value)
        quantize = new_node("QuantizeLinear", f"{value.name}:codes", [value, *numbers])
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], quantize)
        else:
            self._graph.insert_after(producer, quantize)
        restored = self._dequantize(quantize, value, numbers)
        for reader, index in readers:
            reader.replace_input_with(index, restored)

    def _write_clip(self, clip: ir.Node) -> None:
        result, bound = clip.outputs[0], constant(clip.inputs[1])
        assert bound is not None
        bounds = self._types[str(result.name)].stored(bound)
        self._write_quantized(clip, [new_initializer(self._graph, f"{result.name}.bound", bounds)])

    def _write_quantized(self, old: ir.Node, more_inputs: list[ir.Value]) -> None:
        """Replace `old` by the same operator on quantized values; its readers read the output dequantized."""
        result, attributes = old.outputs[0], list(old.attributes.values())
        inputs = [self._quantized_form(source_of(old)), *more_inputs]
        node = new_node(old.op_type, f"{result.name}:codes", inputs, attributes)
        self._graph.insert_before(old, node)
        ir.convenience.replace_all_uses_with(result, self._dequantize(node, result, self._scale_of(result)))
        self._graph.remove(old, safe=True)

    def _read_quantized(self, conv: ir.Node) -> None:
        """Let `conv` read a Concat of quantized values where it read a float one."""
        value = source_of(conv)
        if is_operator(value.producer(), "Concat") and value not in self._numbers:
            quantized = self._quantized_form(value).producer()
            assert quantized is not None
            self._numbers[value] = self._dequantize(quantized, value, self._scale_of(value))
        conv.replace_input_with(0, self._numbers.get(value, value))

    def _quantized_form(self, value: ir.Value) -> ir.Value:
        """Return the quantized form of `value`; a Concat gets one, beside itself, when it is first needed."""
        if value not in self._quantized:
            concat = value.producer()
            assert concat is not None
            parts = [self._quantized_form(part) for part in concat.inputs if part is not None]
            node = new_node("Concat", f"{value.name}:codes", parts, list(concat.attributes.values()))
            self._graph.insert_before(concat, node)
            self._quantized[value] = node.outputs[0]
        return self._quantized[value]

    def _dequantize(self, maker: ir.Node, value: ir.Value, numbers: list[ir.Value]) -> ir.Value:
        """Return the output of `maker` dequantized, to replace `value`."""
        node = new_node("DequantizeLinear", f"{value.name}:quantized", [maker.outputs[0], *numbers])
        self._graph.insert_after(maker, node)
        self._quantized[node.outputs[0]] = maker.outputs[0]
        return node.outputs[0]

    def _scale_of(self, value: ir.Value) -> list[ir.Value]:
        given = self._types[str(value.name)]
        return [
            new_initializer(self._graph, f"{value.name}.scale", np.float32(given.scale)),
            new_initializer(self._graph, f"{value.name}.zero_point", given.stored_zero_point),
        ]

    def _quantize_weights(self, conv: ir.Node) -> None:
        weights, options = constant(conv.inputs[1]), self._options
        assert weights is not None
        rows = weights.astype(np.float64)
        integers, scales = quantize_rows(rows, bits=options.weight_bits, per_channel=options.per_channel)
        read_dequantized_weights(self._graph, conv, integers, scales, [ir.AttrInt64("axis", 0)])


def _without_ties(graph: ir.Graph, types: Mapping[str, QuantizedType]) -> dict[str, QuantizedType]:
    """Return `types` with a scale of their own for averages of quantized values that only convolutions read."""
    changed = dict(types)
    for node in graph:
        result = node.outputs[0]
        given, readers = types.get(str(result.name)), [reader for reader, _ in result.uses()]
        if given is None or not is_operator(node, "AveragePool") or types.get(str(source_of(node).name)) != given:
            continue
        if readers and all(is_operator(reader, "Conv") for reader in readers):
            changed[str(result.name)] = QuantizedType(given.scale * _TIE_BREAK, given.zero_point)
    return changed
