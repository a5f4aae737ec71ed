"""Options that commands share, declared once, and how the words of a command line become their values."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from densenet_deploy.cli.outcome import Printing
from densenet_deploy.cli.parameters import (
    REQUIRED,
    Options,
    Reads,
    argument,
    flag,
    group,
    option,
    registered,
    word,
    words,
)
from densenet_deploy.errors import DataError, UnknownNameError, UsageError
from densenet_deploy.facts import AUTO, Architecture, ModelFacts

if TYPE_CHECKING:
    from densenet_deploy.runtime.runner import RunnerOptions
    from densenet_deploy.workflows.batch import BatchJobOptions

_PER_CHANNEL: Final = ("--mean", "--std")
_NUMBER: Final = re.compile(r"-?(?!\d{3}$)[\d.][\d.eE+-]*")
"""A number, except three digits alone: 121 after `--mean 0.5 0.5 0.5` is a variant."""


def _variants() -> tuple[str, ...]:
    from densenet_deploy.variants import variant_names

    return variant_names()


def _check_variant(name: str) -> None:
    from densenet_deploy.variants import find_variant

    find_variant(name)


def _devices() -> tuple[str, ...]:
    from densenet_deploy.runtime.runner import backends

    return *sorted({word for backend in backends.items().values() for word in backend.devices}), AUTO


def _check_device(name: str) -> None:
    from densenet_deploy.runtime.runner import Device

    Device.parse(name)


def _recipes() -> tuple[str, ...]:
    """Return the names of the recipes, which are those of their files: importing them takes the onnx package."""
    from densenet_deploy.quantization import recipes

    names = {module.name for module in pkgutil.iter_modules(recipes.__path__)} - {"recipe"}
    return *sorted(names), AUTO


def _check_recipe(name: str) -> None:
    if not name.lower().endswith(".toml") and name not in _recipes():
        raise UnknownNameError.among("recipe", name, _recipes())


def complete_source(incomplete: str) -> list[str]:
    """Return the names of networks that begin so."""
    return [name for name in (*_variants(), "imagenet") if name.startswith(incomplete)]


VARIANT: Final = word(_variants, _check_variant)
BACKEND: Final = registered("runtime.runner", "backends", AUTO)
DEVICE: Final = word(_devices, _check_device)
RECIPE: Final = word(_recipes, _check_recipe)
OBSERVER: Final = registered("quantization.observers.observer", "observers")
PLOT: Final = registered("analysis.plots.plot", "plots")
GATE: Final = words("cosine= sqnr_db= centred_sqnr_db= max_abs= mean_abs= top1_agreement=")

VARIANT_HELP: Final = "121, 161, 169, 201, 264, cifar-L-k or cifar-bc-L-k"
BACKEND_HELP: Final = "onnxruntime, openvino, rtx, tensorrt, torch or auto"
DEVICE_HELP: Final = "cpu, cuda, cuda:1, gpu, npu or auto; a device that is missing is an error"
GATE_HELP: Final = "A limit such as cosine=0.9999 or sqnr_db=40; repeatable"

MODEL_HELP: Final = (
    "An .onnx, .xml, .engine, .pth, .pt, .ckpt, .bin or .safetensors file, or a name such as 121 or imagenet."
)


def model_argument(metavar: str, description: str, *, default: Any = REQUIRED, reads: Reads | None = None) -> Any:
    """Declare an argument that names a model; shells complete the names of networks."""
    return argument(metavar, description, default=default, reads=reads, autocompletion=complete_source)


FLOAT_HELP: Final = "An FP32 ONNX file, or whatever export takes, which is exported first."

MODEL: Final = model_argument("MODEL", MODEL_HELP, reads=Reads("session", backends=lambda a: (a.running.backend,)))
CALIBRATION: Final = option(
    "DIR|FILE", "Images, or a .npy or .npz file of normalized float32 (N, C, H, W).", default=REQUIRED, reads=Reads()
)
FAST_DECODE: Final = flag("--fast-decode", "Decode JPEGs at a reduced scale: faster, not to the same bits.")
ENGINE: Final = option("NAME", "local: this machine; ray: a Ray cluster.", "local ray", default="local")
CLUSTER: Final = option("ADDRESS", "--engine ray: the cluster (default: one on this machine alone).")
MAX_DROP: Final = option(
    "POINTS",
    "Largest loss of top-1, or of a multilabel model's mean AUROC, on the class folders of the calibration images, in "
    "percentage points (default: no limit).",
)
MIN_SQNR: Final = option("DB", "Least SQNR of the outputs in dB (default: no limit).")
GATES: Final = option("KEY=VALUE", f"{GATE_HELP} (default: those of the precision, none for INT8).", **GATE)


@group(ModelFacts)
def model_facts(
    image_size: str | None = option("N|HxW", "Input size in pixels (default: the model's)."),
    channels: int | None = option("N", "Input channels (default: the model's)."),
    resize: str | None = option(
        "N|HxW|none",
        "Pixels of the shorter side, or both sides, before the center crop "
        "(default: the model's; image size x 256/224 where only the size is given).",
    ),
    interpolation: str | None = option(
        "NAME", "Resampling: nearest, bilinear or bicubic (default: the model's).", "nearest bilinear bicubic"
    ),
    mean: str | None = option(
        "X|X,X,X", "Subtracted from values in 0..1: one, or one per channel (default: the model's)."
    ),
    std: str | None = option("X|X,X,X", "Divisor after that: one, or one per channel (default: the model's)."),
    labels: Path | None = option(
        "FILE", "Text file with one class name per line (default: the model's).", reads=Reads()
    ),
    task: str | None = option(
        "NAME",
        "multiclass, multilabel, regression, features or auto (default: the model's).",
        "multiclass multilabel regression features auto",
    ),
    thresholds: Path | None = option(
        "FILE", "multilabel: text file with one threshold in 0..1 per line (default: the model's).", reads=Reads()
    ),
) -> ModelFacts:
    """Facts of the model."""
    return ModelFacts(
        image_size=size("--image-size", image_size),
        channels=channels,
        resize="none" if resize == "none" else size("--resize", resize),
        interpolation=interpolation,
        mean=numbers("--mean", mean),
        std=numbers("--std", std),
        labels=None if labels is None else _lines(labels),
        task=task,
        thresholds=None if thresholds is None else _thresholds(thresholds),
    )


@group(Architecture)
def architecture(
    growth_rate: int | None = option("N", "Channels that each layer adds (default: the variant's)."),
    blocks: str | None = option("N,N,...", "Layers in each block (default: the variant's)."),
    init_features: int | None = option("N", "Channels after the stem (default: the variant's)."),
    compression: float | None = option("X", "Fraction of channels that a transition keeps (default: the variant's)."),
    bn_size: int | None = option(
        "N", "Bottleneck width as a multiple of the growth rate, 0 for none (default: the variant's)."
    ),
    drop_rate: float | None = option("X", "Fraction of features dropped in training (default: the variant's)."),
    stem: str | None = option(
        "NAME",
        "imagenet, imagenet-nopool, cifar, 3x3-pool, 3x3-nopool, deep or deep-blur (default: the variant's).",
        "imagenet imagenet-nopool cifar 3x3-pool 3x3-nopool deep deep-blur",
    ),
) -> Architecture:
    """Custom architecture."""
    sizes = None if blocks is None else whole_numbers("--blocks", blocks)
    return Architecture(growth_rate, sizes, init_features, compression, bn_size, drop_rate, stem)


class RunnerChoice(Options):
    """What a model runs on."""

    heading = "Backend"

    backend: str = option("NAME", f"{BACKEND_HELP}.", default=AUTO, **BACKEND)
    device: str = option("NAME", f"{DEVICE_HELP}.", default=AUTO, **DEVICE)
    threads: int | None = option("N", "CPU threads (default: all that are available).")
    trust_engine: bool = flag(
        "--trust-engine", "Load a TensorRT engine without a valid sidecar file; an engine is native code."
    )

    def options(self) -> RunnerOptions:
        """Return how to run, checked."""
        from densenet_deploy.runtime.runner import RunnerOptions

        return RunnerOptions(threads=self.threads, trust_engine=self.trust_engine)


class JobChoice(Options):
    """How a batch job is cut and run."""

    heading = "Batch job, with -o"

    shard_size: int = option("N", "Images per shard.", default=1000)
    format: str | None = option(
        "NAME", "parquet, csv or jsonl (default: the file's; in a folder parquet).", "parquet csv jsonl"
    )
    batch: int | None = option("N", "Images per call (default: the model's fixed batch, or 16).")
    engine: str = ENGINE
    address: str | None = CLUSTER
    workers: int | None = option("N", "Processes that run the model (default: 1; with ray as many as fit).")
    resume: bool = flag("--resume", "Classify only the shards that are missing in -o.")

    def options(self, *, force: bool) -> BatchJobOptions:
        """Return the options of the job, checked."""
        from densenet_deploy.workflows.batch import BatchJobOptions

        return BatchJobOptions(**vars(self), force=force)

    def require_none(self) -> None:
        """Check that nothing is chosen where no job is asked for.

        Raises:
            UsageError: naming what is chosen.
        """
        for name, value in vars(self).items():
            if value != getattr(type(self), name).default:
                text = f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
                raise UsageError(text, "applies only to a batch job", "name where its rows go with -o")


def require_use(given: Mapping[str, Any], option: str, is_on: bool, *names: str) -> None:
    """Check that none of the options `names` is in `given` where `option`, which they are about, is off.

    Raises:
        UsageError: naming the first that would change nothing.
    """
    for name in names:
        if name in given and not is_on:
            stated = f"--{name.replace('_', '-')}={given[name]:g}"
            raise UsageError(stated, f"applies only to {option}", f"add {option}, or leave it out")


class Output(Options):
    """Where the result goes."""

    heading = "Output"

    out: str | None = option("", "", spelled="-o --out")
    force: bool = flag("--force", "Replace an existing file.")

    def beside(self, source: object) -> dict[str, Any]:
        """Return the arguments of a workflow; without `-o` the result goes beside the file `source`."""
        from densenet_deploy.workflows.outputs import default_folder

        return {"out": self.out or default_folder(source), "force": self.force}


@group(Printing)
def printing(
    as_json: bool = flag("--json", "Print one JSON object on stdout."),
    verbose: bool = flag("--verbose -v", "Log to stderr; show tracebacks of errors."),
    quiet: bool = flag("--quiet -q", "Print only results and errors."),
) -> Printing:
    """Common options."""
    return Printing(as_json, verbose, quiet)


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Read whole numbers separated by commas.

    Raises:
        UsageError: if they are not whole numbers.
    """
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as exc:
        raise UsageError(f"{option}={text}", "is not a list of whole numbers", f"write {option} 1,8,32") from exc


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Read numbers separated by commas.

    Raises:
        UsageError: if they are not numbers.
    """
    try:
        return None if text is None else tuple(float(number) for number in text.split(","))
    except ValueError as exc:
        raise UsageError(f"{option}={text}", "is not a list of numbers", f"write {option} 0.5,0.5,0.5") from exc


def size(option: str, text: str | None) -> int | tuple[int, int] | None:
    """Read a size in pixels.

    >>> size("--image-size", "224"), size("--image-size", "256x128")
    (224, (256, 128))

    Raises:
        UsageError: if it is neither one number nor height x width.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,9})(?:[xX]([0-9]{1,9}))?", text)
    if match is None:
        raise UsageError(f"{option}={text}", "is not a size in pixels", f"write {option} 224 or {option} 256x128")
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


def join_channels(line: Sequence[str]) -> list[str]:
    """Write `--mean 0.5 0.5 0.5` as `--mean 0.5,0.5,0.5`, so that commas and spaces both work.

    >>> join_channels(["export", "--mean", "0.5", "0.5", "0.5", "121", "-q"])
    ['export', '--mean', '0.5,0.5,0.5', '121', '-q']
    """
    joined: list[str] = []
    remaining = list(line)
    while remaining:
        item = remaining.pop(0)
        joined.append(item)
        values: list[str] = []
        while item in _PER_CHANNEL and remaining and _NUMBER.fullmatch(remaining[0]):
            values.append(remaining.pop(0))
        if values:
            joined.append(",".join(values))
    return joined


def _lines(path: Path) -> tuple[str, ...]:
    from densenet_deploy.runtime.classifier import read_labels

    return read_labels(path)


def _thresholds(path: Path) -> tuple[float, ...]:
    try:
        return tuple(map(float, _lines(path)))
    except ValueError as exc:
        raise DataError(path, f"holds a line that is not a number ({exc})", "write one threshold per line") from exc
