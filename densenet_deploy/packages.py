"""Which optional packages are there, and the command that brings one that is not."""

from __future__ import annotations

from importlib.util import find_spec

from densenet_deploy.errors import MissingPackageError


def is_installed(package: str) -> bool:
    """Whether `package` can be imported; it is looked for, not imported."""
    return find_spec(package) is not None


def require_packages(extra: str, *packages: str) -> None:
    """Check that `packages`, which the install extra `extra` brings, are there.

    Raises:
        MissingPackageError: naming the first that is not, and the command that installs it.
    """
    for package in packages:
        if not is_installed(package):
            raise MissingPackageError.of(package, extra)
