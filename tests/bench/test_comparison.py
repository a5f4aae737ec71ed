"""Today against an earlier run: which results belong together, and what their intervals allow to say."""

from __future__ import annotations

import json

import pytest

from densenet_deploy.bench.comparison import EarlierRun, key_of, speedup_since, unmatched, verdict
from densenet_deploy.bench.rounds import Interval
from densenet_deploy.errors import DataError, InputError

ROW = {
    "model": "somewhere/a.onnx",
    "sha256": "00",
    "backend": "onnxruntime",
    "device": "cpu",
    "batch": 1,
    "threads": 2,
    "streams": 1,
    "scenario": "single-stream",
    "rounds_ms": [4.0, 4.2, 3.8],
    "camera": None,
}


def _written(path, *rows):
    path.write_text(json.dumps({"schema": 1, "results": rows, "machine": {"cpu": "some cpu"}}))
    return path


def test_an_earlier_run_is_read_by_contender(tmp_path):
    earlier = EarlierRun.read(_written(tmp_path / "old.json", ROW, ROW | {"batch": 8}))
    assert earlier.cpu == "some cpu"
    assert earlier.figures[key_of(ROW)].rounds_ms == (4.0, 4.2, 3.8)
    assert unmatched(earlier, [key_of(ROW)]) == 1


def test_the_folder_of_a_model_does_not_matter_and_all_else_does():
    assert key_of(ROW | {"model": "elsewhere/a.onnx", "sha256": "11"}) == key_of(ROW)
    for other in ({"model": "b.onnx"}, {"batch": 8}, {"backend": "torch"}, {"threads": 1}, {"camera": {"fps": 30}}):
        assert key_of(ROW | other) != key_of(ROW)


@pytest.mark.parametrize(
    ("now", "said"),
    [([2.0, 2.1, 1.9], "faster"), ([8.0, 8.4, 7.6], "slower"), ([3.9, 4.1, 4.0], "no difference")],
)
def test_what_an_interval_allows_to_say(now, said):
    speedup = speedup_since(ROW["rounds_ms"], now)
    assert speedup.low <= speedup.median <= speedup.high
    assert speedup.median == pytest.approx(4.0 / sorted(now)[1])
    assert verdict(speedup) == said


def test_an_interval_that_touches_one_says_nothing():
    assert verdict(Interval(1.2, 1.0, 1.4)) == "no difference"
    assert verdict(Interval(0.9, 0.8, 1.0)) == "no difference"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"results": []}',
        '{"results": [{}], "machine": {"cpu": ""}}',
        json.dumps({"results": [ROW | {"rounds_ms": []}], "machine": {"cpu": ""}}),
        json.dumps({"results": [ROW | {"rounds_ms": [0]}], "machine": {"cpu": ""}}),
        json.dumps({"results": [ROW | {"rounds_ms": ["4"]}], "machine": {"cpu": ""}}),
        json.dumps({"results": [ROW | {"rounds_ms": [float("nan")]}], "machine": {"cpu": ""}}),
        "[" * 100_000,
    ],
)
def test_what_no_benchmark_wrote_is_refused(tmp_path, text):
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        EarlierRun.read(path)
    assert caught.value.subject == str(path)


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError):
        EarlierRun.read(tmp_path / "old.json")
