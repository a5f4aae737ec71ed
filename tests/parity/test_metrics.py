"""A comparison as JSON and as a line of text, and which of several is the worst."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from densenet_deploy.errors import DataError
from densenet_deploy.parity.metrics import Parity, worst, worst_first

WHOLE = Parity(
    max_abs=0.5,
    mean_abs=0.25,
    max_rel=0.125,
    mean_rel=0.0625,
    cosine=0.75,
    sqnr_db=30.0,
    centred_sqnr_db=20.0,
    top1_agreement=0.875,
    top5_agreement=1.0,
    count=64,
    nonfinite=2,
)
FACTS = {
    "max_abs": 0.5,
    "mean_abs": 0.25,
    "max_rel": 0.125,
    "mean_rel": 0.0625,
    "cosine": 0.75,
    "sqnr_db": 30.0,
    "centred_sqnr_db": 20.0,
    "top1_agreement": 0.875,
    "top5_agreement": 1.0,
    "count": 64,
    "nonfinite": 2,
}
ERRORS = ("max_abs", "mean_abs", "max_rel", "mean_rel", "cosine", "sqnr_db")


def test_json_holds_every_metric_and_is_read_back():
    assert WHOLE.to_json() == FACTS
    assert Parity.from_json(json.loads(json.dumps(FACTS))) == WHOLE


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, None])
@pytest.mark.parametrize("name", ["sqnr_db", "centred_sqnr_db", "top1_agreement"])
def test_json_has_null_for_what_is_not_a_finite_number(name, value):
    assert dataclasses.replace(WHOLE, **{name: value}).to_json() == FACTS | {name: None}


def test_a_comparison_finds_no_nonfinite_values_unless_it_says_so():
    facts = {name: value for name, value in FACTS.items() if name != "nonfinite"}
    assert Parity(**facts).nonfinite == 0
    assert Parity.from_json(facts) == dataclasses.replace(WHOLE, nonfinite=0)


def test_json_of_older_versions_has_no_centred_sqnr():
    facts = {name: value for name, value in FACTS.items() if name != "centred_sqnr_db"}
    assert Parity.from_json(facts) == dataclasses.replace(WHOLE, centred_sqnr_db=None)


def test_null_is_an_infinite_sqnr_where_nothing_differs():
    read = Parity.from_json(FACTS | {"max_abs": 0.0, "sqnr_db": None, "centred_sqnr_db": None})
    assert (read.sqnr_db, read.centred_sqnr_db) == (math.inf, math.inf)


@pytest.mark.parametrize("largest_error", [0.5, 1])
def test_null_is_minus_infinity_where_the_reference_was_zero(largest_error):
    read = Parity.from_json(FACTS | {"max_abs": largest_error, "sqnr_db": None, "centred_sqnr_db": None})
    assert (read.sqnr_db, read.centred_sqnr_db) == (-math.inf, None)


def test_null_is_nan_where_nothing_was_finite():
    read = Parity.from_json(FACTS | dict.fromkeys(ERRORS))
    assert all(math.isnan(getattr(read, name)) for name in ERRORS)
    assert (read.count, read.nonfinite) == (64, 2)


@pytest.mark.parametrize("name", [name for name in FACTS if name not in ("centred_sqnr_db", "nonfinite")])
def test_json_without_a_metric_is_refused(name):
    with pytest.raises(ValueError, match=name):
        Parity.from_json({other: value for other, value in FACTS.items() if other != name})


@pytest.mark.parametrize("value", ["0.5", True, [0.5]])
def test_json_with_something_else_than_a_number_is_refused(value):
    with pytest.raises(ValueError, match="cosine"):
        Parity.from_json(FACTS | {"cosine": value})


@pytest.mark.parametrize("facts", [None, [FACTS], "text"])
def test_json_that_is_no_object_is_refused(facts):
    with pytest.raises(ValueError, match="object"):
        Parity.from_json(facts)


LINE = "cosine 0.7500000, SQNR 30.0 dB"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {},
            f"{LINE} (centred 20.0 dB), max |Δ| 0.5, top-1 agreement 87.50%, 2 values NaN or infinite, 64 values",
        ),
        (
            {"centred_sqnr_db": None, "top1_agreement": None, "nonfinite": 0},
            f"{LINE}, max |Δ| 0.5, 64 values",
        ),
    ],
    ids=["everything", "only what is known"],
)
def test_the_line_of_text_says_what_is_known(change, line):
    assert str(dataclasses.replace(WHOLE, **change)) == line


def with_sqnr(sqnr_db, nonfinite=0):
    return dataclasses.replace(WHOLE, sqnr_db=sqnr_db, nonfinite=nonfinite)


def test_the_worst_has_the_lowest_sqnr_and_equals_keep_their_order():
    parities = {"same": with_sqnr(math.inf), "z": with_sqnr(20.0), "a": with_sqnr(20.0), "low": with_sqnr(-5.0)}
    assert list(worst_first(parities)) == ["low", "z", "a", "same"]
    assert worst_first(parities) == parities
    assert worst(parities) == ("low", parities["low"])


def test_nan_or_infinite_values_are_worse_than_any_sqnr():
    parities = {"zero reference": with_sqnr(0.0), "two": with_sqnr(90.0, 2), "one": with_sqnr(math.nan, 1)}
    assert list(worst_first(parities)) == ["two", "one", "zero reference"]
    assert worst(parities)[0] == "two"


def test_the_worst_of_nothing_is_an_error():
    with pytest.raises(DataError) as caught:
        worst({})
    assert caught.value.subject == "parity"
