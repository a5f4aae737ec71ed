"""Things that serve one thread at a time: the one that suits, never more than the limit, none that failed."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable

import pytest

from densenet_deploy.runtime.pool import Pool

pytestmark = pytest.mark.timeout(20)  # a caller that is not woken waits for ever


class Borrower(threading.Thread):
    """Borrows once, and gives back when told to."""

    def __init__(self, pool: Pool[int]) -> None:
        super().__init__(daemon=True)
        self._pool = pool
        self.got: int | None = None
        self.has_it, self.may_return = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with self._pool.lend() as self.got:
            self.has_it.set()
            self.may_return.wait(20)

    def received(self) -> int | None:
        """What it got, as soon as it got it."""
        assert self.has_it.wait(10), "nobody woke the one that waits"
        self.may_return.set()
        self.join()
        return self.got

    def is_waiting(self) -> bool:
        """Whether it waits for a notification: from its first line on, `Condition.wait` misses none."""
        frame = sys._current_frames().get(self.ident or 0)
        while frame is not None:
            if frame.f_code is threading.Condition.wait.__code__:
                return frame.f_back is not None and frame.f_back.f_globals.get("Pool") is Pool
            frame = frame.f_back
        return False


def waiting(pool: Pool[int]) -> Borrower:
    """A thread that waits for the pool."""
    borrower = Borrower(pool)
    while not borrower.is_waiting():
        assert borrower.is_alive()
        assert not borrower.has_it.is_set(), "it got one beyond the limit"
        time.sleep(0.001)
    return borrower


def numbered(limit: int | None) -> Pool[int]:
    return Pool(itertools.count().__next__, limit)


def equals(wanted: int) -> Callable[[int], bool]:
    return lambda number: number == wanted


def test_one_that_suits_comes_first_then_a_new_one_then_the_one_used_longest_ago() -> None:
    pool = numbered(3)
    with pool.lend() as first, pool.lend() as second, pool.lend() as third:
        assert (first, second, third) == (0, 1, 2)
    with pool.lend(equals(1)) as suited:  # the idle ones are 2, 1, 0 in the order of last use
        assert suited == 1
    with pool.lend(equals(7)) as oldest:
        assert oldest == 2
    with pool.lend(equals(7)) as oldest:
        assert oldest == 0


def test_a_new_one_is_made_while_there_are_fewer_than_the_limit() -> None:
    pool = numbered(2)
    with pool.lend():
        pass
    with pool.lend(equals(7)) as fresh:
        assert fresh == 1
    with pool.lend(equals(7)) as oldest:
        assert oldest == 0


def test_any_idle_one_suits_who_does_not_say() -> None:
    pool = numbered(None)
    for _ in range(2):
        with pool.lend() as number:
            assert number == 0


def test_without_a_limit_nobody_waits() -> None:
    pool = numbered(None)
    with pool.lend() as first, pool.lend() as second, pool.lend() as third:
        assert {first, second, third} == {0, 1, 2}


def test_who_waits_gets_the_one_that_comes_back() -> None:
    pool = numbered(1)
    with pool.lend():
        borrower = waiting(pool)
    assert borrower.received() == 0


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_who_waits_gets_a_new_one_if_the_other_failed(error: type[BaseException]) -> None:
    pool = numbered(1)

    def fail() -> Borrower:
        with pool.lend():
            borrowers.append(waiting(pool))
            raise error

    borrowers: list[Borrower] = []
    with pytest.raises(error):
        fail()
    assert borrowers[0].received() == 1


def test_who_waits_makes_one_if_the_making_failed_elsewhere() -> None:
    tries = itertools.count()
    borrowers: list[Borrower] = []

    def make() -> int:
        if (number := next(tries)) == 0:
            borrowers.append(waiting(pool))
            raise ZeroDivisionError
        return number

    pool = Pool(make, 1)
    with pytest.raises(ZeroDivisionError), pool.lend():
        pass
    assert borrowers[0].received() == 1


def test_one_that_failed_leaves_room_for_one_other() -> None:
    pool = numbered(2)
    with pool.lend() as kept:
        with pytest.raises(ZeroDivisionError), pool.lend() as failed:
            raise ZeroDivisionError
        with pool.lend() as replaced:
            assert (kept, failed, replaced) == (0, 1, 2)
            borrower = waiting(pool)  # no room for two
    assert borrower.received() == 2  # the first that came back


def test_making_one_does_not_hold_up_those_who_give_back() -> None:
    """An engine's context takes seconds to make."""
    pool: Pool[int]
    tries = itertools.count()

    def make() -> int:
        if (number := next(tries)) == 1:
            first.received()
        return number

    pool = Pool(make, 2)
    first = Borrower(pool)
    assert first.has_it.wait(10)
    with pool.lend(equals(1)) as second:
        assert second == 1
