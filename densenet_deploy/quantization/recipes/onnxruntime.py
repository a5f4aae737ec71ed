"""INT8 for ONNX Runtime: the graph in integer operators, from the first convolution to the last norm.

ONNX Runtime fuses Q/DQ pairs around convolutions, but not around the norm after a Concat, and runs whatever it cannot
fuse in float between a Dequantize and a Quantize. So nothing here depends on fusion:

* Conv, with the ReLU after it, is a QLinearConv with zero point 0 of its output: saturation is the ReLU.
* A norm (BatchNormalization, or Mul and Add), with its ReLU, is a depthwise 1x1 QLinearConv.
* A clip (Max and Min with constants) compares quantized values; its bounds are quantized too.
* AveragePool is a depthwise QLinearConv with equal weights; MaxPool and Concat move quantized values.
* A value that is read in a second type is requantized by a depthwise QLinearConv with weights of one.

All other nodes stay float, between DequantizeLinear and QuantizeLinear, as do those that the caller names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from densenet_deploy.graph.nodes import (
    averages_whole_windows,
    channels_of,
    constant,
    is_operator,
    new_initializer,
    new_node,
    only_reader,
    scale_and_shift,
    unused_name,
    weight_and_bias,
    why_not_affine,
)
from densenet_deploy.graph.tensor_changes import TensorChanges
from densenet_deploy.quantization.recipes.recipe import Recipe, RecipeOptions, recipes, source_of
from densenet_deploy.quantization.scales import QuantizedType, hold_bound, quantize_with_bias, unsigned

Double = npt.NDArray[np.float64]

_WINDOWS: Final = ("strides", "pads", "auto_pad", "dilations")


@recipes.register("onnxruntime")
class OnnxRuntimeRecipe(Recipe):
    """Integer operators for all values with a known type."""

    passes = ("norm-to-clip",)
    stores_bus = True
    reads_image = True

    def write(self, model: ir.Model, types: Mapping[str, QuantizedType], options: RecipeOptions) -> tuple[str, ...]:
        writer = _Writer(model.graph, types, options)
        written = writer.write()
        changes = TensorChanges.of(model)
        for value, given, quantized in writer.forms():
            changes.quantize(str(quantized.name), str(value.name), given.scale, given.zero_point)
        changes.write_to(model)
        return written

    def simulate(self, model: ir.Model, types: Mapping[str, QuantizedType], options: RecipeOptions) -> None:
        """Rewrite `model` as for OpenVINO: the quantized values are the same."""
        recipes.get("openvino")().simulate(model, types, options)


class _Writer:
    """Walks the graph in order and keeps the existing forms of every value: float, and quantized by type."""

    def __init__(self, graph: ir.Graph, types: Mapping[str, QuantizedType], options: RecipeOptions) -> None:
        self._graph, self._types, self._options = graph, types, options
        self._forms: dict[ir.Value, dict[QuantizedType, ir.Value]] = {}
        self._floats: dict[ir.Value, ir.Value] = {}
        self._done: set[ir.Node] = set()
        self._at: ir.Node  # where new nodes go: before the one being rewritten
        self._handlers = {
            "Conv": self._conv,
            "BatchNormalization": self._norm,
            "Concat": self._concat,
            "Max": self._clip,
            "Min": self._clip,
            "MaxPool": self._max_pool,
            "AveragePool": self._average_pool,
        }

    def write(self) -> tuple[str, ...]:
        written = []
        for node in list(self._graph):
            self._at = node
            if node in self._done:
                continue
            handler = self._handlers.get(node.op_type)
            if handler and self._may_change(node) and handler(node):
                written.append(str(node.name))
                continue
            self._read_floats(node)
        return tuple(written)

    def forms(self) -> Iterator[tuple[ir.Value, QuantizedType, ir.Value]]:
        """Yield every quantized value with its type and its quantized form."""
        for value, forms in self._forms.items():
            for given, quantized in forms.items():
                yield value, given, quantized

    def _may_change(self, node: ir.Node) -> bool:
        leaves = any(value.is_graph_output() for value in node.outputs)
        return node.domain == "" and not leaves and node.name not in self._options.float_nodes

    # -- forms of values

    def _form(self, value: ir.Value, target: QuantizedType) -> ir.Value:
        """Return `value` quantized as `target`, made from an existing form."""
        forms = self._forms.setdefault(value, {})
        if target not in forms:
            forms[target] = self._requantized(value, forms, target) if forms else self._from_float(value, target)
        return forms[target]

    def _native_type(self, value: ir.Value) -> QuantizedType | None:
        """Return the type in which `value` can be read without a conversion, or the one chosen for it."""
        forms = self._forms.get(value)
        return next(iter(forms)) if forms else self._types.get(str(value.name))

    def _from_float(self, value: ir.Value, target: QuantizedType) -> ir.Value:
        return self._emit("QuantizeLinear", f"{value.name}:codes", [value, *self._type_inputs(value, target)])

    def _requantized(self, value: ir.Value, forms: Mapping[QuantizedType, ir.Value], target: QuantizedType) -> ir.Value:
        given, quantized = next(iter(forms.items()))
        channels = channels_of(value)
        if channels is None:  # so the number of weights is unknown
            inputs = [quantized, *self._type_inputs(value, given)]
            numbers = self._emit("DequantizeLinear", f"{value.name}:numbers", inputs)
            return self._from_float(numbers, target)
        weights = np.ones((channels, 1, 1, 1))
        return self._convolve(f"{value.name}:requantized", quantized, given, target, weights, channels)

    def _float(self, value: ir.Value) -> ir.Value:
        """Return the float form of `value`."""
        if not self._forms.get(value) or value in self._floats or value.producer() not in self._done:
            return self._floats.get(value, value)
        given, quantized = next(iter(self._forms[value].items()))
        name = f"{value.name}:float"
        self._floats[value] = self._emit("DequantizeLinear", name, [quantized, *self._type_inputs(value, given)])
        return self._floats[value]

    def _read_floats(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is not None and (form := self._float(value)) is not value:
                node.replace_input_with(index, form)

    # -- operators

    def _conv(self, node: ir.Node) -> bool:
        numbers = weight_and_bias(node)
        if numbers is None:
            return False
        return self._linear(node, *numbers, node.attributes.get_int("group", 1), _windows(node))

    def _norm(self, node: ir.Node) -> bool:
        if why_not_affine(node) is not None:
            return False
        scale, shift = scale_and_shift(node)
        return self._linear(node, scale[:, None, None, None], shift, len(scale))

    def _linear(
        self, node: ir.Node, weights: Double, bias: Double, group: int, attributes: Sequence[ir.Attr] = ()
    ) -> bool:
        """Write a Conv, or a norm as one, together with the ReLU after it."""
        source, relu = source_of(node), _relu_after(node)
        result = (relu or node).outputs[0]
        given, target = self._native_type(source), self._types.get(str(result.name))
        if given is None or target is None:
            return False
        if relu is not None and target.zero_point != 0:  # a segment of a bus: clamp first, requantize later
            target = unsigned(target.highest)
        quantized = self._form(source, given)
        name = f"{result.name}:codes"
        self._set_form(result, target, self._convolve(name, quantized, given, target, weights, group, bias, attributes))
        self._done |= {node, relu or node}
        return True

    def _concat(self, node: ir.Node) -> bool:
        target = self._types.get(str(node.outputs[0].name))
        if target is None:
            return False
        parts = [self._form(value, target) for value in node.inputs if value is not None]
        return self._move(node, target, parts)

    def _clip(self, node: ir.Node) -> bool:
        source = source_of(node)
        given = self._native_type(source)
        if given is None or constant(node.inputs[1]) is None:
            return False
        if self._types.get(str(source.name)) != self._types.get(str(node.outputs[0].name)):
            return False
        hold_bound(self._graph, node, given)
        bound = constant(node.inputs[1])
        assert bound is not None
        quantized = new_initializer(self._graph, f"{node.outputs[0].name}.bound", given.quantized(bound))
        return self._move(node, given, [self._form(source, given), quantized])

    def _max_pool(self, node: ir.Node) -> bool:
        source = source_of(node)
        given = self._native_type(source)
        return given is not None and self._move(node, given, [self._form(source, given)])

    def _average_pool(self, node: ir.Node) -> bool:
        source = source_of(node)
        given, channels = self._native_type(source), channels_of(source)
        if given is None or channels is None or not averages_whole_windows(node):
            return False
        result, kernel = node.outputs[0], node.attributes["kernel_shape"].as_ints()
        weights, quantized = np.full((channels, 1, *kernel), 1.0 / np.prod(kernel)), self._form(source, given)
        name = f"{result.name}:codes"
        averaged = self._convolve(name, quantized, given, given, weights, channels, attributes=_windows(node))
        self._set_form(result, given, averaged)
        self._done.add(node)
        return True

    def _move(self, node: ir.Node, kept_type: QuantizedType, inputs: list[ir.Value]) -> bool:
        """Write the same operator on quantized values."""
        result = node.outputs[0]
        made = self._emit(node.op_type, f"{result.name}:codes", inputs, list(node.attributes.values()))
        self._set_form(result, kept_type, made)
        self._done.add(node)
        return True

    # -- nodes

    def _convolve(
        self,
        name: str,
        quantized: ir.Value,
        given: QuantizedType,
        target: QuantizedType,
        weights: Double,
        group: int,
        bias: Double | None = None,
        attributes: Sequence[ir.Attr] = (),
    ) -> ir.Value:
        shift = np.zeros(len(weights)) if bias is None else bias
        options = self._options
        integers = quantize_with_bias(
            weights, shift, given.scale, bits=options.weight_bits, per_channel=options.per_channel or group > 1
        )
        inputs = [
            quantized,
            *self._constants(name, "input", given),
            new_initializer(self._graph, f"{name}.weight", integers.values),
            new_initializer(self._graph, f"{name}.weight_scale", integers.scales),
            new_initializer(self._graph, f"{name}.weight_zero_point", np.zeros(integers.scales.shape, np.int8)),
            *self._constants(name, "output", target),
            new_initializer(self._graph, f"{name}.bias", integers.bias),
        ]
        shape = ir.AttrInt64s("kernel_shape", list(weights.shape[2:]))
        return self._emit("QLinearConv", name, inputs, [*attributes, ir.AttrInt64("group", group), shape])

    def _type_inputs(self, value: ir.Value, given: QuantizedType) -> list[ir.Value]:
        return self._constants(str(value.name), "codes", given)

    def _constants(self, name: str, role: str, given: QuantizedType) -> list[ir.Value]:
        return [
            new_initializer(self._graph, f"{name}.{role}_scale", np.float32(given.scale)),
            new_initializer(self._graph, f"{name}.{role}_zero_point", np.uint8(given.zero_point)),
        ]

    def _emit(self, op_type: str, name: str, inputs: list[ir.Value], attributes: Sequence[ir.Attr] = ()) -> ir.Value:
        node = new_node(op_type, name, inputs, attributes)
        node.outputs[0].name = unused_name(self._graph, name)
        self._graph.insert_before(self._at, node)
        return node.outputs[0]

    def _set_form(self, value: ir.Value, given: QuantizedType, quantized: ir.Value) -> None:
        self._forms[value] = {given: quantized}


def _relu_after(node: ir.Node) -> ir.Node | None:
    """Return the ReLU that alone reads the result of `node`, unless its own result leaves the graph."""
    reader = only_reader(node.outputs[0])
    return reader if is_operator(reader, "Relu") and not reader.outputs[0].is_graph_output() else None


def _windows(node: ir.Node) -> list[ir.Attr]:
    """Return the attributes of a Conv or pool that say how its windows move."""
    return [node.attributes[name] for name in _WINDOWS if name in node.attributes]
