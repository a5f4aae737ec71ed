"""Costs are ranked, and names lose what all of them share."""

from __future__ import annotations

import math

from densenet_deploy.analysis.sensitivity import Cost, Sensitivity, most_sensitive_first, short_names


def _one(name: str, db: float) -> Sensitivity:
    return Sensitivity(name, (name,), Cost(db), Cost(40.0))


def test_what_costs_most_alone_comes_first():
    rows = [_one("a", 50), _one("broken", -math.inf), _one("b", 40), _one("c", 50), _one("free", math.inf)]
    assert [row.name for row in most_sensitive_first(rows)] == ["broken", "b", "a", "c", "free"]


def test_names_lose_what_all_share():
    names = ["features.denseblock1.denselayer2.conv1", "features.transition1.conv"]
    assert short_names(names) == ("block1.layer2.conv1", "transition1.conv")
    assert short_names(["/features/conv0/Conv", "/features/denseblock1/x/Conv"]) == ("conv0.Conv", "block1.x.Conv")


def test_names_that_share_nothing_stay_and_none_becomes_empty():
    assert short_names(["a.conv", "b.conv"]) == ("a.conv", "b.conv")
    assert short_names(["features.conv0"]) == ("conv0",)
    assert short_names(["a", "a.b"]) == ("a", "a.b")
    assert short_names([]) == ()
