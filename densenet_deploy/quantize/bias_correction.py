"""Take back what quantization does to the mean of every convolution's output.

Rounding weights, and rounding the bounds of clips, moves the mean of an output channel by an amount that is the same at
every pixel of every picture; no average pool removes it, and it adds up from layer to layer. It is measured over the
calibration pictures, E[y_int8] − E[y_float], and subtracted from the bias (Nagel et al. 2019, "Data-Free Quantization
Through Weight Equalization and Bias Correction", section 4.2, with measured instead of derived means).

Each layer is measured alone, on what the float network feeds it. What errors of earlier layers do to its mean is not
its own to correct: it vanishes when those correct theirs, and in a dense block, where all later layers read all earlier
ones, correcting it as well cost 16 dB on the digits model. So one graph holds both: the float network, and beside every
Conv its quantized twin, which quantizes the float network's own activations.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from densenet_deploy.artifacts import write_file
from densenet_deploy.graph.convs import set_bias, weight_and_bias
from densenet_deploy.graph.expose_values import expose_values
from densenet_deploy.graph.graph_pass import is_operator
from densenet_deploy.runtime.batching import run_batched
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.runner import Runner

_TWIN: Final = "twin:"

Doubles = npt.NDArray[np.float64]
Quantize = Callable[[ir.Model], None]
Open = Callable[[Path], Runner]


def mean_shifts(model: ir.Model, quantize: Quantize, samples: Iterable[Array], open_float: Open) -> dict[str, Doubles]:
    """Return by how much quantization moves the mean of each output channel of each Conv, (C,) by the Conv's name.

    Args:
        model: the float graph as it will be quantized.
        quantize: writes a copy of it in the Q/DQ form, in place, keeping the names of the Convs' outputs.
        samples: inputs (1, 3, S, S) float32.
        open_float: opens an ONNX file on a backend that shows inner tensors as they are.
    """
    copy = ir.from_proto(ir.to_proto(model))
    quantize(copy)
    convs = [node for node in model.graph if is_operator(node, "Conv")]
    names = [str(conv.outputs[0].name) for conv in convs]
    means = _means(_side_by_side(ir.to_proto(model), ir.to_proto(copy)), names, samples, open_float)
    return {str(conv.name): means[_TWIN + name] - means[name] for conv, name in zip(convs, names, strict=True)}


def correct_bias(graph: ir.Graph, conv: ir.Node, shift: Doubles) -> None:
    """Subtract `shift`, (C,), from the bias of `conv`, which gets one if it has none."""
    numbers = weight_and_bias(conv)
    if numbers is not None:
        set_bias(graph, conv, numbers[1] - shift, "corrected")


def _side_by_side(model: onnx.ModelProto, quantized: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` together with the nodes of `quantized`, whose QuantizeLinear nodes read the values of `model`."""
    made = {name for node in quantized.graph.node for name in node.output}
    for node in quantized.graph.node:
        kept = node.op_type == "QuantizeLinear"
        inputs = [
            name if name not in made or (kept and place == 0) else _TWIN + name for place, name in enumerate(node.input)
        ]
        twin = model.graph.node.add()
        twin.CopyFrom(node)
        twin.name = _TWIN + node.name
        del twin.input[:], twin.output[:]
        twin.input.extend(inputs)
        twin.output.extend(_TWIN + name for name in node.output)
    stored = {tensor.name for tensor in model.graph.initializer}
    model.graph.initializer.extend(tensor for tensor in quantized.graph.initializer if tensor.name not in stored)
    return model


def _means(
    model: onnx.ModelProto, names: list[str], samples: Iterable[Array], open_float: Open
) -> Mapping[str, Doubles]:
    """Return the mean of each channel of the tensors `names` and their twins, (C,)."""
    sums: dict[str, Doubles] = {}
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "twins.onnx"
        exposed = expose_values(model, {*names, *(_TWIN + name for name in names)})
        write_file(path, exposed.SerializeToString())
        with open_float(path) as runner:
            for sample in samples:
                count += len(sample)
                for name, array in run_batched(runner, sample).items():
                    sums[name] = sums.get(name, 0) + array.mean(axis=(2, 3), dtype=np.float64).sum(axis=0)
    return {name: total / count for name, total in sums.items()}
