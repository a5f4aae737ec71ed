"""INT8 for TensorRT: Q/DQ in symmetric int8 on the inputs of convolutions, in a graph that computes in FP16.

TensorRT builds strongly typed networks: what is FP16 in the file is FP16 on the device. It fuses Concat, norm and ReLU
into one kernel, and a Quantize after the ReLU into the same one; a Quantize anywhere else is separate work. So pairs
are inserted on the input and the weights of each convolution, and nowhere else: its output, the Concats and the pools
stay FP16. The scale of a value in a dense block is chosen where it is read, after the norm of its reader, and the bus
needs no common scale.

With the option `quantize_bus` the inputs of Concats are quantized as well, all of a bus at one scale. TensorRT then
moves the Dequantize after the Concat, which copies a quarter of the bytes; the segments lose their own scales.

Quantized values are int8 around zero: TensorRT takes no other zero point, and reads uint8 as int8 without an error. A
value that is never negative keeps 7 of 8 bits that way. The stem, which reads the image, and the classifier stay FP16:
both are small and both matter for the accuracy. Biases stay FP16, as TensorRT refuses an int32 bias after a
DequantizeLinear.

Two kinds of numbers do not survive a plain cast to FP16. A variance of 1e-9 would be 0: the numbers of a norm are first
merged into one scale and one shift, in float64. A quantization scale below 2⁻²⁰ would lose its digits, or be 0: scales
are chosen among the numbers that FP16 holds before anything is quantized, and the cast is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from densenet_deploy.graph.nodes import (
    constant,
    is_operator,
    new_initializer,
    new_node,
    scale_and_shift,
    why_not_affine,
)
from densenet_deploy.graph.reduced_precision import lift_opset, to_fp16_in_place
from densenet_deploy.quantization.recipes.recipe import (
    Recipe,
    RecipeOptions,
    read_dequantized_weights,
    recipes,
    source_of,
)
from densenet_deploy.quantization.scales import QuantizedType, quantize_rows

_STEPS: Final = 127
_LEVELS: Final = 255
_OLDEST_OPSET: Final = 19  # the first with FP16 scales in QuantizeLinear and DequantizeLinear
_SMALLEST_SCALE: Final = 2.0**-20  # 16 steps above the smallest subnormal: rounding it up costs at most 6 %


@recipes.register("tensorrt")
class TensorRTRecipe(Recipe):
    """Symmetric Q/DQ on the inputs and weights of convolutions, FP16 elsewhere.

    The option `weight_bits`, which concerns CPUs, is ignored: a GPU adds products in 32 bits.
    """

    for_cpus = False

    def write(self, model: ir.Model, types: Mapping[str, QuantizedType], options: RecipeOptions) -> tuple[str, ...]:
        """Rewrite `model`; see `Recipe.write`.

        Raises:
            ModelFileError: if the model cannot be lifted to opset 19 or holds a number beyond 65504.
        """
        lift_opset(model, _OLDEST_OPSET)
        written = self._quantize(model.graph, types, options)
        for norm in [node for node in model.graph if is_operator(node, "BatchNormalization")]:
            _merge_numbers(model.graph, norm)
        to_fp16_in_place(model)
        return written

    def simulate(self, model: ir.Model, types: Mapping[str, QuantizedType], options: RecipeOptions) -> None:
        """Rewrite `model` the same way, on an FP32 base."""
        self._quantize(model.graph, types, options)

    def _quantize(self, graph: ir.Graph, types: Mapping[str, QuantizedType], options: RecipeOptions) -> tuple[str, ...]:
        convs = [node for node in graph if _can_be_integer(node, types, options)]
        restored = {value: _insert_pair(graph, value, types) for value in dict.fromkeys(map(source_of, convs))}
        if options.quantize_bus:
            _quantize_buses(graph, types, restored)
        for conv in convs:
            conv.replace_input_with(0, restored[source_of(conv)])
            _quantize_weights(graph, conv, per_channel=options.per_channel)
        return tuple(str(conv.name) for conv in convs)


def fp16_at_least(numbers: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return float32 numbers that FP16 holds exactly, none below `numbers`, which are not negative, nor below 2⁻²⁰.

    Beyond the largest FP16 number, 65504, that is infinity.
    """
    exact = np.maximum(np.asarray(numbers, np.float64), _SMALLEST_SCALE)
    with np.errstate(over="ignore"):
        nearest = exact.astype(np.float16)
        above = np.nextafter(nearest, np.float16(np.inf))
    return np.where(nearest < exact, above, nearest).astype(np.float32)


def symmetric_scale(given: QuantizedType) -> np.float32:
    """Return the scale, an FP16 number, at which −127..127 reach as far as the values of `given`, either way."""
    is_signed = isinstance(given.stored_zero_point, np.int8)
    steps = _STEPS if is_signed else max(given.zero_point, _LEVELS - given.zero_point)
    return np.float32(fp16_at_least(given.scale * steps / _STEPS))


def _can_be_integer(node: ir.Node, types: Mapping[str, QuantizedType], options: RecipeOptions) -> bool:
    if not is_operator(node, "Conv") or node.name in options.float_nodes:
        return False
    source = source_of(node)
    is_classifier = is_operator(source.producer(), "GlobalAveragePool")
    known = source.name in types and constant(node.inputs[1]) is not None
    return known and not source.is_graph_input() and not is_classifier


def _insert_pair(graph: ir.Graph, value: ir.Value, types: Mapping[str, QuantizedType]) -> ir.Value:
    """Insert Quantize and Dequantize after `value` and return the result; the readers of `value` are unchanged."""
    numbers = _numbers(graph, str(value.name), symmetric_scale(types[str(value.name)]))
    quantize = new_node("QuantizeLinear", f"{value.name}:codes", [value, *numbers])
    dequantize = new_node("DequantizeLinear", f"{value.name}:quantized", [quantize.outputs[0], *numbers])
    producer = value.producer()
    assert producer is not None
    graph.insert_after(producer, [quantize, dequantize])
    return dequantize.outputs[0]


def _quantize_buses(graph: ir.Graph, types: Mapping[str, QuantizedType], existing: Mapping[ir.Value, ir.Value]) -> None:
    """Let every Concat read its inputs through a pair, except those that another Concat made of such."""
    concats = [node for node in graph if is_operator(node, "Concat")]
    read = dict.fromkeys(value for node in concats for value in node.inputs if value is not None)
    segments = [value for value in read if value.name in types and value.producer() not in (None, *concats)]
    restored = {
        value: existing[value] if value in existing else _insert_pair(graph, value, types) for value in segments
    }
    for concat in concats:
        for index, value in enumerate(concat.inputs):
            if value in restored:
                concat.replace_input_with(index, restored[value])


def _quantize_weights(graph: ir.Graph, conv: ir.Node, *, per_channel: bool) -> None:
    """Store the weights of `conv` as int8 at scales that FP16 holds."""
    weights = constant(conv.inputs[1])
    assert weights is not None
    rows = weights.astype(np.float64)
    _, exact = quantize_rows(rows)
    smallest = fp16_at_least(exact).astype(np.float64)
    integers, scales = quantize_rows(rows, per_channel=per_channel, smallest=smallest)
    read_dequantized_weights(graph, conv, integers, scales, [ir.AttrInt64("axis", 0)] if per_channel else [])


def _merge_numbers(graph: ir.Graph, norm: ir.Node) -> None:
    """Give `norm` mean 0 and variance 1, and put their effect into its scale and shift."""
    if why_not_affine(norm) is not None:
        return
    scale, shift = scale_and_shift(norm)
    numbers = {"scale": scale, "shift": shift, "mean": np.zeros_like(scale), "variance": np.ones_like(scale)}
    for index, (role, array) in enumerate(numbers.items(), start=1):
        merged = new_initializer(graph, f"{norm.outputs[0].name}.{role}", array.astype(np.float32))
        norm.replace_input_with(index, merged)
    norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)


def _numbers(
    graph: ir.Graph, name: str, scales: np.float32 | np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> list[ir.Value]:
    """Add `scales`, and as many int8 zeros, to the initializers."""
    zeros = np.zeros(scales.shape, np.int8)
    return [new_initializer(graph, f"{name}.scale", scales), new_initializer(graph, f"{name}.zero_point", zeros)]
