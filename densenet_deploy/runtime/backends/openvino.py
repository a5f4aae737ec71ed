"""Run ONNX files and OpenVINO IR on Intel CPUs, GPUs and NPUs.

By default OpenVINO runs FP32 models in bfloat16 on CPUs that support it. Here the arithmetic is what the file holds,
and anything else has to be asked for with `RunnerOptions(precision="bf16")`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import BackendError, DeviceError, ModelFileError
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.feeds import Array, TensorSpec
from densenet_deploy.runtime.pool import Pool
from densenet_deploy.runtime.runner import (
    Device,
    Placement,
    ProfileRequest,
    Runner,
    RunnerOptions,
    RunnerSource,
    backends,
)
from densenet_deploy.runtime.timing import WARM_UP_CALLS, OperatorTime, median_times

if TYPE_CHECKING:
    import openvino as ov

_HINTS: Final = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
_WORDS: Final = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}
_KERNEL_WORDS: Final = _WORDS | {"i8": "int8", "u8": "int8"}


@backends.register("openvino")
class OpenVINORunner(Runner):
    """Run a model compiled by OpenVINO, tuned for the latency of single calls."""

    name = "openvino"
    suffixes = (".onnx", ".xml")
    requires = "openvino"
    extra = "openvino"
    devices = ("cpu", "gpu", "npu")

    @classmethod
    def open(cls, source: RunnerSource, device: Device | None, options: RunnerOptions) -> Runner:
        assert isinstance(source, Artifact)
        chosen = device or Device("cpu")
        model, compiled = _compiled(source, chosen, options, {})
        return cls(model, compiled, source, chosen, options)

    @classmethod
    def probe(cls) -> tuple[str, tuple[str, ...]]:
        import openvino

        return _version(), tuple(name.lower() for name in openvino.Core().available_devices)

    @classmethod
    def profile(cls, request: ProfileRequest) -> tuple[OperatorTime, ...]:
        """Read the performance counters of each call; see `Runner.profile`."""
        import openvino as ov

        assert isinstance(request.source, Artifact)
        _, compiled = _compiled(request.source, request.device, request.options, {"PERF_COUNT": True})
        executed, device_name = ov.ProfilingInfo.Status.EXECUTED, compiled.get_property("EXECUTION_DEVICES")[0]
        call = compiled.create_infer_request()
        timed: list[list[OperatorTime]] = []
        for _ in range(WARM_UP_CALLS + request.calls):
            call.infer(dict(request.feeds))
            timed.append([_timed(info, device_name) for info in call.get_profiling_info() if info.status == executed])
        return median_times(timed[WARM_UP_CALLS:])

    def __init__(
        self,
        model: ov.Model,
        compiled: ov.CompiledModel,
        artifact: Artifact,
        device: Device,
        options: RunnerOptions,
    ) -> None:
        arithmetic = _arithmetic(compiled)
        if options.precision not in (None, arithmetic):
            raise BackendError(options.precision, f"this device runs {arithmetic}", "leave the precision out")
        placement = Placement(
            backend=self.name,
            version=_version(),
            device=str(device),
            provider=", ".join(compiled.get_property("EXECUTION_DEVICES")),
            precision="int8" if artifact.precision == "int8" else arithmetic,
            threads=options.threads or usable_cpus(),
        )
        super().__init__(
            Pool(compiled.create_infer_request),  # a request serves one thread at a time
            _tensor_specs(model.inputs, compiled.inputs, artifact.path),
            _tensor_specs(model.outputs, compiled.outputs, artifact.path),
            placement,
            artifact.manifest,
            check_values=options.check_values,
        )

    def _run(self, handle: Pool[ov.InferRequest], feeds: dict[str, Array]) -> dict[str, Array]:
        with handle.lend() as request:
            results = request.infer(feeds, share_inputs=True).to_tuple()  # outputs are not shared but copied
        return {spec.name: array for spec, array in zip(self.outputs, results, strict=True)}


def _version() -> str:
    import openvino

    return str(openvino.__version__).split("-")[0]


def _compiled(
    source: Artifact, device: Device, options: RunnerOptions, more_settings: dict[str, Any]
) -> tuple[ov.Model, ov.CompiledModel]:
    """Return the model as it is in the file, which has the names of its ports, and the compiled model."""
    import openvino

    core = openvino.Core()
    name = _device_name(core, device)
    settings = _settings(name, source.precision, options) | more_settings
    try:
        model = core.read_model(source.path if source.data is None else io.BytesIO(source.data))
        if options.batch is not None:
            _fix_batch(model, options.batch)
        return model, core.compile_model(model, name, settings)
    except RuntimeError as exc:
        reason = str(exc).strip().splitlines()[-1]
        raise ModelFileError(source.path, f"OpenVINO cannot load it: {reason}", _remedy(source)) from exc


def _remedy(source: Artifact) -> str:
    """What to do about a file that does not load: INT8 for ONNX Runtime has operators that OpenVINO lacks."""
    if source.manifest is not None and source.manifest.recipe == "onnxruntime":
        return "it was written for ONNX Runtime: use the backend onnxruntime, or quantize with --recipe openvino"
    return "export the model again"


def _fix_batch(model: ov.Model, batch: int) -> None:
    """Set the batch of inputs that take any: a model with static shapes is prepared once instead of in every call."""
    shapes = {port: port.get_partial_shape() for port in model.inputs}
    for shape in shapes.values():
        if shape.rank.is_static and len(shape) > 0 and shape[0].is_dynamic:
            shape[0] = batch
    model.reshape(shapes)


def _timed(info: ov.ProfilingInfo, device_name: str) -> OperatorTime:
    """Read one counter; the name of the kernel ends in the type it computes in: `brgconv_avx512_1x1_f32`."""
    word = info.exec_type.rpartition("_")[2].lower()
    milliseconds = info.real_time.total_seconds() * 1e3
    return OperatorTime(info.node_name, info.node_type, device_name, _KERNEL_WORDS.get(word, "unknown"), milliseconds)


def _device_name(core: ov.Core, device: Device) -> str:
    word = device.word.upper()
    found = [name for name in core.available_devices if name.split(".")[0] == word]
    if not found:
        known = ", ".join(core.available_devices) or "none"
        raise DeviceError(device, f"OpenVINO finds no such device (found: {known})", "use --device cpu")
    if device.index >= len(found):
        raise DeviceError(device, f"OpenVINO finds {len(found)} {word} device(s)", "use a smaller number")
    return str(found[device.index])


def _settings(device_name: str, stored: str, options: RunnerOptions) -> dict[str, Any]:
    precision = options.precision or (stored if stored in _HINTS else "fp32")
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _HINTS[precision]}
    if device_name.startswith("CPU"):
        settings["INFERENCE_NUM_THREADS"] = options.calls * (options.threads or usable_cpus())
        if options.calls > 1:
            settings["NUM_STREAMS"] = options.calls
    return settings


def _arithmetic(compiled: ov.CompiledModel) -> str:
    """Return the floating-point arithmetic that the compiled model reports."""
    hint = compiled.get_property("INFERENCE_PRECISION_HINT")
    return _WORDS.get(hint.to_string() if hasattr(hint, "to_string") else str(hint), "unknown")


def _tensor_specs(read: Iterable[Any], compiled: Iterable[Any], path: Path) -> tuple[TensorSpec, ...]:
    """Use the names in the file: compiling can remove a Cast, and the port then also gets the name of its tensor."""
    return tuple(_tensor_spec(port.any_name, end, path) for port, end in zip(read, compiled, strict=True))


def _tensor_spec(name: str, port: Any, path: Path) -> TensorSpec:
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        raise ModelFileError(path, f"{name} has no known rank", "export an image model with 4-D input")
    sizes = tuple(None if size.is_dynamic else size.get_length() for size in shape)
    return TensorSpec(name, sizes, np.dtype(port.get_element_type().to_dtype()))
