"""The worker that builds an engine; `builder.Builder` is its parent.

It is started early, and imports TensorRT while the parent prepares the graph. Lines of JSON (see `worker.py`)::

    parent   {"flavour": "rtx", "precision": "fp16", ...}                    the options
    child    {"version": "1.7.1.116", "gpu": null, ...}                      or BackendError, DeviceError, ...
    parent   {"onnx": "artifacts/densenet121.fp16.onnx", "plan": "artifacts/.densenet121.fp16.engine.ab12.tmp"}
    child    {"written": 24387916}                                           or OSError, ModelFileError, ...
    child    {"sha256": "...", "inputs": [...], "asked": {...}, "proof": {...}, ...}

Between the last two the parent waits for the disk, and this process reads back what it built. It imports little,
because each import adds to the memory of the build.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from densenet_deploy.engines.options import BuildOptions
from densenet_deploy.engines.precision import PrecisionProof, from_inspector
from densenet_deploy.engines.rtx_plan import read_rtx_plan
from densenet_deploy.engines.support import require_supported
from densenet_deploy.engines.tensorrt import BuiltEngine, engine_from_onnx
from densenet_deploy.errors import BackendError, ResourceError
from densenet_deploy.runtime.engine_files import HEADER_BYTES, sniff
from densenet_deploy.runtime.nvidia import find_gpus
from densenet_deploy.runtime.trt import TensorRT, load_tensorrt


def main(requests: Iterator[Any]) -> Iterator[Mapping[str, Any]]:
    """Check the options, then build."""
    facts = next(requests, None)
    if facts is None:  # started ahead, and not needed
        return
    options = BuildOptions.from_facts(facts)
    trt, gpus = load_tensorrt(options.flavour), find_gpus()
    require_supported(trt, options, gpus)
    gpu = gpus[0] if gpus else None
    yield {
        "version": trt.version,
        "gpu": gpu and gpu.name,
        "compute_capability": gpu and gpu.compute_capability,
    }
    for places in requests:
        try:
            yield from _built(trt, Path(places["onnx"]), Path(places["plan"]), options)
        except MemoryError as exc:
            fix = "close other programs or build a smaller batch; the ONNX is kept"
            raise ResourceError("TensorRT", "memory ran out while building", fix) from exc


def _built(trt: TensorRT, onnx: Path, plan: Path, options: BuildOptions) -> Iterator[Mapping[str, Any]]:
    built = engine_from_onnx(trt, onnx, options)
    with plan.open("xb") as file:
        file.write(built.plan)
    yield {"written": built.plan.nbytes}
    yield {**_plan_facts(built.plan), **_build_facts(built), "proof": _proof(trt, built.plan, options).to_facts()}


def _plan_facts(plan: Any) -> dict[str, Any]:
    import hashlib  # 4 MiB, which are less than the build gave back

    header = sniff(bytes(memoryview(plan)[:HEADER_BYTES]))
    return {"sha256": hashlib.sha256(plan).hexdigest(), "targets": () if header is None else header.targets}


def _build_facts(built: BuiltEngine) -> dict[str, Any]:
    return {
        "inputs": [asdict(tensor) for tensor in built.inputs],
        "outputs": [asdict(tensor) for tensor in built.outputs],
        "profiles": [asdict(profile) for profile in built.profiles],
        "asked": built.asked,
        "notes": built.notes,
        "seconds": {"parse": built.parse_seconds, "build": built.build_seconds},
    }


def _proof(trt: TensorRT, plan: Any, options: BuildOptions) -> PrecisionProof:
    if trt.features.compute_capabilities:
        return read_rtx_plan(plan)
    if options.strip_weights:
        return PrecisionProof(())  # cannot be opened before it is refitted
    runtime = trt.module.Runtime(trt.log.native)
    runtime.engine_host_code_allowed = options.version_compatible  # the plan was built here a moment ago
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError("engine", f"does not load where it was built: {trt.log.last_error()}", "report this")
    inspector = engine.create_engine_inspector()
    return from_inspector(inspector.get_engine_information(trt.module.LayerInformationFormat.JSON))
