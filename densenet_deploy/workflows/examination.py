"""A stranger's file is read in a child first: what crashes, fills the memory or never ends there has not happened here.

The commands examine the files that they were given; files that they wrote themselves are not strangers', and the edge
library (`open_runner`, `Classifier`) starts no processes: an application that takes files from strangers may call
`examine` before it opens one, and needs to do so once a file.

>>> examine(Given(Path("upload.onnx"), (Reader.SESSION,)))          # doctest: +SKIP

The child reads with the libraries that the command will use, on the CPU and with one thread, while this process imports
them. What it refuses is not told from here: the command reads the file again and says so itself. What is checked
without a library (the envelope of an ONNX file, the directory of a checkpoint's zip) is checked before, and a
`.safetensors` file, whose header is all there is to parse, needs no child.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from densenet_deploy.artifacts import CHECKPOINT_SUFFIXES, Artifact, os_errors_about, require_file
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
_FIX: Final = "do not use it; get it from its author"


class Reader(enum.StrEnum):
    """What reads a file."""

    WEIGHTS = "PyTorch"
    GRAPH = "the onnx package"
    SIMPLIFIER = "onnxsim"
    SESSION = "the backend"


@dataclass(frozen=True)
class Given:
    """A file that a user gave, the readers that it will meet, and the backend of the last, None for its own.

    Checkpoints meet PyTorch alone, whatever `readers` says.
    """

    path: Path
    readers: tuple[Reader, ...]
    backend: str | None = None


def examine(*given: Given) -> None:
    """Read every file in a child, all in one, in the order given; what is no file of a known kind is passed over.

    Raises:
        CheckpointError, ModelFileError: if a library crashed or did not end on a file, or took more memory than a file
            of its size may.
        ResourceError: if the machine's memory ran out, or no process can be had.
    """
    files = [(file, _identity(file)) for file in map(_fitting, given) if file.readers and _is_whole(file)]
    files = [(file, identity) for file, identity in files if identity not in _examined]
    if not files:
        return
    strangers = [file for file, _ in files]
    _read_in_child(strangers)
    _examined.update(identity for _, identity in files)


_examined: Final[set[object]] = set()
"""The files that came through, so that a process that opens one often examines it once."""


def _fitting(given: Given) -> Given:
    """Leave the readers that read this kind of file; a name of public weights is no file."""
    suffix = given.path.suffix.lower()
    if suffix in CHECKPOINT_SUFFIXES and suffix != ".safetensors":
        return Given(given.path, (Reader.WEIGHTS,))
    if suffix == ".onnx":
        return given
    return Given(given.path, (Reader.SESSION,) if suffix == ".xml" else (), given.backend)


def _is_whole(given: Given) -> bool:
    """Whether the file passes what is checked without a library; if not, the command says so in its own words."""
    try:
        if given.readers == (Reader.WEIGHTS,):
            return _holds_weights(given.path)
        Artifact.open(given.path)
    except (DensenetDeployError, OSError):
        return False
    return True


def _holds_weights(path: Path) -> bool:
    from densenet_deploy.sources.checkpoint_file import require_weights_zip

    require_file(path)
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            require_weights_zip(path, file)
    return True


def _identity(given: Given) -> object:
    """What says that the file is still the one that was examined; of a missing file, nothing."""
    try:
        seen = given.path.stat()
    except OSError:
        return None
    return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, given.readers, given.backend


def _read_in_child(strangers: Sequence[Given]) -> None:
    """Let a child read the files, and blame the one that it was at."""
    facts = [[str(file.path.absolute()), [reader.name for reader in file.readers], file.backend] for file in strangers]
    limits = _limits(strangers)
    at: list[Any] = [0, Reader.GRAPH.name]
    try:
        with (
            os_errors_about("child process"),
            contextlib.closing(call_in_worker(read, [facts], limits, prepare)) as said,
        ):
            for at in said:
                log.info("%s is read by %s in a child", strangers[at[0]].path, Reader[at[1]])
    except WorkerDiedError as exc:
        raise _death(strangers[at[0]].path, Reader[at[1]], exc.signal, limits) from exc
    except WorkerMemoryError as exc:
        raise _no_memory(strangers[at[0]].path, Reader[at[1]], limits, was_ours=exc.is_own_limit) from exc


def prepare(facts: Iterable[tuple[str, Sequence[str], str | None]]) -> None:
    """Import what the readers of the files need, as far as it is installed and works.

    Raises:
        Exception: what says that memory ran out; a library that failed so halfway would say something else next time.
    """
    try:
        for path, readers, backend in facts:
            for reader in readers:
                for module in _modules(Reader[reader], Path(path), backend):
                    import_module(module)
    except (ImportError, OSError, MemoryError) as exc:
        if from_memory_error(exc) is not None:
            raise


def _modules(reader: Reader, path: Path, backend: str | None) -> tuple[str, ...]:
    if reader is Reader.WEIGHTS:
        return ("torch", "densenet_deploy.sources.checkpoint_file")
    if reader is Reader.GRAPH:
        return ("densenet_deploy.graph.onnx_file",)
    if reader is Reader.SIMPLIFIER:
        return ("onnxsim", "densenet_deploy.graph.simplify")
    from densenet_deploy.runtime.runner import choose_backend

    with contextlib.suppress(DensenetDeployError):
        return (choose_backend(Artifact.open(path), backend).requires,)
    return ()


def read(facts: Iterable[tuple[str, Sequence[str], str | None]]) -> Iterator[tuple[int, str]]:
    """Let the readers read the files, saying before each which it is; what they refuse is no matter here.

    Raises:
        Exception: what says that memory ran out.
    """
    for index, (path, readers, backend) in enumerate(facts):
        for reader in readers:
            yield index, reader
            try:
                _READ[Reader[reader]](Path(path), backend)
            except Exception as exc:
                if from_memory_error(exc) is not None:
                    raise
                log.info("refused: %s", exc)


def _read_weights(path: Path, _backend: str | None) -> None:
    from densenet_deploy.sources.checkpoint_file import read_checkpoint

    read_checkpoint(path)


def _read_graph(path: Path, _backend: str | None) -> None:
    from densenet_deploy.graph.onnx_file import load_onnx

    load_onnx(path)


def _simplify(path: Path, _backend: str | None) -> None:
    from densenet_deploy.graph.onnx_file import load_onnx
    from densenet_deploy.graph.simplify import simplify_onnx

    simplify_onnx(load_onnx(path))


def _open_session(path: Path, backend: str | None) -> None:
    from densenet_deploy.runtime.runner import RunnerOptions, open_runner

    open_runner(path, backend, "cpu", RunnerOptions(threads=1)).close()


_READ: Final = {
    Reader.WEIGHTS: _read_weights,
    Reader.GRAPH: _read_graph,
    Reader.SIMPLIFIER: _simplify,
    Reader.SESSION: _open_session,
}


def _limits(strangers: Iterable[Given]) -> Limits:
    size = sum(map(_size, strangers))
    cpu_seconds = _LEAST_CPU_SECONDS + int(_CPU_SECONDS_PER_MIB * size / _MIB)
    return Limits(_LEAST_MEMORY + _MEMORY_PER_BYTE * size, cpu_seconds, float(_CLOCK_PER_CPU * cpu_seconds))


def _size(given: Given) -> int:
    """Bytes of the file and of the weights that are kept beside it."""
    path = given.path
    with path.open("rb") as file:
        names = external_files(file) if path.suffix.lower() == ".onnx" else ()
    beside = [path.parent / name for name in names] or [path.with_suffix(".bin")]
    return sum(file.stat().st_size for file in {path, *beside} if file.is_file())


def _death(path: Path, reader: Reader, number: int | None, limits: Limits) -> DensenetDeployError:
    """Say how the child ended: at its own fault, or at the system's."""
    if number == signal.SIGKILL:
        why = "the process that read it was killed, as systems do when memory runs out"
        return ResourceError(path, why, "close other programs")
    if number == signal.SIGXCPU:
        why = f"{reader} was not done with it after {limits.cpu_seconds} s of computing"
    elif number == signal.SIGALRM:
        why = f"{reader} was not done with it after {limits.clock_seconds:.0f} s"
    else:
        why = f"{reader} crashes on it ({'no signal' if number is None else signal.Signals(number).name})"
    return _error_of(reader)(path, why, _FIX)


def _no_memory(path: Path, reader: Reader, limits: Limits, *, was_ours: bool) -> DensenetDeployError:
    if not was_ours:
        return ResourceError(path, f"memory ran out while {reader} read it", "close other programs, or raise ulimit -v")
    why = f"{reader} wants more than {limits.memory_bytes // _MIB} MiB for it, too much for a file of its size"
    return _error_of(reader)(path, why, _FIX)


def _error_of(reader: Reader) -> type[InputError]:
    return CheckpointError if reader is Reader.WEIGHTS else ModelFileError
