"""The engine of a Ray cluster: the bytes of the local one, whatever is lost; plans that do not fit are refused."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from densenet_deploy import BatchJobOptions, predict
from densenet_deploy.errors import BackendError, MissingPackageError, ModelFileError
from densenet_deploy.serving.batch.ray import ClusterShare, fitting_workers
from densenet_deploy.workflows import batch
from tests.serving.batch.test_shards import eleven

__all__ = ["eleven"]


@pytest.mark.parametrize(
    ("share", "nodes", "workers"),
    [
        (ClusterShare(), [(2, 0)], 2),
        (ClusterShare(cpus=2), [(4, 0), (3, 0)], 3),
        (ClusterShare(cpus=2, workers=3), [(4, 0), (3, 0)], 3),
        (ClusterShare(workers=1), [(64, 0)], 1),
        (ClusterShare(gpus=1), [(8, 2), (8, 0)], 2),
    ],
)
def test_as_many_workers_start_as_fit_the_nodes(share, nodes, workers):
    assert fitting_workers(share, nodes) == workers


@pytest.mark.parametrize(
    ("share", "nodes", "words"),
    [
        (ClusterShare(cpus=2, workers=4), [(4, 0), (3, 0)], ["4 workers", "2 CPUs", "4 CPUs, 3 CPUs", "room for 3"]),
        (ClusterShare(cpus=3), [(2, 0), (2, 0)], ["1 workers", "3 CPUs", "room for 0"]),
        (ClusterShare(gpus=1, workers=2), [(8, 1)], ["1 GPUs", "room for 1"]),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_with_the_numbers(share, nodes, words):
    with pytest.raises(BackendError) as caught:
        fitting_workers(share, nodes)
    assert caught.value.exit_code == 5
    for word in words:
        assert word in caught.value.why


def test_without_ray_the_extra_is_named(tiny_onnx, eleven, tmp_path, monkeypatch):
    monkeypatch.setattr("densenet_deploy.packages.is_installed", lambda package: package != "ray")
    with pytest.raises(MissingPackageError) as caught:
        predict(tiny_onnx, eleven, out=tmp_path / "rows.csv", job=BatchJobOptions(engine="ray"))
    assert (caught.value.subject, "scale" in caught.value.fix) == ("ray", True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def cluster():
    """Ray with two CPUs, in this process."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


CUT = {"shard_size": 4, "batch": 3, "format": "jsonl"}

slow_on_ray = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


class TestOnRay:
    pytestmark = slow_on_ray

    def test_the_bytes_are_those_of_the_local_engine(self, cluster, digits_onnx, eleven, tmp_path):
        predict(digits_onnx, eleven, out=tmp_path / "local", job=BatchJobOptions(**CUT))
        report = predict(digits_onnx, eleven, out=tmp_path / "ray", job=BatchJobOptions(**CUT, engine="ray"))
        assert contents(tmp_path / "ray") == contents(tmp_path / "local")
        assert (report.workers, report.engine, report.rows, report.bad) == (2, "ray", 11, 1)

    def test_a_model_that_is_sent_is_that_of_its_path(self, cluster, digits_onnx, eleven, tmp_path, monkeypatch):
        """With an address the file goes through the object store."""
        monkeypatch.setattr("densenet_deploy.serving.batch.ray._connected", lambda _: False)
        predict(digits_onnx, eleven, out=tmp_path / "path", job=BatchJobOptions(**CUT, engine="ray"))
        sent = BatchJobOptions(**CUT, engine="ray", address="auto")
        predict(digits_onnx, eleven, out=tmp_path / "sent", job=sent)
        assert contents(tmp_path / "sent") == contents(tmp_path / "path")

    def test_an_image_that_kills_its_process_is_a_row(self, cluster, digits_onnx, eleven, tmp_path, monkeypatch):
        monkeypatch.setattr(batch, "PROGRAM", "tests.serving.batch.crashing_program")
        files = [*eleven, shutil.copy(eleven[0], tmp_path / "crash.png")]
        report = predict(
            digits_onnx, files, out=tmp_path / "rows.csv", job=BatchJobOptions(**CUT | {"format": None}, engine="ray")
        )
        assert (report.rows, report.bad) == (12, 2)

    def test_an_error_of_the_model_is_that_of_the_job(self, cluster, eleven, tmp_path):
        (tmp_path / "bad.onnx").write_bytes(b"text")
        with pytest.raises(ModelFileError):
            predict(tmp_path / "bad.onnx", eleven, out=tmp_path / "rows", job=BatchJobOptions(engine="ray"))

    def test_too_many_workers_are_refused(self, cluster, digits_onnx, eleven, tmp_path):
        with pytest.raises(BackendError) as caught:
            predict(digits_onnx, eleven, out=tmp_path / "rows", job=BatchJobOptions(engine="ray", workers=3))
        assert "room for 2" in caught.value.why

    def test_actors_that_are_killed_lose_and_repeat_nothing(self, cluster, digits_onnx, eleven, tmp_path):
        files = [file for file in eleven for _ in range(60)]
        cut = CUT | {"shard_size": 40}
        predict(digits_onnx, files, out=tmp_path / "calm", job=BatchJobOptions(**cut))
        killed: list[int] = []

        def kill_two(_stage: str, done: int = 0, _total: int | None = None) -> None:
            if len(killed) < 2 and done >= 40 * (1 + 2 * len(killed)):
                killed.append(_pid_of_an_actor())
                os.kill(killed[-1], signal.SIGKILL)

        report = predict(
            digits_onnx, files, out=tmp_path / "killed", job=BatchJobOptions(**cut, engine="ray"), progress=kill_two
        )
        assert len(set(killed)) == 2
        assert contents(tmp_path / "killed") == contents(tmp_path / "calm")
        assert report.rows == len(files)


def _pid_of_an_actor() -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if words.startswith(b"ray::ShardActor") and state != "Z":
                return int(entry.name)
    raise AssertionError("no actor runs")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_node_that_is_lost_costs_nothing(digits_onnx, eleven, tmp_path):
    """Two nodes of a CPU each, simulated on this machine; the model goes to them through the object store."""
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    ray.shutdown()
    files = [file for file in eleven for _ in range(60)]
    cut = CUT | {"shard_size": 40}
    predict(digits_onnx, files, out=tmp_path / "calm", job=BatchJobOptions(**cut))
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    lost: list[int] = []
    try:
        node = cluster.add_node(num_cpus=1)

        def lose_it(_stage: str, done: int = 0, _total: int | None = None) -> None:
            if done >= 120 and not lost:
                lost.append(done)
                cluster.remove_node(node, allow_graceful=False)

        job = BatchJobOptions(**cut, engine="ray", address=cluster.address)
        report = predict(digits_onnx, files, out=tmp_path / "lost", job=job, progress=lose_it)
    finally:
        cluster.shutdown()
    assert lost
    assert (report.workers, report.rows) == (2, len(files))
    assert contents(tmp_path / "lost") == contents(tmp_path / "calm")
