"""What a server counts, as Prometheus reads it: requests, errors by kind, batches, the queue, and times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from densenet_deploy.serving.dynamic_batching import BatchRun

__all__ = ["CONTENT_TYPE", "Metrics"]

_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_KINDS: Final = ("bad_request", "not_found", "too_large", "queue_full", "model", "disconnected", "abandoned")


class Metrics:
    """The counters of one server.

    Args:
        max_batch: the most images of a batch.
        waiting: returns how many images wait.
    """

    def __init__(self, max_batch: int, waiting: Callable[[], int]) -> None:
        self._registry = own = CollectorRegistry()
        sizes = [2**power for power in range(17) if 2**power < max_batch]
        self._requests = Counter("densenet_requests", "Requests that were answered.", ["endpoint"], registry=own)
        self._errors = Counter("densenet_errors", "Requests that were refused or failed.", ["kind"], registry=own)
        self._seconds = Histogram(
            "densenet_request_seconds", "Time of a request.", ["endpoint"], buckets=_SECONDS, registry=own
        )
        self._batches = Histogram(
            "densenet_batch_images", "Images in a run of the model.", buckets=[*sizes, max_batch], registry=own
        )
        self._runs = Histogram("densenet_run_seconds", "Time of a run of the model.", buckets=_SECONDS, registry=own)
        Gauge("densenet_queue_images", "Images that wait for a run.", registry=own).set_function(waiting)
        for kind in _KINDS:
            self._errors.labels(kind)

    def answered(self, endpoint: str, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(endpoint).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def failed(self, kind: str) -> None:
        """Count a request that was refused, or that failed."""
        self._errors.labels(kind).inc()

    def ran(self, run: BatchRun) -> None:
        """Count a run of the model."""
        self._batches.observe(run.images)
        self._runs.observe(run.seconds)

    def total(self, sample: str) -> int:
        """Return the sum over the labels of `requests_total`, `errors_total`, `batch_images_sum` or `_count`."""
        found = (s for family in self._registry.collect() for s in family.samples if s.name == f"densenet_{sample}")
        return int(sum(one.value for one in found))

    def to_text(self) -> bytes:
        """Return the text format."""
        return generate_latest(self._registry)
