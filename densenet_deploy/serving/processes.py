"""Several processes that serve one model on the same ports; one that ends or hangs is replaced.

The parent binds the ports without listening, so that no other program takes them, and every process listens there
(SO_REUSEPORT): the kernel gives each connection to one of them. What a process was doing when it ends is lost with its
connections; the others go on. The messages (`worker.py` carries them)::

    parent   {"model": {...}, "replaces": null, ...}   once: what to serve, as the program reads it
    child    {"model": "chest", ...}                   its model is open and has run
    parent   "listen"
    child    "listening"
    child    "alive" or "stuck"                        ten times in `silent_s`: its model makes progress, or not
    parent   "stop"                                    end; a second one: without waiting for clients

A process that listens and is then silent for `silent_s`, or stuck twice in a row, is ended; so is one that replaces
another and does not listen after `silent_s` and ten times as long as the slowest first one took. Silence is counted in
waits, so that processes are not replaced because the whole machine stood still.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from densenet_deploy.errors import DensenetDeployError
from densenet_deploy.worker import WorkerProgram

log = logging.getLogger(__name__)

LISTEN: Final = "listen"
STOP: Final = "stop"
LISTENING: Final = "listening"
ALIVE: Final = "alive"
STUCK: Final = "stuck"
SIGNS: Final = 10
"""How often a process gives a sign in the time after which one without is replaced."""
ENDED: Final = "ended"
HUNG: Final = "hung"

_TIMES_THE_SLOWEST: Final = 10
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 30.0
_STEADY_S: Final = 60.0
"""A process that lived for as long is replaced as if it were the first that ended."""


@dataclass(frozen=True)
class Loss:
    """A process that `ENDED` without being asked, or `HUNG` and was ended, and the seconds until another one starts."""

    pid: int
    why: str
    pause_s: float
    reason: str = ENDED

    def __str__(self) -> str:
        return f"worker {self.pid}: {self.why}; another one starts in {self.pause_s:g} s"


class _Process:
    """A process, and what tells whether it hangs: listens within `start_s`, and gives signs from then on."""

    def __init__(self, program: WorkerProgram, silent_s: float, start_s: float) -> None:
        self._silent_s, self._start_s = silent_s, start_s
        self.worker = program.started()
        self.began = time.monotonic()
        self.hang = ""
        self._waits = 0
        self._listens = False
        self._is_stuck = False

    def receive(self) -> Any:
        """Return the next message, which is a sign of life from the one on that says that the process listens."""
        message = self.worker.receive()
        self._listens = self._listens or message == LISTENING
        if self._listens:
            self._waits = 0
        if message == STUCK and self._is_stuck:
            self._end("a run of its model did not end")
        self._is_stuck = message == STUCK
        return message

    def wait(self) -> None:
        """Count a wait without a sign."""
        self._waits += 1
        allowed_s = self._silent_s if self._listens else self._start_s
        if self._waits > allowed_s * SIGNS / self._silent_s:
            did = "gave no sign" if self._listens else "did not start"
            self._end(f"{did} for {round(allowed_s, 1):g} s")

    def awaited_end(self) -> str:
        """Wait until the process ends; return why."""
        try:
            while True:
                self.receive()
        except DensenetDeployError as exc:
            return self.hang or exc.why
        except OSError as exc:
            return str(exc)

    def _end(self, hang: str) -> None:
        self.hang = self.hang or hang
        self.worker.kill()


class ServerProcesses:
    """The processes of a server.

    Args:
        program: what they run; to its settings, `replaces` is added: the reason of the loss that a process makes up
            for, or None.
        count: how many there are.
        silent_s: seconds after which a process without a sign is replaced.
        on_loss: called from any thread when one has ended without being asked, or hung.

    Attributes:
        losses: how many have.
    """

    def __init__(self, program: WorkerProgram, count: int, silent_s: float, on_loss: Callable[[Loss], object]) -> None:
        self._program, self._silent_s, self._on_loss = program, silent_s, on_loss
        self._lock = threading.Lock()
        self._is_stopping = threading.Event()
        self._has_ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._processes: dict[int, _Process] = {}
        self._count = count
        self._start_s = math.inf
        self.losses = 0

    def open(self) -> Any:
        """Start all, and return what the first of them answers when all listen.

        Raises:
            DensenetDeployError: what ended the first that could not begin.
        """
        for place in range(self._count):
            self._processes[place] = self._started(None)
        processes = [*self._processes.values()]
        answers = [process.receive() for process in processes]
        for process in processes:
            process.worker.send(LISTEN)
        for process in processes:
            process.receive()
        slowest_s = time.monotonic() - min(process.began for process in processes)
        self._start_s = max(self._silent_s, _TIMES_THE_SLOWEST * slowest_s)
        self._threads = [threading.Thread(target=self._tend, args=(place,), daemon=True) for place in self._processes]
        for thread in (*self._threads, threading.Thread(target=self._watch, daemon=True)):
            thread.start()
        return answers[0]

    def stop(self) -> None:
        """Ask all to end; again: without waiting for clients that do not know yet."""
        with self._lock:
            self._is_stopping.set()
            for process in self._processes.values():
                process.worker.send(STOP)

    def join(self) -> None:
        """Wait until all have ended, which were asked to."""
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """End those that are left, whatever they are doing."""
        with self._lock:
            self._is_stopping.set()
            for process in self._processes.values():
                process.worker.kill()
        self.join()
        self._has_ended.set()
        for process in self._processes.values():
            process.worker.close(at_once=True)

    def _started(self, replaces: str | None) -> _Process:
        settings = {**self._program.settings, "replaces": replaces}
        return _Process(self._program._replace(settings=settings), self._silent_s, self._start_s)

    def _watch(self) -> None:
        """Be a thread: end processes that hang."""
        while not self._has_ended.wait(self._silent_s / SIGNS):
            with self._lock:
                for process in self._processes.values():
                    process.wait()

    def _tend(self, place: int) -> None:
        """Be a thread: replace the process at `place` whenever it ends."""
        losses = 0
        while True:
            process = self._processes[place]
            why = process.awaited_end()
            with self._lock:
                del self._processes[place]
            process.worker.close(at_once=True)
            losses = 1 if time.monotonic() - process.began >= _STEADY_S else losses + 1
            pause_s = pause_after(losses)
            with self._lock:
                if self._is_stopping.is_set():
                    return
                self.losses += 1
            loss = Loss(process.worker.pid, why, pause_s, HUNG if process.hang else ENDED)
            self._on_loss(loss)
            if not self._replaced(place, loss):
                return

    def _replaced(self, place: int, loss: Loss) -> bool:
        """Start another process after a pause; return False if the server ends meanwhile."""
        pause_s = loss.pause_s
        while not self._is_stopping.wait(pause_s):
            with self._lock:
                if self._is_stopping.is_set():
                    return False
                try:
                    process = self._processes[place] = self._started(loss.reason)
                except OSError as exc:  # the machine has no room for one more
                    log.info("no process can be started: %s", exc)
                    pause_s = _LONGEST_PAUSE_S
                    continue
                process.worker.send(LISTEN)
                return True
        return False


def pause_after(losses: int) -> float:
    """Return the seconds before the next start, after so many processes in a row that ended soon.

    >>> [pause_after(losses) for losses in (1, 2, 3, 9, 10, 2000)]
    [0.1, 0.2, 0.4, 25.6, 30.0, 30.0]
    """
    return float(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(losses - 1, 30)))
