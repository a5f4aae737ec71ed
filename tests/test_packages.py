"""Which packages are installed, and what is said of one that is not."""

from __future__ import annotations

import importlib.metadata
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from densenet_deploy.errors import MissingPackageError
from densenet_deploy.packages import imported, installed_version, installed_versions, is_installed, require_packages

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


def test_a_module_that_another_thread_imports_is_waited_for(tmp_path, monkeypatch) -> None:
    begun, goes_on = threading.Event(), threading.Event()
    monkeypatch.setattr(sys, "imported_slowly", (begun, goes_on), raising=False)
    lines = ["import sys", "begun, goes_on = sys.imported_slowly", "begun.set()", "goes_on.wait(20)", "value = 1"]
    (tmp_path / "imported_slowly.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    assert imported("imported_slowly") is None
    with ThreadPoolExecutor(2) as pool:
        importing = pool.submit(importlib.import_module, "imported_slowly")
        assert begun.wait(20)
        assert not hasattr(sys.modules["imported_slowly"], "value")
        asking = pool.submit(imported, "imported_slowly")
        assert wait([asking], timeout=0.1).not_done
        goes_on.set()
        assert asking.result(20) is importing.result(20)
        assert asking.result().value == 1
    monkeypatch.delitem(sys.modules, "imported_slowly")
