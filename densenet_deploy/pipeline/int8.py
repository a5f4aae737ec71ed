"""A float graph made ready for INT8, and written in INT8 as often as somebody wants to try another set of layers.

Made ready means: buses equalized, the recipe's own passes run, layers equalized, types planned, biases corrected. Which
layers stay float changes none of that.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from densenet_deploy.manifest import Manifest
from densenet_deploy.onnx_envelope import append_metadata
from densenet_deploy.packages import is_installed
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.runner import Runner, RunnerOptions, backends, open_runner

if TYPE_CHECKING:
    import onnx_ir as ir

    from densenet_deploy.quantize.observers.observer import ChannelRanges
    from densenet_deploy.quantize.recipes.recipe import RecipeOptions
    from densenet_deploy.quantize.scales import QuantizedType

CORRECTION_SAMPLES: Final = 64
_SIMULATED_BY: Final = "openvino"  # the recipe whose files keep the names of the Convs' outputs


@dataclass(frozen=True)
class Int8File:
    """A serialized INT8 model and the names of its convolutions, in execution order, by what they compute on."""

    data: bytes
    layers_int8: tuple[str, ...]
    layers_float: tuple[str, ...]


class Int8Writer:
    """Writes one calibrated float graph by one recipe.

    Attributes:
        layers: the names of the convolutions, in execution order.
        macs: multiply-accumulates of each for one picture.
        backend: the backend that the recipe writes for; None where it is not at hand.
    """

    def __init__(
        self,
        graph: ir.Model,
        ranges: Mapping[str, ChannelRanges],
        recipe: str,
        how: RecipeOptions,
        *,
        alpha: float | None = 0.5,
        samples: Iterable[Array] = (),
    ) -> None:
        """Make `graph` ready, in place.

        Args:
            graph: a float32 graph that the exact passes have seen.
            ranges: calibrated ranges by tensor name.
            recipe: the name of the recipe that writes.
            how: its options.
            alpha: of `equalize-layer`; None equalizes nothing.
            samples: inputs (1, 3, S, S) to correct biases on, the first 64; none: biases stay.
        """
        import onnx_ir

        from densenet_deploy.graph.graph_pass import is_operator
        from densenet_deploy.quantize.recipes.recipe import recipes
        from densenet_deploy.quantize.scales import plan_types

        self._plain, self._how = onnx_ir.to_proto(graph), how
        self._writer, self.backend = recipes.get(recipe)(), _backend_of(recipe)
        ranges = _equalized(graph, ranges, alpha, self._writer.passes)
        self._graph, self._types = graph, plan_types(graph.graph, ranges)
        convs = [node for node in graph.graph if is_operator(node, "Conv")]
        self.layers = tuple(str(node.name) for node in convs)
        self.macs = {str(node.name): _macs(node) for node in convs}
        self._shifts = self._mean_shifts(list(itertools.islice(samples, CORRECTION_SAMPLES)))

    def write(self, manifest: Manifest | None, float_layers: Collection[str] = ()) -> Int8File:
        """Return the INT8 form in which `float_layers` stay float."""
        import onnx_ir

        if set(self.layers) <= set(float_layers):
            plain = manifest if manifest is None else dataclasses.replace(manifest, precision="fp32")
            return Int8File(_serialized(onnx_ir.from_proto(self._plain), plain), (), self.layers)
        graph = onnx_ir.from_proto(onnx_ir.to_proto(self._graph))
        how = dataclasses.replace(self._how, float_nodes=_with_clips(graph, float_layers))
        types = _useful(self._types, graph, float_layers) if float_layers else self._types
        self._correct_biases(graph.graph, float_layers)
        written = set(self._writer.write(graph, types, how))
        integer = tuple(name for name in self.layers if name in written)
        left = tuple(name for name in self.layers if name not in written)
        return Int8File(_serialized(graph, manifest), integer, left)

    def _correct_biases(self, graph: ir.Graph, float_layers: Collection[str]) -> None:
        """Correct what will be quantized; a layer that stays float moves no mean."""
        from densenet_deploy.quantize.bias_correction import correct_bias

        for conv in [node for node in graph if node.name in self._shifts and node.name not in float_layers]:
            correct_bias(graph, conv, self._shifts[str(conv.name)])

    def _mean_shifts(self, samples: list[Array]) -> dict[str, npt.NDArray[np.float64]]:
        from densenet_deploy.quantize.bias_correction import mean_shifts
        from densenet_deploy.quantize.recipes.recipe import recipes

        def simulate(graph: ir.Model) -> None:
            recipes.get(_SIMULATED_BY)().write(graph, self._types, self._how)

        return mean_shifts(self._graph, simulate, samples, _open_plain) if samples else {}


def _with_clips(graph: ir.Model, float_layers: Collection[str]) -> frozenset[str]:
    """The names of `float_layers` and of the clips and pools that only they read, which then stay float too."""
    from densenet_deploy.graph.graph_pass import only_reader

    names = set(float_layers)
    for node in reversed(list(graph.graph)):
        reader = only_reader(node.outputs[0])
        if node.op_type in ("Max", "Min", "AveragePool") and reader is not None and reader.name in names:
            names.add(str(node.name))
    return frozenset(names)


def _useful(
    types: Mapping[str, QuantizedType], graph: ir.Model, float_layers: Collection[str]
) -> dict[str, QuantizedType]:
    """The types of values that an INT8 convolution reads, through anything that is no convolution, or makes.

    Where a whole block is float nothing is gained by quantizing its bus. A Concat goes with any of its inputs.
    """
    nodes = list(graph.graph)
    integer = {node for node in nodes if node.op_type == "Conv" and node.name not in float_layers}
    useful: set[ir.Value | None] = set()
    for node in reversed(nodes):
        if node in integer or (node.op_type != "Conv" and not useful.isdisjoint(node.outputs)):
            useful.update(node.inputs)
    for node in nodes:
        follows = node.op_type in ("Relu", "Concat") and not useful.isdisjoint(node.inputs)
        if node in integer or follows:
            useful.update(node.outputs)
    names = {str(value.name) for value in useful if value is not None}
    return {name: given for name, given in types.items() if name in names}


def _macs(conv: ir.Node) -> float:
    """Multiply-accumulates of `conv` for one picture; for one pixel where nothing says how many there are."""
    weight, result = conv.inputs[1], conv.outputs[0].shape
    sizes = [size for size in (*(weight.shape or ()), *(result or ())[2:]) if isinstance(size, int)]  # type: ignore[union-attr]
    return float(np.prod(sizes))


def _backend_of(recipe: str) -> str | None:
    kind = backends.items().get(recipe)
    return recipe if kind is not None and is_installed(kind.requires) else None


def _open_plain(path: Path) -> Runner:
    return open_runner(path, "onnxruntime", "cpu", RunnerOptions(check_values=False))


def _equalized(
    model: ir.Model, ranges: Mapping[str, ChannelRanges], alpha: float | None, passes: Collection[str]
) -> dict[str, ChannelRanges]:
    """Equalize `model` in place, run the recipe's `passes`, and return the ranges under the tensors' new names."""
    from densenet_deploy.graph.graph_pass import apply_passes
    from densenet_deploy.graph.passes.equalize_bus import EqualizeBus
    from densenet_deploy.graph.passes.equalize_layer import EqualizeLayer
    from densenet_deploy.graph.tensor_changes import read_tensor_changes
    from densenet_deploy.quantize.observers.observer import ChannelRanges

    sizes = {name: np.maximum(np.abs(found.low), np.abs(found.high)) for name, found in ranges.items()}
    apply_passes(model, passes if alpha is None else (EqualizeBus(sizes), *passes, EqualizeLayer(sizes, alpha)))
    equalized = dict(ranges)
    for name, change in read_tensor_changes(model.metadata_props).items():
        if change.factor is not None and change.of in ranges:
            factor = np.array(change.factor, np.float32)
            found = ranges[change.of]
            equalized[name] = ChannelRanges(found.low / factor, found.high / factor)
    return equalized


def _serialized(model: ir.Model, manifest: Manifest | None) -> bytes:
    import onnx
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)
    facts = manifest.to_strings() if manifest is not None else {}
    for key in facts:
        model.metadata_props.pop(key, None)  # the float file's
    proto = onnx_ir.to_proto(model)
    del proto.graph.value_info[:]  # shapes and types of the float graph
    onnx.checker.check_model(proto)
    data: bytes = proto.SerializeToString()
    return append_metadata(data, facts)
