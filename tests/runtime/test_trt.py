"""The flavours of TensorRT: found by name, judged by their classes, heard through one logger."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from densenet_deploy.errors import BackendError, MissingPackageError, UnknownNameError
from densenet_deploy.packages import is_installed
from densenet_deploy.runtime.trt import Features, TensorRTLog, load_tensorrt, readable
from tests.runtime.simulated_tensorrt import FULL, RTX, simulated_gpu
from tests.runtime.simulated_tensorrt.cuda import SimulatedCuda
from tests.runtime.simulated_tensorrt.tensorrt import Behaviour, ILogger, Severity, simulated_module


@contextlib.contextmanager
def found_as(name: str, module: ModuleType | None) -> Iterator[None]:
    """Let `import name` find `module`, or nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, module)
        load_tensorrt.cache_clear()
        yield
        load_tensorrt.cache_clear()


@pytest.mark.parametrize(("behaviour", "name"), [(FULL, "tensorrt"), (RTX, "tensorrt_rtx")])
def test_a_flavour_is_a_module_which_is_loaded_once(behaviour: Behaviour, name: str) -> None:
    with simulated_gpu(behaviour):
        trt = load_tensorrt(behaviour.flavour)
        assert trt.module is sys.modules[name]
        assert (trt.flavour, trt.version) == (behaviour.flavour, ".".join(map(str, behaviour.version)))
        assert trt.features == Features.of(trt.module)
        assert load_tensorrt(behaviour.flavour) is trt
        load_tensorrt.cache_clear()
        assert load_tensorrt(behaviour.flavour).log is trt.log, "TensorRT keeps its first logger"


def test_an_unknown_flavour_is_named() -> None:
    with pytest.raises(UnknownNameError) as caught:
        load_tensorrt("rtxx")
    assert (caught.value.subject, caught.value.why) == ("rtxx", "unknown flavour")


@pytest.mark.parametrize(
    ("flavour", "module", "extra"), [("tensorrt", "tensorrt", "tensorrt"), ("rtx", "tensorrt_rtx", "tensorrt-rtx")]
)
def test_a_flavour_that_is_not_installed_names_its_extra(flavour: str, module: str, extra: str) -> None:
    with found_as(module, None):
        assert not is_installed(module)
        with pytest.raises(MissingPackageError) as caught:
            load_tensorrt(flavour)
    assert caught.value.subject == module
    assert caught.value.fix.endswith(f"--extra {extra}")


def test_a_module_that_cannot_be_imported_says_why_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    load_tensorrt.cache_clear()
    with pytest.raises(BackendError) as caught:
        load_tensorrt("tensorrt")
    assert caught.value.subject == "tensorrt"
    assert caught.value.why.endswith("libnvinfer.so.10: cannot open")


# Features

WHERE = {
    "strong_typing": "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "weak_typing": "BuilderFlag.FP16",
    "compute_capabilities": "IBuilderConfig.set_compute_capability",
    "same_compute_capability": "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY",
    "runtime_config": "ICudaEngine.create_runtime_config",
    "runtime_cache": "IRuntimeCache",
    "graph_strategy": "CudaGraphStrategy",
    "preflight": "Runtime.get_engine_validity",
    "device_memory_v2": "ICudaEngine.device_memory_size_v2",
    "capturable_query": "IExecutionContext.is_stream_capturable",
}


@pytest.mark.parametrize("feature", [None, *WHERE])
def test_a_module_has_the_features_whose_names_its_classes_have(feature: str | None) -> None:
    classes = {place.partition(".")[0] for place in WHERE.values() if "." in place}
    module = SimpleNamespace(**{name: SimpleNamespace() for name in classes})
    if feature is not None:
        owner, _, name = WHERE[feature].rpartition(".")
        setattr(getattr(module, owner) if owner else module, name, object())
    assert dataclasses.asdict(Features.of(module)) == {name: name == feature for name in WHERE}


# The log


@pytest.fixture
def log() -> TensorRTLog:
    return TensorRTLog(simulated_module(SimulatedCuda(), FULL))


@pytest.mark.parametrize(
    ("severity", "level", "kept"),
    [
        ("INTERNAL_ERROR", logging.DEBUG, True),
        ("ERROR", logging.DEBUG, True),
        ("WARNING", logging.WARNING, False),
        ("INFO", logging.INFO, False),
        ("VERBOSE", logging.DEBUG, False),
    ],
)
def test_errors_are_kept_for_who_reports_them_and_others_are_logged(
    log: TensorRTLog, caplog: pytest.LogCaptureFixture, severity: str, level: int, kept: bool
) -> None:
    caplog.set_level(logging.DEBUG, "densenet_deploy")
    log.write(severity, "IBuilder::build: Error Code 4: 100% of it (No profile. In validate at /src/a.cpp:40)")
    assert [(record.levelno, record.name) for record in caplog.records] == [(level, "densenet_deploy.runtime.trt")]
    assert "100% of it" in caplog.records[0].getMessage()
    assert caplog.records[0].getMessage().endswith("a.cpp:40)")
    assert log.take_errors() == ("100% of it (No profile)",) * kept
    assert log.take_errors() == ()


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("catchCudaError: unspecified", False),
        ("CUDA initialization failure with error: cudaError 35", False),
        ("CUDA driver version is insufficient for CUDA runtime version", False),
        ("cudaError 350", True),
    ],
)
def test_that_there_is_no_gpu_is_no_reason(log: TensorRTLog, message: str, kept: bool) -> None:
    log.write("ERROR", "a reason")
    log.write("ERROR", message)
    log.write("WARNING", message)
    assert log.last_error() == (message if kept else "a reason")


def test_the_last_error_is_taken_with_all_before_it(log: TensorRTLog) -> None:
    for number in range(3):
        log.write("ERROR", f"error {number}")
    assert log.last_error() == "error 2"
    assert log.last_error() == "TensorRT gave no reason"


def test_the_last_50_errors_are_kept(log: TensorRTLog) -> None:
    for number in range(60):
        log.write("ERROR", f"error {number}")
    assert log.take_errors() == tuple(f"error {number}" for number in range(10, 60))


@pytest.mark.parametrize(("level", "heard"), [(logging.INFO, {"INFO", "VERBOSE"}), (logging.WARNING, set())])
def test_lines_that_nobody_reads_are_dropped_at_the_door(
    caplog: pytest.LogCaptureFixture, level: int, heard: set[str]
) -> None:
    caplog.set_level(level, "densenet_deploy.runtime.trt")
    received: list[tuple[str, str]] = []

    class Recording(TensorRTLog):
        def write(self, severity: str, message: str) -> None:
            received.append((severity, message))

    native = Recording(simulated_module(SimulatedCuda(), FULL)).native
    for severity in Severity:
        native.log(severity, "text")
    always = {"INTERNAL_ERROR", "ERROR", "WARNING"}
    assert received == [(severity.name, "text") for severity in Severity if severity.name in heard | always]


def test_the_native_logger_is_constructed_as_the_binding_demands(log: TensorRTLog) -> None:
    module = simulated_module(SimulatedCuda(), FULL)
    assert isinstance(log.native, ILogger)
    assert module.Runtime(log.native).logger is log.native


def test_a_module_without_severities_logs_all_lines() -> None:
    class Bare:
        pass

    module: Any = SimpleNamespace(ILogger=Bare)
    log = TensorRTLog(module)
    log.native.log(Severity.ERROR, "a reason")
    assert log.last_error() == "a reason"


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
