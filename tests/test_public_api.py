"""What `import densenet_deploy` offers, and nothing beside it."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect

import pytest

import densenet_deploy


@pytest.mark.parametrize("name", densenet_deploy.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(densenet_deploy, name)
    assert name in dir(densenet_deploy)
    assert name == "__version__" or inspect.getdoc(value)


def test_a_star_import_brings_exactly_the_public_names():
    names: dict[str, object] = {}
    exec("from densenet_deploy import *", names)
    assert names.keys() - {"__builtins__"} == set(densenet_deploy.__all__)


def test_there_are_about_ten():
    assert len(densenet_deploy.__all__) <= 12
    assert densenet_deploy.__all__ == sorted(densenet_deploy.__all__)


@pytest.mark.parametrize("name", [name for name in densenet_deploy.__all__ if name != "__version__"])
def test_a_name_is_the_very_thing_that_its_home_defines(name):
    value = getattr(densenet_deploy, name)
    assert getattr(importlib.import_module(value.__module__), name) is value


def test_the_version_is_that_of_the_package():
    assert densenet_deploy.__version__ == importlib.metadata.version("densenet-deploy")


@pytest.mark.parametrize("name", ["open_runer", "Runner", "torch"])
def test_another_name_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match=f"module 'densenet_deploy' has no attribute '{name}'"):
        getattr(densenet_deploy, name)
