"""The network to train and the one to learn from, what both must agree on, and how good a network is after an epoch."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from densenet_deploy.errors import ModelFileError, UsageError
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.model import Model, UntrainedWeightsWarning
from densenet_deploy.runtime.classifier import Classifier, read_labels
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.preprocess import PreparedImage, prepare
from densenet_deploy.runtime.runner import RunnerOptions, open_runner
from densenet_deploy.variants import DEFAULT_VARIANT
from densenet_deploy.workflows.evaluate import kept_outputs
from densenet_deploy.workflows.evaluation.tasks import task_of
from densenet_deploy.workflows.load import INPUT_FACTS, LoadOptions, load
from densenet_deploy.workflows.stages import ignore

if TYPE_CHECKING:
    import torch

    from densenet_deploy.models.build import DenseNet
    from densenet_deploy.training.data import Example
    from densenet_deploy.training.processes import Processes

_CIFAR_VARIANT: Final = "cifar-bc-100-12"
_BATCH: Final = 64


@dataclass(frozen=True)
class Student:
    """The network to train, and its facts.

    Attributes:
        network: on the CPU.
        manifest: labels, preprocessing and architecture; the weights are still those that the training begins with.
        is_pretrained: whether the features were trained before.
        notes: what was done to it.
    """

    network: DenseNet
    manifest: Manifest
    is_pretrained: bool
    notes: tuple[str, ...]


def check_stated(stated: LoadOptions) -> None:
    """Refuse facts that the data decide, or that a training of classes can't have.

    Raises:
        UsageError: naming the fact.
    """
    if stated.get("task") not in (None, "auto", "multiclass"):
        why = "is not what this trains: one class per image"
        raise UsageError(f"task={stated['task']}", why, "leave it out, or train elsewhere and export the checkpoint")
    for name in ("num_classes", "thresholds", "seed"):
        if stated.get(name) is not None:
            where = "the options of training" if name == "seed" else "the class folders"
            raise UsageError(f"{name.replace('_', '-')}={stated.get(name)}", f"is decided by {where}", "leave it out")
    if stated.get("head") not in (None, "classifier", "multiscale"):
        raise UsageError(f"head={stated['head']}", "has no classes to train", "leave it out")


def student_of(
    weights: Any, names: Sequence[str], pixels: int | None, seed: int, teacher: Model | None, stated: LoadOptions
) -> Student:
    """Return the network to train on classes called `names`.

    Args:
        weights: whatever `load` takes; None: an untrained one.
        names: of the classes, as the data have them.
        pixels: the side of images that are all of one size; None of others.
        seed: of untrained weights, a new classifier's among them.
        teacher: whose images an untrained network takes too, unless stated otherwise.
        stated: facts; see `load`.

    Raises:
        ModelFileError: if `weights` are not those of a DenseNet of ours.
        UsageError: if a fact is invalid.
    """
    facts: LoadOptions = {**stated}
    if weights is None:
        return _untrained(names, pixels, seed, teacher, facts)
    given = facts.pop("labels", None)
    given = read_labels(Path(given)) if isinstance(given, (str, os.PathLike)) else given
    model = _quietly_loaded(weights, facts)
    network, manifest = _densenet(model)
    labels, known = tuple(names) if given is None else tuple(given), manifest.labels
    is_trained, is_kept = manifest.weights.is_trained, labels == known if given else sorted(labels) == sorted(known)
    if is_kept and network.spec.head != "features":
        note = f"the classifier of {model.name} was kept: its labels are the classes of the data"
        return Student(network, _facts_of(manifest, network, known), is_trained, (*model.notes, note))
    from densenet_deploy.training.network import with_new_classifier

    fresh = with_new_classifier(network, len(labels), seed)
    note = f"a new classifier of {len(labels)} classes was put on {model.name}"
    return Student(fresh, _facts_of(manifest, fresh, labels), is_trained, (*model.notes, note))


def default_variant(pixels: int | None, stated: LoadOptions) -> str:
    """Return the variant that is trained on images of `pixels` a side, or of several sizes (None)."""
    return DEFAULT_VARIANT if pixels is None or "architecture" in stated else _CIFAR_VARIANT


def _untrained(
    names: Sequence[str], pixels: int | None, seed: int, teacher: Model | None, facts: LoadOptions
) -> Student:
    facts.setdefault("variant", default_variant(pixels, facts))
    labels = facts.pop("labels", None)
    facts["labels"] = tuple(names) if labels is None else labels
    if teacher is not None and teacher.manifest is not None:
        shown = teacher.manifest.preprocessing
        for name in INPUT_FACTS:
            facts.setdefault(name, getattr(shown, name))  # type: ignore[misc]
        facts.setdefault("channels", shown.shape[0])
    model = _quietly_loaded(None, {**facts, "seed": seed})
    assert model.manifest is not None
    if pixels is not None and "resize" not in facts and model.manifest.preprocessing.image_size == pixels:
        model = load(model, resize=pixels)
    network, manifest = _densenet(model)
    return Student(network, _facts_of(manifest, network, manifest.labels), is_pretrained=False, notes=())


def _quietly_loaded(source: Any, facts: LoadOptions) -> Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrainedWeightsWarning)
        return load(source, **facts)


def _densenet(model: Model) -> tuple[DenseNet, Manifest]:
    from densenet_deploy.models.build import DenseNet

    if not isinstance(model.module, DenseNet) or model.manifest is None:
        why = "is not a DenseNet whose weights can be trained here"
        raise ModelFileError(model.name, why, "give a checkpoint of one, a variant, or public weights")
    return model.module, model.manifest


def _facts_of(manifest: Manifest, network: DenseNet, labels: Sequence[str]) -> Manifest:
    """Return the facts of what will be trained: images are prepared so in training, so nothing is assumed."""
    return dataclasses.replace(
        manifest, spec=network.spec.to_facts(), labels=tuple(labels), task="multiclass", thresholds=(), assumed=()
    )


def trained_manifest(manifest: Manifest, data: str, sha256: str) -> Manifest:
    """Return the facts with the origin of trained weights: the data that they were trained on."""
    return dataclasses.replace(manifest, weights=WeightsOrigin(f"trained on {data}", sha256))


def teacher_of(source: Any) -> Model:
    """Return the model to learn from.

    Raises:
        UsageError: if its weights are untrained, or it is a graph, which PyTorch does not run.
        InputError: if it cannot be loaded.
    """
    model = _quietly_loaded(source, {})
    if model.manifest is not None and not model.manifest.weights.is_trained:
        raise UsageError(f"teacher={model.name}", "has untrained weights", "give trained ones, such as imagenet:201")
    if model.module is None:
        raise UsageError(f"teacher={model.name}", "is not a network of PyTorch", "give its checkpoint")
    return model


def require_agreement(teacher: Model, manifest: Manifest) -> torch.nn.Module:
    """Return the module of `teacher` if it answers with the student's classes for the student's images.

    Raises:
        UsageError: saying on what they disagree.
    """
    import torch

    subject, labels = f"teacher={teacher.name}", manifest.labels
    facts, ours = teacher.manifest, manifest.preprocessing
    if facts is not None and facts.labels and facts.labels != labels:
        differing = next((pair for pair in zip(facts.labels, labels, strict=False) if pair[0] != pair[1]), None)
        shown = f"{differing[0]!r} where the data have {differing[1]!r}" if differing else "another number of them"
        why = f"has other classes than the data, or in another order: {len(facts.labels)} of them, {shown}"
        raise UsageError(subject, why, "give a teacher of these classes, or state --labels in its order")
    if facts is not None:
        theirs = facts.preprocessing
        for name in INPUT_FACTS:
            one, other = getattr(theirs, name), getattr(ours, name)
            if name not in facts.assumed and one != other:
                why = f"takes images with {name.replace('_', ' ')} {one}, the student with {other}"
                raise UsageError(subject, why, f"state --{name.replace('_', '-')} as the teacher has it")
    assert teacher.module is not None
    module = teacher.module.eval()
    try:
        with torch.inference_mode():
            outputs = module(torch.zeros(1, *ours.shape))
    except (RuntimeError, ValueError, TypeError) as exc:
        why = f"does not take images of {'x'.join(map(str, ours.shape))}: {str(exc).partition(chr(10))[0]}"
        raise UsageError(subject, why, "state the --channels and --image-size that it takes") from exc
    shape = tuple(getattr(outputs, "shape", ()))
    if shape != (1, len(labels)):
        found = f"{shape[-1]} classes" if len(shape) == 2 else f"outputs of shape {shape}"
        raise UsageError(subject, f"has {found}, the data {len(labels)}", "give a teacher of the same classes")
    return module.requires_grad_(False)


def validated(
    network: torch.nn.Module, manifest: Manifest, examples: Sequence[Example], processes: Processes
) -> dict[str, Any]:
    """Return the figures of `evaluate` (`top1`, `top5`, `calibration_error`, ...) for a float32 network.

    Every process runs every `count`-th batch, so that batches, and with them the bits of their outputs, are the same
    for any number of processes. Each returns the figures of all.
    """
    import torch

    batches = [examples[start : start + _BATCH] for start in range(0, len(examples), _BATCH)]
    own = processes.share(batches)
    options = RunnerOptions(threads=torch.get_num_threads())
    with open_runner(Model("network", manifest, network), "torch", str(processes.device), options) as runner:
        classifier = Classifier(runner)
        task = task_of(classifier, "network", manifest)
        flat = [example for batch in own for example in batch]
        _, kept = kept_outputs(classifier, task, _prepared(flat, manifest.preprocessing), len(flat), ignore)
        ends = np.cumsum([len(batch) for batch in own])[:-1]
        parts = processes.gathered([np.split(rows, ends) for rows in kept])
        whole = [parts[number % processes.count] for number in range(len(batches))]
        joined = [
            np.concatenate([part[place][number // processes.count] for number, part in enumerate(whole)])
            for place in range(len(parts[0]))  # the first process has the first batch
        ]
        return task.figures(task.answers(np.array([example.index for example in examples]), joined))


def _prepared(examples: Sequence[Example], preprocessing: Preprocessing) -> Iterator[list[tuple[Path, PreparedImage]]]:
    def one(example: Example) -> PreparedImage:
        return PreparedImage(prepare(example.loaded(preprocessing.shape[0]), preprocessing))

    with ThreadPoolExecutor(usable_cpus(), "decode") as pool:
        for start in range(0, len(examples), _BATCH):
            part = examples[start : start + _BATCH]
            yield [(Path(str(start)), image) for image in pool.map(one, part)]
