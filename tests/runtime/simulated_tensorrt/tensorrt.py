"""The runtime half of TensorRT's Python module, with ONNX Runtime inside, refusing what the real one refuses.

Where the real library answers None or False and logs a line, so does this one. Where the real library's behavior is
undefined (two threads in one context, unsynchronized reuse, a name that does not exist), this one raises an
`UndefinedBehaviorError`, which nothing in the product catches.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np

from densenet_deploy.runtime.engine_files import sniff
from tests.runtime.plans import plan_bytes
from tests.runtime.simulated_tensorrt.cuda import CudaError, SimulatedCuda


class UndefinedBehaviorError(AssertionError):
    """The real library would do anything at all here."""


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    BF16 = 7
    INT8 = 2
    INT32 = 3
    INT64 = 8
    BOOL = 4
    UINT8 = 5


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


_NUMPY = {
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.INT8: np.int8,
    DataType.INT32: np.int32,
    DataType.INT64: np.int64,
    DataType.BOOL: np.bool_,
    DataType.UINT8: np.uint8,
}
_ONNX = {"tensor(float)": DataType.FLOAT, "tensor(float16)": DataType.HALF, "tensor(int64)": DataType.INT64}


def simulated_plan(onnx: bytes, profiles: tuple[tuple[int, int, int], ...] = ((1, 2, 8),), **header: Any) -> bytes:
    """A plan that holds an ONNX model and the batches (min, opt, max) of its profiles."""
    facts = json.dumps({"profiles": profiles}).encode()
    return plan_bytes(body=len(facts).to_bytes(4, "little") + facts + onnx, **header)


@dataclass(frozen=True)
class Behaviour:
    """How this TensorRT differs from the newest RTX.

    Attributes:
        flavour, version: `tensorrt` and `rtx` differ in what classes they have.
        has_runtime_config: from 10.11.
        has_runtime_cache, has_graph_strategy: those of `rtx` do, which None stands for.
        capturable: whether a CUDA graph can be recorded of an execution.
    """

    flavour: str = "rtx"
    version: tuple[int, int, int, int] = (1, 7, 1, 116)
    has_runtime_config: bool = True
    capturable: bool = True
    has_runtime_cache: bool | None = None
    has_graph_strategy: bool | None = None

    @property
    def caches(self) -> bool:
        return self.flavour == "rtx" if self.has_runtime_cache is None else self.has_runtime_cache

    @property
    def has_strategy(self) -> bool:
        return self.flavour == "rtx" if self.has_graph_strategy is None else self.has_graph_strategy


def simulated_module(cuda: SimulatedCuda, behaviour: Behaviour) -> ModuleType:
    """Return the module that `import tensorrt_rtx` or `import tensorrt` then gives."""
    module = ModuleType("tensorrt_rtx" if behaviour.flavour == "rtx" else "tensorrt")
    module.__spec__ = ModuleSpec(module.__name__, None)
    module.__version__ = ".".join(map(str, behaviour.version))
    is_rtx = behaviour.flavour == "rtx"
    names = {
        "ILogger": ILogger,
        "TensorIOMode": TensorIOMode,
        "DataType": DataType,
        "nptype": nptype,
        "Runtime": type("Runtime", (_Runtime,), {"cuda": cuda, "behaviour": behaviour}),
        "ICudaEngine": type("ICudaEngine", (_Engine,), {}),
        "IExecutionContext": type("IExecutionContext", (_Context,), {}),
        "NetworkDefinitionCreationFlag": type("NetworkDefinitionCreationFlag", (), {"STRONGLY_TYPED": 0}),
        "BuilderFlag": type("BuilderFlag", (), {}),
        "IBuilderConfig": type("IBuilderConfig", (), {}),
        "HardwareCompatibilityLevel": type("HardwareCompatibilityLevel", (), {}),
    }
    for name, value in names.items():
        setattr(module, name, value)
    if behaviour.has_runtime_config:
        module.ICudaEngine.create_runtime_config = _create_runtime_config
    if behaviour.caches:
        module.IRuntimeCache = _RuntimeCache
    if behaviour.has_strategy:
        module.CudaGraphStrategy = CudaGraphStrategy
    if is_rtx:
        module.IExecutionContext.is_stream_capturable = _is_stream_capturable
    module.Runtime.module = module
    return module


def nptype(kind: DataType) -> type:
    """As in TensorRT: a TypeError where numpy has no such type."""
    if kind not in _NUMPY:
        raise TypeError(f"Could not resolve TensorRT datatype to an equivalent numpy datatype: {kind}")
    return _NUMPY[kind]


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        self._constructed = True

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class _Runtime:
    cuda: SimulatedCuda
    behaviour: Behaviour
    module: ModuleType

    def __init__(self, logger: ILogger) -> None:
        if not getattr(logger, "_constructed", False):
            raise UndefinedBehaviorError("the logger's constructor did not run")
        self._logger = logger
        self.engine_host_code_allowed = False
        self.DLA_core = -1
        self.cuda.runtimes.append(self)

    def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
        header = sniff(bytes(plan))
        if header is None or header.size != len(plan) or header.flavour != self.behaviour.flavour:
            return self.fail("IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magicTag or size differs)")
        if header.version != ".".join(map(str, self.behaviour.version)):
            return self.fail("IRuntime::deserializeCudaEngine: Error Code 6: The engine plan file is not compatible")
        capability = ".".join(map(str, self.cuda.machine.compute_capability))
        if header.flavour == "rtx" and not header.supports(capability):
            return self.fail(f"The engine cannot run on this GPU, which has compute capability {capability}")
        if not self.cuda.machine.has_driver:
            return self.fail("Error Code 1: Cuda Runtime (cudaError 35)")
        return self.module.ICudaEngine(self, bytes(plan)[36:])

    def fail(self, message: str) -> None:
        self._logger.log(Severity.ERROR, message)

    @property
    def logger(self) -> ILogger:
        return self._logger


class _Engine:
    def __init__(self, runtime: _Runtime, body: bytes) -> None:
        import onnxruntime

        length = int.from_bytes(body[:4], "little")
        facts = json.loads(body[4 : 4 + length])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.runtime = runtime
        self.session = onnxruntime.InferenceSession(body[4 + length :], options, ["CPUExecutionProvider"])
        self.nodes = {node.name: node for node in (*self.session.get_inputs(), *self.session.get_outputs())}
        self._names = list(self.nodes)
        self._inputs = {node.name for node in self.session.get_inputs()}
        self.profiles = [tuple(profile) for profile in facts["profiles"]]
        self.device = runtime.cuda.current_device
        self.contexts = 0  # made so far

    @property
    def num_io_tensors(self) -> int:
        return len(self._names)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if self._known(name).name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return _ONNX[self._known(name).type]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = -1 if self.is_dynamic else self.profiles[0][0]
        return (batch, *(size if isinstance(size, int) else -1 for size in self._known(name).shape[1:]))

    @property
    def is_dynamic(self) -> bool:
        return len({batch for profile in self.profiles for batch in profile}) > 1

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        if self.get_tensor_mode(name) is not TensorIOMode.INPUT:
            raise UndefinedBehaviorError(f"{name} is not an input and has no profile")
        if not 0 <= profile < len(self.profiles):
            raise UndefinedBehaviorError(f"there is no profile {profile}")
        rest = self.get_tensor_shape(name)[1:]
        return [(batch, *rest) for batch in self.profiles[profile]]

    def create_execution_context(self, runtime_config: _RuntimeConfig | None = None) -> _Context | None:
        if self.runtime.cuda.current_device != self.device:
            raise UndefinedBehaviorError("the thread's device is not the engine's")
        if "create_execution_context" in self.runtime.cuda.fail_next:
            del self.runtime.cuda.fail_next["create_execution_context"]
            return self.runtime.fail("Error Code 2: OutOfMemory (Requested size was 1000 bytes.)")
        return self.runtime.module.IExecutionContext(self, runtime_config)

    def _known(self, name: str) -> Any:
        if name not in self.nodes:
            raise UndefinedBehaviorError(f"there is no tensor {name!r}")
        return self.nodes[name]


def _create_runtime_config(self: _Engine) -> _RuntimeConfig:
    return _RuntimeConfig(self)


class _RuntimeConfig:
    def __init__(self, engine: _Engine) -> None:
        self.cache: _RuntimeCache | None = None
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        engine.runtime.cuda.calls.append("create_runtime_config")
        if engine.runtime.behaviour.caches:
            self.create_runtime_cache = _RuntimeCache
            self.set_runtime_cache = self._set_runtime_cache

    def _set_runtime_cache(self, cache: _RuntimeCache) -> bool:
        self.cache = cache
        return True


class _RuntimeCache:
    """Kernels compiled for this GPU: here their names."""

    _MAGIC = "kernels: "

    def __init__(self) -> None:
        self.kernels: list[str] = []

    def deserialize(self, blob: bytes) -> bool:
        text = bytes(blob).decode(errors="replace")
        if not text.startswith(self._MAGIC):
            return False
        self.kernels = text.removeprefix(self._MAGIC).split(", ")
        return True

    def serialize(self) -> bytes:
        return (self._MAGIC + ", ".join(self.kernels)).encode()


class _Context:
    def __init__(self, engine: _Engine, config: _RuntimeConfig | None) -> None:
        self.engine = engine
        self._cuda = engine.runtime.cuda
        self._strategy = config.cuda_graph_strategy if config else CudaGraphStrategy.DISABLED
        self._cache = config.cache if config else None
        self._compile("any batch")
        self._busy = threading.Lock()
        self._setting_up: int | None = None  # the thread that has begun to set shapes or addresses
        self._profile = 0 if engine.contexts == 0 or not engine.is_dynamic else -1  # others have to choose theirs
        engine.contexts += 1
        self._profile_stream: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._state = 0  # counts changes

    def _compile(self, what: str) -> None:
        """What TensorRT-RTX does unless the cache has it: once for the engine, and again for batches as they come."""
        if self._cache is not None and what not in self._cache.kernels:
            self._cache.kernels.append(what)
            self._cuda.calls.append("compile")

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        with self._alone(changes=True):
            if not 0 <= profile < len(self.engine.profiles):
                raise RuntimeError(f"IExecutionContext::setOptimizationProfileAsync: index {profile} out of range")
            self._profile, self._profile_stream = profile, stream
            self._cuda.queue(stream, lambda: None)
            self._shapes.clear()
            return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        with self._alone(changes=True):
            if self.engine.get_tensor_mode(name) is not TensorIOMode.INPUT:
                return self._refuse(f"setInputShape: {name} is not an input")
            if self._profile < 0:
                return self._refuse("setInputShape: no optimization profile is selected")
            low, _, high = self.engine.get_tensor_profile_shape(name, self._profile)
            fits = len(shape) == len(low) and low[0] <= shape[0] <= high[0] and tuple(shape[1:]) == low[1:]
            if not fits:
                return self._refuse(f"setInputShape: {shape} is outside the profile [{low}, {high}]")
            self._shapes[name] = tuple(shape)
            return True

    def infer_shapes(self) -> list[str]:
        with self._alone():
            return [name for name in self.engine._inputs if -1 in self._shape_of(name)]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        with self._alone():
            return self._shape_of(name)

    def set_tensor_address(self, name: str, address: int) -> bool:
        with self._alone(changes=True):
            self.engine._known(name)
            if address % 256:
                return self._refuse(f"setTensorAddress: {name} is not aligned")
            self._addresses[name] = address
            return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        with self._alone():
            self._setting_up = None
            return self._enqueue(stream_handle)

    def _enqueue(self, stream: int) -> bool:
        missing = [name for name in self.engine.nodes if name not in self._addresses]
        if missing:
            return self._refuse(f"enqueueV3: no address for {missing[0]}")
        if any(-1 in self._shape_of(name) for name in self.engine._inputs):
            return self._refuse("enqueueV3: not all input shapes are set")
        if self._profile_stream not in (None, stream):
            raise UndefinedBehaviorError("the profile was switched on another stream, which was not waited for")
        if self._cuda.current_device != self.engine.device:
            return self._refuse("enqueueV3: Error Code 1: Cuda Runtime (invalid resource handle)")
        recording = self._cuda.stream(stream).recorder is not None
        if recording and (
            not self.engine.runtime.behaviour.capturable or self._strategy is not CudaGraphStrategy.DISABLED
        ):
            self._cuda.stream(stream).spoiled = True
            return self._refuse("enqueueV3: operation not permitted when stream is capturing")
        shapes = {name: self._shape_of(name) for name in self.engine.nodes}
        addresses = dict(self._addresses)
        for name in self.engine.nodes:
            try:
                self._view(name, addresses, shapes)
            except CudaError as failure:
                raise UndefinedBehaviorError(f"the memory of {name} is not live memory of its size") from failure
        self._compile(f"batch {next(iter(shapes.values()))[0]}")
        state = self._state if recording else None
        work = functools.partial(self._compute, addresses, shapes, state)
        self._cuda.queue(stream, work)
        return True

    def _compute(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]], recorded: int | None) -> None:
        if recorded not in (None, self._state):
            raise UndefinedBehaviorError("the context was changed since the graph was recorded from it")
        inputs = {name: self._view(name, addresses, shapes).copy() for name in self.engine._inputs}
        names = [name for name in self.engine.nodes if name not in inputs]
        for name, result in zip(names, self.engine.session.run(names, inputs), strict=True):
            self._view(name, addresses, shapes)[...] = result

    def _view(self, name: str, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> np.ndarray:
        dtype = np.dtype(nptype(self.engine.get_tensor_dtype(name)))
        size = int(np.prod(shapes[name])) * dtype.itemsize
        return self._cuda.device_view(addresses[name], size).view(dtype).reshape(shapes[name])

    def _is_capturable(self) -> bool:
        return self.engine.runtime.behaviour.capturable and self._strategy is CudaGraphStrategy.DISABLED

    def _shape_of(self, name: str) -> tuple[int, ...]:
        shape = self.engine.get_tensor_shape(name)
        if -1 not in shape:
            return shape
        if name in self._shapes:
            return self._shapes[name]
        batch = next(iter(self._shapes.values()), (-1,))[0]
        return (batch, *shape[1:]) if self.engine.get_tensor_mode(name) is TensorIOMode.OUTPUT else shape

    def _refuse(self, message: str) -> bool:
        self.engine.runtime.fail(f"IExecutionContext::{message}")
        return False

    @contextlib.contextmanager
    def _alone(self, *, changes: bool = False) -> Iterator[None]:
        """One thread at a time, from the first setting to the execution."""
        if not self._busy.acquire(blocking=False):
            raise UndefinedBehaviorError("two threads use one execution context")
        try:
            me = threading.get_ident()
            if self._setting_up not in (None, me):
                raise UndefinedBehaviorError("another thread had begun to set this execution context up")
            if changes:
                self._setting_up = me
                self._state += 1
            yield
        finally:
            self._busy.release()


def _is_stream_capturable(self: _Context, stream: int) -> bool:
    return self._is_capturable()
