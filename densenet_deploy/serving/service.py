"""What a server does with one model, whatever the protocol: its metadata, inference, images, readiness and errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np

from densenet_deploy.errors import DensenetDeployError, FeedError, ImageError, RunnerStateError, UsageError, printable
from densenet_deploy.packages import installed_version
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.feeds import Array, Feeds
from densenet_deploy.runtime.runner import Runner
from densenet_deploy.serving.dynamic_batching import BatchingQueue, QueueFullError, QueueOptions
from densenet_deploy.serving.metrics import Metrics
from densenet_deploy.serving.open_inference import EXTENSIONS, VERSION, RequestError, datatype_of, metadata

log = logging.getLogger(__name__)

SERVER: Final = "densenet-deploy"
_CLIENTS: Final = (FeedError, ImageError, UsageError)
"""Errors that the client made."""


class Service:
    """A model behind a queue.

    Args:
        name: under which it is served.
        runner: of the model; `close` closes it.
        classifier: of the same runner, for images; or the sentence why the model does not classify them.
        options: of the queue.
        metrics: the counters; None are those of this process alone.

    Attributes:
        is_open: whether requests are welcome, as they are between the first run of the model and the end.

    Raises:
        ModelFileError: if an input or output has a type that the protocol does not name.
    """

    def __init__(
        self,
        name: str,
        runner: Runner,
        classifier: Classifier | str,
        options: QueueOptions | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.name, self.inputs, self.outputs = name, runner.inputs, runner.outputs
        for spec in (*self.inputs, *self.outputs):
            datatype_of(spec)
        self._runner, self._classifier = runner, classifier
        options = options or QueueOptions()
        self.metrics = metrics or Metrics(options.max_batch)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue = BatchingQueue(runner, options, self.metrics.ran, self.metrics.waiting, self._on_loop)
        self._max_batch = options.max_batch
        self.is_open = False

    @property
    def is_stuck(self) -> bool:
        """Whether a run of the model does not end; see `RunWatch`."""
        return self._queue.watch.is_stuck

    @property
    def is_ready(self) -> bool:
        """Whether requests are welcome, and would be answered."""
        return self.is_open and not self.is_stuck

    def warm_up(self) -> None:
        """Run a batch of one image and the largest one, so that no client waits for what the first run prepares.

        Inputs of which not every size is known are left alone.
        """
        if all(None not in spec.shape[1:] for spec in self.inputs):
            for batch in sorted({1, self._max_batch}):
                specs = [spec.of_batch(batch) for spec in self.inputs]
                feeds = {spec.name: np.zeros([size or 1 for size in spec.shape], spec.dtype) for spec in specs}
                with self._queue.watch.timed():
                    self._runner.run(feeds)
        self.is_open = True

    def close(self) -> None:
        """Answer what waits, and close the runner."""
        self.is_open = False
        self._queue.close()
        self._runner.close()

    def server_metadata(self) -> dict[str, Any]:
        """Return the metadata of the server."""
        version = installed_version(SERVER) or ""
        return {"name": SERVER, "version": version, "extensions": list(EXTENSIONS)}

    def model_metadata(self) -> dict[str, Any]:
        """Return the metadata of the model."""
        inputs = [self._queue.shown(spec) for spec in self.inputs]
        outputs = [self._queue.shown(spec) for spec in self.outputs]
        return metadata(self.name, f"densenet_deploy_{self._runner.name}", inputs, outputs)

    def require_model(self, name: str, version: str = "") -> None:
        """Refuse another model or version.

        Raises:
            RequestError: status 404.
        """
        if name != self.name:
            raise RequestError(404, f"model: {printable(name)}: is not served here; ask for {self.name}", "not_found")
        if version not in ("", VERSION):
            why = f"version: {printable(version)}: is not one of {self.name}; ask for {VERSION}"
            raise RequestError(404, why, "not_found")

    async def infer(self, feeds: Feeds) -> Mapping[str, Array]:
        """Return the outputs for the feeds of one request. Errors as `BatchingQueue.submit`, and those of the model."""
        self._loop = asyncio.get_running_loop()
        submitted, is_done = self._queue.submit(feeds), asyncio.Event()
        submitted.add_done_callback(lambda _: is_done.set())
        try:
            await is_done.wait()
        finally:
            submitted.cancel()  # in vain where it has been answered
        return submitted.result()

    def _on_loop(self, give: Callable[[], None]) -> None:
        """Let the event loop give a batch its answers: it is woken once, not once for each request."""
        assert self._loop is not None  # `infer` has set it
        with contextlib.suppress(RuntimeError):  # it has ended, and nobody waits any more
            self._loop.call_soon_threadsafe(give)

    async def classify(self, image: bytes, top_k: int = 5) -> dict[str, Any]:
        """Return what `Classifier` says about an image file.

        Raises:
            RequestError: if the model does not classify images.
            ImageError: if the image cannot be read.
            UsageError: if `top_k` is below 1.
        """
        classifier = self._classifier
        if isinstance(classifier, str):
            raise RequestError(404, classifier, "not_found")
        if top_k < 1:
            raise UsageError(f"top_k={top_k}", "is out of range", "ask for at least 1 class")
        prepared = await asyncio.to_thread(classifier.prepare, image)
        outputs = await self.infer({self.inputs[0].name: prepared.pixels[None]})
        row = classifier.rows(outputs, 1)[0]
        return classifier.answer(row, top_k, prepared.notes).to_json()

    @contextlib.contextmanager
    def counted(self, endpoint: str) -> Iterator[None]:
        """Count a request and its time; every error inside becomes a `RequestError`, counted by kind."""
        start = time.monotonic()
        try:
            yield
        except asyncio.CancelledError:  # its time was up when the server ended
            self.metrics.failed("abandoned")
            raise
        except Exception as exc:
            error = _answered_as(exc)
            self.metrics.failed(error.kind)
            if error.kind == "model":
                log.exception("%s failed", endpoint)
            raise error from exc
        self.metrics.answered(endpoint, time.monotonic() - start)


def _answered_as(exc: Exception) -> RequestError:
    if isinstance(exc, RequestError):
        return exc
    if isinstance(exc, (QueueFullError, RunnerStateError)):
        return RequestError(503, str(exc), "queue_full")
    if isinstance(exc, _CLIENTS):
        return RequestError(400, str(exc))
    if isinstance(exc, DensenetDeployError):
        return RequestError(500, str(exc), "model")
    return RequestError(500, f"internal error: {type(exc).__name__}: {printable(exc)}", "model")
