"""INT8 for TensorRT: Q/DQ in symmetric int8 where convolutions read, in a graph that computes in float16.

TensorRT fuses Concat, norm and ReLU into one kernel, and a Quantize behind the ReLU into the same one; a Quantize
anywhere else is work of its own. So pairs stand on what each convolution reads and on its weights, and nowhere else:
its output, the Concats and the pools stay half. What a value in a dense block is written as is decided where it is
read, after the norm of its reader, and the bus needs no common scale.

With the option `quantize_bus` what meets in Concats is written as well, all of a bus at one scale. TensorRT then moves
the Dequantize behind the Concat, which copies a quarter of the bytes; it costs the segments their own scales.

Codes are int8 around zero: TensorRT takes no other zero point, and reads uint8 as int8 without a word. A value that is
never negative keeps 7 of 8 bits that way. The stem, which reads the image, and the classifier stay half: both are
small and both show in the accuracy. Biases stay half, as an int32 bias behind a DequantizeLinear is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.graph_pass import constant, is_operator, new_initializer, new_node, unused_name
from densenet_deploy.quantize.half_base import half_at_least, raise_opset, to_half
from densenet_deploy.quantize.recipes.recipe import Recipe, RecipeOptions, recipes
from densenet_deploy.quantize.scales import QuantizedType
from densenet_deploy.quantize.weights import quantize_rows

_STEPS: Final = 127
_LEVELS: Final = 255


@recipes.register("tensorrt")
class TensorRTRecipe(Recipe):
    """Symmetric Q/DQ on the inputs and weights of convolutions, float16 elsewhere.

    The option `weight_bits` has no say: it is about CPUs, and a GPU adds products in 32 bits.
    """

    def write(self, model: ir.Model, types: Mapping[str, QuantizedType], options: RecipeOptions) -> tuple[str, ...]:
        """Rewrite `model`; see `Recipe.write`.

        Raises:
            ModelFileError: if the model cannot be lifted to opset 19 or holds a number that float16 cannot.
        """
        raise_opset(model)
        written = self._quantize(model.graph, types, options)
        to_half(model)
        return written

    def simulate(self, model: ir.Model, types: Mapping[str, QuantizedType], options: RecipeOptions) -> None:
        """Rewrite `model` the same way, on a float32 base."""
        self._quantize(model.graph, types, options)

    def _quantize(self, graph: ir.Graph, types: Mapping[str, QuantizedType], options: RecipeOptions) -> tuple[str, ...]:
        convs = [node for node in graph if _can_be_integer(node, types, options)]
        restored = {value: _insert_pair(graph, value, types) for value in _sources(convs)}
        if options.quantize_bus:
            _quantize_buses(graph, types)
        for conv in convs:
            conv.replace_input_with(0, restored[conv.inputs[0]])  # type: ignore[index]
            _quantize_weights(graph, conv, per_channel=options.per_channel)
        return tuple(str(conv.name) for conv in convs)


def symmetric_scale(given: QuantizedType) -> np.float32:
    """Return the scale, a float16 number, at which codes −127..127 reach as far as those of `given`, either way."""
    signed = isinstance(given.code_zero, np.int8)
    steps = _STEPS if signed else max(given.zero_point, _LEVELS - given.zero_point)
    return np.float32(half_at_least(given.scale * steps / _STEPS))


def _can_be_integer(node: ir.Node, types: Mapping[str, QuantizedType], options: RecipeOptions) -> bool:
    if not is_operator(node, "Conv") or node.name in options.float_nodes:
        return False
    source = node.inputs[0]
    is_stem = source is None or source.is_graph_input()
    is_classifier = source is not None and is_operator(source.producer(), "GlobalAveragePool")
    known = source is not None and source.name in types and constant(node.inputs[1]) is not None
    return known and not is_stem and not is_classifier


def _sources(convs: Iterable[ir.Node]) -> tuple[ir.Value, ...]:
    """What `convs` read, once each."""
    return tuple(dict.fromkeys(conv.inputs[0] for conv in convs if conv.inputs[0] is not None))


def _insert_pair(graph: ir.Graph, value: ir.Value, types: Mapping[str, QuantizedType]) -> ir.Value:
    """Put Quantize and Dequantize behind `value` and return what they make of it; readers stay as they are."""
    numbers = _numbers(graph, str(value.name), symmetric_scale(types[str(value.name)]))
    quantize = new_node("QuantizeLinear", f"{value.name}:codes", [value, *numbers])
    dequantize = new_node("DequantizeLinear", f"{value.name}:quantized", [quantize.outputs[0], *numbers])
    producer = value.producer()
    assert producer is not None
    graph.insert_after(producer, [quantize, dequantize])
    return dequantize.outputs[0]


def _quantize_buses(graph: ir.Graph, types: Mapping[str, QuantizedType]) -> None:
    """Let every Concat read its inputs through a pair; what another Concat made has been through one."""
    concats = [node for node in graph if is_operator(node, "Concat")]
    read = dict.fromkeys(value for node in concats for value in node.inputs if value is not None)
    segments = [value for value in read if value.name in types and value.producer() not in (None, *concats)]
    restored = {value: _insert_pair(graph, value, types) for value in segments}
    for concat in concats:
        for index, value in enumerate(concat.inputs):
            if value in restored:
                concat.replace_input_with(index, restored[value])


def _quantize_weights(graph: ir.Graph, conv: ir.Node, *, per_channel: bool) -> None:
    """Store the weights of `conv` as int8 at scales that float16 holds."""
    weights, name = constant(conv.inputs[1]), str(conv.inputs[1].name)  # type: ignore[union-attr]
    assert weights is not None
    rows = weights.astype(np.float64)
    _, wanted = quantize_rows(rows, per_channel=per_channel)
    codes, scales = quantize_rows(rows, per_channel=per_channel, smallest=half_at_least(wanted).astype(np.float64))
    inputs = [new_initializer(graph, f"{name}.codes", codes), *_numbers(graph, name, scales)]
    axis = [ir.AttrInt64("axis", 0)] if per_channel else []
    result = unused_name(graph, f"{name}:quantized")  # convolutions may share their weights
    dequantize = new_node("DequantizeLinear", result, inputs, axis)
    graph.insert_before(conv, dequantize)
    conv.replace_input_with(1, dequantize.outputs[0])


def _numbers(
    graph: ir.Graph, name: str, scales: np.float32 | np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> list[ir.Value]:
    """Add `scales`, and as many int8 zeros, to the initializers."""
    zeros = np.zeros(scales.shape, np.int8)
    return [new_initializer(graph, f"{name}.scale", scales), new_initializer(graph, f"{name}.zero_point", zeros)]
