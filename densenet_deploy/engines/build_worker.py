"""The worker that builds an engine; `builder.Builder` is its parent.

It is started early, and imports TensorRT while the parent prepares the graph. Lines of JSON (see `worker.py`)::

    parent   {"flavour": "rtx", "precision": "fp16", ...}                    `BuildOptions`
    child    {"version": "1.7.1.116", "gpu": null, ...}                      `Toolchain`, or an error
    parent   ["artifacts/densenet121.fp16.onnx", "artifacts/.densenet121.fp16.engine.ab12.tmp"]
    child    24387916                                                        the size of the plan
    child    {"sha256": "...", "inputs": [...], "asked": {...}, ...}         `BuildResult`

Between the last two the parent waits for the disk, and this process reads the engine back. It imports little, because
each import adds to the memory of the build.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from densenet_deploy.engines.builder import BuildResult, Toolchain
from densenet_deploy.engines.options import BuildOptions
from densenet_deploy.engines.precision import EnginePrecision, from_inspector, from_rtx_plan
from densenet_deploy.engines.tensorrt import engine_from_onnx, require_supported
from densenet_deploy.errors import BackendError, ResourceError
from densenet_deploy.packages import is_installed
from densenet_deploy.records import from_plain, to_plain
from densenet_deploy.runtime.engine_files import HEADER_BYTES, sniff
from densenet_deploy.runtime.nvidia import find_gpus
from densenet_deploy.runtime.trt import MODULES, TensorRT, load_tensorrt


def main(requests: Iterator[Any]) -> Iterator[Any]:
    """Check the options, then build."""
    _import_ahead()
    for facts in requests:
        options = from_plain(BuildOptions, facts)
        trt, gpus = load_tensorrt(options.flavour), find_gpus()
        require_supported(trt, options, gpus)
        gpu = (gpus[0].name, gpus[0].compute_capability) if gpus else (None, None)
        yield to_plain(Toolchain(trt.version, *gpu))
        for onnx, plan in requests:
            yield from _built(trt, Path(onnx), Path(plan), options)


def _import_ahead() -> None:
    """Import TensorRT before the options arrive, if only one flavour is installed; errors show when it is used."""
    installed = [module for module in MODULES.values() if is_installed(module)]
    if len(installed) == 1:
        with contextlib.suppress(Exception):
            importlib.import_module(installed[0])


def _built(trt: TensorRT, onnx: Path, plan: Path, options: BuildOptions) -> Iterator[Any]:
    try:
        built = engine_from_onnx(trt, onnx, options)
        with plan.open("xb") as file:
            size = file.write(built.plan)
        yield size
        import hashlib  # 4 MiB, which are less than the build has freed

        header = sniff(bytes(memoryview(built.plan)[:HEADER_BYTES]))
        result = BuildResult(
            hashlib.sha256(built.plan).hexdigest(),
            size,
            () if header is None else header.targets,
            built.inputs,
            built.outputs,
            built.profiles,
            built.asked,
            _precision(trt, built.plan, options),
            built.notes,
            {"parse": built.parse_seconds, "build": built.build_seconds},
        )
    except MemoryError as exc:
        fix = "close other programs or build a smaller batch; the ONNX is kept"
        raise ResourceError("TensorRT", "memory ran out while building", fix) from exc
    yield to_plain(result)


def _precision(trt: TensorRT, plan: Any, options: BuildOptions) -> EnginePrecision:
    if trt.features.compute_capabilities:
        return from_rtx_plan(plan)
    if options.strip_weights:
        return EnginePrecision()  # it cannot be loaded before it is refitted
    runtime = trt.module.Runtime(trt.log.native)
    runtime.engine_host_code_allowed = options.version_compatible  # the plan was built here a moment ago
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        why = f"does not load where it was built: {trt.log.last_error()}"
        raise BackendError("engine", why, "report this")
    inspector = engine.create_engine_inspector()
    return from_inspector(inspector.get_engine_information(trt.module.LayerInformationFormat.JSON))
