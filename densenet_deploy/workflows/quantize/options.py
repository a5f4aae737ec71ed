"""What can be chosen about a quantization, on the command line and in a recipe file alike.

A recipe file is TOML: a built-in recipe as `base`, and options that the command line would otherwise give::

    base = "onnxruntime"
    observer = "percentile"
    observer-options = {percentile = 99.9}
    alpha = 0.5
    float-layers = ["features.conv0"]
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densenet_deploy.artifacts import StrPath, os_errors_about, require_file
from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.options import require_choice, require_range
from densenet_deploy.packages import is_installed
from densenet_deploy.quantization.observers.observer import (
    CalibrationConfig,
    ObserverOptions,
    observers,
    parse_observer_options,
)
from densenet_deploy.records import from_plain


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize.

    >>> QuantizeOptions("openvino", min_sqnr=40.0).observer
    'minmax'

    Attributes:
        recipe: `onnxruntime`, `openvino`, `tensorrt`, or `auto`: openvino where it is installed, else onnxruntime.
        observer: how ranges are chosen: minmax, percentile, entropy, mse.
        observer_options: its options, such as `PercentileOptions(percentile=99.9)`; None means its defaults.
        samples: images to calibrate on, a seeded subset; all where there are fewer.
        alpha: share of the spread of activations that moves into the weights, 0 to 1.
        equalize: whether to spread ranges over channels first.
        correct: whether to take back what quantization does to mean and swing of every layer's outputs.
        weights: `per-channel` or `per-tensor` scales.
        quantize_bus: whether the recipe `tensorrt` writes the buses of dense blocks in INT8 too; others do anyway.
        max_drop: percentage points of top-1, or of a multilabel model's mean AUROC, that may be lost on the calibration
            images, which are then in class folders; the cheapest layers stay float until that holds.
        min_sqnr: SQNR of the logits in dB, on calibration images, that must be reached in the same way.
        never_slower: whether layers whose INT8 gains no time on this machine go back to float.
        speed_seconds: how long that is measured, at most; what is undecided then stays INT8, and the report says so.
        float_layers: names of convolutions that stay float in any case.
        finetune: whether quantized values are fine-tuned, with the float model as the target; see `finetuning.py`.
        finetune_seconds: how long that takes, at most: it makes fewer steps where they do not fit in; the rounding of
            weights before them is not cut short.
        finetune_seed: of what it draws: where weights start, the order of images, and which are held out.
    """

    recipe: str = "auto"
    observer: str = "minmax"
    observer_options: ObserverOptions | None = None
    samples: int = 512
    alpha: float = 0.5
    equalize: bool = True
    correct: bool = True
    weights: str = "per-channel"
    quantize_bus: bool = False
    max_drop: float | None = None
    min_sqnr: float | None = None
    never_slower: bool = True
    speed_seconds: float = 20.0
    float_layers: tuple[str, ...] = ()
    finetune: bool = False
    finetune_seconds: float = 300.0
    finetune_seed: int = 0

    def __post_init__(self) -> None:
        CalibrationConfig(self.observer, self.observer_options)  # which checks them
        require_range("samples", self.samples, 1, 1_000_000)
        require_range("alpha", self.alpha, 0.0, 1.0)
        require_choice("weights", self.weights, ("per-channel", "per-tensor"))
        require_range("speed-seconds", self.speed_seconds, 1.0, 86_400.0)
        require_range("finetune-seconds", self.finetune_seconds, 1.0, 86_400.0)
        require_range("finetune-seed", self.finetune_seed, 0, 2**32 - 1)
        if self.max_drop is not None:
            require_range("max-drop", self.max_drop, 0.0, 100.0)
        if self.min_sqnr is not None:
            require_range("min-sqnr", self.min_sqnr, 0.0, 200.0)
        if self.max_drop is not None and self.min_sqnr is not None:
            raise UsageError("--max-drop and --min-sqnr", "ask for two different things", "give one of them")


def is_recipe_file(word: str) -> bool:
    """Whether `--recipe` names a file, not a built-in recipe."""
    return word.lower().endswith(".toml")


def recipe_here(name: str) -> str:
    """Return `name`, or what `auto` is on this machine: openvino where it is installed, else onnxruntime."""
    if name != "auto":
        return name
    return "openvino" if is_installed("openvino") else "onnxruntime"


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
    kind = observers.get(options.observer).options_type
    found = from_plain(kind, table, "observer_options", lambda where, why: _invalid(path, where, why), strict=True)
    return dataclasses.replace(options, observer_options=found)


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
    name = re.split(r"[.\[]", where)[0]
    return UsageError(f"{path.name}: {_key_of(name)}{where.removeprefix(name)}", why, "see docs/how-to/calibration.md")
