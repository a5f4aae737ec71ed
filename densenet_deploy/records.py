"""Dataclasses to JSON and back, by their type hints: the one reader and writer of facts.

A record is a frozen dataclass. What it may hold is said once, by its annotations, and checked before it is used::

    @dataclass(frozen=True)
    class Crop:
        size: Annotated[int, Range(1, 8192)]
        filter: Annotated[str, Choice("nearest", "bilinear")] = "bilinear"

>>> to_plain(Crop(32))                                                             # doctest: +SKIP
{'size': 32, 'filter': 'bilinear'}
>>> from_plain(Crop, {"size": 0})                                                  # doctest: +SKIP
DataError: data: size: is 0, not a whole number from 1 to 8192; ...

Hints that are understood: `str`, `int`, `float`, `bool`, `None`, `Path`, `object` (any JSON value), `Literal`, tuples,
mappings with text keys, other records, unions of these, and `Annotated` with `Range` or `Choice`. A field's JSON key is
its name, or `field(metadata={"key": ...})`; one with the metadata `{"json": False}` stays out of it. A class that is
written in another form defines `to_json(self)` and the classmethod `from_json(cls, data)`, which raises ValueError;
both are used wherever it is nested in another record.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import reprlib
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, Union

from densenet_deploy.errors import DataError, DensenetDeployError, UsageError

T = TypeVar("T")
Fail = Callable[[str, str], DensenetDeployError]
"""Builds the error for the value at a path (`results[2].batch`), given the path and what is wrong with it."""

_WORDS: Final = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included."""

    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f" of at least {self.low:g}"
        return f" of at most {self.high:g}" if math.isinf(self.low) else f" from {self.low:g} to {self.high:g}"


class Choice:
    """The words that a text may be."""

    def __init__(self, *words: str | None) -> None:
        self.words = words

    def __str__(self) -> str:
        return f"one of {', '.join('null' if word is None else word for word in self.words)}"


def data_error(where: str, why: str) -> DensenetDeployError:
    """The error that `from_plain` raises unless it is given another."""
    return DataError(where or "data", why, "write it again with the command that made it")


def to_plain(value: object) -> Any:
    """Return `value` as JSON holds it: infinite numbers and NaN become None, tuples lists, records objects."""
    if dataclasses.is_dataclass(value):
        return value.to_json() if hasattr(value, "to_json") else fields_to_plain(value)
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list, frozenset)):
        return list(value) if _are_finite_floats(value) else [to_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def fields_to_plain(record: Any) -> dict[str, Any]:
    """Return the fields of a record by key, whatever `to_json` it may have."""
    fields = (field for field in dataclasses.fields(record) if field.metadata.get("json", True))
    return {key_of(field): to_plain(getattr(record, field.name)) for field in fields}


def from_plain(kind: type[T], data: object, where: str = "", fail: Fail = data_error, *, strict: bool = False) -> T:
    """Return the `kind` that `data`, parsed JSON or TOML, holds.

    Args:
        kind: a record, or any other type whose hints are understood.
        data: what was parsed.
        where: the path to it, as errors name it.
        fail: builds the error.
        strict: refuse unknown keys, naming the nearest known one; otherwise they are ignored, since a newer version may
            have written them.

    Raises:
        DensenetDeployError: what `fail` builds, if a value is missing, of another type or out of bounds, or a record
            inside refuses its own values with a UsageError.
        UsageError: if `kind` itself is a record that refuses its values: the caller knows what they are.
    """
    try:
        if dataclasses.is_dataclass(kind):
            return typing.cast("T", kind(**_values(kind, data, where, strict)))
        return typing.cast("T", _read(kind, data, where, strict))
    except _WrongValueError as exc:
        raise fail(exc.where, exc.why) from exc


def parse_json(text: str | bytes) -> object:
    """Return the value in `text`; NaN and Infinity, which are not JSON, are refused.

    Raises:
        ValueError: if it is not JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def write_json(value: object, indent: int | None = None) -> str:
    r"""Return JSON that UTF-8 can carry: a lone surrogate (from a file name in other bytes) is escaped as `\udc80`."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    return text.encode("utf-8", "backslashreplace").decode()


def key_of(field: dataclasses.Field[Any]) -> str:
    """Return the JSON key of a record's field."""
    return str(field.metadata.get("key", field.name))


class _WrongValueError(Exception):
    def __init__(self, where: str, why: str) -> None:
        self.where, self.why = where, why


def _read(hint: Any, data: object, where: str, strict: bool) -> Any:
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return _read_annotated(hint, data, where, strict)
    if origin in (Union, types.UnionType):
        return _read_union(typing.get_args(hint), data, where, strict)
    if origin is Literal:
        return _read_choice(data, typing.get_args(hint), where)
    if origin is tuple:
        return _read_tuple(typing.get_args(hint), data, where, strict)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        item = typing.get_args(hint)[1]
        return {key: _read(item, v, f"{where}.{key}" if where else key, strict) for key, v in _object(data, where)}
    if dataclasses.is_dataclass(hint):
        return _read_record(hint, data, where, strict)
    return _read_scalar(hint, data, where)


def _read_scalar(hint: Any, data: object, where: str) -> object:
    if hint in (object, Any):
        return data
    if hint in (None, types.NoneType):
        if data is not None:
            raise _wrong(where, data, "null")
        return None
    if hint is Path:
        return Path(str(_read_scalar(str, data, where)))
    if hint is float and _is_number(data):
        return float(data)  # type: ignore[arg-type]
    if type(data) is not hint or hint is float or (hint is int and not _is_number(data)):
        raise _wrong(where, data, _WORDS.get(hint, str(hint)))
    return data


def _is_number(data: object) -> bool:
    """Whether `data` is a number that a float holds: `1e999` and whole numbers of 400 digits are not."""
    return type(data) in (int, float) and abs(data) <= 1.7976931348623157e308  # type: ignore[arg-type]


def _read_annotated(hint: Any, data: object, where: str, strict: bool) -> object:
    kind, *bounds = typing.get_args(hint)
    for bound in bounds:
        if isinstance(bound, Choice) and data not in bound.words:
            raise _wrong(where, data, str(bound))
    value = _read(kind, data, where, strict)
    for bound in bounds:
        if isinstance(bound, Range) and isinstance(value, (int, float)) and not bound.low <= value <= bound.high:
            raise _wrong(where, data, f"{_WORDS.get(kind, 'a number')}{bound}")
    return value


def _read_choice(data: object, words: tuple[object, ...], where: str) -> object:
    if data not in words:
        raise _wrong(where, data, f"one of {', '.join(map(str, words))}")
    return data


def _read_union(hints: tuple[Any, ...], data: object, where: str, strict: bool) -> object:
    """Read the first member that fits; where none does, the error of the one that was meant, which is not null."""
    failures = []
    for hint in sorted(hints, key=lambda hint: hint is float):  # 1 is a whole number where both are allowed
        try:
            return _read(hint, data, where, strict)
        except _WrongValueError as exc:
            if hint is not types.NoneType:
                failures.append(exc)
    if len(failures) == 1:
        raise failures[0]
    wanted = " or ".join(_name(hint) for hint in hints)
    deeper = [exc for exc in failures if exc.where != where]
    raise deeper[0] if deeper else _wrong(where, data, wanted)


def _name(hint: Any) -> str:
    if hint is types.NoneType:
        return "null"
    if typing.get_origin(hint) is Annotated:
        return _name(typing.get_args(hint)[0])
    return "a list" if typing.get_origin(hint) is tuple else _WORDS.get(hint, "an object")


def _read_tuple(hints: tuple[Any, ...], data: object, where: str, strict: bool) -> tuple[Any, ...]:
    if not isinstance(data, (list, tuple)):
        raise _wrong(where, data, "a list")
    if hints[-1] is Ellipsis:
        if _are_floats_within(hints[0], data):
            return tuple(data)
        hints = (hints[0],) * len(data)
    if len(hints) != len(data):
        raise _wrong(where, data, f"a list of {len(hints)}")
    pairs = enumerate(zip(hints, data, strict=True))
    return tuple(_read(hint, item, f"{where}[{place}]", strict) for place, (hint, item) in pairs)


def _are_finite_floats(data: Collection[object]) -> bool:
    """Whether `data` is known to hold floats alone, none NaN or infinite: a graph has hundreds of thousands of them.

    Their sum is neither if none of them is; False where it overflows.
    """
    return set(map(type, data)) == {float} and math.isfinite(sum(data))  # type: ignore[arg-type]


def _are_floats_within(hint: Any, data: Sequence[Any]) -> bool:
    """Whether `data` can be read at once as tuple[`hint`, ...]; if not, reading one by one finds the reason."""
    kind, *bounds = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    if kind is not float or not all(isinstance(bound, Range) for bound in bounds) or not _are_finite_floats(data):
        return False
    low, high = min(data), max(data)
    return all(bound.low <= low and high <= bound.high for bound in bounds)


def _object(data: object, where: str) -> Iterator[tuple[str, object]]:
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise _wrong(where, data, "an object")
    return iter(data.items())


def _read_record(kind: Any, data: object, where: str, strict: bool) -> Any:
    if "from_json" in dir(kind):
        try:
            return kind.from_json(data)
        except ValueError as exc:
            raise _WrongValueError(where, str(exc)) from exc
    values = _values(kind, data, where, strict)
    try:
        return kind(**values)
    except UsageError as exc:  # of values that do not go together
        raise _WrongValueError(f"{where}.{exc.subject}", exc.why) from exc


def _values(kind: Any, data: object, where: str, strict: bool) -> dict[str, Any]:
    """Return the checked values of a record's fields by name."""
    facts, prefix = dict(_object(data, where)), f"{where}." if where else ""
    fields = (field for field in dataclasses.fields(kind) if field.init and field.metadata.get("json", True))
    hints, known = _hints(kind), {key_of(field): field for field in fields}
    if strict and (unknown := [key for key in facts if key not in known]):
        near = difflib.get_close_matches(unknown[0], known, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise _WrongValueError(f"{prefix}{unknown[0]}", f"is an unknown key; {hint}")
    for key, field in known.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and key not in facts:
            raise _WrongValueError(f"{prefix}{key}", "is missing")
    return {
        field.name: _read(hints[field.name], facts[key], f"{prefix}{key}", strict)
        for key, field in known.items()
        if key in facts
    }


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _wrong(where: str, data: object, wanted: str) -> _WrongValueError:
    return _WrongValueError(where, f"is {reprlib.repr(data)}, not {wanted}")


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number")
