"""Arrays that stay on the GPU: any library's, read through a protocol of theirs, and ours, which offer both.

CuPy, PyTorch and Numba speak `__cuda_array_interface__`
(https://nvidia.github.io/numba-cuda/user/cuda_array_interface.html), others only DLPack; neither side has to import the
other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from densenet_deploy.errors import FeedError
from densenet_deploy.runtime.cudart import Cuda, DeviceMemory, Stream
from densenet_deploy.runtime.feeds import Array, TensorSpec
from densenet_deploy.runtime.tensorrt import dlpack

_ALIGNMENT: Final = 256  # bytes, what cudaMalloc gives and TensorRT wants
_DEFAULT_STREAM: Final = 1  # where work may be under way on arrays that say nothing of it (PyTorch's)


class GpuArray:
    """An array in memory of its own on the GPU, complete when you get it.

    >>> torch.from_dlpack(array), cupy.asarray(array), array.to_host()      # doctest: +SKIP
    """

    def __init__(self, cuda: Cuda, device: int, spec: TensorSpec) -> None:
        self.shape, self.dtype = tuple(size or 1 for size in spec.shape), spec.dtype
        self._cuda, self._device = cuda, device
        self._memory = DeviceMemory(cuda, math.prod(self.shape) * spec.dtype.itemsize)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._memory.address, False),
            "version": 3,
            "strides": None,
            "stream": None,  # nothing is under way
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.GPUS[0], self._device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        if dl_device not in (None, self.__dlpack_device__()) or copy:
            raise BufferError("an array of the runner is shared where it is; copy it there, or with to_host()")
        return dlpack.make_capsule(
            self._memory.address,
            self.shape,
            self.dtype,
            self.__dlpack_device__(),
            self._memory,
            versioned=max_version is not None and max_version >= (1, 0),
        )

    def to_host(self) -> Array:
        """Return a copy as a numpy array."""
        self._cuda.use(self._device)
        array = np.empty(self.shape, self.dtype)
        Stream(self._cuda).copy_to_host(array, self._memory.address)
        return array


@dataclass(frozen=True)
class GpuView:
    """Somebody's array as the GPU sees it, alive as long as `owner`; on `stream`, if any, work on it is under way."""

    address: int
    shape: tuple[int, ...]
    stream: int | None
    owner: object


def view_of(array: object, spec: TensorSpec, cuda: Cuda, device: int, *, writable: bool = False) -> GpuView:
    """Look at an array on the GPU and check that it is what `spec` wants.

    Raises:
        FeedError: if it isn't on this GPU, or has another type, shape or layout.
    """
    facts = _facts_of(array, spec, device)
    shape, dtype = tuple(facts["shape"]), np.dtype(facts["typestr"])
    if dtype != spec.dtype:
        raise FeedError(spec.name, f"is {dtype}, the model takes {spec.dtype}", "convert it on the GPU")
    if not _fits(shape, spec):
        raise FeedError(spec.name, f"has shape {shape}, the model takes {spec}", "resize or batch it to fit")
    if facts.get("strides") not in (None, _packed_strides(shape, dtype.itemsize)):
        raise FeedError(spec.name, "is not contiguous", "make it contiguous on the GPU")
    address, read_only = facts["data"]
    if writable and read_only:
        raise FeedError(spec.name, "is read-only", "give a buffer that can be written")
    if address % _ALIGNMENT:
        raise FeedError(spec.name, f"does not start at a multiple of {_ALIGNMENT} bytes", "copy it on the GPU")
    if (found := cuda.device_of(address)) != device:
        where = "no GPU" if found is None else f"cuda:{found}"
        raise FeedError(spec.name, f"is on {where}, the model on cuda:{device}", "copy it to the model's GPU")
    return GpuView(int(address), shape, facts.get("stream", _DEFAULT_STREAM), facts.get("owner", array))


def _facts_of(array: object, spec: TensorSpec, device: int) -> dict[str, Any]:
    """What the array says of itself, as `__cuda_array_interface__` has it."""
    try:
        facts = getattr(array, "__cuda_array_interface__", None)
        if facts is None and hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
            facts = _from_dlpack(array, spec, device)
    except FeedError:
        raise
    except Exception as exc:  # PyTorch's of a tensor that wants a gradient
        raise FeedError(spec.name, f"does not share its memory: {exc}", "detach or copy it") from exc
    if isinstance(facts, dict):
        return facts
    kind = type(array).__name__
    why = f"is a {kind} without __cuda_array_interface__ or __dlpack__"
    raise FeedError(spec.name, why, "give an array on the GPU")


def _from_dlpack(array: Any, spec: TensorSpec, device: int) -> dict[str, Any]:
    """Look at an array through DLPack, whose owner lets the default stream wait for what is under way."""
    kind, index = array.__dlpack_device__()
    if int(kind) not in dlpack.GPUS or index != device:
        where = f"cuda:{index}" if int(kind) in dlpack.GPUS else "no GPU"
        raise FeedError(spec.name, f"is on {where}, the model on cuda:{device}", "copy it to the model's GPU")
    try:
        capsule = array.__dlpack__(stream=_DEFAULT_STREAM, max_version=(1, 0))
    except TypeError:  # of a library that knows no versions
        capsule = array.__dlpack__(stream=_DEFAULT_STREAM)
    shared = dlpack.open_capsule(capsule)
    return {
        "shape": shared.shape,
        "typestr": shared.dtype.str,
        "strides": shared.strides,
        "data": (shared.address, shared.read_only),
        "stream": _DEFAULT_STREAM,
        "owner": shared,
    }


def _fits(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    return len(shape) == len(spec.shape) and all(
        size == want or (want is None and size > 0) for size, want in zip(shape, spec.shape, strict=True)
    )


def _packed_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    return tuple(itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
