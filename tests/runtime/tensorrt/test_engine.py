"""What is read from an engine and set for it, what is refused, and the file of compiled kernels."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from densenet_deploy.errors import BackendError, DensenetDeployError, ModelFileError, ResourceError
from densenet_deploy.runtime.batching import BatchProfile
from densenet_deploy.runtime.engine_files import Plan, checked_header
from densenet_deploy.runtime.feeds import TensorSpec
from densenet_deploy.runtime.nvidia import Gpu
from densenet_deploy.runtime.tensorrt.engine import Engine, KernelCache, engine_from_plan, refusal
from tests.runtime.plans import plan_bytes, sidecar_of

GPU = Gpu(0, "NVIDIA GeForce RTX™ 4090 (Laptop)", "8.9")
FLOAT = np.dtype(np.float32)
NUMPY = {"FLOAT": np.float32, "HALF": np.float16}


class FakeTensorRT:
    """A TensorRT whose runtime loads one engine of the given tensors: name, direction, type and shape."""

    def __init__(self, *tensors: tuple[str, str, str, tuple[int, ...]], batches: Any = (), error: str = "none") -> None:
        self.loaded: list[bytes] = []
        self.runtimes: list[Any] = []
        self.version = "1.7"
        self.log = SimpleNamespace(native="the log", last_error=lambda: error)
        self.module = SimpleNamespace(
            Runtime=self._runtime, TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"), nptype=self._nptype
        )
        facts = {name: (mode, kind, shape) for name, mode, kind, shape in tensors}
        self.native = SimpleNamespace(
            num_io_tensors=len(facts),
            num_optimization_profiles=len(batches),
            get_tensor_name=lambda index: list(facts)[index],
            get_tensor_mode=lambda name: facts[name][0],
            get_tensor_dtype=lambda name: facts[name][1],
            get_tensor_shape=lambda name: facts[name][2],
            get_tensor_profile_shape=lambda name, index: [(batch, *facts[name][2][1:]) for batch in batches[index]],
        )

    def _runtime(self, log: str) -> Any:
        assert log == "the log"

        def load(data: bytes) -> Any:
            self.loaded.append(data)
            return self.native if self.native.num_io_tensors else None

        self.runtimes.append(SimpleNamespace(deserialize_cuda_engine=load, DLA_core=-1, engine_host_code_allowed=False))
        return self.runtimes[-1]

    @staticmethod
    def _nptype(kind: str) -> type:
        if kind not in NUMPY:
            raise TypeError(kind)
        return NUMPY[kind]


IMAGE = ("image", "in", "FLOAT", (-1, 3, 8, 6))
LOGITS = ("logits", "out", "HALF", (-1, 10))


def plan_with(**changes: Any) -> Plan:
    data = plan_bytes()
    sidecar = sidecar_of(data, **changes) if changes else None
    return Plan(Path("a.engine"), data, checked_header(data, "a"), sidecar)


def loaded(trt: FakeTensorRT, **changes: Any) -> Engine:
    return engine_from_plan(plan_with(**changes), trt, "the runtime", GPU)  # type: ignore[arg-type]


def test_an_engine_states_its_tensors_and_profiles() -> None:
    trt = FakeTensorRT(LOGITS, IMAGE, ("mask", "in", "FLOAT", (-1, 0)), batches=((1, 2, 4), (8, 16, 32)))
    engine = loaded(trt)
    assert engine == Engine(
        native=trt.native,
        trt=trt,  # type: ignore[arg-type]
        cuda="the runtime",  # type: ignore[arg-type]
        gpu=GPU,
        inputs=(TensorSpec("image", (None, 3, 8, 6), FLOAT), TensorSpec("mask", (None, 0), FLOAT)),
        outputs=(TensorSpec("logits", (None, 10), np.dtype(np.float16)),),
        profiles=(BatchProfile(1, 2, 4), BatchProfile(8, 16, 32)),
        subject="a.engine",
    )
    assert [spec.name for spec in engine.specs] == ["image", "mask", "logits"]
    assert trt.loaded == [plan_bytes()]


def test_a_fixed_batch_is_its_own_profile() -> None:
    engine = loaded(FakeTensorRT(("image", "in", "FLOAT", (5, 3, 8, 8)), LOGITS, batches=((7, 7, 7),)))
    assert engine.profiles == (BatchProfile(5, 5, 5),)


@pytest.mark.parametrize(
    "tensor",
    [
        ("image", "in", "FLOAT", ()),
        ("image", "in", "FLOAT", (-1, -1, 8, 8)),
        ("image", "in", "FLOAT", (1, 3, 8, -1)),
        ("image", "in", "BF16", (1, 3, 8, 8)),
        ("logits", "out", "FLOAT", (-1, -1)),
    ],
)
def test_tensors_that_cannot_be_fed_are_refused(tensor: tuple[str, str, str, tuple[int, ...]]) -> None:
    with pytest.raises(ModelFileError) as caught:
        loaded(FakeTensorRT(("more", *IMAGE[1:]), tensor, batches=((1, 1, 1),)))
    assert caught.value.subject == "a.engine"
    assert tensor[0] in caught.value.why


def test_what_tensorrt_does_not_load_is_refused_with_its_reason() -> None:
    with pytest.raises(BackendError) as caught:
        loaded(FakeTensorRT(error="the magic tag differs"))
    assert caught.value.subject == "a.engine"
    assert "the magic tag differs" in caught.value.why


@pytest.mark.parametrize(
    ("facts", "dla", "host_code"),
    [
        ({}, -1, False),
        ({"options": {"dla": None}}, -1, False),
        ({"options": {"dla": 0, "strip_weights": False}}, 0, False),
        ({"options": {"dla": 1}, "version_compatible": True}, 1, True),
    ],
)
def test_the_runtime_gets_what_only_the_build_knew(facts: dict[str, Any], dla: int, host_code: bool) -> None:
    trt = FakeTensorRT(IMAGE, LOGITS, batches=((1, 1, 1),))
    loaded(trt, **facts)
    assert (trt.runtimes[0].DLA_core, trt.runtimes[0].engine_host_code_allowed) == (dla, host_code)


def test_a_plan_without_weights_is_not_loaded() -> None:
    trt = FakeTensorRT(IMAGE, LOGITS)
    with pytest.raises(ModelFileError) as caught:
        loaded(trt, options={"strip_weights": True})
    assert caught.value.subject == "a.engine"
    assert trt.loaded == []


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("OutOfMemory (Requested size was 1000 bytes.)", ResourceError),
        ("CUDA error: out of memory", ResourceError),
        ("cudaErrorMemoryAllocation", ResourceError),
        ("Cuda Runtime (cudaError 2)", ResourceError),
        ("Cuda Runtime (cudaError 209)", BackendError),
        ("API Usage Error", BackendError),
    ],
)
def test_a_refusal_is_about_memory_or_about_tensorrt(reason: str, kind: type[DensenetDeployError]) -> None:
    error = refusal(FakeTensorRT(error=reason), "a.engine", "TensorRT cannot run it", "build it again")  # type: ignore
    assert type(error) is kind
    assert (error.subject, error.why) == ("a.engine", f"TensorRT cannot run it: {reason}")


class FakeCache:
    """TensorRT-RTX's cache: `blob` is what it would write; it takes any that begins with `good`."""

    def __init__(self, blob: bytes) -> None:
        self.blob, self.seen = blob, []  # type: ignore[var-annotated]

    def deserialize(self, blob: bytes) -> bool:
        self.seen.append(blob)
        return blob.startswith(b"good")

    def serialize(self) -> memoryview:
        return memoryview(self.blob)


class Kernels:
    """A folder for the kernels of one engine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        digest = hashlib.sha256(plan_bytes()).hexdigest()[:24]
        self.file = folder / f"{digest}-nvidia-geforce-rtx-4090-laptop-1.7-13020.kernels"

    def open(self, cache: FakeCache, *, gpu: Gpu = GPU, taken: bool = True) -> KernelCache:
        def take(offered: FakeCache) -> bool:
            assert offered is cache
            return taken

        config = SimpleNamespace(create_runtime_cache=lambda: cache, set_runtime_cache=take)
        engine: Any = SimpleNamespace(
            gpu=gpu, trt=SimpleNamespace(version="1.7"), cuda=SimpleNamespace(driver_version=lambda: 13020)
        )
        return KernelCache(config, engine, plan_with(), self.folder)


@pytest.fixture
def kernels(tmp_path: Path) -> Kernels:
    return Kernels(tmp_path / "kernels")


def test_kernels_are_saved_for_this_engine_gpu_version_and_driver(kernels: Kernels) -> None:
    cache = FakeCache(b"good 1")
    kernels.open(cache).save()
    assert [path.name for path in kernels.folder.iterdir()] == [kernels.file.name]
    assert kernels.file.read_bytes() == b"good 1"
    assert cache.seen == [], "there was nothing to read"
    other = FakeCache(b"good 2")
    kernels.open(other)
    assert other.seen == [b"good 1"]


def test_kernels_are_written_when_they_have_changed_and_not_otherwise(kernels: Kernels) -> None:
    cache = FakeCache(b"good 1")
    opened = kernels.open(cache)
    opened.save()
    kernels.file.unlink()
    opened.save()
    assert not kernels.file.exists()
    cache.blob = b"good 2"
    opened.save()
    assert kernels.file.read_bytes() == b"good 2"
    again = kernels.open(cache)
    kernels.file.unlink()
    again.save()
    assert not kernels.file.exists(), "as they were read"


def test_damaged_kernels_are_replaced(kernels: Kernels) -> None:
    kernels.folder.mkdir()
    kernels.file.write_bytes(b"rubbish")
    kernels.open(FakeCache(b"good")).save()
    assert kernels.file.read_bytes() == b"good"


def test_a_cache_that_tensorrt_did_not_take_is_not_saved(kernels: Kernels) -> None:
    kernels.open(FakeCache(b"good"), taken=False).save()
    assert not kernels.folder.exists()


@pytest.mark.parametrize(("size", "saved"), [(0, False), (1, True), (100 * 2**20, True), (100 * 2**20 + 1, False)])
def test_kernels_of_up_to_100_mib_are_worth_saving(
    kernels: Kernels, size: int, saved: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """There is a file where the folder should be: to try is to fail, which is faster than 100 MiB on a disk."""
    kernels.folder.write_bytes(b"")
    opened = kernels.open(FakeCache(bytes(size)))
    caplog.set_level(logging.INFO, "densenet_deploy")
    opened.save()
    assert [record.levelname for record in caplog.records] == ["INFO"] * saved


def test_a_file_that_can_be_neither_read_nor_written_does_no_harm(
    kernels: Kernels, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "densenet_deploy")
    kernels.folder.mkdir()
    nameless = Gpu(0, "x" * 300, "8.9")  # a file name has at most 255 bytes
    kernels.open(FakeCache(b"good"), gpu=nameless).save()
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
