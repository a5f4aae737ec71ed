"""What a recipe is: the way in which INT8 is written into a float graph for one backend.

Adding a recipe is adding a file to this package with one class in it::

    @recipes.register("onnxruntime")
    class OnnxRuntimeRecipe(Recipe):
        def write(self, model, types, options): ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.nodes import Float, new_initializer, new_node, unused_name
from densenet_deploy.quantization.scales import Int8, QuantizedType
from densenet_deploy.registry import Registry

recipes: Registry[type[Recipe]] = Registry("recipe", "densenet_deploy.quantization.recipes")


@dataclass(frozen=True)
class RecipeOptions:
    """How to write.

    Attributes:
        per_channel: a weight scale for each output channel, not one for all.
        weight_bits: 8, or 7 for CPUs on which uint8 times int8 saturates.
        float_nodes: names of nodes that stay float.
        quantize_bus: whether a recipe that keeps the buses of dense blocks float writes them in INT8 as well.
    """

    per_channel: bool = True
    weight_bits: int = 8
    float_nodes: Collection[str] = ()
    quantize_bus: bool = False


class Recipe(ABC):
    """Writes INT8 for the backend that it is named after.

    Attributes:
        passes: names of graph passes to run on the float graph first, after its buses were equalized.
        reads_image: whether the convolution that reads the image is written in INT8.
        for_cpus: whether the weights take 7 bits on CPUs on which uint8 times int8 saturates.
        stores_bus: whether dense blocks are stored in INT8; their channels are then shifted to begin at zero.
    """

    passes: ClassVar[tuple[str, ...]] = ()
    stores_bus: ClassVar[bool] = False
    reads_image: ClassVar[bool] = False
    for_cpus: ClassVar[bool] = True

    @abstractmethod
    def write(self, model: ir.Model, types: Mapping[str, QuantizedType], options: RecipeOptions) -> tuple[str, ...]:
        """Rewrite `model` in place; `types` holds the 8-bit types of values by tensor name.

        Returns:
            The names of the nodes that compute on integers.
        """

    @abstractmethod
    def simulate(self, model: ir.Model, types: Mapping[str, QuantizedType], options: RecipeOptions) -> None:
        """Rewrite `model` in place with Q/DQ nodes in float32 that round as the file will.

        The outputs of Convs keep their names, so that each can be compared with that of the float graph.
        """


def source_of(node: ir.Node) -> ir.Value:
    """Return the first input of `node`, a Conv, norm, clip or pool: none of them leaves it out."""
    source = node.inputs[0]
    assert source is not None
    return source


def read_dequantized_weights(
    graph: ir.Graph, conv: ir.Node, integers: Int8, scales: Float, attributes: Sequence[ir.Attr]
) -> None:
    """Let `conv` read its weights, stored as `integers` with `scales` (M,) or (), through a DequantizeLinear."""
    name = str(conv.inputs[1].name)  # type: ignore[union-attr]
    inputs = [
        new_initializer(graph, f"{name}.codes", integers),
        new_initializer(graph, f"{name}.scale", scales),
        new_initializer(graph, f"{name}.zero_point", np.zeros(scales.shape, np.int8)),
    ]
    result = unused_name(graph, f"{name}:quantized")  # convolutions may share their weights
    dequantize = new_node("DequantizeLinear", result, inputs, attributes)
    graph.insert_before(conv, dequantize)
    conv.replace_input_with(1, dequantize.outputs[0])
