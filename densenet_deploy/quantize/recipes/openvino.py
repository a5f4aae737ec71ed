"""INT8 for OpenVINO: Q/DQ pairs where values are made, one scale a bus.

Every segment of a dense block is quantized once, where it is produced, with the scale that the whole bus shares; a
Concat of such segments is a copy of codes, and nothing is ever requantized. Clips (Max and Min with constants, see
`norm-to-clip`) are written on the codes, which OpenVINO leaves in 8 bits; it would compute a Max between a Dequantize
and a Quantize in float. Each convolution reads clipped codes, or what its ReLU left in unsigned 8 bits, and int8
weights through a DequantizeLinear. That makes L quantizers a block, where a tool that sees unrelated Concats needs
O(L²).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.nodes import constant, is_operator, new_initializer, only_reader, unused_name
from densenet_deploy.quantize.recipes.recipe import Recipe, RecipeOptions, recipes
from densenet_deploy.quantize.scales import QuantizedType, hold_bound, quantize_rows


@recipes.register("openvino")
class OpenVINORecipe(Recipe):
    """Q/DQ around the convolutions and on the segments of every bus; integer clips."""

    passes = ("norm-to-clip",)
    stores_bus = True

    def write(self, model: ir.Model, types: Mapping[str, QuantizedType], options: RecipeOptions) -> tuple[str, ...]:
        """Rewrite `model`; see `Recipe.write`."""
        return _Writer(model.graph, types, options).write()

    def simulate(self, model: ir.Model, types: Mapping[str, QuantizedType], options: RecipeOptions) -> None:
        self.write(model, types, options)


class _Writer:
    """Knows the codes of every value that has some, and the float value read from them."""

    def __init__(self, graph: ir.Graph, types: Mapping[str, QuantizedType], options: RecipeOptions) -> None:
        self._graph, self._types, self._options = graph, dict(types), options
        self._codes: dict[ir.Value, ir.Value] = {}  # by what the graph's nodes read
        self._numbers: dict[ir.Value, ir.Value] = {}  # of Concats that were written on codes

    def write(self) -> tuple[str, ...]:
        convs = [node for node in self._graph if self._can_be_integer(node)]
        pools = [node for node in self._graph if self._is_pool(node)]
        clips = [node for node in self._graph if self._is_clip(node)]
        for clip in clips:
            hold_bound(self._graph, clip, self._types[str(clip.outputs[0].name)])
        joined = self._joined()
        made = {node.outputs[0] for node in (*pools, *clips, *joined)}
        read = [node.inputs[0] for node in (*pools, *convs, *clips)]
        read += [value for node in joined for value in node.inputs]
        for value in dict.fromkeys(read):
            if value is not None and value not in made:
                self._insert_pair(value)
        for pool in pools:
            self._write_on_codes(pool, [])
        for clip in clips:
            self._write_clip(clip)
        for conv in convs:
            self._read_codes(conv)
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
        """Whether `node` is a Max or a Min with a constant, of values that are written as what it gives is."""
        is_clip = is_operator(node, "Max") or is_operator(node, "Min")
        is_clip = is_clip and node.name not in self._options.float_nodes and not node.outputs[0].is_graph_output()
        if not is_clip or constant(node.inputs[1]) is None:
            return False
        given = self._type_of(node.inputs[0])
        return given is not None and given == self._type_of(node.outputs[0])

    def _is_pool(self, node: ir.Node) -> bool:
        """Whether `node` is a MaxPool that alone reads its input, whose codes are then those of its output."""
        if not is_operator(node, "MaxPool") or node.inputs[0] is None or only_reader(node.inputs[0]) is not node:
            return False
        source, result = node.inputs[0], node.outputs[0]
        if result.is_graph_output():
            return False
        given = self._type_of(result)
        if given is not None and self._type_of(source) is not None:
            self._types[str(source.name)] = given
        return given is not None and self._type_of(source) is not None

    def _type_of(self, value: ir.Value | None) -> QuantizedType | None:
        return self._types.get(str(value.name)) if value is not None else None

    def _joined(self) -> list[ir.Node]:
        """The Concats whose inputs and output are all of known types."""
        concats = (node for node in self._graph if is_operator(node, "Concat"))
        return [node for node in concats if all(map(self._type_of, (*node.inputs, *node.outputs)))]

    def _insert_pair(self, value: ir.Value) -> None:
        """Let every reader of `value` read it through Quantize and Dequantize."""
        readers = tuple(value.uses())
        numbers = self._scale_of(value)
        quantize = _node("QuantizeLinear", f"{value.name}:codes", [value, *numbers])
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
        self._write_on_codes(clip, [new_initializer(self._graph, f"{result.name}.bound", bounds)])

    def _write_on_codes(self, old: ir.Node, more_inputs: list[ir.Value]) -> None:
        """Put the same operator on codes in the place of `old`; others read the numbers of what it gives."""
        source, result = old.inputs[0], old.outputs[0]
        assert source is not None
        inputs, attributes = [self._codes_of(source), *more_inputs], list(old.attributes.values())
        node = _node(old.op_type, f"{result.name}:codes", inputs, attributes)
        self._graph.insert_before(old, node)
        ir.convenience.replace_all_uses_with(result, self._dequantize(node, result, self._scale_of(result)))
        self._graph.remove(old, safe=True)

    def _read_codes(self, conv: ir.Node) -> None:
        """Let `conv` read a Concat of codes where it read one of numbers."""
        value = conv.inputs[0]
        assert value is not None
        if is_operator(value.producer(), "Concat") and value not in self._numbers:
            codes = self._codes_of(value).producer()
            assert codes is not None
            self._numbers[value] = self._dequantize(codes, value, self._scale_of(value))
        conv.replace_input_with(0, self._numbers.get(value, value))

    def _codes_of(self, value: ir.Value) -> ir.Value:
        """The codes of `value`; a Concat is written on codes, beside itself, when they are first asked for."""
        if value not in self._codes:
            concat = value.producer()
            assert concat is not None
            parts = [self._codes_of(part) for part in concat.inputs if part is not None]
            node = _node("Concat", f"{value.name}:codes", parts, list(concat.attributes.values()))
            self._graph.insert_before(concat, node)
            self._codes[value] = node.outputs[0]
        return self._codes[value]

    def _dequantize(self, maker: ir.Node, value: ir.Value, numbers: list[ir.Value]) -> ir.Value:
        """The float value, to stand for `value`, of the codes that `maker` makes."""
        node = _node("DequantizeLinear", f"{value.name}:quantized", [maker.outputs[0], *numbers])
        self._graph.insert_after(maker, node)
        self._codes[node.outputs[0]] = maker.outputs[0]
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
        codes, scales = quantize_rows(
            weights.astype(np.float64), bits=options.weight_bits, per_channel=options.per_channel
        )
        name = str(conv.inputs[1].name)  # type: ignore[union-attr]
        inputs = [
            new_initializer(self._graph, f"{name}.codes", codes),
            new_initializer(self._graph, f"{name}.scale", scales),
            new_initializer(self._graph, f"{name}.zero_point", np.zeros(scales.shape, np.int8)),
        ]
        result = unused_name(self._graph, f"{name}:quantized")  # convolutions may share their weights
        dequantize = _node("DequantizeLinear", result, inputs, [ir.AttrInt64("axis", 0)])
        self._graph.insert_before(conv, dequantize)
        conv.replace_input_with(1, dequantize.outputs[0])


def _node(op_type: str, name: str, inputs: list[ir.Value], attributes: list[ir.Attr] | None = None) -> ir.Node:
    node = ir.Node("", op_type, inputs, attributes or [], name=name, num_outputs=1)
    node.outputs[0].name = name
    return node
