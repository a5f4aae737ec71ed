"""Model files: their kind, the facts they carry, where results go, and the only writer of files.

Nothing here needs a backend or the onnx package.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from densenet_deploy.errors import (
    DensenetDeployError,
    InputError,
    ModelFileError,
    OutputExistsError,
    UsageError,
    from_os_error,
    is_valid_argument,
)
from densenet_deploy.manifest import Manifest
from densenet_deploy.onnx_envelope import count_stored_elements, external_files, final_operators, read_metadata

StrPath = str | os.PathLike[str]

FILE_SUFFIXES: Final = (".onnx", ".engine", ".xml", ".json", ".csv", ".html", ".png", ".jpg", ".jpeg", ".svg")
CHECKPOINT_SUFFIXES: Final = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")

_WRAPPED: Final = (".pth", ".pt", ".ckpt")  # may be followed by another suffix: `model.pth.tar`
_KINDS: Final = {".onnx": "onnx", ".xml": "openvino", ".engine": "engine"} | dict.fromkeys(
    CHECKPOINT_SUFFIXES, "checkpoint"
)
IN_MEMORY: Final = Path("<model in memory>")
"""The `path` of an artifact that was given as bytes."""

_LIKE_A_SUFFIX: Final = re.compile(r"\.[a-z][a-z0-9]{1,4}")  # `x.jpg`, but not `v1.2`
_URL: Final = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_NET: Final = re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<net\s", re.DOTALL)
UNKNOWN: Final = "unknown"
"""The activation of an output that arithmetic makes of scores."""

_SCORES: Final = {"Softmax": "softmax", "Sigmoid": "sigmoid", "HardSigmoid": "sigmoid"}
_PROBED_BYTES: Final = 64 * 2**10
# TensorProto.DataType
_PRECISIONS: Final = {1: "fp32", 10: "fp16", 16: "bf16", 2: "int8", 3: "int8"}


@dataclass(frozen=True)
class Artifact:
    """A model file and the facts it carries.

    Attributes:
        path: where the file is; of a file in memory, a name for messages.
        kind: `onnx`, `openvino`, `engine` or `checkpoint`.
        manifest: the facts, or None where the file carries none.
        precision: of the weights of an ONNX file: `fp32`, `fp16`, `bf16`, `int8` or `unknown`. It is the type that most
            of the stored numbers have, whatever the metadata claims.
        data: the bytes of a file in memory, None of a file on disk.
        original: what it was adopted from, if adopting a file of somebody else's changed it.
        is_split: whether an ONNX file keeps weights in other files.
    """

    path: Path
    kind: str
    manifest: Manifest | None
    precision: str = "unknown"
    data: bytes | None = field(default=None, repr=False)
    original: Artifact | None = field(default=None, repr=False)
    is_split: bool = False

    @classmethod
    def open(cls, source: StrPath | bytes) -> Artifact:
        """Look at a model file, or at the bytes of an ONNX file, without loading the model.

        >>> Artifact.open("densenet121.onnx").kind      # doctest: +SKIP
        'onnx'

        Raises:
            InputError: if the file does not exist.
            ModelFileError: if suffix or content is not that of a model, or the weights lie outside the model's folder.
            ManifestError: if the facts it carries cannot be read.
        """
        if isinstance(source, bytes):
            return cls._open_onnx(IN_MEMORY, source)
        path = Path(source)
        kind = "checkpoint" if is_checkpoint_name(path) else _KINDS.get(path.suffix.lower())
        if kind is None:
            raise ModelFileError(path, f"has the suffix {path.suffix!r}", f"give one of {', '.join(sorted(_KINDS))}")
        require_file(path)
        if kind == "openvino":
            require_ir(path)
        return cls._open_onnx(path, None) if kind == "onnx" else cls(path, kind, None)

    @classmethod
    def _open_onnx(cls, path: Path, data: bytes | None) -> Artifact:
        with _opened_onnx(path, data) as file:
            manifest = Manifest.from_strings(read_metadata(file))
            lengths, stored = external_files(file), count_stored_elements(file)
        precision = _PRECISIONS.get(max(stored, key=stored.__getitem__), "unknown") if stored else "unknown"
        if data is None:
            _require_data_within(path, lengths)
        elif lengths:
            why = f"keeps weights in another file, {next(iter(lengths))}"
            raise ModelFileError(path, why, "give the path of the .onnx file instead of its bytes")
        return cls(path, "onnx", manifest, precision, data, is_split=bool(lengths))

    def read_bytes(self) -> bytes:
        """Return the bytes of the file."""
        if self.data is not None:
            return self.data
        with os_errors_about(self.path):
            return self.path.read_bytes()

    def activations(self) -> dict[str, str]:
        """Return the outputs that end in a `softmax` or `sigmoid`, by name: of an ONNX graph, as its nodes say.

        Where arithmetic follows one, such as the mean of several networks' scores, it is `unknown`.

        Raises:
            ModelFileError: if the bytes are not an ONNX model.
        """
        if self.kind != "onnx":
            return {}
        with _opened_onnx(self.path, self.data) as file:
            operators = final_operators(file)
        found = {name: _activation(behind) for name, behind in operators.items()}
        return {name: activation for name, activation in found.items() if activation is not None}

    def sha256(self) -> str:
        """Return the SHA-256 of the file, in hex, as `model_sha256`; of an adopted graph, that of the original."""
        import hashlib  # 4 MiB of OpenSSL, which most processes can do without

        if self.original is not None:
            return self.original.sha256()
        return model_sha256(self.path) if self.data is None else hashlib.sha256(self.data).hexdigest()


def _activation(operators: Collection[str]) -> str | None:
    """Return which scores `operators` compute: `softmax`, `sigmoid` or `UNKNOWN`; None if they are not scores."""
    scores = [_SCORES[operator] for operator in operators if operator in _SCORES]
    return (scores[0] if len(operators) == 1 else UNKNOWN) if scores else None


def is_url(name: str) -> bool:
    r"""Whether `name` is a URL; `C:\1.png` is not.

    >>> is_url("s3://cats/1.png"), is_url("C:/1.png")
    (True, False)
    """
    return _URL.match(name) is not None


def is_checkpoint_name(path: Path) -> bool:
    """Whether `path` is named like a checkpoint: `weights.pth`, and also `weights.pth.tar`.

    >>> is_checkpoint_name(Path("best.pth.tar")), is_checkpoint_name(Path("best.pth.onnx"))
    (True, False)
    """
    suffix = path.suffix.lower()
    return suffix in CHECKPOINT_SUFFIXES or (suffix not in FILE_SUFFIXES and _wrapped_at(path) > 0)


def checkpoint_stem(path: Path) -> str:
    """Return the name of a checkpoint without its suffixes.

    >>> checkpoint_stem(Path("best.pth.tar")), checkpoint_stem(Path("v1.2.pt"))
    ('best', 'v1.2')
    """
    end = _wrapped_at(path)
    return path.stem if path.suffix.lower() in CHECKPOINT_SUFFIXES or end <= 0 else path.name[:end]


def _wrapped_at(path: Path) -> int:
    """Where a checkpoint's suffix begins that another one follows; -1 if there is none."""
    return max(path.name.lower().rfind(f"{suffix}.") for suffix in _WRAPPED)


def cache_folder(*parts: str) -> Path:
    """Return the folder `parts` in this product's cache, which may not exist: below `$XDG_CACHE_HOME` or `~/.cache`."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # unset, or relative, which the XDG specification says to ignore
        base = Path.home() / ".cache"
    return base.joinpath("densenet-deploy", *parts)


def require_file(path: Path) -> None:
    """Raise an InputError unless `path` is a file that is not empty."""
    with os_errors_about(path):
        if path.is_dir():
            raise InputError(path, "is a folder", "give a file")
        if path.stat().st_size == 0:
            raise InputError(path, "is empty", "make or download it again")


def require_ir(path: Path) -> None:
    """Check that an `.xml` file begins like OpenVINO's: on anything else, OpenVINO would try its other readers.

    Raises:
        ModelFileError: if it does not.
    """
    with os_errors_about(path), path.open("rb") as file:
        if _NET.match(file.read(_PROBED_BYTES)) is None:
            raise ModelFileError(
                path, "is not an OpenVINO model (it does not begin with <net)", "export the model again"
            )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of the file's bytes, in hex."""
    import hashlib  # 4 MiB of OpenSSL, which most processes can do without

    with os_errors_about(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_sha256(path: Path) -> str:
    """Return the SHA-256 of a model file, in hex; of one that keeps weights in other files, that of all together.

    Raises:
        InputError: if a file does not exist.
        ModelFileError: if an ONNX file, or what it keeps weights in, is not whole.
    """
    others = [path.parent / name for name in data_files(path)]
    if path.suffix.lower() == ".xml" and path.with_suffix(".bin").is_file():
        others = [path.with_suffix(".bin")]
    return joined_sha256([sha256_of(one) for one in (path, *others)])


def joined_sha256(hashes: Sequence[str]) -> str:
    """Return one SHA-256 for the files with these; that of a single file is its own."""
    import hashlib

    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def output_path(out: str | None, default_name: str) -> Path:
    """Return the path of a result: `-o` names a folder if it is one, ends in a slash or has no file suffix.

    >>> output_path("models/", "densenet121.onnx").as_posix()
    'models/densenet121.onnx'

    Raises:
        UsageError: if it names a file of another kind than `default_name`.
    """
    if out is None:
        return Path("artifacts") / default_name
    path = Path(out)
    suffix, expected = path.suffix.lower(), Path(default_name).suffix
    if out.endswith("/") or path.is_dir() or not _is_file_suffix(suffix):
        return path / default_name
    if suffix == expected:
        return path
    if suffix not in FILE_SUFFIXES:
        raise UsageError(
            out, f"has the unknown suffix {suffix}", f"name a {expected} file, or a folder with / at its end"
        )
    raise UsageError(out, f"is not a {expected} file", f"name a {expected} file or a folder with -o")


def _is_file_suffix(suffix: str) -> bool:
    return suffix in (*FILE_SUFFIXES, *CHECKPOINT_SUFFIXES) or _LIKE_A_SUFFIX.fullmatch(suffix) is not None


def prepare_output(path: Path, manifest: Manifest | None, *, force: bool, size_bytes: int = 0) -> None:
    """Check before the work that the result may be written to `path` and that `size_bytes` fit there.

    Raises:
        OutputExistsError: if `path` holds something else (see `refuse_foreign_output`).
        ResourceError: if the folder cannot be written, or has no room.
    """
    refuse_foreign_output(path, manifest, force=force)
    require_room(path, size_bytes)


def require_room(path: Path, size_bytes: int = 0) -> None:
    """Reserve `size_bytes`, or at least a few, in an unnamed file in `path`, a folder, or in its folder; release them.

    Permissions and mount flags are not checked: only a write shows what root, quotas and network shares allow.

    Raises:
        ResourceError: if the disk is full, read-only or not permitted.
    """
    import tempfile

    with os_errors_about(path):
        parents = path.absolute().parents
        folder = path if path.is_dir() else next(folder for folder in parents if folder.exists())
        with tempfile.TemporaryFile(dir=folder) as file:
            _reserve(file.fileno(), max(size_bytes, _PROBED_BYTES))


def refuse_foreign_output(path: Path, manifest: Manifest | None, *, force: bool) -> None:
    """Check before the work that `path` is free, or holds the same artifact, or may be replaced (`force`).

    Raises:
        OutputExistsError: if it holds something else.
    """
    with os_errors_about(path):
        try:
            path.lstat()
        except FileNotFoundError:
            return
        if path.is_dir():
            raise OutputExistsError(path, "is a folder", "name a file with -o")
    if force:
        return
    with contextlib.suppress(DensenetDeployError):
        existing = Artifact.open(path).manifest
        if existing is not None and manifest is not None and existing.same_artifact(manifest):
            return
    raise OutputExistsError(path, "exists and is not this artifact", "choose another -o, or replace it with --force")


def write_file(path: Path, *parts: bytes | bytearray | memoryview) -> None:
    """Write `parts`, one after the other, to `path`, whole or not at all.

    The steps are a temporary file beside it, fsync, rename, and fsync of the folder.

    Raises:
        ResourceError: if the disk is full, read-only or not permitted; an older file at `path` is then unchanged, and
            folders that were made for it are removed.
    """
    with written_beside(path) as temporary:
        with temporary.open("xb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        put_in_place(temporary, path)


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Give the block an unused path beside `path` for a file, and remove what is left of it afterwards.

    The folder is made, and removed again if the block fails. Operating-system errors inside it name `path`.
    """
    temporary = path.with_name(f".{path.name[:40]}.{os.urandom(8).hex()}.tmp")
    with os_errors_about(path), folder_made(path.parent):
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Give the block a new folder beside `path`, and remove what is left of it afterwards; else as `written_beside`."""
    import tempfile

    with os_errors_about(path), folder_made(path.parent):
        prefix = f".{path.name[:40]}."
        with tempfile.TemporaryDirectory(".tmp", prefix, path.parent, ignore_cleanup_errors=True) as name:
            folder = Path(name)
            folder.chmod(0o755)
            yield folder


def temporaries_of(path: Path) -> Iterator[Path]:
    """Yield what processes that were killed left of a file `path` that was `written_beside` it."""
    yield from path.parent.glob(f".{glob.escape(path.name[:40])}.{'[0-9a-f]' * 16}.tmp")


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename `temporary`, which was synced, to `path` in one step that survives a loss of power."""
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def data_files(path: Path) -> tuple[str, ...]:
    """Return the files that hold weights of an ONNX model, relative to its folder, sorted; none of another file.

    Raises:
        ModelFileError: naming the first of them that is not whole, is outside the folder, or is a link.
    """
    if path.suffix.lower() != ".onnx":
        return ()
    return tuple(sorted(require_data_within(path)))


def require_data_within(path: Path) -> Mapping[str, int]:
    """Check that the data files named by an ONNX model are whole, inside its folder, and not links.

    Returns:
        How many bytes each of them must have, by its name.

    Raises:
        ModelFileError: naming the first file that is not.
    """
    with _opened_onnx(path) as file:
        lengths = external_files(file)
    _require_data_within(path, lengths)
    return lengths


def _require_data_within(path: Path, lengths: Mapping[str, int]) -> None:
    with os_errors_about(path):
        folder = path.parent.resolve()
        for location, length in lengths.items():
            if problem := _data_problem(
                path.parent / location, folder, Path(os.path.normpath(folder / location)), length
            ):
                raise ModelFileError(path, f"its data file {location} {problem[0]}", problem[1])


def _data_problem(data: Path, folder: Path, plain: Path, length: int) -> tuple[str, str] | None:
    """Return what is wrong with the file `data` of a model in `folder`, and what to do; `plain` is it without links."""
    real = Path(os.path.realpath(data))  # Path.resolve raises on a link to itself
    if not real.is_relative_to(folder):
        return "lies outside the model's folder", "do not trust this model; get it from its author"
    if real != plain:
        return "is a link", "put the file itself beside the model"
    if not data.is_file() or data.stat().st_size < length:
        return "is missing or cut short", "put the whole file beside the model"
    if data.stat().st_nlink > 1:
        return "is a hard link to a file elsewhere", "copy the file beside the model"
    return None


@contextlib.contextmanager
def _opened_onnx(path: Path, data: bytes | None = None) -> Iterator[BinaryIO]:
    with os_errors_about(path), path.open("rb") if data is None else io.BytesIO(data) as file:
        try:
            yield file
        except ValueError as exc:
            raise ModelFileError(path, f"is not an ONNX file ({exc})", "export or download it again") from exc


@contextlib.contextmanager
def os_errors_about(path: object) -> Iterator[None]:
    """Turn operating-system errors inside the block into ours, naming `path`."""
    try:
        yield
    except OSError as exc:
        raise from_os_error(exc, path) from exc
    except ValueError as exc:
        if is_valid_argument(str(path)):
            raise
        raise InputError(path, "contains a character that a path cannot contain", "check the path") from exc


@contextlib.contextmanager
def folder_made(folder: Path) -> Iterator[None]:
    """Make `folder` for the block; if the block fails, remove the folders that were made and are empty."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for place in missing:
                place.rmdir()
        raise


def _reserve(descriptor: int, size_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
            return
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    os.write(descriptor, bytes(_PROBED_BYTES))  # macOS, musl: a full disk shows, a nearly full one does not
    os.fsync(descriptor)
