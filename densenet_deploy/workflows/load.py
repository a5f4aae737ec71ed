"""Load: whatever a person calls "my DenseNet" → a `Model` with the facts that travel with it.

What is known about the images wins in this order: what the caller states, the file's manifest, what the source knows
(public weights, another library's conventions), the default of the architecture. Facts of the last kind are
assumptions, and are reported as such.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeGuard, Unpack, cast

import numpy as np

from densenet_deploy.artifacts import Artifact, StrPath, is_checkpoint_name, require_file
from densenet_deploy.errors import ModelFileError, UnknownNameError, UsageError, printable
from densenet_deploy.facts import Architecture, ModelFacts
from densenet_deploy.manifest import THIRD_PARTY, ImageShape, Manifest, Preprocessing, Size, WeightsOrigin, sides
from densenet_deploy.model import InputDescription, Model, UntrainedWeightsWarning, untrained_note
from densenet_deploy.packages import is_installed
from densenet_deploy.runtime.classifier import read_labels
from densenet_deploy.runtime.meaning import require_labels, require_thresholds, shared_labels
from densenet_deploy.runtime.runner import Runner, RunnerOptions, open_runner
from densenet_deploy.variants import Variant, find_variant, is_variant, variant_with
from densenet_deploy.variants.spec import DenseNetSpec

if TYPE_CHECKING:
    from densenet_deploy.sources import LoadedNetwork


_LISTED: Final = 3
INPUT_FACTS: Final = ("image_size", "resize", "interpolation", "mean", "std")
"""The facts about images that may be assumed."""

Source = "StrPath | bytes | torch.nn.Module | ModelProto | Model"
"""A variant or public weights by name, a path, the bytes of an ONNX file, a module, an `onnx.ModelProto`, a `Model`."""


class LoadOptions(TypedDict, total=False):
    """What a caller states about a source, as keywords of every function that takes one; see `load`."""

    image_size: Size
    channels: int
    resize: Size | str
    interpolation: str
    mean: float | Sequence[float]
    std: float | Sequence[float]
    labels: Sequence[str] | StrPath
    task: str
    thresholds: float | Sequence[float]
    variant: str
    num_classes: int
    head: str
    architecture: Architecture
    seed: int
    allow_nonfinite: bool
    key: str


def load(source: Any = None, **stated: Unpack[LoadOptions]) -> Model:
    """Return the model that `source` is or names, with what the caller states about it.

    >>> load("densenet_digits.safetensors").manifest.labels[:3]
    ('0', '1', '2')

    Args:
        source: the name of a variant (`121`, untrained), public weights (`imagenet:169`), a checkpoint, an `.onnx`,
            `.xml` or `.engine` file, the bytes of an ONNX file, a state dict, an `nn.Module`, an `onnx.ModelProto`, or
            a `Model`. None is the untrained `variant`, or DenseNet-121.
        **stated: facts about the images and outputs (see `ModelFacts`), which win over what the source says; and of the
            network `variant`, `num_classes`, `head`, `architecture` (numbers of a custom one), the `seed` of untrained
            weights, `allow_nonfinite` for weights with NaN or Inf, and `key`, which names one of several networks in a
            checkpoint.

    Raises:
        UsageError: if an option or a name is invalid, or there are not as many labels as classes.
        CheckpointError: if weights cannot be read or do not fit.
        ModelFileError: if an ONNX file cannot be used.
        DataError: if a file of labels cannot be read.
        MissingPackageError: if a package is not installed.
    """
    facts = _facts(stated)
    if isinstance(source, Model):
        _require_same_network(stated)
        return _with_facts(source, facts)
    network = _network(source, stated, facts)
    if network.artifact is not None:
        model = Model(network.name, network.manifest, artifact=network.artifact, notes=network.notes)
        model = model.holding(network.graph) if network.graph is not None else model
        return _announced(_with_facts(_with_shown_facts(model), facts))
    manifest = _described(network, facts)
    labels = facts.labels or (network.labels if network.manifest is None else ())
    model = Model(
        network.name,
        manifest,
        network.module,
        network.weights,
        notes=(*network.notes, *_shared_labels_note(labels)),
        output_names=network.output_names,
    )
    return _announced(model)


def open_model(
    source: Any, backend: str | None = None, device: str | None = None, options: RunnerOptions | None = None
) -> Runner:
    """Open anything that `load` takes for inference; arguments and errors as for `load` and `open_runner`."""
    return open_runner(load(source), backend, device, options)


def check_names(source: Any, stated: LoadOptions) -> None:
    """Check the names and numbers of a source without importing anything heavy or reading a file.

    Raises:
        UsageError: if a name is unknown, or numbers do not make a network.
        InputError: if the file does not exist.
    """
    _facts(stated)
    if isinstance(source, Model) or not (source is None or isinstance(source, (str, os.PathLike))):
        return
    variant = _constrained_variant(source, stated)
    if source is not None and is_checkpoint_name(Path(source)):
        require_file(Path(source))
    elif isinstance(source, str) and not is_variant(source):
        from densenet_deploy.sources import source_for

        source_for(source).check(source, variant.name if variant is not None else None)


def is_file_name(source: object) -> TypeGuard[StrPath]:
    """Whether `source` is the path of a model file; a name of a variant or of public weights is not."""
    if not isinstance(source, (str, os.PathLike)):
        return False
    path = Path(source)
    return is_checkpoint_name(path) or path.suffix.lower() in (".onnx", ".xml", ".engine") or path.exists()


def several(given: Any) -> tuple[Any, ...]:
    """Return the items of `given`, or `given` alone: a path is not a list of letters, a module not one of layers.

    >>> several("chest.onnx"), several(["a.onnx", "b.onnx"])
    (('chest.onnx',), ('a.onnx', 'b.onnx'))
    """
    is_text = isinstance(given, (str, bytes, bytearray, memoryview, os.PathLike))
    is_one = is_text or isinstance(given, Mapping) or hasattr(given, "state_dict")
    return (given,) if is_one or not isinstance(given, Iterable) else tuple(given)


def input_of(model: Model, *, fast_decode: bool = False) -> InputDescription:
    """Return what `model` takes, which of these facts nobody stated, and whether images are decoded fast.

    Raises:
        ModelFileError: if it is a graph that does not take one float32 (N, C, H, W) input.
    """
    if model.manifest is not None:
        return InputDescription.of(model.manifest.preprocessing, model.manifest.assumed, fast_decode=fast_decode)
    assumed = _assumed_of(_shape_of(model))
    return InputDescription.of(preprocessing_of(model), assumed, fast_decode=fast_decode)


def preprocessing_of(model: Model) -> Preprocessing:
    """Return how images are prepared for `model`: as its manifest says, else what is assumed. Errors as `input_of`."""
    if model.manifest is not None:
        return model.manifest.preprocessing
    from densenet_deploy.graph.pixel_input import takes_pixels

    dtype = "uint8" if takes_pixels(model.onnx) else "float32"
    return dataclasses.replace(Preprocessing.for_shape(_shape_of(model)), dtype=dtype)


def _shape_of(model: Model) -> ImageShape:
    from densenet_deploy.graph.onnx_file import image_shape_of

    return image_shape_of(model.onnx, model.name)


def _assumed_of(shape: ImageShape) -> tuple[str, ...]:
    """Return the facts that a graph of such an input leaves open."""
    return INPUT_FACTS if None in shape[1:] else INPUT_FACTS[1:]


def _require_same_network(stated: LoadOptions) -> None:
    """Refuse to ask another network of a model that is loaded."""
    for name in ("variant", "num_classes", "head", "architecture", "seed"):
        if stated.get(name) is not None:
            why = "does not apply to a model that is loaded"
            raise UsageError(f"{name}={stated.get(name)}", why, "state it where the model is loaded")


def facts_alone(stated: LoadOptions) -> LoadOptions:
    """Return what `stated` says about images and outputs, without what it says about the network."""
    names = {field.name for field in dataclasses.fields(ModelFacts)}
    return cast("LoadOptions", {name: value for name, value in stated.items() if name in names})


def _facts(stated: LoadOptions) -> ModelFacts:
    for name in stated:
        if name not in LoadOptions.__annotations__:
            raise UnknownNameError.among("fact", name, tuple(LoadOptions.__annotations__))
    values: dict[str, Any] = {**facts_alone(stated)}
    if isinstance(values.get("labels"), (str, os.PathLike)):
        values["labels"] = read_labels(Path(values["labels"]))
    return ModelFacts(**values)


def _network(source: Any, stated: LoadOptions, facts: ModelFacts) -> LoadedNetwork:
    from densenet_deploy import sources

    variant = _constrained_variant(source, stated)
    classes = stated.get("num_classes")
    is_untrained = source is None or (isinstance(source, str) and is_variant(source))
    if classes is None and facts.labels is not None and is_untrained:
        classes = len(facts.labels)
    constraint = sources.WeightsConstraint(
        variant=variant,
        num_classes=classes,
        head=stated.get("head"),
        channels=facts.channels,
        architecture=_changes(stated) if variant is None else {},
        seed=stated.get("seed", 0),
        allow_nonfinite=stated.get("allow_nonfinite", False),
        key=stated.get("key"),
    )
    return sources.load("none" if is_untrained else source, constraint)


def _constrained_variant(source: Any, stated: LoadOptions) -> Variant | None:
    """Return the architecture that was named, with the numbers that were given; None leaves it to the weights."""
    name, changes = stated.get("variant"), _changes(stated)
    if isinstance(source, str) and is_variant(source):
        if name is not None and find_variant(name) != find_variant(source):
            raise UsageError(source, f"is another variant than {name}", "name the variant once")
        name = source
    if source is not None and name is None and (not changes or is_file_name(source)):
        return None
    return variant_with(name, changes)


def _changes(stated: LoadOptions) -> dict[str, Any]:
    architecture = stated.get("architecture")
    return architecture.changes() if architecture is not None else {}


def _described(network: LoadedNetwork, facts: ModelFacts) -> Manifest:
    """Return the facts of a loaded network, those that nobody stated marked as assumed."""
    assert network.origin is not None  # which every module has
    known, variant = network.manifest, network.variant
    base = known.preprocessing if known is not None else variant.preprocessing if variant else Preprocessing()
    known_names = set(INPUT_FACTS) - set(known.assumed) if known is not None else set()
    learnt = {**network.facts.given(), **facts.given()}
    preprocessing, assumed = _prepared(base, learnt, known_names)
    if variant is not None:
        _check_size(variant.spec, preprocessing)
    labels = facts.labels or network.labels or (known.labels if known is not None else ())
    spec = variant.spec if variant is not None else None
    task = learnt.get("task") or (known.task if known is not None else None)
    thresholds = learnt.get("thresholds") or (known.thresholds if known is not None else ())
    if task != "multilabel" and not facts.thresholds:
        thresholds = ()  # a task that the caller states makes those of the source meaningless
    if spec is not None:
        classes = None if spec.head == "features" else spec.num_classes
        require_labels(labels, classes)
        require_thresholds(thresholds, classes)
    _check_task_of(facts, task)
    return Manifest(
        variant=variant.name if variant is not None else THIRD_PARTY,
        spec=spec.to_facts() if spec is not None else {},
        weights=network.origin,
        preprocessing=preprocessing,
        labels=labels,
        task=None if task == "auto" else task,
        thresholds=thresholds,
        assumed=assumed,
    )


def _with_shown_facts(model: Model) -> Model:
    """Return somebody else's ONNX graph with a manifest of what it shows, if it takes images; any other as it is."""
    if model.manifest is not None or not model.is_onnx or not is_installed("onnx"):
        return model
    from densenet_deploy.graph.shown_facts import facts_of_graph

    assert model.artifact is not None
    try:
        base = preprocessing_of(model)
    except ModelFileError:  # it takes no images, which those who need some are told
        return model
    shown = facts_of_graph(model.onnx)
    manifest = Manifest(
        THIRD_PARTY,
        {},
        WeightsOrigin(model.artifact.path.name, model.artifact.sha256()),
        _prepared(base, shown.facts.given(), set())[0],
        precision=model.precision,
        task=shown.facts.task if "task" in shown.certain else None,
        activations=model.artifact.activations(),
        assumed=tuple(name for name in INPUT_FACTS if name not in shown.certain),
    )
    artifact = dataclasses.replace(model.artifact, manifest=manifest)
    return model.replaced(manifest=manifest, artifact=artifact, notes=(*model.notes, *shown.notes))


def _with_facts(model: Model, facts: ModelFacts) -> Model:
    """Return `model` with what the caller states in its manifest; a third-party graph gets one then."""
    given = facts.given()
    if not given:
        return model
    base, known = preprocessing_of(model), model.manifest
    names = set(INPUT_FACTS) - set(known.assumed if known is not None else _assumed_of(_shape_of(model)))
    if model.artifact is not None and (facts.image_size or facts.channels):
        is_readable = model.is_onnx and is_installed("onnx")
        _check_stated_shape(model.name, facts, _shape_of(model) if is_readable else base.shape)
    _check_normalization(model, facts, base)
    preprocessing, assumed = _prepared(base, given, names)
    if facts.image_size is not None and model.is_onnx and is_installed("onnx"):
        model = _of_fixed_size(model, preprocessing)
    if known is None:
        assert model.artifact is not None
        origin = WeightsOrigin(model.artifact.path.name, model.artifact.sha256())
        known = Manifest(THIRD_PARTY, {}, origin, preprocessing, precision=model.precision)
    manifest = dataclasses.replace(
        known,
        preprocessing=preprocessing,
        assumed=assumed,
        labels=facts.labels or known.labels,
        task=known.task if facts.task in (None, "auto") else facts.task,
        thresholds=facts.thresholds or known.thresholds,
    )
    _check_task_of(facts, manifest.task)
    if facts.labels or facts.thresholds:
        check_outputs(model, manifest)
    if model.spec is not None:
        _check_size(model.spec, preprocessing)
    artifact = None if model.artifact is None else dataclasses.replace(model.artifact, manifest=manifest)
    replaced = _replaced_notes(base, preprocessing, names.intersection(given))
    notes = (*model.notes, *replaced, *_shared_labels_note(facts.labels or ()))
    return model.replaced(manifest=manifest, artifact=artifact, notes=notes)


def _replaced_notes(stated: Preprocessing, used: Preprocessing, names: Collection[str]) -> tuple[str, ...]:
    """Say which of the facts `names` replace others that the model states: its answers change with them."""
    pairs = {name: (getattr(stated, name), getattr(used, name)) for name in ("mean", "std", "resize", "interpolation")}
    return tuple(
        f"{name}: {_shortly(new)} is used, the model states {_shortly(old)}"
        for name, (old, new) in pairs.items()
        if name in names and _shortly(new) != _shortly(old)
    )


def _shortly(value: object) -> str:
    """Return numbers with four digits, those of equal channels once."""
    if not isinstance(value, tuple):
        return str(value)
    texts = [f"{number:.4g}" for number in value]
    return texts[0] if len(set(texts)) == 1 else " ".join(texts)


def _check_normalization(model: Model, facts: ModelFacts, base: Preprocessing) -> None:
    """Refuse a mean or std other than those with which a graph normalizes pixels itself."""
    if not base.takes_pixels:
        return
    for name in ("mean", "std"):
        given, held = getattr(facts, name), getattr(base, name)
        if given is not None and not np.allclose(given, held, rtol=1e-4, atol=1e-6):
            why = f"is not what the graph of {model.name} computes with: {' '.join(f'{value:.4g}' for value in held)}"
            raise UsageError(name, why, "omit it: the graph takes pixels and normalizes them itself")


def _of_fixed_size(model: Model, preprocessing: Preprocessing) -> Model:
    """Return `model` with the image size of `preprocessing` in its graph, if that takes any."""
    if None not in _shape_of(model)[1:]:
        return model
    from densenet_deploy.graph.onnx_file import with_image_size

    assert model.artifact is not None
    _, height, width = preprocessing.shape
    proto, given = with_image_size(model.onnx, height, width), model.artifact
    held = Artifact.open(proto.SerializeToString())
    artifact = dataclasses.replace(held, path=given.path, manifest=given.manifest, original=given.original or given)
    notes = (*model.notes, f"the graph, which takes images of any size, was fixed to {height}x{width}")
    return model.replaced(artifact=artifact, notes=notes).holding(proto)


def _check_stated_shape(name: str, facts: ModelFacts, shape: ImageShape) -> None:
    """Refuse a size or channels other than those that a graph takes; what it leaves open may be stated."""
    channels, height, width = shape
    if channels is not None and facts.channels not in (None, channels):
        raise UsageError(f"channels={facts.channels}", f"{name} takes {channels} channels", "omit it")
    size = facts.image_size
    if size is None:
        return
    if any(side not in (None, given) for side, given in zip((height, width), sides(size), strict=True)):
        taken = height if height == width else f"{height or '?'}x{width or '?'}"
        subject = size if isinstance(size, int) else f"{size[0]}x{size[1]}"
        raise UsageError(f"image-size={subject}", f"{name} takes {taken} pixels", "omit it")


def _prepared(base: Preprocessing, facts: dict[str, Any], known: set[str]) -> tuple[Preprocessing, tuple[str, ...]]:
    """Return the preprocessing with `facts` in it, and the names of those that are neither in `facts` nor `known`."""
    channels, size = facts.get("channels", len(base.mean)), facts.get("image_size", base.image_size)
    usual, resize = Preprocessing.default(size, channels), facts.get("resize")
    if resize is None and size != base.image_size:
        known, resize = known - {"resize"}, usual.resize
    if channels != len(base.mean):
        known, base = known - {"mean", "std"}, dataclasses.replace(base, mean=usual.mean, std=usual.std)
    preprocessing = dataclasses.replace(
        base,
        image_size=size,
        resize=resize or base.resize,
        interpolation=facts.get("interpolation") or base.interpolation,
        mean=_per_channel("mean", facts.get("mean"), channels) or base.mean,
        std=_per_channel("std", facts.get("std"), channels) or base.std,
    )
    return preprocessing, tuple(name for name in INPUT_FACTS if name not in known and name not in facts)


def _per_channel(option: str, values: tuple[float, ...] | None, channels: int) -> tuple[float, ...] | None:
    if values is None or len(values) == channels:
        return values
    if len(values) == 1:
        return values * channels
    why = f"holds {len(values)} numbers for {channels} channels"
    raise UsageError(f"{option}={values}", why, "give one, or one per channel")


def _check_size(spec: DenseNetSpec, preprocessing: Preprocessing) -> None:
    size = min(preprocessing.shape[1:])
    if size < spec.smallest_image_size:
        why = f"is too small for {len(spec.blocks)} blocks after the {spec.stem} stem"
        raise UsageError(f"image-size={size}", why, f"give at least {spec.smallest_image_size}")


def _check_task_of(facts: ModelFacts, task: str | None) -> None:
    if facts.thresholds and task != "multilabel":
        raise UsageError("thresholds", "apply only to a multilabel model", "state the task multilabel too")


def check_outputs(model: Model, manifest: Manifest) -> None:
    """Check that there are as many labels and thresholds in `manifest` as `model` shows classes.

    Raises:
        UsageError: if there are not as many labels or thresholds.
    """
    classes = _classes_of(model)
    require_labels(manifest.labels, classes)
    require_thresholds(manifest.thresholds, classes)


def _shared_labels_note(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the line about labels that several outputs have, or nothing."""
    shared = shared_labels(labels)
    if not shared:
        return ()
    listed = ", ".join(f"{label!r} ({', '.join(map(str, found))})" for label, found in islice(shared.items(), _LISTED))
    more = f" and {len(shared) - _LISTED} more" if len(shared) > _LISTED else ""
    return (f"labels of several outputs: {printable(listed)}{more}; results show their index, too",)


def _classes_of(model: Model) -> int | None:
    """The number of classes of a model whose outputs are scores; None where it does not show."""
    if model.spec is not None:
        return None if model.spec.head == "features" else model.spec.num_classes
    if not model.is_onnx or not is_installed("onnx"):
        return None
    from densenet_deploy.graph.shown_facts import scores_per_image

    return scores_per_image(model.onnx)


def _announced(model: Model) -> Model:
    """Warn of untrained weights, wherever they come from."""
    for note in untrained_note(model.manifest):
        warnings.warn(f"{model.name}: {note}", UntrainedWeightsWarning, stacklevel=3)
    return model
