"""The worker's side of a build, in this process: TensorRT-RTX for real, full TensorRT with a simulated builder."""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from densenet_deploy.engines.build_worker import main
from densenet_deploy.engines.builder import BuildResult, Toolchain
from densenet_deploy.engines.options import BuildOptions
from densenet_deploy.engines.precision import EnginePrecision
from densenet_deploy.errors import BackendError, DeviceError, ResourceError
from densenet_deploy.packages import is_installed
from densenet_deploy.records import from_plain, to_plain
from densenet_deploy.runtime.batching import BatchProfile
from densenet_deploy.runtime.engine_files import sniff
from densenet_deploy.runtime.nvidia import find_gpus
from densenet_deploy.runtime.trt import load_tensorrt
from tests.engines.simulated_builder import simulated_tensorrt
from tests.runtime.fake_driver import DRIVER, FakeDriver


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """Where a plan goes."""
    return tmp_path / "tiny.engine"


@pytest.fixture
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Full TensorRT, simulated, on a machine with two GPUs; parameters are those of the simulation."""

    def load(name: str) -> FakeDriver:
        if name != DRIVER:
            raise OSError(name)
        return FakeDriver()

    module = simulated_tensorrt(**getattr(request, "param", {}))
    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    for cached in (find_gpus, load_tensorrt):
        cached.cache_clear()
    yield module
    for cached in (find_gpus, load_tensorrt):
        cached.cache_clear()


def answers(options: BuildOptions, onnx: Path, plan: Path) -> tuple[Toolchain, int, BuildResult]:
    """What the worker answers to the options and to the files of one build."""
    toolchain, size, result = main(iter([to_plain(options), [str(onnx), str(plan)]]))
    return from_plain(Toolchain, toolchain), size, from_plain(BuildResult, result)


@pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="TensorRT-RTX is not installed")
def test_rtx_is_read_back_from_the_text_of_its_plan(tiny_fp16: Path, plan: Path) -> None:
    toolchain, size, result = answers(BuildOptions("rtx", "fp16", targets=("8.6",)), tiny_fp16, plan)
    data = plan.read_bytes()
    assert toolchain.version == load_tensorrt("rtx").version
    assert (size, result.size, result.sha256) == (len(data), len(data), hashlib.sha256(data).hexdigest())
    assert (result.targets, result.profiles, result.notes) == (("8.6",), (BatchProfile(1, 1, 1),), ())
    assert [(tensor.name, tensor.shape) for tensor in result.inputs] == [("input", (None, 3, 32, 32))]
    assert [(tensor.name, tensor.shape) for tensor in result.outputs] == [("logits", (None, 10))]
    assert result.precision.source == "the plan's text"
    assert {conv.name: conv.precision for conv in result.precision.convolutions} == result.asked
    assert set(result.asked.values()) == {"fp16"}
    assert min(result.seconds[part] for part in ("parse", "build")) > 0


@pytest.mark.parametrize("version_compatible", [False, True])
def test_full_tensorrt_is_read_back_by_its_inspector(
    machine: Any, tiny_fp16: Path, plan: Path, version_compatible: bool
) -> None:
    options = BuildOptions("tensorrt", "fp16", version_compatible=version_compatible)
    toolchain, size, result = answers(options, tiny_fp16, plan)
    assert toolchain == Toolchain("10.3.0.26", "First GPU", "8.6")
    data = plan.read_bytes()
    assert (size, result.size, result.sha256) == (len(data), len(data), hashlib.sha256(data).hexdigest())
    assert sniff(data).flavour == "tensorrt"
    assert result.precision.source == "the engine inspector"
    assert {conv.name: conv.precision for conv in result.precision.convolutions} == result.asked
    (runtime,) = machine.runtimes
    assert runtime.engine_host_code_allowed is version_compatible
    ((_, config),) = machine.built
    assert ("VERSION_COMPATIBLE" in config.flags) is version_compatible


def test_an_engine_without_its_weights_is_not_loaded_to_be_read(machine: Any, tiny_fp16: Path, plan: Path) -> None:
    *_, result = answers(BuildOptions("tensorrt", "fp16", strip_weights=True), tiny_fp16, plan)
    assert result.precision == EnginePrecision()
    assert machine.runtimes == []


@pytest.mark.parametrize("machine", [{"loads": False, "says": "Error Code 6: too old"}], indirect=True)
def test_an_engine_that_does_not_load_where_it_was_built_is_an_error(machine: Any, tiny_fp16: Path, plan: Path) -> None:
    with pytest.raises(BackendError) as caught:
        answers(BuildOptions("tensorrt", "fp16"), tiny_fp16, plan)
    assert (caught.value.subject, "too old" in caught.value.why) == ("engine", True)


@pytest.mark.parametrize("machine", [{"has_memory": False}], indirect=True)
def test_memory_that_runs_out_is_exit_6(machine: Any, tiny_fp16: Path, plan: Path) -> None:
    with pytest.raises(ResourceError) as caught:
        answers(BuildOptions("tensorrt", "fp16"), tiny_fp16, plan)
    assert (caught.value.subject, caught.value.exit_code) == ("TensorRT", 6)
    assert not plan.exists()


def test_a_file_that_exists_is_not_replaced(machine: Any, tiny_fp16: Path, plan: Path) -> None:
    plan.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        answers(BuildOptions("tensorrt", "fp16"), tiny_fp16, plan)
    assert plan.read_bytes() == b"mine"


def test_options_are_checked_before_the_files_are_known(machine: Any) -> None:
    with pytest.raises(DeviceError) as caught:
        next(main(iter([to_plain(BuildOptions("tensorrt", "fp16", dla=0))])))
    assert caught.value.subject == "--dla=0"


@pytest.mark.parametrize(("others", "is_tried"), [(None, True), ("tensorrt_rtx", False)])
def test_the_only_flavour_is_imported_before_the_options_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: str | None, is_tried: bool
) -> None:
    """It may fail then: the options may ask for another, and the error shows when this one is used."""
    for name in filter(None, ("tensorrt", others)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("import sys; sys.imported_by_a_test.append(__name__); 1 / 0")
    tried: list[str] = []
    monkeypatch.setattr(sys, "imported_by_a_test", tried, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    if others is None:
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert list(main(iter([]))) == []
    assert tried == (["tensorrt"] if is_tried else [])
