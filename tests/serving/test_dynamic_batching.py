"""Requests put together: which run in one batch, how long they wait, and that each gets its own answer."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from densenet_deploy.errors import FeedError, ModelFileError, RunnerStateError, UsageError
from densenet_deploy.serving import dynamic_batching as module
from densenet_deploy.serving.dynamic_batching import BatchingQueue, QueueFullError, QueueOptions, RunWatch
from tests.serving.servers import WAIT_S, Gate, rows_runner


def rows(count, value=1.0, width=2):
    return np.full((count, width), value, np.float32)


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def make():
    made = []

    def queue(runner, on_wait=lambda _: None, **options):
        made.append(BatchingQueue(runner, QueueOptions(**options), on_wait=on_wait))
        return made[-1]

    yield queue
    for one in made:
        one.close()


def behind_the_gate(queue, gate, counts):
    """Submit one request that runs, and then the others, which wait; return their answers when the gate opens."""
    first = queue.submit(rows(1))
    assert gate.began.wait(WAIT_S)
    futures = [queue.submit(rows(count, place)) for place, count in enumerate(counts)]
    gate.open.set()
    first.result(WAIT_S)
    return [future.result(WAIT_S)["output"] for future in futures]


def test_requests_that_wait_run_together_up_to_the_largest_batch(make, gate) -> None:
    runner = rows_runner(gate)
    answers = behind_the_gate(make(runner, max_batch=4, max_delay_s=0), gate, [1] * 9)
    assert runner.sizes == [1, 4, 4, 1]
    for place, answer in enumerate(answers):
        assert np.array_equal(answer, rows(1, 2 * place))


def test_requests_of_several_images_count_as_such_and_smaller_ones_fill_the_room_left(make, gate) -> None:
    runner = rows_runner(gate)
    answers = behind_the_gate(make(runner, max_batch=4, max_delay_s=0), gate, [3, 2, 1, 2])
    assert runner.sizes == [1, 4, 4]
    assert [len(answer) for answer in answers] == [3, 2, 1, 2]
    assert [answer[0, 0] for answer in answers] == [0, 2, 4, 6]


def test_images_of_other_shapes_run_apart(make, gate) -> None:
    runner = rows_runner(gate, shape=(None, None))
    queue = make(runner, max_batch=4, max_delay_s=0)
    first = queue.submit(rows(1))
    assert gate.began.wait(WAIT_S)
    futures = [queue.submit(rows(1, width=width)) for width in (2, 3, 2, 3)]
    gate.open.set()
    first.result(WAIT_S)
    assert [future.result(WAIT_S)["output"].shape for future in futures] == [(1, 2), (1, 3), (1, 2), (1, 3)]
    assert runner.sizes == [1, 2, 2]


def test_a_request_waits_for_others_and_not_longer(make) -> None:
    runner = rows_runner()
    queue = make(runner, max_batch=8, max_delay_s=0.3)
    start = time.monotonic()
    futures = [queue.submit(rows(1)) for _ in range(3)]
    for future in futures:
        future.result(WAIT_S)
    assert runner.sizes == [3]
    assert time.monotonic() - start >= 0.29
    start = time.monotonic()
    queue.submit(rows(8)).result(WAIT_S)  # a full batch does not wait
    assert time.monotonic() - start < 0.25


def test_by_default_no_request_waits_for_others(make) -> None:
    assert QueueOptions().max_delay_s == 0
    runner = rows_runner()
    queue = make(runner)
    for _ in range(3):
        queue.submit(rows(1)).result(WAIT_S)
    assert runner.sizes == [1, 1, 1]


def test_a_batch_is_settled_at_once_by_whoever_is_asked_to(gate) -> None:
    settled = []

    def later(give):
        settled.append((threading.get_ident(), give))

    queue = BatchingQueue(rows_runner(gate), QueueOptions(max_batch=4), settle=later)
    gate.open.set()
    answers = [queue.submit(rows(4, value)) for value in (1, 2)]
    queue.close()
    (thread, first), (same, second) = settled
    assert thread == same != threading.get_ident()
    assert [answer.done() for answer in answers] == [False, False]
    first()
    assert [answer.done() for answer in answers] == [True, False]
    second()
    assert [answer.result()["output"][0, 0] for answer in answers] == [2, 4]


def test_sixteen_clients_run_in_few_batches(make) -> None:
    runner = rows_runner(lambda feeds: time.sleep(0.02) or {"output": feeds["input"] * 2})
    queue = make(runner, max_batch=16, max_delay_s=0.02)
    wrong = []

    def client(number):
        for turn in range(10):
            value = number * 100 + turn
            answer = queue.submit(rows(1, value)).result(WAIT_S)["output"]
            if not np.array_equal(answer, rows(1, 2 * value)):
                wrong.append(value)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sum(runner.sizes) == 160
    assert len(runner.sizes) <= 40


def test_a_batch_that_fails_is_run_again_one_by_one(make, gate) -> None:
    def picky(feeds):
        answer = gate(feeds)
        if (feeds["input"] == 7).any():
            raise ModelFileError("m", "does not like 7", "send another number")
        return answer

    runner = rows_runner(picky)
    queue = make(runner, max_batch=4, max_delay_s=0)
    first = queue.submit(rows(1))
    assert gate.began.wait(WAIT_S)
    good, bad, other = (queue.submit(rows(1, value)) for value in (1, 7, 2))
    gate.open.set()
    first.result(WAIT_S)
    assert np.array_equal(good.result(WAIT_S)["output"], rows(1, 2))
    assert np.array_equal(other.result(WAIT_S)["output"], rows(1, 4))
    with pytest.raises(ModelFileError, match="does not like 7"):
        bad.result(WAIT_S)
    assert runner.sizes == [1, 3, 1, 1, 1]
    assert np.array_equal(queue.submit(rows(1, 3)).result(WAIT_S)["output"], rows(1, 6))  # the thread lives


@pytest.mark.parametrize(
    ("feeds", "why"),
    [
        ({"input": np.array([[1, np.nan]], np.float32)}, "NaN"),
        ({"other": rows(1)}, "feed exactly: input"),
        ({"input": rows(1).astype(np.float64)}, "is float64"),
        ({"input": rows(1, width=3)}, "has shape"),
        ({"input": rows(0)}, "has shape"),
        ({"input": rows(5)}, "one request may hold 4"),
    ],
)
def test_feeds_are_refused_before_they_wait(make, feeds, why) -> None:
    runner = rows_runner()
    queue = make(runner, max_batch=4)
    with pytest.raises(FeedError, match=why):
        queue.submit(feeds)
    assert queue.submit(rows(4)).result(WAIT_S)["output"].shape == (4, 2)
    assert runner.sizes == [4]


def test_a_full_queue_refuses_and_takes_again_what_there_is_room_for(make, gate) -> None:
    seen = []
    queue = make(rows_runner(gate), seen.append, max_batch=2, max_delay_s=0, max_queue=4)
    running = queue.submit(rows(1))
    assert gate.began.wait(WAIT_S)
    waiting = [queue.submit(rows(2)), queue.submit(rows(1))]
    assert seen == [1, 0, 2, 3]
    with pytest.raises(QueueFullError, match="3 images"):
        queue.submit(rows(2))
    waiting.append(queue.submit(rows(1)))
    with pytest.raises(QueueFullError, match="4 images"):
        queue.submit(rows(1))
    gate.open.set()
    for future in (running, *waiting):
        future.result(WAIT_S)
    assert seen == [1, 0, 2, 3, 4, 2, 1, 0]
    queue.submit(rows(1)).result(WAIT_S)


def test_a_closed_queue_answers_what_waits_and_refuses_more(make, gate) -> None:
    queue = make(rows_runner(gate), max_batch=2, max_delay_s=5)
    futures = [queue.submit(rows(2)) for _ in range(3)]
    assert gate.began.wait(WAIT_S)
    gate.open.set()
    queue.close()
    assert all(future.done() for future in futures)
    with pytest.raises(RunnerStateError):
        queue.submit(rows(1))
    queue.close()


def test_a_request_whose_client_gave_up_is_not_run(make, gate) -> None:
    runner = rows_runner(gate)
    queue = make(runner, max_batch=1, max_delay_s=0)
    first = queue.submit(rows(1))
    assert gate.began.wait(WAIT_S)
    cancelled, kept = queue.submit(rows(1)), queue.submit(rows(1))
    assert cancelled.cancel()
    gate.open.set()
    first.result(WAIT_S)
    kept.result(WAIT_S)
    assert runner.sizes == [1, 1]


def test_a_fixed_batch_is_filled_up(make, gate) -> None:
    runner = rows_runner(gate, shape=(4, 2))
    answers = behind_the_gate(make(runner, max_batch=8, max_delay_s=0), gate, [1, 2, 3])
    assert runner.sizes == [4, 4, 4]
    assert [len(answer) for answer in answers] == [1, 2, 3]
    assert [answer[0, 0] for answer in answers] == [0, 2, 4]


def test_outputs_that_are_not_rows_per_image_run_alone(make, gate) -> None:
    runner = rows_runner(lambda feeds: {"output": gate(feeds)["output"].sum(0)})
    runner.outputs = (type(runner.outputs[0])("output", (2,), np.dtype(np.float32)),)
    answers = behind_the_gate(make(runner, max_batch=8, max_delay_s=0), gate, [1, 2])
    assert runner.sizes == [1, 1, 2]
    assert [answer.tolist() for answer in answers] == [[0, 0], [4, 4]]


def test_outputs_that_claim_rows_and_have_others_are_answered_alone(make, gate) -> None:
    runner = rows_runner(lambda feeds: {"output": gate(feeds)["output"].sum(0, keepdims=True)})
    answers = behind_the_gate(make(runner, max_batch=8, max_delay_s=0), gate, [1, 2])
    assert runner.sizes == [1, 3, 1, 2]
    assert [answer.tolist() for answer in answers] == [[[0, 0]], [[4, 4]]]


def test_instances_run_at_the_same_time(make) -> None:
    meeting = threading.Barrier(2)
    runner = rows_runner(lambda feeds: (meeting.wait(WAIT_S) and None) or {"output": feeds["input"]})
    queue = make(runner, max_batch=1, max_delay_s=0, instances=2)
    for future in [queue.submit(rows(1)), queue.submit(rows(1))]:
        future.result(WAIT_S)


@pytest.mark.parametrize(
    "options",
    [{"max_batch": 0}, {"max_delay_s": -0.001}, {"max_delay_s": float("nan")}, {"max_queue": 15}, {"instances": 0}],
)
def test_options_out_of_range_are_refused(options) -> None:
    with pytest.raises(UsageError):
        QueueOptions(**options)
    QueueOptions(max_batch=16, max_queue=16, max_delay_s=0, instances=1)


def test_a_run_is_stuck_after_its_time_and_ten_times_the_longest_before(monkeypatch) -> None:
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.s))
    watch = RunWatch(30.0)
    assert not watch.is_stuck
    for takes, allowed in ((2.0, 30.0), (4.0, 30.0), (3.0, 40.0)):  # each time after the runs before
        with watch.timed():
            start = now.s
            now.s = start + allowed
            assert not watch.is_stuck
            now.s = start + allowed + 0.1
            assert watch.is_stuck
            now.s = start + takes
        assert not watch.is_stuck


def test_a_slow_model_is_not_stuck_and_one_of_two_that_never_ends_is(make, gate) -> None:
    calls = []

    def model(feeds):
        calls.append(feeds)
        return gate(feeds) if len(calls) == 2 else {"output": feeds["input"]}

    queue = make(rows_runner(model), max_delay_s=0, max_batch=1, instances=2, stuck_s=1.0)
    queue.submit(rows(1)).result(WAIT_S)
    stuck = queue.submit(rows(1))
    assert gate.began.wait(WAIT_S)
    time.sleep(0.5)
    assert not queue.watch.is_stuck
    deadline = time.monotonic() + WAIT_S
    while not queue.watch.is_stuck:
        queue.submit(rows(1)).result(WAIT_S)
        assert time.monotonic() < deadline
    gate.open.set()
    stuck.result(WAIT_S)
    assert not queue.watch.is_stuck


def test_a_model_that_is_stuck_is_not_waited_for_at_the_end(gate) -> None:
    queue = BatchingQueue(rows_runner(gate), QueueOptions(max_delay_s=0, stuck_s=1.0))
    queue.submit(rows(1))
    assert gate.began.wait(WAIT_S)
    start = time.monotonic()
    queue.close()
    assert 0.5 < time.monotonic() - start < WAIT_S
    gate.open.set()
