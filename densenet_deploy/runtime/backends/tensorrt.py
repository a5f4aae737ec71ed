"""Run TensorRT engines (`.engine`) on NVIDIA GPUs: `tensorrt` for full TensorRT, `rtx` for TensorRT-RTX.

The sidecar of an engine is verified before TensorRT reads a byte. A call copies its batch through pinned memory; arrays
that are on the GPU already are run in place (`run_on_gpu`). Callers in several threads run in parallel, as many as
`NvidiaOptions.streams`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from densenet_deploy.artifacts import Artifact, os_errors_about
from densenet_deploy.errors import BackendError, DeviceError
from densenet_deploy.runtime.cudart import load_cuda
from densenet_deploy.runtime.engine_files import HEADER_BYTES, Plan, read_plan, require_gpu, require_version, sniff
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.runner import Device, Placement, Runner, RunnerOptions, RunnerSource, backends
from densenet_deploy.runtime.sidecar import Sidecar
from densenet_deploy.runtime.tensorrt.engine import Engine, engine_from_plan
from densenet_deploy.runtime.tensorrt.execution_pool import ExecutionPool
from densenet_deploy.runtime.trt import load_tensorrt

_TITLES: Final = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}


@backends.register("tensorrt")
class TensorRTRunner(Runner):
    """Run an engine of full TensorRT."""

    name = "tensorrt"
    suffixes = (".engine",)
    requires = "tensorrt"
    extra = "tensorrt"
    devices = ("cuda",)
    flavour: ClassVar[str] = "tensorrt"

    @classmethod
    def suits(cls, artifact: Artifact) -> bool:
        """Whether the header of the engine names this flavour."""
        with os_errors_about(artifact.path), artifact.path.open("rb") as file:
            header = sniff(file.read(HEADER_BYTES))
        return header is not None and header.flavour == cls.flavour

    @classmethod
    def open(cls, source: RunnerSource, device: Device | None, options: RunnerOptions) -> Runner:
        """Verify the engine, load it and run it twice on zeros; see `Runner.open`."""
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
        version = load_tensorrt(cls.flavour).version
        try:
            count = load_cuda(cls.extra).device_count()
        except DeviceError:
            return version, ()
        return version, tuple(f"cuda:{index}" for index in range(count))

    def __init__(self, engine: Engine, plan: Plan, precision: str, options: RunnerOptions) -> None:
        pool = ExecutionPool(engine, plan, options.nvidia)
        graphs = pool.warm_up()
        placement = Placement(
            backend=self.name,
            version=engine.trt.version,
            device=f"cuda:{engine.gpu.index}",
            provider=f"{_TITLES[self.flavour]} on {engine.gpu.name} ({engine.gpu.compute_capability})",
            precision=precision,
            threads=1,
            notes=(*_convolutions(plan.sidecar), graphs),
        )
        super().__init__(
            pool,
            engine.inputs,
            engine.outputs,
            placement,
            plan.sidecar.manifest if plan.sidecar else None,
            check_values=options.check_values,
        )

    def run_on_gpu(self, feeds: Mapping[str, object], outputs: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Run one batch that is on the GPU, without copying it.

        Args:
            feeds: for every input a contiguous array with `__cuda_array_interface__` (CuPy, PyTorch, Numba) or
                `__dlpack__`, of a batch that one profile of the engine accepts. Their values are not checked.
            outputs: such arrays to write into, by output name; others are newly allocated.

        Returns:
            Output name → the caller's array, or a `GpuArray`; complete when this returns.

        Raises:
            FeedError: if an array has the wrong name, type, shape, layout or device.
            RunnerStateError: after `close`, or in a child that forked after the runner was opened.
        """
        pool: ExecutionPool = self._open_handle()
        return pool.run_in_place(feeds, outputs or {})

    def close(self) -> None:
        """Release the engine, and save the kernels that were compiled since it was opened; see `Runner.close`."""
        if self.is_usable:
            self._open_handle().save_kernels()
        super().close()

    def _run(self, handle: ExecutionPool, feeds: dict[str, Array]) -> dict[str, Array]:
        return handle.run(feeds)


@backends.register("rtx")
class RtxRunner(TensorRTRunner):
    """Run an engine of TensorRT-RTX."""

    name = "rtx"
    requires = "tensorrt_rtx"
    extra = "tensorrt-rtx"
    flavour = "rtx"


def _precision(sidecar: Sidecar | None) -> str:
    """The precision of most convolutions, as read back from the engine after its build, else that of the graph."""
    if sidecar is None:
        return "unknown"
    counts = _counts(sidecar)
    return counts.most_common()[0][0] if counts else sidecar.precision


def _convolutions(sidecar: Sidecar | None) -> tuple[str, ...]:
    if sidecar is None or not (counts := _counts(sidecar)):
        return ()
    return ("convolutions: " + ", ".join(f"{count} {word}" for word, count in counts.most_common()),)


def _counts(sidecar: Sidecar) -> Counter[str]:
    return Counter(word for word in sidecar.convolutions.values() if word != "unknown")
