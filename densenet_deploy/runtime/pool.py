"""Things that serve one thread at a time, lent out; when all are out and no more may be made, callers wait."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Pool(Generic[T]):
    """At most `limit` things, made when needed. Those that are idle go with the last reference to the pool."""

    def __init__(self, make: Callable[[], T], limit: int) -> None:
        self._make = make
        self._limit = limit
        self._made = 0
        self._idle: list[T] = []  # the one used longest ago first
        self._change = threading.Condition()

    @contextlib.contextmanager
    def lend(self, suits: Callable[[T], bool]) -> Iterator[T]:
        """Lend one that `suits`, else a new one while they last, else the one used longest ago.

        One that an error came out of is not lent again.
        """
        thing = self._take(suits)
        try:
            yield thing
        except BaseException:
            self._forget_one()
            raise
        with self._change:
            self._idle.append(thing)
            self._change.notify()

    def _take(self, suits: Callable[[T], bool]) -> T:
        with self._change:
            while not self._idle and self._made >= self._limit:
                self._change.wait()
            best = next((position for position, thing in enumerate(self._idle) if suits(thing)), None)
            if best is not None:
                return self._idle.pop(best)
            if self._made >= self._limit:
                return self._idle.pop(0)
            self._made += 1
        try:
            return self._make()
        except BaseException:
            self._forget_one()
            raise

    def _forget_one(self) -> None:
        with self._change:
            self._made -= 1
            self._change.notify()
