"""Arrays of other libraries are viewed where they are, or refused; our own offer both protocols."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from densenet_deploy.errors import FeedError
from densenet_deploy.runtime.cudart import Cuda, DeviceMemory, PinnedMemory, load_cuda
from densenet_deploy.runtime.feeds import TensorSpec
from densenet_deploy.runtime.nvidia import Gpu
from densenet_deploy.runtime.tensorrt.device_arrays import (
    GpuArray,
    GpuView,
    SharedArray,
    make_capsule,
    open_capsule,
    view_of,
)
from tests.runtime.simulated_tensorrt.cuda import SimulatedCuda, SimulatedMachine

FLOAT = np.dtype(np.float32)
SPEC = TensorSpec("input", (None, 3, 4), FLOAT)


@pytest.fixture
def simulation() -> SimulatedCuda:
    return SimulatedCuda(SimulatedMachine(gpus=2))


@pytest.fixture
def cuda(simulation: SimulatedCuda) -> Cuda:
    return Cuda(simulation)


@pytest.fixture
def memory(cuda: Cuda) -> DeviceMemory:
    """Room on the first GPU for two samples."""
    return DeviceMemory(cuda, 2 * 3 * 4 * 4)


class Interface:
    """An array that describes itself as `facts`."""

    def __init__(self, facts: object) -> None:
        self.__cuda_array_interface__ = facts


def described(memory: DeviceMemory, **changes: Any) -> Interface:
    facts = {
        "shape": (2, 3, 4),
        "typestr": "<f4",
        "data": (memory.address, False),
        "version": 3,
        "strides": None,
        "stream": None,
    } | changes
    return Interface({key: value for key, value in facts.items() if value != "left out"})


class TestCudaArrayInterface:
    @pytest.mark.parametrize(
        ("changes", "stream"),
        [
            ({}, None),
            ({"stream": 7}, 7),
            ({"stream": "left out"}, 1),
            ({"strides": (48, 16, 4)}, None),
            ({"strides": "left out"}, None),
            ({"shape": [2, 3, 4]}, None),
        ],
    )
    def test_an_array_is_viewed_in_place_on_its_stream(
        self, cuda: Cuda, memory: DeviceMemory, changes: dict[str, Any], stream: int | None
    ) -> None:
        """Without a stream, work of PyTorch may be in progress on the default one."""
        array = described(memory, **changes)
        assert view_of(array, SPEC, cuda, 0) == GpuView(memory.address, (2, 3, 4), stream, array)

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"typestr": "<f2"}, "float16"),
            ({"shape": (2, 4, 3)}, "(2, 4, 3)"),
            ({"shape": (0, 3, 4)}, "(0, 3, 4)"),
            ({"strides": (48, 4, 12)}, "contiguous"),
            ({"strides": (16, 16, 4)}, "contiguous"),
            ({"data": (1 << 60, False)}, "not on a GPU"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, cuda: Cuda, memory: DeviceMemory, changes: dict[str, Any], word: str
    ) -> None:
        with pytest.raises(FeedError) as caught:
            view_of(described(memory, **changes), SPEC, cuda, 0)
        assert caught.value.subject == "input"
        assert word in caught.value.why

    def test_memory_on_another_gpu_is_refused(self, cuda: Cuda, memory: DeviceMemory) -> None:
        with pytest.raises(FeedError) as caught:
            view_of(described(memory), SPEC, cuda, 1)
        assert "on cuda:0" in caught.value.why

    def test_memory_that_does_not_start_at_256_bytes_is_refused(self, cuda: Cuda) -> None:
        memory = DeviceMemory(cuda, 1024)
        view_of(described(memory, data=(memory.address + 256, False)), SPEC, cuda, 0)
        for offset in (4, 128):
            with pytest.raises(FeedError) as caught:
                view_of(described(memory, data=(memory.address + offset, False)), SPEC, cuda, 0)
            assert "256" in caught.value.why

    def test_read_only_memory_is_for_feeds(self, cuda: Cuda, memory: DeviceMemory) -> None:
        frozen = described(memory, data=(memory.address, True))
        view_of(frozen, SPEC, cuda, 0)
        view_of(described(memory), SPEC, cuda, 0, writable=True)
        with pytest.raises(FeedError):
            view_of(frozen, SPEC, cuda, 0, writable=True)

    @pytest.mark.parametrize("array", ["text", np.zeros((2, 3, 4), np.float32).tolist(), Interface("text")])
    def test_what_describes_itself_in_no_way_is_refused(self, cuda: Cuda, array: object) -> None:
        with pytest.raises(FeedError) as caught:
            view_of(array, SPEC, cuda, 0)
        assert f"is a {type(array).__name__} without" in caught.value.why

    def test_an_owner_that_does_not_share_says_why(self, cuda: Cuda) -> None:
        class Demanding:
            @property
            def __cuda_array_interface__(self) -> dict[str, Any]:
                raise RuntimeError("it requires a gradient")

        with pytest.raises(FeedError) as caught:
            view_of(Demanding(), SPEC, cuda, 0)
        assert "it requires a gradient" in caught.value.why


class Dlpack:
    """An array that offers nothing but DLPack, and notes how it is asked."""

    def __init__(
        self, memory: DeviceMemory, device: tuple[int, int] = (2, 0), *, knows_versions: bool = True, dtype: Any = FLOAT
    ) -> None:
        self.memory, self.device, self.dtype = memory, device, np.dtype(dtype)
        self.knows_versions = knows_versions
        self.asked: list[dict[str, Any]] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **how: Any) -> object:
        self.asked.append(how)
        if "max_version" in how and not self.knows_versions:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        versioned = "max_version" in how
        return make_capsule(self.memory.address, (2, 3, 4), self.dtype, self.device, self.memory, versioned=versioned)


class TestDlpack:
    @pytest.mark.parametrize("device", [(2, 0), (13, 0)], ids=["device memory", "managed memory"])
    def test_an_array_is_viewed_in_place_after_work_in_progress(
        self, cuda: Cuda, memory: DeviceMemory, device: tuple[int, int]
    ) -> None:
        """Its owner makes the default stream wait, number 1."""
        array = Dlpack(memory, device)
        view = view_of(array, SPEC, cuda, 0)
        assert (view.address, view.shape, view.stream) == (memory.address, (2, 3, 4), 1)
        assert array.asked == [{"stream": 1, "max_version": (1, 0)}]
        assert isinstance(view.owner, SharedArray)

    def test_a_library_without_versions_is_asked_again(self, cuda: Cuda, memory: DeviceMemory) -> None:
        array = Dlpack(memory, knows_versions=False)
        assert view_of(array, SPEC, cuda, 0).address == memory.address
        assert array.asked[1:] == [{"stream": 1}]

    def test_a_view_keeps_the_memory(self, simulation: SimulatedCuda, cuda: Cuda) -> None:
        array = Dlpack(DeviceMemory(cuda, 96))
        view = view_of(array, SPEC, cuda, 0)
        del array
        assert simulation.in_use()["memory"] == 1
        del view
        assert simulation.in_use()["memory"] == 0

    @pytest.mark.parametrize(
        ("device", "word"), [((1, 0), "not on a GPU"), ((2, 1), "on cuda:1"), ((10, 1), "not on a GPU")]
    )
    def test_an_array_elsewhere_is_refused_before_it_is_asked_for(
        self, cuda: Cuda, memory: DeviceMemory, device: tuple[int, int], word: str
    ) -> None:
        array = Dlpack(memory, device)
        with pytest.raises(FeedError) as caught:
            view_of(array, SPEC, cuda, 0)
        assert caught.value.subject == "input"
        assert f"is {word}, the model" in caught.value.why
        assert array.asked == []

    def test_type_layout_and_permission_are_checked(self, cuda: Cuda, memory: DeviceMemory) -> None:
        with pytest.raises(FeedError) as caught:
            view_of(Dlpack(memory, dtype=np.int32), SPEC, cuda, 0)
        assert "int32" in caught.value.why
        for array in (np.zeros((2, 4, 3), np.float32).transpose(0, 2, 1), frozen(np.zeros((2, 3, 4), np.float32))):
            with pytest.raises(FeedError) as caught:
                view_of(ClaimsToBeOnGpu(array), SPEC, cuda, 0, writable=True)
            assert caught.value.why in ("is not contiguous", "is read-only")

    @pytest.mark.parametrize("missing", ["__dlpack__", "__dlpack_device__"])
    def test_half_of_the_protocol_is_none(self, cuda: Cuda, memory: DeviceMemory, missing: str) -> None:
        other = {"__dlpack__", "__dlpack_device__"} - {missing}
        half = type("Half", (), {name: getattr(Dlpack, name) for name in other})()
        with pytest.raises(FeedError) as caught:
            view_of(half, SPEC, cuda, 0)
        assert "is a Half without" in caught.value.why

    def test_the_other_protocol_comes_first(self, cuda: Cuda, memory: DeviceMemory) -> None:
        array = Dlpack(memory)
        array.__cuda_array_interface__ = described(memory).__cuda_array_interface__  # type: ignore[attr-defined]
        assert view_of(array, SPEC, cuda, 0).owner is array
        assert array.asked == []


def frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


class ClaimsToBeOnGpu:
    """A NumPy array behind DLPack, which says that it is on a GPU."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int, max_version: tuple[int, int]) -> object:
        return self._array.__dlpack__(max_version=max_version)


class TestOurArrays:
    @pytest.fixture
    def array(self, cuda: Cuda) -> GpuArray:
        """Two whole numbers on the second GPU."""
        cuda.use(1)
        array = GpuArray(cuda, 1, (2, 1), np.dtype(np.int64))
        pinned = PinnedMemory(cuda, 16)
        pinned.bytes[:] = np.array([5, 6], np.int64).view(np.uint8)
        kind = cuda.enum("cudaMemcpyKind", 1)
        cuda("cudaMemcpyAsync", array.__cuda_array_interface__["data"][0], pinned.address, 16, kind, 1)
        cuda("cudaStreamSynchronize", 1)
        cuda.use(0)
        return array

    def test_they_describe_themselves(self, array: GpuArray) -> None:
        facts = array.__cuda_array_interface__
        address, read_only = facts.pop("data")
        assert address % 256 == 0
        assert read_only is False
        assert facts == {"shape": (2, 1), "typestr": "<i8", "version": 3, "strides": None, "stream": None}
        assert array.__dlpack_device__() == (2, 1)

    def test_they_are_copied_to_the_host_from_their_device(self, array: GpuArray, simulation: SimulatedCuda) -> None:
        def copied() -> tuple[list[list[int]], int]:
            return array.to_host().tolist(), simulation.current_device

        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(copied).result() == ([[5], [6]], 1)

    @pytest.mark.parametrize(
        ("how", "name"),
        [
            ({}, "dltensor"),
            ({"max_version": (0, 8)}, "dltensor"),
            ({"max_version": (1, 0)}, "dltensor_versioned"),
            ({"max_version": (1, 3), "stream": -1, "dl_device": (2, 1), "copy": False}, "dltensor_versioned"),
        ],
    )
    def test_they_are_lent_in_the_version_that_the_borrower_knows(
        self, array: GpuArray, how: dict[str, Any], name: str
    ) -> None:
        capsule = array.__dlpack__(**how)
        assert f'"{name}"' in repr(capsule)
        found = open_capsule(capsule)
        address = array.__cuda_array_interface__["data"][0]
        assert found == SharedArray(address, (2, 1), np.dtype(np.int64), None, False, (2, 1))

    @pytest.mark.parametrize("how", [{"copy": True}, {"dl_device": (1, 0)}, {"dl_device": (2, 0)}])
    def test_they_are_not_copied_elsewhere(self, array: GpuArray, how: dict[str, Any]) -> None:
        with pytest.raises(BufferError):
            array.__dlpack__(**how)

    def test_their_memory_lives_as_long_as_somebody_uses_it(self, simulation: SimulatedCuda, cuda: Cuda) -> None:
        def in_use() -> int:
            return simulation.in_use()["memory"]

        array = GpuArray(cuda, 0, (2, 3), FLOAT)
        lent = [open_capsule(array.__dlpack__(max_version=version)) for version in (None, (1, 0))]
        del array
        assert in_use() == 1
        lent.pop()
        assert in_use() == 1
        lent.pop()
        assert in_use() == 0


@pytest.mark.parametrize(("shape", "dtype", "size"), [((2, 3), "f4", 24), ((5,), "i1", 5), ((), "f8", 8)])
def test_the_memory_holds_every_element(cuda: Cuda, shape: tuple[int, ...], dtype: str, size: int) -> None:
    array = GpuArray(cuda, 0, shape, np.dtype(dtype))
    address = array.__cuda_array_interface__["data"][0]
    assert cuda.device_of(address + size - 1) == 0
    assert cuda.device_of(address + size) is None


# On a real GPU, with PyTorch


class OnlyDlpack:
    """Offers a tensor through DLPack alone, as libraries do that do not know CUDA's array interface."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: Any) -> object:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> object:
        return self.tensor.__dlpack_device__()


@pytest.fixture
def real_cuda(real_gpu: Gpu) -> Cuda:
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch finds no GPU")
    return load_cuda()


@pytest.fixture
def tensor(real_cuda: Cuda) -> torch.Tensor:
    """As large as `SPEC` says, on the GPU."""
    return torch.arange(24, dtype=torch.float32, device="cuda").reshape(2, 3, 4)


@pytest.mark.gpu
@pytest.mark.parametrize("wrapped", [lambda tensor: tensor, OnlyDlpack], ids=["CUDA array interface", "DLPack"])
def test_a_tensor_on_a_real_gpu_is_viewed_where_it_is(real_cuda: Cuda, tensor: torch.Tensor, wrapped: Any) -> None:
    assert view_of(wrapped(tensor), SPEC, real_cuda, 0).address == tensor.data_ptr()


@pytest.mark.gpu
@pytest.mark.parametrize(
    "change",
    [lambda tensor: tensor.cpu(), lambda tensor: tensor.half(), lambda tensor: tensor.reshape(2, 4, 3).mT],
    ids=["on the host", "float16", "transposed"],
)
@pytest.mark.parametrize("wrapped", [lambda tensor: tensor, OnlyDlpack], ids=["CUDA array interface", "DLPack"])
def test_a_tensor_that_would_need_a_copy_is_refused(
    real_cuda: Cuda, tensor: torch.Tensor, change: Any, wrapped: Any
) -> None:
    with pytest.raises(FeedError) as caught:
        view_of(wrapped(change(tensor)), SPEC, real_cuda, 0)
    assert caught.value.subject == "input"


@pytest.mark.gpu
def test_pytorch_shares_our_memory_on_a_real_gpu_and_keeps_it(real_cuda: Cuda, tensor: torch.Tensor) -> None:
    ours = GpuArray(real_cuda, 0, (2, 3, 4), FLOAT)
    through_dlpack, through_interface = torch.from_dlpack(ours), torch.as_tensor(ours, device="cuda")
    assert through_interface.data_ptr() == through_dlpack.data_ptr()
    through_dlpack.copy_(tensor)
    torch.cuda.synchronize()
    np.testing.assert_array_equal(ours.to_host(), np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    del ours, through_interface
    others = [GpuArray(real_cuda, 0, (2, 3, 4), FLOAT) for _ in range(4)]
    for other in others:
        torch.from_dlpack(other).fill_(-1)
    assert torch.equal(through_dlpack, tensor), "the tensor keeps the memory of the array that is gone"
