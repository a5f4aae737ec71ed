"""The flavours of TensorRT: found by name, judged by their classes, heard through one logger."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from densenet_deploy.errors import BackendError, MissingPackageError, UnknownNameError
from densenet_deploy.runtime import trt as trt_module
from densenet_deploy.runtime.trt import load_tensorrt, readable


def test_unknown_and_missing_flavours(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError) as caught:
        load_tensorrt("rtxx")
    assert caught.value.subject == "rtxx"
    monkeypatch.setattr(trt_module, "is_installed", lambda name: False)
    load_tensorrt.cache_clear()
    with pytest.raises(MissingPackageError) as caught:
        load_tensorrt("rtx")
    assert caught.value.subject == "tensorrt_rtx"


def test_a_broken_install_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken_trt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(trt_module.MODULES, "tensorrt", "broken_trt")
    load_tensorrt.cache_clear()
    with pytest.raises(BackendError) as caught:
        load_tensorrt("tensorrt")
    assert caught.value.subject == "broken_trt"


def test_rtx_features_are_found_on_classes() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    load_tensorrt.cache_clear()
    features = load_tensorrt("rtx").features
    assert features.strong_typing
    assert not features.weak_typing
    assert features.compute_capabilities
    assert features.runtime_cache
    assert features.preflight


def test_errors_are_collected_and_noise_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    log = load_tensorrt("rtx").log
    log.take_errors()
    with caplog.at_level(logging.INFO, logger="densenet_deploy"):
        log.write("ERROR", "IBuilder::build: Error Code 4: API Usage Error (No profile. In validate at /src/a.cpp:40)")
        log.write("INTERNAL_ERROR", "catchCudaError: cudaError 35")
        log.write("WARNING", "careful")
    assert log.take_errors() == ("API Usage Error (No profile)",)
    assert log.take_errors() == ()
    assert [record.message for record in caplog.records] == ["careful"]
    assert log.last_error() == "TensorRT gave no reason"


def test_the_builder_speaks_through_the_one_logger() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    trt = load_tensorrt("rtx")
    assert load_tensorrt("rtx") is trt
    builder = trt.module.Builder(trt.log.native)
    network, config = builder.create_network(0), builder.create_builder_config()
    network.add_input("input", trt.module.float32, (-1, 3, 8, 8))
    trt.log.take_errors()
    assert builder.build_serialized_network(network, config) is None
    assert trt.log.take_errors()
    assert "tensorrt_rtx" in sys.modules


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("IRuntime::load: Error Code 1: Serialization (magic. In f at b.cpp:1)", "Serialization (magic)"),
        ("Error Code 1: Myelin ([a.cpp:op():1] CHECK(x) failed)", "Myelin ([a.cpp:op():1] CHECK(x) failed)"),
        ("two\nlines", "two lines"),
    ],
)
def test_readable(line: str, wanted: str) -> None:
    assert readable(line) == wanted
