"""What a graph shows of the images that it takes and of what its outputs mean.

Channels and sizes stand in its input. A scale and shift before the first convolution is the normalization that the
caller must then leave out: with y = s·x + t per channel, x = −t/s becomes 0. If that lies in 0..1 for all channels,
the graph takes values in 0..1, and if it lies in 10..255, pixels. A scale alone says it where it is 1/255 (or 1/256,
1/65535, 1). Anything else stays unknown, as does a scale so small that the values in that range would differ by less
than 1: then the graph normalizes a second time what its caller has normalized already.

A final Sigmoid makes labels that do not exclude each other, a final Softmax classes that do; one number without either
is a regression, pooled features that nothing multiplies are features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir

from densenet_deploy.facts import ModelFacts
from densenet_deploy.graph.affine import Affine, affine_of
from densenet_deploy.graph.nodes import Double, integers, is_operator, maker
from densenet_deploy.graph.pixel_input import pixel_front
from densenet_deploy.manifest import Size

_RANGES: Final = ((0.0, 1.0), (10.0, 255.0))  # of what becomes 0, without the first
_LONE_SCALES: Final = (1.0, 255.0, 256.0, 65535.0)
_LEAST_SPAN: Final = 0.9  # what a normalization makes of its range; 1 for a mean that is only subtracted
_CLOSE: Final = 1e-3
_ROUGHLY: Final = 1e-2
_COLORS: Final = 3
_SLICE_INPUTS: Final = 5  # the values, starts, ends, axes and steps
_TO_NCHW: Final = (0, 3, 1, 2)
_TO_NHWC: Final = (0, 2, 3, 1)
_RESHAPING: Final = ("Cast", "Clip", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_POOLING: Final = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "Dropout")
_BGR: Final = (103.939, 116.779, 123.68)  # ImageNet's means of blue, green and red pixels, which Caffe subtracts


@dataclass(frozen=True)
class ShownOutput:
    """One output: how many scores it has for an image (None if unknown), and what is computed last.

    `activation` is `sigmoid`, `softmax` or None; `is_features` says that nothing multiplies the pooled features.
    """

    classes: int | None
    activation: str | None = None
    is_features: bool = False


@dataclass(frozen=True)
class ShownFacts:
    """What a graph shows.

    Attributes:
        facts: channels, image size, mean, std and task, each None where the graph does not show it.
        certain: names of the facts that follow from the graph; the others are conclusions, and may be wrong.
        layout: `NCHW` or `NHWC`; None if the input has other axes.
        height, width: of an image; None where dynamic.
        outputs: by name, in order.
        notes: sentences about what was seen and cannot be stated as a fact.
    """

    facts: ModelFacts
    certain: frozenset[str] = frozenset()
    layout: str | None = None
    height: int | None = None
    width: int | None = None
    outputs: Mapping[str, ShownOutput] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def facts_of_graph(model: onnx.ModelProto) -> ShownFacts:
    """Return what `model` shows; nothing is run or changed.

    >>> facts_of_graph(onnx.load("float255.onnx")).facts                                  # doctest: +SKIP
    ModelFacts(image_size=64, channels=3, mean=(0.0,), std=(0.00392156862745098,))
    """
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model)).graph
    outputs = {str(value.name): _output(value) for value in graph.outputs}
    task = _task(tuple(outputs.values()))
    sure = {"task"} if task is not None and task != "regression" else set[str]()
    images = [value for value in graph.inputs if not value.is_initializer()]
    if len(images) != 1 or images[0].shape is None or images[0].shape.rank() != 4:
        return ShownFacts(ModelFacts(task=task), frozenset(sure), outputs=outputs)
    if images[0].dtype == ir.DataType.UINT8:
        return _of_pixels(graph, outputs, task, sure)
    stem = _Stem.of(images[0])
    layout = "NHWC" if stem.is_nhwc else "NCHW"
    channels, height, width = _sizes(images[0].shape, layout)
    mean, std = _normalization(stem)
    facts = ModelFacts(image_size=_size(height, width), channels=channels, mean=mean, std=std, task=task)
    sure |= {name for name in ("channels", "image_size") if getattr(facts, name) is not None}
    sure |= {"mean", "std"} if mean is not None and not stem.is_learnt else set()
    return ShownFacts(facts, frozenset(sure), layout, height, width, outputs, tuple(_notes(stem, mean)))


def _of_pixels(graph: ir.Graph, outputs: Mapping[str, ShownOutput], task: str | None, sure: set[str]) -> ShownFacts:
    """Return what a graph shows that takes pixels: with uint8, the range of the values is certain."""
    shape, front = graph.inputs[0].shape, pixel_front(graph)
    assert shape is not None
    channels, height, width = _sizes(shape, "NHWC")
    mean, std = (None, None) if front is None else (front.mean, front.std)
    facts = ModelFacts(image_size=_size(height, width), channels=channels, mean=mean, std=std, task=task)
    sure |= {name for name in ("channels", "image_size", "mean", "std") if getattr(facts, name) is not None}
    notes = tuple(_notes_on_order(_Stem.of(graph.inputs[0])))
    return ShownFacts(facts, frozenset(sure), "NHWC", height, width, outputs, notes)


def scores_per_image(model: onnx.ModelProto) -> int | None:
    """Return how many scores the output `logits` or the only one, (N, C) or (N, C, 1, 1), has; None if unknown."""
    outputs = [value for value in model.graph.output if value.name == "logits"] or list(model.graph.output)
    sizes = [dim.dim_value for dim in outputs[0].type.tensor_type.shape.dim] if len(outputs) == 1 else []
    is_row = len(sizes) >= 2 and all(size == 1 for size in sizes[2:])
    return (sizes[1] or None) if is_row else None


# -- the input


@dataclass(frozen=True)
class _Stem:
    """What happens to an image before the first convolution.

    Attributes:
        affine: all scales and shifts as one; None if there is none.
        is_nhwc: whether the image is transposed from (N, H, W, C).
        is_reversed: whether the three channels change their order from first to last.
        is_learnt: whether a BatchNormalization, whose numbers come from training, is among them.
        end: the operator at which the path ends: a convolution, or what is not understood.
    """

    affine: Affine | None
    is_nhwc: bool
    is_reversed: bool
    is_learnt: bool
    end: str | None

    @classmethod
    def of(cls, image: ir.Value) -> _Stem:
        affine, axis, is_learnt, order = None, _channel_axis(image), False, slice(None)
        is_nhwc, value, node = axis == 3, image, _only_user(image)
        while node is not None and not is_operator(node, "Conv"):
            if (axis_after := _axis_after(node, axis)) is not None:
                axis = axis_after
            elif _reverses(node, axis):
                order = slice(None, None, -1) if order == slice(None) else slice(None)
            elif (found := affine_of(node, axis)) is not None:
                found = Affine(found.source, found.scale[order], found.shift[order])
                affine = found if affine is None else found.after(affine)
                is_learnt |= is_operator(node, "BatchNormalization")
            else:
                break
            value = node.outputs[0]
            node = _only_user(value)
        return cls(affine, is_nhwc, order != slice(None), is_learnt, None if node is None else node.op_type)


def _only_user(value: ir.Value) -> ir.Node | None:
    users = {use.node for use in value.uses()}
    return users.pop() if len(users) == 1 else None


def _channel_axis(image: ir.Value) -> int:
    """Return 3 for an image (N, H, W, C) that is transposed before the first convolution, else 1."""
    value: ir.Value | None = image
    while value is not None and (node := _only_user(value)) is not None and not is_operator(node, "Conv"):
        if is_operator(node, "Transpose"):
            return 3 if _permutation(node) == _TO_NCHW else 1
        if is_operator(node, "Reshape") and _adds_channel_axis(node):
            return 3
        value = node.outputs[0]
    return 1


def _axis_after(node: ir.Node, axis: int) -> int | None:
    """Return the axis of the channels after `node`, which only moves or converts values; None if it does more."""
    if is_operator(node, "Transpose"):
        if _permutation(node) == (_TO_NCHW if axis == 3 else _TO_NHWC):
            return 4 - axis
        return None
    if is_operator(node, "Reshape") and axis == 3 and _adds_channel_axis(node):
        return 1
    return axis if is_operator(node, "Cast") or is_operator(node, "Identity") else None


def _reverses(node: ir.Node, axis: int) -> bool:
    """Whether `node` makes BGR of RGB, or the reverse."""
    shape = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
    if shape is None or shape.rank() != 4 or shape[axis] != _COLORS:
        return False
    if is_operator(node, "Gather"):
        is_channels = node.attributes.get_int("axis", 0) % 4 == axis
        return is_channels and integers(node.inputs[1]) in ((2, 1, 0), (-1, -2, -3))
    if not is_operator(node, "Slice") or len(node.inputs) != _SLICE_INPUTS:
        return False
    (start, *_), (end, *_), axes, steps = (integers(value) or (0,) for value in node.inputs[1:])
    is_all = (start == -1 or start >= _COLORS - 1) and end < -_COLORS
    return is_all and tuple(one % 4 for one in axes) == (axis,) and steps == (-1,)


def _permutation(transpose: ir.Node) -> tuple[int, ...]:
    return tuple(transpose.attributes.get_ints("perm", ()))


def _adds_channel_axis(reshape: ir.Node) -> bool:
    """Whether `reshape` makes (N, 1, H, W) of (N, H, W, 1), as some exporters write that Transpose."""
    shape, target = reshape.inputs[0].shape if reshape.inputs[0] is not None else None, integers(reshape.inputs[1])
    if shape is None or shape.rank() != 4 or target is None or len(target) != 4:
        return False
    return shape[3] == 1 and shape[1] != 1 and target[1] == 1


def _sizes(shape: ir.Shape, layout: str) -> tuple[int | None, int | None, int | None]:
    """Return channels, height and width."""
    sizes = [size if isinstance(size, int) and size > 0 else None for size in shape]
    return (sizes[3], sizes[1], sizes[2]) if layout == "NHWC" else (sizes[1], sizes[2], sizes[3])


def _size(height: int | None, width: int | None) -> Size | None:
    if height is None or width is None:
        return None
    return height if height == width else (height, width)


def _normalization(stem: _Stem) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return the mean and std with which the caller must prepare values in 0..1; None if the graph does not show it."""
    largest = None if stem.affine is None else _largest_value(stem.affine.scale, stem.affine.shift)
    return (None, None) if largest is None else ((0.0,), (1 / largest,))


def _largest_value(scale: Double, shift: Double) -> float | None:
    """Return the largest value that x of `scale`·x + `shift` has, 1 or that of a pixel; None if it is not clear."""
    if not scale.all():
        return None
    if not shift.any():
        return next((most for most in _LONE_SCALES if np.allclose(np.abs(scale), 1 / most, rtol=_CLOSE, atol=0)), None)
    zero = -shift / scale
    for least, most in _RANGES:
        if ((zero > least) & (zero <= most) & (np.abs(scale) * most >= _LEAST_SPAN)).all():
            return most
    return None


def _notes(stem: _Stem, mean: tuple[float, ...] | None) -> Iterator[str]:
    if stem.affine is not None and mean is None:
        yield "the graph scales and shifts its input first, and does not show the range of the values that it takes"
    yield from _notes_on_order(stem)
    if stem.end not in (None, "Conv", "Pad"):
        yield f"the graph begins with {stem.end}, which says nothing about the range of the values that it takes"


def _notes_on_order(stem: _Stem) -> Iterator[str]:
    if stem.affine is not None and _takes_bgr(stem.affine):
        yield "the graph subtracts the means of blue, green and red in that order: it takes the channels as BGR"
    elif stem.is_reversed:
        yield "the graph reverses the order of the channels first; images enter as RGB"


def _takes_bgr(affine: Affine) -> bool:
    is_known = affine.shift.size == 3 and bool(affine.scale.all())
    return is_known and np.allclose(-affine.shift / affine.scale, _BGR, rtol=_ROUGHLY)


# -- the outputs


def _output(value: ir.Value) -> ShownOutput:
    shape = value.shape
    sizes = list(shape) if shape is not None else []
    is_row = len(sizes) >= 2 and all(size == 1 for size in sizes[2:])
    classes = sizes[1] if is_row and isinstance(sizes[1], int) else None
    node = _maker(value, _RESHAPING)
    activation = _activation(node)
    pooled = _maker(value, (*_RESHAPING, *_POOLING))
    return ShownOutput(classes, activation, is_features=is_row and pooled is not node)


def _maker(value: ir.Value, passed: tuple[str, ...]) -> ir.Node | None:
    """Return the node that makes `value`, seen through nodes of the operators `passed`."""
    node = maker(value)
    while node is not None and node.op_type in passed:
        node = maker(node.inputs[0])
    return node


def _activation(node: ir.Node | None) -> str | None:
    if is_operator(node, "Sigmoid") or is_operator(node, "HardSigmoid"):
        return "sigmoid"
    if not (is_operator(node, "Softmax") or is_operator(node, "LogSoftmax")):
        return None
    shape = node.outputs[0].shape
    axis = node.attributes.get_int("axis", -1)
    rank = 2 if shape is None else shape.rank()
    return "softmax" if axis % rank == 1 else None


def _task(outputs: tuple[ShownOutput, ...]) -> str | None:
    if len(outputs) != 1:
        return None
    (output,) = outputs
    if output.activation is not None:
        return {"sigmoid": "multilabel", "softmax": "multiclass"}[output.activation]
    if output.is_features:
        return "features"
    return "regression" if output.classes == 1 else None
