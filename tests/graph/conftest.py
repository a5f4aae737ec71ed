"""Whole networks, each made once a session."""

from __future__ import annotations

import pytest

from tests.graph.passes.networks import NETWORKS, Network, make_network


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    return make_network(request.param)
