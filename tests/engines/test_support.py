"""What a TensorRT cannot give is said before anything is built: RTX for real, full TensorRT by its simulation."""

from __future__ import annotations

import enum

import pytest

from densenet_deploy.engines import support
from densenet_deploy.engines.options import BuildOptions
from densenet_deploy.engines.support import choose_flavour, require_supported
from densenet_deploy.errors import BackendError, DeviceError
from densenet_deploy.runtime.nvidia import Gpu
from densenet_deploy.runtime.trt import Features, TensorRT, TensorRTLog, load_tensorrt
from tests.engines.simulated_builder import simulated_tensorrt

ORIN = Gpu(0, "Orin", "8.7")


def full(**how) -> TensorRT:
    module = simulated_tensorrt(**how)
    return TensorRT("tensorrt", module, Features.of(module), TensorRTLog(module))


@pytest.fixture
def rtx() -> TensorRT:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    return load_tensorrt("rtx")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"hardware": "ampere-plus"}, "--hardware-compatibility"),
        ({"version_compatible": True}, "--version-compatible"),
        ({"timing_cache": "a.cache"}, "--timing-cache"),
        ({"dla": 0}, "--dla"),
        ({"refit": True}, "--refit"),
        ({"strip_weights": True}, "--strip-weights"),
        ({"targets": ("8.6", "9.0")}, "--target=9.0"),
        ({"targets": ("8.7",)}, "--flavour tensorrt"),
    ],
)
def test_rtx_says_what_it_lacks(rtx: TensorRT, change, word) -> None:
    with pytest.raises(BackendError) as caught:
        require_supported(rtx, BuildOptions("rtx", "fp16", **change), ())
    assert word in str(caught.value)
    assert caught.value.exit_code == 5


def test_rtx_takes_the_rest_without_a_gpu(rtx: TensorRT) -> None:
    require_supported(rtx, BuildOptions("rtx", "fp16", targets=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")), ())
    require_supported(rtx, BuildOptions("rtx", "fp16", refit=True), (Gpu(0, "RTX 4090", "8.9"),))


def test_full_tensorrt_needs_a_gpu_and_takes_no_targets() -> None:
    with pytest.raises(DeviceError, match="--flavour rtx"):
        require_supported(full(), BuildOptions("tensorrt", "fp16"), ())
    with pytest.raises(BackendError, match="--hardware-compatibility"):
        require_supported(full(), BuildOptions("tensorrt", "fp16", targets=("8.6",)), (ORIN,))


def test_full_tensorrt_is_asked_for_what_came_later() -> None:
    with pytest.raises(BackendError, match="ampere-plus"):
        require_supported(full(), BuildOptions("tensorrt", "fp16", hardware="same-compute-capability"), (ORIN,))
    require_supported(full(), BuildOptions("tensorrt", "fp16", hardware="ampere-plus"), (ORIN,))


def test_a_dla_must_be_there() -> None:
    with pytest.raises(DeviceError, match="2 DLA cores"):
        require_supported(full(dla_cores=2), BuildOptions("tensorrt", "int8", dla=2), (ORIN,))
    require_supported(full(dla_cores=2), BuildOptions("tensorrt", "int8", dla=1), (ORIN,))


def test_a_flag_that_a_release_lacks_is_named() -> None:
    trt = full()
    trt.module.BuilderFlag = enum.IntEnum("BuilderFlag", ["TF32", "REFIT"])
    with pytest.raises(BackendError, match=r"BuilderFlag\.STRIP_PLAN: is not in tensorrt 10\.3"):
        require_supported(trt, BuildOptions("tensorrt", "fp16", strip_weights=True), (ORIN,))
    require_supported(trt, BuildOptions("tensorrt", "fp16", refit=True), (ORIN,))


def test_auto_is_rtx_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "find_gpus", lambda: ())
    assert choose_flavour("auto") == "rtx"
    monkeypatch.setattr(support, "find_gpus", lambda: ("one",))
    monkeypatch.setattr(support, "is_installed", lambda name: True)
    assert choose_flavour("auto") == "tensorrt"
    monkeypatch.setattr(support, "is_installed", lambda name: False)
    assert choose_flavour("auto") == "rtx"
    assert choose_flavour("tensorrt") == "tensorrt"
