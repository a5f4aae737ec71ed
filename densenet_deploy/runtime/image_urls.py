"""Images at URLs, `s3://bucket/cats/1.jpg`, in every store for which fsspec has a file system.

fsspec, and the package of the store (s3fs, gcsfs), are imported where a URL is used.
"""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, Final

from densenet_deploy.artifacts import is_url
from densenet_deploy.errors import DataError, InputError, MissingPackageError, from_os_error
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.packages import require_packages
from densenet_deploy.runtime.image_folders import ADD_FILES, IMAGE_SUFFIXES
from densenet_deploy.runtime.preprocess import PreparedImage, read_input

_EXTRA: Final = "scale"


def read_named_image(name: str, preprocessing: Preprocessing, *, fast: bool = False) -> PreparedImage:
    """Return the image with the path or URL `name` as the model takes it; see `read_input`.

    Raises:
        InputError: if there is none, or it cannot be decoded.
        MissingPackageError: if fsspec, or its package for such a URL, is not installed.
        ResourceError: if it cannot be fetched.
    """
    return read_input(_fetched(name) if is_url(name) else name, preprocessing, fast=fast)


def images_at(url: str) -> tuple[str, ...]:
    """Return the URLs of the images that a URL names: of one image, a folder (searched directly), or a glob pattern.

    Raises:
        DataError: if a folder holds no images.
        InputError: if a pattern matches nothing.
        MissingPackageError: if fsspec, or its package for such a URL, is not installed.
        ResourceError: if the store does not answer.
    """
    with _errors_about(url):
        system, path = _opened(url)
        if glob.has_magic(path):
            found = [str(name) for name in system.glob(path)]
            if not found:
                raise InputError(url, "matches no file", "check the pattern")
        elif PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES or not system.isdir(path):
            return (url,)
        else:
            found = [str(name) for name in system.ls(path, detail=False)]
            found = [name for name in found if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
            if not found:
                raise DataError(url, "holds no image", ADD_FILES)
        return tuple(str(system.unstrip_protocol(name)) for name in sorted(found))


def _fetched(url: str) -> bytes:
    with _errors_about(url):
        system, path = _opened(url)
        return bytes(system.cat_file(path))


def _opened(url: str) -> tuple[Any, str]:
    require_packages(_EXTRA, "fsspec")
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as exc:
        raise MissingPackageError(url, f"needs another package ({exc})", "install it beside fsspec") from exc
    except ValueError as exc:
        raise InputError(url, f"is not a URL that fsspec reads ({exc})", "check the URL") from exc
    return system, str(path)


@contextlib.contextmanager
def _errors_about(url: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise from_os_error(exc, url) from exc
