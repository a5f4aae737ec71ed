"""The files that are tried: made, or taken from an earlier run if they are still up to date.

A file is up to date if what it was made from (weights or model, calibration data, options, versions) is a key of the
cache, and the file still has the hash that is cached with it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from densenet_deploy.artifacts import Artifact, prepare_output, sha256_of, write_file
from densenet_deploy.errors import GateError, ModelFileError, UsageError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.packages import installed_versions
from densenet_deploy.records import to_plain
from densenet_deploy.variants import find_variant
from densenet_deploy.workflows.cast import CastOptions, cast
from densenet_deploy.workflows.export import ExportTarget, export_onnx
from densenet_deploy.workflows.float_model import load_float, preprocessing_of
from densenet_deploy.workflows.load import ModelRequest, is_checkpoint
from densenet_deploy.workflows.quantize.preparation import weight_bits
from densenet_deploy.workflows.quantize.quantize import quantize
from densenet_deploy.workflows.stages import Listener, ignore
from densenet_deploy.workflows.tune.cache import Facts, ResultCache
from densenet_deploy.workflows.tune.candidates import ModelFile, PrecisionOption

if TYPE_CHECKING:
    from densenet_deploy.quantize.cache import CalibrationCache

_PACKAGES: Final = ("densenet-deploy", "numpy", "onnx", "onnxscript", "onnxsim", "onnxruntime", "onnxruntime-gpu",
                    "openvino", "torch")  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A model to tune: a file at `path`, `data` of a model in memory, or the name of an untrained `variant`.

    `stem` is what the names of its files begin with.
    """

    stem: str
    path: Path | None = None
    variant: str | None = None
    data: bytes | None = None

    @classmethod
    def of(cls, model: Any) -> Source:
        """Return the source that `model` is: a path, or a model in memory that has an ONNX graph.

        Raises:
            UsageError: if it exists only as a module in memory.
            InputError: if there is no such file.
        """
        if isinstance(model, (str, os.PathLike)):
            Artifact.open(Path(model))
            return cls(Path(model).stem, Path(model))
        if not hasattr(model, "to_bytes"):
            why = "exists only in this process; candidates are timed in their own"
            raise UsageError(type(model).__name__, why, "export it first: densenet_deploy.export(module)")
        return cls(model.name, model.path) if model.path is not None else cls(model.name, data=model.to_bytes())

    @classmethod
    def of_variant(cls, name: str) -> Source:
        """Return the untrained network of a variant."""
        return cls(find_variant(name).artifact_name, variant=name)

    @property
    def is_float_file(self) -> bool:
        """Whether it is an FP32 file itself, which does not have to be exported."""
        return self.path is not None and not is_checkpoint(self.path)


@dataclass(frozen=True)
class FloatModel:
    """An FP32 model: its file, how images are prepared for it, and the facts that it carries."""

    file: ModelFile
    preprocessing: Preprocessing
    artifact: Artifact


@dataclass(frozen=True)
class BuildFailure:
    """A precision in which a model could not be written, and why."""

    model: str
    option: PrecisionOption
    reason: str

    def __str__(self) -> str:
        return f"{self.model} in {self.option.name} is not tried: {self.reason}"


@dataclass(frozen=True)
class _FileHash:
    """The cached result of a step that writes a file."""

    sha256: str


@dataclass(frozen=True)
class ModelBuilder:
    """Makes files in `folder` with the same workflows as the commands; `results` knows which are up to date."""

    folder: Path
    results: ResultCache
    calibration: Path | None = None
    samples: int = 512
    cache: CalibrationCache | None = None
    force: bool = False
    progress: Listener = ignore

    def float_model(self, source: Source) -> FloatModel:
        """Return the FP32 file of `source`, exported if necessary.

        Raises:
            DensenetDeployError: whatever `export` raises, or ModelFileError if it is not a float32 image model.
        """
        path = source.path if source.is_float_file and source.path is not None else self._exported(source)
        artifact = Artifact.open(path)
        proto = load_float(artifact)
        preprocessing = preprocessing_of(artifact, proto)
        dimension = proto.graph.input[0].type.tensor_type.shape.dim[0]
        fixed = dimension.dim_value if dimension.HasField("dim_value") else None
        file = _model_file(path, source.stem, PrecisionOption("fp32", "fp32", ()), fixed)
        return FloatModel(file, preprocessing, artifact)

    def known_float_model(self, source: Source) -> FloatModel | None:
        """Return what `float_model` would without making anything; None if the file has to be exported first."""
        if not source.is_float_file:
            known = self.results.recall(_FileHash, self._export_key(source))
            if known is None or not _is_unchanged(self._export_path(source), known):
                return None
        return self.float_model(source)

    def build(self, model: FloatModel, option: PrecisionOption) -> ModelFile | BuildFailure:
        """Return the file of `model` in a precision.

        Raises:
            DensenetDeployError: whatever `cast` and `quantize` raise, except that a missed gate or an operator without
                such a form is returned as a BuildFailure.
        """
        if option.precision == "fp32":
            return model.file
        path = self.path_of(model.file.path.stem, option)
        try:
            self._written(self.key(model, option), path, lambda: self._write(model, option, path))
        except (GateError, ModelFileError) as exc:
            return BuildFailure(model.file.base, option, exc.why)
        return _model_file(path, model.file.base, option, model.file.fixed_batch)

    def is_built(self, model: FloatModel, option: PrecisionOption) -> bool:
        """Whether the file exists and is up to date."""
        if option.precision == "fp32":
            return True
        known = self.results.recall(_FileHash, self.key(model, option))
        return known is not None and _is_unchanged(self.path_of(model.file.path.stem, option), known)

    def path_of(self, stem: str, option: PrecisionOption) -> Path:
        """Where the file of a model called `stem` goes."""
        return self.folder / (f"{stem}.onnx" if option.precision == "fp32" else f"{stem}.{option.name}.onnx")

    def key(self, model: FloatModel, option: PrecisionOption) -> Facts:
        """All that the file depends on."""
        return {
            "step": "form",
            "model": model.file.sha256,
            "precision": option.precision,
            "quantize": to_plain(option.quantize),
            "weight_bits": weight_bits() if option.quantize is not None else None,
            "calibration": data_digests(self.calibration, model.preprocessing, self.samples),
            "versions": versions(),
        }

    def _write(self, model: FloatModel, option: PrecisionOption, path: Path) -> None:
        more: dict[str, Any] = {"force": self.force, "cache": self.cache, "listener": self._progress_of(path)}
        if option.quantize is not None and self.calibration is not None:
            quantize(model.file.path, self.calibration, option.quantize, str(path), **more)
        else:
            options = CastOptions(option.precision, samples=self.samples)
            cast(model.file.path, options, self.calibration, str(path), **more)

    def _exported(self, source: Source) -> Path:
        path = self._export_path(source)
        self._written(self._export_key(source), path, lambda: self._export(source, path))
        return path

    def _export(self, source: Source, path: Path) -> None:
        if source.data is not None:
            prepare_output(path, None, force=self.force)
            write_file(path, source.data)
            return
        request = ModelRequest(variant=source.variant, weights="none" if source.path is None else str(source.path))
        export_onnx(request, ExportTarget(out=str(path), force=self.force), self._progress_of(path))

    def _export_path(self, source: Source) -> Path:
        return self.folder / f"{source.stem}.onnx"

    def _export_key(self, source: Source) -> Facts:
        weights = None if source.path is None else sha256_of(source.path)
        if source.data is not None:
            import hashlib

            weights = hashlib.sha256(source.data).hexdigest()
        return {"step": "export", "variant": source.variant, "weights": weights, "versions": versions()}

    def _written(self, key: Facts, path: Path, write: Callable[[], None]) -> None:
        def work() -> _FileHash:
            write()
            return _FileHash(sha256_of(path))

        self.results.get(_FileHash, key, work, functools.partial(_is_unchanged, path))

    def _progress_of(self, path: Path) -> Listener:
        def tell(stage: str, done: int = 0, total: int | None = None) -> None:
            self.progress(f"{path.name}: {stage}", done, total)

        return tell


def data_digests(source: Path | None, preprocessing: Preprocessing, samples: int) -> Facts | None:
    """Return the hash of every calibration file that would be read, by name; None without a source.

    Raises:
        DataError: if it does not hold calibration data.
    """
    if source is None:
        return None
    from densenet_deploy.quantize.calibration_data import open_calibration_data

    return open_calibration_data(source, preprocessing, samples).digests() or {}


@functools.cache
def versions() -> Mapping[str, str]:
    """Return the versions of the packages that files and timings depend on."""
    return installed_versions(_PACKAGES)


def _is_unchanged(path: Path, known: _FileHash) -> bool:
    return path.is_file() and sha256_of(path) == known.sha256


def _model_file(path: Path, base: str, option: PrecisionOption, fixed_batch: int | None) -> ModelFile:
    return ModelFile(path, base, option.name, option.precision, sha256_of(path), path.stat().st_size, fixed_batch)
