"""The folder of a page: static files that any web server can serve, replaced in one step.

::

    site/
      index.html          names the folder of the version
      sw.js               the service worker: offline use, and headers for threads
      v-3f9a61c2d07b/     everything else; the name is a hash of the content

A version's files never change, so no cache can mix two versions. A new version is written beside the old one; the
rename of `index.html` switches to it, and only then is the old one removed.
"""

from __future__ import annotations

import hashlib
import html
import re
import shutil
import string
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from densenet_deploy.artifacts import folder_beside, folder_made, os_errors_about, require_room, sync, write_file
from densenet_deploy.errors import OutputExistsError
from densenet_deploy.records import write_json

MARK: Final = b'content="densenet-deploy web"'
"""What `index.html` of a page holds."""

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'wasm-unsafe-eval'",
        "worker-src 'self'",
        "connect-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
    )
)
"""The Content-Security-Policy of the page: no inline script or style, nothing from elsewhere."""

_PAGE: Final = "index.html"
_SERVICE_WORKER: Final = "sw.js"
_AT_THE_ROOT: Final = (_PAGE, _SERVICE_WORKER)
_LIST: Final = "files.json"
_ABANDONED_SECONDS: Final = 3600
_VERSION: Final = re.compile(rb'data-version="(v-[0-9a-f]{12})"')
_OURS: Final = re.compile(r"sw\.js|\.?v-[0-9a-f]{12}(\..*)?|\.(sw\.js|index\.html)\..*\.tmp")


@dataclass(frozen=True)
class Site:
    """The files of a page by their path in its folder.

    >>> Site.of("Digits", {"model.onnx": b"..."}).write(Path("site"))      # doctest: +SKIP
    """

    version: str
    files: Mapping[str, bytes]

    @classmethod
    def of(cls, title: str, files: Mapping[str, bytes]) -> Site:
        """Return the page with this `title`, and with `files` beside its own."""
        own = {
            item.name: item.read_bytes()
            for item in resources.files(__package__).joinpath("page").iterdir()
            if item.is_file()
        }
        root = {name: own.pop(name) for name in _AT_THE_ROOT}
        versioned = {**own, **files}
        versioned[_LIST] = write_json(sorted([*versioned, _LIST])).encode()
        version = f"v-{_hash({'title': title.encode(), **versioned})}"
        template = string.Template(root[_PAGE].decode())
        root[_PAGE] = template.substitute(title=html.escape(title), version=version, policy=POLICY).encode()
        return cls(version, {**root, **{f"{version}/{name}": data for name, data in versioned.items()}})

    @property
    def size_bytes(self) -> int:
        """The sum of all files."""
        return sum(map(len, self.files.values()))

    def write(self, folder: Path) -> tuple[Path, ...]:
        """Write the page, whole or not at all, in place of one that is in `folder`; return its files.

        Raises:
            ResourceError: if it cannot be written; a page that was there is then unchanged.
        """
        require_room(folder, self.size_bytes)
        with os_errors_about(folder), folder_made(folder):
            before = _named_version(folder)
            self._write_version(folder)
            for name in (_SERVICE_WORKER, _PAGE):
                write_file(folder / name, self.files[name])
            for place in folder.iterdir():
                if place.name != self.version and (place.name == before or _is_abandoned(place)):
                    shutil.rmtree(place, ignore_errors=True)
        return tuple(folder / name for name in sorted(self.files))

    def _write_version(self, folder: Path) -> None:
        target, files = folder / self.version, self._versioned()
        if _holds(target, files):
            return
        with folder_beside(target) as temporary:
            for name, data in files.items():
                write_file(temporary / self.version / name, data)
            if target.exists():  # somebody changed it
                target.rename(temporary / "changed")
            (temporary / self.version).rename(target)
            sync(folder)

    def _versioned(self) -> dict[str, bytes]:
        return {name.rpartition("/")[2]: data for name, data in self.files.items() if "/" in name}


def require_free(folder: Path, *, force: bool) -> None:
    """Check that `folder` may become a page: it is new, empty, or a page that may be replaced (`force`).

    Raises:
        OutputExistsError: if something else is there.
    """
    with os_errors_about(folder):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise OutputExistsError(folder, "is a file", "name a folder with -o")
        names = {place.name for place in folder.iterdir()}
        is_page = _PAGE in names and MARK in (folder / _PAGE).read_bytes()
        if is_page and not force:
            raise OutputExistsError(folder, "holds a page already", "replace it with --force, or choose another -o")
        is_rest = all(_OURS.fullmatch(name) for name in names)  # of a command that was killed
        if not is_page and not is_rest:
            raise OutputExistsError(folder, "holds other files", "choose another -o")


def _named_version(folder: Path) -> str | None:
    """Return the version of the page in `folder`; None if there is none."""
    try:
        found = _VERSION.search((folder / _PAGE).read_bytes())
    except FileNotFoundError:
        return None
    return None if found is None else found[1].decode()


def _holds(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Whether `folder` holds exactly these files."""
    if not folder.is_dir() or {place.name for place in folder.iterdir()} != files.keys():
        return False
    return all((folder / name).read_bytes() == data for name, data in files.items())


def _is_abandoned(place: Path) -> bool:
    """Whether `place` is a folder of a command that was killed: of ours and so old that no other one writes it."""
    is_ours = _OURS.fullmatch(place.name) is not None and place.is_dir()
    return is_ours and time.time() - place.stat().st_mtime > _ABANDONED_SECONDS


def _hash(files: Mapping[str, bytes]) -> str:
    """Return 12 hex digits that change with any name or byte."""
    lines = (f"{name} {hashlib.sha256(data).hexdigest()}\n" for name, data in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]
