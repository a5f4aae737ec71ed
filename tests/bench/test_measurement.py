"""What turns say: pooled percentiles, an interval of rounds, throughput, a camera's misses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from densenet_deploy.bench.candidate import Candidate, Opening
from densenet_deploy.bench.measurement import CameraCount, Measurement, flat, variation
from densenet_deploy.bench.scenarios import RoundTiming
from densenet_deploy.runtime.runner import Placement

OPENING = Opening(Placement("onnxruntime", "1.29", "cpu", "CPUExecutionProvider", "fp32", 2), 0.5, 0.02, None)


def _measurement(*turns: RoundTiming, **facts: object) -> Measurement:
    candidate = Candidate(Path("a.onnx"), **facts)
    return Measurement(candidate, "single-stream", "00", OPENING, turns, warm_up_rounds=3, steady=True)


def test_percentiles_are_of_all_calls_and_the_interval_of_rounds():
    found = _measurement(
        RoundTiming((0.001,) * 3, 0.003, peak_memory_bytes=100),
        RoundTiming((0.003,) * 3, 0.009, peak_memory_bytes=300),
        RoundTiming((0.002,) * 3, 0.006, peak_memory_bytes=200),
    )
    assert found.latency.mean == pytest.approx(2)
    assert found.rounds_ms == pytest.approx((1, 3, 2))
    assert (found.interval_ms.low, found.interval_ms.high) == pytest.approx((1, 3))
    assert found.peak_memory_bytes == 300
    assert found.variation == pytest.approx(0.5)  # standard deviation 1 of mean 2


def test_throughput_counts_images_over_the_time_it_took():
    found = _measurement(RoundTiming((0.01,) * 10, 0.2), batch=4)
    assert found.images_per_second == pytest.approx(200)


def test_a_camera_misses_what_was_dropped_and_what_was_late():
    found = _measurement(RoundTiming((0.05,) * 4, 1, 10, 6, 1), RoundTiming((0.05,) * 9, 1, 10, 1, 2), fps=30.0)
    assert found.camera == CameraCount(30.0, 20, 7, 3)
    assert found.camera.missed == 0.5
    assert found.camera.deadline_ms == pytest.approx(33.3, abs=0.04)
    assert _measurement(RoundTiming((0.05,), 1)).camera is None


def test_what_is_not_the_backends_is_a_share_of_the_calls():
    turns = (RoundTiming((0.01, 0.03), 1.0, inside_seconds=0.03), RoundTiming((0.06,), 1.0, inside_seconds=0.06))
    found = _measurement(*turns)
    assert found.outside_share == pytest.approx(0.1)
    assert found.to_json()["outside_share"] == found.outside_share
    assert _measurement(turns[0], RoundTiming((0.01,), 1)).outside_share is None, "nobody looked"
    on_gpu = dataclasses.replace(OPENING, placement=dataclasses.replace(OPENING.placement, device="cuda:0"))
    assert dataclasses.replace(found, opening=on_gpu).outside_share is None, "copies are part of the work there"


def test_json_is_plain_and_flat_is_one_row():
    facts = _measurement(RoundTiming((0.01,) * 3, 0.03, frames=3), fps=10.0).to_json()
    json.dumps(facts, allow_nan=False)
    row = flat(facts)
    assert row["latency_ms.p50"] == pytest.approx(10)
    assert row["rounds_ms"].split() == [str(value) for value in facts["rounds_ms"]]
    assert "camera" not in row
    assert row["camera.fps"] == 10.0


def test_the_variation_of_one_value_is_none():
    assert variation([2.0]) == 0
    assert variation([2.0, 2.0]) == 0
    assert variation([1.0, 3.0]) == pytest.approx(2**0.5 / 2)
