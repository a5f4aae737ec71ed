"""Batches run in portions, as graphs and in place, on contexts that are lent, waited for and given back."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densenet_deploy.errors import BackendError, FeedError, ResourceError
from densenet_deploy.runtime.cudart import Cuda, DeviceMemory, PinnedMemory, Stream
from densenet_deploy.runtime.tensorrt.execution_pool import ExecutionPool, ExecutionSlot, Graphs
from tests.runtime.simulated_tensorrt import FULL, RTX
from tests.runtime.simulated_tensorrt.cuda import SimulatedMachine, cudaError_t
from tests.runtime.tensorrt.pairs import Bench, computed, feeds_of, pair_on_gpu

NOTHING = {"memory": 0, "streams": 0, "events": 0, "graphs": 0}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Full TensorRT, one profile of 1 to 8, tuned for 2, on the first of two GPUs."""
    with pair_on_gpu(tmp_path, machine=SimulatedMachine(gpus=2)) as opened:
        yield opened


def check(pool: ExecutionPool, count: int, batch: int | None = None, seed: int = 0) -> None:
    """Run `count` samples, which fit into one run."""
    feeds = feeds_of(count, seed)
    results = pool.run(feeds)
    for name, expected in computed(feeds, batch).items():
        np.testing.assert_array_equal(results[name], expected, name)


class Altered:
    """An object with some attributes replaced."""

    def __init__(self, original: Any, **changes: Any) -> None:
        self.__dict__.update(changes)
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


class TestBatches:
    def test_a_batch_runs_as_it_is(self, bench: Bench) -> None:
        pool = bench.pool(streams=1)
        for count in (1, 8, 3, 3, 3, 3, 8):
            check(pool, count, seed=count)

    def test_a_larger_one_runs_in_portions_of_the_largest(self, bench: Bench) -> None:
        feeds = feeds_of(19)
        results = bench.pool().run(feeds)
        assert list(results) == ["shifted", "total"]
        np.testing.assert_array_equal(results["shifted"], computed(feeds)["shifted"])
        for start, end in ((0, 8), (8, 16), (16, 19)):
            part = {name: array[start:end] for name, array in feeds.items()}
            np.testing.assert_array_equal(results["total"][start:end], computed(part)["total"])

    def test_a_smaller_one_is_filled_up_with_its_last_sample(self, tmp_path: Path) -> None:
        with pair_on_gpu(tmp_path, profiles=((4, 4, 6),)) as bench:
            pool = bench.pool()
            check(pool, 1, batch=4)
            check(pool, 3, batch=4)
            check(pool, 5)

    def test_a_fixed_batch_is_the_only_one(self, tmp_path: Path) -> None:
        with pair_on_gpu(tmp_path, profiles=((3, 3, 3),)) as bench:
            assert bench.engine.inputs[0].shape == (3, 2, 4, 4)
            pool = bench.pool()
            check(pool, 3)
            check(pool, 2, batch=3)

    def test_each_profile_takes_its_batches_and_switching_is_waited_for(self, tmp_path: Path) -> None:
        with pair_on_gpu(tmp_path, profiles=((1, 1, 2), (4, 6, 8))) as bench:
            pool = bench.pool(streams=1, graphs=False)
            for count in (8, 1, 6, 2, 5):
                check(pool, count, seed=count)
            bench.gpu.calls.clear()
            check(pool, 4)
            assert bench.gpu.calls.count("cudaStreamSynchronize") == 1, "in the same profile"
            check(pool, 1)
            assert bench.gpu.calls.count("cudaStreamSynchronize") == 3, "in another"

    def test_inputs_of_different_batches_are_refused(self, bench: Bench) -> None:
        with pytest.raises(FeedError) as caught:
            bench.pool().run({"image": feeds_of(2)["image"], "offset": feeds_of(3)["offset"]})
        assert caught.value.subject == "image (N, 2, 4, 4) float32, offset (N, 2) float32"

    def test_results_belong_to_the_caller(self, bench: Bench) -> None:
        pool = bench.pool(streams=1)
        first = pool.run(feeds_of(2, 1))
        kept = {name: array.copy() for name, array in first.items()}
        pool.run(feeds_of(2, 2))
        for name, array in first.items():
            np.testing.assert_array_equal(array, kept[name])

    def test_a_gpu_that_shares_memory_copies_nothing(self, tmp_path: Path) -> None:
        with pair_on_gpu(tmp_path, machine=SimulatedMachine(integrated=True)) as bench:
            pool = bench.pool()
            for count in (2, 2, 2, 5):
                check(pool, count, seed=count)
            assert "cudaMemcpyAsync" not in bench.gpu.calls
            assert "cudaMalloc" not in bench.gpu.calls

    def test_buffers_grow_and_are_kept(self, bench: Bench) -> None:
        pool = bench.pool(streams=1)
        check(pool, 3)
        bench.gpu.calls.clear()
        check(pool, 2)
        check(pool, 3)
        assert "cudaMalloc" not in bench.gpu.calls
        check(pool, 4)
        assert bench.gpu.calls.count("cudaMalloc") == 4
        assert bench.gpu.in_use()["memory"] == 8, "the old ones were freed"

    def test_after_memory_ran_out_a_smaller_batch_gets_buffers_again(self, bench: Bench) -> None:
        pool = bench.pool(streams=1)
        check(pool, 3)
        bench.gpu.fail_next["cudaMalloc"] = cudaError_t.cudaErrorMemoryAllocation
        with pytest.raises(ResourceError):
            pool.run(feeds_of(5))
        check(pool, 3)


class TestDevices:
    """The device belongs to the thread, and others may have changed it."""

    def test_a_run_is_on_the_engines_device(self, bench: Bench) -> None:
        bench.engine.cuda.use(1)
        check(bench.pool(), 2)

    def test_new_outputs_are_on_the_engines_device(self, bench: Bench) -> None:
        cuda = bench.engine.cuda
        feeds = {name: OnGpu(cuda, array) for name, array in feeds_of(2).items()}
        cuda.use(1)
        results = bench.pool().run_in_place(feeds, {})
        assert {array.__dlpack_device__() for array in results.values()} == {(2, 0)}


class TestGraphs:
    def test_the_second_run_of_a_batch_is_recorded_and_the_third_launched(self, bench: Bench) -> None:
        pool, calls = bench.pool(streams=1), bench.gpu.calls
        check(pool, 2, seed=1)
        assert "cudaStreamBeginCapture" not in calls
        check(pool, 2, seed=2)
        assert calls.count("cudaStreamBeginCapture") == 1
        assert "cudaGraphLaunch" not in calls
        calls.clear()
        for seed in (3, 4, 5):
            check(pool, 2, seed=seed)
        assert calls.count("cudaGraphLaunch") == 3
        assert "cudaMemcpyAsync" not in calls
        assert "cudaStreamBeginCapture" not in calls

    def test_another_batch_needs_another_graph(self, bench: Bench) -> None:
        pool = bench.pool(streams=1)
        check(pool, 8)
        for count in (2, 2, 2, 5, 5, 5, 2, 2, 2, 2):
            check(pool, count, seed=count)
            assert bench.gpu.in_use()["graphs"] <= 1
        assert bench.gpu.calls.count("cudaStreamBeginCapture") == 3
        assert bench.gpu.calls.count("cudaGraphLaunch") == 1 + 1 + 2

    def test_each_of_two_slots_keeps_its_batch(self, bench: Bench) -> None:
        pool = bench.pool(streams=2)
        for count in (2, 5, 2, 5):
            check(pool, count)
        bench.gpu.calls.clear()
        for count in (5, 2, 5, 2):
            check(pool, count)
        assert bench.gpu.calls.count("cudaGraphLaunch") == 4

    def test_memory_of_the_caller_that_returns_as_ours_does_not_revive_a_graph(self, tmp_path: Path) -> None:
        """The recorded graph copied nothing, and the addresses are the same."""
        with pair_on_gpu(tmp_path, machine=SimulatedMachine(reuses_addresses=True)) as bench:
            pool = bench.pool(streams=1)
            arrays = {name: OnGpu(bench.engine.cuda, array) for name, array in feeds_of(2, 1).items()}
            outputs = {name: OnGpu(bench.engine.cuda, array) for name, array in computed(feeds_of(2)).items()}
            place = arrays["image"].memory.address
            for _ in range(2):
                pool.run_in_place(arrays, outputs)
            assert bench.gpu.in_use()["graphs"] == 1
            arrays.clear()
            outputs.clear()
            check(pool, 2)
            assert bench.engine.cuda.device_of(place) == 0, "the address is in use again"

    def test_warming_up_leaves_a_graph_of_the_batch_that_the_engine_is_tuned_for(self, tmp_path: Path) -> None:
        with pair_on_gpu(tmp_path, profiles=((1, 3, 8), (1, 1, 1))) as bench:
            pool = bench.pool()
            assert pool.warm_up() == "CUDA graphs"
            assert bench.gpu.calls.count("cudaStreamBeginCapture") == 1
            assert "cudaGraphLaunch" not in bench.gpu.calls, "it ran twice"
            check(pool, 3)
            assert bench.gpu.calls.count("cudaGraphLaunch") == 1

    def test_they_can_be_switched_off(self, bench: Bench) -> None:
        pool = bench.pool(graphs=False)
        assert pool.warm_up() == "no CUDA graphs: switched off"
        check(pool, 2)
        assert "cudaStreamBeginCapture" not in bench.gpu.calls

    def test_they_can_be_asked_for(self, bench: Bench) -> None:
        assert bench.pool(graphs=True).warm_up() == "CUDA graphs"

    def test_a_recording_that_fails_is_reported_and_not_tried_again(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pair_on_gpu(tmp_path, dataclasses.replace(FULL, capturable=False)) as bench:
            pool = bench.pool(streams=1)
            assert pool.warm_up().startswith("no CUDA graphs: TensorRT cannot run it")
            assert [record.levelname for record in caplog.records] == ["WARNING"]
            for seed, count in enumerate((2, 2, 5, 5, 5)):
                check(pool, count, seed=seed)
            assert bench.gpu.calls.count("cudaStreamBeginCapture") == 1

    @pytest.mark.parametrize(
        ("config", "cache", "strategy", "wanted"),
        [
            (True, True, True, (True, True, "CUDA graphs left to TensorRT-RTX")),
            (True, True, False, (True, True, "CUDA graphs")),
            (True, False, True, (True, False, "CUDA graphs left to TensorRT-RTX")),
            (True, False, False, (False, False, "CUDA graphs")),
            (False, True, True, (False, False, "CUDA graphs")),
            (False, False, False, (False, False, "CUDA graphs")),
        ],
    )
    def test_a_runtime_config_carries_the_kernel_cache_and_the_strategy(
        self, tmp_path: Path, config: bool, cache: bool, strategy: bool, wanted: tuple[bool, bool, str]
    ) -> None:
        behaviour = dataclasses.replace(
            RTX, has_runtime_config=config, has_runtime_cache=cache, has_graph_strategy=strategy
        )
        with pair_on_gpu(tmp_path, behaviour) as bench:
            pool = bench.pool(cache=tmp_path / "cache")
            note = pool.warm_up()
            saved = [file.read_text() for file in tmp_path.glob("cache/*")]
            assert ("create_runtime_config" in bench.gpu.calls, bool(saved), note) == wanted
            assert saved in ([], ["kernels: any batch, batch 2"])
            assert ("cudaStreamBeginCapture" in bench.gpu.calls) is (note == "CUDA graphs")

    def test_switched_off_they_are_not_left_to_rtx_either(self, tmp_path: Path) -> None:
        with pair_on_gpu(tmp_path, RTX) as bench:
            assert bench.pool(graphs=False).warm_up() == "no CUDA graphs: switched off"

    def test_tensorrt_is_asked_first_where_it_can_be(self, tmp_path: Path) -> None:
        older = dataclasses.replace(RTX, has_runtime_config=False, capturable=False)
        with pair_on_gpu(tmp_path, older) as bench:
            note = bench.pool().warm_up()
            assert note == "no CUDA graphs: TensorRT says that this engine cannot be captured"
            assert "cudaStreamBeginCapture" not in bench.gpu.calls


class TestKernels:
    def test_those_compiled_later_are_saved_when_asked(self, tmp_path: Path) -> None:
        with pair_on_gpu(tmp_path, RTX) as bench:
            pool = bench.pool(cache=tmp_path / "cache")
            pool.save_kernels()
            check(pool, 5)
            pool.save_kernels()
            (file,) = tmp_path.glob("cache/*")
            assert file.read_text() == "kernels: any batch, batch 5"

    def test_full_tensorrt_has_none(self, bench: Bench, tmp_path: Path) -> None:
        bench.pool(cache=tmp_path / "cache").save_kernels()
        assert not (tmp_path / "cache").exists()


class TestThreads:
    @pytest.mark.parametrize("streams", [1, 3])
    def test_callers_wait_for_a_slot(self, bench: Bench, streams: int) -> None:
        pool = bench.pool(streams=streams)
        with ThreadPoolExecutor(6) as threads:
            list(threads.map(lambda seed: check(pool, 1 + seed % 3, seed=seed), range(24)))
        assert bench.gpu.calls.count("cudaStreamCreateWithFlags") <= streams

    @pytest.mark.timeout(20)
    def test_contexts_are_created_one_after_another(self, bench: Bench) -> None:
        """Each may compile. Without the lock the second arrives while the first is inside."""
        native, inside, second = bench.engine.native, itertools.count(1), threading.Event()
        most: list[int] = []
        present: list[int] = []

        def create() -> Any:
            present.append(next(inside))
            most.append(len(present))
            if len(present) == 1:
                second.wait(0.2)
            else:
                second.set()
            present.pop()
            return native.create_execution_context()

        engine = dataclasses.replace(bench.engine, native=Altered(native, create_execution_context=create))
        pool = dataclasses.replace(bench, engine=engine).pool(streams=2)
        both = threading.Barrier(2)

        def run() -> None:
            both.wait()
            pool.run(feeds_of(2))

        with ThreadPoolExecutor(2) as threads:
            for done in [threads.submit(run) for _ in range(2)]:
                done.result()
        assert max(most) == 1


def raises(*_: Any) -> bool:
    raise RuntimeError("index 0 out of range")


class TestFailures:
    def test_everything_is_given_back(self, bench: Bench) -> None:
        pool = bench.pool()
        check(pool, 2)
        check(pool, 2)
        assert bench.gpu.in_use() == {"memory": 8, "streams": 1, "events": 0, "graphs": 1}
        del pool
        assert bench.gpu.in_use() == NOTHING

    def test_a_failed_run_costs_its_slot_once_the_gpu_no_longer_uses_it(self, bench: Bench) -> None:
        pool, calls = bench.pool(streams=1), bench.gpu.calls
        check(pool, 2)
        calls.clear()
        bench.gpu.fail_next["cudaMemcpyAsync"] = cudaError_t.cudaErrorInvalidValue
        with contextlib.suppress(BackendError):  # keeps no traceback, which would refer to the slot
            pool.run(feeds_of(2))
        assert calls.index("cudaStreamSynchronize") < calls.index("cudaFree")
        check(pool, 2)
        assert bench.gpu.in_use()["memory"] == 8

    def test_the_first_failure_is_the_one_reported(self, bench: Bench) -> None:
        pool = bench.pool(streams=1)
        bench.gpu.fail_next["cudaMemcpyAsync"] = cudaError_t.cudaErrorInvalidValue
        bench.gpu.fail_next["cudaStreamSynchronize"] = cudaError_t.cudaErrorMemoryAllocation
        with pytest.raises(BackendError) as caught:
            pool.run(feeds_of(2))
        assert "cudaErrorInvalidValue" in caught.value.why

    def test_no_context_is_a_resource_error_where_memory_was_the_reason(self, bench: Bench) -> None:
        bench.gpu.fail_next["create_execution_context"] = cudaError_t.cudaErrorMemoryAllocation
        with pytest.raises(ResourceError) as caught:
            bench.pool().run(feeds_of(2))
        assert caught.value.subject == bench.engine.subject

    @pytest.mark.parametrize(
        "changes",
        [
            {"set_input_shape": lambda *_: False},
            {"set_tensor_address": lambda *_: False},
            {"infer_shapes": lambda: ["image"]},
            {"execute_async_v3": lambda _: False},
            {"set_optimization_profile_async": lambda *_: False, "active_optimization_profile": -1},
            {"set_optimization_profile_async": raises, "active_optimization_profile": -1},
        ],
    )
    def test_what_tensorrt_refuses_is_a_backend_error(self, bench: Bench, changes: dict[str, Any]) -> None:
        native = bench.engine.native

        def create() -> Any:
            return Altered(native.create_execution_context(), **changes)

        engine = dataclasses.replace(bench.engine, native=Altered(native, create_execution_context=create))
        with pytest.raises(BackendError) as caught:
            dataclasses.replace(bench, engine=engine).pool().run(feeds_of(2))
        assert caught.value.subject == bench.engine.subject

    def test_a_slot_that_has_not_run_is_set_to_nothing(self, bench: Bench) -> None:
        slot = ExecutionSlot(bench.engine, bench.engine.native.create_execution_context(), graphs=Graphs.RECORDED)
        assert not slot.is_set_to(0, 2)
        assert slot.graph_note == "no CUDA graphs: not yet"


class OnGpu:
    """An array of another library; the copy that fills it is in progress on a stream of its own."""

    def __init__(self, cuda: Cuda, values: np.ndarray, *, streamless: bool = False, read_only: bool = False) -> None:
        self.memory, self._pinned = DeviceMemory(cuda, values.nbytes), PinnedMemory(cuda, values.nbytes)
        self._pinned.bytes[:] = values.reshape(-1).view(np.uint8)
        self._stream, self._shape = Stream(cuda), values.shape
        self._stream.copy_in(self.memory, self._pinned, values.nbytes)
        if streamless:
            self._stream.synchronize()
        self._facts = {"stream": None if streamless else int(self._stream), "data": (self.memory.address, read_only)}

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self._shape, "typestr": "<f4", "version": 3, "strides": None, **self._facts}

    def __bool__(self) -> bool:
        raise ValueError("an array has no truth")

    def to_host(self) -> np.ndarray:
        values = np.zeros(self._shape, np.float32)
        self._stream.copy_to_host(values, self.memory.address)
        return values


class TestInPlace:
    @pytest.mark.parametrize("streamless", [True, False])
    def test_what_is_on_the_gpu_is_neither_copied_nor_used_too_early(self, bench: Bench, streamless: bool) -> None:
        cuda, values = bench.engine.cuda, feeds_of(3)
        feeds = {name: OnGpu(cuda, array, streamless=streamless) for name, array in values.items()}
        given = OnGpu(cuda, np.zeros((3, 2), np.float32), streamless=streamless)
        bench.gpu.calls.clear()
        results = bench.pool().run_in_place(feeds, {"total": given})
        assert "cudaMemcpyAsync" not in bench.gpu.calls
        assert ("cudaEventRecord" in bench.gpu.calls) is not streamless
        assert list(results) == ["shifted", "total"]
        assert results["total"] is given
        for name, expected in computed(values).items():
            np.testing.assert_array_equal(results[name].to_host(), expected)

    def test_the_same_arrays_again_become_a_graph(self, bench: Bench) -> None:
        cuda, pool = bench.engine.cuda, bench.pool(streams=1)
        feeds = {name: OnGpu(cuda, array) for name, array in feeds_of(2).items()}
        outputs = {name: OnGpu(cuda, np.zeros((2, 2), np.float32)) for name in ("shifted", "total")}
        for _ in range(4):
            pool.run_in_place(feeds, outputs)
        assert bench.gpu.calls.count("cudaGraphLaunch") == 2
        np.testing.assert_array_equal(outputs["total"].to_host(), computed(feeds_of(2))["total"])
        check(pool, 2, seed=7)
        check(pool, 2, seed=8)

    def test_a_batch_takes_the_profile_that_accepts_it_whole(self, tmp_path: Path) -> None:
        with pair_on_gpu(tmp_path, profiles=((1, 1, 2), (4, 6, 8))) as bench:
            pool, cuda = bench.pool(), bench.engine.cuda
            for count in (1, 2, 4, 8):
                feeds = {name: OnGpu(cuda, array) for name, array in feeds_of(count).items()}
                results = pool.run_in_place(feeds, {})
                np.testing.assert_array_equal(results["total"].to_host(), computed(feeds_of(count))["total"])
            for count in (3, 9):
                with pytest.raises(FeedError) as caught:
                    pool.run_in_place({name: OnGpu(cuda, array) for name, array in feeds_of(count).items()}, {})
                assert caught.value.subject == f"batch {count}"

    def test_names_batches_and_read_only_outputs_are_checked(self, bench: Bench) -> None:
        cuda, pool = bench.engine.cuda, bench.pool()
        feeds = {name: OnGpu(cuda, array) for name, array in feeds_of(2).items()}
        out = np.zeros((2, 2), np.float32)
        refused = [
            ("image", {"image": feeds["image"]}, {}),
            ("nothing", {}, {}),
            ("image, offset, more", {**feeds, "more": feeds["offset"]}, {}),
            ("sum", feeds, {"sum": OnGpu(cuda, out)}),
            ("total", feeds, {"total": OnGpu(cuda, out, read_only=True)}),
            ("total", feeds, {"total": OnGpu(cuda, out[:1])}),
            (", ".join(map(str, bench.engine.inputs)), {**feeds, "offset": OnGpu(cuda, out[:1])}, {}),
        ]
        for subject, inputs, outputs in refused:
            with pytest.raises(FeedError) as caught:
                pool.run_in_place(inputs, outputs)
            assert caught.value.subject == subject
