"""What travels with an artifact: typed facts, and the strings that carry them in a file.

An ONNX file holds the facts in `metadata_props`, one key a fact, each value JSON::

    densenet_deploy.schema         1
    densenet_deploy.variant        "121"
    densenet_deploy.preprocessing  {"image_size":224,"resize":256,...}

JSON is parsed, never evaluated, and every field is checked for its type before it is believed.
"""

from __future__ import annotations

import dataclasses
import json
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from densenet_deploy.errors import ManifestError

SCHEMA: Final = 1
PREFIX: Final = "densenet_deploy."

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

INTERPOLATIONS: Final = ("nearest", "bilinear", "bicubic")

Triple = tuple[float, float, float]
Scalar = str | int | float | bool | None
SpecFacts = Mapping[str, Scalar | tuple[int, ...]]


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input: shorter side to `resize`, centre crop to `image_size` (pixels), normalize.

    The result is `(value / 255 - mean) / std` per RGB channel, float32, (3, image_size, image_size).
    """

    image_size: int = 224
    resize: int = 256
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    interpolation: str = "bilinear"

    @property
    def value_range(self) -> tuple[float, float]:
        """Smallest and largest value that a normalized image can hold."""
        low = min(-m / s for m, s in zip(self.mean, self.std, strict=True))
        high = max((1 - m) / s for m, s in zip(self.mean, self.std, strict=True))
        return low, high


@dataclass(frozen=True)
class WeightsOrigin:
    """Where the weights came from. `source` is `none`, a torchvision name, or the name of a file.

    `sha256` is of the parameter bytes (hex); `seed` is set where the weights are random.
    """

    source: str
    sha256: str
    seed: int | None = None

    @property
    def is_trained(self) -> bool:
        return self.source != "none"


@dataclass(frozen=True)
class Manifest:
    """The facts of one artifact. `labels` may be empty; `recipe` names how INT8 was written, if it was.

    `batch` (None: dynamic) and `opset` are those of the export.
    """

    variant: str
    spec: SpecFacts
    weights: WeightsOrigin
    preprocessing: Preprocessing
    labels: tuple[str, ...] = ()
    precision: str = "fp32"
    recipe: str | None = None
    batch: int | None = None
    opset: int | None = None
    tools: Mapping[str, str] = field(default_factory=dict)

    def same_artifact(self, other: Manifest) -> bool:
        """Whether both describe the same model in the same form (tool versions may differ)."""
        return dataclasses.replace(self, tools={}) == dataclasses.replace(other, tools={})

    def to_strings(self) -> dict[str, str]:
        """Return the facts as the string pairs that a file carries."""
        facts = {"schema": SCHEMA, **dataclasses.asdict(self)}
        return {PREFIX + key: _json(value) for key, value in facts.items()}

    @classmethod
    def from_strings(cls, strings: Mapping[str, str]) -> Manifest | None:
        """Read the facts back, or return None where `strings` holds none of ours.

        Raises:
            ManifestError: if a fact is missing, malformed, or of a newer schema.
        """
        known = ("schema", *(field.name for field in dataclasses.fields(cls)))
        texts = {key: strings[PREFIX + key] for key in known if PREFIX + key in strings}
        if not texts:
            return None
        facts = {key: _parse(key, text) for key, text in texts.items()}
        _check_schema(facts.pop("schema", None))
        manifest: Manifest = _build(cls, facts, "")
        return manifest


def _json(value: object) -> str:
    r"""Write JSON that UTF-8 can carry: a stray surrogate (from a file name in odd bytes) is escaped as `\udc80`."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode()


def _parse(key: str, text: str) -> object:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise ManifestError(PREFIX + key, f"is not JSON: {text[:60]}", "export the model again") from exc


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number")


def _check_schema(schema: object) -> None:
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise _fail("schema", schema, "a schema number")
    if schema > SCHEMA:
        why = f"is {schema}, newer than {SCHEMA}, the newest known here"
        raise ManifestError(PREFIX + "schema", why, "upgrade densenet-deploy")


def _object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _fail(where, value, "an object")
    return value


def _build(cls: type[Any], facts: Mapping[str, object], where: str) -> Any:
    """Build the dataclass `cls` from parsed JSON, converting every field by the reader of its name."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    missing = [
        name
        for name, f in fields.items()
        if name not in facts and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ManifestError(PREFIX + where + missing[0], "is missing", "export the model again")
    values = {name: _READERS[f"{cls.__name__}.{name}"](facts[name], where + name) for name in fields if name in facts}
    return cls(**values)


def _fail(where: str, value: object, wanted: str) -> ManifestError:
    return ManifestError(PREFIX + where, f"is {reprlib.repr(value)}, not {wanted}", "export the model again")


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _fail(where, value, "text")
    return value


def _interpolation(value: object, where: str) -> str:
    text = _text(value, where)
    if text not in INTERPOLATIONS:
        raise _fail(where, value, f"one of {', '.join(INTERPOLATIONS)}")
    return text


def _optional_text(value: object, where: str) -> str | None:
    return None if value is None else _text(value, where)


def _pixels(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65536:
        raise _fail(where, value, "a number of pixels")
    return value


def _optional_whole(value: object, where: str) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise _fail(where, value, "a whole number")
    return value


def _triple(value: object, where: str) -> Triple:
    if not isinstance(value, list) or len(value) != 3 or not all(map(_is_number, value)):
        raise _fail(where, value, "three numbers")
    red, green, blue = (float(v) for v in value)
    return red, green, blue


def _is_number(value: object) -> bool:
    """Whether `value` is a number that a float holds: `1e999` and whole numbers of 400 digits are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _positive_triple(value: object, where: str) -> Triple:
    triple = _triple(value, where)
    if min(triple) <= 0:
        raise _fail(where, value, "three positive numbers")
    return triple


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _fail(where, value, "a list of texts")
    return tuple(_text(v, where) for v in value)


def _text_map(value: object, where: str) -> dict[str, str]:
    return {key: _text(v, f"{where}.{key}") for key, v in _object(value, where).items()}


def _spec(value: object, where: str) -> SpecFacts:
    return {key: _spec_fact(v, f"{where}.{key}") for key, v in _object(value, where).items()}


def _spec_fact(value: object, where: str) -> Scalar | tuple[int, ...]:
    if isinstance(value, list) and all(type(v) is int for v in value):
        return tuple(value)
    if value is None or isinstance(value, (str, bool)) or _is_number(value):
        return value  # type: ignore[return-value]
    raise _fail(where, value, "text, a number or a list of whole numbers")


_READERS = {
    "Preprocessing.image_size": _pixels,
    "Preprocessing.resize": _pixels,
    "Preprocessing.mean": _triple,
    "Preprocessing.std": _positive_triple,
    "Preprocessing.interpolation": _interpolation,
    "WeightsOrigin.source": _text,
    "WeightsOrigin.sha256": _text,
    "WeightsOrigin.seed": _optional_whole,
    "Manifest.variant": _text,
    "Manifest.spec": _spec,
    "Manifest.weights": lambda value, where: _build(WeightsOrigin, _object(value, where), where + "."),
    "Manifest.preprocessing": lambda value, where: _build(Preprocessing, _object(value, where), where + "."),
    "Manifest.labels": _texts,
    "Manifest.precision": _text,
    "Manifest.recipe": _optional_text,
    "Manifest.batch": _optional_whole,
    "Manifest.opset": _optional_whole,
    "Manifest.tools": _text_map,
}
