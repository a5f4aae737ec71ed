"""Where results go: names, `force`, room and atomic writing, for every workflow that makes a model.

A workflow is given `out` and decides nothing about paths: it resolves its destination before the work, so that a place
that cannot be written costs no minutes, and writes once at the end. Without `out` the result stays in memory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from densenet_deploy.artifacts import StrPath, os_errors_about, output_path, prepare_output
from densenet_deploy.errors import OutputExistsError
from densenet_deploy.manifest import Manifest
from densenet_deploy.model import Model

DEFAULT_FOLDER: Final = "artifacts"


@dataclass(frozen=True)
class Destination:
    """The file that a result is written to, or None: it stays in memory."""

    path: Path | None
    force: bool = False

    @classmethod
    def of(
        cls, out: StrPath | None, name: str, manifest: Manifest | None, *, force: bool = False, size_bytes: int = 0
    ) -> Destination:
        """Resolve `out`, a file or a folder, and check that it may and can be written.

        Args:
            out: None keeps the result in memory; a folder gets a file called `name`.
            name: file name of the result in a folder.
            manifest: the facts of the result: the same artifact may be replaced.
            force: replace whatever stands there.
            size_bytes: about how large the file will be.

        Raises:
            UsageError: if `out` has the suffix of another kind of file.
            OutputExistsError: if another artifact stands there.
            ResourceError: if room or permission is missing.
        """
        if out is None:
            return cls(None)
        path = output_path(os.fspath(out), name)
        prepare_output(path, manifest, force=force, size_bytes=size_bytes)
        return cls(path, force)

    def write(self, model: Model) -> Model:
        """Write `model` if there is a path, and return it as it now is."""
        if self.path is None:
            return model
        return model.written_to(self.path)


def refuse_other_file(path: Path, mark: bytes, what: str, *, force: bool) -> None:
    """Check that `path` is free, or holds `what`, as a file does in which `mark` stands, or may be replaced.

    Raises:
        OutputExistsError: if another file or a folder stands there.
    """
    with os_errors_about(path):
        if path.is_dir():
            raise OutputExistsError(path, "is a folder", "name a file with -o")
        if force or not path.exists() or mark in path.read_bytes():
            return
    raise OutputExistsError(path, f"exists and is not {what}", "choose another -o, or replace it with --force")


def default_folder(source: object) -> str:
    """Return the folder for results of a command that was given no `-o`: beside a model file, else `artifacts`.

    >>> default_folder("121")
    'artifacts'
    """
    if isinstance(source, (str, os.PathLike)) and Path(source).is_file():
        return str(Path(source).parent) + os.sep
    return DEFAULT_FOLDER
