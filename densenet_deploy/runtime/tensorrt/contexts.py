"""Execution contexts of an engine, and the cache of the kernels that TensorRT-RTX compiles for them.

TensorRT-RTX turns a plan into kernels for the GPU at hand when a context is made. What it compiled is kept in a file
that is named after the plan, the GPU and the driver, so that the next start finds it. Full TensorRT has no such step.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from pathlib import Path
from typing import Any, Final

from densenet_deploy.artifacts import os_errors_about, write_file
from densenet_deploy.errors import DensenetDeployError
from densenet_deploy.runtime.engine_files import Plan
from densenet_deploy.runtime.nvidia_options import NvidiaOptions
from densenet_deploy.runtime.tensorrt.engine import Engine, refusal
from densenet_deploy.runtime.tensorrt.lane import Graphs, Lane

log = logging.getLogger(__name__)

_LARGEST_BYTES: Final = 100 * 2**20  # larger caches take longer to load than they save


class Contexts:
    """Makes the contexts of one engine, and the lanes around them."""

    def __init__(self, engine: Engine, plan: Plan, options: NvidiaOptions) -> None:
        features = engine.trt.features
        self._engine = engine
        self._lock = threading.Lock()  # contexts are made one after another: each may compile
        self._config: Any = None
        self._cache: _KernelCache | None = None
        self._graphs = Graphs.OFF if options.graphs is False else Graphs.RECORDED
        if features.runtime_config and (features.runtime_cache or features.graph_strategy):
            self._config = engine.native.create_runtime_config()
        if features.runtime_cache and self._config is not None:
            self._cache = _KernelCache(self._config, _cache_path(engine, plan, options.cache_folder))
        if features.graph_strategy and self._config is not None and self._graphs is not Graphs.OFF:
            self._config.cuda_graph_strategy = engine.trt.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._graphs = Graphs.NATIVE  # both at once is not allowed

    def make_lane(self) -> Lane:
        """Make a lane with a context of its own.

        Raises:
            ResourceError: if the GPU's memory does not suffice.
            BackendError: if TensorRT refuses.
        """
        engine = self._engine
        with self._lock:
            if self._config is None:
                context = engine.native.create_execution_context()
            else:
                context = engine.native.create_execution_context(runtime_config=self._config)
        if context is None:
            raise refusal(engine.trt, engine.subject, "TensorRT makes no execution context", "build it again")
        return Lane(engine, context, graphs=self._graphs)

    def keep_kernels(self) -> None:
        """Write what was compiled to the cache, if there is one and it has changed. That it cannot is no failure."""
        if self._cache is not None:
            self._cache.save()


class _KernelCache:
    """The file of compiled kernels; TensorRT refuses those of another GPU, driver or version."""

    def __init__(self, config: Any, path: Path) -> None:
        self._path = path
        self._native = config.create_runtime_cache()
        self._saved = b""  # hash of what the file holds
        try:
            with os_errors_about(path):
                blob = path.read_bytes() if path.is_file() else b""
        except DensenetDeployError as exc:
            log.info("kernels are compiled anew: %s", exc)
            blob = b""
        if blob and self._native.deserialize(blob):
            self._saved = _hash(blob)
        self._in_use = bool(config.set_runtime_cache(self._native))

    def save(self) -> None:
        if not self._in_use:
            return
        blob = bytes(self._native.serialize())
        if _hash(blob) == self._saved or not 0 < len(blob) <= _LARGEST_BYTES:
            return
        try:
            write_file(self._path, blob)
        except DensenetDeployError as exc:
            log.info("compiled kernels are not kept: %s", exc)
            return
        self._saved = _hash(blob)


def _hash(blob: bytes) -> bytes:
    return hashlib.sha256(blob).digest()


def _cache_path(engine: Engine, plan: Plan, folder: Path) -> Path:
    """A file for this plan, GPU, driver and version: kernels for another would be refused anyway."""
    gpu = re.sub(r"[^a-z0-9]+", "-", engine.gpu.name.lower()).strip("-")
    digest = hashlib.sha256(plan.data).hexdigest()[:24]
    return folder / f"{digest}-{gpu}-{engine.trt.version}-{engine.cuda.driver_version()}.kernels"
