"""The facts and the weights of a pruned network: architecture, origin, and a checkpoint where the source was one."""

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

if TYPE_CHECKING:
    from densenet_deploy.pruning.reconstruction import PrunedGraph

Weights = Mapping[str, npt.NDArray[Any]]


def pruned_spec(spec: DenseNetSpec | None, pruned: PrunedGraph) -> DenseNetSpec | None:
    """Return the architecture after pruning; None if it is not known, or its layers are not those of the graph."""
    if spec is None:
        return None
    fits = pruned.layers.values()
    expected = [width for block in spec.bottleneck_widths for width in block]
    return spec.with_bottlenecks([fit.after for fit in fits]) if [fit.before for fit in fits] == expected else None


def pruned_manifest(manifest: Manifest | None, spec: DenseNetSpec | None, weights: Weights) -> Manifest | None:
    """Return the facts of the result, which holds `weights`; without a `spec`, its architecture has no name."""
    if manifest is None:
        return None
    from densenet_deploy.sources.weights import weights_sha256

    origin = manifest.weights
    source = f"pruned from {origin.source}" if origin.is_trained else origin.source
    return dataclasses.replace(
        manifest,
        variant=THIRD_PARTY if spec is None else variant_for(spec).name,
        spec={} if spec is None else spec.to_facts(),
        weights=WeightsOrigin(source, weights_sha256(dict(weights)), origin.seed),
    )


def pruned_weights(weights: Weights, spec: DenseNetSpec, pruned: PrunedGraph) -> dict[str, npt.NDArray[Any]]:
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

    smaller = pruned_spec(spec, pruned)
    assert smaller is not None
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in pruned.proto.graph.initializer}
    return raised(smaller, stored, result)


def network_of(name: str, manifest: Manifest, spec: DenseNetSpec, weights: dict[str, npt.NDArray[Any]]) -> Model:
    """Return the network as a module, or where PyTorch is not installed as weights alone."""
    from densenet_deploy.sources.weights import fitted_model

    module = None
    if is_installed("torch"):
        module = fitted_model(name, dataclasses.replace(variant_for(spec), spec=spec), dict(weights))
    return Model(name, manifest, module, weights, output_names=(spec.output_name,))
