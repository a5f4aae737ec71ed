"""Checkpoint files: variant, class count and head come from the checkpoint unless they are given.

What the file says and what was asked for must agree; a disagreement is an error.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from densenet_deploy.artifacts import CHECKPOINT_SUFFIXES, FILE_SUFFIXES, write_file
from densenet_deploy.errors import CheckpointError
from densenet_deploy.manifest import Manifest, WeightsOrigin
from densenet_deploy.packages import require_packages
from densenet_deploy.sources.checkpoint_file import float32_bytes, read_checkpoint
from densenet_deploy.sources.source import LoadedNetwork, Match, Source, WeightsConstraint, sources
from densenet_deploy.sources.weights import (
    COUNTER,
    Weights,
    fitted_model,
    require_finite,
    weights_from,
    weights_sha256,
)
from densenet_deploy.variants import Variant, variant_for
from densenet_deploy.variants.infer import head_from_shapes, spec_from_shapes
from densenet_deploy.variants.spec import DenseNetSpec

if TYPE_CHECKING:
    from torch import nn


@sources.register("file")
class FileSource(Source):
    """Read a checkpoint: `.pth`, `.pt`, `.ckpt`, `.bin` or `.safetensors`."""

    names = CHECKPOINT_SUFFIXES

    def matches(self, source: object) -> Match:
        if not isinstance(source, (str, os.PathLike)):
            return Match.NO
        path = Path(source)
        if path.suffix.lower() in CHECKPOINT_SUFFIXES:
            return Match.CERTAIN
        return Match.POSSIBLE if path.suffix.lower() not in FILE_SUFFIXES and path.exists() else Match.NO

    def load(self, source: object, constraint: WeightsConstraint) -> LoadedNetwork:
        require_packages("export", "torch", "safetensors")
        assert isinstance(source, (str, os.PathLike))
        return load_file(Path(source), constraint)


def load_file(path: Path, constraint: WeightsConstraint) -> LoadedNetwork:
    """Load the checkpoint `path`; see `Source.load`."""
    file = read_checkpoint(path)
    weights = weights_from(file)
    manifest = Manifest.from_strings(file.strings)
    variant = _variant_of(path, weights, manifest, constraint)
    weights = _without_unused_classifier(weights, variant.spec)
    module = fitted_model(path, variant, weights.tensors)
    if not constraint.allow_nonfinite:
        require_finite(path, weights.tensors)
    return LoadedNetwork(
        name=path.stem,
        origin=_origin(path, manifest, weights_sha256(module.state_dict())),
        module=module,
        variant=variant,
        manifest=manifest,
        labels=manifest.labels if manifest else (),
        facts=weights.facts,
        output_names=(variant.spec.output_name,),
        notes=weights.notes,
    )


def save_weights(path: Path, model: nn.Module, manifest: Manifest) -> None:
    """Write the network's weights to a `.safetensors` file that carries `manifest`.

    Raises:
        ResourceError: if it cannot be written.
    """
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(COUNTER)}
    write_file(path, float32_bytes(tensors, manifest.to_strings()))


def _variant_of(path: Path, weights: Weights, manifest: Manifest | None, constraint: WeightsConstraint) -> Variant:
    """What the weights must fit: what was asked for, else what the file says, else what the shapes say."""
    try:
        head, classes = head_from_shapes(weights.shapes)
        base = _architecture(weights, manifest, constraint.variant)
    except CheckpointError as exc:
        raise CheckpointError(path, exc.why, exc.fix) from exc
    if constraint.num_classes not in (None, classes) and constraint.head != "features":
        found = "no classifier" if classes is None else f"{classes} classes"
        why = f"has {found}, but --num-classes asks for {constraint.num_classes}"
        raise CheckpointError(path, why, "leave out --num-classes")
    if constraint.head == "multiscale" != head:
        raise CheckpointError(path, "does not have a multiscale head", "train one, or leave out --head")
    return WeightsConstraint(num_classes=classes, head=constraint.head or head).applied_to(base)


def _architecture(weights: Weights, manifest: Manifest | None, requested: Variant | None) -> Variant:
    """The requested variant with the file's preprocessing if both are the same; without a request, the file's own."""
    described = _described(manifest)
    if requested is None:
        return described or variant_for(spec_from_shapes(weights.shapes))
    if described is not None and described.spec.same_architecture(requested.spec):
        return dataclasses.replace(requested, preprocessing=described.preprocessing)
    return requested


def _described(manifest: Manifest | None) -> Variant | None:
    if manifest is None:
        return None
    return Variant(manifest.variant, DenseNetSpec.from_facts(manifest.spec), manifest.preprocessing)


def _without_unused_classifier(weights: Weights, spec: DenseNetSpec) -> Weights:
    if spec.head != "features":
        return weights
    kept = {name: tensor for name, tensor in weights.tensors.items() if not name.startswith("classifier.")}
    if len(kept) == len(weights.tensors):
        return weights
    note = "classifier dropped: the output is the features"
    return dataclasses.replace(weights, tensors=kept, notes=(*weights.notes, note))


def _origin(path: Path, manifest: Manifest | None, sha256: str) -> WeightsOrigin:
    """Where the weights came from; a file of untrained ones stays untrained."""
    if manifest is not None and not manifest.weights.is_trained:
        return dataclasses.replace(manifest.weights, sha256=sha256)
    return WeightsOrigin(path.name, sha256)
