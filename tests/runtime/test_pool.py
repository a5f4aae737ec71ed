"""Things that serve one thread at a time: the one that suits, never more than the limit, none that failed."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from densenet_deploy.runtime.pool import Pool


def numbered(limit: int) -> Pool[int]:
    return Pool(itertools.count().__next__, limit)


def anything(_: int) -> bool:
    return True


def test_one_that_suits_comes_first_then_a_new_one_then_the_oldest() -> None:
    pool = numbered(2)
    with pool.lend(anything) as first, pool.lend(anything) as second:
        assert (first, second) == (0, 1)
    with pool.lend(lambda number: number == 1) as suited:
        assert suited == 1
    with pool.lend(lambda number: number == 7) as oldest:
        assert oldest == 0


def test_a_new_one_is_made_while_they_last() -> None:
    pool = numbered(2)
    with pool.lend(anything):
        pass
    with pool.lend(lambda number: number == 7) as fresh:
        assert fresh == 1


def test_callers_wait_for_the_last_one() -> None:
    pool, inside, most = numbered(3), [0], [0]
    lock = threading.Lock()
    barrier = threading.Barrier(3)  # three must be inside at once, or none continues

    def work(_: int) -> None:
        with pool.lend(anything) as number:
            assert number < 3
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            barrier.wait(timeout=30)
            with lock:
                inside[0] -= 1

    with ThreadPoolExecutor(9) as threads:
        list(threads.map(work, range(9)))
    assert most == [3]


def test_one_that_failed_is_replaced() -> None:
    pool = numbered(1)
    with pytest.raises(ZeroDivisionError), pool.lend(anything):
        raise ZeroDivisionError
    with pool.lend(anything) as number:
        assert number == 1


def test_a_failed_making_leaves_room_for_another_try() -> None:
    tries = iter([ZeroDivisionError(), 5])

    def make() -> int:
        result = next(tries)
        if isinstance(result, Exception):
            raise result
        return result

    pool = Pool(make, 1)
    with pytest.raises(ZeroDivisionError), pool.lend(anything):
        pass
    with pool.lend(anything) as number:
        assert number == 5
