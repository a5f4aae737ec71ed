"""What an engine is built of: the source, its options, and where the files go; and whether the source can be built.

Only the envelope of an ONNX file is read here, unless it has no manifest that states what it holds.
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from densenet_deploy.artifacts import Artifact, StrPath, is_checkpoint_name, output_path
from densenet_deploy.engines.options import BuildOptions, choose_flavour
from densenet_deploy.errors import DensenetDeployError, InputError, ModelFileError, UsageError
from densenet_deploy.model import Model
from densenet_deploy.options import or_default
from densenet_deploy.packages import require_packages
from densenet_deploy.variants import DEFAULT_VARIANT, find_variant, is_variant
from densenet_deploy.workflows.outputs import default_folder

if TYPE_CHECKING:
    from densenet_deploy.workflows.load import LoadOptions
    from densenet_deploy.workflows.quantize.options import QuantizeOptions

RECIPE: Final = "tensorrt"

_DEFAULT_SAMPLES: Final = 512
_GRAPH_SUFFIXES: Final = (".onnx", ".xml", ".engine")
_PRECISION_IN_NAME: Final = re.compile(r"\.(fp32|fp16|bf16|int8)(\.[a-z]+)?$")
_QUANTIZE: Final = f"quantize the FP32 file with --recipe {RECIPE}, or give it with --calibration"


@dataclass(frozen=True)
class BuildRequest:
    """What to build an engine of, how, and where the files go.

    Attributes:
        source: an ONNX file, a checkpoint, the name of a variant or of public weights, or a model in memory.
        options: of the build, with a definite flavour.
        calibration: images or arrays, for `int8` of an FP32 graph and for the ranges of `fp16`.
        quantization: how `int8` is written, and how many images are used; None for a build that needs neither.
        out: an engine file or a folder; None is beside the model file, else `artifacts/`.
        force: replace whatever stands where files go.
        stated: facts about a source that is still to be loaded; see `load`.

    Raises:
        UsageError: if an option is invalid, or of no use with another.
        InputError: if files cannot be named after the source.
    """

    source: Model | Path | str
    options: BuildOptions
    calibration: Any = None
    quantization: QuantizeOptions | None = None
    out: StrPath | None = None
    force: bool = False
    stated: LoadOptions = field(default_factory=dict)  # type: ignore[assignment]

    @classmethod
    def of(
        cls,
        source: Any,
        options: BuildOptions | None,
        quantization: QuantizeOptions | None,
        stated: LoadOptions,
        **others: Any,
    ) -> BuildRequest:
        """Fill in what was left open, and load a source that is neither a file nor a name."""
        options = or_default(options, BuildOptions)
        options = dataclasses.replace(options, flavour=choose_flavour(options.flavour))
        if options.precision == "int8":
            from densenet_deploy.workflows.quantize.options import QuantizeOptions  # numpy

            quantization = dataclasses.replace(quantization or QuantizeOptions(), recipe=RECIPE, never_slower=False)
        known, left = _known_source(source, stated)
        return cls(known, options, quantization=quantization, stated=left, **others)

    def __post_init__(self) -> None:
        if self.calibration is not None and self.precision not in ("int8", "fp16"):
            why = f"{self.precision} does not use calibration data"
            raise UsageError("--calibration", why, "give it with --int8 or --fp16, or leave it out")
        if self.precision == "int8" and self.is_network:
            self.require_calibration()
        if self.is_named:
            _ = self.engine  # where it goes has to be clear before anything is made

    @property
    def precision(self) -> str:
        """That of the engine."""
        return self.options.precision

    @property
    def samples(self) -> int:
        """How many images to calibrate on, at most."""
        return _DEFAULT_SAMPLES if self.quantization is None else self.quantization.samples

    @property
    def is_network(self) -> bool:
        """Whether the source holds no graph, and has to be exported."""
        if isinstance(self.source, Model):
            return self.source.artifact is None or self.source.artifact.kind == "checkpoint"
        return isinstance(self.source, str) or is_checkpoint_name(self.source)

    @property
    def is_named(self) -> bool:
        """Whether files can be named after the source; otherwise it has to be loaded first."""
        return not isinstance(self.source, str) or is_variant(self.source)

    @property
    def path(self) -> Path | None:
        """The file of the source, if it is one."""
        if isinstance(self.source, Model):
            return self.source.path
        return self.source if isinstance(self.source, Path) else None

    @property
    def stem(self) -> str:
        """What files are named after: the model, without the precision in its name."""
        if isinstance(self.source, str):
            return find_variant(self.source).artifact_name
        name = self.source.name if isinstance(self.source, Model) else self.source.stem
        stem = _PRECISION_IN_NAME.sub("", name)
        if not stem:
            raise InputError(self.source, "has no name before its suffix", "rename it")
        return stem

    @property
    def engine(self) -> Path:
        """Where the engine goes."""
        out = default_folder(self.path) if self.out is None else os.fspath(self.out)
        return output_path(out, f"{self.stem}.{self.precision}.engine")

    @property
    def onnx(self) -> Path:
        """Where the ONNX file with the precision inside goes."""
        suffix = f".{self.precision}.{RECIPE}" if self.precision == "int8" else f".{self.precision}"
        own = self.engine.stem.removesuffix(f".{self.precision}")
        return self.engine.with_name(f"{own}{suffix}.onnx")

    @property
    def exported(self) -> Path:
        """Where the FP32 file of an exported network goes."""
        return self.engine.with_name(f"{self.stem}.onnx")

    def named(self) -> BuildRequest:
        """Return a request whose files have names; public weights are loaded for that."""
        if self.is_named:
            return self
        from densenet_deploy.workflows.load import load

        return dataclasses.replace(self, source=load(self.source, **self.stated), stated={})

    def require_calibration(self) -> Any:
        """Return the calibration data.

        Raises:
            UsageError: if there are none.
        """
        if self.calibration is None:
            fix = "give --calibration DIR with images like those that the model will see"
            raise UsageError("--int8", f"{self.source} is not quantized, and has to be calibrated", fix)
        return self.calibration


def _known_source(source: Any, stated: LoadOptions) -> tuple[Model | Path | str, LoadOptions]:
    """Return the file, name or model that `source` is, and the facts that are still to be applied to it."""
    left: dict[str, Any] = dict(stated)
    if source is None and "architecture" not in left:
        source = left.pop("variant", None) or DEFAULT_VARIANT
    if isinstance(source, (str, os.PathLike)):
        if Path(source).suffix.lower() in _GRAPH_SUFFIXES or is_checkpoint_name(Path(source)):
            return Path(source), cast("LoadOptions", left)
        name = os.fspath(source)
        if not is_variant(name):
            from densenet_deploy.workflows.load import check_names

            check_names(name, cast("LoadOptions", left))
        return name, cast("LoadOptions", left)
    if isinstance(source, Model) and not left:
        return source, stated
    from densenet_deploy.workflows.load import load

    return load(source, **stated), {}


def is_parsed(source: StrPath, precision: str) -> bool:
    """Return whether this process parses a file: a graph that states and holds the precision is only built.

    Raises:
        InputError: if the file does not exist or is not a model.
    """
    if Path(source).suffix.lower() != ".onnx":
        return True
    artifact = Artifact.open(source)
    return artifact.manifest is None or artifact.precision != precision


def graph_source(request: BuildRequest) -> Model | None:
    """Look at the graph to start from; None where a network has to be exported first.

    Raises:
        InputError: if the file does not exist.
        ModelFileError: if it is not a graph, or holds another precision than was asked for.
        UsageError: if it is FP32, INT8 was asked for, and there is nothing to calibrate with.
    """
    source = request.source
    if request.is_network:
        if isinstance(source, Path):
            Artifact.open(source)
        return _exported_before(request) if isinstance(source, str) and request.is_named else None
    if isinstance(source, Path):
        source = _opened(source, request.stated)
    assert isinstance(source, Model)
    if not source.is_onnx:
        kind = "unknown" if source.artifact is None else source.artifact.kind
        raise ModelFileError(source.path, f"is an {kind} file", "give an .onnx file or a checkpoint")
    _check_precision(source, request)
    return source


def _opened(path: Path, stated: LoadOptions) -> Model:
    """Return the graph in a file; only the envelope of one of ours is looked at, unless facts are stated."""
    artifact = Artifact.open(path)
    if stated or artifact.manifest is None:
        from densenet_deploy.workflows.load import load

        return load(path, **stated)
    return Model(path.stem, artifact.manifest, artifact=artifact)


def _exported_before(request: BuildRequest) -> Model | None:
    """Return the FP32 file that an earlier export of the variant left, if that is what stands there."""
    if request.stated:
        return None
    variant, path = find_variant(str(request.source)), request.exported
    try:
        found = Artifact.open(path)
    except DensenetDeployError:
        return None  # nothing there, or another file, which export will not replace
    is_it = found.manifest is not None and found.manifest.variant == variant.name and found.precision == "fp32"
    return Model(path.stem, found.manifest, artifact=found) if is_it else None


def _check_precision(model: Model, request: BuildRequest) -> None:
    held, asked, subject = model.precision, request.precision, model.path or model.name
    if held == "int8":
        _check_int8(model, asked)
    elif held not in ("fp32", asked):
        fix = f"give --{held}, or the FP32 file" if held in ("fp16", "bf16") else "give an FP32 file"
        raise ModelFileError(subject, f"holds {held} weights, and {asked} was asked for", fix)
    elif held == "fp32" and asked == "int8":
        request.require_calibration()
    elif model.manifest is None or model.manifest.is_third_party:
        _refuse_quantized(model, asked)


def _refuse_quantized(model: Model, asked: str) -> None:
    """Refuse a third-party file that stores FP32 weights and quantizes them when it runs."""
    require_packages("export", "onnx")
    from densenet_deploy.graph.onnx_file import has_quantization

    if has_quantization(model.onnx):
        subject = model.path or model.name
        raise ModelFileError(subject, f"is quantized, and {asked} was asked for", "give the FP32 file")


def _check_int8(model: Model, asked: str) -> None:
    """Refuse an INT8 file that TensorRT would refuse or, worse, accept silently."""
    subject = model.path or model.name
    if asked != "int8":
        raise ModelFileError(subject, f"is quantized, and {asked} was asked for", "give --int8 or the FP32 file")
    recipe = model.manifest.recipe if model.manifest is not None else None
    if recipe == RECIPE:
        return
    if recipe is not None:
        raise ModelFileError(subject, f"was quantized by the recipe {recipe}, not {RECIPE}", _QUANTIZE)
    require_packages("export", "onnx")
    from densenet_deploy.quantization.checks import check_quantized

    found = check_quantized(model.onnx, RECIPE)
    if found:
        raise ModelFileError(subject, f"is not quantized as TensorRT needs it: the node {found[0]}", _QUANTIZE)
