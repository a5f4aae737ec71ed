"""What ONNX Runtime is asked for on each device, and a check of what it then did.

ONNX Runtime quietly runs on the CPU what its provider cannot: a node, or everything when CUDA cannot be loaded. So the
CPU is switched off in the session unless it was asked for, and afterwards every node is counted where it was put.

Nothing here has run on a GPU yet: the tests see what is passed to ONNX Runtime, and what it answers on a CPU.
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
from densenet_deploy.errors import BackendError, DeviceError, MissingPackageError
from densenet_deploy.packages import is_installed
from densenet_deploy.runtime.nvidia_options import NvidiaOptions
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


@dataclass(frozen=True)
class ProviderPlan:
    """What to ask for.

    Attributes:
        wanted: the provider that must run nodes.
        providers: names and settings, the first choice first.
        plugin: the Python package that brings the provider, where ONNX Runtime itself does not.
        allow_cpu: whether nodes may end up on the CPU.
        graphs: whether CUDA graphs were asked for.
    """

    wanted: str = CPU
    providers: tuple[tuple[str, Settings], ...] = ((CPU, {}),)
    plugin: str | None = None
    allow_cpu: bool = True
    graphs: bool = False

    @property
    def entries(self) -> Settings:
        """What goes into the configuration of the session."""
        if self.wanted == CPU:
            return {}
        recorded = {"session.record_ep_graph_assignment_info": "1"}
        return recorded if self.allow_cpu else {**recorded, "session.disable_cpu_ep_fallback": "1"}


ON_CPU: Final = ProviderPlan()


@dataclass(frozen=True)
class Coverage:
    """How many nodes each provider runs, and the names of some that are on the CPU."""

    nodes: Mapping[str, int] = field(default_factory=dict)
    on_cpu: tuple[str, ...] = ()

    @classmethod
    def of(cls, session: Any) -> Coverage:
        """Ask a session that recorded where it put its nodes."""
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


def plan_for(device: Device, options: NvidiaOptions, artifact: Artifact) -> ProviderPlan:
    """Say what to ask for on `device`.

    Raises:
        BackendError: if the options contradict the device or the model.
    """
    if device.word == "cpu":
        if options.provider is not None:
            raise BackendError(options.provider, "is a provider for NVIDIA GPUs", "use --device cuda")
        return ON_CPU
    if options.graphs and not _fixed_batch(artifact):
        raise BackendError(artifact.path, "a CUDA graph needs a fixed batch", "export it with --batch N")
    return _PLANS[options.provider or "cuda"](device, options, artifact)


def require_coverage(plan: ProviderPlan, coverage: Coverage, device: Device) -> None:
    """Check that the provider wanted runs something, and the CPU nothing that it was not asked to.

    Raises:
        DeviceError: naming what is elsewhere.
    """
    if not coverage.nodes.get(plan.wanted):
        why = f"ONNX Runtime gave {plan.wanted} no node ({coverage or 'it recorded none'})"
        raise DeviceError(device, why, "run densenet-deploy doctor")
    if coverage.on_cpu and not plan.allow_cpu:
        named = ", ".join(coverage.on_cpu[:_MOST_NAMED])
        why = f"ONNX Runtime would run {len(coverage.on_cpu)} nodes on the CPU, {named} among them"
        raise DeviceError(device, why, "use another provider, or NvidiaOptions(allow_cpu_nodes=True)")


def prepare(ort: Any, plan: ProviderPlan) -> None:
    """Load the libraries that the providers of `plan` link to, from where pip puts them.

    Raises:
        MissingPackageError: if the plan needs a plug-in that is not installed.
        DeviceError: if this ONNX Runtime lacks the provider, or the plug-in does not load.
    """
    if plan.plugin is not None:
        _register_plugin(ort, plan.plugin)
        return
    missing = [name for name, _ in plan.providers if name not in ort.get_available_providers()]
    if missing:
        fix = "run: pip install 'densenet-deploy[onnxruntime-gpu]' in place of onnxruntime"
        raise DeviceError(plan.wanted, f"this build of ONNX Runtime has no {missing[0]}", fix)
    if plan.wanted == TENSORRT:
        with contextlib.suppress(ImportError):  # its libraries are then found; the system may have its own
            importlib.import_module("tensorrt")
    if plan.wanted != CPU:
        _preload(ort)


def apply(ort: Any, plan: ProviderPlan, session_options: Any, device: Device) -> list[Any]:
    """Put the plan into the options of a session and return the list of providers that it is opened with."""
    for key, value in plan.entries.items():
        session_options.add_session_config_entry(key, value)
    if plan.plugin is None:
        return [(name, dict(settings)) if settings else name for name, settings in plan.providers]
    found = [candidate for candidate in ort.get_ep_devices() if candidate.ep_name == plan.wanted]
    if device.index >= len(found):
        raise DeviceError(device, f"{plan.wanted} finds {len(found)} devices", "check the driver and the GPU")
    session_options.add_provider_for_devices([found[device.index]], dict(plan.providers[0][1]))
    return []


def _cuda(device: Device, options: NvidiaOptions, _artifact: Artifact) -> ProviderPlan:
    return _plan(CUDA, ((CUDA, _cuda_settings(device, options)),), options)


def _cuda_settings(device: Device, options: NvidiaOptions) -> Settings:
    settings = {"device_id": str(device.index), "use_tf32": "0"}
    return {**settings, "enable_cuda_graph": "1"} if options.graphs else settings


def _tensorrt(device: Device, options: NvidiaOptions, artifact: Artifact) -> ProviderPlan:
    """TensorRT builds what it can, and CUDA runs the rest."""
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
    return _plan(TENSORRT, ((TENSORRT, settings), (CUDA, rest)), options)


def _rtx(_device: Device, options: NvidiaOptions, artifact: Artifact) -> ProviderPlan:
    settings = {
        "enable_cuda_graph": _flag(bool(options.graphs)),
        "nv_runtime_cache_path": _folder_for(options, artifact, "rtx"),
        **_profile("nv", options, artifact),
    }
    return _plan(RTX, ((RTX, settings),), options, plugin=_RTX_PLUGIN)


_PLANS: Final = {"cuda": _cuda, "tensorrt": _tensorrt, "rtx": _rtx}


def _plan(
    wanted: str, providers: tuple[tuple[str, Settings], ...], options: NvidiaOptions, plugin: str | None = None
) -> ProviderPlan:
    if options.allow_cpu_nodes and plugin is None:
        providers = (*providers, (CPU, {}))
    return ProviderPlan(wanted, providers, plugin, options.allow_cpu_nodes, bool(options.graphs))


def _folder_for(options: NvidiaOptions, artifact: Artifact, provider: str) -> str:
    """A folder for this very file: ONNX Runtime names cached engines after the graph, whatever its weights."""
    return str(options.cache_folder / f"onnxruntime-{provider}" / artifact.sha256()[:24])


def _profile(prefix: str, options: NvidiaOptions, artifact: Artifact) -> Settings:
    if options.batches is None or _fixed_batch(artifact):
        return {}
    if artifact.manifest is None:
        raise BackendError(artifact.path, "does not say which images it takes", "leave the batches out")
    size = artifact.manifest.preprocessing.image_size
    shapes = (f"{_INPUT}:{batch}x3x{size}x{size}" for batch in options.batches)
    return {f"{prefix}_profile_{word}_shapes": s for word, s in zip(("min", "opt", "max"), shapes, strict=True)}


def _fixed_batch(artifact: Artifact) -> bool:
    return artifact.manifest is not None and artifact.manifest.batch is not None


def _flag(value: bool) -> str:
    return "1" if value else "0"


def _preload(ort: Any) -> None:
    """Load CUDA's libraries; ONNX Runtime prints what it does not find to stdout, where results go."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        ort.preload_dlls(directory="")
    if said := printed.getvalue().strip():
        log.info("ONNX Runtime: %s", said)


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
        reason = str(exc).rsplit("error: ", 1)[-1]
        raise DeviceError(plugin, f"does not load: {reason}", "check the driver") from exc
