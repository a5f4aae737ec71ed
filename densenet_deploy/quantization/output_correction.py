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
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from densenet_deploy.graph.nodes import (
    constant,
    is_operator,
    maker,
    new_initializer,
    only_reader,
    set_weight_and_bias,
    weight_and_bias,
)
from densenet_deploy.graph.onnx_file import expose_values
from densenet_deploy.runtime.batching import run_batched
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.runner import REFERENCE_BACKEND, RunnerOptions, open_runner

_AFTER_CLASSIFIER: Final = frozenset({"Flatten", "LogSoftmax", "Reshape", "Sigmoid", "Softmax", "Squeeze", "Unsqueeze"})
_TWIN: Final = "twin:"
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
        y, y_hat = expected.astype(np.float64), found.astype(np.float64)
        pixels = tuple(range(2, y.ndim))
        products = (y, y_hat, y * y, y * y_hat)
        self._sums = self._sums + np.stack([product.mean(axis=pixels).sum(axis=0) for product in products])
        self._count += len(y)

    def correction(self) -> Correction:
        """Return the affine map of each channel; gain 1 where the two hardly correlate."""
        y, y_hat, squares, products = np.asarray(self._sums) / self._count
        variance, covariance = squares - y**2, products - y * y_hat
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = variance / covariance
        is_sound = (slope > 1 / _MOST_GAIN) & (slope < _MOST_GAIN)
        gain = np.where(is_sound, slope, 1.0)
        return Correction(gain, y - gain * y_hat)


def conv_corrections(model: ir.Model, quantized: onnx.ModelProto, samples: Iterable[Array]) -> dict[str, Correction]:
    """Return the correction of the output of each Conv of `model`, by the Conv's name.

    Args:
        model: the float graph as it will be quantized.
        quantized: its Q/DQ form, in which the outputs of Convs have the same names.
        samples: inputs (1, C, H, W) float32.
    """
    convs = {str(node.name): str(node.outputs[0].name) for node in model.graph if is_operator(node, "Conv")}
    moments = {name: Moments() for name in convs}
    outputs = {*convs.values(), *(_TWIN + output for output in convs.values())}
    exposed = expose_values(_side_by_side(ir.to_proto(model), quantized), outputs)
    options = RunnerOptions(check_values=False)
    with open_runner(exposed.SerializeToString(), REFERENCE_BACKEND, "cpu", options) as runner:
        for sample in samples:
            found = run_batched(runner, sample)
            for name, output in convs.items():
                moments[name].update(found[output], found[_TWIN + output])
    return {name: measured.correction() for name, measured in moments.items()}


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

    An activation and changes of shape may follow it.
    """
    value = graph.outputs[0] if len(graph.outputs) == 1 else None
    gemm = maker(value)
    while gemm is not None and gemm.domain == "" and gemm.op_type in _AFTER_CLASSIFIER:
        value = gemm.inputs[0]
        gemm = value.producer() if value is not None and only_reader(value) is gemm else None
    if not is_operator(gemm, "Gemm") or len(gemm.inputs) < 3:
        return None
    plain = all(gemm.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    known = constant(gemm.inputs[1]) is not None and constant(gemm.inputs[2]) is not None
    return gemm if plain and known else None


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
