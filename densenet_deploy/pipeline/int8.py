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

from densenet_deploy.manifest import Manifest
from densenet_deploy.onnx_envelope import append_metadata
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.runner import Runner, RunnerOptions, open_runner

if TYPE_CHECKING:
    import onnx_ir as ir

    from densenet_deploy.quantize.observers.observer import ChannelRanges
    from densenet_deploy.quantize.recipes.recipe import RecipeOptions

CORRECTION_SAMPLES: Final = 64
_SIMULATED_BY: Final = "openvino"  # the recipe whose files keep the names of the Convs' outputs


@dataclass(frozen=True)
class Int8File:
    """A serialized INT8 model and the names of its convolutions, in execution order, by what they compute on."""

    data: bytes
    layers_int8: tuple[str, ...]
    layers_float: tuple[str, ...]


class Int8Writer:
    """Writes one calibrated float graph by one recipe."""

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
        from densenet_deploy.graph.graph_pass import is_operator
        from densenet_deploy.quantize.recipes.recipe import recipes
        from densenet_deploy.quantize.scales import plan_types

        self.recipe, self._how = recipe, how
        self._writer = recipes.get(recipe)()
        ranges = _equalized(graph, ranges, alpha, self._writer.passes)
        self._graph, self._types = graph, plan_types(graph.graph, ranges)
        self.layers = tuple(str(node.name) for node in graph.graph if is_operator(node, "Conv"))
        self._correct_biases(list(itertools.islice(samples, CORRECTION_SAMPLES)))

    def write(self, manifest: Manifest | None, float_layers: Collection[str] = ()) -> Int8File:
        """Return the INT8 form in which `float_layers` stay float."""
        import onnx_ir

        graph = onnx_ir.from_proto(onnx_ir.to_proto(self._graph))
        how = dataclasses.replace(self._how, float_nodes=frozenset(float_layers) | frozenset(self._how.float_nodes))
        written = set(self._writer.write(graph, self._types, how))
        integer = tuple(name for name in self.layers if name in written)
        left = tuple(name for name in self.layers if name not in written)
        return Int8File(_serialized(graph, manifest), integer, left)

    def _correct_biases(self, samples: list[Array]) -> None:
        from densenet_deploy.quantize.bias_correction import correct_biases
        from densenet_deploy.quantize.recipes.recipe import recipes

        def simulate(graph: ir.Model) -> None:
            recipes.get(_SIMULATED_BY)().write(graph, self._types, self._how)

        if samples:
            correct_biases(self._graph, simulate, samples, _open_plain)


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
