"""A TensorRT engine on one GPU, and the cache of the kernels that TensorRT-RTX compiles for it.

TensorRT-RTX turns an engine into kernels for the present GPU when an execution context is created. The compiled kernels
are kept in a file named after the engine, the GPU and the driver, so that the next start finds them. Full TensorRT has
no such step.
"""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from densenet_deploy.artifacts import os_errors_about, write_file
from densenet_deploy.errors import BackendError, DensenetDeployError, ModelFileError, ResourceError
from densenet_deploy.runtime.batching import BatchProfile
from densenet_deploy.runtime.cudart import Cuda
from densenet_deploy.runtime.engine_files import Plan
from densenet_deploy.runtime.feeds import TensorSpec
from densenet_deploy.runtime.nvidia import Gpu
from densenet_deploy.runtime.sidecar import Sidecar
from densenet_deploy.runtime.trt import TensorRT

log = logging.getLogger(__name__)

_LARGEST_CACHE_BYTES: Final = 100 * 2**20  # larger caches take longer to load than they save
_OUT_OF_MEMORY: Final = re.compile(r"out ?of ?memory|cudaErrorMemoryAllocation|cudaError 2\b", re.IGNORECASE)


@dataclass(frozen=True)
class Engine:
    """A deserialized engine.

    Attributes:
        native: TensorRT's engine, which threads may share.
        inputs, outputs: a batch of None is any that the profiles accept, or more in portions.
        profiles: at least one; of an engine with a fixed batch, that batch three times.
        subject: what errors name: the path of the engine.
    """

    native: Any
    trt: TensorRT
    cuda: Cuda
    gpu: Gpu
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[BatchProfile, ...]
    subject: str

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return (*self.inputs, *self.outputs)


def engine_from_plan(plan: Plan, trt: TensorRT, cuda: Cuda, gpu: Gpu) -> Engine:
    """Deserialize a checked plan on `gpu`, which must be the device of this thread.

    Raises:
        BackendError: if TensorRT refuses it.
        ResourceError: if the GPU runs out of memory.
        ModelFileError: if its weights were left out, more than the batch varies, or NumPy lacks one of its types.
    """
    runtime = trt.module.Runtime(trt.log.native)
    if plan.sidecar is not None:
        _set_up(runtime, plan.sidecar, plan)
    native = runtime.deserialize_cuda_engine(plan.data)
    if native is None:
        raise refusal(trt, plan.path, "TensorRT cannot load it", "build it again on this machine with build-trt")
    specs = {mode: _specs(native, trt.module, mode, plan) for mode in ("INPUT", "OUTPUT")}
    return Engine(
        native=native,
        trt=trt,
        cuda=cuda,
        gpu=gpu,
        inputs=specs["INPUT"],
        outputs=specs["OUTPUT"],
        profiles=_profiles(native, specs["INPUT"]),
        subject=str(plan.path),
    )


def _set_up(runtime: Any, sidecar: Sidecar, plan: Plan) -> None:
    """Set what the plan itself does not say."""
    if sidecar.options.get("strip_weights"):
        raise ModelFileError(plan.path, "was built without its weights", "refit it, or build without --strip-weights")
    if sidecar.options.get("dla") is not None:
        runtime.DLA_core = sidecar.options["dla"]
    if sidecar.version_compatible:
        runtime.engine_host_code_allowed = True  # it carries the runtime of its version, and its hash was checked


def refusal(trt: TensorRT, subject: object, what: str, fix: str) -> DensenetDeployError:
    """Return the error for a failed call of TensorRT, with the reason that it logged."""
    reason = trt.log.last_error()
    if _OUT_OF_MEMORY.search(reason):
        return ResourceError(subject, f"{what}: {reason}", "use a smaller batch or fewer streams, or close others")
    return BackendError(subject, f"{what}: {reason}", fix)


def _specs(native: Any, module: Any, mode: str, plan: Plan) -> tuple[TensorSpec, ...]:
    names = [native.get_tensor_name(index) for index in range(native.num_io_tensors)]
    direction = getattr(module.TensorIOMode, mode)
    return tuple(_spec(native, module, name, plan) for name in names if native.get_tensor_mode(name) == direction)


def _spec(native: Any, module: Any, name: str, plan: Plan) -> TensorSpec:
    shape = tuple(None if size < 0 else int(size) for size in native.get_tensor_shape(name))
    if not shape or None in shape[1:]:
        raise ModelFileError(plan.path, f"{name} varies in more than its batch", "build it with a fixed image size")
    kind = native.get_tensor_dtype(name)
    try:
        return TensorSpec(name, shape, np.dtype(module.nptype(kind)))
    except TypeError as exc:
        raise ModelFileError(plan.path, f"{name} is {kind}", "build it with float32 inputs and outputs") from exc


def _profiles(native: Any, inputs: tuple[TensorSpec, ...]) -> tuple[BatchProfile, ...]:
    spec = inputs[0]
    if spec.shape[0] is not None:
        return (BatchProfile(spec.shape[0], spec.shape[0], spec.shape[0]),)
    return tuple(
        BatchProfile(*(int(shape[0]) for shape in native.get_tensor_profile_shape(spec.name, index)))
        for index in range(native.num_optimization_profiles)
    )


class KernelCache:
    """A file of compiled kernels; TensorRT-RTX refuses those of another GPU, driver or version."""

    def __init__(self, config: Any, engine: Engine, plan: Plan, folder: Path) -> None:
        self._path = path = _cache_path(engine, plan, folder)
        self._native = config.create_runtime_cache()
        self._saved = b""  # hash of what the file holds
        try:
            with os_errors_about(path):
                blob = path.read_bytes() if path.is_file() else b""
        except DensenetDeployError as exc:
            log.info("kernels are compiled again: %s", exc)
            blob = b""
        if blob and self._native.deserialize(blob):
            self._saved = _hash(blob)
        self._in_use = bool(config.set_runtime_cache(self._native))

    def save(self) -> None:
        """Write the kernels if they have changed; failing to is not an error."""
        if not self._in_use:
            return
        blob = bytes(self._native.serialize())
        if not 0 < len(blob) <= _LARGEST_CACHE_BYTES or (digest := _hash(blob)) == self._saved:
            return
        try:
            write_file(self._path, blob)
        except DensenetDeployError as exc:
            log.info("compiled kernels are not saved: %s", exc)
            return
        self._saved = digest


def _hash(blob: bytes) -> bytes:
    return hashlib.sha256(blob).digest()


def _cache_path(engine: Engine, plan: Plan, folder: Path) -> Path:
    """The file for this engine, GPU, driver and version: kernels for another would be refused anyway."""
    gpu = re.sub(r"[^a-z0-9]+", "-", engine.gpu.name.lower()).strip("-")
    digest = hashlib.sha256(plan.data).hexdigest()[:24]
    return folder / f"{digest}-{gpu}-{engine.trt.version}-{engine.cuda.driver_version()}.kernels"
