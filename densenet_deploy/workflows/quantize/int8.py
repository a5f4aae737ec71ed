"""A float graph made ready for INT8, and written in INT8 as often as somebody wants to try another set of layers.

Made ready means: buses shifted and equalized, the recipe's own passes run, layers equalized, types planned, outputs
corrected. Which layers stay float changes none of that.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from densenet_deploy.artifacts import write_file
from densenet_deploy.manifest import Manifest
from densenet_deploy.onnx_envelope import append_metadata
from densenet_deploy.packages import is_installed
from densenet_deploy.runtime.batching import run_batched
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.runner import Runner, RunnerOptions, backends, open_runner

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from densenet_deploy.quantize.observers.observer import ChannelRanges
    from densenet_deploy.quantize.output_correction import Correction
    from densenet_deploy.quantize.recipes.recipe import Recipe, RecipeOptions
    from densenet_deploy.quantize.scales import QuantizedType

CORRECTION_SAMPLES: Final = 128


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
        macs: multiply-accumulates of each for one image.
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
            samples: inputs (1, 3, S, S) to correct outputs on, the first 128; none: no output is corrected.
        """
        import onnx_ir

        from densenet_deploy.graph.nodes import is_operator
        from densenet_deploy.quantize.recipes.recipe import recipes
        from densenet_deploy.quantize.scales import plan_types

        self._plain, self._how = onnx_ir.to_proto(graph), how
        self._writer, self.backend = recipes.get(recipe)(), _backend_of(recipe)
        ranges = _equalized(graph, ranges, alpha, self._writer)
        self._graph, self._types = graph, plan_types(graph.graph, ranges)
        convs = [node for node in graph.graph if is_operator(node, "Conv")]
        self.layers = tuple(str(node.name) for node in convs)
        self.macs = {str(node.name): _macs(node) for node in convs}
        self._samples = list(itertools.islice(samples, CORRECTION_SAMPLES))
        self._corrections = self._conv_corrections()
        self._wanted = self._outputs(self._plain, "onnxruntime") if self._samples else []

    def write(self, manifest: Manifest | None, float_layers: Collection[str] = ()) -> Int8File:
        """Return the INT8 form in which `float_layers` stay float."""
        import onnx_ir

        if set(self.layers) <= set(float_layers):
            plain = manifest if manifest is None else dataclasses.replace(manifest, precision="fp32")
            return Int8File(_serialized(onnx_ir.from_proto(self._plain), plain), (), self.layers)
        graph = onnx_ir.from_proto(onnx_ir.to_proto(self._graph))
        how = dataclasses.replace(self._how, float_nodes=_with_clips(graph, float_layers))
        types = _useful(self._types, graph, float_layers) if float_layers else self._types
        self._correct_convs(graph.graph, float_layers)
        if self.backend is None:
            self._correct_classifier(graph, self._simulated(graph, types, how))
        written = set(self._writer.write(graph, types, how))
        if self.backend is not None:
            self._correct_classifier(graph, onnx_ir.to_proto(graph))
        integer = tuple(name for name in self.layers if name in written)
        left = tuple(name for name in self.layers if name not in written)
        return Int8File(_serialized(graph, manifest), integer, left)

    def _correct_convs(self, graph: ir.Graph, float_layers: Collection[str]) -> None:
        """Correct what will be quantized; a layer that stays float changes nothing."""
        from densenet_deploy.quantize.output_correction import correct_conv

        for conv in [node for node in graph if node.name in self._corrections and node.name not in float_layers]:
            correct_conv(graph, conv, self._corrections[str(conv.name)])

    def _simulated(self, model: ir.Model, types: Mapping[str, QuantizedType], how: RecipeOptions) -> onnx.ModelProto:
        """The Q/DQ form of `model` that runs anywhere, for a recipe whose backend is not at hand."""
        import onnx_ir

        copy = onnx_ir.from_proto(onnx_ir.to_proto(model))
        self._writer.simulate(copy, types, how)
        return onnx_ir.to_proto(copy)

    def _correct_classifier(self, model: ir.Model, quantized: onnx.ModelProto) -> None:
        """Let the classifier of `model` take back what `quantized`, its quantized form, does to the outputs."""
        from densenet_deploy.quantize.output_correction import classifier_of, correct_classifier

        gemm = classifier_of(model.graph)
        if gemm is not None and self._samples:
            found = self._outputs(quantized, self.backend or "onnxruntime")
            correct_classifier(model.graph, gemm, self._wanted, found)

    def _conv_corrections(self) -> dict[str, Correction]:
        from densenet_deploy.quantize.output_correction import conv_corrections

        if not self._samples:
            return {}
        quantized = self._simulated(self._graph, self._types, self._how)
        return conv_corrections(self._graph, quantized, self._samples, _open_plain)

    def _outputs(self, proto: onnx.ModelProto, backend: str) -> list[Array]:
        """What `proto` makes of the samples, (1, classes) or (1, features) each."""
        output = proto.graph.output[0].name
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            write_file(path, proto.SerializeToString())
            with open_runner(path, backend, "cpu", RunnerOptions(check_values=False)) as runner:
                return [run_batched(runner, sample)[output] for sample in self._samples]


def _with_clips(graph: ir.Model, float_layers: Collection[str]) -> frozenset[str]:
    """The names of `float_layers` and of the clips and pools that only they read, which then stay float too."""
    from densenet_deploy.graph.nodes import only_reader

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
    """Multiply-accumulates of `conv` for one image; for one pixel where nothing says how many there are."""
    weight, result = conv.inputs[1], conv.outputs[0].shape
    sizes = [size for size in (*(weight.shape or ()), *(result or ())[2:]) if isinstance(size, int)]  # type: ignore[union-attr]
    return float(np.prod(sizes))


def _backend_of(recipe: str) -> str | None:
    """The backend that `recipe` writes for, if it is installed and runs ONNX files; TensorRT's runs only engines."""
    kind = backends.items().get(recipe)
    return recipe if kind is not None and ".onnx" in kind.suffixes and is_installed(kind.requires) else None


def _open_plain(path: Path) -> Runner:
    return open_runner(path, "onnxruntime", "cpu", RunnerOptions(check_values=False))


def _equalized(
    model: ir.Model, ranges: Mapping[str, ChannelRanges], alpha: float | None, recipe: Recipe
) -> dict[str, ChannelRanges]:
    """Shift and equalize `model` in place, run the recipe's passes, and return the ranges under tensors' new names."""
    from densenet_deploy.graph.graph_pass import apply_passes
    from densenet_deploy.graph.passes.equalize_bus import EqualizeBus
    from densenet_deploy.graph.passes.equalize_layer import EqualizeLayer
    from densenet_deploy.graph.passes.shift_bus import ShiftBus

    if alpha is None:
        apply_passes(model, recipe.passes)
        return dict(ranges)
    if recipe.stores_bus:
        ranges = _needed(model, ranges)
        apply_passes(model, [ShiftBus({name: found.low for name, found in ranges.items()})])
    sizes = {name: np.maximum(np.abs(r.low), np.abs(r.high)) for name, r in _renamed(model, ranges).items()}
    apply_passes(model, [EqualizeBus(sizes), *recipe.passes, EqualizeLayer(sizes, alpha)])
    return _renamed(model, ranges)


def _needed(model: ir.Model, ranges: Mapping[str, ChannelRanges]) -> dict[str, ChannelRanges]:
    """Return `ranges`, those of buses without what no reader can tell apart, and record in `model` what that is."""
    from densenet_deploy.graph.bus import find_buses, narrowed, needed_range, through
    from densenet_deploy.graph.nodes import is_operator, why_not_affine
    from densenet_deploy.graph.tensor_changes import TensorChanges
    from densenet_deploy.quantize.observers.observer import ChannelRanges

    needed, changes = dict(ranges), TensorChanges.of(model)
    for bus in find_buses(model.graph).found:
        wanted = needed_range(bus)
        for tensor in (tensor for tensor in bus.tensors if tensor.name in ranges):
            limits = wanted.of(tensor).finite()
            changes.cut_off(tensor.name, *(limit.astype(np.float32) for limit in limits))
            needed[tensor.name] = ChannelRanges(*narrowed(ranges[tensor.name].low, ranges[tensor.name].high, limits))
        norms = (reader for reader in bus.readers if is_operator(reader.node, "BatchNormalization"))
        for reader in (reader for reader in norms if reader.index == 0 and why_not_affine(reader.node) is None):
            limits = through(reader.node, wanted.of(reader.segment).finite())
            changes.cut_off(str(reader.node.outputs[0].name), *(limit.astype(np.float32) for limit in limits))
    changes.write_to(model)
    return needed


def _renamed(model: ir.Model, ranges: Mapping[str, ChannelRanges]) -> dict[str, ChannelRanges]:
    """Return `ranges` together with those of the tensors that rewrites have changed since, under their new names."""
    from densenet_deploy.graph.tensor_changes import read_tensor_changes
    from densenet_deploy.quantize.observers.observer import ChannelRanges

    found = dict(ranges)
    for name, change in read_tensor_changes(model.metadata_props).items():
        if change.of in ranges and (change.factor is not None or change.offset is not None):
            given = ranges[change.of]
            found[name] = ChannelRanges(change.made_from(given.low), change.made_from(given.high))
    return found


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
