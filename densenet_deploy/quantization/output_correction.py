"""Correct what quantization does to every output channel of a layer: its mean, and its variation.

Rounding weights, rounding the bounds of clips and cutting off what lies beyond a range change an output channel in ways
that are the same for every image: its mean moves, and it varies a little less. Both add up from layer to layer, and an
affine map undoes both. With ŷ the quantized and y the float output, ŷ ≈ (y − h)/g + noise that is independent of y,
and over the calibration images

    g = var(y) / cov(y, ŷ),   h = E[y] − g·E[ŷ]

for each channel. (Regressing y on ŷ instead would make every channel smaller by the share of the noise in it, again a
systematic error in every layer.) A layer absorbs g and h in its weights and bias at no cost: the quantized values of a
row of weights stay, its scale becomes g times as large. With g = 1 this is the bias correction of Nagel et
al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, with measured instead
of derived means.

Each Conv is measured alone, on its input in the float network. It does not correct the effect of errors of earlier
layers on its output: that vanishes when those correct theirs, and in a dense block, where all later layers read all
earlier ones, correcting it as well cost 16 dB on the digits model. So one graph holds both: the float network, and
beside every Conv its quantized twin, which quantizes the activations of the float network. The classifier comes last
and nothing reads it: it is measured in the quantized network and corrects the remaining error.

The output of a twin is needed for these means alone, and neighbouring pixels tell much the same. So both are compared
at every k-th row and column, k the largest that leaves at least seven of each: a twin of 56 x 56 pixels computes a
64th of them. Rows and columns at the edges, where padding is read, are met about as often as elsewhere. The twin of a
1x1 Conv reads no other pixels either: its bus is thinned out before it is quantized, joined and clipped.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from densenet_deploy.graph.nodes import (
    constant,
    is_operator,
    new_initializer,
    set_weight_and_bias,
    weight_and_bias,
)
from densenet_deploy.graph.onnx_file import expose_values, keep_what_makes
from densenet_deploy.runtime.batching import run_each, shared_cpus
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.runner import REFERENCE_BACKEND, RunnerOptions, open_runner

_ACTIVATIONS: Final = ("Flatten", "LogSoftmax", "Reshape", "Sigmoid", "Softmax", "Squeeze", "Unsqueeze")
_SCALES: Final = ("Add", "Cast", "Div", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mul", "Sub", "Where")
_AFTER_CLASSIFIER: Final = frozenset((*_ACTIVATIONS, *_SCALES))
_TWIN: Final = "twin:"
_THIN: Final = "thin:"
_CLIPS: Final = ("Max", "Min")
_CONVERSIONS: Final = ("DequantizeLinear", "QuantizeLinear")
_FEWEST_ROWS: Final = 7
_TO_THE_END: Final = 2**63 - 1
_MOST_GAIN: Final = 1.25  # beyond it, either way, a channel is noise and its slope is meaningless

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Correction:
    """By channel, (C,) each: the corrected output is `gain` · output + `shift`."""

    gain: Doubles
    shift: Doubles


class Moments:
    """Means of y, ŷ, y² and y·ŷ of each channel, image by image."""

    def __init__(self) -> None:
        self._sums: Doubles | float = 0.0
        self._count = 0

    def update(self, expected: Array, found: Array) -> None:
        """Add y and ŷ of N images, (N, C, …) each."""
        images, channels = expected.shape[:2]
        values = np.empty((4, images, channels, expected[0, 0].size))  # one array: most outputs are small
        values[0], values[1] = expected.reshape(values.shape[1:]), found.reshape(values.shape[1:])
        np.multiply(values[0], values[:2], out=values[2:])
        self._sums = self._sums + values.sum(axis=(1, 3)) / values.shape[3]
        self._count += images

    def correction(self, *, with_gain: bool = True) -> Correction:
        """Return the affine map of each channel; gain 1 where the two hardly correlate, or without gains."""
        y, y_hat, squares, products = np.asarray(self._sums) / self._count
        variance, covariance = squares - y**2, products - y * y_hat
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = variance / covariance
        is_sound = with_gain & (slope > 1 / _MOST_GAIN) & (slope < _MOST_GAIN)
        gain = np.where(is_sound, slope, 1.0)
        return Correction(gain, y - gain * y_hat)


def conv_corrections(
    model: ir.Model, quantized: onnx.ModelProto, samples: Iterable[Array], *, gains: bool = True
) -> dict[str, Correction]:
    """Return the correction of the output of each Conv of `model`, by the Conv's name.

    Args:
        model: the float graph as it will be quantized.
        quantized: its Q/DQ form, in which the outputs of Convs have the same names.
        samples: inputs (1, C, H, W) float32.
        gains: whether more than the mean is corrected: a gain changes weights, unless their row has its own scale.
    """
    convs = [node for node in model.graph if is_operator(node, "Conv")]
    both = _side_by_side(ir.to_proto(model), quantized)
    thinning = _Thinning(both.graph)
    outputs = {str(conv.name): thinning.outputs(conv) for conv in convs}
    moments = {name: Moments() for name in outputs}
    for found in _measured(both, {name for pair in outputs.values() for name in pair}, samples):
        for name, (output, twin) in outputs.items():
            moments[name].update(found[output], found[twin])
    return {name: measured.correction(with_gain=gains) for name, measured in moments.items()}


def quantized_inputs(
    model: onnx.ModelProto, quantized: onnx.ModelProto, outputs: Collection[str], samples: Iterable[Array]
) -> Iterator[dict[str, Array]]:
    """Yield what Convs read in quantized form on the input that they have in the float network, for each sample.

    Args:
        model: the float graph as it will be quantized.
        quantized: its Q/DQ form, in which the outputs of Convs have the same names.
        outputs: names of outputs of Convs that are quantized; what those read has these names.
        samples: inputs (1, C, H, W) float32.
    """
    both = _side_by_side(copy.deepcopy(model), quantized)
    makers = {name: node for node in both.graph.node for name in node.output}
    read = {output: makers[_TWIN + output].input[0] for output in outputs}
    for found in _measured(both, set(read.values()), samples):
        yield {output: found[name] for output, name in read.items()}


def _measured(both: onnx.ModelProto, names: Collection[str], samples: Iterable[Array]) -> Iterator[dict[str, Array]]:
    """Yield the values `names` of `both` for each sample."""
    exposed = expose_values(both, names)
    keep_what_makes(exposed.graph, names)
    calls, threads = shared_cpus(REFERENCE_BACKEND)
    options = RunnerOptions(check_values=False, threads=threads)
    with open_runner(exposed.SerializeToString(), REFERENCE_BACKEND, "cpu", options) as runner:
        for _, found in run_each(runner, samples, calls):
            yield found


class _Grid(NamedTuple):
    """Every `step`-th row and column of a Conv's output, from the `start`-th on."""

    step: tuple[int, int]
    start: tuple[int, int]

    @classmethod
    def of(cls, conv: ir.Node) -> _Grid | None:
        """Return the grid on which the output of `conv` is measured; None: all of it, or its size is unknown."""
        shape, weight = conv.outputs[0].shape, constant(conv.inputs[1])
        is_padded = conv.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
        if shape is None or shape.rank() != 4 or weight is None or is_padded:
            return None
        sizes = [size for size in shape[2:] if isinstance(size, int)]
        step = max(1, min(sizes) // _FEWEST_ROWS) if len(sizes) == 2 else 1
        if step == 1:
            return None
        strides, pads = _strides(conv), conv.attributes.get_ints("pads", [0] * 4)
        # the first window begins inside the image: a Conv cannot leave out the beginning of its padding
        start = [max(step // 2, -(-pad // stride)) for pad, stride in zip(pads[:2], strides, strict=True)]
        return cls((step, step), (start[0], start[1])) if max(start) < min(sizes) else None

    def name_of(self, value: str) -> str:
        """Return what `value` on this grid is called."""
        numbers = "x".join(str(number) for number in (*self.start, *self.step))
        return f"{_THIN}{numbers}:{value}"


def _strides(conv: ir.Node) -> tuple[int, int]:
    rows, columns = conv.attributes.get_ints("strides", [1, 1])
    return rows, columns


class _Thinning:
    """Adds to a graph, which holds a float network and the twins of its Convs, what measures these on their grids."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._makers = {name: node for node in graph.node for name in node.output}
        self._sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        self._known: set[str] = set()

    def outputs(self, conv: ir.Node) -> tuple[str, str]:
        """Let the graph compute the output of `conv` and that of its twin on the grid; return their names.

        The whole twin stays for those that read it.
        """
        output = str(conv.outputs[0].name)
        twin, grid = self._makers[_TWIN + output], _Grid.of(conv)
        if grid is None or twin.op_type != "Conv":
            return output, _TWIN + output
        (rows, columns), pads = _strides(conv), conv.attributes.get_ints("pads", [0] * 4)
        first = (grid.start[0] * rows - pads[0], grid.start[1] * columns - pads[1])  # that the first window reads
        strides = (rows * grid.step[0], columns * grid.step[1])
        thin = onnx.NodeProto()
        thin.CopyFrom(twin)
        thin.output[0] = _THIN + _TWIN + output
        if _reads_single_pixels(conv):
            thin.input[0] = self._thin(twin.input[0], _Grid(strides, first))
            strides = (1, 1)
        else:
            thin.input[0] = self._sliced(twin.input[0], _Grid((1, 1), first))
        kept = [attribute for attribute in twin.attribute if attribute.name not in ("pads", "strides")]
        del thin.attribute[:]
        thin.attribute.extend(kept)
        thin.attribute.append(onnx.helper.make_attribute("pads", [0, 0, pads[2], pads[3]]))
        thin.attribute.append(onnx.helper.make_attribute("strides", strides))
        self._graph.node.append(thin)
        return self._sliced(output, grid), thin.output[0]

    def _thin(self, value: str, grid: _Grid) -> str:
        """Return the name of `value` on `grid`, made from values on `grid` as far back as each pixel is by itself."""
        maker = self._makers.get(value)
        if maker is None or not value.startswith(_TWIN) or not self._is_pixel_by_pixel(maker):
            return self._sliced(value, grid)
        name = grid.name_of(value)
        if name not in self._known:
            self._known.add(name)
            thin = onnx.NodeProto()
            thin.CopyFrom(maker)
            count = len(maker.input) if maker.op_type == "Concat" else 1  # others have constants behind the first
            thin.input[:count] = [self._thin(read, grid) for read in maker.input[:count]]
            thin.output[0] = name
            self._graph.node.append(thin)
        return name

    def _is_pixel_by_pixel(self, node: onnx.NodeProto) -> bool:
        """Whether `node` computes each pixel from the same one of its first input; a Concat, of all its inputs."""
        if node.op_type == "Concat":
            return any(attribute.name == "axis" and attribute.i in (1, -3) for attribute in node.attribute)
        if node.op_type in _CLIPS:
            bounds = [self._sizes.get(name) for name in node.input[1:]]
            return all(sizes is not None and set(sizes[-2:]) <= {1} for sizes in bounds)
        return node.op_type in _CONVERSIONS

    def _sliced(self, value: str, grid: _Grid) -> str:
        """Return the name of the rows and columns of `value` that are on `grid`."""
        name = grid.name_of(value)
        if name not in self._known:
            self._known.add(name)
            numbers = {"starts": grid.start, "ends": (_TO_THE_END, _TO_THE_END), "axes": (2, 3), "steps": grid.step}
            inputs = [f"{name}.{word}" for word in numbers]
            arrays = zip(inputs, numbers.values(), strict=True)
            stored = (onnx.numpy_helper.from_array(np.array(given, np.int64), of) for of, given in arrays)
            self._graph.initializer.extend(stored)
            self._graph.node.append(onnx.helper.make_node("Slice", [value, *inputs], [name]))
        return name


def _reads_single_pixels(conv: ir.Node) -> bool:
    """Whether every output pixel of `conv` is computed from one pixel: a 1x1 kernel that never reads padding."""
    weight = constant(conv.inputs[1])
    is_padded = any(conv.attributes.get_ints("pads", ()))
    return weight is not None and weight.shape[2:] == (1, 1) and not is_padded


def correct_conv(graph: ir.Graph, conv: ir.Node, correction: Correction) -> None:
    """Let the float `conv` give gain · y + shift, so that its quantized form gives y; weights must be constants."""
    numbers = weight_and_bias(conv)
    if numbers is None:
        return
    weight, bias = numbers
    gain = correction.gain
    scaled = weight * np.expand_dims(gain, tuple(range(1, weight.ndim)))
    set_weight_and_bias(graph, conv, scaled, gain * bias + correction.shift, "corrected")


def classifier_of(graph: ir.Graph) -> ir.Node | None:
    """Return the Gemm of float32 constants that makes the one output of `graph`, or None.

    An activation, changes of shape and a scale of the outputs may follow it, computed from the Gemm and constants
    alone. TorchXRayVision has such a scale, on which every threshold is a half.
    """
    gemms: set[ir.Node] = set()
    is_tail = len(graph.outputs) == 1 and _leads_to(graph.outputs[0], gemms, set())
    gemm = next(iter(gemms)) if is_tail and len(gemms) == 1 else None
    if gemm is None or len(gemm.inputs) < 3:
        return None
    plain = all(gemm.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    known = constant(gemm.inputs[1]) is not None and constant(gemm.inputs[2]) is not None
    return gemm if plain and known else None


def _leads_to(value: ir.Value | None, gemms: set[ir.Node], seen: set[ir.Value]) -> bool:
    """Whether `value` is computed from nothing but Gemms, which are added to `gemms`, and constants."""
    if value is None or value in seen:
        return True
    seen.add(value)
    node = value.producer()
    if node is None:
        return value.is_initializer() and not value.is_graph_input()
    if is_operator(node, "Gemm"):
        gemms.add(node)
        return True
    is_passed = is_operator(node, "Constant") or (node.domain == "" and node.op_type in _AFTER_CLASSIFIER)
    return is_passed and all(_leads_to(source, gemms, seen) for source in node.inputs)


def correct_classifier(graph: ir.Graph, gemm: ir.Node, expected: Sequence[Array], found: Sequence[Array]) -> None:
    """Let `gemm` correct the remaining error: `expected` and `found` are its outputs (N, classes), image by image."""
    moments = Moments()
    for y, y_hat in zip(expected, found, strict=True):
        moments.update(y, y_hat)
    correction = moments.correction()
    weight, bias = constant(gemm.inputs[1]), constant(gemm.inputs[2])
    assert weight is not None
    assert bias is not None
    is_rows = gemm.attributes.get_int("transB", 0) != 0
    scaled = weight * (correction.gain[:, None] if is_rows else correction.gain)
    shifted = correction.gain * bias + correction.shift
    for index, numbers in ((1, scaled), (2, shifted)):
        name = f"{gemm.inputs[index].name}:corrected"  # type: ignore[union-attr]
        gemm.replace_input_with(index, new_initializer(graph, name, numbers.astype(np.float32)))


def _side_by_side(model: onnx.ModelProto, quantized: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` together with the nodes of `quantized`; QuantizeLinear nodes read the values of `model`."""
    made = {name for node in quantized.graph.node for name in node.output}
    for node in quantized.graph.node:
        twin = model.graph.node.add()
        twin.CopyFrom(node)
        twin.name = ""  # where nodes have names, no two are the same
        _read_twins(twin, made)
        if node.op_type == "QuantizeLinear":
            twin.input[0] = node.input[0]
        twin.output[:] = [_TWIN + name for name in node.output]
    stored = {tensor.name for tensor in model.graph.initializer}
    model.graph.initializer.extend(tensor for tensor in quantized.graph.initializer if tensor.name not in stored)
    return model


def _read_twins(node: onnx.NodeProto, made: Collection[str]) -> None:
    """Let `node`, and the nodes inside its branches, read the twins of the values in `made`."""
    node.input[:] = [_TWIN + name if name in made else name for name in node.input]
    for attribute in node.attribute:
        for branch in (attribute.g, *attribute.graphs):
            for inner in branch.node:
                _read_twins(inner, made)
