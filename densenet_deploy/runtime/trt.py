"""Both flavours of TensorRT behind one interface: which is installed, what it supports, and what it logged.

`tensorrt` is full TensorRT, 10.x and 11.x, for Jetson, data center and desktop GPUs; `rtx` is TensorRT-RTX, for desktop
GPUs. Their Python modules are similar and differ in details that change between releases. So what a module supports is
read from its classes, which works without a GPU, and never from its version number.

TensorRT keeps the first logger of a process and ignores all later ones, so there is one here, created when the module
is imported. Methods of TensorRT return None or False instead of raising: the reason is a line in the log. Those lines
are collected, without the messages about a missing GPU that follow each of them on a machine without one.

    trt = load_tensorrt("rtx")
    plan = trt.module.Builder(trt.log.native).build_serialized_network(network, config)
    if plan is None:
        raise BackendError("plan", trt.log.last_error(), "...")
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import re
from collections import deque
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from densenet_deploy.errors import BackendError, MissingPackageError
from densenet_deploy.options import require_choice
from densenet_deploy.packages import is_installed

log = logging.getLogger(__name__)

FLAVOURS: Final = ("tensorrt", "rtx")
MODULES: Final = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
EXTRAS: Final = {"tensorrt": "tensorrt", "rtx": "tensorrt-rtx"}

_MOST_LINES: Final = 50
_NOISE: Final = re.compile(r"catchCudaError|cudaError 35\b|CUDA driver version is insufficient")
_CODE: Final = re.compile(r"^(?:[\w:]+: )?Error Code \d+: ")
_PLACE: Final = re.compile(r"\.? In \S+ at \S+:\d+")
_LEVELS: Final = {
    "INTERNAL_ERROR": logging.ERROR,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.INFO,
}


@dataclass(frozen=True)
class Features:
    """What a TensorRT module supports, read from its classes.

    Attributes:
        strong_typing: networks take their types from the graph; without it, precisions are builder flags.
        weak_typing: the builder flags FP16 and INT8 exist.
        compute_capabilities: the builder takes a list of GPU generations to build for, and needs no GPU.
        same_compute_capability: engines can be built that run on every GPU of the builder's compute capability.
        runtime_config, runtime_cache, graph_strategy: `create_runtime_config`, and the kernel cache and the CUDA-graph
            strategy that it takes.
        preflight: `Runtime.get_engine_validity` checks an engine by its first bytes.
        device_memory_v2: `ICudaEngine.device_memory_size_v2`.
        capturable_query: an execution context reports whether a stream can be captured.
    """

    strong_typing: bool
    weak_typing: bool
    compute_capabilities: bool
    same_compute_capability: bool
    runtime_config: bool
    runtime_cache: bool
    graph_strategy: bool
    preflight: bool
    device_memory_v2: bool
    capturable_query: bool

    @classmethod
    def of(cls, module: Any) -> Features:
        """Inspect the classes of `module`."""
        return cls(
            strong_typing=hasattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"),
            weak_typing=hasattr(module.BuilderFlag, "FP16"),
            compute_capabilities=hasattr(module.IBuilderConfig, "set_compute_capability"),
            same_compute_capability=hasattr(module.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY"),
            runtime_config=hasattr(module.ICudaEngine, "create_runtime_config"),
            runtime_cache=hasattr(module, "IRuntimeCache"),
            graph_strategy=hasattr(module, "CudaGraphStrategy"),
            preflight=hasattr(module.Runtime, "get_engine_validity"),
            device_memory_v2=hasattr(module.ICudaEngine, "device_memory_size_v2"),
            capturable_query=hasattr(module.IExecutionContext, "is_stream_capturable"),
        )


class TensorRTLog:
    """The one logger of a TensorRT module in this process: lines go to `logging`, and errors are kept for a while.

    Attributes:
        native: the object that `Builder`, `Runtime` and `OnnxParser` take.
    """

    def __init__(self, module: Any) -> None:
        self._errors: deque[str] = deque(maxlen=_MOST_LINES)  # threads may append to it and pop from it
        self.native = _native_logger(module, self)

    def write(self, severity: str, message: str) -> None:
        """Take one line, from any thread of TensorRT."""
        level = _LEVELS.get(severity, logging.DEBUG)
        if level == logging.ERROR and _NOISE.search(message):
            level = logging.DEBUG
        log.log(logging.DEBUG if level == logging.ERROR else level, "%s", message)
        if level == logging.ERROR:
            self._errors.append(readable(message))

    def take_errors(self) -> tuple[str, ...]:
        """Return the error lines since the last call, oldest first, and drop them."""
        lines: list[str] = []
        with contextlib.suppress(IndexError):
            while True:
                lines.append(self._errors.popleft())
        return tuple(lines)

    def last_error(self) -> str:
        """Drop the error lines and return the last one, which usually says why a call failed."""
        lines = self.take_errors()
        return lines[-1] if lines else "TensorRT gave no reason"


@dataclass(frozen=True)
class TensorRT:
    """An imported TensorRT module: its `flavour`, the `module`, what it supports, and its logger."""

    flavour: str
    module: Any
    features: Features
    log: TensorRTLog

    @property
    def version(self) -> str:
        return str(self.module.__version__)


@functools.cache
def load_tensorrt(flavour: str) -> TensorRT:
    """Import a flavour, once per process.

    Raises:
        UnknownNameError: if the flavour does not exist.
        MissingPackageError: if it is not installed.
        BackendError: if it is installed and cannot be imported.
    """
    name = MODULES[require_choice("flavour", flavour, FLAVOURS)]
    if not is_installed(name):
        raise MissingPackageError.of(name, EXTRAS[flavour])
    module = _imported(name, flavour)
    return TensorRT(flavour, module, Features.of(module), _log_of(module))


@functools.cache
def _log_of(module: ModuleType) -> TensorRTLog:
    """The first logger that a module got in this process, which it keeps."""
    return TensorRTLog(module)


def readable(message: str) -> str:
    """Return a log line without error codes and locations in TensorRT's source.

    >>> readable("IBuilder::build: Error Code 4: API Usage Error (No profile. In validate at /_src/network.cpp:4023)")
    'API Usage Error (No profile)'
    """
    return _PLACE.sub("", _CODE.sub("", " ".join(message.split())))


def _imported(name: str, flavour: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as exc:  # a wheel without its libraries raises OSError, RuntimeError or ImportError
        reason = str(exc).strip().partition("\n")[0]
        fix = f"reinstall the package {EXTRAS[flavour]}"
        raise BackendError(name, f"cannot be imported: {reason}", fix) from exc


def _native_logger(module: Any, receiver: TensorRTLog) -> Any:
    """Return an ILogger that forwards lines; a build logs thousands, so unused levels are dropped first."""
    severities = getattr(module.ILogger, "Severity", None)
    quiet = () if severities is None or log.isEnabledFor(logging.INFO) else ("INFO", "VERBOSE")
    dropped = frozenset(getattr(severities, name) for name in quiet)

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)  # not super(): the binding checks that its own constructor ran

        def log(self, severity: Any, message: str) -> None:
            if severity not in dropped:
                receiver.write(severity.name, message)

    return Logger()
