"""Capsules are opened and made as numpy and PyTorch do it, and arrays that only speak DLPack run where they lie."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densenet_deploy.errors import FeedError
from densenet_deploy.runtime.backends.tensorrt import TensorRTRunner
from densenet_deploy.runtime.cudart import Cuda, DeviceMemory, PinnedMemory, Stream
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.runtime.tensorrt.device_arrays import CPU, make_capsule, open_capsule
from tests.runtime.simulated_tensorrt import FULL, simulated_gpu, write_simulated_engine
from tests.runtime.simulated_tensorrt.cuda import SimulatedCuda, SimulatedMachine

ARRAY = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
FEED = np.random.default_rng(3).standard_normal((2, 3, 32, 32), np.float32)
VERSIONED = {"max_version": (1, 0)}


class Lent:
    """A numpy array in a capsule of ours."""

    def __init__(self, array: np.ndarray, *, versioned: bool) -> None:
        self.array, self.versioned = array, versioned

    def __dlpack__(self, **_how: Any) -> object:
        place, owner = self.array.ctypes.data, self.array
        return make_capsule(place, owner.shape, owner.dtype, (CPU, 0), owner, versioned=self.versioned)

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU, 0


@pytest.mark.parametrize("how", [{}, VERSIONED], ids=["plain", "versioned"])
@pytest.mark.parametrize("dtype", ["f4", "f2", "i1", "u1", "i8", "?"])
def test_numpys_capsules_are_opened_in_place(how: dict[str, Any], dtype: str) -> None:
    array = ARRAY.astype(dtype)
    found = open_capsule(array.__dlpack__(**how))
    assert (found.address, found.shape, found.dtype) == (array.ctypes.data, (2, 3, 4), array.dtype)
    assert (found.strides, found.read_only, found.device) == (None, False, (CPU, 0))


@pytest.mark.parametrize("how", [{}, VERSIONED], ids=["plain", "versioned"])
def test_what_is_shared_lives_as_long_as_somebody_looks(how: dict[str, Any]) -> None:
    array = ARRAY.copy()
    before = sys.getrefcount(array)
    found = open_capsule(array.__dlpack__(**how))
    assert sys.getrefcount(array) == before + 1
    del found
    gc.collect()
    assert sys.getrefcount(array) == before


def test_other_layouts_keep_their_strides() -> None:
    turned = open_capsule(ARRAY.transpose(2, 0, 1).__dlpack__())
    assert turned.strides == (4, 48, 16)
    part = open_capsule(ARRAY[:, 1:, ::2].__dlpack__())
    assert part.strides == (48, 16, 8)
    assert part.address == ARRAY.ctypes.data + 16
    assert open_capsule(ARRAY[:1].__dlpack__()).strides is None, "of one element any stride will do"


def test_read_only_memory_says_so() -> None:
    frozen = ARRAY.copy()
    frozen.flags.writeable = False
    assert open_capsule(frozen.__dlpack__(**VERSIONED)).read_only


def test_a_capsule_is_opened_once() -> None:
    capsule = ARRAY.__dlpack__()
    found = open_capsule(capsule)
    with pytest.raises(TypeError, match="used before"):
        open_capsule(capsule)
    assert found.shape == ARRAY.shape
    with pytest.raises(TypeError, match="DLPack capsule"):
        open_capsule(object())


def test_types_that_numpy_has_not_are_refused_and_given_back() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.ones(2, 3)
    assert open_capsule(tensor.__dlpack__()).address == tensor.data_ptr()
    with pytest.raises(TypeError, match="DLPack code 4, 16 bits"):
        open_capsule(torch.ones(2, dtype=torch.bfloat16).__dlpack__())


@pytest.mark.parametrize("versioned", [False, True])
def test_ours_are_opened_by_numpy_and_torch(versioned: bool) -> None:
    torch = pytest.importorskip("torch")
    array = ARRAY.copy()
    before = sys.getrefcount(array)
    with_numpy, with_torch = (
        np.from_dlpack(Lent(array, versioned=versioned)),
        torch.from_dlpack(Lent(array, versioned=False)),
    )
    assert with_numpy.ctypes.data == with_torch.data_ptr() == array.ctypes.data
    np.testing.assert_array_equal(with_numpy, with_torch.numpy())
    del with_numpy, with_torch
    gc.collect()
    assert sys.getrefcount(array) == before


@pytest.mark.parametrize("versioned", [False, True])
def test_a_capsule_that_nobody_opens_lets_go(versioned: bool) -> None:
    array = ARRAY.copy()
    before = sys.getrefcount(array)
    capsule = Lent(array, versioned=versioned).__dlpack__()
    assert sys.getrefcount(array) == before + 1
    del capsule
    gc.collect()
    assert sys.getrefcount(array) == before


class OnGpu:
    """An array of a library that speaks nothing but DLPack; work on it is under way on a stream of its own."""

    def __init__(self, cuda: Cuda, values: np.ndarray, *, knows_versions: bool = True, device: int = 0) -> None:
        self.memory, pinned = DeviceMemory(cuda, values.nbytes), PinnedMemory(cuda, values.nbytes)
        pinned.bytes[:] = values.reshape(-1).view(np.uint8)
        self._cuda, self._pinned, self._values = cuda, pinned, values
        self._knows_versions, self._device = knows_versions, device
        self._stream = Stream(cuda)
        self._stream.copy_in(self.memory, pinned, values.nbytes)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._device

    def __dlpack__(self, *, stream: int, **how: Any) -> object:
        if how and not self._knows_versions:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        event = self._cuda("cudaEventCreateWithFlags", 2)
        self._cuda("cudaEventRecord", event, self._stream.handle)
        self._cuda("cudaStreamWaitEvent", stream, event, 0)
        shape, dtype = self._values.shape, self._values.dtype
        return make_capsule(self.memory.address, shape, dtype, (2, self._device), self.memory, versioned=bool(how))


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


@pytest.mark.parametrize("knows_versions", [False, True])
def test_feeds_and_results_stay_where_they_lie(runner, cuda, simulation, knows_versions: bool) -> None:
    expected = runner.run({"input": FEED})["logits"]
    feed = OnGpu(cuda, FEED, knows_versions=knows_versions)
    out = OnGpu(cuda, np.zeros((2, 10), np.float32), knows_versions=knows_versions)
    copies = simulation.calls.count("cudaMemcpyAsync")
    assert runner.run_on_gpu({"input": feed}, {"logits": out})["logits"] is out
    assert simulation.calls.count("cudaMemcpyAsync") == copies, "nothing was copied"
    result = np.zeros((2, 10), np.float32)
    Stream(cuda).copy_to_host(result, out.memory.address)
    np.testing.assert_array_equal(result, expected)


def test_our_results_are_lent(runner, cuda, simulation) -> None:
    logits = runner.run_on_gpu({"input": OnGpu(cuda, FEED)})["logits"]
    assert logits.__dlpack_device__() == (2, 0)
    address = logits.__cuda_array_interface__["data"][0]
    held = simulation.in_use()["memory"]
    lent = [open_capsule(logits.__dlpack__(stream=-1, **how)) for how in ({}, VERSIONED)]
    assert {(found.address, found.shape, found.dtype.str, found.device) for found in lent} == {
        (address, (2, 10), "<f4", (2, 0))
    }
    for refused in ({"copy": True}, {"dl_device": (CPU, 0)}):
        with pytest.raises(BufferError):
            logits.__dlpack__(**refused)
    del logits
    gc.collect()
    assert simulation.in_use()["memory"] == held, "it outlives our own object"
    lent.clear()
    gc.collect()
    assert simulation.in_use()["memory"] == held - 1


def test_what_does_not_fit_is_refused(runner, cuda) -> None:
    refused = {
        "float16": OnGpu(cuda, FEED.astype(np.float16)),
        "(2, 1, 32, 32)": OnGpu(cuda, FEED[:, :1]),
        "cuda:1": OnGpu(cuda, FEED, device=1),
        "cuda:0": FEED,
        "__dlpack__": "an array",
    }
    for word, feed in refused.items():
        with pytest.raises(FeedError) as caught:
            runner.run_on_gpu({"input": feed})
        assert caught.value.subject == "input"
        assert word in str(caught.value)


def test_an_owner_that_does_not_share_says_why(runner, cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: object, **_how: Any) -> object:
        raise BufferError("it is sparse")

    monkeypatch.setattr(OnGpu, "__dlpack__", refuse)
    with pytest.raises(FeedError) as caught:
        runner.run_on_gpu({"input": OnGpu(cuda, FEED)})
    assert caught.value.subject == "input"
