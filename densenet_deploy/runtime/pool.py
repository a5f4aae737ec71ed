"""A pool of resources that serve one thread at a time; when all are lent and no more may be made, callers wait."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Pool(Generic[T]):
    """At most `limit` resources, made when needed; None sets no limit. Idle ones are freed together with the pool."""

    def __init__(self, make: Callable[[], T], limit: int | None = None) -> None:
        self._make = make
        self._limit = math.inf if limit is None else limit
        self._made = 0
        self._idle: list[T] = []  # in the order of last use
        self._change = threading.Condition()

    @contextlib.contextmanager
    def lend(self, suits: Callable[[T], bool] = lambda _: True) -> Iterator[T]:
        """Lend one that `suits`, else a new one below the limit, else the one used longest ago.

        One that raised an error in use is not lent again.
        """
        resource = self._take(suits)
        try:
            yield resource
        except BaseException:
            self._forget_one()
            raise
        with self._change:
            self._idle.append(resource)
            self._change.notify()

    def _take(self, suits: Callable[[T], bool]) -> T:
        with self._change:
            while not self._idle and self._made >= self._limit:
                self._change.wait()
            best = next((position for position, resource in enumerate(self._idle) if suits(resource)), None)
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
