"""Several processes that serve one model on the same ports; one that ends is replaced.

The parent binds the ports without listening, so that no other program takes them, and every process listens there
(SO_REUSEPORT): the kernel gives each connection to one of them. What a process was doing when it ends is lost with its
connections; the others go on. The messages (`worker.py` carries them)::

    parent   {"model": {...}, ...}                     once: what to serve, as the program reads it
    child    {"model": "chest", ...}                   its model is open and has run
    parent   "listen"
    child    "listening"
    parent   "stop"                                    end; a second one: without waiting for clients
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from densenet_deploy.errors import DensenetDeployError
from densenet_deploy.worker import Worker

log = logging.getLogger(__name__)

LISTEN: Final = "listen"
STOP: Final = "stop"

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 30.0
_STEADY_S: Final = 60.0
"""A process that lived for as long is replaced as if it were the first that ended."""


@dataclass(frozen=True)
class Loss:
    """A process that ended without being asked, and the seconds until another one is started."""

    pid: int
    why: str
    pause_s: float

    def __str__(self) -> str:
        return f"worker {self.pid}: {self.why}; another one starts in {self.pause_s:g} s"


@dataclass(frozen=True)
class Served:
    """What the processes run.

    Attributes:
        program: the module whose `main` answers the messages.
        settings: the first message.
        subject: the model, as errors name it.
        environment: variables beside those of this process.
    """

    program: str
    settings: Mapping[str, Any]
    subject: str
    environment: Mapping[str, str]


class ServerProcesses:
    """The processes of a server.

    Args:
        served: what they run.
        count: how many there are.
        on_loss: called from any thread when one has ended without being asked.

    Attributes:
        losses: how many have.
    """

    def __init__(self, served: Served, count: int, on_loss: Callable[[Loss], object]) -> None:
        self._served, self._on_loss = served, on_loss
        self._lock = threading.Lock()
        self._is_stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._workers: dict[int, Worker] = {}
        self._count = count
        self.losses = 0

    def open(self) -> Any:
        """Start all, and return what the first of them answers when all listen.

        Raises:
            DensenetDeployError: what ended the first that could not begin.
        """
        for place in range(self._count):
            self._workers[place] = self._started()
        workers = [*self._workers.values()]
        answers = [worker.receive() for worker in workers]
        for worker in workers:
            worker.send(LISTEN)
        for worker in workers:
            worker.receive()
        for place in range(self._count):
            thread = threading.Thread(target=self._tend, args=(place,), daemon=True)
            self._threads.append(thread)
            thread.start()
        return answers[0]

    def stop(self) -> None:
        """Ask all to end; again: without waiting for clients that do not know yet."""
        with self._lock:
            self._is_stopping.set()
            for worker in self._workers.values():
                worker.send(STOP)

    def join(self) -> None:
        """Wait until all have ended, which were asked to."""
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """End those that are left, whatever they are doing."""
        with self._lock:
            self._is_stopping.set()
            for worker in self._workers.values():
                worker.kill()
        self.join()
        for worker in self._workers.values():
            worker.close(at_once=True)

    def _started(self) -> Worker:
        served = self._served
        worker = Worker(served.program, subject=served.subject, environment=served.environment)
        worker.send(served.settings)
        return worker

    def _tend(self, place: int) -> None:
        """Be a thread: replace the process at `place` whenever it ends."""
        losses = 0
        while True:
            began, worker = time.monotonic(), self._workers[place]
            why = _awaited_end(worker)
            with self._lock:
                del self._workers[place]
            worker.close(at_once=True)
            losses = 1 if time.monotonic() - began >= _STEADY_S else losses + 1
            pause_s = pause_after(losses)
            with self._lock:
                if self._is_stopping.is_set():
                    return
                self.losses += 1
            self._on_loss(Loss(worker.pid, why, pause_s))
            if not self._replaced(place, pause_s):
                return

    def _replaced(self, place: int, pause_s: float) -> bool:
        """Start another process after a pause; return False if the server ends meanwhile."""
        while not self._is_stopping.wait(pause_s):
            with self._lock:
                if self._is_stopping.is_set():
                    return False
                try:
                    worker = self._workers[place] = self._started()
                except OSError as exc:  # the machine has no room for one more
                    log.info("no process can be started: %s", exc)
                    pause_s = _LONGEST_PAUSE_S
                    continue
                worker.send(LISTEN)
                return True
        return False


def pause_after(losses: int) -> float:
    """Return the seconds before the next start, after so many processes in a row that ended soon.

    >>> [pause_after(losses) for losses in (1, 2, 3, 9, 10, 2000)]
    [0.1, 0.2, 0.4, 25.6, 30.0, 30.0]
    """
    return float(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(losses - 1, 30)))


def _awaited_end(worker: Worker) -> str:
    """Wait until a process ends; return why."""
    while True:
        try:
            worker.receive()
        except DensenetDeployError as exc:
            return exc.why
        except OSError as exc:
            return str(exc)
