"""ONNX Runtime's execution providers: what is requested for each device, what the session then uses, and its memory.

ONNX Runtime silently runs on the CPU what its provider does not support: a node, or everything if CUDA cannot be
loaded. So the CPU is disabled in the session unless it was asked for, and afterwards the nodes of each provider are
counted.

Nothing here has run on a GPU yet: the tests check what is passed to ONNX Runtime, and its results on a CPU.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import BackendError, DeviceError, MissingPackageError, install_command
from densenet_deploy.packages import is_installed
from densenet_deploy.runtime.feeds import Array, TensorSpec
from densenet_deploy.runtime.nvidia import NvidiaOptions
from densenet_deploy.runtime.pool import Pool
from densenet_deploy.runtime.runner import Device

log = logging.getLogger(__name__)

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
RTX: Final = "NvTensorRTRTXExecutionProvider"

_RTX_PLUGIN: Final = "onnxruntime_ep_nv_tensorrt_rtx"
_INPUT: Final = "input"  # of every file that this library writes
_MOST_NAMED: Final = 3

Settings = Mapping[str, str]
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ProviderConfig:
    """What a session is opened with.

    Attributes:
        main: the provider that must run nodes.
        providers: names and settings, the first choice first.
        plugin: the Python package of the provider, where it is not part of ONNX Runtime.
        allow_cpu: whether nodes may run on the CPU.
        graphs: whether CUDA graphs were asked for.
    """

    main: str = CPU
    providers: tuple[tuple[str, Settings], ...] = ((CPU, {}),)
    plugin: str | None = None
    allow_cpu: bool = True
    graphs: bool = False

    @property
    def entries(self) -> Settings:
        """The entries for the configuration of the session."""
        if self.main == CPU:
            return {}
        recorded = {"session.record_ep_graph_assignment_info": "1"}
        return recorded if self.allow_cpu else {**recorded, "session.disable_cpu_ep_fallback": "1"}


ON_CPU: Final = ProviderConfig()


@dataclass(frozen=True)
class Coverage:
    """How many nodes each provider runs, and the names of some that are on the CPU."""

    nodes: Mapping[str, int] = field(default_factory=dict)
    on_cpu: tuple[str, ...] = ()

    @classmethod
    def of(cls, session: Any) -> Coverage:
        """Read it from a session that recorded the provider of its nodes."""
        counts: Counter[str] = Counter()
        on_cpu: list[str] = []
        for subgraph in session.get_provider_graph_assignment_info():
            nodes = subgraph.get_nodes()
            counts[subgraph.ep_name] += len(nodes)
            on_cpu += [node.name or node.op_type for node in nodes if subgraph.ep_name == CPU]
        return cls(dict(counts), tuple(on_cpu))

    def __str__(self) -> str:
        return ", ".join(
            f"{count} nodes on {name.removesuffix('ExecutionProvider')}" for name, count in self.nodes.items()
        )


def config_for(device: Device, options: NvidiaOptions, artifact: Artifact) -> ProviderConfig:
    """Return the configuration for `device`.

    Raises:
        BackendError: if the options contradict the device or the model.
    """
    if device.word == "cpu":
        if options.provider is not None:
            raise BackendError(options.provider, "is a provider for NVIDIA GPUs", "use --device cuda")
        return ON_CPU
    if options.graphs and not _fixed_batch(artifact):
        raise BackendError(artifact.path, "a CUDA graph needs a fixed batch", "export it with --batch N")
    return _CONFIGS[options.provider or "cuda"](device, options, artifact)


def require_coverage(config: ProviderConfig, coverage: Coverage, device: Device) -> None:
    """Check that the main provider runs nodes, and the CPU only if it is allowed to.

    Raises:
        DeviceError: naming the nodes on the CPU.
    """
    if not coverage.nodes.get(config.main):
        why = f"ONNX Runtime assigned no node to {config.main} ({coverage or 'none was recorded'})"
        raise DeviceError(device, why, "run densenet-deploy doctor")
    if coverage.on_cpu and not config.allow_cpu:
        named = ", ".join(coverage.on_cpu[:_MOST_NAMED])
        why = f"ONNX Runtime would run {len(coverage.on_cpu)} nodes on the CPU, {named} among them"
        raise DeviceError(device, why, "use another provider, or NvidiaOptions(allow_cpu_nodes=True)")


def prepare(ort: Any, config: ProviderConfig) -> None:
    """Load the libraries of the providers from where pip installs them.

    Raises:
        MissingPackageError: if a plug-in is needed and not installed.
        DeviceError: if this ONNX Runtime lacks the provider, or the plug-in does not load.
    """
    if config.plugin is not None:
        _register_plugin(ort, config.plugin)
        return
    missing = [name for name, _ in config.providers if name not in ort.get_available_providers()]
    if missing:
        fix = f"uninstall onnxruntime, then run: {install_command('onnxruntime-gpu')}"
        raise DeviceError(config.main, f"this build of ONNX Runtime has no {missing[0]}", fix)
    if config.main == TENSORRT:
        with contextlib.suppress(ImportError):  # then its libraries are found; the system may have its own
            importlib.import_module("tensorrt")
    if config.main != CPU:
        _preload(ort)


def apply(ort: Any, config: ProviderConfig, session_options: Any, device: Device) -> list[Any]:
    """Add `config` to the options of a session and return the list of providers to open it with."""
    for key, value in config.entries.items():
        session_options.add_session_config_entry(key, value)
    if config.plugin is None:
        return [(name, dict(settings)) if settings else name for name, settings in config.providers]
    found = [candidate for candidate in ort.get_ep_devices() if candidate.ep_name == config.main]
    if device.index >= len(found):
        raise DeviceError(device, f"{config.main} finds {len(found)} devices", "check the driver and the GPU")
    session_options.add_provider_for_devices([found[device.index]], dict(config.providers[0][1]))
    return []


def _cuda(device: Device, options: NvidiaOptions, _artifact: Artifact) -> ProviderConfig:
    settings = {"device_id": str(device.index), "use_tf32": "0"}
    if options.graphs:
        settings["enable_cuda_graph"] = "1"
    return _config(CUDA, ((CUDA, settings),), options)


def _tensorrt(device: Device, options: NvidiaOptions, artifact: Artifact) -> ProviderConfig:
    """TensorRT runs what it supports, and CUDA the rest."""
    folder = _folder_for(options, artifact, "tensorrt")
    settings = {
        "device_id": str(device.index),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
        "trt_fp16_enable": _flag(artifact.precision == "fp16"),
        "trt_bf16_enable": _flag(artifact.precision == "bf16"),
        "trt_int8_enable": _flag(artifact.precision == "int8"),
        "trt_cuda_graph_enable": _flag(bool(options.graphs)),
        **_profile("trt", options, artifact),
    }
    rest = {"device_id": str(device.index), "use_tf32": "0"}
    return _config(TENSORRT, ((TENSORRT, settings), (CUDA, rest)), options)


def _rtx(_device: Device, options: NvidiaOptions, artifact: Artifact) -> ProviderConfig:
    settings = {
        "enable_cuda_graph": _flag(bool(options.graphs)),
        "nv_runtime_cache_path": _folder_for(options, artifact, "rtx"),
        **_profile("nv", options, artifact),
    }
    return _config(RTX, ((RTX, settings),), options, plugin=_RTX_PLUGIN)


_CONFIGS: Final = {"cuda": _cuda, "tensorrt": _tensorrt, "rtx": _rtx}


def _config(
    main: str, providers: tuple[tuple[str, Settings], ...], options: NvidiaOptions, plugin: str | None = None
) -> ProviderConfig:
    if options.allow_cpu_nodes and plugin is None:
        providers = (*providers, (CPU, {}))
    return ProviderConfig(main, providers, plugin, options.allow_cpu_nodes, bool(options.graphs))


def _folder_for(options: NvidiaOptions, artifact: Artifact, provider: str) -> str:
    """A folder for this file alone: ONNX Runtime names cached engines after the graph, whatever its weights."""
    return str(options.cache_folder / f"onnxruntime-{provider}" / artifact.sha256()[:24])


def _profile(prefix: str, options: NvidiaOptions, artifact: Artifact) -> Settings:
    if options.batches is None or _fixed_batch(artifact):
        return {}
    if artifact.manifest is None:
        raise BackendError(artifact.path, "does not state its image size", "leave the batches out")
    image = "x".join(map(str, artifact.manifest.preprocessing.shape))
    shapes = (f"{_INPUT}:{batch}x{image}" for batch in options.batches)
    return {f"{prefix}_profile_{word}_shapes": s for word, s in zip(("min", "opt", "max"), shapes, strict=True)}


def _fixed_batch(artifact: Artifact) -> bool:
    return artifact.manifest is not None and artifact.manifest.batch is not None


def _flag(value: bool) -> str:
    return "1" if value else "0"


def _preload(ort: Any) -> None:
    """Load CUDA's libraries; ONNX Runtime prints what it cannot find to stdout, where results go."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        ort.preload_dlls(directory="")
    if text := printed.getvalue().strip():
        log.info("ONNX Runtime: %s", text)


def _register_plugin(ort: Any, plugin: str) -> None:
    if not is_installed(plugin):
        package = plugin.replace("_", "-")
        fix = f"run: pip install {package}, beside onnxruntime and not onnxruntime-gpu"
        raise MissingPackageError(package, "is not installed", fix)
    if any(device.ep_name == RTX for device in ort.get_ep_devices()):
        return  # registered before
    module = importlib.import_module(plugin)
    try:
        ort.register_execution_provider_library(module.get_ep_name(), module.get_library_path())
    except Exception as exc:
        reason = str(exc).rpartition("error: ")[2]
        raise DeviceError(plugin, f"does not load: {reason}", "check the driver") from exc


class Bindings:
    """Inputs and outputs of a session in the memory of its device, reused by calls with the same shapes.

    Without them every call allocates on the device, and CUDA graphs, which are recorded with addresses, need them. At
    most `limit` calls run at once on `device` (`cuda` and its index).
    """

    def __init__(
        self,
        session: Any,
        device: tuple[str, int],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        limit: int,
    ) -> None:
        self._inputs = inputs
        self._pool = Pool(lambda: _Binding(session, device, inputs, outputs), limit)

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run checked feeds and return newly allocated arrays."""
        shapes = tuple(feeds[spec.name].shape for spec in self._inputs)
        with self._pool.lend(lambda binding: binding.shapes == shapes) as binding:
            return binding.run(feeds, shapes)


@dataclass
class _Binding:
    """Device memory for feeds of certain shapes and for their results."""

    session: Any
    device: tuple[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    shapes: Shapes = ()
    values: dict[str, Any] = field(default_factory=dict)
    io: Any = None

    def run(self, feeds: dict[str, Array], shapes: Shapes) -> dict[str, Array]:
        if shapes != self.shapes:
            self._bind(shapes)
        for name, value in self.values.items():
            value.update_inplace(feeds[name])
        self.session.run_with_iobinding(self.io)
        results = self.io.get_outputs()
        return {spec.name: value.numpy().copy() for spec, value in zip(self.outputs, results, strict=True)}

    def _bind(self, shapes: Shapes) -> None:
        self.io = self.session.io_binding()
        self.values = {spec.name: self._room(shape, spec) for spec, shape in zip(self.inputs, shapes, strict=True)}
        for name, value in self.values.items():
            self.io.bind_ortvalue_input(name, value)
        for spec in self.outputs:
            self._bind_output(spec, batch=shapes[0][0])
        self.shapes = shapes

    def _bind_output(self, spec: TensorSpec, batch: int) -> None:
        """Allocate it if its size is known, and leave that to ONNX Runtime otherwise."""
        rest = tuple(size for size in spec.shape[1:] if size is not None)
        if len(rest) < len(spec.shape) - 1:
            self.io.bind_output(spec.name, *self.device)
            return
        self.io.bind_ortvalue_output(spec.name, self._room((spec.shape[0] or batch, *rest), spec))

    def _room(self, shape: tuple[int, ...], spec: TensorSpec) -> Any:
        import onnxruntime

        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, spec.dtype, *self.device)
