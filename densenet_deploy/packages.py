"""Which packages are installed, in which versions, and the command that installs a missing one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from types import ModuleType

from densenet_deploy.errors import MissingPackageError


def is_installed(package: str) -> bool:
    """Whether `package` can be found; it is not imported."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of the package around it: `google` of `google.protobuf`
        return False


def imported(name: str) -> ModuleType | None:
    """Return the module `name` if something has imported it, else None.

    While another thread is importing it, this waits: `sys.modules` would give a module that is not complete.

    >>> imported("no_such_module") is None
    True
    """
    return None if sys.modules.get(name) is None else importlib.import_module(name)


def require_packages(extra: str, *packages: str) -> None:
    """Check that `packages`, which the extra `extra` installs, can be found.

    Raises:
        MissingPackageError: naming the first that is missing, and the command that installs it.
    """
    for package in packages:
        if not is_installed(package):
            raise MissingPackageError.of(package, extra)


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those of `names` that are installed, in the order given.

    >>> installed_versions(["no-such-package"])
    {}
    """
    return {name: version for name in names if (version := installed_version(name)) is not None}


def installed_version(name: str) -> str | None:
    """Return the version of the package `name`; None if it is not installed."""
    from importlib import metadata  # slow to import, and seldom needed

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
