"""Records go to JSON and come back equal; what does not fit a hint is refused with the path to it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densenet_deploy.errors import DataError, InputError, UsageError
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


@dataclass(frozen=True)
class Partly:
    """A field that stays out of the JSON, and one that is computed."""

    size: int
    secret: int = field(default=1, metadata={"json": False})
    double: int = field(default=2, init=False)


@dataclass(frozen=True)
class Span:
    """Checks by itself that its values go together."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if self.high < self.low:
            raise UsageError("high", f"is {self.high}, below {self.low}", "give a larger one")


@dataclass(frozen=True)
class Spans:
    first: Span
    others: tuple[Span | str, ...] = ()


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


def test_a_missing_bound_is_no_bound():
    assert from_plain(Annotated[float, Range(high=0.5)], -1e308) == -1e308
    assert from_plain(Annotated[float, Range(low=0.5)], 1e308) == 1e308


def test_null_has_no_bounds():
    assert from_plain(Annotated[int | None, Range(1, 8)], None) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("hint", "data", "wanted"),
    [
        (str, 3, "text"),
        (int, "a", "a whole number"),
        (int, True, "a whole number"),
        (float, "a", "a number"),
        (float, True, "a number"),
        (bool, 1, "true or false"),
        (None, 1, "null"),
        (list[int], [1], "list[int]"),  # a hint that is not understood
        (Annotated[int, Range(1, 8)], 0, "a whole number from 1 to 8"),
        (Annotated[float, Range(low=0.5)], 0.25, "a number of at least 0.5"),
        (Annotated[float, Range(high=0.5)], 1, "a number of at most 0.5"),
        (Annotated[int | None, Range(1, 8)], 9, "a number from 1 to 8"),
        (Annotated[str | None, Choice("a", None)], "b", "one of a, null"),
        (Literal["x", 1], "z", "one of x, 1"),
        (tuple[int, ...], 3, "a list"),
        (tuple[int, int], [1], "a list of 2"),
        (Mapping[str, int], [], "an object"),
        (Mapping[str, int], {"a": 1, 2: 3}, "an object"),
        (int | None, "a", "a whole number"),
        (int | str, [], "a whole number or text"),
        (
            Annotated[int, Range(1, 8)] | tuple[int, ...] | Inner | None,
            "a",
            "a whole number or a list or an object or null",
        ),
    ],
)
def test_an_error_says_what_was_found_and_what_was_wanted(hint, data, wanted):
    with pytest.raises(DataError) as caught:
        from_plain(hint, data, "x")
    assert (caught.value.subject, caught.value.why) == ("x", f"is {data!r}, not {wanted}")


def test_without_a_path_an_error_names_the_data_or_the_key():
    with pytest.raises(DataError) as caught:
        from_plain(int, "a")
    assert caught.value.subject == "data"
    with pytest.raises(DataError) as caught:
        from_plain(Mapping[str, int], {"a": "b"})  # type: ignore[type-abstract]
    assert caught.value.subject == "a"


def test_in_a_union_the_deepest_error_is_the_one_that_counts():
    with pytest.raises(DataError) as caught:
        from_plain(str | Inner, {"size": "many"}, "x")  # type: ignore[arg-type]
    assert caught.value.subject == "x.size"


def test_what_a_class_of_its_own_form_says_is_the_reason():
    with pytest.raises(DataError) as caught:
        from_plain(tuple[Infinite, ...], ["1", "many"], "x")
    assert (caught.value.subject, caught.value.why) == ("x[1]", "could not convert string to float: 'many'")


@pytest.mark.parametrize(
    ("kind", "data", "path", "where"),
    [
        (Spans, {"first": {"low": 1, "high": 0}}, "", "first.high"),
        (Spans, {"first": {"low": 1, "high": 0}}, "x", "x.first.high"),
        (Spans, {"first": {"low": 0, "high": 0}, "others": ["a", {"low": 1, "high": 0}]}, "", "others[1].high"),
        (tuple[Span, ...], [{"low": 1, "high": 0}], "x", "x[0].high"),
    ],
)
def test_the_own_check_of_a_record_inside_is_the_error_of_the_reader_with_the_path(kind, data, path, where):
    with pytest.raises(DataError) as caught:
        from_plain(kind, data, path)
    assert (caught.value.subject, caught.value.why) == (where, "is 0, below 1")
    with pytest.raises(InputError) as wanted:
        from_plain(kind, data, path, lambda place, why: InputError(place, why, "fix"))
    assert (type(wanted.value), wanted.value.subject, wanted.value.fix) == (InputError, where, "fix")


def test_the_own_check_of_the_record_that_is_read_is_its_own_error_with_its_own_advice():
    with pytest.raises(UsageError) as caught:
        from_plain(Span, {"low": 1, "high": 0}, "x")
    assert (caught.value.subject, caught.value.fix) == ("high", "give a larger one")


def test_a_record_that_its_own_check_takes_is_read():
    assert from_plain(Spans, {"first": {"low": 1, "high": 1}}) == Spans(Span(1, 1))


def test_the_error_is_the_one_that_the_reader_wants():
    with pytest.raises(UsageError) as caught:
        from_plain(Inner, {}, "x", lambda where, why: UsageError(where, why, "fix"))
    assert caught.value.subject == "x.size"


@pytest.mark.parametrize(
    ("hint", "data"),
    [(object, [None, {}]), (Any, 3), (tuple[int], (3,)), (dict[str, int], {"a": 1}), (Literal["x", 1], 1)],
    ids=str,
)
def test_other_hints_are_read_too(hint, data):
    assert from_plain(hint, data) == data


LARGEST = int(sys.float_info.max)


@pytest.mark.parametrize("hint", [int, float])
def test_numbers_are_those_that_a_float_holds(hint):
    assert [from_plain(hint, number) for number in (LARGEST, -LARGEST)] == [LARGEST, -LARGEST]
    for number in (LARGEST + 1, -LARGEST - 1, math.inf, math.nan):
        with pytest.raises(DataError):
            from_plain(hint, number)


def test_a_field_can_stay_out_of_the_json():
    assert to_plain(Partly(3, secret=5)) == {"size": 3, "double": 2}
    assert from_plain(Partly, {"size": 3, "secret": 5, "double": 5}) == Partly(3)


def test_sets_are_lists():
    assert to_plain(frozenset({1})) == [1]


@pytest.mark.parametrize(
    ("key", "hint"),
    [("shore", "did you mean 'share'?"), ("starch", "did you mean 'share'?"), ("q", "known: size, share")],
)
def test_strict_reading_names_the_first_unknown_key_and_the_nearest_known_one(key, hint):
    with pytest.raises(DataError) as caught:
        from_plain(Inner, {"size": 1, key: 1, "sizes": 2}, "recipe.toml", strict=True)
    assert (caught.value.subject, caught.value.why) == (f"recipe.toml.{key}", f"is an unknown key; {hint}")


def test_strict_reading_takes_what_is_known_and_is_strict_all_the_way_down():
    assert from_plain(Inner, {"size": 1}, strict=True) == Inner(1)
    with pytest.raises(DataError) as caught:
        from_plain(Outer, PLAIN | {"many": [{"size": 1, "newer": 1}]}, strict=True)
    assert caught.value.subject == "many[0].newer"


def test_a_whole_number_is_a_float_where_a_float_is_wanted_and_stays_whole_in_a_union():
    assert type(from_plain(Inner, {"size": 1, "share": 1}).share) is float
    assert type(from_plain(int | float, 1)) is int  # type: ignore[arg-type]
    assert type(from_plain(float | int, 1)) is int  # type: ignore[arg-type]


def test_numbers_that_json_does_not_know_are_null_when_written_and_refused_when_read():
    assert to_plain({"a": math.inf, "b": (math.nan, 1.0)}) == {"a": None, "b": [None, 1.0]}
    for text in ("NaN", "[Infinity]", "[" * 100_000):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)


def test_text_is_written_as_it_is_but_for_what_utf_8_cannot_carry():
    assert write_json({"ü": ["🐈", None]}) == '{"ü": ["🐈", null]}'
    assert write_json(["a"], indent=2) == '[\n  "a"\n]'
    assert write_json("a\udc80") == r'"a\udc80"'
    with pytest.raises(ValueError, match="JSON"):
        write_json(math.nan)


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


@dataclass(frozen=True)
class Numbers:
    """Many numbers, with and without bounds."""

    any: tuple[float, ...] = ()
    positive: tuple[Annotated[float, Range(0.5, 2.0)], ...] = ()


def test_many_floats_are_read_at_once_and_each_is_checked_as_one_alone():
    assert from_plain(Numbers, {"any": [1.0, -1e308, 1e308, 1e308], "positive": [0.5, 2.0]}) == Numbers(
        (1.0, -1e308, 1e308, 1e308), (0.5, 2.0)
    )
    assert from_plain(Numbers, {"any": [1, 2.0]}).any == (1.0, 2.0)
    for key, numbers, where in (
        ("any", [0.0] * 9 + [math.nan], "any[9]"),
        ("any", [math.inf, -math.inf], "any[0]"),
        ("any", [1.0, True], "any[1]"),
        ("positive", [1.0, 0.49], "positive[1]"),
        ("positive", [1.0, 2.01], "positive[1]"),
    ):
        with pytest.raises(DataError) as caught:
            from_plain(Numbers, {key: numbers})
        assert caught.value.subject == where, numbers
    assert to_plain((1e308, 1e308)) == [1e308, 1e308]
    assert to_plain((1.0, 2)) == [1.0, 2]
