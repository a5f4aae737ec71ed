"""The ONNX file that an engine is built from: found, exported, or given its precision.

What is heavy is imported where a file has to be made. A file that holds the precision already builds as it is, and
takes no more than a look at its envelope.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from densenet_deploy.artifacts import (
    CHECKPOINT_SUFFIXES,
    Artifact,
    output_path,
)
from densenet_deploy.errors import DensenetDeployError, InputError, ModelFileError, UsageError
from densenet_deploy.manifest import Manifest, Preprocessing
from densenet_deploy.packages import require_packages
from densenet_deploy.variants import DEFAULT_VARIANT, find_variant
from densenet_deploy.workflows.quantize.options import QuantizeOptions

if TYPE_CHECKING:
    from densenet_deploy.parity.compare import Parity
    from densenet_deploy.quantize.cache import CalibrationCache
    from densenet_deploy.quantize.calibration_data import CalibrationData

RECIPE: Final = "tensorrt"
QUANTIZATION: Final = QuantizeOptions(recipe=RECIPE, never_slower=False)

_PRECISION_IN_NAME: Final = re.compile(r"\.(fp32|fp16|bf16|int8)(\.[a-z]+)?$")
_SEEDED_SAMPLES: Final = 32
_SEEDED_RANGES: Final = "the ranges are those of seeded inputs: give --calibration for those of images"
_MOST_REASONS: Final = 2
_QUANTIZE: Final = f"quantize the float file with --recipe {RECIPE}, or give it with --calibration"


@dataclass(frozen=True)
class Wanted:
    """What to build an engine of.

    Attributes:
        model: an ONNX file or a checkpoint; None takes `variant`, exported if need be.
        variant: without `model`; None is 121.
        precision: `fp32`, `fp16`, `bf16`, `int8`.
        calibration: images or arrays; for `int8` of a float file, and for the ranges of `fp16`.
        quantization: how `int8` is written; its recipe is `tensorrt` whatever it says.
        out: an engine file or a folder; None is beside the model, or `artifacts/`.
        force: replace what stands where files go.
    """

    model: Path | None
    precision: str
    variant: str | None = None
    calibration: Path | None = None
    quantization: QuantizeOptions = QUANTIZATION
    out: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.model is not None and self.variant is not None:
            raise UsageError("build-trt", "was given both a file and --variant", "give one of them")
        if self.calibration is not None and self.precision not in ("int8", "fp16"):
            why = f"{self.precision} is not calibrated"
            raise UsageError("--calibration", why, "give it with --int8 or --fp16, or leave it out")
        if self.model is None and self.precision == "int8":
            self.require_calibration("a float model")

    def require_calibration(self, subject: object) -> Path:
        """Return the calibration data.

        Raises:
            UsageError: if there are none.
        """
        if self.calibration is None:
            fix = "give --calibration DIR with images like those that it will see"
            raise UsageError("--int8", f"{subject} has to be calibrated", fix)
        return self.calibration


@dataclass(frozen=True)
class Places:
    """Where the files of one build go: the engine, the ONNX with the precision inside, and an exported float one."""

    engine: Path
    onnx: Path
    exported: Path

    @classmethod
    def of(cls, wanted: Wanted) -> Places:
        """Follow `out`, and name files after the model.

        Raises:
            UsageError: if `out` names a file of another kind, or there is no such variant.
        """
        stem = _stem(wanted)
        engine = output_path(_folder_or_file(wanted), f"{stem}.{wanted.precision}.engine")
        suffix = f".{wanted.precision}.{RECIPE}" if wanted.precision == "int8" else f".{wanted.precision}"
        own = engine.stem.removesuffix(f".{wanted.precision}")
        return cls(engine, engine.with_name(f"{own}{suffix}.onnx"), engine.with_name(f"{stem}.onnx"))


@dataclass(frozen=True)
class Graph:
    """An ONNX file that holds the precision, the facts of its model, and its parity with the float file."""

    path: Path
    manifest: Manifest | None
    parity: Parity | None = None
    notes: tuple[str, ...] = ()


def is_parsed(wanted: Wanted) -> bool:
    """Whether this process will parse the file; one that says it holds its precision goes to the process that builds.

    Raises:
        InputError: if there is no such file, or it is no model.
    """
    if wanted.model is None:
        return False
    source = Artifact.open(wanted.model)
    return source.manifest is None or not holds(source, wanted.precision)


def source_of(wanted: Wanted, places: Places) -> Artifact | None:
    """Look at the file to start from; None where one has to be exported first.

    Raises:
        InputError: if there is no such file.
        ModelFileError: if it is no model, or holds another precision than was asked for.
        UsageError: if it is float, INT8 was asked for, and there is nothing to calibrate with.
    """
    if wanted.model is None:
        return _exported_before(wanted, places.exported)
    if wanted.model.suffix.lower() in CHECKPOINT_SUFFIXES:
        if wanted.precision == "int8":
            wanted.require_calibration(wanted.model)
        Artifact.open(wanted.model)
        return None
    source = Artifact.open(wanted.model)
    if source.kind != "onnx":
        raise ModelFileError(wanted.model, f"is an {source.kind} file", "give an .onnx file or a checkpoint")
    _check_precision(source, wanted)
    return source


def export_source(wanted: Wanted, places: Places) -> tuple[Artifact, tuple[str, ...]]:
    """Export the variant or checkpoint to a float ONNX file and return it with what export remarked.

    Raises:
        DensenetDeployError: whatever `export_onnx` raises.
    """
    from densenet_deploy.workflows.export import export

    source = wanted.variant or DEFAULT_VARIANT if wanted.model is None else wanted.model
    model = export(source, out=places.exported, force=wanted.force)
    assert model.artifact is not None
    return model.artifact, model.notes


def graph_of(source: Artifact, wanted: Wanted, places: Places, cache: CalibrationCache | None) -> Graph:
    """Return the file itself if it holds the precision, or write one that does.

    Raises:
        DensenetDeployError: whatever `quantize` or `cast_model` raise.
    """
    if holds(source, wanted.precision):
        return Graph(source.path, source.manifest)
    require_packages("export", "onnx", "onnxscript")
    if wanted.precision == "int8":
        return _quantized(source, wanted, places, cache)
    return _cast(source, wanted, places, cache)


def holds(source: Artifact, precision: str) -> bool:
    """Whether the file computes in `precision` as it is."""
    return source.precision == precision


def calibration_data(source: Artifact, wanted: Wanted) -> CalibrationData | None:
    """Open the calibration data that were given, as the model wants to see them.

    Raises:
        DataError: if they cannot be used.
    """
    if wanted.calibration is None:
        return None
    from densenet_deploy.quantize.calibration_data import open_calibration_data

    return open_calibration_data(wanted.calibration, _preprocessing(source), wanted.quantization.samples)


def _preprocessing(source: Artifact) -> Preprocessing:
    if source.manifest is not None:
        return source.manifest.preprocessing
    require_packages("export", "onnx")
    from densenet_deploy.workflows.load import load, preprocessing_of

    return preprocessing_of(load(source.path))


def _cast(source: Artifact, wanted: Wanted, places: Places, cache: CalibrationCache | None) -> Graph:
    """Write the FP16 or BF16 form; without images, ranges are those of seeded inputs."""
    from densenet_deploy.workflows.cast import CastOptions, CastReport, cast
    from densenet_deploy.workflows.samples import seeded_samples

    options = CastOptions(wanted.precision, wanted.quantization.samples)
    seeded = wanted.calibration is None and wanted.precision == "fp16"
    samples = list(seeded_samples(_SEEDED_SAMPLES, _preprocessing(source))) if seeded else wanted.calibration
    made = cast(
        source.path, options, calibration=samples, out=places.onnx, force=wanted.force, cache=None if seeded else cache
    )
    assert isinstance(made.report, CastReport)
    kept_nodes = made.report.float_nodes
    reasons = ", ".join(f"{name} ({why})" for name, why in itertools.islice(kept_nodes.items(), _MOST_REASONS))
    kept = (f"{len(kept_nodes)} nodes stay in float32: {reasons}",) if reasons else ()
    ranges = (_SEEDED_RANGES,) if seeded else ()
    return Graph(places.onnx, made.manifest, made.report.parity, (*made.notes, *kept, *ranges))


def _quantized(source: Artifact, wanted: Wanted, places: Places, cache: CalibrationCache | None) -> Graph:
    from densenet_deploy.workflows.quantize.quantize import QuantizeReport, quantize

    options = dataclasses.replace(wanted.quantization, recipe=RECIPE, never_slower=False)
    calibration = wanted.require_calibration(source.path)
    made = quantize(source.path, calibration, options, out=places.onnx, force=wanted.force, cache=cache)
    assert isinstance(made.report, QuantizeReport)
    return Graph(places.onnx, made.manifest, made.report.parity, made.notes)


def _exported_before(wanted: Wanted, path: Path) -> Artifact | None:
    """The float file that an earlier export of the variant left, if that is what stands there."""
    variant = find_variant(wanted.variant or DEFAULT_VARIANT)
    try:
        found = Artifact.open(path)
    except DensenetDeployError:
        return None  # nothing there, or a stranger that export will not replace
    is_it = found.manifest is not None and found.manifest.variant == variant.name and found.precision == "fp32"
    return found if is_it else None


def _check_precision(source: Artifact, wanted: Wanted) -> None:
    held, asked = source.precision, wanted.precision
    if held == "int8":
        _check_int8(source, asked)
    elif held not in ("fp32", asked):
        fix = f"give --{held}, or the float32 file" if held in ("fp16", "bf16") else "give a float32 file"
        raise ModelFileError(source.path, f"holds {held} weights, and {asked} was asked for", fix)
    elif held == "fp32" and asked == "int8":
        wanted.require_calibration(source.path)
    elif source.manifest is None:
        _refuse_quantized(source, asked)


def _refuse_quantized(source: Artifact, asked: str) -> None:
    """Refuse a stranger's file that stores floats and quantizes them when it runs."""
    require_packages("export", "onnx")
    from densenet_deploy.graph.onnx_file import has_quantization, load_onnx

    if has_quantization(load_onnx(source.path)):
        raise ModelFileError(source.path, f"is quantized, and {asked} was asked for", "give the float file")


def _check_int8(source: Artifact, asked: str) -> None:
    """Refuse an INT8 file that TensorRT would refuse or, worse, take in silence."""
    if asked != "int8":
        raise ModelFileError(source.path, f"is quantized, and {asked} was asked for", "give --int8 or the float file")
    recipe = source.manifest.recipe if source.manifest is not None else None
    if recipe == RECIPE:
        return
    if recipe is not None:
        raise ModelFileError(source.path, f"was quantized by the recipe {recipe}, not {RECIPE}", _QUANTIZE)
    require_packages("export", "onnx")
    from densenet_deploy.graph.onnx_file import load_onnx
    from densenet_deploy.quantize.checks import check_quantized

    found = check_quantized(load_onnx(source.path), RECIPE)
    if found:
        raise ModelFileError(source.path, f"is not quantized as TensorRT wants it: the node {found[0]}", _QUANTIZE)


def _stem(wanted: Wanted) -> str:
    if wanted.model is None:
        return find_variant(wanted.variant or DEFAULT_VARIANT).artifact_name
    stem = _PRECISION_IN_NAME.sub("", wanted.model.stem)
    if not stem:
        raise InputError(wanted.model, "has no name before its suffix", "rename it")
    return stem


def _folder_or_file(wanted: Wanted) -> str | None:
    """`out`, or the folder of the model."""
    if wanted.out is not None or wanted.model is None or wanted.model.suffix.lower() in CHECKPOINT_SUFFIXES:
        return wanted.out
    return f"{wanted.model.parent}/"
