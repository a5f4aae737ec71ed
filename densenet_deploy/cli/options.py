"""Options that commands share, declared once, and how the words of a command line become their values.

A command takes a whole group as one parameter, annotated with the group's dataclass: `facts: ModelFacts` adds
`--image-size`, `--mean` and so on, and the function receives the `ModelFacts`. `Annotated[ModelFacts, Only(...)]` takes
a part of it. A parameter that names files or folders says with `Reads` what reads them.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args, get_origin

import typer

from densenet_deploy.errors import DataError, InputError, UnknownNameError, UsageError
from densenet_deploy.facts import Architecture, ModelFacts

if TYPE_CHECKING:
    from densenet_deploy.runtime.runner import RunnerOptions
    from densenet_deploy.workflows.batch import BatchJobOptions

Arguments = SimpleNamespace
"""The values of a command's parameters, as attributes."""

AUTO: Final = "auto"
_PER_CHANNEL: Final = ("--mean", "--std")
_NUMBER: Final = re.compile(r"-?(?!\d{3}$)[\d.][\d.eE+-]*")
"""A number, except three digits alone: 121 after `--mean 0.5 0.5 0.5` is a variant."""


class Reads:
    """What reads the files that a parameter names; they must exist before the work begins.

    Args:
        loaders: of model files, which are untrusted: `graph`, `simplifier`, `session` (see `workflows.sandbox.Loader`).
            A model may also be a name; only a word that looks like a file must exist.
        backends: those of the session, from the command's arguments; by default the file's own.
        more: further loaders, from the command's arguments.
        when: whether the file is loaded at all, from the command's arguments.
        names: words that are not files.
    """

    def __init__(
        self,
        *loaders: str,
        backends: Callable[[Arguments], Iterable[str | None]] = lambda _: (None,),
        more: Callable[[Arguments], Iterable[str]] = lambda _: (),
        when: Callable[[Arguments], bool] = lambda _: True,
        names: tuple[str, ...] = (),
    ) -> None:
        self.loaders = loaders
        self.backends = backends
        self.more = more
        self.when = when
        self.names = names


@dataclass(frozen=True)
class Only:
    """The fields of a group that a command takes."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


@dataclass(frozen=True)
class Writes:
    """What `-o` of a command names.

    Attributes:
        metavar: how the help shows it.
        default: where the result goes without it.
        suffixes: those of the files that the command writes; none if it writes a folder.
        is_strict: whether any other suffix is an error. Otherwise a suffix that is not of ours names a folder.
    """

    metavar: str
    default: str
    suffixes: tuple[str, ...] = (".onnx",)
    is_strict: bool = False

    def check(self, out: str) -> None:
        """Refuse an output that can't be, before the work.

        Raises:
            UsageError: if it has the suffix of another kind of file.
            InputError: if a file stands where its folder should be.
        """
        from densenet_deploy.artifacts import FILE_SUFFIXES

        path, suffix = Path(out), Path(out).suffix.lower()
        is_folder = out.endswith("/") or path.is_dir() or not suffix
        if not is_folder and suffix not in self.suffixes and (self.is_strict or suffix in FILE_SUFFIXES):
            kinds = " or ".join(self.suffixes) or "folder"
            raise UsageError(out, f"is not a {kinds} name", f"name a {kinds} with -o")
        existing = next((parent for parent in path.absolute().parents if parent.exists()), path)
        if not existing.is_dir():
            raise InputError(out, f"{existing} is not a folder", "choose another place with -o")


@dataclass(frozen=True)
class Output:
    """Where the result goes."""

    out: str | None = None
    force: bool = False

    def beside(self, source: object) -> dict[str, Any]:
        """Return the arguments of a workflow; without `-o` the result goes beside the file `source`."""
        from densenet_deploy.workflows.outputs import default_folder

        return {"out": self.out or default_folder(source), "force": self.force}


@dataclass(frozen=True)
class JobChoice:
    """How a batch job is cut and run."""

    shard_size: int = 1000
    format: str | None = None
    batch: int | None = None
    engine: str = "local"
    address: str | None = None
    workers: int | None = None
    resume: bool = False

    def options(self, *, force: bool) -> BatchJobOptions:
        """Return the options of the job, checked."""
        from densenet_deploy.workflows.batch import BatchJobOptions

        return BatchJobOptions(**dataclasses.asdict(self), force=force)

    def require_none(self) -> None:
        """Check that nothing is chosen where no job is asked for.

        Raises:
            UsageError: naming what is chosen.
        """
        for field in dataclasses.fields(self):
            if (value := getattr(self, field.name)) != field.default:
                text = f"--{field.name.replace('_', '-')}" + ("" if value is True else f"={value}")
                raise UsageError(text, "applies only to a batch job", "name where its rows go with -o")


@dataclass(frozen=True)
class RunnerChoice:
    """What a model runs on."""

    backend: str = AUTO
    device: str = AUTO
    threads: int | None = None
    trust_engine: bool = False

    def options(self) -> RunnerOptions:
        """Return how to run, checked."""
        from densenet_deploy.runtime.runner import RunnerOptions

        return RunnerOptions(threads=self.threads, trust_engine=self.trust_engine)


def word(names: Callable[[], Iterable[str]], check: Callable[[str], object] | None = None) -> dict[str, Any]:
    """Return the settings of an option with a value, or a list of values, among `names`.

    Shells complete it; `check`, which raises, sees each value but `auto` as soon as the line is read.
    """

    def complete(incomplete: str) -> list[str]:
        before, comma, begun = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in names() if name.startswith(begun)]

    def checked(value: Any) -> Any:
        for name in listed([value] if isinstance(value, str) else value or ()):
            if check is not None:
                check(name)
        return value

    return {"autocompletion": complete, "callback": checked}


def words(names: str) -> dict[str, Any]:
    """Return the settings of an option that shells complete with `names`, by spaces; its dataclass checks it."""
    return word(names.split)


def registered(module: str, registry: str, *more: str) -> dict[str, Any]:
    """Return the settings of an option among the names in a registry and `more`; the module is imported when needed."""

    def names() -> Any:
        return getattr(importlib.import_module(f"densenet_deploy.{module}"), registry)

    return word(lambda: (*names().names(), *more), lambda name: names().get(name))


def option(metavar: str, description: str, names: str = "", **settings: Any) -> Any:
    """Return an option with a value, which shells complete with `names`; `settings` are those of `typer.Option`."""
    return typer.Option(metavar=metavar, help=description, **(words(names) if names else {}), **settings)


def model_argument(metavar: str, description: str) -> Any:
    """Return an argument that names a model; shells complete the names of networks."""
    return typer.Argument(metavar=metavar, help=description, autocompletion=complete_source)


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

Model = Annotated[str, model_argument("MODEL", MODEL_HELP), Reads("session", backends=lambda a: (a.running.backend,))]
Variant = Annotated[str | None, option("NAME", f"{VARIANT_HELP} (default: none).", **VARIANT)]
Calibration = Annotated[
    Path, option("DIR|FILE", "Images, or a .npy or .npz file of normalized float32 (N, C, H, W)."), Reads()
]
FastDecode = Annotated[
    bool, typer.Option("--fast-decode", help="Decode JPEGs at a reduced scale: faster, not to the same bits.")
]
EngineName = Annotated[str, option("NAME", "local: this machine; ray: a Ray cluster.", "local ray")]
ClusterAddress = Annotated[
    str | None, option("ADDRESS", "--engine ray: the cluster (default: one on this machine alone).")
]
MaxDrop = Annotated[
    float | None,
    option(
        "POINTS",
        "Largest loss of top-1, or of a multilabel model's mean AUROC, on the class folders of the calibration "
        "images, in percentage points (default: no limit).",
    ),
]
MinSqnr = Annotated[float | None, option("DB", "Least SQNR of the outputs in dB (default: no limit).")]
Samples = Annotated[int, typer.Option(help="Calibration images to use at most.")]
Gates = Annotated[
    list[str] | None, option("KEY=VALUE", f"{GATE_HELP} (default: those of the precision, none for INT8).", **GATE)
]


def model_facts(
    image_size: Annotated[str | None, option("N|HxW", "Input size in pixels (default: the model's).")] = None,
    channels: Annotated[int | None, typer.Option(help="Input channels (default: the model's).")] = None,
    resize: Annotated[
        str | None,
        option(
            "N|HxW|none",
            "Pixels of the shorter side, or both sides, before the center crop "
            "(default: the model's; image size x 256/224 where only the size is given).",
        ),
    ] = None,
    interpolation: Annotated[
        str | None,
        option("NAME", "Resampling: nearest, bilinear or bicubic (default: the model's).", "nearest bilinear bicubic"),
    ] = None,
    mean: Annotated[
        str | None, option("X|X,X,X", "Subtracted from values in 0..1: one, or one per channel (default: the model's).")
    ] = None,
    std: Annotated[
        str | None, option("X|X,X,X", "Divisor after that: one, or one per channel (default: the model's).")
    ] = None,
    labels: Annotated[
        Path | None, option("FILE", "Text file with one class name per line (default: the model's)."), Reads()
    ] = None,
    task: Annotated[
        str | None,
        option(
            "NAME",
            "multiclass, multilabel, regression, features or auto (default: the model's).",
            "multiclass multilabel regression features auto",
        ),
    ] = None,
    thresholds: Annotated[
        Path | None,
        option("FILE", "multilabel: text file with one threshold in 0..1 per line (default: the model's)."),
        Reads(),
    ] = None,
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


def architecture(
    growth_rate: Annotated[int | None, typer.Option(help="Channels that each layer adds (default: the variant's).")] = (
        None
    ),
    blocks: Annotated[str | None, option("N,N,...", "Layers in each block (default: the variant's).")] = None,
    init_features: Annotated[int | None, typer.Option(help="Channels after the stem (default: the variant's).")] = None,
    compression: Annotated[
        float | None, typer.Option(help="Fraction of channels that a transition keeps (default: the variant's).")
    ] = None,
    bn_size: Annotated[
        int | None,
        typer.Option(help="Bottleneck width as a multiple of the growth rate, 0 for none (default: the variant's)."),
    ] = None,
    drop_rate: Annotated[
        float | None, typer.Option(help="Fraction of features dropped in training (default: the variant's).")
    ] = None,
    stem: Annotated[
        str | None,
        option(
            "NAME",
            "imagenet, imagenet-nopool, cifar, 3x3-pool, 3x3-nopool, deep or deep-blur (default: the variant's).",
            "imagenet imagenet-nopool cifar 3x3-pool 3x3-nopool deep deep-blur",
        ),
    ] = None,
) -> Architecture:
    """Custom architecture."""
    sizes = None if blocks is None else whole_numbers("--blocks", blocks)
    return Architecture(growth_rate, sizes, init_features, compression, bn_size, drop_rate, stem)


def runner_choice(
    backend: Annotated[str, option("NAME", f"{BACKEND_HELP}.", **BACKEND)] = AUTO,
    device: Annotated[str, option("NAME", f"{DEVICE_HELP}.", **DEVICE)] = AUTO,
    threads: Annotated[int | None, typer.Option(help="CPU threads (default: all that are available).")] = None,
    trust_engine: Annotated[
        bool,
        typer.Option(
            "--trust-engine", help="Load a TensorRT engine without a valid sidecar file; an engine is native code."
        ),
    ] = False,
) -> RunnerChoice:
    """Backend."""
    return RunnerChoice(backend, device, threads, trust_engine)


def job_choice(
    shard_size: Annotated[int, typer.Option(help="Images per shard.")] = 1000,
    format: Annotated[  # noqa: A002 - the name of the option
        str | None,
        option("NAME", "parquet, csv or jsonl (default: the file's; in a folder parquet).", "parquet csv jsonl"),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Images per call (default: the model's fixed batch, or 16).")
    ] = None,
    engine: EngineName = "local",
    address: ClusterAddress = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that run the model (default: 1; with ray as many as fit).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Classify only the shards that are missing in -o.")] = False,
) -> JobChoice:
    """Batch job, with -o."""
    return JobChoice(shard_size, format, batch, engine, address, workers, resume)


def output(
    out: Annotated[str | None, typer.Option("-o", "--out")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> Output:
    """Output."""
    return Output(out, force)


GROUPS: Final[Mapping[type, Callable[..., Any]]] = {
    ModelFacts: model_facts,
    Architecture: architecture,
    RunnerChoice: runner_choice,
    JobChoice: job_choice,
    Output: output,
}
"""Dataclass → the function that makes it: its parameters are the options, its docstring their heading in the help."""


def parameters_of(function: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    """Yield the parameters of a command's function, each group replaced by its options."""
    for parameter in _signature(function):
        group = GROUPS.get(type_of(parameter.annotation))
        if group is None:
            yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        else:
            yield from _options_of(group, metadata_of(parameter.annotation))


def arguments_of(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a command's function for the `values` of the parameters that `parameters_of` yields.

    Raises:
        UsageError, InputError: if a value of a group is invalid.
    """
    arguments = {}
    for parameter in _signature(function):
        group = GROUPS.get(type_of(parameter.annotation))
        if group is None:
            arguments[parameter.name] = values[parameter.name]
        else:
            names = [option.name for option in _options_of(group, metadata_of(parameter.annotation))]
            arguments[parameter.name] = group(**{name: values[name] for name in names})
    return arguments


def _signature(function: Callable[..., Any]) -> Iterable[inspect.Parameter]:
    return inspect.signature(function, eval_str=True).parameters.values()


def _options_of(group: Callable[..., Any], metadata: Sequence[object]) -> Iterator[inspect.Parameter]:
    chosen = next((item.names for item in metadata if isinstance(item, Only)), None)
    written = next((item for item in metadata if isinstance(item, Writes)), None)
    for parameter in _signature(group):
        if chosen is None or parameter.name in chosen:
            yield _in_panel(parameter, str(group.__doc__).rstrip("."), written)


def _in_panel(parameter: inspect.Parameter, panel: str, written: Writes | None) -> inspect.Parameter:
    kind, *metadata = get_args(parameter.annotation)
    info = copy.copy(metadata[0])
    info.rich_help_panel = panel
    if parameter.name == "out":
        assert written is not None, "a command with an Output says what it writes"
        info.metavar, info.help = written.metavar, f"Where to write (default: {written.default})."
    annotation = Annotated[(kind, info, *metadata[1:])]  # type: ignore[valid-type]
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=annotation)


def type_of(annotation: Any) -> Any:
    """Return the type of a value: `int` of `Annotated[int | None, ...]`."""
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    choices = [choice for choice in get_args(kind) if choice is not type(None)]
    return choices[0] if typing.get_origin(kind) is not list and len(choices) == 1 else kind


def metadata_of(annotation: Any) -> tuple[object, ...]:
    """Return what follows the type in an annotation."""
    return tuple(get_args(annotation)[1:]) if get_origin(annotation) is Annotated else ()


def listed(values: Iterable[str]) -> tuple[str, ...]:
    """Return the values of a repeatable option, each of which may be a list separated by commas; `auto` adds none.

    >>> listed(["onnxruntime,openvino", "torch", "auto"])
    ('onnxruntime', 'openvino', 'torch')
    """
    parts = [part.strip(" ") for value in values for part in value.split(",")]
    return tuple(dict.fromkeys(part for part in parts if part not in ("", AUTO)))


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
