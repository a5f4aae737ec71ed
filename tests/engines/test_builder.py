"""The building process: its answers, its errors, and its end, whoever brings it about."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from densenet_deploy.engines import BUILD_WORKER, BUILD_WORKER_FLAGS
from densenet_deploy.engines.builder import Builder
from densenet_deploy.engines.options import BuildOptions
from densenet_deploy.errors import (
    BackendError,
    DeviceError,
    MissingPackageError,
    ModelFileError,
    ResourceError,
    install_command,
)
from densenet_deploy.packages import is_installed
from densenet_deploy.runtime.engine_files import sniff
from densenet_deploy.runtime.nvidia import find_gpus
from densenet_deploy.worker import WorkerDiedError, started_ahead

rtx = pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="TensorRT-RTX is not installed")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """Where a plan goes."""
    return tmp_path / "tiny.engine"


def children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


@rtx
def test_a_build_from_a_ready_file_loads_nothing_heavy_here(tiny_fp16: Path, tmp_path: Path) -> None:
    """Whatever the caller's process holds adds to the memory of the build."""
    script = (
        "import sys; from densenet_deploy.cli import main\n"
        "code = main(sys.argv[1:]); print(code, *sys.modules, file=sys.stderr)"
    )
    words = ["build-trt", str(tiny_fp16), "--fp16", "--flavour", "rtx", "-o", f"{tmp_path}/", "-q"]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    code, *loaded = done.stderr.split()
    assert code == "0"
    assert {"numpy", "onnx", "torch", "onnxruntime", "tensorrt", "tensorrt_rtx"}.isdisjoint(loaded)


@rtx
def test_a_build_in_another_process(tiny_fp16: Path, plan: Path) -> None:
    before = children()
    with Builder(BuildOptions("rtx", "fp16")) as builder:
        assert builder.toolchain().version.startswith("1.")
        result = builder.build(tiny_fp16, plan)
    assert children() == before
    data = plan.read_bytes()
    assert (result.sha256, result.size) == (hashlib.sha256(data).hexdigest(), len(data))
    header = sniff(data)
    assert header is not None
    assert (header.flavour, header.targets) == ("rtx", result.targets)
    assert result.precision.counts == {"fp16": len(result.asked)}
    assert set(result.seconds) == {"parse", "build"}


@rtx
def test_a_plan_that_cannot_be_written_is_an_error_of_the_system(tiny_fp16: Path, tmp_path: Path, plan: Path) -> None:
    plan.write_bytes(b"mine")
    for place, kind in ((plan, FileExistsError), (tmp_path / "missing" / "a.engine", FileNotFoundError)):
        with Builder(BuildOptions("rtx", "fp16")) as builder:
            builder.toolchain()
            with pytest.raises(kind):
                builder.build(tiny_fp16, place)
    assert plan.read_bytes() == b"mine"


@rtx
def test_a_process_started_ahead_is_the_one_that_builds(tiny_fp16: Path, plan: Path) -> None:
    before = children()
    with started_ahead(BUILD_WORKER, verbose=False, flags=BUILD_WORKER_FLAGS):
        (ahead,) = children() - before
        with Builder(BuildOptions("rtx", "fp16")) as builder:
            assert builder.pid == ahead
            builder.toolchain()
            assert builder.build(tiny_fp16, plan).size == plan.stat().st_size
        with Builder(BuildOptions("rtx", "fp16")) as another:
            assert another.pid != ahead
    assert children() == before


@rtx
def test_errors_cross_the_process_as_what_they_are(
    tmp_path: Path, plan: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "empty.onnx"
    path.write_bytes(b"")
    with Builder(BuildOptions("rtx", "fp16")) as builder:
        builder.toolchain()
        with pytest.raises(ModelFileError) as caught:
            builder.build(path, plan)
    assert caught.value.subject == str(path)
    with Builder(BuildOptions("rtx", "fp16", targets=("9.0",))) as builder, pytest.raises(BackendError) as refused:
        builder.toolchain()
    assert refused.value.subject == "--target=9.0"
    assert capfd.readouterr() == ("", ""), "what native code prints goes nowhere"


@rtx
@pytest.mark.parametrize(("number", "kind"), [(signal.SIGKILL, ResourceError), (signal.SIGSEGV, WorkerDiedError)])
def test_a_dead_builder_is_a_typed_error(tiny_fp16: Path, plan: Path, number: int, kind: type[Exception]) -> None:
    with Builder(BuildOptions("rtx", "fp16")) as builder:
        builder.toolchain()
        os.kill(builder.pid, number)
        with pytest.raises(kind):
            builder.build(tiny_fp16, plan)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Lets SIGINT raise KeyboardInterrupt, also where a shell has started the tests in the background, ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@rtx
@pytest.mark.usefixtures("interrupts")
def test_leaving_early_ends_the_build(tiny_fp16: Path, plan: Path) -> None:
    """A signal comes while the parent waits for the plan: bad-inputs 46."""
    before, start = children(), time.monotonic()
    builder = Builder(BuildOptions("rtx", "fp16"))
    builder.toolchain()
    # Twice, because Python drops what a signal raises inside a finalizer; the second is cancelled if not needed.
    timers = [threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGINT]) for seconds in (0.02, 2)]
    for timer in timers:
        timer.start()
    with pytest.raises(KeyboardInterrupt):
        _build_and_wait(builder, tiny_fp16, plan)
    timers[-1].cancel()
    assert time.monotonic() - start < 5
    assert children() == before


def _build_and_wait(builder: Builder, onnx: Path, plan: Path) -> None:
    with builder:
        builder.build(onnx, plan)
        time.sleep(5)  # should the build have been faster than the signal


@rtx
def test_a_builder_whose_parent_is_gone_ends(tiny_fp16: Path, tmp_path: Path) -> None:
    """The parent is killed while its child builds: nobody is left to build for."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal, sys, threading\n"
        "from pathlib import Path\n"
        "from densenet_deploy.engines.builder import Builder\n"
        "from densenet_deploy.engines.options import BuildOptions\n"
        "builder = Builder(BuildOptions('rtx', 'fp16', optimization_level=5))\n"
        "builder.toolchain()\n"
        "print(builder.pid, flush=True)\n"
        "threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGKILL]).start()\n"
        "builder.build(Path(sys.argv[1]), Path(sys.argv[1] + '.engine'))\n"
        "signal.pause()\n"
    )
    done = subprocess.run([sys.executable, str(script), str(tiny_fp16)], stdout=subprocess.PIPE, check=False)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and Path(f"/proc/{int(done.stdout)}").exists():
        time.sleep(0.02)
    assert not Path(f"/proc/{int(done.stdout)}/fd/0").exists()


@pytest.mark.skipif(is_installed("tensorrt"), reason="full TensorRT is installed")
def test_a_flavour_that_is_not_installed_says_how_to_get_it() -> None:
    with Builder(BuildOptions("tensorrt", "fp16")) as builder, pytest.raises(MissingPackageError) as caught:
        builder.toolchain()
    assert caught.value.fix.endswith(install_command("tensorrt"))


@pytest.mark.skipif(not is_installed("tensorrt"), reason="full TensorRT is not installed")
@pytest.mark.skipif(bool(find_gpus()), reason="a GPU is here")
def test_full_tensorrt_without_a_gpu_is_exit_5() -> None:
    with Builder(BuildOptions("tensorrt", "fp16")) as builder, pytest.raises(DeviceError):
        builder.toolchain()
