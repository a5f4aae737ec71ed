"""What rounds say: pooled percentiles, an interval of rounds, throughput, missed frames, and changes since."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from densenet_deploy.bench.candidate import Candidate, Opening
from densenet_deploy.bench.measurement import CameraCount, Comparison, Measurement, variation
from densenet_deploy.bench.rounds import Interval
from densenet_deploy.bench.scenarios import RoundTiming
from densenet_deploy.records import from_plain, to_plain
from densenet_deploy.runtime.runner import Placement

OPENING = Opening(Placement("onnxruntime", "1.29", "cpu", "CPUExecutionProvider", "fp32", 2), 0.5, 0.02, None)


def _measured(*timings: RoundTiming, opening: Opening = OPENING, **facts: object) -> Measurement:
    candidate = Candidate(Path("somewhere/a.onnx"), **facts)
    known = {"sha256": "00", "warm_up_rounds": 3, "steady": True}
    return Measurement.of(candidate, opening, timings, scenario="single-stream", **known)


def _of_rounds(*milliseconds: float, **facts: object) -> Measurement:
    return _measured(*(RoundTiming((ms / 1e3,) * 3, ms * 3e-3) for ms in milliseconds), **facts)


def test_the_median_and_its_interval_are_of_rounds_and_percentiles_of_all_calls():
    found = _measured(
        RoundTiming((0.001,) * 3, 0.003, peak_memory_bytes=100),
        RoundTiming((0.003,) * 9, 0.027, peak_memory_bytes=300),
        RoundTiming((0.002,) * 3, 0.006, peak_memory_bytes=200),
    )
    assert found.rounds_ms == pytest.approx((1, 3, 2))
    assert found.median_ms == found.latency_ms.p50 == pytest.approx(2)
    assert found.interval_ms == pytest.approx((1, 3))
    assert found.latency_ms.mean == pytest.approx(2.4)  # (3 x 1 + 9 x 3 + 3 x 2) / 15
    assert found.latency_ms.p90 == pytest.approx(3)
    assert found.peak_memory_bytes == 300
    assert found.calls == 15
    assert found.variation == pytest.approx(0.5)  # standard deviation 1 of mean 2


def test_throughput_counts_images_over_the_time_they_took():
    found = _measured(RoundTiming((0.01,) * 10, 0.2), batch=4)
    assert found.images_per_second == pytest.approx(200)


def test_a_camera_misses_dropped_and_late_frames():
    found = _measured(RoundTiming((0.05,) * 4, 1, 10, 6, 1), RoundTiming((0.05,) * 9, 1, 10, 1, 2), fps=30.0)
    assert found.camera == CameraCount(30.0, 20, 7, 3)
    assert found.camera.missed == 0.5
    assert found.camera.deadline_ms == pytest.approx(33.3, abs=0.04)
    assert _measured(RoundTiming((0.05,), 1)).camera is None


def test_time_outside_of_the_backend_is_a_share_of_the_calls():
    timings = (RoundTiming((0.01, 0.03), 1.0, inside_seconds=0.03), RoundTiming((0.06,), 1.0, inside_seconds=0.06))
    assert _measured(*timings).outside_share == pytest.approx(0.1)
    assert _measured(timings[0], RoundTiming((0.01,), 1)).outside_share is None, "not measured in one of the rounds"
    on_gpu = dataclasses.replace(OPENING, placement=dataclasses.replace(OPENING.placement, device="cuda:0"))
    assert _measured(*timings, opening=on_gpu).outside_share is None, "copies are part of the work there"


def test_a_measurement_reads_its_own_json():
    before = _measured(RoundTiming((0.01,) * 3, 0.03, frames=3), fps=10.0)
    found = dataclasses.replace(before, speedup=Interval(1, 1, 1), compared=Comparison.of(before, before))
    facts = json.loads(json.dumps(to_plain(found), allow_nan=False))
    assert from_plain(Measurement, facts) == found
    assert facts["camera"]["missed"] == 0


def test_the_folder_of_a_model_does_not_matter_to_its_configuration_and_all_else_does():
    found = _of_rounds(4.0)
    assert dataclasses.replace(found, model="elsewhere/a.onnx", sha256="11").configuration == found.configuration
    camera = CameraCount(30.0, 1, 0, 0)
    for change in ({"model": "b.onnx"}, {"batch": 8}, {"backend": "torch"}, {"threads": 1}, {"camera": camera}):
        assert dataclasses.replace(found, **change).configuration != found.configuration


@pytest.mark.parametrize(
    ("now", "verdict"),
    [([2.0, 2.1, 1.9], "faster"), ([8.0, 8.4, 7.6], "slower"), ([3.9, 4.1, 4.0], "no difference")],
)
def test_a_verdict_needs_an_interval_beside_one(now, verdict):
    compared = Comparison.of(_of_rounds(4.0, 4.2, 3.8), _of_rounds(*now))
    assert compared.before_ms == pytest.approx(4.0)
    assert compared.speedup.low <= compared.speedup.median <= compared.speedup.high
    assert compared.speedup.median == pytest.approx(4.0 / sorted(now)[1])
    assert compared.verdict == verdict
    assert compared.same_file


def test_the_variation_of_one_value_is_zero():
    assert variation([2.0]) == 0
    assert variation([2.0, 2.0]) == 0
    assert variation([1.0, 3.0]) == pytest.approx(2**0.5 / 2)
