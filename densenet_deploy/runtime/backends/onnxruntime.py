"""Run ONNX files with ONNX Runtime: on the CPU, or on an NVIDIA GPU with CUDA, TensorRT or TensorRT-RTX.

`NvidiaOptions.provider` chooses what a GPU runs with. Nothing falls back to the CPU silently: see
`onnxruntime_providers`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import BackendError, DeviceError, FeedError, ModelFileError, from_memory_error
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.feeds import Array, TensorSpec
from densenet_deploy.runtime.nvidia import find_gpus
from densenet_deploy.runtime.onnxruntime_providers import (
    CPU,
    ON_CPU,
    Bindings,
    Coverage,
    ProviderConfig,
    apply,
    config_for,
    prepare,
    require_coverage,
)
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
    import onnxruntime as ort

log = logging.getLogger(__name__)

_KERNEL: Final = "_kernel_time"
_PRECISIONS: Final = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "uint8": "int8", "int8": "int8"}
_SILENT: Final = 4  # native log lines would stand beside our one-line errors
_SLEEPING: Final = {"session.force_spinning_stop": "1", "session.intra_op.spin_duration_us": "20"}
"""Without `spin`, threads sleep after a call, and within it after as long as waking one takes.

A thread that spins keeps the core from the one that it waits for. With two threads on two cores that other programs
use too, this limit halved the time of a call, and its CPU time.
"""
_BIAS_QUANTIZER: Final = "WeightBiasQuantization"
"""An optimizer that rewrites float biases between Q/DQ nodes as integers, with the scale of input times weight.

In float16 that product loses digits or underflows, and the biases become coarse. Seen in 1.31.
"""
_DTYPES: Final = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


@backends.register("onnxruntime")
class OnnxRuntimeRunner(Runner):
    """Run an ONNX file in one ONNX Runtime session."""

    name = "onnxruntime"
    suffixes = (".onnx",)
    requires = "onnxruntime"
    extra = "onnxruntime"
    devices = ("cpu", "cuda")
    shows_inner_tensors = True

    @classmethod
    def open(cls, source: RunnerSource, device: Device | None, options: RunnerOptions) -> Runner:
        assert isinstance(source, Artifact)
        if options.precision not in (None, source.precision):
            why = f"the file holds {source.precision}, which is what ONNX Runtime runs"
            raise BackendError(options.precision, why, "convert the file instead")
        threads = options.threads or usable_cpus()
        session, chosen, config = _open_session(source, device, options)
        return cls(session, source, chosen, threads, options, config)

    @classmethod
    def probe(cls) -> tuple[str, tuple[str, ...]]:
        import onnxruntime

        has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers() and bool(find_gpus())
        return onnxruntime.__version__, ("cpu", "cuda") if has_cuda else ("cpu",)

    @classmethod
    def profile(cls, request: ProfileRequest) -> tuple[OperatorTime, ...]:
        """Read the trace that the session writes; see `Runner.profile`. On CUDA these are times of the host."""
        assert isinstance(request.source, Artifact)
        nvidia = dataclasses.replace(request.options.nvidia, graphs=False)  # a recorded graph hides its nodes
        options = dataclasses.replace(request.options, nvidia=nvidia)
        with tempfile.TemporaryDirectory() as folder:
            session, *_ = _session(request.source, request.device, options, Path(folder) / "trace")
            for _ in range(WARM_UP_CALLS + request.calls):
                session.run(None, dict(request.feeds))
            events = json.loads(Path(session.end_profiling()).read_text())
        return median_times(_timed_calls(events)[WARM_UP_CALLS:])

    def __init__(
        self,
        session: ort.InferenceSession,
        artifact: Artifact,
        device: Device,
        threads: int,
        options: RunnerOptions,
        config: ProviderConfig = ON_CPU,
    ) -> None:
        import onnxruntime

        inputs = tuple(_tensor_spec(node, artifact.path) for node in session.get_inputs())
        outputs = tuple(_tensor_spec(node, artifact.path) for node in session.get_outputs())
        placement = Placement(
            backend=self.name,
            version=onnxruntime.__version__,
            device=str(device),
            provider=session.get_providers()[0],
            precision=artifact.precision,
            threads=threads,
            notes=_notes(config, session),
        )
        self._output_names = [spec.name for spec in outputs]
        streams = 1 if config.graphs else options.nvidia.streams  # a graph has a single place for its feeds
        bound = Bindings(session, ("cuda", device.index), inputs, outputs, streams)
        super().__init__(
            session if config.main == CPU else bound,
            inputs,
            outputs,
            placement,
            artifact.manifest,
            check_values=options.check_values,
        )

    def _run(self, handle: ort.InferenceSession | Bindings, feeds: dict[str, Array]) -> dict[str, Array]:
        if isinstance(handle, Bindings):
            return handle.run(feeds)
        try:
            outputs = handle.run(self._output_names, feeds)
        except Exception as exc:
            raise _run_error(feeds, exc) from exc
        return dict(zip(self._output_names, outputs, strict=True))


def _open_session(
    artifact: Artifact, device: Device | None, options: RunnerOptions
) -> tuple[ort.InferenceSession, Device, ProviderConfig]:
    """Open a session on `device`; None takes a GPU if it runs the whole model, else the CPU."""
    provider = options.nvidia.provider
    if device is None and provider is None and find_gpus():
        try:
            return _session(artifact, Device("cuda"), options)
        except DeviceError as exc:
            log.info("using the CPU: %s", exc)
    return _session(artifact, device or Device("cuda" if provider else "cpu"), options)


def _session(
    artifact: Artifact, device: Device, options: RunnerOptions, trace: Path | None = None
) -> tuple[ort.InferenceSession, Device, ProviderConfig]:
    import onnxruntime

    if device.word == "cuda" and not find_gpus():
        raise DeviceError(device, "no NVIDIA driver answers", "install the driver, or use --device cpu")
    config = config_for(device, options.nvidia, artifact)
    prepare(onnxruntime, config)
    session = open_session(onnxruntime, artifact, config, device, options, trace)
    if config.main != CPU:
        require_coverage(config, Coverage.of(session), device)
    return session, device, config


def open_session(
    ort: Any,
    artifact: Artifact,
    config: ProviderConfig,
    device: Device,
    options: RunnerOptions,
    trace: Path | None = None,
) -> ort.InferenceSession:
    """Open a session with `config`. `ort` is the onnxruntime module; the name of a profile begins with `trace`.

    Raises:
        ModelFileError: if the CPU cannot run the model.
        DeviceError: if another device cannot run the whole model.
    """
    ort.set_default_logger_severity(_SILENT)
    session_options = ort.SessionOptions()
    session_options.log_severity_level = _SILENT
    session_options.intra_op_num_threads = options.threads or usable_cpus()
    session_options.inter_op_num_threads = 1
    session_options.enable_cpu_mem_arena = options.arena
    if not options.spin:
        for name, value in _SLEEPING.items():
            session_options.add_session_config_entry(name, value)
    if trace is not None:
        session_options.enable_profiling, session_options.profile_file_prefix = True, str(trace)
    providers = apply(ort, config, session_options, device)
    try:  # its fallback would print an error and try other providers
        return ort.InferenceSession(
            _model_source(artifact),
            session_options,
            providers,
            enable_fallback=False,
            disabled_optimizers=_harmful_optimizers(artifact),
        )
    except Exception as exc:
        raise _open_error(artifact.path, device, exc) from exc


def _harmful_optimizers(artifact: Artifact) -> list[str] | None:
    """The optimizers of ONNX Runtime that change the results of `artifact`; only the tensorrt recipe writes float16."""
    in_float16 = artifact.manifest is not None and artifact.manifest.recipe == "tensorrt"
    return [_BIAS_QUANTIZER] if in_float16 else None


def _notes(config: ProviderConfig, session: ort.InferenceSession) -> tuple[str, ...]:
    """Return what was read back from the session of a GPU."""
    if config.main == CPU:
        return ()
    nodes = str(Coverage.of(session))
    return (nodes, "CUDA graphs asked for") if config.graphs else (nodes,)


def _timed_calls(events: Iterable[dict[str, Any]]) -> list[list[OperatorTime]]:
    """Return the times of the nodes, call by call: the event of a call follows those of its nodes."""
    calls: list[list[OperatorTime]] = [[]]
    for event in events:
        if event["name"] == "model_run":
            calls.append([])
        elif event["cat"] == "Node" and event["name"].endswith(_KERNEL):
            calls[-1].append(_timed_node(event))
    return calls[:-1]


def _timed_node(event: dict[str, Any]) -> OperatorTime:
    """A node computes in the type of its first input."""
    facts = event["args"]
    types = [kind for entry in facts.get("input_type_shape", ()) for kind in entry]
    return OperatorTime(
        name=event["name"].removesuffix(_KERNEL),
        operator=facts["op_name"],
        provider=facts["provider"],
        precision=_PRECISIONS.get(types[0], "unknown") if types else "unknown",
        ms=event["dur"] / 1e3,
    )


def _model_source(artifact: Artifact) -> str | bytes:
    """The path as text; the bytes of a file in memory, or with a path that is not UTF-8, which ONNX Runtime refuses."""
    if artifact.data is not None:
        return artifact.data
    try:
        str(artifact.path).encode()
    except UnicodeEncodeError:
        return artifact.read_bytes()
    return str(artifact.path)


def _run_error(feeds: Mapping[str, Array], exc: Exception) -> Exception:
    """Return what to raise for an error of a run; a graph may accept a batch and then be unable to run it."""
    name, batch = next((name, len(array) if array.ndim else 1) for name, array in feeds.items())
    if batch < 2 or from_memory_error(exc) is not None:
        return exc
    reason = str(exc).split(":", 4)[-1].strip().partition("\n")[0]
    fix = "feed one image at a time (batch 1), or export the model with a dynamic batch"
    return FeedError(name, f"holds {batch} images, which the graph cannot run together: {reason}", fix)


def _open_error(path: Path, device: Device, exc: Exception) -> Exception:
    if (no_memory := from_memory_error(exc)) is not None:
        return no_memory
    reason = str(exc).split(":", 4)[-1].strip()
    if device.word == "cuda":
        return DeviceError(device, f"ONNX Runtime cannot run the whole model there: {reason}", "use --device cpu")
    return ModelFileError(path, f"ONNX Runtime cannot load it: {reason}", "export the model again")


def _tensor_spec(node: ort.NodeArg, path: Path) -> TensorSpec:
    if node.type not in _DTYPES:
        raise ModelFileError(path, f"{node.name} is a {node.type}", "export an image model with tensor inputs")
    shape = tuple(size if isinstance(size, int) and size > 0 else None for size in node.shape)
    return TensorSpec(node.name, shape, np.dtype(_DTYPES[node.type]))
