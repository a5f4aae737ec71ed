"""Processes of one server: those that end or hang are replaced, and all end when they are asked to."""

import contextlib
import os
import queue
import signal
import time

import pytest

from densenet_deploy.errors import ModelFileError
from densenet_deploy.serving import processes as module
from densenet_deploy.serving.processes import SIGNS, Loss, ServerProcesses, pause_after
from densenet_deploy.worker import WorkerProgram
from tests.serving.servers import WAIT_S


@pytest.fixture
def make(tmp_path):
    """Makes processes of `served_program`; their losses go into the queue that comes with them."""
    with contextlib.ExitStack() as stack:

        def made(count=1, silent_s=60.0, **settings):
            losses = queue.SimpleQueue()
            settings = {"folder": str(tmp_path), **settings}
            program = WorkerProgram("tests.serving.served_program", settings, "m.onnx", {"GIVEN": "7"})
            found = ServerProcesses(program, count, silent_s, losses.put)
            stack.callback(found.close)
            return found, losses

        yield made


def started(folder):
    return [int(pid) for pid in (folder / "starts").read_text().split()]


def until(holds):
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def test_the_pause_doubles_with_every_process_that_ends_soon_up_to_half_a_minute() -> None:
    assert [pause_after(losses) for losses in (1, 2, 3, 9, 10, 2000)] == [0.1, 0.2, 0.4, 25.6, 30.0, 30.0]


def test_all_start_and_the_first_one_answers(make, tmp_path) -> None:
    processes, losses = make(3)
    answer = processes.open()
    assert sorted(started(tmp_path)) == sorted({*started(tmp_path), answer["pid"]})
    assert (len(started(tmp_path)), answer["variable"]) == (3, "7")
    processes.stop()
    processes.join()
    assert (processes.losses, losses.empty()) == (0, True)
    assert (tmp_path / "told").read_text() == "stop\n" * 3
    assert not any(map(is_alive, started(tmp_path)))


def test_a_process_that_is_killed_is_replaced(make, tmp_path) -> None:
    processes, losses = make(2)
    processes.open()
    first, second = started(tmp_path)
    os.kill(first, signal.SIGKILL)
    loss = losses.get(timeout=WAIT_S)
    assert (loss.pid, loss.pause_s, loss.reason) == (first, 0.1, "ended")
    assert "killed" in loss.why
    assert str(loss) == f"worker {first}: {loss.why}; another one starts in 0.1 s"
    until(lambda: len(started(tmp_path)) == 3)
    assert is_alive(second)
    assert is_alive(started(tmp_path)[2])
    assert processes.losses == 1
    processes.stop()
    processes.join()
    assert not any(map(is_alive, started(tmp_path)))


def test_a_process_that_ends_again_and_again_is_started_ever_more_rarely(make, tmp_path) -> None:
    processes, losses = make(steady=1)
    processes.open()
    start = time.monotonic()
    os.kill(started(tmp_path)[0], signal.SIGKILL)
    found = [losses.get(timeout=WAIT_S) for _ in range(4)]
    assert [loss.pause_s for loss in found] == [0.1, 0.2, 0.4, 0.8]
    assert "code 3" in found[1].why
    assert time.monotonic() - start >= 0.1 + 0.2 + 0.4
    assert len(started(tmp_path)) == 4
    processes.stop()
    start = time.monotonic()
    processes.join()  # the pause of 0.8 s is not waited for
    assert time.monotonic() - start < 0.5
    assert len(started(tmp_path)) == 4


def test_a_process_that_lived_for_long_is_replaced_soon(make, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_STEADY_S", 0.0)
    processes, losses = make(steady=1)
    processes.open()
    os.kill(started(tmp_path)[0], signal.SIGKILL)
    assert [losses.get(timeout=WAIT_S).pause_s for _ in range(3)] == [0.1, 0.1, 0.1]


def test_where_no_process_can_be_started_it_is_tried_again(make, tmp_path, monkeypatch) -> None:
    processes, losses = make()
    processes.open()
    starts, real = [], WorkerProgram.started

    def refused_once(program):
        starts.append(program)
        if len(starts) == 1:
            raise BlockingIOError(11, "no process")
        return real(program)

    monkeypatch.setattr(WorkerProgram, "started", refused_once)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.1)
    os.kill(started(tmp_path)[0], signal.SIGKILL)
    until(lambda: len(started(tmp_path)) == 2)
    assert (len(starts), processes.losses) == (2, 1)
    assert isinstance(losses.get(timeout=WAIT_S), Loss)


def test_what_keeps_the_first_from_starting_is_raised_and_none_is_left(make, tmp_path) -> None:
    processes, losses = make(2, is_broken=True)
    with pytest.raises(ModelFileError, match="is broken"):
        processes.open()
    processes.close()
    assert losses.empty()
    assert not any(map(is_alive, started(tmp_path)))


def test_one_that_does_not_end_is_asked_again_and_then_ended(make, tmp_path) -> None:
    processes, losses = make(stops_at_once=False)
    processes.open()
    processes.stop()
    processes.stop()
    until(lambda: (tmp_path / "told").exists() and (tmp_path / "told").read_text() == "stop\n" * 2)
    assert is_alive(started(tmp_path)[0])
    processes.close()
    assert not is_alive(started(tmp_path)[0])
    assert (processes.losses, losses.empty()) == (0, True)


def test_a_process_that_gives_no_sign_is_replaced_and_the_other_goes_on(make, tmp_path) -> None:
    processes, losses = make(2, silent_s=1.0)
    processes.open()
    first, second = started(tmp_path)
    os.kill(first, signal.SIGSTOP)
    start = time.monotonic()
    loss = losses.get(timeout=WAIT_S)
    assert time.monotonic() - start > 0.9
    assert (loss.pid, loss.why, loss.reason) == (first, "gave no sign for 1 s", "hung")
    until(lambda: len(started(tmp_path)) == 3)
    assert not is_alive(first)
    assert is_alive(second)
    until(lambda: (tmp_path / "replaces").read_text() == "None\nNone\nhung\n")
    assert processes.losses == 1


def test_only_as_many_waits_without_a_sign_as_signs_are_due_end_a_process(make, tmp_path) -> None:
    processes, losses = make(silent_s=86_400.0, signs=[])
    processes.open()
    (process,) = processes._processes.values()
    for _ in range(SIGNS):
        process.wait()
    assert is_alive(process.worker.pid)
    assert losses.empty()
    process.wait()
    assert losses.get(timeout=WAIT_S).pid == started(tmp_path)[0]


@pytest.mark.parametrize("signs", [["alive"], ["stuck", "alive"]])
def test_a_process_that_gives_signs_is_kept(make, signs) -> None:
    processes, losses = make(silent_s=1.0, signs=signs)
    processes.open()
    with pytest.raises(queue.Empty):
        losses.get(timeout=1.5)


def test_a_process_that_is_stuck_twice_in_a_row_is_replaced_before_it_was_silent(make) -> None:
    processes, losses = make(silent_s=3600.0, signs=["alive", "stuck", "stuck"])
    processes.open()
    loss = losses.get(timeout=WAIT_S)
    assert (loss.why, loss.reason) == ("a run of its model did not end", "hung")


def test_a_process_may_load_its_model_for_ten_times_as_long_as_the_first_one_did(make, tmp_path) -> None:
    processes, losses = make(silent_s=1.0, loads_s=0.3, replacement_loads_s=2.0)
    processes.open()
    os.kill(started(tmp_path)[0], signal.SIGKILL)
    assert losses.get(timeout=WAIT_S).reason == "ended"
    until(lambda: len(started(tmp_path)) == 2)
    with pytest.raises(queue.Empty):
        losses.get(timeout=2.0)
    assert is_alive(started(tmp_path)[1])


def test_a_process_that_replaces_another_and_does_not_load_its_model_is_replaced_too(make, tmp_path) -> None:
    processes, losses = make(silent_s=86_400.0, replacement_loads_s=3600)
    processes.open()
    os.kill(started(tmp_path)[0], signal.SIGKILL)
    assert losses.get(timeout=WAIT_S).reason == "ended"
    until(lambda: len(started(tmp_path)) == 2)
    hanging = processes._processes[0]
    for _ in range(SIGNS):
        hanging.wait()
    assert is_alive(hanging.worker.pid)
    assert losses.empty()
    hanging.wait()
    loss = losses.get(timeout=WAIT_S)
    assert (loss.pid, loss.why, loss.reason) == (hanging.worker.pid, "did not start for 86400 s", "hung")
    until(lambda: len(started(tmp_path)) == 3)


def test_a_process_that_hangs_at_the_end_is_not_waited_for(make, tmp_path) -> None:
    processes, losses = make(silent_s=1.0)
    processes.open()
    os.kill(started(tmp_path)[0], signal.SIGSTOP)
    processes.stop()
    processes.join()
    assert (processes.losses, losses.empty()) == (0, True)
    assert not is_alive(started(tmp_path)[0])
