"""Checkpoints, in files or in memory: variant, class count and head come from the checkpoint unless they are given.

What the file says and what was asked for must agree; a disagreement is an error.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from densenet_deploy.artifacts import (
    CHECKPOINT_SUFFIXES,
    FILE_SUFFIXES,
    checkpoint_stem,
    is_checkpoint_name,
    write_file,
)
from densenet_deploy.errors import CheckpointError
from densenet_deploy.facts import ModelFacts
from densenet_deploy.manifest import Manifest, WeightsOrigin
from densenet_deploy.packages import is_installed
from densenet_deploy.sources.arrays import Array, array_of
from densenet_deploy.sources.checkpoint_file import CheckpointFile, float32_bytes, read_checkpoint
from densenet_deploy.sources.config_file import WeightsConfig, config_beside, fitting
from densenet_deploy.sources.source import UNVERIFIED, LoadedNetwork, Match, Source, WeightsConstraint, sources
from densenet_deploy.sources.weights import (
    COUNTER,
    Weights,
    copied,
    fitted_model,
    require_fit,
    require_numbers,
    weights_from,
    weights_of,
    weights_sha256,
)
from densenet_deploy.variants import Variant, find_variant, is_variant, variant_for
from densenet_deploy.variants.spec import DenseNetSpec
from densenet_deploy.variants.stems import stems_like

if TYPE_CHECKING:
    from torch import Tensor, nn

    from densenet_deploy.models.build import DenseNet

_IN_MEMORY: Final = Path("state_dict")
"""Stands for the path of a state dict in memory, in errors and in the name of the network."""


@sources.register("file")
class FileSource(Source):
    """Read a checkpoint: a file `.pth`, `.pt`, `.ckpt`, `.bin` or `.safetensors`, or a state dict in memory."""

    names = CHECKPOINT_SUFFIXES

    def matches(self, source: object) -> Match:
        if not isinstance(source, (str, os.PathLike)):
            return Match.CERTAIN if isinstance(source, Mapping) else Match.NO
        path = Path(source)
        if is_checkpoint_name(path):
            return Match.CERTAIN
        return Match.POSSIBLE if path.suffix.lower() not in FILE_SUFFIXES and path.exists() else Match.NO

    def load(self, source: object, constraint: WeightsConstraint) -> LoadedNetwork:
        if isinstance(source, Mapping):
            return _loaded(CheckpointFile(_IN_MEMORY, sys.maxsize, source), constraint, assumes=True)
        assert isinstance(source, (str, os.PathLike))
        return load_file(Path(source), constraint)


def load_file(path: Path, constraint: WeightsConstraint, *, assumes: bool = True) -> LoadedNetwork:
    """Load the checkpoint `path`; see `Source.load`. With `assumes`, a note says what its weights do not show.

    Where PyTorch is not installed, the network has weights, and no module.
    """
    return _loaded(read_checkpoint(path), constraint, assumes=assumes)


def _loaded(file: CheckpointFile, constraint: WeightsConstraint, *, assumes: bool) -> LoadedNetwork:
    path, manifest = file.path, Manifest.from_strings(file.strings)
    weights = weights_from(file, is_ours=manifest is not None, key=constraint.key)
    _refuse_cosine_head(path, weights, constraint)
    if path is _IN_MEMORY:  # its owner may go on training
        weights = dataclasses.replace(weights, tensors=copied(weights.tensors))
    config = config_beside(path) if manifest is None and path is not _IN_MEMORY else None
    if config is not None:
        weights = weights.described_by(config)
        constraint = _with_stem_of(config, weights, constraint)
    variant = _variant_of(path, weights, manifest, constraint)
    weights = _without_unused_classifier(weights, variant.spec)
    module, arrays = _network(path, variant, weights.tensors)
    if not constraint.allow_nonfinite:
        require_numbers(path, arrays)
    facts, misfits = fitting(weights.facts, variant.spec) if manifest is None else (ModelFacts(), ())
    assumed = (_assumption(weights, variant.spec),) if assumes and manifest is None else ()
    return LoadedNetwork(
        name=checkpoint_stem(path),
        origin=_origin(path, manifest, weights_sha256(arrays)),
        module=module,
        weights=arrays,
        variant=variant,
        manifest=manifest,
        labels=manifest.labels if manifest is not None else facts.labels or (),
        facts=dataclasses.replace(facts, channels=variant.spec.in_channels),
        output_names=(variant.spec.output_name,),
        notes=(*weights.notes, *misfits, *assumed),
    )


def _network(
    path: Path, variant: Variant, tensors: Mapping[str, Tensor | Array]
) -> tuple[DenseNet | None, Mapping[str, Array]]:
    """(the module, its weights by name); where PyTorch is not installed, no module, and the weights for one."""
    if is_installed("torch"):
        module = fitted_model(path, variant, tensors)
        return module, weights_of(module)
    require_fit(path, variant, tensors)
    return None, {name: array_of(tensor) for name, tensor in tensors.items()}


def _with_stem_of(config: WeightsConfig, weights: Weights, constraint: WeightsConstraint) -> WeightsConstraint:
    """Let the name of the architecture decide between stems with the same parameters."""
    if config.architecture is None or "stem" in constraint.architecture or not is_variant(config.architecture):
        return constraint
    try:
        found = weights.layout.spec(weights.shapes).stem
    except CheckpointError:
        return constraint
    stem = find_variant(config.architecture).spec.stem
    if stem not in stems_like(found):
        return constraint
    return dataclasses.replace(constraint, architecture={**constraint.architecture, "stem": stem})


def save_weights(path: Path, model: nn.Module, manifest: Manifest) -> None:
    """Write the network's weights to a `.safetensors` file that carries `manifest`.

    Raises:
        ResourceError: if it cannot be written.
    """
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(COUNTER)}
    write_file(path, float32_bytes(tensors, manifest.to_strings()))


def _variant_of(path: Path, weights: Weights, manifest: Manifest | None, constraint: WeightsConstraint) -> Variant:
    """What the weights must fit: what was asked for, else what the file says, else what the shapes say."""
    described = _described(manifest)
    found = _found(path, weights, constraint) if described is None else None
    base = _architecture(path, found, described, constraint)
    ends = described.spec if described is not None else found
    if ends is None:
        return constraint.applied_to(base)
    _require_ends(path, ends, constraint)
    spec = base.spec.with_ends_of(ends, head=constraint.head or ends.head)
    return dataclasses.replace(base, spec=spec)


def _found(path: Path, weights: Weights, constraint: WeightsConstraint) -> DenseNetSpec | None:
    """What the shapes say; None if they are not those of a DenseNet, and a requested one says what is missing."""
    try:
        return weights.layout.spec(weights.shapes)
    except CheckpointError as exc:
        if constraint.variant is None:
            raise CheckpointError(path, exc.why, exc.fix) from exc
        return None


def _refuse_cosine_head(path: Path, weights: Weights, constraint: WeightsConstraint) -> None:
    """Refuse a last layer that compares directions, unless it is left out."""
    name = weights.layout.head.cosine
    if name is not None and constraint.head != "features":
        why = f"{name} is a margin head (ArcFace, CosFace), which compares directions and is not linear"
        fix = "take the features that it compares, export --head features, or load the module in Python"
        raise CheckpointError(path, why, fix)


def _require_ends(path: Path, found: DenseNetSpec, constraint: WeightsConstraint) -> None:
    """Refuse weights with other classes, channels or another head than were asked for."""
    classes = None if found.head == "features" else found.num_classes
    if constraint.num_classes not in (None, classes) and constraint.head != "features":
        has = "no classifier" if classes is None else f"{classes} classes"
        why = f"has {has}, but --num-classes asks for {constraint.num_classes}"
        raise CheckpointError(path, why, "leave out --num-classes")
    if constraint.head == "multiscale" != found.head:
        raise CheckpointError(path, "does not have a multiscale head", "train one, or leave out --head")
    if constraint.channels not in (None, found.in_channels):
        why = f"reads {found.in_channels} channels, but --channels asks for {constraint.channels}"
        raise CheckpointError(path, why, "leave out --channels")


def _architecture(
    path: Path, found: DenseNetSpec | None, described: Variant | None, constraint: WeightsConstraint
) -> Variant:
    """The requested variant with the file's preprocessing if both are the same; without a request, the file's own.

    Shapes leave numbers open, which may be asked for; whether the rest of them fit is seen when the weights are loaded.
    """
    requested, asked = constraint.variant, constraint.architecture
    if requested is None:
        spec = described.spec if described is not None else found
        assert spec is not None
        changed = dataclasses.replace(spec, **asked)
        if described is None:
            return variant_for(changed)
        if not changed.same_architecture(spec):
            options = " and ".join(f"--{name.replace('_', '-')}" for name in asked)
            why = f"is {described.name}, but {options} asks for another network"
            raise CheckpointError(path, why, f"leave out {options}")
        return dataclasses.replace(described, spec=changed)
    if described is not None and described.spec.same_architecture(requested.spec):
        return dataclasses.replace(requested, preprocessing=described.preprocessing)
    return requested


def _described(manifest: Manifest | None) -> Variant | None:
    if manifest is None:
        return None
    return Variant(manifest.variant, DenseNetSpec.from_facts(manifest.spec), manifest.preprocessing)


def _assumption(weights: Weights, spec: DenseNetSpec) -> str:
    """What the forward pass does that weights do not show."""
    pools = {"relu-avg": "ReLU, global average pool", "avg": "global average pool without ReLU"}
    pooling = "its own pools" if spec.head == "multiscale" else pools.get(spec.pooling, "maximum and average pool")
    head = weights.layout.head
    behind = (*head.assumed, *(head.classifier_assumed if spec.head != "features" else ()))
    return f"assumed: {', '.join((str(spec.stem_layers), pooling, *behind))}; {UNVERIFIED}"


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
