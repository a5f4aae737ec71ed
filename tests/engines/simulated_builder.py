"""The builder's side of full TensorRT 10.x, simulated: it needs a GPU, and none is here.

Flags, enumerations and return values are those of the real bindings. It refuses what they refuse (a flag that is not
set where it must be, FP16 flags on a strongly typed network, profiles out of order) and records what it was given.
"""

from __future__ import annotations

import enum
import hashlib
import json
import struct
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx

VERSION = (10, 3, 0, 26)


def simulated_tensorrt(
    *,
    strong_builds: bool = True,
    has_strong: bool = True,
    parses: bool = True,
    loads: bool = True,
    has_memory: bool = True,
    dla_cores: int = 0,
    says: str = "Error Code 1: Myelin (no)",
) -> Any:
    """Return a module that stands for TensorRT 10.3.

    Args:
        strong_builds: whether its strongly typed builder works.
        has_strong: whether it has one.
        parses: whether the parser accepts files; it gives no reason.
        loads: whether the runtime loads what was built.
        has_memory: whether memory is enough to build.
        dla_cores: how many there are.
        says: the line in the log when a build or a load fails.
    """
    flags = ["FP16", "INT8", "BF16", "TF32", "REFIT", "STRIP_PLAN", "VERSION_COMPATIBLE", "GPU_FALLBACK"]
    creation = {"EXPLICIT_BATCH": 0, **({"STRONGLY_TYPED": 1} if has_strong else {})}
    module: Any = ModuleType("tensorrt")
    names = {
        "__spec__": ModuleSpec("tensorrt", None),
        "__version__": ".".join(map(str, VERSION)),
        "ILogger": _ILogger,
        "BuilderFlag": enum.IntEnum("BuilderFlag", {name: index for index, name in enumerate(flags)}),
        "NetworkDefinitionCreationFlag": enum.IntEnum("NetworkDefinitionCreationFlag", creation),
        "HardwareCompatibilityLevel": enum.Enum("HardwareCompatibilityLevel", ["NONE", "AMPERE_PLUS"]),
        "ProfilingVerbosity": enum.Enum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "DETAILED", "NONE"]),
        "MemoryPoolType": enum.Enum("MemoryPoolType", ["WORKSPACE"]),
        "DeviceType": enum.Enum("DeviceType", ["GPU", "DLA"]),
        "LayerType": enum.Enum("LayerType", ["CONVOLUTION", "DECONVOLUTION", "DEQUANTIZE", "OTHER"]),
        "IBuilderConfig": _Config,
        "ICudaEngine": type("ICudaEngine", (), {"device_memory_size_v2": 0}),
        "IExecutionContext": type("IExecutionContext", (), {}),
        "LayerInformationFormat": enum.Enum("LayerInformationFormat", ["ONELINE", "JSON"]),
        "Runtime": type("Runtime", (_Runtime,), {"module": module, "loads": loads, "says": says}),
        "OnnxParser": type("OnnxParser", (_Parser,), {"parses": parses}),
        "built": [],
        "runtimes": [],
    }
    vars(module).update(names)
    build = {"strong_builds": strong_builds, "has_memory": has_memory, "cores": dla_cores, "says": says}
    module.Builder = lambda logger: _Builder(module, logger, **build)
    return module


class _ILogger:
    Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


class _Config:
    profiling_verbosity: Any = None
    builder_optimization_level = 3
    hardware_compatibility_level: Any = None
    default_device_type: Any = None
    DLA_core = -1
    max_aux_streams = 0

    def __init__(self) -> None:
        self.flags: set[str] = {"TF32"}
        self.profiles: list[dict[str, Any]] = []
        self.pools: dict[str, int] = {}
        self.cache: Any = None

    def set_flag(self, flag: enum.IntEnum) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: enum.IntEnum) -> None:
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.pools[pool.name] = size

    def add_optimization_profile(self, profile: _Profile) -> int:
        low, opt, high = next(iter(profile.shapes.values()))
        if not all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True)):
            return -1
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, known: bytes) -> Any:
        return None if known.startswith(b"corrupt") else SimpleNamespace(known=known, serialize=lambda: known + b"+1")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache.known.startswith(b"other gpu") and not ignore_mismatch:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, opt: Any, high: Any) -> None:
        self.shapes[name] = (low, opt, high)


class _Network:
    def __init__(self, flags: int, module: Any) -> None:
        strong = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        self.strong = strong is not None and bool(flags >> int(strong) & 1)
        self.model: onnx.ModelProto | None = None
        self.path: str | None = None
        self.module = module

    @property
    def num_layers(self) -> int:
        return 0 if self.model is None else len(self.model.graph.node)

    @property
    def num_inputs(self) -> int:
        return 0 if self.model is None else len(self.model.graph.input)

    num_outputs = 1

    def get_input(self, index: int) -> Any:
        assert self.model is not None
        return _tensor(self.model.graph.input[index])

    def get_output(self, _index: int) -> Any:
        assert self.model is not None
        return _tensor(self.model.graph.output[0])

    def get_layer(self, index: int) -> Any:
        assert self.model is not None
        node, kinds = self.model.graph.node[index], self.module.LayerType
        kind = {"Conv": kinds.CONVOLUTION, "DequantizeLinear": kinds.DEQUANTIZE}.get(node.op_type, kinds.OTHER)
        inputs = [SimpleNamespace(name=name, dtype=SimpleNamespace(name="HALF")) for name in node.input]
        return SimpleNamespace(
            type=kind,
            name=node.name,
            num_inputs=len(inputs),
            get_input=inputs.__getitem__,
            get_output=lambda at: SimpleNamespace(name=node.output[at]),
        )


class _Parser:
    num_errors = 0
    parses = True

    def __init__(self, network: _Network, logger: Any) -> None:
        self._network = network

    def parse(self, data: bytes, path: str | None = None) -> bool:
        self._network.model, self._network.path = onnx.load_from_string(data), path
        return self.parses and (path is None or Path(path.encode().decode()).is_file())


class _Builder:
    def __init__(
        self, module: Any, logger: Any, *, strong_builds: bool, has_memory: bool, cores: int, says: str
    ) -> None:
        self._module, self._logger, self._strong_builds, self._says = module, logger, strong_builds, says
        self._has_memory = has_memory
        self.num_DLA_cores = cores

    def create_network(self, flags: int) -> _Network:
        return _Network(flags, self._module)

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> Any:
        if not self._has_memory:
            raise MemoryError
        precisions = config.flags & {"FP16", "INT8", "BF16"}
        if (network.strong and precisions) or (network.strong and not self._strong_builds):
            self._logger.log(_ILogger.Severity.VERBOSE, "trying")
            self._logger.log(_ILogger.Severity.ERROR, self._says)
            return None
        self._module.built.append((network, config))
        body = _body(network.model)
        return memoryview(struct.pack("<4sIQQ4B4sI", b"ftrt", 0, 2, 36 + len(body), *VERSION, b"ftrt", 0) + body)


class _Runtime:
    engine_host_code_allowed = False
    module: Any
    loads = True
    says = ""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self.module.runtimes.append(self)

    def deserialize_cuda_engine(self, plan: Any) -> Any:
        ((network, config),) = self.module.built
        if not self.loads or ("VERSION_COMPATIBLE" in config.flags and not self.engine_host_code_allowed):
            self._logger.log(_ILogger.Severity.ERROR, self.says)
            return None
        assert bytes(plan)[36:] == _body(network.model)

        def information(form: Any) -> str:
            assert form.name == "JSON"
            return _inspected(self.module, network)

        inspector = SimpleNamespace(get_engine_information=information)
        return SimpleNamespace(create_engine_inspector=lambda: inspector)


def _inspected(module: Any, network: _Network) -> str:
    """What the inspector says of a network: its convolutions, in the form of `LayerInformationFormat.JSON`."""
    found = [network.get_layer(index) for index in range(network.num_layers)]
    half = [{"Format/Datatype": "Half NHWC8"}]
    layers = [
        {"LayerType": "CaskConvolution", "Metadata": f"[ONNX Layer: {layer.name}]", "Inputs": half, "Outputs": half}
        for layer in found
        if layer.type == module.LayerType.CONVOLUTION
    ]
    return json.dumps({"Layers": layers})


def _body(model: onnx.ModelProto | None) -> bytes:
    assert model is not None
    return hashlib.sha256(model.SerializeToString()).digest()


def _tensor(info: Any) -> Any:
    dims = info.type.tensor_type.shape.dim
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)
    return SimpleNamespace(name=info.name, shape=shape, dtype=SimpleNamespace(name="FLOAT"))
