"""Metrics: of one process, and the sums of several that any of them tells."""

import json
import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

from densenet_deploy.serving.dynamic_batching import BatchRun
from densenet_deploy.serving.metrics import Metrics, SharedCounts, environment, forget, total

PROGRAM = """
import json, os, sys
from densenet_deploy.serving.dynamic_batching import BatchRun
from densenet_deploy.serving.metrics import Metrics
metrics = Metrics(4, is_shared=True)
metrics.serves(True)
metrics.answered("infer", 0.003)
metrics.ran(BatchRun(int(sys.argv[1]), 0.5))
metrics.waiting(int(sys.argv[1]))
print(json.dumps([os.getpid(), metrics.to_text().decode()]))
"""


def samples(text):
    return {
        (one.name, *one.labels.values()): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
        if not one.name.endswith("_created")
    }


def counted_in(folder, images):
    """Count in a process of its own; return its number and what it tells."""
    command = [sys.executable, "-c", PROGRAM, str(images)]
    done = subprocess.run(command, env={"PYTHONPATH": "."} | environment(folder), capture_output=True, check=True)
    pid, text = json.loads(done.stdout)
    return pid, samples(text)


def test_what_one_process_counts() -> None:
    metrics = Metrics(4)
    metrics.serves(True)
    metrics.answered("infer", 0.003)
    metrics.failed("model")
    metrics.ran(BatchRun(3, 0.5))
    metrics.waiting(5)
    metrics.replaces("hung")
    found = samples(metrics.to_text().decode())
    assert [found["densenet_worker_losses_total", reason] for reason in ("ended", "hung")] == [0, 1]
    assert found["densenet_requests_total", "infer"] == 1
    assert (found["densenet_errors_total", "model"], found["densenet_errors_total", "abandoned"]) == (1, 0)
    assert [found["densenet_batch_images_bucket", size] for size in ("1.0", "2.0", "4.0", "+Inf")] == [0, 0, 1, 1]
    assert found["densenet_request_seconds_bucket", "infer", "0.002"] == 0
    assert found["densenet_request_seconds_bucket", "infer", "0.005"] == 1
    assert (found[("densenet_queue_images",)], found[("densenet_workers",)]) == (5, 1)
    assert [total(metrics.counts, name) for name in ("requests_total", "errors_total", "batch_images_sum")] == [1, 1, 3]
    metrics.serves(False)
    found = samples(metrics.to_text().decode())
    assert (found[("densenet_workers",)], found[("densenet_worker_starts_total",)]) == (0, 1)


def test_every_process_tells_the_sums_and_those_that_ended_are_left_out_of_the_gauges(tmp_path) -> None:
    first, found = counted_in(tmp_path, 1)
    assert (found[("densenet_workers",)], found[("densenet_queue_images",)]) == (1, 1)
    second, found = counted_in(tmp_path, 3)
    assert (found[("densenet_workers",)], found[("densenet_queue_images",)]) == (2, 4)
    assert found["densenet_requests_total", "infer"] == 2
    assert [found["densenet_batch_images_bucket", size] for size in ("1.0", "2.0", "4.0", "+Inf")] == [1, 1, 2, 2]
    assert found["densenet_errors_total", "model"] == 0
    forget(first, tmp_path)
    _, found = counted_in(tmp_path, 2)
    assert (found[("densenet_workers",)], found[("densenet_queue_images",)]) == (2, 5)
    assert (found["densenet_requests_total", "infer"], found[("densenet_worker_starts_total",)]) == (3, 3)
    assert total(SharedCounts(tmp_path), "batch_images_sum") == 6
    assert second != first


def test_a_file_that_a_process_is_just_making_is_read_again(tmp_path, monkeypatch) -> None:
    counted_in(tmp_path, 1)
    made = tmp_path / "counter_0.db"
    made.touch()
    read = SharedCounts._read

    def read_and_make(self):
        try:
            return read(self)
        finally:
            made.unlink(missing_ok=True)

    monkeypatch.setattr(SharedCounts, "_read", read_and_make)
    assert total(SharedCounts(tmp_path), "requests_total") == 1
