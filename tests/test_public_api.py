"""What `import densenet_deploy` offers, and nothing beside it."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import types

import pytest

import densenet_deploy

FUNCTIONS = (
    *("load", "export", "simplify", "cast", "quantize", "build_engine", "compare", "evaluate", "benchmark", "tune"),
    *("inspect", "sensitivity", "train", "prune", "predict", "report", "serve", "triton", "web", "open_runner"),
)
NAMES = [name for name in densenet_deploy.__all__ if name != "__version__"]


def test_the_functions_that_were_promised_are_there():
    assert set(FUNCTIONS) <= set(NAMES)
    assert {"Classifier", "DensenetDeployError"} <= set(NAMES)
    assert densenet_deploy.__all__ == sorted(densenet_deploy.__all__)


def test_a_star_import_brings_exactly_the_public_names():
    names: dict[str, object] = {}
    exec("from densenet_deploy import *", names)
    assert names.keys() - {"__builtins__"} == set(densenet_deploy.__all__)


def test_no_module_takes_the_place_of_a_public_name():
    """Importing a module binds its name in the package: one called like a function would replace the function."""
    for module in pkgutil.walk_packages(densenet_deploy.__path__, "densenet_deploy."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    assert [name for name in NAMES if isinstance(getattr(densenet_deploy, name), types.ModuleType)] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_very_thing_that_its_home_defines(name):
    value = getattr(densenet_deploy, name)
    assert name in dir(densenet_deploy)
    assert getattr(importlib.import_module(value.__module__), name) is value


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_option_types_of_a_signature_are_public_too(name):
    """Without them a caller could not write the call down. Annotations are text, which names them."""
    signature = inspect.signature(getattr(densenet_deploy, name))
    mentioned = {
        word for one in signature.parameters.values() for word in re.findall(r"\w+Options", str(one.annotation))
    }
    assert mentioned - {"LoadOptions"} <= set(NAMES)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_invalid_path_is_one_of_our_errors(name, tmp_path):
    """`str` and `Path` alike, and never an AttributeError of a missing method."""
    missing = tmp_path / "missing.onnx"
    more = {"quantize": [tmp_path], "sensitivity": [tmp_path], "compare": [missing], "evaluate": [tmp_path]}
    more["prune"] = [tmp_path, densenet_deploy.PruneOptions(ratio=0.5)]
    more["triton"] = [tmp_path / "repository"]
    more["web"] = [tmp_path / "site"]
    for path in (missing, str(missing)):
        source: object = [path] if name in ("benchmark", "tune", "report", "triton") else path
        arguments = [source, *more.get(name, []), *([path] if name == "predict" else [])]
        with pytest.raises(densenet_deploy.DensenetDeployError) as caught:
            getattr(densenet_deploy, name)(*arguments)
        assert caught.value.exit_code in (2, 3)


def test_the_version_is_that_of_the_package():
    assert densenet_deploy.__version__ == importlib.metadata.version("densenet-deploy")


@pytest.mark.parametrize("name", ["open_runer", "export_onnx", "torch"])
def test_another_name_is_an_attribute_error(name):
    with pytest.raises(AttributeError):
        getattr(densenet_deploy, name)
