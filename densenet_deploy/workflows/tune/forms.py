"""Make the files that a tuning tries, or take those that an earlier run made and that are still up to date.

A file is up to date when what it was made from (weights or model, calibration data, options, versions) hashes to a key
that is remembered, and the file at that place still has the hash that is remembered with it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from densenet_deploy.artifacts import Artifact, sha256_of
from densenet_deploy.errors import GateError, ModelFileError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.variants import find_variant
from densenet_deploy.workflows.cast import CastOptions, cast
from densenet_deploy.workflows.export import export
from densenet_deploy.workflows.float_model import require_float32
from densenet_deploy.workflows.load import is_checkpoint, load, preprocessing_of
from densenet_deploy.workflows.quantize.preparation import weight_bits
from densenet_deploy.workflows.quantize.quantize import quantize
from densenet_deploy.workflows.stages import Listener, ignore
from densenet_deploy.workflows.tune.candidates import Form, ModelFile
from densenet_deploy.workflows.tune.memory import Memory

if TYPE_CHECKING:
    from densenet_deploy.quantize.cache import CalibrationCache

_PACKAGES: Final = ("densenet-deploy", "numpy", "onnx", "onnxscript", "onnxsim", "onnxruntime", "onnxruntime-gpu",
                    "openvino", "torch")  # fmt: skip

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A model to tune: an ONNX file or a checkpoint (`path`), or the name of a `variant`, whose weights are `none`."""

    path: Path | None = None
    variant: str | None = None

    @property
    def stem(self) -> str:
        """What the names of its files begin with."""
        return self.path.stem if self.path is not None else find_variant(str(self.variant)).artifact_name

    @property
    def is_made(self) -> bool:
        """Whether it is the float file itself."""
        return self.path is not None and not is_checkpoint(self.path)


@dataclass(frozen=True)
class Base:
    """A float model: its file, how images are prepared for it, and the facts it carries."""

    file: ModelFile
    preprocessing: Preprocessing
    artifact: Artifact


@dataclass(frozen=True)
class Refused:
    """A form that could not be made, and why."""

    form: Form
    why: str


@dataclass(frozen=True)
class Workshop:
    """Makes files in `folder` by the roads that a user would take; `memory` knows which are up to date."""

    folder: Path
    memory: Memory
    calibration: Path | None = None
    samples: int = 512
    cache: CalibrationCache | None = None
    force: bool = False
    listener: Listener = ignore

    def base(self, source: Source) -> Base:
        """Return the float file of `source`, exported if it is none yet.

        Raises:
            DensenetDeployError: whatever `export_onnx` raises, or ModelFileError if it is no float32 image model.
        """
        path = source.path if source.is_made and source.path is not None else self._exported(source)
        model = load(path)
        require_float32(model)
        preprocessing, artifact = preprocessing_of(model), model.artifact
        assert artifact is not None
        dimension = model.onnx.graph.input[0].type.tensor_type.shape.dim[0]
        fixed = dimension.dim_value if dimension.HasField("dim_value") else None
        form = Form("fp32", "fp32", ())
        file = _model_file(path, source.stem, form, fixed)
        return Base(file, preprocessing, artifact)

    def known_base(self, source: Source) -> Base | None:
        """Return what `base` would without making anything; None where the file has to be exported first."""
        if source.is_made:
            return self.base(source)
        known = self.memory.recall(self._export_key(source), functools.partial(_unchanged, self._base_path(source)))
        return self.base(source) if known is not None else None

    def make(self, base: Base, form: Form) -> ModelFile | Refused:
        """Return the file of `base` in `form`.

        Raises:
            DensenetDeployError: whatever `cast` and `quantize` raise, but for gates that are missed and operators that
                have no such form: that is the answer Refused.
        """
        if form.precision == "fp32":
            return base.file
        path = self.path_of(base, form)
        try:
            self.memory.step(self.key(base, form), functools.partial(_unchanged, path), self._work(base, form, path))
        except (GateError, ModelFileError) as exc:
            return Refused(form, exc.why)
        return _model_file(path, base.file.base, form, base.file.fixed_batch)

    def is_made(self, base: Base, form: Form) -> bool:
        """Whether the file is there and up to date."""
        unchanged = functools.partial(_unchanged, self.path_of(base, form))
        return form.precision == "fp32" or self.memory.recall(self.key(base, form), unchanged) is not None

    def path_of(self, base: Base, form: Form) -> Path:
        """Where the file of `base` in `form` goes."""
        return self.folder / f"{base.file.path.stem}.{form.name}.onnx"

    def key(self, base: Base, form: Form) -> Facts:
        """All that the file of `form` depends on."""
        how = None if form.quantize is None else dataclasses.asdict(form.quantize)
        return {
            "step": "form",
            "model": base.file.sha256,
            "precision": form.precision,
            "quantize": how,
            "weight_bits": weight_bits() if how else None,
            "calibration": data_digests(self.calibration, base.preprocessing, self.samples),
            "versions": versions(),
        }

    def _work(self, base: Base, form: Form, path: Path) -> Callable[[], tuple[Path, Facts]]:
        def work() -> tuple[Path, Facts]:
            self._make(base, form, path)
            return path, {"sha256": sha256_of(path)}

        return work

    def _make(self, base: Base, form: Form, path: Path) -> None:
        more: dict[str, Any] = {"force": self.force, "cache": self.cache, "progress": self._named(path)}
        if form.quantize is not None and self.calibration is not None:
            quantize(base.file.path, self.calibration, form.quantize, out=path, **more)
        else:
            options = CastOptions(form.precision, samples=self.samples)
            cast(base.file.path, options, calibration=self.calibration, out=path, **more)

    def _exported(self, source: Source) -> Path:
        path = self._base_path(source)

        def work() -> tuple[Path, Facts]:
            export(source.path or source.variant, out=path, force=self.force, progress=self._named(path))
            return path, {"sha256": sha256_of(path)}

        return self.memory.step(self._export_key(source), functools.partial(_unchanged, path), work)

    def _base_path(self, source: Source) -> Path:
        return self.folder / f"{source.stem}.onnx"

    def _export_key(self, source: Source) -> Facts:
        weights = None if source.path is None else sha256_of(source.path)
        return {"step": "export", "variant": source.variant, "weights": weights, "versions": versions()}

    def _named(self, path: Path) -> Listener:
        def listen(stage: str, done: int = 0, total: int | None = None) -> None:
            self.listener(f"{path.name}: {stage}", done, total)

        return listen


def data_digests(source: Path | None, preprocessing: Preprocessing, samples: int) -> Facts | None:
    """Return the hash of every calibration file that would be read, by name; None without a source.

    Raises:
        DataError: if it is no calibration data.
    """
    if source is None:
        return None
    from densenet_deploy.quantize.calibration_data import open_calibration_data

    return open_calibration_data(source, preprocessing, samples).digests() or {}


@functools.cache
def versions() -> Facts:
    """Return the versions of the packages that files and timings depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _unchanged(path: Path, facts: Facts) -> Path | None:
    """Return `path` where the file there still is what the step left."""
    return path if path.is_file() and sha256_of(path) == facts["sha256"] else None


def _model_file(path: Path, base: str, form: Form, fixed_batch: int | None) -> ModelFile:
    return ModelFile(path, base, form.name, form.precision, sha256_of(path), path.stat().st_size, fixed_batch)
