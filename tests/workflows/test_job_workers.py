"""The workers of a job: what runs them, and their share of the CPUs."""

from pathlib import Path

import pytest

import densenet_deploy as dd
from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.runtime.runner import RunnerOptions
from densenet_deploy.serving.batch.shard_worker import JobSettings
from densenet_deploy.workflows import job_workers
from densenet_deploy.workflows.job_workers import EngineOptions, started_engine
from densenet_deploy.workflows.worker_model import WorkerModel


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"engine": "spark"}, UnknownNameError),
        ({"workers": 0}, UsageError),
        ({"workers": 4097}, UsageError),
        ({"address": "auto"}, UsageError),
    ],
)
def test_options_out_of_range_are_refused(options, kind) -> None:
    with pytest.raises(kind):
        EngineOptions(**options)
    EngineOptions("ray", "auto", 4096)


class Started:
    """An engine that is not one: what it was started with."""

    def __init__(self, job, *rest):
        self.job, self.rest = job, rest

    def close(self):
        pass


@pytest.mark.parametrize(
    ("choice", "threads", "expected"),
    [
        (EngineOptions(), None, (8, 8)),
        (EngineOptions(workers=3), None, (2, 2)),
        (EngineOptions(workers=3), 5, (5, 2)),
        (EngineOptions(workers=16), None, (1, 1)),
        (EngineOptions("ray", workers=3), None, (1, 1)),
        (EngineOptions("ray", workers=3), 5, (5, 5)),
    ],
)
def test_workers_share_the_cpus_and_threads_sleep(choice, threads, expected, digits_onnx, monkeypatch) -> None:
    monkeypatch.setattr(job_workers, "usable_cpus", lambda: 8)
    monkeypatch.setattr(job_workers, "LocalEngine", Started)
    monkeypatch.setattr(job_workers, "_ray", Started)
    told = WorkerModel(options=RunnerOptions(threads=threads))
    with started_engine("program", choice, digits_onnx, {}, told, JobSettings(4, 1), fast_decode=True) as (
        engine,
        file,
    ):
        settings = engine.job.settings
        assert (settings["model"]["options"]["threads"], settings["job"]["decode_threads"]) == expected
        assert settings["model"]["options"]["spin"] is False
        assert (settings["model"]["source"], settings["fast_decode"]) == (str(digits_onnx), True)
        assert (engine.job.module, engine.job.subject, file.source) == ("program", "digits.onnx", str(digits_onnx))


def test_only_a_named_accelerator_takes_gpus_of_a_cluster(digits_onnx, monkeypatch) -> None:
    shares = []

    def started(job, share):
        shares.append(share)
        return Started(job)

    monkeypatch.setattr("densenet_deploy.serving.batch.ray.RayEngine", started)
    for device, address in ((None, None), ("cpu", "auto"), ("cuda:1", "auto"), ("gpu", None)):
        told = WorkerModel(device=device, options=RunnerOptions(threads=2))
        choice = EngineOptions("ray", address, 3)
        with started_engine("program", choice, digits_onnx, {}, told, JobSettings(4, 1), fast_decode=False):
            pass
    assert [share.gpus for share in shares] == [0, 0, 1, 1]
    assert [share.model for share in shares] == [None, digits_onnx, digits_onnx, None]
    assert {(share.workers, share.cpus) for share in shares} == {(3, 2)}


def test_a_model_in_memory_lies_in_a_file_while_the_workers_run(digits_onnx, monkeypatch) -> None:
    monkeypatch.setattr(job_workers, "LocalEngine", Started)
    model = dd.load(digits_onnx)
    told, settings = WorkerModel(), JobSettings(4, 1)
    with started_engine("program", EngineOptions(), model, {}, told, settings, fast_decode=False) as (_, file):
        path = Path(file.source)
        assert path == file.whole_file()
    assert not path.exists()
