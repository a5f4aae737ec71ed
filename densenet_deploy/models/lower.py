"""Write a DenseNet as ONNX straight from its numbers and weights, with NumPy and the onnx package alone.

What `torch.export`, onnxsim and the exact passes make of the module of `models.build`, `lowered` writes at once
(`models.operations` lists the nodes): the same nodes, names, attributes and numbers. A norm with scale γ, shift β, mean
μ and variance σ² − ε that follows a convolution W is folded into it,

    W' = W · γ/σ  (per output channel),   b' = (b − μ)·γ/σ + β,

in float64, and rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from densenet_deploy.graph.tensor_changes import TensorChanges
from densenet_deploy.manifest import Size, sides
from densenet_deploy.models.operations import INPUT_NAME, NORM_EPSILON, Array, Operation, norm_parameters, operations
from densenet_deploy.options import require_range
from densenet_deploy.variants.spec import DenseNetSpec

LOWEST_OPSET: Final = 16
HIGHEST_OPSET: Final = 23
_LEAST_SCALE: Final = 1e-6
IR_VERSION: Final = 10
"""Of the file: the one that PyTorch writes, which ONNX Runtime 1.18 and TensorRT 10.3 and later read."""


@dataclass(frozen=True)
class OnnxOptions:
    """How the ONNX graph is written.

    Attributes:
        image_size: of the input in pixels: one number, or (height, width).
        channels: of the input.
        batch: None keeps the batch dimension dynamic.
        opset: ONNX operator set, 16 to 23. TensorRT 10.3 and later and ONNX Runtime read the default.

    Raises:
        UsageError: if a number is out of range.
    """

    image_size: Size = 224
    channels: int = 3
    batch: int | None = None
    opset: int = 20

    def __post_init__(self) -> None:
        for side in self.image_shape[1:]:
            require_range("image-size", side, 1, 8192)
        require_range("channels", self.channels, 1, 4096)
        require_range("opset", self.opset, LOWEST_OPSET, HIGHEST_OPSET)
        if self.batch is not None:
            require_range("batch", self.batch, 1, 4096)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.channels, *sides(self.image_size)


def lowered(spec: DenseNetSpec, weights: Mapping[str, Array], options: OnnxOptions) -> onnx.ModelProto:
    """Return the network of `spec` with `weights` as an ONNX model with one input `input` (N, C, H, W) float32.

    >>> lowered(spec, {name: tensor.numpy() for name, tensor in module.state_dict().items()}, OnnxOptions(32))
    ...                                                                                     # doctest: +SKIP

    Args:
        spec: the architecture.
        weights: float32 arrays by the names of a state dict, of the shapes that `parameter_shapes` returns; others,
            such as batch counters, are not read.
        options: shape of the input, and operator set. `channels` are those of `spec`.
    """
    batch: str | int = options.batch or "batch"
    image = helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, [batch, *options.image_shape])
    result = helper.make_tensor_value_info(spec.output_name, TensorProto.FLOAT, [batch, spec.output_width])
    nodes, tensors, changes = [], [], TensorChanges({})
    for operation in operations(spec):
        arrays = _arrays(operation, weights)
        tensors += [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        nodes.append(_node(operation, arrays))
        if operation.pooled is not None:
            changes.pool(operation.output, operation.inputs[0], operation.pooled)
    graph = helper.make_graph(nodes, "densenet", [image], [result], tensors)
    model = helper.make_model(
        graph, opset_imports=[helper.make_operatorsetid("", options.opset)], ir_version=IR_VERSION
    )
    helper.set_model_props(model, changes.to_strings())
    return onnx.shape_inference.infer_shapes(model)


def raised(spec: DenseNetSpec, tensors: Mapping[str, Array], weights: Mapping[str, Array]) -> dict[str, Array]:
    """Return weights of which `lowered` writes `tensors`: what was changed in the graph, as a state dict holds it.

    A norm that was folded keeps the statistics and the scale of `weights`, and the convolution and the shift take the
    change: W = W'·σ/γ, β = b' + μ·γ/σ. Where γ is zero, it becomes σ.

    Args:
        spec: the architecture.
        tensors: initializers of the graph by name.
        weights: as for `lowered`, of the same shapes.
    """
    result = dict(weights)
    for operation in operations(spec):
        if operation.norm is None:
            result.update({name: tensors[name] for name in operation.parameters})
            continue
        (name,) = operation.parameters
        gamma, beta, mean, _ = norm_parameters(operation.norm)
        scale, _ = _affine(operation.norm, weights)
        sigma = _sigma(operation.norm, weights)
        is_dead = np.abs(scale) < _LEAST_SCALE
        scale = np.where(is_dead, 1.0, scale)
        folded = tensors[f"{operation.name}.folded.weight"].astype(np.float64)
        result[name] = (folded / scale.reshape(-1, 1, 1, 1)).astype(np.float32)
        result[gamma] = np.where(is_dead, sigma, weights[gamma]).astype(np.float32)
        shift = tensors[f"{operation.name}.folded.bias"].astype(np.float64)
        result[beta] = (shift + weights[mean].astype(np.float64) * scale).astype(np.float32)
    return result


def _node(operation: Operation, arrays: Mapping[str, Array]) -> onnx.NodeProto:
    node = helper.make_node(operation.op_type, [*operation.inputs, *arrays], [operation.output], operation.name)
    node.attribute.extend(helper.make_attribute(name, value) for name, value in operation.attributes.items())
    return node


def _arrays(operation: Operation, weights: Mapping[str, Array]) -> dict[str, Array]:
    """The numbers that the node reads, by name and in order."""
    if operation.norm is None:
        return {name: weights[name] for name in operation.parameters} | dict(operation.constants)
    (name,) = operation.parameters  # no convolution before a norm has a bias
    scale, shift = _affine(operation.norm, weights)
    return {
        f"{operation.name}.folded.weight": (weights[name] * scale.reshape(-1, 1, 1, 1)).astype(np.float32),
        f"{operation.name}.folded.bias": shift.astype(np.float32),
    }


def _affine(norm: str, weights: Mapping[str, Array]) -> tuple[Array, Array]:
    """The norm as y = scale · x + shift, per channel, in float64."""
    gamma, beta, mean, _ = (weights[name].astype(np.float64) for name in norm_parameters(norm))
    scale = gamma / _sigma(norm, weights)
    return scale, beta - mean * scale


def _sigma(norm: str, weights: Mapping[str, Array]) -> Array:
    """The standard deviation that the norm divides by, per channel, in float64."""
    variance = weights[norm_parameters(norm)[3]].astype(np.float64)
    deviation: Array = np.sqrt(variance + np.float32(NORM_EPSILON))  # the file holds a float32 epsilon elsewhere
    return deviation
