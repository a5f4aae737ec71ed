"""The pruned network: its graph, architecture and origin, and a module and weights where the source had some."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from densenet_deploy.manifest import THIRD_PARTY, Manifest, WeightsOrigin
from densenet_deploy.model import Model
from densenet_deploy.models.operations import norm_parameters
from densenet_deploy.packages import is_installed
from densenet_deploy.variants import variant_for
from densenet_deploy.variants.spec import DenseNetSpec
from densenet_deploy.workflows.export import as_onnx
from densenet_deploy.workflows.float_model import exact_graph, input_manifest, pixel_form
from densenet_deploy.workflows.load import preprocessing_of
from densenet_deploy.workflows.prune.preparation import Preparation, of_one_size
from densenet_deploy.workflows.simplify import finished
from densenet_deploy.workflows.stages import Stages

if TYPE_CHECKING:
    import onnx

    from densenet_deploy.pruning.reconstruction import PrunedGraph

Weights = Mapping[str, npt.NDArray[Any]]


def pruned_model(given: Model, name: str, ready: Preparation, pruned: PrunedGraph, stages: Stages) -> Model:
    """Return the graph with its facts, and the module and weights where the source had some."""
    spec = _pruned_spec(given.spec, pruned)
    if spec is None or given.spec is None or given.weights is None:
        result = Model.from_onnx(name, _graph(name, ready, pruned), _facts(given.manifest, spec, pruned.weights))
    else:
        weights = _pruned_weights(given.weights, given.spec, pruned)
        manifest = _facts(given.manifest, spec, weights)
        module = None
        if is_installed("torch"):
            from densenet_deploy.sources.weights import fitted_model

            module = fitted_model(name, dataclasses.replace(variant_for(spec), spec=spec), dict(weights))
        result = as_onnx(Model(name, manifest, module, weights, output_names=(spec.output_name,)), stages)
    return pixel_form(result) if preprocessing_of(given).takes_pixels else result


def _graph(name: str, ready: Preparation, pruned: PrunedGraph) -> onnx.ModelProto:
    import onnx_ir

    from densenet_deploy.pruning.reconstruction import with_weights

    proto = pruned.proto
    if of_one_size(ready.model) is not ready.model:  # the graph takes images of any size, and so does the result
        proto = with_weights(onnx_ir.to_proto(exact_graph(ready.model)), pruned.weights)
    return finished(proto, name)


def _pruned_spec(spec: DenseNetSpec | None, pruned: PrunedGraph) -> DenseNetSpec | None:
    """Return the architecture after pruning; None if it is not known, or its layers are not those of the graph."""
    if spec is None:
        return None
    fits = pruned.layers.values()
    expected = [width for block in spec.bottleneck_widths for width in block]
    return spec.with_bottlenecks([fit.after for fit in fits]) if [fit.before for fit in fits] == expected else None


def _facts(manifest: Manifest | None, spec: DenseNetSpec | None, weights: Weights) -> Manifest | None:
    """Return the facts of the result, which holds `weights`; without a `spec`, its architecture has no name."""
    if manifest is None:
        return None
    from densenet_deploy.sources.weights import weights_sha256

    origin = manifest.weights
    source = f"pruned from {origin.source}" if origin.is_trained else origin.source
    changed = dataclasses.replace(
        manifest,
        variant=THIRD_PARTY if spec is None else variant_for(spec).name,
        spec={} if spec is None else spec.to_facts(),
        weights=WeightsOrigin(source, weights_sha256(dict(weights)), origin.seed),
    )
    return input_manifest(changed, "float32")


def _pruned_weights(weights: Weights, spec: DenseNetSpec, pruned: PrunedGraph) -> dict[str, npt.NDArray[Any]]:
    """Return `weights`, by the names of a state dict, without the channels that are gone, and refitted.

    `spec` is that of `weights`. If all weights of the graph were trained after that, they are taken from there.
    """
    names = [
        f"features.denseblock{block}.denselayer{layer}"
        for block, layers in enumerate(spec.blocks, start=1)
        for layer in range(1, layers + 1)
    ]
    result = dict(weights)
    for name, (key, fit) in zip(names, pruned.layers.items(), strict=True):
        kept = list(fit.kept)
        for parameter in (f"{name}.conv1.weight", *norm_parameters(f"{name}.norm2")):
            result[parameter] = np.ascontiguousarray(weights[parameter][kept])
        result[f"{name}.conv2.weight"] = pruned.weights[pruned.reading[key]]
    if not pruned.is_finetuned:
        return result
    from onnx import numpy_helper

    from densenet_deploy.models.lower import raised

    smaller = _pruned_spec(spec, pruned)
    assert smaller is not None
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in pruned.proto.graph.initializer}
    return raised(smaller, stored, result)
