"""A recipe as a TOML file: a built-in one as `base`, and options that the command line would otherwise give.

base = "onnxruntime"
observer = "mse"
alpha = 0.5
float-layers = ["features.conv0"]
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from densenet_deploy.artifacts import os_errors_about, require_file
from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.workflows.quantize.options import QuantizeOptions

_NUMBERS: Final = ("float", "float | None")


def is_recipe_file(word: str) -> bool:
    """Whether `--recipe` names a file, not a built-in recipe."""
    return word.lower().endswith(".toml")


def options_of(recipe: str, given: Mapping[str, Any]) -> QuantizeOptions:
    """Return the options that `--recipe` and what else was `given` on the command line stand for.

    Raises:
        InputError, UsageError: see `load_recipe`.
    """
    return load_recipe(Path(recipe), given) if is_recipe_file(recipe) else QuantizeOptions(recipe=recipe, **given)


def load_recipe(path: Path, given: Mapping[str, Any]) -> QuantizeOptions:
    """Return the options of the recipe in `path`; what was `given` on the command line counts more.

    Raises:
        InputError: if there is no such file.
        UsageError: if it is no TOML, or an option has the wrong type or value.
        UnknownNameError: if it holds an unknown key, naming the nearest known one.
    """
    require_file(path)
    try:
        with os_errors_about(path):
            facts = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise UsageError(path, f"is no TOML: {exc}", "write one option a line: alpha = 0.5") from exc
    known = {
        "base" if field.name == "recipe" else field.name.replace("_", "-"): field for field in fields(QuantizeOptions)
    }
    values: dict[str, Any] = {}
    for key, value in facts.items():
        if key not in known:
            raise UnknownNameError.among(f"key in {path.name}", key, known)
        values[known[key].name] = _checked(f"{path.name}: {key}", value, str(known[key].type))
    if "recipe" not in values:
        raise UsageError(path, "names no base", 'add a line: base = "onnxruntime"')
    if is_recipe_file(values["recipe"]):
        raise UsageError(path, f"has {values['recipe']} as its base", "name a built-in recipe")
    return QuantizeOptions(**(values | dict(given)))


def _checked(name: str, value: object, kind: str) -> object:
    """Return `value` as the type that the annotation `kind` asks for."""
    if kind.startswith("tuple") and isinstance(value, list) and all(isinstance(word, str) for word in value):
        return tuple(value)
    if kind in _NUMBERS and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    wanted = {"str": str, "int": int, "bool": bool}.get(kind)
    if wanted is None or type(value) is not wanted:
        raise UsageError(f"{name} = {value!r}", f"is no {kind.split(' ')[0]}", "see calibration/README.md")
    return value
