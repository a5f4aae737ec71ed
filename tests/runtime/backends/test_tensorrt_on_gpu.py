"""Arrays that are on the GPU run where they lie, and everything that is not as it must be is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densenet_deploy.errors import FeedError, RunnerStateError
from densenet_deploy.runtime.backends.tensorrt import TensorRTRunner
from densenet_deploy.runtime.cudart import Cuda, DeviceMemory, PinnedMemory, Stream
from densenet_deploy.runtime.runner import open_runner
from tests.runtime.simulated_tensorrt import FULL, RTX, simulated_gpu, write_simulated_engine
from tests.runtime.simulated_tensorrt.cuda import SimulatedCuda, SimulatedMachine

FEED = np.random.default_rng(3).standard_normal((2, 3, 32, 32), np.float32)
TOLERANCE = 1e-5


class Foreign:
    """An array of another library, on the GPU; `facts` replace what it says of itself."""

    def __init__(self, cuda: Cuda, values: np.ndarray, **facts: Any) -> None:
        self.memory = DeviceMemory(cuda, values.nbytes)
        self.pinned = PinnedMemory(cuda, values.nbytes)
        self.pinned.bytes[:] = values.reshape(-1).view(np.uint8)
        self.stream = Stream(cuda)
        self.stream.copy_in(self.memory, self.pinned, values.nbytes)  # in progress: not waited for
        self._facts = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (self.memory.address, False),
            "version": 3,
            "strides": None,
            "stream": int(self.stream),
        } | facts

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self._facts.get("version") == "broken":
            raise RuntimeError("can't get __cuda_array_interface__ on a variable that requires grad")
        return {key: value for key, value in self._facts.items() if value != "leave out"}

    def __bool__(self) -> bool:
        raise ValueError("an array has no truth")


@pytest.fixture
def simulation() -> Iterator[SimulatedCuda]:
    with simulated_gpu(FULL, SimulatedMachine(gpus=2)) as cuda:
        yield cuda


@pytest.fixture
def cuda(simulation: SimulatedCuda) -> Cuda:
    return Cuda(simulation)


@pytest.fixture
def runner(simulation: SimulatedCuda, tmp_path: Path, tiny_onnx: Path) -> Iterator[TensorRTRunner]:
    with open_runner(write_simulated_engine(tmp_path, tiny_onnx, FULL)) as opened:
        assert isinstance(opened, TensorRTRunner)
        yield opened


@pytest.fixture(scope="module")
def expected(tiny_onnx: Path) -> np.ndarray:
    with open_runner(tiny_onnx, "onnxruntime", "cpu") as reference:
        return reference.run({"input": FEED})["logits"]


def host(cuda: Cuda, array: Foreign, shape: tuple[int, ...]) -> np.ndarray:
    back = np.zeros(shape, np.float32)
    Stream(cuda).copy_to_host(back, array.memory.address)
    return back


def test_a_feed_is_run_where_it_lies_once_it_is_complete(runner, cuda, simulation, expected) -> None:
    simulation.calls.clear()
    feed = Foreign(cuda, FEED)
    copies = simulation.calls.count("cudaMemcpyAsync")
    logits = runner.run_on_gpu({"input": feed})["logits"]
    assert simulation.calls.count("cudaMemcpyAsync") == copies, "nothing was copied"
    np.testing.assert_allclose(logits.to_host(), expected, atol=TOLERANCE)
    assert logits.__cuda_array_interface__["shape"] == (2, 10)


def test_results_land_in_the_callers_array(runner, cuda, simulation, expected) -> None:
    feed, out = Foreign(cuda, FEED), Foreign(cuda, np.zeros((2, 10), np.float32))
    for _ in range(4):  # the same addresses again and again become a graph
        assert runner.run_on_gpu({"input": feed}, {"logits": out})["logits"] is out
    np.testing.assert_allclose(host(cuda, out, (2, 10)), expected, atol=TOLERANCE)
    assert "cudaGraphLaunch" in simulation.calls


def test_gpu_and_host_feeds_take_turns(runner, cuda, expected) -> None:
    feed = Foreign(cuda, FEED)
    for _ in range(3):
        np.testing.assert_allclose(runner.run_on_gpu({"input": feed})["logits"].to_host(), expected, atol=TOLERANCE)
        np.testing.assert_allclose(runner.run({"input": FEED})["logits"], expected, atol=TOLERANCE)


def test_one_runners_output_is_anothers_input(runner, cuda, tmp_path, tiny_onnx) -> None:
    logits = runner.run_on_gpu({"input": Foreign(cuda, FEED)})["logits"]
    with pytest.raises(FeedError) as caught:
        runner.run_on_gpu({"input": logits})  # it got as far as the shape: type, layout and device are fine
    assert caught.value.subject == "input"


def test_without_a_stream_the_default_one_is_waited_for(runner, cuda, simulation, expected) -> None:
    """PyTorch's arrays say nothing of streams, and its work is on the default stream."""
    feed = Foreign(cuda, np.zeros_like(FEED), stream="leave out", version=2)
    feed.pinned.bytes[:] = FEED.reshape(-1).view(np.uint8)
    cuda("cudaMemcpyAsync", feed.memory.address, feed.pinned.address, FEED.nbytes, cuda.enum("cudaMemcpyKind", 1), 1)
    logits = runner.run_on_gpu({"input": feed})["logits"]
    np.testing.assert_allclose(logits.to_host(), expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"typestr": "<f2"}, "float16"),
        ({"shape": (2, 32, 32, 3)}, "(2, 32, 32, 3)"),
        ({"shape": (0, 3, 32, 32)}, "(0, 3, 32, 32)"),
        ({"strides": (4, 8, 4, 4)}, "contiguous"),
        ({"data": (1 << 60, False)}, "cuda:0"),
        ({"version": "broken"}, "detach"),
    ],
    ids=str,
)
def test_a_bad_feed_is_refused(runner, cuda, facts, word) -> None:
    with pytest.raises(FeedError) as caught:
        runner.run_on_gpu({"input": Foreign(cuda, FEED, **facts)})
    assert caught.value.subject == "input"
    assert word in str(caught.value)


def test_packed_strides_are_contiguous(runner, cuda, expected) -> None:
    feed = Foreign(cuda, FEED, strides=FEED.strides)
    np.testing.assert_allclose(runner.run_on_gpu({"input": feed})["logits"].to_host(), expected, atol=TOLERANCE)


def test_a_feed_elsewhere_is_refused(runner, cuda) -> None:
    feed = Foreign(cuda, FEED)
    with pytest.raises(FeedError) as caught:
        runner.run_on_gpu({"input": Foreign(cuda, FEED, data=(feed.memory.address + 4, False))})
    assert caught.value.subject == "input"
    with pytest.raises(FeedError) as caught:
        runner.run_on_gpu({"input": Foreign(cuda, FEED, data=(feed.pinned.address & ~255, False))})
    assert caught.value.subject == "input"
    cuda.use(1)
    other = Foreign(cuda, FEED)
    with pytest.raises(FeedError) as caught:
        runner.run_on_gpu({"input": other})
    assert caught.value.subject == "input"


def test_names_and_outputs_are_checked(runner, cuda) -> None:
    feed = Foreign(cuda, FEED)
    with pytest.raises(FeedError) as caught:
        runner.run_on_gpu({"image": feed})
    assert caught.value.subject == "image"
    with pytest.raises(FeedError) as caught:
        runner.run_on_gpu({"input": feed}, {"logit": feed})
    assert caught.value.subject == "logit"
    with pytest.raises(FeedError) as caught:
        runner.run_on_gpu({"input": feed}, {"logits": Foreign(cuda, np.zeros((3, 10), np.float32))})
    assert caught.value.subject == "logits"
    frozen = Foreign(cuda, np.zeros((2, 10), np.float32))
    frozen._facts["data"] = (frozen.memory.address, True)
    with pytest.raises(FeedError) as caught:
        runner.run_on_gpu({"input": feed}, {"logits": frozen})
    assert caught.value.subject == "logits"


def test_a_batch_that_no_profile_takes_is_refused(runner, cuda) -> None:
    with pytest.raises(FeedError) as caught:
        runner.run_on_gpu({"input": Foreign(cuda, np.zeros((9, 3, 32, 32), np.float32))})
    assert caught.value.subject == "batch 9"


def test_use_after_close_is_a_typed_error(simulation, cuda, tmp_path, tiny_onnx) -> None:
    runner = open_runner(write_simulated_engine(tmp_path, tiny_onnx, FULL))
    assert isinstance(runner, TensorRTRunner)
    logits = runner.run_on_gpu({"input": Foreign(cuda, FEED)})["logits"]
    runner.close()
    assert logits.to_host().shape == (2, 10), "results outlive the runner"
    with pytest.raises(RunnerStateError):
        runner.run_on_gpu({"input": Foreign(cuda, FEED)})


def test_rtx_runs_in_place_too(tmp_path, tiny_onnx, expected) -> None:
    with simulated_gpu(RTX) as simulation, open_runner(write_simulated_engine(tmp_path, tiny_onnx, RTX)) as runner:
        assert isinstance(runner, TensorRTRunner)
        logits = runner.run_on_gpu({"input": Foreign(Cuda(simulation), FEED)})["logits"]
        np.testing.assert_allclose(logits.to_host(), expected, atol=TOLERANCE)


@pytest.mark.gpu
def test_pytorch_arrays_run_in_place_on_a_real_gpu(real_engine: Path, tiny_onnx: Path, expected: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch finds no GPU")
    with open_runner(real_engine) as runner:
        assert isinstance(runner, TensorRTRunner)
        logits = runner.run_on_gpu({"input": torch.from_numpy(FEED).cuda()})["logits"]
        # float32 convolutions by other algorithms than the CPU's
        np.testing.assert_allclose(logits.to_host(), expected, atol=1e-3)
        np.testing.assert_allclose(torch.as_tensor(logits, device="cuda").cpu().numpy(), logits.to_host())
