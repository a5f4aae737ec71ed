"""A model that every worker process loads by itself: a name or a file, what is stated about it, and what runs it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densenet_deploy.artifacts import data_files, model_sha256
from densenet_deploy.facts import Architecture
from densenet_deploy.model import Model
from densenet_deploy.records import from_plain, to_plain
from densenet_deploy.runtime.runner import Runner, RunnerOptions
from densenet_deploy.workflows.load import LoadOptions, is_file_name, load


@dataclass(frozen=True)
class ModelFile:
    """What a worker process loads, and the facts that are not in it.

    Attributes:
        name: of the model.
        source: a path, or a name.
        sha256: of the file; None of a name.
        stated: what the caller states about it, with plain types.
    """

    name: str
    source: str | None
    sha256: str | None
    stated: Mapping[str, object]

    @property
    def identity(self) -> dict[str, object]:
        """What tells it from other models; facts that are stated show in the rows and the input."""
        if self.sha256 is not None:
            return {"sha256": self.sha256}
        return {"name": self.name, "stated": self.stated}

    def whole_file(self) -> Path | None:
        """Return the file if it is all that a worker needs; None of a name, and of a file with others beside it."""
        path = None if self.source is None or self.sha256 is None else Path(self.source)
        if path is None or path.suffix.lower() in (".xml", ".engine"):
            return None
        return None if data_files(path) else path


@dataclass(frozen=True)
class WorkerModel:
    """What a worker process is told about its model, in what JSON holds; source and facts are of a `ModelFile`."""

    source: str | None = None
    stated: Mapping[str, object] = field(default_factory=dict)
    backend: str | None = None
    device: str | None = None
    options: RunnerOptions = field(default_factory=RunnerOptions)

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[Model, Runner]]:
        """Yield the model and its runner, which closes with the block. Errors as `load` and `open_runner`."""
        stated: Any = dict(self.stated)
        if "architecture" in stated:
            stated["architecture"] = from_plain(Architecture, stated["architecture"])
        model = load(self.source, **stated)
        with model.runner(self.backend, self.device, self.options) as runner:
            yield model, runner


@contextlib.contextmanager
def model_file(source: Any, stated: LoadOptions) -> Iterator[ModelFile]:
    """Yield what every worker can load: `source` itself if it is a path or a name, else a file that holds it."""
    if source is None or isinstance(source, (str, os.PathLike)):
        text = None if source is None else os.fspath(source)
        sha256 = model_sha256(Path(source)) if is_file_name(source) else None
        name = (text or "untrained") if sha256 is None else Path(str(text)).name
        yield ModelFile(name, text, sha256, {name: _plain(value) for name, value in stated.items()})
        return
    model = load(source, **stated)
    with tempfile.TemporaryDirectory(prefix="densenet-deploy-") as folder:
        path = model.path
        if model.is_onnx or path is None:
            path = model.save(Path(folder) / f"{model.name}{'.onnx' if model.is_onnx else '.safetensors'}")
        yield ModelFile(model.name, str(path), model_sha256(path), {})


def _plain(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else to_plain(value)
