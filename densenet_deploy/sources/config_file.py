"""`config.json` beside weights: what timm and Transformers write about the images and labels of a network.

timm states `pretrained_cfg` (or its keys at the top): input size, share of the image that the crop keeps, mean, std,
interpolation. Transformers states `id2label` and `problem_type`, and the images in `preprocessor_config.json`. What
these files say wins over the default of the architecture.

>>> facts_of_config({"pretrained_cfg": {"input_size": [3, 288, 288], "crop_pct": 0.95}}).resize
303
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

from densenet_deploy.artifacts import os_errors_about
from densenet_deploy.errors import InputError, UsageError
from densenet_deploy.facts import ModelFacts
from densenet_deploy.manifest import INTERPOLATIONS
from densenet_deploy.records import parse_json
from densenet_deploy.variants.spec import DenseNetSpec

CONFIG: Final = "config.json"
PREPROCESSOR: Final = "preprocessor_config.json"

_LARGEST_BYTES: Final = 64 * 2**20
_TASKS: Final = {
    "multi_label_classification": "multilabel",
    "single_label_classification": "multiclass",
    "regression": "regression",
}
_RESAMPLING: Final = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


@dataclass(frozen=True)
class WeightsConfig:
    """What the files beside weights say.

    Attributes:
        facts: about images and outputs; labels are in the order of the outputs.
        architecture: the name that timm gives it; None if none is stated.
        notes: what was read, and what could not be used.
    """

    facts: ModelFacts
    architecture: str | None = None
    notes: tuple[str, ...] = ()


def config_beside(weights: Path) -> WeightsConfig | None:
    """Return what `config.json` beside `weights` says; None if there is none, or it is not about a network.

    Raises:
        InputError: if it is not a JSON object, or states impossible values.
    """
    path, images = weights.parent / CONFIG, weights.parent / PREPROCESSOR
    if not path.is_file():
        return None
    try:
        return config_of(_object_in(path), _object_in(images) if images.is_file() else {})
    except UsageError as exc:
        raise InputError(path, f"states {exc.subject}, which {exc.why}", "correct or remove it") from exc


def config_of(config: Mapping[str, Any], images: Mapping[str, Any]) -> WeightsConfig | None:
    """Return what the contents of a `config.json` and of a `preprocessor_config.json` say; None if nothing of use.

    Raises:
        UsageError: if a value is impossible.
    """
    facts = {**_of_images(images), **facts_of_config(config).given()}
    architecture = config.get("architecture")
    if not facts and not isinstance(architecture, str):
        return None
    said = ", ".join(facts) or "nothing about images or labels"
    notes = (f"{CONFIG}: {said}", *_unknown_interpolation(config))
    return WeightsConfig(ModelFacts(**facts), architecture if isinstance(architecture, str) else None, notes)


def facts_of_config(config: Mapping[str, Any]) -> ModelFacts:
    """Return the facts in timm's and Transformers' keys of a `config.json`, or in a timm module's `pretrained_cfg`."""
    timm = config.get("pretrained_cfg")
    inner: Mapping[str, Any] = timm if isinstance(timm, Mapping) else config
    facts = {**_of_outputs(config), **_of_timm(inner)}
    labels = config.get("label_names", inner.get("label_names"))
    if isinstance(labels, list) and all(isinstance(name, str) for name in labels):
        facts["labels"] = tuple(labels)
    return ModelFacts(**facts)


def fitting(facts: ModelFacts, spec: DenseNetSpec) -> tuple[ModelFacts, tuple[str, ...]]:
    """Return (the facts that can be true of a network with `spec`, a note on the others)."""
    classes = None if spec.head == "features" else spec.num_classes
    counts = {"mean": spec.in_channels, "std": spec.in_channels, "labels": classes, "thresholds": classes}
    found = facts.given()
    wrong = [
        name
        for name, count in counts.items()
        if name in found and len(found[name]) not in ((count,) if name == "labels" else (1, count))
    ]
    if found.get("channels", spec.in_channels) != spec.in_channels:
        wrong.append("channels")
    kept = {name: value for name, value in found.items() if name not in wrong}
    size = f"{spec.in_channels} channels, {classes or 'no'} classes"
    notes = (f"left out, since they do not fit the weights ({size}): {', '.join(wrong)}",) if wrong else ()
    return ModelFacts(**kept), notes


def _object_in(path: Path) -> Mapping[str, Any]:
    with os_errors_about(path):
        if path.stat().st_size > _LARGEST_BYTES:
            raise InputError(path, f"is larger than {_LARGEST_BYTES} bytes", "remove it")
        data = path.read_bytes()
    try:
        content = parse_json(data)
    except ValueError as exc:
        raise InputError(path, f"is not JSON ({exc})", "correct or remove it") from exc
    if not isinstance(content, Mapping):
        raise InputError(path, "is not a JSON object", "correct or remove it")
    return content


def _of_timm(config: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    size = config.get("input_size")
    if isinstance(size, (list, tuple)) and len(size) == 3:
        facts["channels"], facts["image_size"] = size[0], tuple(size[1:])
        facts["resize"] = _resize(size[1:], config.get("crop_pct"), config.get("crop_mode"))
    if config.get("interpolation") in INTERPOLATIONS:
        facts["interpolation"] = config["interpolation"]
    return facts | {name: tuple(config[name]) for name in ("mean", "std") if _is_list(config.get(name))}


def _resize(sides: Any, share: Any, mode: Any) -> Any:
    """What timm resizes to before its crop, which keeps `share` of it: the shorter side, or both sides."""
    scale = float(share) if isinstance(share, (int, float)) and share > 0 else 0.875
    resized = tuple(math.floor(side / scale) for side in sides)
    return resized[0] if resized[0] == resized[1] and mode != "squash" else resized


def _of_outputs(config: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    names = config.get("id2label")
    if isinstance(names, Mapping) and names and {str(key) for key in names} == set(map(str, range(len(names)))):
        facts["labels"] = tuple(str(names[key]) for key in sorted(names, key=int))
    if config.get("problem_type") in _TASKS:
        facts["task"] = _TASKS[config["problem_type"]]
    for key, name in (("num_channels", "channels"), ("image_size", "image_size")):
        if isinstance(config.get(key), int):
            facts[name] = config[key]
    return facts


def _of_images(config: Mapping[str, Any]) -> dict[str, Any]:
    """What an image processor of Transformers does."""
    facts: dict[str, Any] = {}
    size, crop = _side(config.get("size")), _side(config.get("crop_size"))
    does_crop = config.get("do_center_crop", False)
    image = crop if does_crop and crop is not None else size
    if image is not None and size is not None:
        facts |= {"image_size": image, "resize": size if config.get("do_resize", True) else "none"}
    if config.get("do_normalize", True):
        values = {name: config.get(f"image_{name}") for name in ("mean", "std")}
        facts |= {name: tuple(value) for name, value in values.items() if _is_list(value)}
    if config.get("resample") in _RESAMPLING:
        facts["interpolation"] = _RESAMPLING[config["resample"]]
    return facts


def _side(value: Any) -> Any:
    if isinstance(value, int):
        return value
    if not isinstance(value, Mapping):
        return None
    if isinstance(value.get("shortest_edge"), int):
        return value["shortest_edge"]
    sides = (value.get("height"), value.get("width"))
    return sides if all(isinstance(side, int) for side in sides) else None


def _is_list(value: Any) -> TypeGuard[list[float]]:
    return isinstance(value, (list, tuple)) and all(isinstance(item, (int, float)) for item in value) and bool(value)


def _unknown_interpolation(config: Mapping[str, Any]) -> tuple[str, ...]:
    timm = config.get("pretrained_cfg")
    name = (timm if isinstance(timm, Mapping) else config).get("interpolation")
    return () if name is None or name in INTERPOLATIONS else (f"{CONFIG}: interpolation {name} is not supported",)
