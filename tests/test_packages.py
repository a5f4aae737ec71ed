"""Which packages are installed, and what is said of one that is not."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest

from densenet_deploy.errors import MissingPackageError
from densenet_deploy.packages import installed_version, installed_versions, is_installed, require_packages

MISSING = "no_such_package"


def test_a_package_is_found_without_being_imported() -> None:
    sys.modules.pop("this", None)
    assert is_installed("this")
    assert "this" not in sys.modules
    assert not is_installed(MISSING)


def test_the_first_missing_package_is_named_with_the_extra_that_installs_it() -> None:
    require_packages("extra", "json", "sys")
    require_packages("extra")
    with pytest.raises(MissingPackageError) as caught:
        require_packages("some-extra", "json", MISSING, "another_missing_package")
    assert caught.value.subject == MISSING
    assert "some-extra" in caught.value.fix


def test_versions_are_those_of_the_installed_packages_in_the_order_given() -> None:
    assert installed_version("numpy") == importlib.metadata.version("numpy")
    assert installed_version(MISSING) is None
    found = installed_versions(name for name in ("pillow", MISSING, "numpy"))
    assert list(found.items()) == [(name, importlib.metadata.version(name)) for name in ("pillow", "numpy")]
