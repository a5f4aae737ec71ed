"""The tests of properties themselves: a property that does not hold fails, and says for which input."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from tests.properties.holds import holds_for


@holds_for(few=50, many=50, number=st.integers())
def _no_number_is_large(number: int) -> None:
    assert number < 1000


def test_a_property_that_does_not_hold_fails_with_the_smallest_input() -> None:
    with pytest.raises(AssertionError, match="1000 < 1000"):
        _no_number_is_large(is_random=False, times=1)


@holds_for(few=10, many=20, number=st.integers(0, 9))
def test_fixtures_and_inputs_come_together(tmp_path_factory: pytest.TempPathFactory, number: int) -> None:
    assert tmp_path_factory.getbasetemp().exists()
    assert 0 <= number <= 9
