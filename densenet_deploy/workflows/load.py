"""Get hold of a model: a DenseNet module from a variant or a checkpoint, or a runner for whatever is called MODEL."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from densenet_deploy.artifacts import CHECKPOINT_SUFFIXES
from densenet_deploy.errors import DataError, UsageError
from densenet_deploy.facts import Architecture
from densenet_deploy.manifest import Manifest, Preprocessing, Triple
from densenet_deploy.options import require_range
from densenet_deploy.packages import require_packages
from densenet_deploy.runtime.classifier import read_labels
from densenet_deploy.runtime.runner import ModuleSource, Runner, RunnerOptions, open_runner
from densenet_deploy.variants import DEFAULT_VARIANT, Variant, variant_with
from densenet_deploy.workflows.notes import untrained_note

if TYPE_CHECKING:
    import torch

    from densenet_deploy.sources import LoadedNetwork


@dataclass(frozen=True)
class ModelRequest:
    """Which DenseNet, with which weights, seeing images how. None means: as the weights or the variant say.

    Attributes:
        variant: `121`, `cifar-bc-100-12`, …; without it, what the checkpoint holds, else 121.
        weights: `none` (untrained, from `seed`), `imagenet`, a torchvision name, or a checkpoint file.
        image_size, resize: pixels; `resize` is `image_size * 256 // 224` where only the size is given.
        mean, std: per RGB channel, of values in 0..1.
        labels: class names in the order of the outputs.
    """

    variant: str | None = None
    weights: str = "none"
    num_classes: int | None = None
    head: str | None = None
    architecture: Architecture = field(default_factory=Architecture)
    image_size: int | None = None
    resize: int | None = None
    mean: Triple | None = None
    std: Triple | None = None
    labels: tuple[str, ...] | None = None
    allow_nonfinite: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("image-size", self.image_size), ("resize", self.resize)):
            if value is not None:
                require_range(name, value, 1, 8192)
        if self.num_classes is not None:
            require_range("num-classes", self.num_classes, 1, 1_000_000)
        for channel in self.mean or ():
            require_range("mean", channel, -1e6, 1e6)
        for channel in self.std or ():
            require_range("std", channel, 1e-6, 1e6)


@dataclass(frozen=True)
class DescribedModel:
    """A module in eval mode, the facts that will travel with its artifacts, and remarks made on the way."""

    module: torch.nn.Module
    variant: Variant
    manifest: Manifest
    notes: tuple[str, ...]

    def runner_source(self) -> ModuleSource:
        """Return what `open_runner` takes: the module with its facts."""
        return ModuleSource(self.module, self.manifest)


def build(request: ModelRequest) -> DescribedModel:
    """Build or load what `request` asks for.

    Raises:
        UsageError: if a number or name cannot be meant.
        CheckpointError: if the weights cannot be read or do not fit.
        DataError: if the labels are not as many as the classes.
        MissingPackageError: if PyTorch is not installed.
    """
    require_packages("export", "torch", "safetensors")
    from densenet_deploy import sources
    from densenet_deploy.models.build import DenseNet

    constraint = sources.WeightsConstraint(
        variant=requested_variant(request),
        num_classes=_wanted_classes(request),
        head=request.head,
        seed=request.seed,
        allow_nonfinite=request.allow_nonfinite,
    )
    loaded = sources.load(request.weights, constraint)
    if not isinstance(loaded.module, DenseNet) or loaded.variant is None:
        raise UsageError(request.weights, "is not a checkpoint", "give a checkpoint, or a name of public weights")
    manifest = _describe(loaded, loaded.variant, request)
    return DescribedModel(loaded.module, loaded.variant, manifest, (*loaded.notes, *untrained_note(manifest)))


def load_model(
    source: str | Path = DEFAULT_VARIANT, *, weights: str = "none", num_classes: int | None = None
) -> torch.nn.Module:
    """Return a DenseNet module in eval mode; see `load` for the module together with its facts.

    >>> module = load_model("examples/digits/densenet_digits.safetensors")    # doctest: +SKIP

    Args:
        source: a checkpoint file, or the name of a variant.
        weights: for a variant: `none`, `imagenet`, a torchvision name or a file.
        num_classes: None means as the checkpoint or the variant says.
    """
    return load(source, weights=weights, num_classes=num_classes).module


def load(
    source: str | Path = DEFAULT_VARIANT, *, weights: str = "none", num_classes: int | None = None
) -> DescribedModel:
    """Return a DenseNet and its facts, ready for `open_runner`; arguments as in `load_model`."""
    if is_checkpoint(Path(source)):
        return build(ModelRequest(weights=str(source), num_classes=num_classes))
    return build(ModelRequest(variant=str(source), weights=weights, num_classes=num_classes))


def open_model(
    model: str | Path, backend: str | None = None, device: str | None = None, options: RunnerOptions | None = None
) -> Runner:
    """Open anything a command calls MODEL: an artifact, or a checkpoint, whose module is built first.

    Raises:
        InputError: if the file cannot be used.
        BackendError: if the backend or device cannot be had.
    """
    path = Path(model)
    return open_runner(load(path) if is_checkpoint(path) else path, backend, device, options)


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is named like a file of weights."""
    return path.suffix.lower() in CHECKPOINT_SUFFIXES


def requested_variant(request: ModelRequest) -> Variant | None:
    """Return the variant to build; None where the weights are to say. Nothing heavy is imported.

    Raises:
        UsageError: if there is no such variant, or its numbers make no network.
    """
    changes = request.architecture.changes()
    if request.variant is None and request.weights != "none" and not changes:
        return None
    return variant_with(request.variant, changes)


def _wanted_classes(request: ModelRequest) -> int | None:
    if request.num_classes is None and request.labels and request.weights == "none":
        return len(request.labels)
    return request.num_classes


def _describe(loaded: LoadedNetwork, variant: Variant, request: ModelRequest) -> Manifest:
    spec = variant.spec
    labels = request.labels if request.labels is not None else _known_labels(loaded)
    if labels and spec.head != "features" and len(labels) != spec.num_classes:
        why = f"{len(labels)} labels for {spec.num_classes} classes"
        raise DataError("labels", why, "give one label a class, or --num-classes")
    return Manifest(
        variant=variant.name,
        spec=spec.to_facts(),
        weights=loaded.origin,
        preprocessing=_preprocessing(loaded, variant, request),
        labels=labels,
    )


def _known_labels(loaded: LoadedNetwork) -> tuple[str, ...]:
    return loaded.labels or (loaded.manifest.labels if loaded.manifest else ())


def _preprocessing(loaded: LoadedNetwork, variant: Variant, request: ModelRequest) -> Preprocessing:
    spec, known = variant.spec, loaded.manifest.preprocessing if loaded.manifest else variant.preprocessing
    size = request.image_size or known.image_size
    if size < spec.smallest_image_size:
        why = f"is too small for {len(spec.blocks)} blocks behind the {spec.stem} stem"
        raise UsageError(f"image-size={size}", why, f"give at least {spec.smallest_image_size}")
    return dataclasses.replace(
        known,
        image_size=size,
        resize=request.resize or (known.resize if request.image_size is None else size * 256 // 224),
        mean=request.mean or known.mean,
        std=request.std or known.std,
    )


def labels_from(path: Path | None) -> tuple[str, ...] | None:
    """Read a label file, if one was given."""
    return None if path is None else read_labels(path)
