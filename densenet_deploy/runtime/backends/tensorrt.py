"""Run TensorRT plans (`.engine`) on NVIDIA GPUs: `tensorrt` for full TensorRT, `rtx` for TensorRT-RTX.

The plan's sidecar is verified before TensorRT sees a byte. A call copies its batch through pinned memory, and arrays
that are on the GPU already are run where they lie (`run_on_gpu`). Callers in several threads run side by side, as many
as `NvidiaOptions.streams`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from densenet_deploy.artifacts import Artifact, os_errors_about
from densenet_deploy.errors import BackendError, DeviceError
from densenet_deploy.runtime.cudart import load_cuda
from densenet_deploy.runtime.engine_files import Plan, read_plan, require_gpu, require_version
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.plan import HEADER_BYTES, sniff
from densenet_deploy.runtime.runner import Device, Placement, Runner, RunnerOptions, RunnerSource, backends
from densenet_deploy.runtime.sidecar import Sidecar
from densenet_deploy.runtime.tensorrt.contexts import Contexts
from densenet_deploy.runtime.tensorrt.engine import Engine, engine_from_plan
from densenet_deploy.runtime.tensorrt.lanes import Lanes
from densenet_deploy.runtime.tensorrt.runs import run_in_place, run_portions, warm_up
from densenet_deploy.runtime.trt import load_tensorrt

_TITLES: Final = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}


@backends.register("tensorrt")
class TensorRTRunner(Runner):
    """Run a plan of full TensorRT."""

    name = "tensorrt"
    suffixes = (".engine",)
    requires = "tensorrt"
    extra = "tensorrt"
    devices = ("cuda",)
    flavour: ClassVar[str] = "tensorrt"

    @classmethod
    def suits(cls, artifact: Artifact) -> bool:
        """Whether the plan's header names this flavour."""
        with os_errors_about(artifact.path), artifact.path.open("rb") as file:
            header = sniff(file.read(HEADER_BYTES))
        return header is not None and header.flavour == cls.flavour

    @classmethod
    def open(cls, source: RunnerSource, device: Device | None, options: RunnerOptions) -> Runner:
        """Verify the plan, load it and run it twice on zeros; see `Runner.open`."""
        assert isinstance(source, Artifact)
        plan = read_plan(source.path, trust_engine=options.trust_engine)
        precision = _precision(plan.sidecar)
        if options.precision not in (None, precision):
            raise BackendError(options.precision, f"the engine holds {precision}", "build another engine")
        trt = load_tensorrt(cls.flavour)
        require_version(plan, cls.flavour, trt.version)
        cuda = load_cuda(cls.extra)
        gpu = cuda.gpu(device.index if device else 0)
        require_gpu(plan, gpu.compute_capability)
        cuda.use(gpu.index)
        return cls(engine_from_plan(plan, trt, cuda, gpu), plan, precision, options)

    @classmethod
    def probe(cls) -> tuple[str, tuple[str, ...]]:
        """Ask for version and devices; see `Runner.probe`."""
        version = load_tensorrt(cls.flavour).version
        try:
            count = load_cuda(cls.extra).device_count()
        except DeviceError:
            return version, ()
        return version, tuple(f"cuda:{index}" for index in range(count))

    def __init__(self, engine: Engine, plan: Plan, precision: str, options: RunnerOptions) -> None:
        contexts = Contexts(engine, plan, options.nvidia)
        lanes = Lanes(engine, contexts.make_lane, options.nvidia.streams)
        graphs = warm_up(lanes)
        contexts.keep_kernels()
        placement = Placement(
            backend=self.name,
            version=engine.trt.version,
            device=f"cuda:{engine.gpu.index}",
            provider=f"{_TITLES[self.flavour]} on {engine.gpu.name} ({engine.gpu.compute_capability})",
            precision=precision,
            threads=1,
            notes=(*_convolutions(plan.sidecar), graphs),
        )
        self._contexts: Contexts | None = contexts
        super().__init__(
            lanes,
            engine.inputs,
            engine.outputs,
            placement,
            plan.sidecar.manifest if plan.sidecar else None,
            check_values=options.check_values,
        )

    def run_on_gpu(self, feeds: Mapping[str, object], outputs: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Run one batch that lies on the GPU, without copying it.

        Args:
            feeds: for every input an array with `__cuda_array_interface__` (CuPy, PyTorch, Numba) or `__dlpack__`,
                contiguous, whose batch one profile of the engine takes. Their values are not checked.
            outputs: such arrays to write into, by output name; others are newly allocated.

        Returns:
            Output name → the caller's array, or a `GpuArray`; complete when this returns.

        Raises:
            FeedError: if an array has the wrong name, type, shape, layout or device.
            RunnerStateError: after `close`, or in a child that forked after the runner was opened.
        """
        return run_in_place(self._open_handle(), feeds, outputs or {})

    def close(self) -> None:
        """Let go of the engine, and keep the kernels that were compiled for batches seen since; see `Runner.close`."""
        contexts, self._contexts = self._contexts, None
        if contexts is not None and self.is_usable:
            contexts.keep_kernels()
        super().close()

    def _run(self, handle: Lanes, feeds: dict[str, Array]) -> dict[str, Array]:
        return run_portions(handle, feeds)


@backends.register("rtx")
class RtxRunner(TensorRTRunner):
    """Run a plan of TensorRT-RTX."""

    name = "rtx"
    requires = "tensorrt_rtx"
    extra = "tensorrt-rtx"
    flavour = "rtx"


def _precision(sidecar: Sidecar | None) -> str:
    """What most convolutions ran in when the engine was read back after its build, else what its graph asks for."""
    if sidecar is None:
        return "unknown"
    counts = _counts(sidecar)
    return counts.most_common(1)[0][0] if counts else sidecar.precision


def _convolutions(sidecar: Sidecar | None) -> tuple[str, ...]:
    if sidecar is None or not (counts := _counts(sidecar)):
        return ()
    return ("convolutions: " + ", ".join(f"{count} {word}" for word, count in counts.most_common()),)


def _counts(sidecar: Sidecar) -> Counter[str]:
    return Counter(word for word in sidecar.convolutions.values() if word != "unknown")
