"""A recipe as a TOML file: a built-in one as `base`, and options that the command line would otherwise give.

base = "onnxruntime"
observer = "percentile"
observer-options = {percentile = 99.9}
alpha = 0.5
float-layers = ["features.conv0"]
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densenet_deploy.artifacts import StrPath, os_errors_about, require_file
from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.quantization.observers.observer import observer_options, parse_observer_options
from densenet_deploy.records import from_plain
from densenet_deploy.workflows.quantize.options import QuantizeOptions


def is_recipe_file(word: str) -> bool:
    """Whether `--recipe` names a file, not a built-in recipe."""
    return word.lower().endswith(".toml")


def options_of(recipe: str, given: Mapping[str, Any], observer_texts: Sequence[str] = ()) -> QuantizeOptions:
    """Return the options of `--recipe` and of the other options on the command line.

    Args:
        recipe: the name of a built-in recipe, or a recipe file.
        given: other options by name, which take precedence over the file.
        observer_texts: options of the observer, such as `percentile=99.9`.

    Raises:
        InputError, UsageError: see `load_recipe`.
    """
    options = load_recipe(recipe, given) if is_recipe_file(recipe) else QuantizeOptions(recipe=recipe, **given)
    if not observer_texts:
        return options
    return dataclasses.replace(options, observer_options=parse_observer_options(options.observer, observer_texts))


def load_recipe(path: StrPath, given: Mapping[str, Any] | None = None) -> QuantizeOptions:
    """Return the options of the recipe in `path`; those `given` by name take precedence.

    Raises:
        InputError: if the file does not exist.
        UsageError: if it is not TOML, or an option has an invalid type or value.
        UnknownNameError: if it holds an unknown key, naming the nearest known one.
    """
    path = Path(path)
    facts = _facts(path)
    table = facts.pop("observer_options", None)
    options = from_plain(QuantizeOptions, facts, fail=lambda where, why: _invalid(path, where, why))
    if is_recipe_file(options.recipe):
        raise UsageError(path, f"has {options.recipe} as its base", "name a built-in recipe")
    options = dataclasses.replace(options, **given or {})
    if table is None or options.observer_options is not None:
        return options
    if not isinstance(table, dict):
        raise _invalid(path, "observer_options", "is not a table")
    return dataclasses.replace(options, observer_options=observer_options(options.observer, table))


def _facts(path: Path) -> dict[str, Any]:
    """Return the values in `path` by the names of options."""
    require_file(path)
    try:
        with os_errors_about(path):
            facts = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise UsageError(path, f"is not TOML: {exc}", "write one option per line: alpha = 0.5") from exc
    names = {_key_of(field.name): field.name for field in dataclasses.fields(QuantizeOptions)}
    for key in facts:
        if key not in names:
            raise UnknownNameError.among(f"key in {path.name}", key, names)
    if "base" not in facts:
        raise UsageError(path, "names no base", 'add a line: base = "onnxruntime"')
    return {names[key]: value for key, value in facts.items()}


def _key_of(name: str) -> str:
    return "base" if name == "recipe" else name.replace("_", "-")


def _invalid(path: Path, where: str, why: str) -> UsageError:
    name, dot, rest = where.partition("[")
    return UsageError(f"{path.name}: {_key_of(name)}{dot}{rest}", why, "see calibration/README.md")
