"""Models side by side: every candidate measured, what does not fit left out with a note, the files that are written."""

from __future__ import annotations

import csv
import dataclasses
import json

import pytest

from densenet_deploy.errors import BackendError, InputError, OutputExistsError, UnknownNameError, UsageError
from densenet_deploy.workflows.benchmark.benchmark import BenchmarkOptions, benchmark
from densenet_deploy.workflows.evaluate.evaluate import evaluate
from densenet_deploy.workflows.export import ExportTarget, export_onnx
from densenet_deploy.workflows.load import ModelRequest
from densenet_deploy.workflows.plot.points import pareto_points
from tests.conftest import TINY

QUICK = BenchmarkOptions(seconds=0, rounds=3)


def _quick(**changes: object) -> BenchmarkOptions:
    return dataclasses.replace(QUICK, **changes)


@pytest.fixture(scope="module")
def pair_onnx(tmp_path_factory):
    """A model that takes two images at once, no more and no fewer."""
    target = ExportTarget(batch=2, out=str(tmp_path_factory.mktemp("pair") / "pair.onnx"))
    return export_onnx(ModelRequest(architecture=TINY, num_classes=10), target).onnx


def test_every_model_backend_and_batch_is_measured(tiny_onnx, checkpoint):
    report = benchmark([tiny_onnx, checkpoint], _quick(batches=(1, 3)))
    found = [(r.candidate.model, r.opening.placement.backend, r.candidate.batch) for r in report.results]
    assert found == [
        (tiny_onnx, "onnxruntime", 1),
        (checkpoint, "torch", 1),
        (tiny_onnx, "onnxruntime", 3),
        (checkpoint, "torch", 3),
    ]
    for result in report.results:
        assert result.calls >= 9
        assert result.latency.p50 <= result.latency.p90 <= result.latency.p95 <= result.latency.p99
        assert result.opening.load_seconds > 0
        assert result.opening.first_seconds > 0
        assert 10e6 < result.peak_memory_bytes < 4e9
    assert [result.speedup is None for result in report.results] == [True, False, True, False]
    assert any("untrained" in note for note in report.notes)


def test_its_report_and_that_of_evaluate_meet_in_plot_pareto(tiny_onnx, images, tmp_path):
    reports = {"benchmark": benchmark([tiny_onnx], QUICK), "evaluate": evaluate(tiny_onnx, images)}
    paths = [tmp_path / f"{name}.json" for name in reports]
    for path, report in zip(paths, reports.values(), strict=True):
        path.write_text(json.dumps(report.to_json()))
    (point,) = pareto_points(paths)
    assert point.top1 == reports["evaluate"].top1
    assert point.latency_ms == pytest.approx(reports["benchmark"].results[0].latency.p50)


def test_backends_and_threads_multiply_and_what_cannot_be_read_is_left_out_with_a_note(tiny_onnx):
    report = benchmark([tiny_onnx], _quick(backends=("openvino", "torch", "onnxruntime"), threads=(1, 2)))
    placements = [(r.opening.placement.backend, r.opening.placement.threads) for r in report.results]
    assert placements == [("openvino", 1), ("openvino", 2), ("onnxruntime", 1), ("onnxruntime", 2)]
    assert any("torch does not read .onnx files" in note for note in report.notes)


def test_a_fixed_batch_is_measured_there_alone(pair_onnx, tiny_onnx):
    report = benchmark([pair_onnx, tiny_onnx], _quick(batches=(1, 2)))
    found = [(r.candidate.model, r.candidate.batch) for r in report.results]
    assert found == [(tiny_onnx, 1), (pair_onnx, 2), (tiny_onnx, 2)]
    assert sum("does not accept batch 1" in note for note in report.notes) == 1


def test_it_is_an_error_when_nothing_is_left(pair_onnx, tiny_onnx):
    with pytest.raises(BackendError, match="does not accept batch 3"):
        benchmark([pair_onnx], _quick(batches=(3,)))
    with pytest.raises(BackendError, match="torch does not read"):
        benchmark([tiny_onnx], _quick(backends=("torch",)))


def test_the_report_is_plain_json_with_the_promised_keys(tiny_onnx):
    facts = json.loads(json.dumps(benchmark([tiny_onnx], QUICK).to_json(), allow_nan=False))
    (result,) = facts["results"]
    promised = {"model", "backend", "precision", "batch", "latency_ms", "images_per_second", "peak_memory_bytes"}
    assert promised <= result.keys()
    assert {"mean", "p50", "p90", "p99"} <= result["latency_ms"].keys()
    assert (result["model"], result["batch"], result["precision"]) == (str(tiny_onnx), 1, "fp32")
    assert result["interval_ms"][0] <= result["interval_ms"][1]
    assert facts["machine"]["versions"]["numpy"]


def test_offline_runs_several_runners_and_a_camera_counts_frames(tiny_onnx):
    (offline,) = benchmark([tiny_onnx], _quick(scenario="offline", streams=2, threads=(1,))).results
    assert (offline.candidate.streams, offline.opening.placement.threads) == (2, 1)
    assert offline.camera is None
    report = benchmark([tiny_onnx], _quick(scenario="camera", fps=100.0))
    (camera,) = report.results
    assert camera.camera is not None
    assert camera.camera.frames == 9
    assert camera.calls + camera.camera.dropped == 9
    assert "of 9" in report.to_text()


def test_a_run_is_written_and_compared_with(tiny_onnx, tmp_path):
    old = benchmark([tiny_onnx], QUICK, str(tmp_path / "old.json"))
    assert old.file == tmp_path / "old.json"
    written = json.loads(old.file.read_text())
    assert (written["schema"], written["seconds_each"]) == (1, QUICK.seconds)
    report = benchmark([tiny_onnx], _quick(compare=old.file, batches=(1, 2)))
    known, new = report.compared
    assert known is not None
    assert known.same_file
    assert known.verdict in ("faster", "slower", "no difference")
    assert known.speedup.low <= known.speedup.median <= known.speedup.high
    assert new is None
    text = report.to_text()
    assert known.verdict in text
    assert "batch 2: not in the earlier run" in text
    assert report.to_json()["results"][0]["compared"]["verdict"] == known.verdict


def test_csv_has_a_row_a_result_and_no_nested_column(tiny_onnx, tmp_path):
    path = benchmark([tiny_onnx, tiny_onnx], QUICK, str(tmp_path / "results.csv")).file
    assert path is not None
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == [str(tiny_onnx)] * 2
    assert float(rows[0]["latency_ms.p99"]) > 0
    assert rows[0]["speedup.median"] == ""
    assert float(rows[1]["speedup.median"]) > 0
    assert "speedup" not in rows[0]


def test_calls_that_are_mostly_copies_and_checks_are_named(tiny_onnx):
    report = benchmark([tiny_onnx], QUICK)
    (result,) = report.results
    assert 0 < result.outside_share < 1

    def noted(share: float) -> list[str]:
        turns = [dataclasses.replace(turn, inside_seconds=sum(turn.seconds) * (1 - share)) for turn in result.timings]
        changed = dataclasses.replace(report, results=(dataclasses.replace(result, timings=tuple(turns)),))
        return [note for note in changed.notes if "copies and checks" in note]

    assert noted(0.09) == []
    (note,) = noted(0.25)
    assert note.startswith(f"{tiny_onnx.name} on onnxruntime, batch 1: 25% of a call are copies and checks")


def test_what_stands_in_the_way_is_found_before_the_work(tiny_onnx, tmp_path):
    stranger = tmp_path / "mine.json"
    stranger.write_text("{}")
    with pytest.raises(OutputExistsError):
        benchmark([tiny_onnx], QUICK, str(stranger))
    assert stranger.read_text() == "{}"
    assert benchmark([tiny_onnx], QUICK, str(stranger), force=True).file == stranger
    with pytest.raises(UsageError, match=r"is no \.json file"):
        benchmark([tiny_onnx], QUICK, str(tmp_path / "plot.png"))


def test_a_file_that_is_no_model_ends_it_before_any_process(tiny_onnx, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        benchmark([tiny_onnx, tmp_path / "none.onnx"], QUICK)


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({"scenario": "ofline"}, UnknownNameError),
        ({"scenario": "camera"}, UsageError),
        ({"fps": 30.0}, UsageError),
        ({"streams": 2}, UsageError),
        ({"seconds": -1.0}, UsageError),
        ({"seconds": float("nan")}, UsageError),
        ({"rounds": 2}, UsageError),
        ({"batches": (1, 0)}, UsageError),
        ({"devices": ("cpu", "tpu")}, UnknownNameError),
        ({"threads": (0,)}, UsageError),
    ],
)
def test_options_that_cannot_be_meant(facts, kind):
    with pytest.raises(kind):
        BenchmarkOptions(**facts)


@pytest.mark.parametrize("changes", [{"scenario": "camera", "fps": 0.0}, {"backends": ("tenserrt",)}])
def test_words_and_numbers_that_cannot_be_meant_start_no_process(tiny_onnx, changes):
    with pytest.raises(UsageError):
        benchmark([tiny_onnx], _quick(**changes))
