"""Cases 22 to 27: engines, on a simulated GPU where one is needed, and built by the real TensorRT-RTX.

What a runner itself says of them is in `tests/runtime/backends/test_tensorrt.py`, of files alone in
`tests/runtime/test_engine_files.py`.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from densenet_deploy.packages import is_installed
from densenet_deploy.runtime.nvidia import find_gpus
from densenet_deploy.runtime.sidecar import sidecar_path
from tests.faults.harness import Commands
from tests.runtime.simulated_tensorrt import FULL, RTX, simulated_gpu, write_simulated_engine
from tests.runtime.simulated_tensorrt.cuda import SimulatedCuda, SimulatedMachine
from tests.runtime.simulated_tensorrt.tensorrt import Behaviour

OLDER = dataclasses.replace(RTX, version=(1, 6, 1, 120))


@pytest.fixture
def gpu() -> Iterator[SimulatedCuda]:
    with simulated_gpu(RTX) as cuda:
        yield cuda


@pytest.fixture
def engine(commands: Commands, tiny_onnx: Path) -> Path:
    return write_simulated_engine(commands.folder, tiny_onnx, RTX)


def test_22_an_engine_of_another_version_names_both(
    commands: Commands, gpu: SimulatedCuda, tiny_onnx: Path, image: Path
) -> None:
    engine = write_simulated_engine(commands.folder, tiny_onnx, OLDER)
    commands.refused("run", engine, image, code=5, says=("rtx 1.6.1.120", "1.7.1.116", "build-trt"))
    assert gpu.calls == []


def test_22_an_engine_of_another_flavour_names_both(
    commands: Commands, gpu: SimulatedCuda, tiny_onnx: Path, image: Path
) -> None:
    engine = write_simulated_engine(commands.folder, tiny_onnx, FULL)
    says = ("tensorrt 10.3.0.26", "rtx", "build-trt")
    commands.refused("run", engine, image, "--backend", "rtx", code=5, says=says)


def test_23_an_engine_for_another_compute_capability(commands: Commands, engine: Path, image: Path) -> None:
    with simulated_gpu(RTX, SimulatedMachine(compute_capability=(9, 0))):
        commands.refused("run", engine, image, code=5, says=(engine.name, "9.0"))


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "without its last byte": lambda data: data[:-1],
    "one byte changed": lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("trust", [(), ("--trust-engine",)], ids=["", "trusted"])
def test_24_a_changed_engine_never_reaches_tensorrt(
    commands: Commands, gpu: SimulatedCuda, engine: Path, image: Path, change: str, trust: tuple[str, ...]
) -> None:
    engine.write_bytes(CHANGES[change](engine.read_bytes()))
    for command in (("run", engine, image, *trust), ("inspect", engine)):
        commands.refused(*command, says=(engine.name, "hash"))
    assert gpu.calls == []


def test_25_an_engine_without_sidecar_needs_trust(
    commands: Commands, gpu: SimulatedCuda, engine: Path, image: Path
) -> None:
    sidecar_path(engine).unlink()
    commands.refused("run", engine, image, says=(engine.name, "--trust-engine"))
    assert gpu.calls == []
    assert commands.answer("run", engine, image, "--trust-engine")["device"] == "cuda:0"


def test_26_no_driver(commands: Commands, engine: Path, image: Path) -> None:
    with simulated_gpu(RTX, SimulatedMachine(has_driver=False)):
        commands.refused("run", engine, image, code=5, says="driver")


@pytest.mark.skipif(bool(find_gpus()), reason="a GPU answers here")
@pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="TensorRT-RTX is not installed")
@pytest.mark.parametrize("flavour", [RTX, FULL], ids=["rtx", "tensorrt"])
def test_26_no_gpu_on_this_very_machine(commands: Commands, tiny_onnx: Path, image: Path, flavour: Behaviour) -> None:
    engine = write_simulated_engine(commands.folder, tiny_onnx, flavour)
    commands.refused("run", engine, image, code=5)


@pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="TensorRT-RTX is not installed")
def test_27_memory_that_runs_out_while_building_keeps_the_onnx(commands: Commands, digits_onnx: Path) -> None:
    """A workspace of one MiB is less than the first convolution of 64 images wants."""
    model = Path(shutil.copy(digits_onnx, commands.folder / "digits.onnx"))
    words = ("build-trt", model, "--flavour", "rtx", "--workspace", "1", "--max-batch", "64")
    commands.refused(*words, "--fp32", code=6, says="--workspace")
    assert [path.name for path in commands.folder.iterdir()] == ["digits.onnx"]
