"""The command that trains: `train`."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any, cast

from densenet_deploy.artifacts import os_errors_about
from densenet_deploy.cli.app import Work, command, made
from densenet_deploy.cli.options import DEVICE, VARIANT, VARIANT_HELP, Output, require_use
from densenet_deploy.cli.parameters import REQUIRED, Only, Options, Reads, Writes, flag, option
from densenet_deploy.errors import UsageError
from densenet_deploy.facts import Architecture, ModelFacts

DEFAULT_FOLDER = "artifacts/train"


class Training(Options):
    """How to train: fields of `TrainOptions`."""

    epochs: int = option("N", "Passes over the training images.", default=90)
    batch_size: int = option("N", "Images per step, in all processes together.", default=64)
    optimizer: str = option("NAME", "sgd (Nesterov momentum 0.9) or adamw.", "sgd adamw", default="sgd")
    lr: float | None = option(
        "X", "Learning rate (default: 0.1 for sgd, 0.001 for adamw; a tenth of it with --weights)."
    )
    head_lr: float | None = option("X", "Learning rate of the classifier (default: --lr).")
    weight_decay: float = option("X", "Weight decay, 0 to 1.", default=1e-4)
    schedule: str = option(
        "NAME",
        "step (divided by 10 at 50 % and 75 % of the epochs), cosine or constant.",
        "step cosine constant",
        default="step",
    )
    warmup_epochs: float = option("X", "Epochs over which the learning rate rises from 0.", default=0.0)
    freeze: str | None = option(
        "features|until=NAME",
        "Parts to keep as they are, statistics of norms included: all features, or those up to and including NAME, "
        "such as until=denseblock3 (default: none).",
        "features until=denseblock1 until=denseblock2 until=denseblock3",
    )
    augment: str = option(
        "NAME",
        "crop (shifted by up to an eighth), resized-crop (a random part), none, or auto: crop up to 64 pixels, "
        "resized-crop above.",
        "auto none crop resized-crop",
        default="auto",
    )
    flip: bool = flag("--flip/--no-flip", "Mirror half of the images.", default=True)
    mixup: float = option("X", "Mix images: parameter of the Beta distribution, 0 for none.", default=0.0)
    label_smoothing: float = option("X", "Probability spread over all classes, 0 to 1.", default=0.0)
    amp: str | None = option("NAME", "Compute in bf16 or fp16 where that is safe (default: float32).", "bf16 fp16")
    memory_efficient: bool = flag(
        "--memory-efficient", "Recompute dense layers in the backward pass: less memory, same bits."
    )
    ema: float | None = option("X", "Decay of a moving average of the weights, which is kept (default: none).")
    teacher: str | None = option(
        "SOURCE", "A trained model to learn from: whatever export takes (default: none).", reads=Reads("session")
    )
    temperature: float | None = option("X", "--teacher: temperature of the softened outputs (default: 4).")
    alpha: float | None = option("X", "--teacher: weight of its outputs against the labels, 0 to 1 (default: 0.7).")
    shards: int | None = option("N", "Parts of a batch that are normalized by themselves (default: one per process).")
    seed: int = option("N", "Seed of weights, order, augmentation and dropout.", default=0)
    device: str = option("NAME", "cpu, cuda, cuda:1 or auto.", default="auto", **DEVICE)
    max_bad: int = option("N", "Unreadable images to leave out.", default=0)
    check: bool = flag("--check/--no-check", "Decode every image before the first step.", default=True)


@command(
    "train",
    examples=(
        "densenet-deploy train --data flowers/ --weights imagenet --freeze until=denseblock3 --lr 1e-4 --head-lr 1e-2",
        "densenet-deploy train --data cifar10 --variant cifar-bc-100-12 --epochs 300 -o artifacts/cifar10",
        "densenet-deploy train --data flowers/ --variant 121 --teacher imagenet-flowers.pth --amp bf16 --resume",
        "densenet-deploy train --data flowers/ --search growth-rate=12,24,32 --search bn-size=2,4 --budget 120",
    ),
)
def train_command(
    data: str = option(
        "DIR|cifar10|cifar100|FILE",
        "Class folders, or train/ and val/ with class folders; or CIFAR by name, as its archive or folder.",
        default=REQUIRED,
    ),
    val: Path | None = option(
        "DIR", "Class folders to validate on (default: val/ of --data, otherwise a tenth of each class).", reads=Reads()
    ),
    variant: str | None = option("NAME", f"{VARIANT_HELP} (default: 121; cifar-bc-100-12 for CIFAR).", **VARIANT),
    weights: str | None = option(
        "SOURCE",
        "What to begin with: imagenet, imagenet:169, or whatever export takes (default: untrained).",
        reads=Reads("session"),
    ),
    *,
    how: Training,
    unlabelled: Path | None = option("DIR", "--teacher: images that it alone judges (default: none).", reads=Reads()),
    search: list[str] | None = option(
        "NAME=V,V,...",
        "Numbers of the architecture to try, the better ones for longer: growth-rate, bn-size, compression, "
        "init-features, depth or variant; may be repeated (default: none).",
    ),
    budget: int | None = option("N", "--search: epochs of all trainings together (default: as --epochs leads to)."),
    resume: bool = flag("--resume", "Go on with the training in -o, to the bits of an undisturbed one."),
    facts: Annotated[ModelFacts, Only("image_size", "channels", "resize", "interpolation", "mean", "std", "labels")],
    architecture: Architecture,
    output: Annotated[Output, Writes("DIR", DEFAULT_FOLDER, ())],
) -> Work:
    """Train a DenseNet on images, from scratch or from weights."""
    from densenet_deploy.training.options import CIFAR_NAMES, TrainOptions
    from densenet_deploy.workflows.load import check_names

    given = {name: value for name, value in vars(how).items() if value is not None}
    require_use(given, "--teacher", how.teacher is not None, "temperature", "alpha")
    options = TrainOptions(**given | {"device": None if how.device == "auto" else how.device})
    if data not in CIFAR_NAMES:
        with os_errors_about(data):
            Path(data).stat()
    if unlabelled is not None and how.teacher is None:
        raise UsageError(f"unlabelled={unlabelled}", "has no teacher to judge its images", "give --teacher")
    if budget is not None and not search:
        raise UsageError(f"budget={budget}", "limits a search, and there is none", "give --search")
    searching: dict[str, Any] = {}
    if search:
        from densenet_deploy.workflows.train.search import SearchOptions

        searching = {"search": SearchOptions(tuple(search), budget)}
    custom: dict[str, Any] = {"architecture": architecture} if architecture.changes() else {}
    named: dict[str, Any] = {} if variant is None else {"variant": variant}
    stated = cast("Any", {**facts.given(), **named, **custom})
    check_names(weights, stated)
    return lambda listener: _trained(
        data,
        options,
        weights=weights,
        val=val,
        unlabelled=unlabelled,
        out=output.out or DEFAULT_FOLDER,
        force=output.force,
        resume=resume,
        progress=listener,
        **searching,
        **stated,
    )


def _trained(data: str, options: Any, **arguments: Any) -> Any:
    from densenet_deploy.workflows.train.train import train

    if os.environ.get("RANK", "0") != "0":  # of the processes that torchrun started, the first one reports
        sys.stdout = io.StringIO()
    return made(train(data, options, **arguments))
