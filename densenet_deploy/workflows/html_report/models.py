"""The models that the HTML report is about: files with hashes, the facts they carry, what inspecting them says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from densenet_deploy.artifacts import Artifact, os_errors_about, sha256_of
from densenet_deploy.errors import MissingPackageError, UsageError, printable
from densenet_deploy.manifest import Manifest
from densenet_deploy.onnx_envelope import external_files
from densenet_deploy.runtime.sidecar import sidecar_path
from densenet_deploy.workflows.inspect.engine import InspectEngineReport, inspect_engine
from densenet_deploy.workflows.inspect.inspect import InspectReport, inspect_file


@dataclass(frozen=True)
class FileFacts:
    """A file, its length in bytes and the SHA-256 of its bytes, in hex."""

    path: Path
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileFacts:
        """Look at the file.

        Raises:
            InputError: if there is none.
        """
        with os_errors_about(path):
            return cls(path, path.stat().st_size, sha256_of(path))


@dataclass(frozen=True)
class LayerLine:
    """A layer, its operator, and the precision that it computes in."""

    name: str
    operator: str
    precision: str


@dataclass(frozen=True)
class ModelFacts:
    """A model: `files`, of which the first is itself, what it holds, and how its layers compute, as `proof` says.

    `architecture` is None where the file does not say which network it is.
    """

    kind: str
    precision: str
    files: tuple[FileFacts, ...]
    manifest: Manifest | None
    layers: tuple[LayerLine, ...]
    proof: str
    architecture: InspectReport | None
    notes: tuple[str, ...]

    @property
    def path(self) -> Path:
        return self.files[0].path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def sha256(self) -> str:
        return self.files[0].sha256

    @property
    def bytes(self) -> int:
        """Of all its files together."""
        return sum(file.bytes for file in self.files)

    @property
    def counts(self) -> dict[str, int]:
        """How many layers compute in each precision."""
        return dict(Counter(layer.precision for layer in self.layers).most_common())

    def is_meant_by(self, name: str) -> bool:
        """Whether a report that calls a model `name` is about this one: folders may differ, the file's name may not."""
        return Path(name).name == self.name


def look_at(paths: Sequence[Path]) -> tuple[ModelFacts, ...]:
    """Return the facts of every model.

    Raises:
        UsageError: if two files have one name: reports could not tell them apart.
        InputError: if a file cannot be used.
    """
    repeated = [name for name, count in Counter(path.name for path in paths).items() if count > 1]
    if repeated:
        raise UsageError(repeated[0], "is the name of two models", "rename one of them")
    return tuple(map(_look, paths))


def model_called(name: str, models: Iterable[ModelFacts]) -> ModelFacts | None:
    """Return the model that a report calls `name`, if it is one of these."""
    return next((model for model in models if model.is_meant_by(name)), None)


def _look(path: Path) -> ModelFacts:
    artifact = Artifact.open(path)
    files = tuple(map(FileFacts.of, [path, *_companions(artifact)]))
    if artifact.kind == "engine":
        return _of_engine(inspect_engine(path), files)
    if artifact.kind == "openvino":
        proof = "an OpenVINO file is not looked into; benchmark says what the backend ran it in"
        return ModelFacts(artifact.kind, "unknown", files, None, (), proof, None, ())
    try:
        return _of_report(artifact, inspect_file(path), files)
    except MissingPackageError as exc:
        manifest, why = artifact.manifest, printable(exc)
        return ModelFacts(artifact.kind, artifact.precision, files, manifest, (), why, None, (why,))


def _of_report(artifact: Artifact, report: InspectReport, files: tuple[FileFacts, ...]) -> ModelFacts:
    layers = tuple(LayerLine(layer.name, layer.operator, layer.precision) for layer in report.layers)
    proof = "read from the graph" if layers else "PyTorch computes in the type of the weights"
    return ModelFacts(
        artifact.kind,
        report.precision,
        files,
        report.manifest,
        layers,
        proof,
        report if report.memory is not None else None,
        report.notes,
    )


def _of_engine(report: InspectEngineReport, files: tuple[FileFacts, ...]) -> ModelFacts:
    facts = report.plan.sidecar
    layers = tuple(LayerLine(conv.name, "convolution", conv.precision) for conv in report.proof.convolutions)
    return ModelFacts(
        "engine",
        "unknown" if facts is None else facts.precision,
        files,
        None if facts is None else facts.manifest,
        layers,
        f"read back from the engine ({report.proof.source})",
        report.architecture,
        report.notes,
    )


def _companions(artifact: Artifact) -> list[Path]:
    """The files that a model cannot do without, and an engine's sidecar."""
    path = artifact.path
    if artifact.kind == "openvino":
        return [path.with_suffix(".bin")]
    if artifact.kind == "engine":
        return [sidecar for sidecar in [sidecar_path(path)] if sidecar.exists()]
    return [path.parent / name for name in _external(path)] if artifact.kind == "onnx" else []


def _external(path: Path) -> list[str]:
    with os_errors_about(path), path.open("rb") as file:
        return sorted(external_files(file))
