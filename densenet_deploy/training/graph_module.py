"""An ONNX graph as a PyTorch module: it runs the nodes in order, and its initializers can be trained.

It is for graphs that were rewritten since they were a module, pruned or quantized, and have to be trained as they are:
no module of the original network has these weights, and no other tool has these scales. Which initializers are trained
is for the caller to say; the file keeps every node, name and fact, and gets the changed numbers alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from densenet_deploy.errors import ModelFileError
from densenet_deploy.training.onnx_operators import OPERATORS, NodeFacts, Operator, unknown

_EXACT = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)


@dataclass(frozen=True)
class _Step:
    """A node: what it reads and makes, and the values that nothing reads after it."""

    operator: Operator
    facts: NodeFacts
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    released: tuple[str, ...]


class GraphModule(nn.Module):
    """Runs a graph with one input; FP16 and integers of 8 and 32 bits are float32 inside.

    >>> module = GraphModule(onnx.load("pruned.onnx"), trained=["features.conv0.weight"])       # doctest: +SKIP
    >>> module(torch.zeros(1, 3, 32, 32))["logits"].shape                                       # doctest: +SKIP
    torch.Size([1, 10])

    Attributes:
        names: of the graph's outputs.
    """

    def __init__(self, model: onnx.ModelProto, trained: Collection[str] = ()) -> None:
        """Read the initializers and find the operators of `model`, which is kept.

        Args:
            model: a graph whose nodes are in order, as the checker of ONNX demands.
            trained: initializers whose parameters require a gradient; no other parameter does.

        Raises:
            ModelFileError: if it has several inputs, an operator that is not known here, or no initializer of a name.
        """
        super().__init__()
        self._model = model
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        inputs = [value.name for value in model.graph.input if value.name not in stored]
        if len(inputs) != 1:
            raise ModelFileError(", ".join(inputs), "are several inputs", "train a graph of one input")
        missing = sorted(set(trained) - set(stored))
        if missing:
            raise ModelFileError(missing[0], "is not an initializer of the graph", "name one of its initializers")
        self._input, self.names = inputs[0], tuple(value.name for value in model.graph.output)
        self._numbers = nn.ParameterList()
        self._places: dict[str, int] = {}
        self._exact: dict[str, Tensor] = {}
        for name, tensor in (stored | _constants(model)).items():
            self._add(name, tensor, is_trained=name in trained)
        self._steps = _steps(model, self.names)

    def _add(self, name: str, tensor: onnx.TensorProto, *, is_trained: bool) -> None:
        numbers = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        if tensor.data_type in _EXACT:
            self._exact[name] = numbers
            return
        self._places[name] = len(self._numbers)
        self._numbers.append(nn.Parameter(numbers.float(), requires_grad=is_trained))

    def initializer(self, name: str) -> nn.Parameter:
        """Return the parameter of an initializer, or of a Constant's output, that is not int64 or bool."""
        found: nn.Parameter = self._numbers[self._places[name]]
        return found

    def forward(
        self, inputs: Tensor, instead: Mapping[str, Tensor] | None = None, seen: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """Return the outputs for a batch, (N, …) each, by name.

        Args:
            inputs: as the graph takes them, (N, C, H, W) or (N, H, W, C).
            instead: tensors that take the place of initializers.
            seen: names of inner values to return as well.
        """
        values: dict[str, Tensor | None] = {"": None, self._input: inputs.float()}
        values |= self._exact
        values |= {name: self._numbers[place] for name, place in self._places.items()}
        values |= instead or {}
        kept = {name: value for name in seen if (value := values.get(name)) is not None}
        for step in self._steps:
            made = step.operator(step.facts, [values[name] for name in step.inputs])
            for name, value in zip(step.outputs, [made] if isinstance(made, Tensor) else made, strict=False):
                values[name] = value
                if name in seen:
                    kept[name] = value
            for name in step.released:
                del values[name]
        found = {name: values[name] for name in self.names}
        return {name: value for name, value in found.items() if value is not None} | kept

    def written(self) -> onnx.ModelProto:
        """Return a copy of the graph with the trained parameters as they are now, in their stored types."""
        names = [name for name, place in self._places.items() if self._numbers[place].requires_grad]
        return with_initializers(self._model, {name: self.initializer(name).detach().numpy() for name in names})


def with_initializers(model: onnx.ModelProto, numbers: Mapping[str, npt.NDArray[Any]]) -> onnx.ModelProto:
    """Return a copy of `model` with other numbers in some initializers; their types stay, integers are rounded."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in numbers:
            tensor.CopyFrom(numpy_helper.from_array(_stored(tensor, numbers[tensor.name]), tensor.name))
    return copy


def _stored(tensor: onnx.TensorProto, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if np.issubdtype(kind, np.integer):
        limits = np.iinfo(kind)
        numbers = np.clip(np.rint(numbers), limits.min, limits.max)
    return np.ascontiguousarray(numbers.reshape(tuple(tensor.dims)).astype(kind))


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the numbers of the Constants that hold a tensor, by the name of their output."""
    found = {}
    for node in (node for node in model.graph.node if node.op_type == "Constant" and node.domain == ""):
        for attribute in node.attribute:
            value = onnx.helper.get_attribute_value(attribute)
            tensor = value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(np.asarray(value))
            found[node.output[0]] = tensor
    return found


def _steps(model: onnx.ModelProto, outputs: Collection[str]) -> list[_Step]:
    """Return all nodes but Constants.

    Raises:
        ModelFileError: naming the first whose operator is not known.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain == ""), 1)
    nodes = [node for node in model.graph.node if node.op_type != "Constant" or node.domain != ""]
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    types |= {name: tensor.data_type for name, tensor in _constants(model).items()}
    (image,) = (value for value in model.graph.input if value.name not in types)
    batch = image.type.tensor_type.shape.dim[0].dim_value or None
    left = Counter(name for node in nodes for name in set(node.input))
    made: set[str] = set()
    steps = []
    for node in nodes:
        name = node.name or node.output[0]
        if node.domain != "" or node.op_type not in OPERATORS:
            raise unknown(name, f"{node.domain}.{node.op_type}".lstrip("."))
        attributes = {given.name: onnx.helper.get_attribute_value(given) for given in node.attribute}
        inputs = tuple(node.input)
        facts = NodeFacts(name, len(node.output), attributes, opset, batch, [types.get(of) for of in inputs])
        made |= set(node.output)
        left.subtract(set(inputs))
        released = tuple(of for of in dict.fromkeys(inputs) if left[of] == 0 and of in made and of not in outputs)
        steps.append(_Step(OPERATORS[node.op_type], facts, inputs, tuple(node.output), released))
    return steps
