"""Run a graph part by part over many images, each part once, keeping between the parts only what later ones read.

At a cut before a node, what later nodes read of earlier ones is the state of an image: in a dense block, the block's
features so far and what the layer is about to read. So weights behind a cut can depend on all images at it, and the
whole costs one pass over the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.runner import REFERENCE_BACKEND, Runner, RunnerOptions, open_runner

_CONSTANT: Final = "Constant"

State = dict[str, Array]
"""Of some images: the tensors that later parts read, by name."""


class SegmentedGraph:
    """The graph `model`, cut before each of the nodes named `cuts`, which are in execution order."""

    def __init__(self, model: onnx.ModelProto, cuts: Sequence[str]) -> None:
        self._model = model
        graph = model.graph
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._constants = {node.output[0]: node for node in graph.node if node.op_type == _CONSTANT}
        nodes = [node for node in graph.node if node.op_type != _CONSTANT]
        places = {node.name: place for place, node in enumerate(nodes)}
        ends = [places[cut] for cut in cuts]
        self._parts = [nodes[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        self._kept = list(_live(nodes, ends, {*self._stored, *self._constants}))
        self.input = next(str(value.name) for value in graph.input if value.name not in self._stored)

    def state_bytes(self) -> int:
        """Return the most bytes that the state of one image takes, as far as shapes are known."""
        values = (*self._model.graph.value_info, *self._model.graph.input)
        sizes = {value.name: _bytes_of(value.type.tensor_type) for value in values}
        return max((sum(sizes.get(name, 0) for name in kept) for kept in self._kept), default=0)

    def advance(self, number: int, states: list[State], weights: Mapping[str, Array]) -> None:
        """Take `states` from the cut before to cut `number` (from 0; the first part begins at the graph's input).

        Args:
            number: of the cut.
            states: of batches of images; each is replaced as soon as its successor is known.
            weights: initializers with other values than the graph's.
        """
        known = {name: array for name, array in states[0].items() if self._is_read(number, name)}
        made = [name for name in self._kept[number] if name not in states[0]]
        part = self._part(self._parts[number], known, made, weights).SerializeToString()
        with open_part(part) as runner:
            for index, state in enumerate(states):
                outputs = runner.run({name: state[name] for name in known}) if made else {}
                everything = {**state, **outputs}
                states[index] = {name: everything[name] for name in self._kept[number]}

    def _is_read(self, number: int, name: str) -> bool:
        return any(name in node.input for node in self._parts[number])

    def _part(
        self, nodes: Sequence[onnx.NodeProto], known: State, made: Sequence[str], weights: Mapping[str, Array]
    ) -> onnx.ModelProto:
        read = [name for node in nodes for name in node.input]
        constants = [self._constants[name] for name in dict.fromkeys(read) if name in self._constants]
        tensors = [
            numpy_helper.from_array(weights[name], name) if name in weights else self._stored[name]
            for name in dict.fromkeys(read)
            if name in self._stored
        ]
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)
            for name, array in known.items()
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in made]
        graph = helper.make_graph([*constants, *nodes], "part", inputs, outputs, tensors)
        return helper.make_model(
            graph,
            opset_imports=self._model.opset_import,
            ir_version=self._model.ir_version,
            functions=self._model.functions,
        )


def open_part(model: bytes) -> Runner:
    """Open a graph whose inputs need not be images."""
    return open_runner(model, REFERENCE_BACKEND, "cpu", RunnerOptions(check_values=False, arena=False))


def batched(samples: Iterable[Array], size: int) -> Iterator[Array]:
    """Yield `samples`, (1, C, H, W) each, as arrays of at most `size`."""
    batch: list[Array] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == size:
            yield np.concatenate(batch)
            batch = []
    if batch:
        yield np.concatenate(batch)


def _live(nodes: Sequence[onnx.NodeProto], ends: Sequence[int], stored: set[str]) -> Iterator[list[str]]:
    """Yield for each cut the tensors that are made before it, or fed, and read behind it."""
    for end in ends:
        made = {name for node in nodes[end:] for name in node.output}
        read = dict.fromkeys(name for node in nodes[end:] for name in node.input if name)
        yield [name for name in read if name not in made and name not in stored]


def _bytes_of(tensor: onnx.TypeProto.Tensor) -> int:
    sizes = [dim.dim_value or 1 for dim in tensor.shape.dim]
    return int(np.prod([1, *sizes[1:]])) * 4
