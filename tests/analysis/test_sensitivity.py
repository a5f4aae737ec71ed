"""Costs as JSON and text, their rank, and names that lose what all of them share."""

from __future__ import annotations

import math

import pytest

from densenet_deploy.analysis.sensitivity import Cost, Sensitivity, most_sensitive_first, short_names


@pytest.mark.parametrize(
    ("cost", "facts", "text"),
    [
        (Cost(30.25, 0.875), {"sqnr_db": 30.25, "top1": 0.875, "nonfinite": False}, "30.2 dB 87.50%"),
        (Cost(0.0, 0.0), {"sqnr_db": 0.0, "top1": 0.0, "nonfinite": False}, "0.0 dB 0.00%"),
        (Cost(math.inf), {"sqnr_db": None, "top1": None, "nonfinite": False}, "inf dB"),
        (Cost(-math.inf), {"sqnr_db": None, "top1": None, "nonfinite": True}, "-inf dB"),
    ],
)
def test_a_cost_reads_its_own_json(cost, facts, text):
    assert cost.to_json() == facts
    assert Cost.from_json(facts) == cost
    assert str(cost) == text


def test_whole_numbers_become_decimal_ones():
    read = Cost.from_json({"sqnr_db": 30, "top1": 1})
    assert (type(read.sqnr_db), type(read.top1)) == (float, float)


@pytest.mark.parametrize("facts", [None, "text", {}, {"sqnr_db": 1.0}, {"top1": 1.0}, {"sqnr_db": [], "top1": None}])
def test_what_is_no_cost_is_refused(facts):
    with pytest.raises(ValueError, match="cost"):
        Cost.from_json(facts)


def _one(name: str, db: float) -> Sensitivity:
    return Sensitivity(name, (name,), Cost(db), Cost(-db))


def test_what_costs_most_alone_comes_first_and_equals_keep_their_order():
    rows = [_one("c", 50), _one("broken", -math.inf), _one("b", 40), _one("a", 50), _one("free", math.inf)]
    assert [row.name for row in most_sensitive_first(rows)] == ["broken", "b", "c", "a", "free"]


@pytest.mark.parametrize(
    ("names", "short"),
    [
        ([], ()),
        (["features.conv0"], ("conv0",)),
        (["conv0"], ("conv0",)),
        (["a", "a"], ("a", "a")),
        (["a.b", "a.b"], ("b", "b")),
        (["a", "a.b"], ("a", "a.b")),
        (["a.b", "a"], ("a.b", "a")),
        (["a.conv", "b.conv"], ("a.conv", "b.conv")),
        (["a.b.c.x", "a.b.c.y", "a.b.c.z"], ("x", "y", "z")),
        (["a.b.c.x", "a.b.d.c.x"], ("c.x", "d.c.x")),
        (["a.b.x", "a.c.x", "b.b.x"], ("a.b.x", "a.c.x", "b.b.x")),
        (["/features/conv0/Conv", "/features/denseblock1/x/Conv_"], ("conv0.Conv", "block1.x.Conv_")),
        (
            ["features.denseblock1.denselayer2.conv1", "features.transition1.conv"],
            ("block1.layer2.conv1", "transition1.conv"),
        ),
    ],
)
def test_names_lose_what_all_share_but_not_their_last_part(names, short):
    assert short_names(names) == short
