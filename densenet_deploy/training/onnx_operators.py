"""ONNX operators as functions of PyTorch, for the graphs that this package writes and adopts.

**Integers.** A quantized value is a float32 tensor of whole numbers, so that gradients pass. A convolution of such is
exact while its sums stay below 2²⁴, and rounding is ONNX's: to the nearest, ties to even. Its derivative is zero almost
everywhere; the straight-through estimator (Bengio et al. 2013, https://arxiv.org/abs/1308.3432) passes the gradient on
as if there had been no rounding, and nothing where the value saturated:

    ŷ = clamp(round(x·f), low, high),   ∂ŷ/∂x ≈ f inside of low..high, 0 beyond

**FP16.** Values of FP16 graphs are computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import onnx
import torch
from torch import Tensor
from torch.nn import functional

from densenet_deploy.errors import ModelFileError

Inputs = Sequence[Tensor | None]
Operator = Callable[["NodeFacts", Inputs], Tensor | Sequence[Tensor]]

RANGES: Final[Mapping[int, tuple[int, int]]] = {onnx.TensorProto.UINT8: (0, 255), onnx.TensorProto.INT8: (-128, 127)}
"""Lowest and highest quantized value by stored type."""

_FLOATS: Final = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
_LAST: Final = 2**62  # an end of a Slice beyond it means: to the end


@dataclass(frozen=True)
class NodeFacts:
    """What is known of a node before it runs.

    Attributes:
        name: of the node, or of its first output.
        outputs: how many it has.
        attributes: by name.
        opset: of the graph.
        batch: the size of a fixed batch; None: any.
        types: stored types of its inputs, `onnx.TensorProto.INT8` for example; None of what is not an initializer.
    """

    name: str
    outputs: int
    attributes: Mapping[str, Any]
    opset: int
    batch: int | None
    types: Sequence[int | None]

    def get(self, name: str, default: Any) -> Any:
        """Return an attribute."""
        return self.attributes.get(name, default)


class _Rounded(torch.autograd.Function):
    """clamp(round(x·f), low, high), or with x/f; the gradient reaches x, and f if it wants one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor | None, low: float, high: float, is_divisor: bool) -> Tensor:
        scaled = x if factor is None else x / factor if is_divisor else x * factor
        rounded = torch.round(scaled) if factor is None else scaled.round_()
        clamped = rounded.clamp(low, high)
        is_inside = rounded == clamped
        wants_factor = factor is not None and factor.requires_grad
        ctx.save_for_backward(is_inside, factor, x if wants_factor else None)
        ctx.is_divisor = is_divisor
        return clamped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        is_inside, factor, x = ctx.saved_tensors
        passed = gradients[0] * is_inside
        if factor is None:
            return passed, None, None, None, None
        for_factor = None
        if x is not None:
            slope = -x / factor**2 if ctx.is_divisor else x
            for_factor = (passed * slope).sum_to_size(factor.shape)
        return (passed.div_(factor) if ctx.is_divisor else passed.mul_(factor)), for_factor, None, None, None


class _Larger(torch.autograd.Function):
    """max(x, y), or with a sign of −1 min(x, y); where both are the same, the gradient goes to x alone.

    PyTorch's own maximum gives each a half, which takes four more passes over the gradient of a feature map.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, sign: int) -> Tensor:
        ctx.save_for_backward(x >= y if sign > 0 else x <= y)
        ctx.shapes = x.shape, y.shape
        return torch.maximum(x, y) if sign > 0 else torch.minimum(x, y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (is_first,), (gradient,) = ctx.saved_tensors, gradients
        for_first, for_second = gradient * is_first, None
        if ctx.needs_input_grad[1]:
            for_second = (gradient - for_first).sum_to_size(ctx.shapes[1])
        return for_first.sum_to_size(ctx.shapes[0]), for_second, None


def rounded(values: Tensor, low: float, high: float) -> Tensor:
    """Return `values` rounded, ties to even, and clamped; the gradient passes straight through between the limits.

    >>> rounded(torch.tensor([0.5, 1.5, 9.0]), 0, 5)
    tensor([0., 2., 5.])
    """
    result: Tensor = _Rounded.apply(values, None, low, high, False)
    return result


# -- quantization


def _quantize(node: NodeFacts, inputs: Inputs) -> Tensor:
    values, scale, zero = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    assert values is not None
    assert scale is not None
    kind = node.types[2] if zero is not None else node.get("output_dtype", onnx.TensorProto.UINT8)
    return _requantized(node, values, _along(node, scale, values), zero, kind, is_divisor=True)


def _requantized(
    node: NodeFacts, values: Tensor, factor: Tensor, zero: Tensor | None, kind: int | None, *, is_divisor: bool
) -> Tensor:
    if kind is None or kind not in RANGES:
        raise _unsupported(node.name, "quantizes to another type than int8 and uint8")
    at = 0.0 if zero is None else _one(node, zero)
    low, high = RANGES[kind]
    result: Tensor = _Rounded.apply(values, factor, low - at, high - at, is_divisor)
    return result + at if at else result


def _dequantize(node: NodeFacts, inputs: Inputs) -> Tensor:
    values, scale, zero = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    assert values is not None
    assert scale is not None
    at = 0.0 if zero is None else _one(node, zero)
    return (values - at if at else values) * _along(node, scale, values)


def _quantized_conv(node: NodeFacts, inputs: Inputs) -> Tensor:
    """As ONNX Runtime: a sum of integers, a factor s_x·s_w/s_y in float32, and one rounding."""
    x, x_scale, x_zero, weight, w_scale, w_zero, y_scale, y_zero = (_given(value) for value in inputs[:8])
    if w_zero.any():
        raise _unsupported(node.name, "has weights with a zero point")
    at, bias = _one(node, x_zero), inputs[8] if len(inputs) > 8 else None
    shifted, factor = x - at if at else x, x_scale * w_scale / y_scale
    column = factor.reshape(-1, 1, 1) if factor.ndim else factor
    if weight.shape[1] == 1 and weight.shape[2:].numel() == 1 and node.get("group", 1) == len(weight) == x.shape[1]:
        summed = shifted * weight.reshape(-1, 1, 1)  # an affine map of each channel
        summed = summed if bias is None else summed + bias.reshape(-1, 1, 1)
        if node.get("strides", [1, 1]) != [1, 1] or any(node.get("pads", ())):
            raise _unsupported(node.name, "is a 1x1 convolution of single channels with strides or pads")
    else:
        summed = _conv(node, [shifted, weight, bias])
    return _requantized(node, summed, column, y_zero, node.types[7], is_divisor=False)


def _along(node: NodeFacts, numbers: Tensor, values: Tensor) -> Tensor:
    """Return scales (), or (C,) for the node's axis of `values`, in a shape that broadcasts."""
    if numbers.ndim == 0 or numbers.numel() == 1:
        return numbers.reshape(())
    shape = [1] * values.ndim
    shape[node.get("axis", 1)] = -1
    return numbers.reshape(shape)


def _one(node: NodeFacts, numbers: Tensor) -> float:
    """Return the zero point that all channels share."""
    first = numbers.reshape(-1)[0]
    if not bool((numbers == first).all()):
        raise _unsupported(node.name, "has a zero point for each channel")
    return float(first)


def _given(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


# -- convolutions and pools


def _conv(node: NodeFacts, inputs: Inputs) -> Tensor:
    x, weight = _given(inputs[0]), _given(inputs[1])
    bias = inputs[2] if len(inputs) > 2 else None
    sizes, strides = list(weight.shape[2:]), node.get("strides", [1, 1])
    dilations = node.get("dilations", [1, 1])
    pads = _pads(node, x, [d * (k - 1) + 1 for k, d in zip(sizes, dilations, strict=True)], strides)
    if pads[:2] != pads[2:]:
        x, pads = functional.pad(x, (pads[1], pads[3], pads[0], pads[2])), [0] * 4
    return functional.conv2d(x, weight, bias, strides, pads[:2], dilations, node.get("group", 1))


def _max_pool(node: NodeFacts, inputs: Inputs) -> Tensor:
    x, sizes, strides, pads = _window(node, inputs)
    is_padded = any(pads)
    if is_padded:
        x = functional.pad(x, (pads[1], pads[3], pads[0], pads[2]), value=-math.inf)
    ceil = bool(node.get("ceil_mode", 0))
    return functional.max_pool2d(x, sizes, strides, 0, node.get("dilations", [1, 1]), ceil)


def _average_pool(node: NodeFacts, inputs: Inputs) -> Tensor:
    x, sizes, strides, pads = _window(node, inputs)
    counts_pads = bool(node.get("count_include_pad", 0))
    if pads[:2] != pads[2:] or (any(pads) and node.get("ceil_mode", 0)):
        raise _unsupported(node.name, "averages over pads that differ from side to side")
    return functional.avg_pool2d(x, sizes, strides, pads[:2], bool(node.get("ceil_mode", 0)), counts_pads)


def _window(node: NodeFacts, inputs: Inputs) -> tuple[Tensor, list[int], list[int], list[int]]:
    x, sizes = _given(inputs[0]), list(node.attributes["kernel_shape"])
    strides = node.get("strides", [1] * len(sizes))
    return x, sizes, strides, _pads(node, x, sizes, strides)


def _pads(node: NodeFacts, x: Tensor, sizes: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Return the pads of top, left, bottom and right."""
    automatic = node.get("auto_pad", b"NOTSET").decode()
    if x.ndim != 4:
        raise _unsupported(node.name, "is not two-dimensional")
    if not automatic.startswith("SAME"):
        return list(node.get("pads", [0] * 4)) if automatic == "NOTSET" else [0] * 4
    begin, end = [], []
    for length, size, stride in zip(x.shape[2:], sizes, strides, strict=True):
        total = max(0, (-(-length // stride) - 1) * stride + size - length)
        few, more = total // 2, total - total // 2
        begin.append(more if automatic == "SAME_LOWER" else few)
        end.append(few if automatic == "SAME_LOWER" else more)
    return begin + end


def _batch_norm(node: NodeFacts, inputs: Inputs) -> Tensor:
    x, scale, shift, mean, variance = map(_given, inputs)
    factor = scale / torch.sqrt(variance + node.get("epsilon", 1e-5))
    shape = (-1, *[1] * (x.ndim - 2))
    return torch.addcmul((shift - mean * factor).reshape(shape), x, factor.reshape(shape))


def _gemm(node: NodeFacts, inputs: Inputs) -> Tensor:
    first, second = _given(inputs[0]), _given(inputs[1])
    first = first.T if node.get("transA", 0) else first
    product: Tensor = node.get("alpha", 1.0) * (first @ (second.T if node.get("transB", 0) else second))
    return product if len(inputs) < 3 or inputs[2] is None else product + node.get("beta", 1.0) * inputs[2]


# -- shapes


def _integers(value: Tensor | None) -> list[int]:
    return [int(number) for number in _given(value).reshape(-1).tolist()]


def _axes(node: NodeFacts, inputs: Inputs, default: Sequence[int] = ()) -> list[int]:
    """Return axes, which were an attribute in older operator sets and are an input in newer ones."""
    if len(inputs) > 1 and inputs[1] is not None:
        return _integers(inputs[1])
    return list(node.get("axes", default))


def _concat(node: NodeFacts, inputs: Inputs) -> Tensor:
    return torch.cat([_given(value) for value in inputs], node.attributes["axis"])


def _split(node: NodeFacts, inputs: Inputs) -> Sequence[Tensor]:
    x, axis = _given(inputs[0]), node.get("axis", 0)
    sizes = _integers(inputs[1]) if len(inputs) > 1 and inputs[1] is not None else node.get("split", None)
    return torch.split(x, sizes or -(-x.shape[axis] // node.outputs), axis)


def _slice(node: NodeFacts, inputs: Inputs) -> Tensor:
    x = _given(inputs[0])
    if len(inputs) == 1:  # before opset 10
        starts, ends, steps = node.attributes["starts"], node.attributes["ends"], [1] * len(node.attributes["starts"])
        axes = node.get("axes", list(range(len(starts))))
    else:
        starts, ends = _integers(inputs[1]), _integers(inputs[2])
        axes = _integers(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else list(range(len(starts)))
        steps = _integers(inputs[4]) if len(inputs) > 4 else [1] * len(starts)
    if min(steps) < 1:
        raise _unsupported(node.name, "slices backwards")
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, None if end > _LAST else end, step)
    return x[tuple(index)]


def _reshape(node: NodeFacts, inputs: Inputs) -> Tensor:
    x, wanted = _given(inputs[0]), _integers(inputs[1])
    if not node.get("allowzero", 0):
        wanted = [x.shape[place] if size == 0 else size for place, size in enumerate(wanted)]
    if wanted[:1] == [node.batch] and node.types[0] is None:
        wanted[0] = x.shape[0]  # a graph for a fixed batch runs others too
    return x.reshape(wanted)


def _flatten(node: NodeFacts, inputs: Inputs) -> Tensor:
    x, axis = _given(inputs[0]), node.get("axis", 1)
    return x.reshape(x.shape[:axis].numel(), -1)


def _squeeze(node: NodeFacts, inputs: Inputs) -> Tensor:
    x = _given(inputs[0])
    axes = _axes(node, inputs, [axis for axis, size in enumerate(x.shape) if size == 1])
    return x.squeeze(tuple(axes))


def _unsqueeze(node: NodeFacts, inputs: Inputs) -> Tensor:
    x, axes = _given(inputs[0]), _axes(node, inputs)
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _pad(node: NodeFacts, inputs: Inputs) -> Tensor:
    x = _given(inputs[0])
    pads = _integers(inputs[1]) if len(inputs) > 1 else list(node.attributes["pads"])
    value = inputs[2] if len(inputs) > 2 else None
    if len(inputs) > 3 or len(pads) != 2 * x.ndim:
        raise _unsupported(node.name, "pads some of the axes")
    begin, end = pads[: x.ndim], pads[x.ndim :]
    sides = [side for both in zip(begin[::-1], end[::-1], strict=True) for side in both]
    mode = node.get("mode", b"constant").decode()
    if mode == "constant":
        return functional.pad(x, sides, value=node.get("value", 0.0) if value is None else float(value))
    if mode != "reflect" or any(sides[4:]):
        raise _unsupported(node.name, f"pads in the mode {mode}")
    return functional.pad(x, sides[:4], "reflect")


def _reduce(
    how: Callable[..., Tensor],
) -> Operator:
    def operator(node: NodeFacts, inputs: Inputs) -> Tensor:
        x = _given(inputs[0])
        axes = _axes(node, inputs) or list(range(x.ndim))
        return how(x, dim=tuple(axes), keepdim=bool(node.get("keepdims", 1)))

    return operator


# -- elementwise


def _clip(node: NodeFacts, inputs: Inputs) -> Tensor:
    x, limits = _given(inputs[0]), list(inputs[1:])
    lowest = limits[0] if limits else _number(node, "min")
    highest = limits[1] if len(limits) > 1 else _number(node, "max")
    x = x if lowest is None else torch.maximum(x, lowest)
    return x if highest is None else torch.minimum(x, highest)


def _number(node: NodeFacts, name: str) -> Tensor | None:
    return torch.tensor(node.attributes[name]) if name in node.attributes else None


def _cast(node: NodeFacts, inputs: Inputs) -> Tensor:
    x, kind = _given(inputs[0]), node.attributes["to"]
    if kind in _FLOATS:
        return x.float()
    if kind in RANGES:  # of whole numbers, as a graph that reads pixels does; a fraction is cut off
        return x.trunc() if x.is_floating_point() else x.float()
    if kind == onnx.TensorProto.BOOL:
        return x != 0
    raise _unsupported(node.name, f"casts to {onnx.TensorProto.DataType.Name(kind)}")


def _softmax(how: Callable[..., Tensor]) -> Operator:
    def operator(node: NodeFacts, inputs: Inputs) -> Tensor:
        x, is_old = _given(inputs[0]), node.opset < 13
        axis = node.get("axis", 1 if is_old else -1) % x.ndim
        if not is_old:
            return how(x, dim=axis)
        return how(x.flatten(axis), dim=axis).reshape(x.shape)  # over all axes from this one on

    return operator


def _each(how: Callable[..., Tensor]) -> Operator:
    """An operator of tensors alone."""
    return lambda _, inputs: how(*map(_given, inputs))


def _folded(how: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of any number of tensors."""

    def operator(_: NodeFacts, inputs: Inputs) -> Tensor:
        found = _given(inputs[0])
        for value in inputs[1:]:
            found = how(found, _given(value))
        return found

    return operator


def _unsupported(name: str, why: str) -> ModelFileError:
    return ModelFileError(f"the node {name}", f"{why}, which is not run in PyTorch", _FIX)


def unknown(name: str, operator: str) -> ModelFileError:
    """Return the error about a node of an operator that is not in the table."""
    return ModelFileError(f"the node {name}", f"is {operator}, an operator that is not run in PyTorch", _FIX)


_FIX: Final = "go without fine-tuning, or train the network before it is exported"

OPERATORS: Final[Mapping[str, Operator]] = {
    "Add": _each(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": _each(torch.div),
    "Dropout": lambda _, inputs: _given(inputs[0]),
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _, inputs: _given(inputs[0]).mean((2, 3), keepdim=True),
    "GlobalMaxPool": lambda _, inputs: _given(inputs[0]).amax((2, 3), keepdim=True),
    "Greater": _each(torch.gt),
    "GreaterOrEqual": _each(torch.ge),
    "Identity": lambda _, inputs: _given(inputs[0]),
    "LeakyRelu": lambda node, inputs: functional.leaky_relu(_given(inputs[0]), node.get("alpha", 0.01)),
    "Less": _each(torch.lt),
    "LessOrEqual": _each(torch.le),
    "LogSoftmax": _softmax(functional.log_softmax),
    "MatMul": _each(torch.matmul),
    "Max": _folded(lambda x, y: _Larger.apply(x, y, 1)),
    "MaxPool": _max_pool,
    "Min": _folded(lambda x, y: _Larger.apply(x, y, -1)),
    "Mul": _each(torch.mul),
    "Pad": _pad,
    "Pow": _each(torch.pow),
    "QLinearConv": _quantized_conv,
    "QuantizeLinear": _quantize,
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "Relu": _each(torch.relu),
    "Reshape": _reshape,
    "Sigmoid": _each(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax(functional.softmax),
    "Split": _split,
    "Sqrt": _each(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _each(torch.sub),
    "Tanh": _each(torch.tanh),
    "Transpose": lambda node, inputs: _given(inputs[0]).permute(
        node.get("perm", list(range(_given(inputs[0]).ndim))[::-1])
    ),
    "Unsqueeze": _unsqueeze,
    "Where": _each(torch.where),
}
"""By name, of the domain of ONNX."""
