"""The tests of properties themselves: one that does not hold fails and names the input; inputs repeat or do not."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from tests.properties.holds import holds_for


@holds_for(few=50, many=50, number=st.integers())
def _no_number_is_large(number: int) -> None:
    assert number < 1000


def test_a_property_that_does_not_hold_fails_with_the_smallest_input() -> None:
    with pytest.raises(AssertionError, match="1000 < 1000"):
        _no_number_is_large(is_long=False, times=1)


_drawn: list[int] = []


@holds_for(few=3, many=20, number=st.integers())
def _numbers_are_noted(number: int) -> None:
    _drawn.append(number)


@pytest.mark.parametrize(
    ("is_long", "times", "count", "repeats"), [(False, 9, 3, True), (True, 1, 20, True), (True, 2, 40, False)]
)
def test_only_longer_runs_draw_other_inputs(is_long: bool, times: int, count: int, repeats: bool) -> None:
    runs = []
    for _ in range(2):
        _drawn.clear()
        _numbers_are_noted(is_long=is_long, times=times)
        runs.append(tuple(_drawn))
    assert len(runs[0]) == count
    assert (runs[0] == runs[1]) == repeats


@holds_for(few=10, many=20, number=st.integers(0, 9))
def test_fixtures_and_inputs_come_together(tmp_path_factory: pytest.TempPathFactory, number: int) -> None:
    assert tmp_path_factory.getbasetemp().exists()
    assert 0 <= number <= 9
