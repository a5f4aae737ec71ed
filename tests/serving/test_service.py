"""A service on an event loop: how often a batch wakes it, and requests that are given up."""

import asyncio
import contextlib
import threading

import numpy as np
import pytest

from densenet_deploy.errors import ModelFileError
from densenet_deploy.serving.dynamic_batching import QueueOptions
from densenet_deploy.serving.service import Service
from tests.serving.servers import WAIT_S, Gate, rows_runner

ROW = np.array([[1, 2]], np.float32)


@contextlib.contextmanager
def service_of(function):
    runner = rows_runner(function)
    with contextlib.closing(Service("m", runner, "no images", QueueOptions(max_batch=4))) as service:
        yield service, runner


def test_a_batch_wakes_the_loop_once_and_each_request_gets_its_own_answer(monkeypatch) -> None:
    gate, woken = Gate(), []

    async def ask():
        loop = asyncio.get_running_loop()
        first = asyncio.create_task(service.infer({"input": ROW}))
        assert await asyncio.to_thread(gate.began.wait, WAIT_S)
        others = [asyncio.create_task(service.infer({"input": ROW * value})) for value in (2, 3, 4, 5)]
        await asyncio.sleep(0)  # they wait
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *call: woken.append(call) or wake(*call))
        gate.open.set()
        return await asyncio.gather(first, *others), len(woken)

    with service_of(gate) as (service, runner):
        answers, wakes = asyncio.run(ask())
    assert runner.sizes == [1, 4]
    assert [answer["output"].tolist() for answer in answers] == [[[2 * n, 4 * n]] for n in (1, 2, 3, 4, 5)]
    assert wakes == 2


def test_a_request_that_is_given_up_while_it_waits_is_not_run() -> None:
    gate = Gate()

    async def ask():
        first = asyncio.create_task(service.infer({"input": ROW}))
        assert await asyncio.to_thread(gate.began.wait, WAIT_S)
        given_up, kept = (asyncio.create_task(service.infer({"input": ROW})) for _ in range(2))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        gate.open.set()
        await asyncio.gather(first, kept)

    with service_of(gate) as (service, runner):
        asyncio.run(ask())
    assert runner.sizes == [1, 1]


def test_an_error_of_the_model_reaches_who_asked() -> None:
    def broken(_feeds):
        raise ModelFileError("m", "is broken", "repair it")

    with service_of(broken) as (service, _runner), pytest.raises(ModelFileError, match="is broken"):
        asyncio.run(service.infer({"input": ROW}))


def test_a_run_that_outlives_the_loop_harms_nothing(monkeypatch) -> None:
    gate, raised = Gate(), []
    monkeypatch.setattr(threading, "excepthook", raised.append)

    async def ask():
        task = asyncio.create_task(service.infer({"input": ROW}))
        assert await asyncio.to_thread(gate.began.wait, WAIT_S)
        task.cancel()

    with service_of(gate) as (service, runner):
        asyncio.run(ask())
        gate.open.set()
    assert (runner.sizes, raised) == ([1], [])
