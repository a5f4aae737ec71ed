"""Load untrusted files in a child process first, so that one that crashes a library is an error like any other.

Every command calls `preflight` for the files it was given before it opens them; files that it wrote itself are trusted.
The edge library (`open_runner`, `Classifier`) starts no processes: an application that takes uploads calls `preflight`
for each of them before it opens it.

>>> preflight(UntrustedFile(Path("upload.onnx"), (Loader.SESSION,)))                # doctest: +SKIP

The child loads the file with the libraries that the command will use, on the CPU with one thread, while this process
imports them. It reports only crashes and exhausted limits: a file that a library refuses is left to the command, which
reads it again and gives the reason. What needs no library (the envelope of an ONNX file, the directory of a zipped
checkpoint) is checked before, and a `.safetensors` file, of which only a header is parsed, needs no child.

Applications and tests that trust their files turn this off: `sandbox.DEFAULT.is_enabled = False` in Python, or
`DENSENET_DEPLOY_SANDBOX=off` in the environment.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final

from densenet_deploy.artifacts import Artifact, is_checkpoint_name, os_errors_about, require_file
from densenet_deploy.errors import (
    CheckpointError,
    DensenetDeployError,
    InputError,
    ModelFileError,
    ResourceError,
    from_memory_error,
)
from densenet_deploy.onnx_envelope import external_files
from densenet_deploy.worker import Limits, WorkerDiedError, WorkerMemoryError, call_in_worker

log = logging.getLogger(__name__)

_GIB: Final = 2**30
_MIB: Final = 2**20
_LEAST_MEMORY: Final = 4 * _GIB
_MEMORY_PER_BYTE: Final = 16  # a copy as bytes, one as a message, one checked, one with shapes, packed for the kernels
_LEAST_CPU_SECONDS: Final = 10
_CPU_SECONDS_PER_MIB: Final = 0.5
_CLOCK_PER_CPU: Final = 5  # on a busy machine
_FIX: Final = "do not use it; get the file from its author"


class Loader(enum.StrEnum):
    """The library that loads a file."""

    ARRAYS = "NumPy"
    WEIGHTS = "PyTorch"
    GRAPH = "the onnx package"
    SIMPLIFIER = "onnxsim"
    SESSION = "the backend"


@dataclass(frozen=True)
class UntrustedFile:
    """A file that a user named.

    Attributes:
        path: of the file; names that are not files of a known kind are skipped.
        loaders: the libraries that will load it. A checkpoint is loaded by NumPy, or by PyTorch where only that reads
            it, whatever this says, and the onnx package reads an ONNX file without facts first.
        backend: of the session; None is the default for the file.
    """

    path: Path
    loaders: tuple[Loader, ...] = ()
    backend: str | None = None


def _nothing() -> None:
    """Do nothing else."""


class Sandbox:
    """Loads untrusted files in a child process; a file that has not changed is loaded once."""

    def __init__(self, *, is_enabled: bool = True) -> None:
        self.is_enabled = is_enabled
        self._passed: set[object] = set()

    def preflight(self, *files: UntrustedFile, meanwhile: Callable[[], object] = _nothing) -> None:
        """Load every file in one child, in the order given; what is left to PyTorch in a second one.

        `meanwhile` is called once, while the child loads them if there is one; what it raises ends the child.

        Raises:
            CheckpointError, ModelFileError: if a library crashes or does not end on a file, or takes more memory than a
                file of its size may need.
            ResourceError: if the machine runs out of memory, or no process can be started.
        """
        if not self.is_enabled:
            meanwhile()
            return
        found = [(file, _identity(file)) for file in map(_with_its_loaders, files) if file.loaders and _is_whole(file)]
        new = {identity: file for file, identity in found if identity not in self._passed}
        if not new:
            meanwhile()
            return
        left = _load_in_child(tuple(new.values()), meanwhile)
        if left:
            _load_in_child(left)
        self._passed.update(new)


DEFAULT: Final = Sandbox(is_enabled=os.environ.get("DENSENET_DEPLOY_SANDBOX", "").lower() != "off")
"""The sandbox of this process, which all commands use."""


def preflight(*files: UntrustedFile, meanwhile: Callable[[], object] = _nothing) -> None:
    """Load every file in a child process first; see `Sandbox.preflight`."""
    DEFAULT.preflight(*files, meanwhile=meanwhile)


def _with_its_loaders(file: UntrustedFile) -> UntrustedFile:
    """Keep the loaders that read this kind of file: none for a name of public weights, or for an engine."""
    suffix = file.path.suffix.lower()
    if is_checkpoint_name(file.path) and suffix != ".safetensors":
        return UntrustedFile(file.path, (Loader.ARRAYS,))
    if suffix == ".onnx":
        is_read = not file.loaders or Loader.GRAPH in file.loaders or not _is_adopted(file.path)
        return file if is_read else UntrustedFile(file.path, (Loader.GRAPH, *file.loaders), file.backend)
    return UntrustedFile(file.path, (Loader.SESSION,) if suffix == ".xml" else (), file.backend)


def _is_adopted(path: Path) -> bool:
    """Whether every command reads the graph of an ONNX file, since it carries no facts (see `sources.graph`)."""
    with contextlib.suppress(DensenetDeployError, OSError):
        return Artifact.open(path).manifest is None
    return False


def _is_whole(file: UntrustedFile) -> bool:
    """Whether the file passes the checks that need no library; if not, the command gives the reason."""
    try:
        if file.loaders == (Loader.ARRAYS,):
            return _holds_weights(file.path)
        Artifact.open(file.path)
    except (DensenetDeployError, OSError):
        return False
    return True


def _holds_weights(path: Path) -> bool:
    from densenet_deploy.sources.checkpoint_file import require_weights_zip

    require_file(path)
    with path.open("rb") as opened:
        if opened.read(2) == b"PK":
            require_weights_zip(path, opened)
    return True


def _identity(file: UntrustedFile) -> object:
    """A value that changes when the file does; a missing file has none."""
    try:
        found = file.path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, file.loaders, file.backend


def _load_in_child(
    files: Sequence[UntrustedFile], meanwhile: Callable[[], object] = _nothing
) -> tuple[UntrustedFile, ...]:
    """Let a child load the files, and return those left to PyTorch; an error is about the file that it was loading."""
    facts = [[str(file.path.absolute()), [loader.name for loader in file.loaders], file.backend] for file in files]
    limits, at = limits_for(files), (files[0].path, files[0].loaders[0])
    left = []
    try:
        steps = call_in_worker(load, [facts], limits, prepare, meanwhile)
        with os_errors_about("child process"), contextlib.closing(steps):
            for index, name in steps:
                at = files[index].path, Loader[name]
                if at[1] not in files[index].loaders:
                    left.append(UntrustedFile(at[0], (at[1],)))
                    continue
                log.info("%s is loaded by %s in a child process", *at)
    except WorkerDiedError as exc:
        raise death_error(*at, exc.signal, limits) from exc
    except WorkerMemoryError as exc:
        raise memory_error(*at, limits, is_own_limit=exc.is_own_limit) from exc
    return tuple(left)


def prepare(facts: Iterable[tuple[str, Sequence[str], str | None]]) -> None:
    """Import what the loaders of the files need, as far as it is installed and works.

    Raises:
        Exception: if memory ran out; a library that failed halfway would fail with another reason the next time.
    """
    try:
        for path, loaders, backend in facts:
            for loader in loaders:
                for module in _modules(Loader[loader], Path(path), backend):
                    import_module(module)
    except (ImportError, OSError, MemoryError) as exc:
        if from_memory_error(exc) is not None:
            raise


def _modules(loader: Loader, path: Path, backend: str | None) -> tuple[str, ...]:
    if loader in (Loader.ARRAYS, Loader.WEIGHTS):
        return (*(["torch"] if loader is Loader.WEIGHTS else []), "densenet_deploy.sources.checkpoint_file")
    if loader is Loader.GRAPH:
        return ("densenet_deploy.graph.foreign",)
    if loader is Loader.SIMPLIFIER:
        return ("onnxsim", "densenet_deploy.graph.simplify")
    from densenet_deploy.runtime.runner import choose_backend

    with contextlib.suppress(DensenetDeployError):
        return (choose_backend(Artifact.open(path), backend).requires,)
    return ()


def load(facts: Iterable[tuple[str, Sequence[str], str | None]]) -> Iterator[tuple[int, str]]:
    """Load the files, and yield before each step the index of the file and the loader; a refusal does not matter here.

    A loader that was not asked for is one that the file is left to.

    Raises:
        Exception: if memory ran out.
    """
    for index, (path, loaders, backend) in enumerate(facts):
        for loader in loaders:
            yield index, loader
            try:
                if _load(Loader[loader], Path(path), backend) is Loader.WEIGHTS:
                    yield index, Loader.WEIGHTS.name
            except Exception as exc:
                if from_memory_error(exc) is not None:
                    raise
                log.info("refused: %s", exc)


def _load(loader: Loader, path: Path, backend: str | None) -> Loader | None:
    """Load a file; return the loader that it is left to."""
    if loader is Loader.ARRAYS:
        from densenet_deploy.sources.checkpoint_file import is_left_to_torch

        return Loader.WEIGHTS if is_left_to_torch(path) else None
    if loader is Loader.WEIGHTS:
        from densenet_deploy.sources.checkpoint_file import read_checkpoint

        read_checkpoint(path)
    elif loader is Loader.SESSION:
        from densenet_deploy.runtime.runner import RunnerOptions, open_runner

        open_runner(path, backend, "cpu", RunnerOptions(threads=1)).close()
    else:
        from densenet_deploy.graph.foreign import adopt
        from densenet_deploy.graph.onnx_file import read_onnx

        model = adopt(read_onnx(path), path).model
        if loader is Loader.SIMPLIFIER:
            from densenet_deploy.graph.simplify import simplify_onnx

            simplify_onnx(model)
    return None


def limits_for(files: Iterable[UntrustedFile]) -> Limits:
    """Return what the child may use for files of these sizes."""
    size = sum(map(_size, files))
    cpu_seconds = _LEAST_CPU_SECONDS + int(_CPU_SECONDS_PER_MIB * size / _MIB)
    return Limits(_LEAST_MEMORY + _MEMORY_PER_BYTE * size, cpu_seconds, float(_CLOCK_PER_CPU * cpu_seconds))


def _size(file: UntrustedFile) -> int:
    """Bytes of the file and of the weights that are kept beside it."""
    path = file.path
    with path.open("rb") as opened:
        names = external_files(opened) if path.suffix.lower() == ".onnx" else ()
    beside = [path.parent / name for name in names] or [path.with_suffix(".bin")]
    return sum(part.stat().st_size for part in {path, *beside} if part.is_file())


def death_error(path: Path, loader: Loader, number: int | None, limits: Limits) -> DensenetDeployError:
    """Return the error for a child that the signal `number` ended: the file's fault, or the machine's."""
    if number == signal.SIGKILL:
        why = "the process that loaded it was killed, as systems do when memory runs out"
        return ResourceError(path, why, "close other programs")
    if number == signal.SIGXCPU:
        why = f"{loader} did not finish loading it within {limits.cpu_seconds} s of CPU time"
    elif number == signal.SIGALRM:
        why = f"{loader} did not finish loading it within {limits.clock_seconds:.0f} s"
    else:
        why = f"{loader} crashes on it ({'no signal' if number is None else signal.Signals(number).name})"
    return _error_of(loader)(path, why, _FIX)


def memory_error(path: Path, loader: Loader, limits: Limits, *, is_own_limit: bool) -> DensenetDeployError:
    """Return the error for memory that ran out: under the child's own limit, or before that on this machine."""
    if not is_own_limit:
        return ResourceError(
            path, f"memory ran out while {loader} loaded it", "close other programs, or raise ulimit -v"
        )
    why = f"{loader} needs more than {limits.memory_bytes // _MIB} MiB for it, too much for a file of its size"
    return _error_of(loader)(path, why, _FIX)


def _error_of(loader: Loader) -> type[InputError]:
    return CheckpointError if loader in (Loader.ARRAYS, Loader.WEIGHTS) else ModelFileError
