"""The loop on the simulated GPU: what is under way at once, what each part takes, what is given back."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from densenet_deploy.bench.gpu.loop import GpuLoop, LoopOptions
from densenet_deploy.errors import BackendError, DensenetDeployError, UsageError
from densenet_deploy.runtime.cudart import load_cuda
from densenet_deploy.runtime.engine_files import read_plan
from densenet_deploy.runtime.tensorrt.engine import Engine, engine_from_plan
from densenet_deploy.runtime.trt import load_tensorrt
from tests.runtime.simulated_tensorrt import FULL, RTX, simulated_gpu, write_simulated_engine
from tests.runtime.simulated_tensorrt.cuda import SimulatedCuda, cudaError_t

QUICK = LoopOptions(warm_up_ms=2.0, duration_ms=10.0)
COPIED = replace(QUICK, transfers=True)


@pytest.fixture(params=[FULL, RTX], ids=["tensorrt", "rtx"])
def flavour(request):
    return request.param


@pytest.fixture
def simulation(flavour) -> Iterator[SimulatedCuda]:
    with simulated_gpu(flavour) as cuda:
        yield cuda


@pytest.fixture
def engine(simulation: SimulatedCuda, flavour, tmp_path: Path, tiny_onnx: Path) -> Engine:
    plan = read_plan(write_simulated_engine(tmp_path, tiny_onnx, flavour, profiles=((1, 2, 4), (5, 8, 8))))
    cuda = load_cuda()
    cuda.use(0)
    return engine_from_plan(plan, load_tensorrt(flavour.flavour), cuda, cuda.gpu(0))


def test_computing_alone_is_timed_by_events_without_the_warm_up(engine, simulation):
    timing = GpuLoop(engine, 2).run(QUICK)
    assert timing.compute.min == timing.compute.max == pytest.approx(0.5)
    assert timing.latency == timing.compute
    assert timing.traces[0].start >= QUICK.warm_up_ms
    assert timing.traces[-1].end >= QUICK.warm_up_ms + QUICK.duration_ms
    assert timing.images_per_second == pytest.approx(2 / 0.5e-3)
    assert timing.enqueue.min > 0
    assert timing.no_graph == ""
    assert simulation.calls.count("cudaGraphLaunch") >= len(timing.traces)


def test_copies_have_streams_of_their_own_and_overlap_with_computing(engine):
    timing = GpuLoop(engine, 2).run(COPIED)
    assert (timing.upload.median, timing.download.median) == pytest.approx((0.25, 0.125))
    assert timing.latency.median == pytest.approx(0.875)
    assert timing.images_per_second == pytest.approx(2 / 0.5e-3, rel=0.05), "computing alone sets the pace"


def test_one_at_a_time_nothing_overlaps(engine):
    loop = GpuLoop(engine, 2)
    one, two = loop.run(replace(COPIED, depth=1)), loop.run(COPIED)
    ends = [trace.end for trace in one.traces]
    assert min(later - sooner for sooner, later in itertools.pairwise(ends)) >= 0.5
    assert one.latency.median == two.latency.median


def test_two_are_under_way_before_the_first_is_waited_for(engine, simulation):
    loop = GpuLoop(engine, 1)
    simulation.calls.clear()
    loop.run(replace(QUICK, graph=False))
    calls = [name for name in simulation.calls if name in ("cudaEventRecord", "cudaEventSynchronize")]
    # the origin, then start and end of two inferences, and only then somebody waits
    assert calls[:6] == ["cudaEventRecord"] * 5 + ["cudaEventSynchronize"]


def test_slow_copies_are_warned_of(engine, simulation):
    simulation.durations |= {"upload": 3.0, "download": 0.1}
    (warning,) = (one for one in GpuLoop(engine, 1).run(COPIED).warnings if "copies" in one)
    assert "to the GPU 3.000 ms, computing 0.500 ms" in warning
    simulation.durations |= {"upload": 0.4}
    assert not [one for one in GpuLoop(engine, 1).run(COPIED).warnings if "copies" in one]


def test_a_launch_that_takes_longer_than_computing_is_warned_of(engine, simulation):
    simulation.durations["compute"] = 1e-6
    timing = GpuLoop(engine, 1).run(replace(QUICK, graph=False, warm_up_ms=0.0, duration_ms=0.0))
    assert any(one.startswith("bound by launch") for one in timing.warnings)
    simulation.durations["compute"] = 1e4
    timing = GpuLoop(engine, 1).run(replace(QUICK, graph=False))
    assert not timing.warnings


def test_what_cannot_be_recorded_is_launched_piece_by_piece_and_the_reason_is_told(engine, simulation):
    loop = GpuLoop(engine, 2)
    simulation.fail_next["cudaGraphInstantiate"] = cudaError_t.cudaErrorInvalidValue
    timing = loop.run(QUICK)
    assert "cudaGraphInstantiate failed" in timing.no_graph
    assert timing.compute.median == pytest.approx(0.5)
    assert loop.run(replace(QUICK, graph=False)).no_graph == "switched off"


def test_each_batch_runs_in_the_profile_that_takes_it(engine):
    assert GpuLoop(engine, 8).run(QUICK).images_per_second == pytest.approx(8 / 0.5e-3)
    with pytest.raises(BackendError, match=r"batch 9: .* takes 1 to 4, 5 to 8"):
        GpuLoop(engine, 9)


def test_everything_is_given_back(engine, simulation):
    before = simulation.in_use()
    loop = GpuLoop(engine, 2)
    loop.run(COPIED)
    del loop
    gc.collect()
    assert simulation.in_use() == before


def test_a_gpu_that_fails_half_way_is_a_typed_error_and_leaves_nothing_behind(engine, simulation):
    before = simulation.in_use()
    loop = GpuLoop(engine, 2)
    simulation.fail_next["cudaEventElapsedTime"] = cudaError_t.cudaErrorInvalidValue
    with pytest.raises(BackendError, match="cudaEventElapsedTime failed"):
        loop.run(COPIED)
    del loop
    gc.collect()
    assert simulation.in_use() == before


def test_a_missing_context_is_a_typed_error(engine, simulation):
    simulation.fail_next["create_execution_context"] = cudaError_t.cudaErrorMemoryAllocation
    with pytest.raises(DensenetDeployError, match="TensorRT makes no execution context"):
        GpuLoop(engine, 1)


@pytest.mark.parametrize("facts", [{"depth": 0}, {"iterations": 0}])
def test_options_that_cannot_be_meant(facts):
    with pytest.raises(UsageError):
        LoopOptions(**facts)
