"""From what `--weights` says to a network that holds them: `none`, a torchvision name, or a file.

Variant, class count and head come from the checkpoint where they are not given; a disagreement is an error.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import nn

from densenet_deploy.artifacts import CHECKPOINT_SUFFIXES, write_file
from densenet_deploy.errors import CheckpointError, UnknownNameError, UsageError
from densenet_deploy.manifest import Manifest, WeightsOrigin
from densenet_deploy.models.build import DenseNet, build_model
from densenet_deploy.models.checkpoint_file import CheckpointFile, read_checkpoint
from densenet_deploy.models.fit import fitted_model
from densenet_deploy.models.public_weights import fetched, find_public_weights, is_public_name
from densenet_deploy.models.safetensors_file import float32_bytes
from densenet_deploy.models.state_dict import COUNTER, Weights, require_finite, weights_from, weights_sha256
from densenet_deploy.variants import Variant, find_variant, variant_for
from densenet_deploy.variants.infer import head_from_shapes, spec_from_shapes
from densenet_deploy.variants.spec import DenseNetSpec

UNTRAINED: Final = "none"


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode with what is known about it.

    `manifest` is what its file carried, if any; `labels` may be empty; `notes` say what was done to load it.
    """

    module: DenseNet
    variant: Variant
    origin: WeightsOrigin
    manifest: Manifest | None = None
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Wanted:
    """What the caller asked for; None leaves the choice to the checkpoint."""

    variant: Variant | None
    num_classes: int | None
    head: str | None

    def applied_to(self, variant: Variant) -> Variant:
        """Return `variant` with the class count and head that were asked for."""
        num_classes = variant.spec.num_classes if self.num_classes is None else self.num_classes
        spec = dataclasses.replace(variant.spec, num_classes=num_classes, head=self.head or variant.spec.head)
        return dataclasses.replace(variant, spec=spec)


def load_weights(
    weights: str,
    *,
    variant: str | None = None,
    num_classes: int | None = None,
    head: str | None = None,
    spec: DenseNetSpec | None = None,
    seed: int = 0,
    allow_nonfinite: bool = False,
) -> LoadedModel:
    """Return the network that `weights` names: `none`, `imagenet`, a torchvision name, or a checkpoint file.

    `variant` or `spec` say what it must be; of `spec`, classes and head count only for untrained networks.

    >>> load_weights("none", variant="cifar-40-12", num_classes=3).module.spec.num_classes
    3

    Raises:
        UsageError: if the arguments contradict each other, or no such weights are public.
        CheckpointError: if the file cannot be read, or does not fit what was asked for.
        ResourceError: if public weights cannot be downloaded.
    """
    wanted = _Wanted(_wanted_variant(variant, spec), num_classes, head)
    if weights == UNTRAINED:
        return _untrained(wanted, seed)
    if is_public_name(weights):
        return _public(weights, wanted)
    path = Path(weights)
    if path.suffix.lower() not in CHECKPOINT_SUFFIXES and not path.exists():
        raise UnknownNameError.among("weights", weights, (UNTRAINED, "imagenet", *CHECKPOINT_SUFFIXES))
    return _from_file(read_checkpoint(path), wanted, allow_nonfinite=allow_nonfinite)


def save_weights(path: Path, model: nn.Module, manifest: Manifest) -> None:
    """Write the network's weights to a `.safetensors` file that carries `manifest`.

    Raises:
        ResourceError: if it cannot be written.
    """
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(COUNTER)}
    write_file(path, float32_bytes(tensors, manifest.to_strings()))


def _wanted_variant(variant: str | None, spec: DenseNetSpec | None) -> Variant | None:
    if variant is not None and spec is not None:
        raise UsageError(variant, "is given together with numbers of its own", "give a variant or the numbers")
    if spec is not None:
        return variant_for(spec)
    return None if variant is None else find_variant(variant)


def _untrained(wanted: _Wanted, seed: int) -> LoadedModel:
    variant = wanted.applied_to(wanted.variant or find_variant("121"))
    module = build_model(variant.spec, seed=seed)
    origin = WeightsOrigin(UNTRAINED, weights_sha256(module.state_dict()), seed)
    return LoadedModel(module, variant, origin)


def _public(name: str, wanted: _Wanted) -> LoadedModel:
    public = find_public_weights(name, wanted.variant.name if wanted.variant else None)
    wanted = dataclasses.replace(wanted, variant=wanted.variant or find_variant(public.variant))
    loaded = _from_file(read_checkpoint(fetched(public.url)), wanted, allow_nonfinite=False)
    origin = dataclasses.replace(loaded.origin, source=public.name)
    return dataclasses.replace(loaded, origin=origin, labels=public.labels)


def _from_file(file: CheckpointFile, wanted: _Wanted, *, allow_nonfinite: bool) -> LoadedModel:
    weights = weights_from(file)
    manifest = Manifest.from_strings(file.strings)
    variant = _variant_of(file.path, weights, manifest, wanted)
    weights = _without_unused_classifier(weights, variant.spec)
    module = fitted_model(file.path, variant, weights.tensors)
    if not allow_nonfinite:
        require_finite(file.path, weights.tensors)
    origin = _origin(file.path, manifest, weights_sha256(module.state_dict()))
    return LoadedModel(module, variant, origin, manifest, manifest.labels if manifest else (), weights.notes)


def _variant_of(path: Path, weights: Weights, manifest: Manifest | None, wanted: _Wanted) -> Variant:
    """What the weights must fit: what was asked for, else what the file says, else what the shapes say."""
    try:
        head, classes = head_from_shapes(weights.shapes)
        base = _architecture(weights, manifest, wanted.variant)
    except CheckpointError as exc:
        raise CheckpointError(path, f"its weights {exc.why}", exc.fix) from exc
    if wanted.num_classes not in (None, classes) and wanted.head != "features":
        found = "no classifier" if classes is None else f"{classes} classes"
        why = f"has {found}, and --num-classes asks for {wanted.num_classes}"
        raise CheckpointError(path, why, "leave out --num-classes")
    if wanted.head == "multiscale" != head:
        raise CheckpointError(path, "has no multiscale head", "train one, or leave out --head")
    return _Wanted(None, classes, wanted.head or head).applied_to(base)


def _architecture(weights: Weights, manifest: Manifest | None, wanted: Variant | None) -> Variant:
    """The wanted variant, prepared for as the file says where it is the same one; without a wish, the file's own."""
    described = _described(manifest)
    if wanted is None:
        return described or variant_for(spec_from_shapes(weights.shapes))
    if described is not None and described.spec.same_architecture(wanted.spec):
        return dataclasses.replace(wanted, preprocessing=described.preprocessing)
    return wanted


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
    return Weights(kept, (*weights.notes, "classifier dropped: the output is the features"))


def _origin(path: Path, manifest: Manifest | None, sha256: str) -> WeightsOrigin:
    """Where the weights came from; a file of untrained ones stays untrained."""
    if manifest is not None and not manifest.weights.is_trained:
        return dataclasses.replace(manifest.weights, sha256=sha256)
    return WeightsOrigin(path.name, sha256)
