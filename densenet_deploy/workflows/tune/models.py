"""The files that are tried: made, or taken from an earlier run if they are still up to date.

A file is up to date if what it was made from (weights or model, calibration data, options, versions) is a key of the
cache, and the file still has the hash that is cached with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

from densenet_deploy.artifacts import Artifact, is_checkpoint_name, model_sha256
from densenet_deploy.errors import GateError, ModelFileError
from densenet_deploy.manifest import Manifest, Preprocessing
from densenet_deploy.model import Model
from densenet_deploy.packages import installed_versions
from densenet_deploy.records import to_plain
from densenet_deploy.variants import find_variant, is_variant
from densenet_deploy.workflows.cast import CastOptions, cast
from densenet_deploy.workflows.export import export
from densenet_deploy.workflows.float_model import NARROW, float32_form, require_float32
from densenet_deploy.workflows.load import LoadOptions, is_file_name, load, preprocessing_of
from densenet_deploy.workflows.prune.options import PruneOptions
from densenet_deploy.workflows.prune.prune import prune
from densenet_deploy.workflows.quantize.preparation import weight_bits
from densenet_deploy.workflows.quantize.quantize import quantize
from densenet_deploy.workflows.stages import Listener, ignore
from densenet_deploy.workflows.tune.cache import Facts, ResultCache
from densenet_deploy.workflows.tune.candidates import GIVEN, ModelFile, PrecisionOption

if TYPE_CHECKING:
    from densenet_deploy.quantization.cache import CalibrationCache

_PACKAGES: Final = ("densenet-deploy", "numpy", "onnx", "onnxscript", "onnxsim", "onnxruntime", "onnxruntime-gpu",
                    "openvino", "torch")  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A model to tune: a file at `path`, a `model` in memory, or the name of an untrained `variant`.

    `stem` is what the names of its files begin with.
    """

    stem: str
    path: Path | None = None
    variant: str | None = None
    model: Model | None = None

    @classmethod
    def of(cls, source: Any, **stated: Unpack[LoadOptions]) -> Source:
        """Return what `source` is: a path, or whatever else `load` takes, with the facts that are stated.

        Raises:
            InputError: if the file does not exist.
            UsageError: if it is not a source.
        """
        if not stated and is_file_name(source):
            found = Artifact.open(Path(source))
            if found.kind != "onnx" or (found.manifest is not None and found.precision not in NARROW):
                return cls(Path(source).stem, Path(source))
        if not stated and isinstance(source, str) and is_variant(source):
            return cls(find_variant(source).artifact_name, variant=source)
        model = float32_form(load(source, **stated))
        if model.path is not None and Artifact.open(model.path).manifest == model.manifest:
            return cls(model.name, model.path)
        return cls(model.name, model=model)

    @property
    def is_float_file(self) -> bool:
        """Whether it is an FP32 file itself, which does not have to be exported."""
        return self.path is not None and not is_checkpoint_name(self.path)

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks of what read it."""
        return () if self.model is None else self.model.notes

    @property
    def weights(self) -> str | None:
        """The hash of its weights; None if they are untrained."""
        if self.path is not None:
            return model_sha256(self.path)
        if self.model is None:
            return None
        if self.model.artifact is not None:
            return self.model.artifact.sha256()
        return None if self.model.manifest is None else self.model.manifest.weights.sha256


@dataclass(frozen=True)
class FloatModel:
    """An FP32 model: its file, how images are prepared for it, and the facts that it carries."""

    file: ModelFile
    preprocessing: Preprocessing
    manifest: Manifest | None


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
        model = Model(path.stem, artifact.manifest, artifact=artifact)  # `load` would warn of untrained weights again
        require_float32(model)
        dimension = model.onnx.graph.input[0].type.tensor_type.shape.dim[0]
        fixed = dimension.dim_value if dimension.HasField("dim_value") else None
        file = _model_file(path, source.stem, PrecisionOption(GIVEN, "fp32", ()), fixed)
        return FloatModel(file, preprocessing_of(model), model.manifest)

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
        if option.name == GIVEN:
            return model.file
        path = self.path_of(model.file.path.stem, option)
        try:
            source = model.file.path if option.prune is None else self._pruned(model, option.prune)
            if path != source:
                self._written(self.key(model, option), path, lambda: self._write(source, option, path))
        except (GateError, ModelFileError) as exc:
            return BuildFailure(model.file.base, option, exc.why)
        return _model_file(path, model.file.base, option, model.file.fixed_batch)

    def is_built(self, model: FloatModel, option: PrecisionOption) -> bool:
        """Whether the file exists and is up to date."""
        if option.name == GIVEN:
            return True
        known = self.results.recall(_FileHash, self.key(model, option))
        return known is not None and _is_unchanged(self.path_of(model.file.path.stem, option), known)

    def path_of(self, stem: str, option: PrecisionOption) -> Path:
        """Where the file of a model called `stem` goes."""
        return self.folder / (f"{stem}.onnx" if option.name == GIVEN else f"{stem}.{option.name}.onnx")

    def key(self, model: FloatModel, option: PrecisionOption) -> Facts:
        """All that the file depends on."""
        return {
            "step": "form",
            "model": model.file.sha256,
            "precision": option.precision,
            "quantize": to_plain(option.quantize),
            "prune": to_plain(option.prune),
            "weight_bits": weight_bits() if option.quantize is not None else None,
            "calibration": data_digests(self.calibration, model.preprocessing, self.samples),
            "versions": versions(),
        }

    def _pruned(self, model: FloatModel, how: PruneOptions) -> Path:
        """Return the FP32 file of the pruned network, which its other forms are made from."""
        option = PrecisionOption(f"pruned-{how.ratio:g}", "fp32", (), prune=how)
        path = self.path_of(model.file.path.stem, option)
        more: dict[str, Any] = {"out": path, "progress": self._progress_of(path)}
        # The cache knows whether what is there is ours: made from the same, or from other images or options.
        is_ours = self.results.recall(_FileHash, self.key(model, option)) is not None
        is_ours = is_ours or ((there := _hash_of(path)) is not None and self.results.holds(there))
        self._written(
            self.key(model, option),
            path,
            lambda: prune(model.file.path, self.calibration, how, force=self.force or is_ours, **more),
        )
        return path

    def _write(self, source: Path, option: PrecisionOption, path: Path) -> None:
        more: dict[str, Any] = {"force": self.force, "cache": self.cache, "progress": self._progress_of(path)}
        if option.quantize is not None and self.calibration is not None:
            quantize(source, self.calibration, option.quantize, out=path, **more)
        else:
            options = CastOptions(option.precision, samples=self.samples)
            cast(source, options, calibration=self.calibration, out=path, **more)

    def _exported(self, source: Source) -> Path:
        path, network = self._export_path(source), source.model or source.path or source.variant
        how: dict[str, Any] = {"out": path, "force": self.force, "progress": self._progress_of(path)}
        self._written(self._export_key(source), path, lambda: export(network, **how))
        return path

    def _export_path(self, source: Source) -> Path:
        return self.folder / f"{source.stem}.onnx"

    def _export_key(self, source: Source) -> Facts:
        facts = None if source.model is None else to_plain(source.model.manifest)
        weights = {"variant": source.variant, "weights": source.weights, "facts": facts}
        return {"step": "export", **weights, "versions": versions()}

    def _written(self, key: Facts, path: Path, write: Callable[[], object]) -> None:
        def work() -> _FileHash:
            write()
            return _FileHash(model_sha256(path))

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
    from densenet_deploy.quantization.calibration_data import open_calibration_data

    return open_calibration_data(source, preprocessing, samples).digests() or {}


@functools.cache
def versions() -> Mapping[str, str]:
    """Return the versions of the packages that files and timings depend on."""
    return installed_versions(_PACKAGES)


def _is_unchanged(path: Path, known: _FileHash) -> bool:
    return _hash_of(path) == known


def _hash_of(path: Path) -> _FileHash | None:
    """Return the hash of a file that was made; None if it is not there, or damaged."""
    try:
        return _FileHash(model_sha256(path)) if path.is_file() else None
    except ModelFileError:
        return None


def _model_file(path: Path, base: str, option: PrecisionOption, fixed_batch: int | None) -> ModelFile:
    return ModelFile(path, base, option.name, option.precision, model_sha256(path), path.stat().st_size, fixed_batch)
