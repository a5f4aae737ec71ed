"""SIGINT and SIGTERM end a command the same way: the work is unwound, and the exit code is 128 + the signal's number.

Libraries may catch what a signal raises and raise something of their own instead, so the signal is remembered: whatever
ends the command after it, the signal is the reason.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal asked the command to end. No KeyboardInterrupt, which an interpreter at its end turns into a kill."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class StopSignals:
    """Remembers the first signal that asked for an end; later ones are ignored, so that unwinding is not disturbed."""

    def __init__(self) -> None:
        self.received: Stopped | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Raise `Stopped` inside the block when a signal comes (in the main thread, the only one that may listen)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._stop) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received = Stopped(number)
            raise self.received
