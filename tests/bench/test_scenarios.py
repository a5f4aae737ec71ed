"""What a turn asks of a model: how often it is called, what is dropped and what is late."""

from __future__ import annotations

import threading
import time

import pytest

from densenet_deploy.bench.scenarios import camera, offline, single_stream


class Calls:
    """A model of a given speed that remembers when it was called."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.starts: list[float] = []
        self.threads: set[int] = set()

    def __call__(self) -> None:
        self.starts.append(time.perf_counter())
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)


def test_single_stream_times_every_call_after_two_of_warm_up():
    call = Calls(0.01)
    timing = single_stream(call, 0.1)
    assert len(call.starts) == len(timing.seconds) + 2
    assert min(timing.seconds) >= 0.01
    assert timing.wall_seconds >= sum(timing.seconds) >= 0.09
    assert (timing.frames, timing.dropped, timing.late) == (0, 0, 0)


def test_a_turn_of_no_time_still_times_three_calls():
    assert len(single_stream(Calls(), 0).seconds) == 3


def test_offline_calls_at_the_same_time():
    calls = [Calls(0.05), Calls(0.05)]
    timing = offline(calls, 0.2)
    assert len(timing.seconds) == sum(len(call.starts) - 2 for call in calls)
    assert sum(timing.seconds) > timing.wall_seconds  # more waiting than time: the calls overlapped
    assert timing.frames == 0


def test_what_an_offline_call_raises_is_raised():
    def fail() -> None:
        raise ValueError("from a thread")

    with pytest.raises(ValueError, match="from a thread"):
        offline([Calls(), fail], 0)


def test_a_fast_model_takes_every_frame_and_waits_for_it():
    call = Calls()
    timing = camera(call, 0.75, fps=4)  # so slow a camera waits for any machine
    assert (timing.frames, timing.dropped, len(timing.seconds)) == (3, 0, 3)
    assert timing.wall_seconds >= 2 / 4  # the last of three frames comes then


def test_a_slow_model_drops_the_old_frames_and_is_late_with_the_others():
    timing = camera(Calls(0.12), 1.0, fps=20)
    assert timing.frames == 20
    assert len(timing.seconds) + timing.dropped == 20
    assert timing.dropped >= 10  # 0.12 s are more than two frames of 0.05 s
    assert timing.late == len(timing.seconds)
    assert min(timing.seconds) >= 0.12


def test_a_time_runs_from_the_arrival_of_a_frame():
    """Busy for one and a half frames: the frame it takes then has waited since it came, and that counts."""
    timing = camera(Calls(0.15), 0.9, fps=10)
    assert sum(timing.seconds) > sum([0.15] * len(timing.seconds)) + 0.02


def test_no_frame_is_lost_in_the_count_at_rates_that_floats_cannot_hold():
    for fps in (29.97, 333.0, 1000 / 3):
        timing = camera(Calls(), 0.1, fps)
        assert timing.frames == len(timing.seconds) + timing.dropped == max(3, round(0.1 * fps))
