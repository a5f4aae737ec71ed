"""Registries: registering, finding, and discovering plug-ins from the files of a package."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.registry import Registry


class Apple: ...


class Pear: ...


@pytest.fixture
def fruits() -> Registry[type]:
    registry: Registry[type] = Registry("fruit")
    registry.register("pear")(Pear)
    registry.register("apple")(Apple)
    return registry


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that writes plug-in files into a new importable package and returns its name."""
    name = "fruit_plugins"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from densenet_deploy.registry import Registry\nfruits = Registry('fruit', __name__)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def write(**files: str) -> str:
        for stem, text in files.items():
            (folder / f"{stem}.py").write_text(text)
        return name

    yield write
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def _registry(package_name: str) -> Registry[type]:
    registry: Registry[type] = __import__(package_name).fruits
    return registry


APPLE = "from fruit_plugins import fruits\n@fruits.register('apple')\nclass Apple: ...\n"
PEAR = APPLE.replace("apple", "pear").replace("Apple", "Pear")


def test_the_decorator_returns_what_it_decorates(fruits):
    class Fig: ...

    assert fruits.register("fig")(Fig) is Fig
    assert fruits.get("fig") is Fig


def test_names_and_table_are_sorted(fruits):
    assert fruits.names() == ("apple", "pear")
    assert list(fruits.items().items()) == [("apple", Apple), ("pear", Pear)]


def test_a_name_registers_one_thing(fruits):
    with pytest.raises(UsageError) as caught:
        fruits.register("apple")(Pear)
    assert caught.value.subject == "apple"
    assert fruits.get("apple") is Apple


def test_registering_the_same_thing_twice_is_harmless(fruits):
    fruits.register("apple")(Apple)
    assert fruits.names() == ("apple", "pear")


def test_the_table_is_a_copy(fruits):
    fruits.items().clear()
    assert fruits.names() == ("apple", "pear")


def test_an_unknown_name_suggests_the_nearest(fruits):
    with pytest.raises(UnknownNameError) as caught:
        fruits.get("aple")
    assert caught.value.subject == "aple"


def test_a_file_in_the_package_is_a_plug_in(package):
    assert _registry(package(apple=APPLE, pear=PEAR)).names() == ("apple", "pear")


def test_nothing_is_imported_before_the_first_look_up(package):
    registry = _registry(package(apple=APPLE))
    assert "fruit_plugins.apple" not in sys.modules
    registry.get("apple")
    assert "fruit_plugins.apple" in sys.modules


def test_a_plug_in_that_fails_to_import_fails_every_look_up(package):
    registry = _registry(package(apple=APPLE, broken="raise ImportError('no such library')"))
    for _ in range(2):  # a second look-up must not find a table that is silently short
        with pytest.raises(ImportError, match="no such library"):
            registry.names()


def test_threads_that_look_first_together_all_find_everything(package):
    slow = "import time\ntime.sleep(0.05)\n" + APPLE
    registry = _registry(package(apple=slow, pear=PEAR))
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: registry.names(), range(4))) == {("apple", "pear")}


def test_what_is_registered_inside_is_forgotten_on_leaving_also_by_an_error() -> None:
    fruits: Registry[type] = Registry("fruit")
    fruits.register("apple")(int)

    def fail() -> None:
        with fruits.restored():
            fruits.register("pear")(str)
            assert fruits.names() == ("apple", "pear")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert fruits.names() == ("apple",)
