"""Records go to JSON and come back equal; what does not fit a hint is refused with the path to it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densenet_deploy.errors import DataError
from densenet_deploy.records import Choice, Range, from_plain, parse_json, to_plain, write_json


@dataclass(frozen=True)
class Inner:
    size: Annotated[int, Range(1, 8192)]
    share: float | None = None


@dataclass(frozen=True)
class Infinite:
    """Written in a form of its own."""

    value: float

    def to_json(self) -> str:
        return "inf" if math.isinf(self.value) else str(self.value)

    @classmethod
    def from_json(cls, data: object) -> Infinite:
        return cls(float(str(data)))


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    many: tuple[Inner, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    word: Annotated[str, Choice("a", "b")] = "a"
    mode: Literal["x", "y"] = "x"
    facts: Mapping[str, int | str | None] = field(default_factory=dict)
    path: Path | None = None
    special: Infinite = Infinite(1.0)
    renamed: bool = field(default=False, metadata={"key": "re-named"})


EXAMPLE = Outer(
    "n", Inner(2), (Inner(3, 0.5), Inner(4)), (1.0, 2.5), "b", "y", {"k": 1, "t": "x", "n": None}, Path("a/b"),
    Infinite(math.inf), True,
)  # fmt: skip
PLAIN = {
    "name": "n",
    "inner": {"size": 2, "share": None},
    "many": [{"size": 3, "share": 0.5}, {"size": 4, "share": None}],
    "pair": [1.0, 2.5],
    "word": "b",
    "mode": "y",
    "facts": {"k": 1, "t": "x", "n": None},
    "path": "a/b",
    "special": "inf",
    "re-named": True,
}


def test_a_record_is_written_by_its_keys_and_read_back_equal():
    assert to_plain(EXAMPLE) == PLAIN
    assert from_plain(Outer, json.loads(json.dumps(PLAIN))) == EXAMPLE


def test_what_has_a_default_may_be_missing_and_unknown_keys_are_ignored():
    assert from_plain(Outer, {"name": "n", "inner": {"size": 1}, "newer": 3}) == Outer("n", Inner(1))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"name": 3}, "name"),
        ({"name": None}, "name"),
        ({"inner": []}, "inner"),
        ({"inner": {}}, "inner.size"),
        ({"inner": {"size": 0}}, "inner.size"),
        ({"inner": {"size": 8193}}, "inner.size"),
        ({"inner": {"size": True}}, "inner.size"),
        ({"inner": {"size": 1.0}}, "inner.size"),
        ({"inner": {"size": 1, "share": "x"}}, "inner.share"),
        ({"inner": {"size": 1, "share": 10**400}}, "inner.share"),
        ({"many": [{"size": 1}, {"size": -1}]}, "many[1].size"),
        ({"many": {}}, "many"),
        ({"pair": [1.0]}, "pair"),
        ({"pair": [1.0, math.nan]}, "pair[1]"),
        ({"word": "c"}, "word"),
        ({"mode": "z"}, "mode"),
        ({"facts": {"k": 0.5}}, "facts.k"),
        ({"facts": []}, "facts"),
        ({"path": 3}, "path"),
        ({"special": "many"}, "special"),
        ({"re-named": 1}, "re-named"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_path_to_it(change, where):
    with pytest.raises(DataError) as caught:
        from_plain(Outer, PLAIN | change)
    assert caught.value.subject == where


@pytest.mark.parametrize("size", [1, 8192])
def test_bounds_are_included(size):
    assert from_plain(Inner, {"size": size}).size == size


def test_strict_reading_names_the_nearest_known_key():
    with pytest.raises(DataError) as caught:
        from_plain(Inner, {"size": 1, "shore": 1}, "recipe.toml", strict=True)
    assert caught.value.subject == "recipe.toml.shore"
    assert "'share'" in caught.value.why


def test_a_whole_number_is_a_float_where_a_float_is_wanted_and_stays_whole_in_a_union():
    assert type(from_plain(Inner, {"size": 1, "share": 1}).share) is float
    assert type(from_plain(int | float, 1)) is int  # type: ignore[arg-type]


def test_numbers_that_json_does_not_know_are_null_when_written_and_refused_when_read():
    assert to_plain({"a": math.inf, "b": (math.nan, 1.0)}) == {"a": None, "b": [None, 1.0]}
    for text in ("NaN", "[Infinity]", "[" * 100_000):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)


@given(
    st.builds(
        Outer,
        st.text(),
        st.builds(Inner, st.integers(1, 8192), st.none() | st.floats(allow_nan=False, allow_infinity=False)),
        facts=st.dictionaries(st.text(), st.integers() | st.text() | st.none(), max_size=3),
    )
)
def test_every_record_survives_the_round_trip(record):
    assert from_plain(Outer, parse_json(write_json(to_plain(record)))) == record
