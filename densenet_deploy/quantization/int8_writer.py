"""Prepare a calibrated float graph for INT8, and write it in INT8 for any choice of layers that stay float.

Preparation shifts and equalizes the buses, runs the recipe's own passes, equalizes the layers, chooses types and
measures the corrections of outputs. It does not depend on which layers stay float.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from densenet_deploy.graph.bus import find_buses, narrowed, needed_range, through
from densenet_deploy.graph.graph_pass import apply_passes
from densenet_deploy.graph.layer_precision import layer_precisions
from densenet_deploy.graph.nodes import is_operator, names_known, only_reader, rank_of, why_not_affine
from densenet_deploy.graph.onnx_file import expose_values, keep_what_makes
from densenet_deploy.graph.passes.equalize_bus import EqualizeBus
from densenet_deploy.graph.passes.equalize_layer import EqualizeLayer
from densenet_deploy.graph.passes.separate_bus import SeparateBus
from densenet_deploy.graph.passes.shift_bus import ShiftBus
from densenet_deploy.graph.tensor_changes import TensorChange, TensorChanges, pack, written_once
from densenet_deploy.manifest import Manifest
from densenet_deploy.onnx_envelope import append_metadata
from densenet_deploy.packages import is_installed
from densenet_deploy.quantization.baseline import write_baseline
from densenet_deploy.quantization.derived_ranges import OPERATORS, derivable, derived
from densenet_deploy.quantization.half_classifier import halve
from densenet_deploy.quantization.observers.minmax import MinMaxOptions
from densenet_deploy.quantization.observers.observer import ChannelRanges
from densenet_deploy.quantization.output_correction import (
    Correction,
    classifier_of,
    conv_corrections,
    correct_classifier,
    correct_conv,
)
from densenet_deploy.quantization.recipes.recipe import Recipe, RecipeOptions, recipes
from densenet_deploy.quantization.scales import QuantizedType, choose_types
from densenet_deploy.quantization.weight_rounding import round_weights
from densenet_deploy.runtime.batching import run_each, shared_cpus
from densenet_deploy.runtime.feeds import Array, Feeds
from densenet_deploy.runtime.runner import REFERENCE_BACKEND, RunnerOptions, backends, open_runner

CORRECTION_SAMPLES: Final = 128
_FEWEST_SAMPLES: Final = 32
_PIXELS: Final = CORRECTION_SAMPLES * 64 * 64
_JOINED: Final = ("Concat",)
_WHOLE_IMAGE: Final = ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean")


@dataclass(frozen=True)
class Int8File:
    """A serialized INT8 model and the names of its convolutions, in execution order, by what they compute on."""

    data: bytes
    layers_int8: tuple[str, ...]
    layers_float: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Source:
    """A graph that is written in INT8, and what corrects its outputs: nothing without samples."""

    graph: ir.Model
    samples: Sequence[Array] = ()
    corrections: Mapping[str, Correction] = field(default_factory=dict)
    expected: Sequence[Array] = ()
    """The inputs of the classifier's correction: what it gives in the float network, for each sample."""


class Int8Writer:
    """Writes one calibrated float graph by one recipe.

    Attributes:
        layers: the names of the Convs, in execution order.
        others: the names of further convolutions, which stay float in any case: transposed ones, and those in branches.
        macs: multiply-accumulates of each for one image.
        backend: the backend that the recipe writes for; None where it is not installed or runs other files.
        options: how the recipe writes.
        manifest: the facts of the INT8 file; None for a third-party file.
    """

    def __init__(
        self,
        graph: ir.Model,
        ranges: Mapping[str, ChannelRanges],
        recipe: str,
        options: RecipeOptions,
        *,
        alpha: float | None = 0.5,
        manifest: Manifest | None = None,
        minmax: MinMaxOptions | None = None,
        exact: Mapping[str, QuantizedType] | None = None,
    ) -> None:
        """Equalize `graph`, in place, and choose types.

        Args:
            graph: a float32 graph after the exact passes.
            ranges: calibrated ranges by tensor name.
            recipe: the name of the recipe that writes.
            options: its options.
            alpha: of `equalize-layer`; None equalizes nothing.
            manifest: see the attribute.
            minmax: options of the observer that found the ranges, if it was min-max.
            exact: types of values that are 8-bit already, by tensor name.
        """
        self.options, self.manifest = options, manifest
        self._recipe, self.backend = recipes.get(recipe)(), backend_of(recipe)
        ranges = _with_following(graph.graph, ranges, minmax)
        self._plain, self._ranges = ir.to_proto(graph), ranges
        with names_known(graph.graph), written_once(graph):
            ranges = _equalized(graph, ranges, alpha, self._recipe)
        self._source, self._types = _Source(graph), choose_types(graph.graph, ranges) | dict(exact or {})
        convs = [node for node in graph.graph if is_operator(node, "Conv")]
        self.layers = tuple(str(node.name) for node in convs)
        found = (layer.name for layer in layer_precisions(self._plain) if layer.is_convolution)
        self.others = tuple(name for name in found if name not in self.layers)
        self.macs = {str(node.name): _macs(node) for node in convs}
        self._last: tuple[frozenset[str], Int8File] | None = None

    def correct(self, samples: Iterable[Array], outputs: Iterable[Feeds] = ()) -> None:
        """Measure on `samples`, (1, C, H, W) each, what INT8 changes in the outputs; files written later correct it.

        The first 128 are used, fewer of large images: see `correction_samples`.

        Args:
            samples: the more varied, the better.
            outputs: what the float graph gives for each of them, by name; what is missing is computed.
        """
        seen, self._last = _first_for_correction(samples), None
        if seen:
            self._source = self._corrected(self._source.graph, seen, outputs)

    def rounded(self, samples: Iterable[Array], float_layers: Collection[str] = (), seed: int = 0) -> Int8File:
        """Return the INT8 form in which `float_layers` stay float, with weights rounded for what their layer reads.

        What `write` returns stays as it is. Outputs are corrected anew on the same samples, also where `correct` was
        not called: weights are rounded for what varies, and the means of outputs are not right without it.

        Args:
            samples: (1, C, H, W) each; as many are looked at as `correct` does.
            float_layers: their weights stay as they are.
            seed: of the pixels that are looked at.
        """
        names, seen, graph = frozenset(float_layers), _first_for_correction(samples), _copy(self._source.graph)
        quantized = self._simulated(graph, *self._chosen(graph, names))
        round_weights(graph, quantized, seen, seed=seed)
        gains = self.options.per_channel  # else a gain moves a row off the grid that all rows share
        return self._written(self._corrected(graph, seen, (), names, gains=gains), names)

    def _corrected(
        self,
        graph: ir.Model,
        samples: Sequence[Array],
        outputs: Iterable[Feeds],
        float_layers: frozenset[str] = frozenset(),
        *,
        gains: bool = True,
    ) -> _Source:
        """Return `graph`, whose weights may be rounded, with what brings its INT8 form back to the float network.

        For `samples` and `outputs` see `correct`, for `gains` `conv_corrections`.
        """
        gemm = classifier_of(graph.graph)
        with ThreadPoolExecutor(1) as beside:  # until samples are run here, one core is idle
            name = None if gemm is None else str(gemm.outputs[0].name)
            expected = beside.submit(self._float_scores, name, samples, outputs)
            quantized = self._simulated(graph, *self._chosen(graph, float_layers))
            corrections = conv_corrections(self._source.graph, quantized, samples, gains=gains)
            return _Source(graph, samples, corrections, expected.result())

    def write(self, float_layers: Collection[str] = ()) -> Int8File:
        """Return the INT8 form in which `float_layers` stay float; the last form is kept."""
        names = frozenset(float_layers)
        if self._last is None or self._last[0] != names:
            self._last = names, self._written(self._source, names)
        return self._last[1]

    def timed(self, float_layers: Collection[str] = ()) -> Int8File:
        """Return a file that takes as long to run as what `write` returns, and less long to make.

        The classifier, which stays float, is not corrected, and what was made of float tensors is not recorded in it.
        """
        names = frozenset(float_layers)
        if self._last is not None and self._last[0] == names:
            return self._last[1]
        return self._written(dataclasses.replace(self._source, samples=()), names, is_shipped=False)

    @property
    def float_graph(self) -> onnx.ModelProto:
        """The graph that is quantized, before anything was moved or shifted in it."""
        return self._plain

    def keep(self, float_layers: Collection[str], file: Int8File) -> None:
        """Let `write` return `file`, a changed form, for `float_layers`, until it is asked for others."""
        self._last = frozenset(float_layers), file

    def _written(self, source: _Source, float_layers: frozenset[str], *, is_shipped: bool = True) -> Int8File:
        if set(self.layers) <= set(float_layers):
            plain = self.manifest and dataclasses.replace(self.manifest, precision="fp32")
            return Int8File(_serialized(ir.from_proto(self._plain), plain), (), (*self.layers, *self.others))
        graph, corrections = _copy(source.graph), source.corrections
        if not is_shipped:
            graph.metadata_props.clear()
        types, options = self._chosen(graph, float_layers)
        for conv in [node for node in graph.graph if node.name in corrections and node.name not in float_layers]:
            correct_conv(graph.graph, conv, corrections[str(conv.name)])
        if self.backend is None:
            self._correct_classifier(graph, source, self._simulated(graph, types, options))
        with names_known(graph.graph):
            written = set(self._recipe.write(graph, types, options))
        RemoveUnusedNodesPass()(graph)  # what was replaced
        if self.backend is not None:
            self._correct_classifier(graph, source, ir.to_proto(graph))
        if (gemm := classifier_of(graph.graph)) is not None:
            halve(graph.graph, gemm)
        integer = tuple(name for name in self.layers if name in written)
        left = tuple(name for name in self.layers if name not in written)
        return Int8File(_serialized(graph, self.manifest), integer, (*left, *self.others))

    def _chosen(
        self, graph: ir.Model, float_layers: frozenset[str]
    ) -> tuple[Mapping[str, QuantizedType], RecipeOptions]:
        """Return the types that are used, and how to write `graph`, where `float_layers` stay float."""
        types = _useful(self._types, graph, float_layers) if float_layers else self._types
        return types, dataclasses.replace(self.options, float_nodes=_with_clips(graph, float_layers))

    def baseline(self) -> bytes:
        """Return the graph in the INT8 form of general tools; see `baseline.py`."""
        graph = ir.from_proto(self._plain)
        with names_known(graph.graph):
            write_baseline(graph, self._ranges, self.options.weight_bits)
        return _serialized(graph, self.manifest)

    def _simulated(
        self, model: ir.Model, types: Mapping[str, QuantizedType], options: RecipeOptions
    ) -> onnx.ModelProto:
        """Return the Q/DQ form of `model` that runs anywhere."""
        copy = _copy(model)
        with names_known(copy.graph):
            self._recipe.simulate(copy, types, options)
        return ir.to_proto(copy)

    def _correct_classifier(self, model: ir.Model, source: _Source, quantized: onnx.ModelProto) -> None:
        """Let the classifier of `model` correct what `quantized`, its quantized form, changes in the outputs."""
        gemm = classifier_of(model.graph)
        if gemm is not None and source.samples:
            backend = self.backend or REFERENCE_BACKEND
            found = self._scores(quantized, str(gemm.outputs[0].name), backend, source.samples)
            correct_classifier(model.graph, gemm, source.expected, found)

    def _float_scores(self, name: str | None, samples: Sequence[Array], outputs: Iterable[Feeds]) -> list[Array]:
        """Return the value `name` of the float graph for each sample: from `outputs`, if it is one of all of them."""
        if name is None:
            return []
        known = [found[name] for found in itertools.islice(outputs, len(samples)) if name in found]
        is_known = len(known) == len(samples) and self._is_output(name)
        return known if is_known else self._scores(self._plain, name, REFERENCE_BACKEND, samples)

    def _is_output(self, name: str) -> bool:
        return any(output.name == name for output in self._plain.graph.output)

    def _scores(self, proto: onnx.ModelProto, name: str, backend: str, samples: Sequence[Array]) -> list[Array]:
        """Return the value `name` of `proto`, the output of its classifier, for each sample, (1, classes)."""
        exposed = expose_values(proto, [name])
        keep_what_makes(exposed.graph, [name])
        data = exposed.SerializeToString()
        calls, threads = shared_cpus(backend)
        options = RunnerOptions(threads=threads, calls=calls, check_values=False)
        with open_runner(data, backend, "cpu", options) as runner:
            return [found[name] for _, found in run_each(runner, samples, calls)]


def correction_samples(shape: tuple[int, ...]) -> int:
    """Return how many samples of `shape` (1, C, H, W) corrections are measured on: fewer of large images.

    For a convolution one pixel in so many tells as much. For the classifier it is a matter of time: two numbers per
    class that are fitted to n scores add 2/n of the noise, so 32 samples leave 5 % more of it than 128, 0.2 dB.

    >>> correction_samples((1, 3, 64, 64)), correction_samples((1, 3, 96, 96)), correction_samples((1, 3, 224, 224))
    (128, 56, 32)
    """
    return min(CORRECTION_SAMPLES, max(_FEWEST_SAMPLES, _PIXELS // (shape[2] * shape[3])))


def _first_for_correction(samples: Iterable[Array]) -> list[Array]:
    found: list[Array] = []
    for sample in samples:
        found.append(sample)
        if len(found) >= correction_samples(sample.shape):
            break
    return found


def tensors_to_observe(model: ir.Model, *, through_norms: bool = False) -> tuple[str, ...]:
    """Return the names of the tensors of which `Int8Writer` needs the ranges.

    These are the inputs and outputs of convolutions, the outputs of ReLUs, the inputs of Concats, and the inputs of
    norms, if they are float feature maps (N, C, H, W). Concats of these have the ranges of their inputs, and
    the observer min-max, for which `through_norms` is meant, does without the ReLUs of norms as well. Averages over
    whole images, and what a gate (squeeze-and-excitation) or a head of convolutions computes from them, are not: one
    pixel costs no time in float, and its errors would reach every pixel that the gate multiplies. The range of the
    graph's input is known without calibration.
    """
    values: dict[ir.Value, None] = {}
    for node in model.graph:
        found: list[ir.Value | None] = []
        if is_operator(node, "Conv"):
            found.append(node.inputs[0])
            if not is_operator(only_reader(node.outputs[0]), "Relu"):  # which makes one layer with it
                found.append(node.outputs[0])
        if is_operator(node, "Relu") or is_operator(node, "Concat"):
            found.append(node.outputs[0])
        if is_operator(node, "Concat"):
            found += node.inputs
        if is_operator(node, "BatchNormalization"):
            found.append(node.inputs[0])
        values |= dict.fromkeys(value for value in found if value is not None)
    averages = _averages(model.graph)
    maps = [v for v in values if _is_feature_map(v) and v not in averages and not v.is_graph_input()]
    names = {str(value.name) for value in maps}
    nodes = derivable(model.graph, names, OPERATORS if through_norms else _JOINED)
    follow = {str(node.outputs[0].name) for node in nodes}
    return tuple(str(value.name) for value in maps if value.name not in follow)


def _with_following(
    graph: ir.Graph, ranges: Mapping[str, ChannelRanges], minmax: MinMaxOptions | None
) -> dict[str, ChannelRanges]:
    """Return `ranges` together with those of Concats and ReLUs that follow; `minmax` are the options that found them.

    `minmax` is None for another observer, whose ranges do not follow through a norm.
    """
    if minmax is None:
        return derived(graph, ranges, _JOINED)
    found = derived(graph, {name: minmax.narrowed(given) for name, given in ranges.items()})
    norms = {str(node.outputs[0].name) for node in graph if is_operator(node, "BatchNormalization")}
    new = {name: minmax.widened(given) for name, given in found.items() if name not in norms}
    return new | dict(ranges)


def _averages(graph: ir.Graph) -> set[ir.Value]:
    """Return the averages over whole images in `graph`, and what is computed from nothing but such and constants."""
    found: set[ir.Value] = set()
    for node in graph:
        inputs = [value for value in node.inputs if value is not None and not _is_constant(value)]
        is_average = any(is_operator(node, kind) for kind in _WHOLE_IMAGE) and _is_one_pixel(node.outputs[0])
        if is_average or (inputs and found.issuperset(inputs)):
            found.update(node.outputs)
    return found


def _is_one_pixel(value: ir.Value) -> bool:
    """Whether `value` is known to have no pixels beside each other: (N, C) or (N, C, 1, 1)."""
    return value.shape is not None and all(size == 1 for size in value.shape[2:])


def _is_constant(value: ir.Value) -> bool:
    return ir.convenience.get_const_tensor(value) is not None


def _is_feature_map(value: ir.Value) -> bool:
    """Whether `value` is float and has four axes, as far as is known."""
    return value.dtype in (ir.DataType.FLOAT, None) and rank_of(value) in (4, None)


def backend_of(recipe: str) -> str | None:
    """Return the backend of `recipe`, if it is installed and runs ONNX files; that of TensorRT runs only engines."""
    kind = backends.items().get(recipe)
    return recipe if kind is not None and ".onnx" in kind.suffixes and is_installed(kind.requires) else None


def _copy(model: ir.Model) -> ir.Model:
    return ir.from_proto(ir.to_proto(model))


def _with_clips(graph: ir.Model, float_layers: Collection[str]) -> frozenset[str]:
    """Return the names of `float_layers` and of the clips and pools that only they read, which then stay float too."""
    names = set(float_layers)
    for node in reversed(list(graph.graph)):
        reader = only_reader(node.outputs[0])
        if node.op_type in ("Max", "Min", "AveragePool") and reader is not None and reader.name in names:
            names.add(str(node.name))
    return frozenset(names)


def _useful(
    types: Mapping[str, QuantizedType], graph: ir.Model, float_layers: Collection[str]
) -> dict[str, QuantizedType]:
    """Return the types of values that an INT8 convolution makes, or reads through any nodes but convolutions.

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
    """Return the multiply-accumulates of `conv` for one image; for one pixel where the size is unknown."""
    weight, result = conv.inputs[1], conv.outputs[0].shape
    sizes = [size for size in (*(weight.shape or ()), *(result or ())[2:]) if isinstance(size, int)]  # type: ignore[union-attr]
    return float(np.prod(sizes))


def _equalized(
    model: ir.Model, ranges: Mapping[str, ChannelRanges], alpha: float | None, recipe: Recipe
) -> dict[str, ChannelRanges]:
    """Shift and equalize `model` in place, run the recipe's passes, and return the ranges under tensors' new names."""
    if alpha is None:
        apply_passes(model, recipe.passes)
        return dict(ranges)
    copies: dict[str, str] = {}
    if recipe.stores_bus:
        copies = _separated(model, ranges)
        ranges = _needed(model, ranges, copies)
        apply_passes(model, [ShiftBus({name: found.low for name, found in ranges.items()})])
    sizes = {name: np.maximum(-r.low, r.high) for name, r in _renamed(model, ranges).items()}
    apply_passes(model, [EqualizeBus(sizes), *recipe.passes, EqualizeLayer(sizes, alpha)])
    return {name: found for name, found in _renamed(model, ranges).items() if name not in copies.values()}


def _separated(model: ir.Model, ranges: Mapping[str, ChannelRanges]) -> dict[str, str]:
    """Give every bus in `model` tensors of its own; return what each is a copy of, by name, which then stays float."""
    apply_passes(model, [SeparateBus({name: found.low for name, found in ranges.items()})])
    changes = TensorChanges.of(model).items()
    return {name: change.of for name, change in changes if change == TensorChange(change.of)}


def _needed(
    model: ir.Model, ranges: Mapping[str, ChannelRanges], copies: Mapping[str, str]
) -> dict[str, ChannelRanges]:
    """Return `ranges`, those of buses cut to what their readers tell apart, and record these limits in `model`.

    A tensor of which a bus has one of `copies` gets the range of that copy: rewritten tensors are looked up by it.
    """
    needed, changes = dict(ranges), TensorChanges.of(model)
    known = {name: ranges[of] for name, of in copies.items() if of in ranges}
    known |= {name: found for name, found in ranges.items() if name not in copies.values()}
    for bus in find_buses(model.graph).found:
        read_range = needed_range(bus)
        for tensor in (tensor for tensor in bus.tensors if tensor.name in known):
            limits = read_range.of(tensor).finite()
            changes.cut_off(tensor.name, *(limit.astype(np.float32) for limit in limits))
            found = ChannelRanges(*narrowed(known[tensor.name].low, known[tensor.name].high, limits))
            needed[tensor.name] = needed[changes.origin(tensor.name)] = found
        norms = (reader for reader in bus.readers if is_operator(reader.node, "BatchNormalization"))
        for reader in (reader for reader in norms if why_not_affine(reader.node) is None):
            limits = through(reader.node, read_range.of(reader.segment).finite())
            changes.cut_off(str(reader.node.outputs[0].name), *(limit.astype(np.float32) for limit in limits))
    changes.write_to(model)
    return needed


def _renamed(model: ir.Model, ranges: Mapping[str, ChannelRanges]) -> dict[str, ChannelRanges]:
    """Return `ranges` together with those of the tensors that rewrites have changed since, under their new names."""
    found = dict(ranges)
    for name, change in TensorChanges.of(model).items():
        if change.of in ranges and (change.factor is not None or change.offset is not None):
            given = ranges[change.of]
            found[name] = ChannelRanges(change.made_from(given.low), change.made_from(given.high))
    return found


def _serialized(model: ir.Model, manifest: Manifest | None) -> bytes:
    RemoveUnusedNodesPass()(model)
    facts = manifest.to_strings() if manifest is not None else {}
    for key in facts:
        model.metadata_props.pop(key, None)  # those of the float file
    pack(model.metadata_props)
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]  # shapes and types of the float graph
    onnx.checker.check_model(proto)
    data: bytes = proto.SerializeToString()
    return append_metadata(data, facts)
