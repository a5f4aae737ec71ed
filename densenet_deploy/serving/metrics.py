"""What a server counts, as Prometheus reads it: requests, errors by kind, batches, the queue, times and processes.

The processes of one server count into files of one folder (the multiprocess mode of prometheus-client), so that any of
them tells the sums. prometheus-client reads the folder from the environment when it is imported: `environment` is what
such a process is started with.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from densenet_deploy.serving.dynamic_batching import BatchRun
from densenet_deploy.serving.processes import ENDED, HUNG

__all__ = ["CONTENT_TYPE", "Metrics", "environment", "forget", "total"]

_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_KINDS: Final = ("bad_request", "not_found", "too_large", "queue_full", "model", "disconnected", "abandoned")
_TRIES: Final = 5


class SharedCounts(Collector):
    """The sums over all processes that counted into a folder, those that have ended included.

    A program that tidies up may remove the folder; it is made again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def collect(self) -> Iterable[Metric]:
        """Read them; a file that a process is just making, empty for a moment, is read again."""
        for _ in range(_TRIES - 1):
            with contextlib.suppress(struct.error):
                return self._read()
        return self._read()

    def _read(self) -> list[Metric]:
        self._folder.mkdir(parents=True, exist_ok=True)
        return list(MultiProcessCollector(None, str(self._folder)).collect())  # type: ignore[no-untyped-call]


def environment(folder: Path) -> dict[str, str]:
    """Return the variables of a process whose `Metrics` are shared in `folder`."""
    return {_FOLDER: str(folder)}


def forget(pid: int, folder: Path) -> None:
    """Leave a process that has ended out of the gauges; what it counted stays."""
    mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]


def total(counts: Collector, sample: str) -> int:
    """Return the sum over the labels of a sample such as `requests_total` or `batch_images_sum`."""
    found = (one for family in counts.collect() for one in family.samples if one.name == f"densenet_{sample}")
    return int(sum(one.value for one in found))


class Metrics:
    """The counters of one process of a server.

    Args:
        max_batch: the most images of a batch.
        is_shared: whether the process was started with `environment`, and tells the sums of all.

    Attributes:
        counts: what is told.
    """

    def __init__(self, max_batch: int, *, is_shared: bool = False) -> None:
        own = CollectorRegistry()
        sizes = [2**power for power in range(17) if 2**power < max_batch]
        self.counts: Collector = SharedCounts(Path(os.environ[_FOLDER])) if is_shared else own
        self._requests = Counter("densenet_requests", "Requests that were answered.", ["endpoint"], registry=own)
        self._errors = Counter("densenet_errors", "Requests that were refused or failed.", ["kind"], registry=own)
        self._seconds = Histogram(
            "densenet_request_seconds", "Time of a request.", ["endpoint"], buckets=_SECONDS, registry=own
        )
        self._batches = Histogram(
            "densenet_batch_images", "Images in a run of the model.", buckets=[*sizes, max_batch], registry=own
        )
        self._runs = Histogram("densenet_run_seconds", "Time of a run of the model.", buckets=_SECONDS, registry=own)
        self._waiting = Gauge(
            "densenet_queue_images", "Images that wait for a run.", registry=own, multiprocess_mode="livesum"
        )
        self._workers = Gauge(
            "densenet_workers", "Processes that take requests.", registry=own, multiprocess_mode="livesum"
        )
        self._starts = Counter("densenet_worker_starts", "Processes that began to take requests.", registry=own)
        self._losses = Counter("densenet_worker_losses", "Processes that were replaced.", ["reason"], registry=own)
        self._endpoints: dict[str, tuple[Counter, Histogram]] = {}
        for kind in _KINDS:
            self._errors.labels(kind)
        for reason in (ENDED, HUNG):
            self._losses.labels(reason)

    def answered(self, endpoint: str, seconds: float) -> None:
        """Count a request that was answered."""
        if endpoint not in self._endpoints:
            self._endpoints[endpoint] = self._requests.labels(endpoint), self._seconds.labels(endpoint)
        requests, times = self._endpoints[endpoint]
        requests.inc()
        times.observe(seconds)

    def failed(self, kind: str) -> None:
        """Count a request that was refused, or that failed."""
        self._errors.labels(kind).inc()

    def ran(self, run: BatchRun) -> None:
        """Count a run of the model."""
        self._batches.observe(run.images)
        self._runs.observe(run.seconds)

    def waiting(self, images: int) -> None:
        """Tell how many images wait."""
        self._waiting.set(images)

    def serves(self, is_ready: bool) -> None:
        """Tell whether this process takes requests."""
        self._workers.set(is_ready)
        self._starts.inc(is_ready)

    def replaces(self, reason: str) -> None:
        """Count the process that this one replaces, which cannot count itself."""
        self._losses.labels(reason).inc()

    def to_text(self) -> bytes:
        """Return the text format."""
        return generate_latest(self.counts)
