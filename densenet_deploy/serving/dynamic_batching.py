"""Dynamic batching: requests that come at about the same time run as one batch, and are answered apart.

A request waits in a bounded queue. A thread takes the oldest one, adds others with images of the same shape until the
batch is full or the oldest has waited for its time, and runs them together: without a time to wait, those that came
during the run before. More threads run more batches at the same time.

>>> queue = BatchingQueue(runner, QueueOptions(max_batch=16, max_delay_s=0.002))      # doctest: +SKIP
>>> queue.submit({"input": image[None]}).result()["logits"].shape                     # doctest: +SKIP
(1, 1000)
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np

from densenet_deploy.errors import FeedError, ResourceError, RunnerStateError
from densenet_deploy.options import require_range
from densenet_deploy.runtime.batching import fixed_batch, run_batched, takes_any_batch
from densenet_deploy.runtime.feeds import Array, Feed, Feeds, TensorSpec
from densenet_deploy.runtime.runner import Runner

Answer = Mapping[str, Array]

_LONGEST_DELAY_S: Final = 10.0
_TIMES_THE_LONGEST: Final = 10
"""A run that takes as many times longer than all before it may be stuck."""
_PAUSE_S: Final = 0.5


class QueueFullError(ResourceError):
    """As many images wait as may."""

    what = "queue"


@dataclass(frozen=True)
class QueueOptions:
    """How requests are put together.

    Attributes:
        max_batch: the most images that run together, and that one request may hold.
        max_delay_s: how long the oldest request waits for others, in seconds; 0: only while the model runs anyway.
        max_queue: the most images that wait; further requests are refused.
        instances: batches that run at the same time.
        stuck_s: seconds after which a run of the model may be stuck; see `RunWatch`.
    """

    max_batch: int = 16
    max_delay_s: float = 0.0
    max_queue: int = 256
    instances: int = 1
    stuck_s: float = 30.0

    def __post_init__(self) -> None:
        require_range("max-batch", self.max_batch, 1, 65536)
        require_range("max-delay-ms", self.max_delay_s * 1000, 0.0, _LONGEST_DELAY_S * 1000)
        require_range("max-queue", self.max_queue, self.max_batch, 1_000_000)
        require_range("instances", self.instances, 1, 64)
        require_range("stuck-s", self.stuck_s, 1.0, 86_400.0)


@dataclass(frozen=True)
class BatchRun:
    """A run of the model: how many images, and the seconds that it took."""

    images: int
    seconds: float


class RunWatch:
    """Tells a model that is stuck from one that is slow.

    It is stuck when a run takes more than `least_s` seconds, and ten times as long as any run that has ended.

    >>> watch = RunWatch(30.0)
    >>> with watch.timed():
    ...     watch.is_stuck
    False
    """

    def __init__(self, least_s: float) -> None:
        self._least_s, self._longest_s = least_s, 0.0
        self._starts: dict[int, float] = {}

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Watch a run of this thread, which is the block."""
        thread, start = threading.get_ident(), time.monotonic()
        self._starts[thread] = start
        try:
            yield
        finally:
            del self._starts[thread]
            self._longest_s = max(self._longest_s, time.monotonic() - start)

    @property
    def is_stuck(self) -> bool:
        """Whether a run that is in progress takes longer than one may."""
        allowed_s = max(self._least_s, _TIMES_THE_LONGEST * self._longest_s)
        return any(time.monotonic() - start > allowed_s for start in [*self._starts.values()])


@dataclass(frozen=True, eq=False)
class _Request:
    """Feeds that were checked, how many images they hold, and where their answer goes."""

    feeds: dict[str, Array]
    images: int
    future: Future[Answer] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)

    def suits(self, other: _Request) -> bool:
        """Whether both can be parts of one batch."""
        return all(array.shape[1:] == other.feeds[name].shape[1:] for name, array in self.feeds.items())


class BatchingQueue:
    """Runs the requests of many threads on a runner, which it does not close.

    A model with a fixed batch size gets its batches filled up, so that requests may have any number of images. Where an
    output is not one of rows per image, requests run one by one.

    Args:
        runner: of the model.
        options: see `QueueOptions`.
        on_run: called after each run of the model, from the thread that ran it.
        on_wait: called with the number of images that wait whenever it changes, from any thread, one at a time.
        settle: called after each batch, from the thread that ran it, with the function that gives all of its futures
            their answers; an event loop calls that itself.

    Attributes:
        watch: of its runs; whoever runs the model beside it may use it too.
    """

    def __init__(
        self,
        runner: Runner,
        options: QueueOptions | None = None,
        on_run: Callable[[BatchRun], object] = lambda _: None,
        on_wait: Callable[[int], object] = lambda _: None,
        settle: Callable[[Callable[[], None]], object] = lambda give: give(),
    ) -> None:
        self._runner, self._options = runner, options or QueueOptions()
        self._on_run, self._on_wait, self._settle = on_run, on_wait, settle
        self.watch = RunWatch(self._options.stuck_s)
        self._fills_up = _fills_up(runner)
        self._is_batched = self._fills_up or takes_any_batch(runner.inputs, runner.outputs)
        self._waiting: deque[_Request] = deque()
        self._waiting_images = 0
        self._is_closed = False
        self._change = threading.Condition()
        threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(self._options.instances)]
        self._threads = threads
        for thread in threads:
            thread.start()

    def shown(self, spec: TensorSpec) -> TensorSpec:
        """Return an input or output as clients see it: with any batch where batches are filled up."""
        return spec.of_any_batch() if self._fills_up else spec

    def submit(self, feeds: Feeds | Feed) -> Future[Answer]:
        """Check feeds, as `Runner.run` does, and return where their answer, arrays by output name, will be.

        The future raises what the model raises.

        Raises:
            FeedError: if the model does not take them, or they hold more than `max_batch` images.
            QueueFullError: if too many images wait.
            RunnerStateError: after `close`.
        """
        request = self._request(feeds)
        with self._change:
            if self._is_closed:
                raise RunnerStateError("server", "is stopping", "ask another one")
            if self._waiting_images + request.images > self._options.max_queue:
                raise QueueFullError(f"{self._waiting_images} images", "are waiting already", "try again later")
            self._waiting.append(request)
            self._count(request.images)
            self._change.notify_all()
        return request.future

    def close(self) -> None:
        """Answer what waits, and end; a model that is stuck is not waited for. Closing twice is harmless."""
        with self._change:
            self._is_closed = True
            self._change.notify_all()
        for thread in self._threads:
            while thread.is_alive() and not self.watch.is_stuck:
                thread.join(_PAUSE_S)

    def _request(self, feeds: Feeds | Feed) -> _Request:
        arrays = self._runner.checked(feeds, tuple(map(self.shown, self._runner.inputs)))
        sizes = {array.shape[0] if array.ndim else 1 for array in arrays.values()}
        if not self._is_batched:
            return _Request(arrays, max(sizes))
        if len(sizes) > 1:
            raise FeedError(", ".join(arrays), f"hold {sorted(sizes)} images", "feed as many to every input")
        (images,) = sizes
        if images > self._options.max_batch:
            why = f"holds {images} images, one request may hold {self._options.max_batch}"
            raise FeedError(", ".join(arrays), why, "send fewer in one request")
        return _Request(arrays, images)

    def _serve(self) -> None:
        while batch := self._take():
            self._answer([request for request in batch if request.future.set_running_or_notify_cancel()])

    def _take(self) -> list[_Request]:
        """Return the requests of the next batch; none when the queue was closed and is empty."""
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._is_closed)
            if not self._waiting:
                return []
            first = self._waiting.popleft()
            self._count(-first.images)
            batch, room = [first], self._options.max_batch - first.images
            while self._is_batched:
                room -= self._move(batch, room)
                left = first.arrived + self._options.max_delay_s - time.monotonic()
                if room <= 0 or left <= 0 or self._is_closed:
                    break
                self._change.wait(left)
            return batch

    def _move(self, batch: list[_Request], room: int) -> int:
        """Move waiting requests that suit the batch, oldest first, into it; return how many images they hold."""
        moved = 0
        for request in tuple(self._waiting):
            if moved == room:
                break
            if request.images <= room - moved and request.suits(batch[0]):
                self._waiting.remove(request)
                batch.append(request)
                moved += request.images
        self._count(-moved)
        return moved

    def _count(self, images: int) -> None:
        """Add to the images that wait; the caller holds the lock."""
        if images:
            self._waiting_images += images
            self._on_wait(self._waiting_images)

    def _answer(self, batch: Sequence[_Request]) -> None:
        answers = answered_together(self._run, [request.feeds for request in batch])
        self._settle(partial(_give, batch, answers))

    def _run(self, feeds: dict[str, Array]) -> Answer:
        first = next(iter(feeds.values()))
        start = time.monotonic()
        with self.watch.timed():
            answer = run_batched(self._runner, first) if self._fills_up else self._runner.run(feeds)
        self._on_run(BatchRun(first.shape[0] if first.ndim else 1, time.monotonic() - start))
        return answer


def _give(batch: Sequence[_Request], answers: Sequence[Answer | Exception]) -> None:
    for request, answer in zip(batch, answers, strict=True):
        if isinstance(answer, Exception):
            request.future.set_exception(answer)
        else:
            request.future.set_result(answer)


def _fills_up(runner: Runner) -> bool:
    """Whether the model has one input of a fixed batch, and as many rows in each output."""
    size = fixed_batch(runner) if runner.inputs[0].shape else None
    alike = all(spec.shape and spec.shape[0] == size for spec in runner.outputs)
    return size is not None and len(runner.inputs) == 1 and alike


def answered_together(
    run: Callable[[dict[str, Array]], Answer], requests: Sequence[Mapping[str, Array]]
) -> list[Answer | Exception]:
    """Return the answer to each request, or its error: they `run` as one batch, and one by one if that fails."""
    if len(requests) > 1:
        names = tuple(requests[0])
        with contextlib.suppress(Exception):  # one of them may be at fault: each gets its own answer
            whole = run({name: np.concatenate([request[name] for request in requests]) for name in names})
            return [*_split(whole, [len(request[names[0]]) for request in requests])]
    return [_answered_alone(run, request) for request in requests]


def _answered_alone(run: Callable[[dict[str, Array]], Answer], request: Mapping[str, Array]) -> Answer | Exception:
    try:
        return run(dict(request))
    except Exception as exc:  # noqa: BLE001 - whoever waits for the answer gets it
        return exc


def _split(whole: Answer, sizes: Sequence[int]) -> list[Answer]:
    total, ends = sum(sizes), np.cumsum(sizes)[:-1]
    for name, array in whole.items():
        if len(array) != total:
            raise ValueError(f"{name}: {len(array)} rows for {total} images")
    parts = {name: np.split(array, ends) for name, array in whole.items()}
    return [{name: parts[name][place] for name in parts} for place in range(len(sizes))]
