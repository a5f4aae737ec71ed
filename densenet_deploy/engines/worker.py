"""The child that builds; its parent is `builder.Builder`.

It is started early, and imports TensorRT while the parent prepares the graph. Both sides speak lines of JSON::

    parent   {"options": {...}, "verbose": false}
    child    {"version": "1.7.1.116", "gpu": null, ...}                      or {"error": ["BackendError", ...]}
    parent   {"onnx": "artifacts/densenet121.fp16.onnx", "plan": "artifacts/.densenet121.fp16.engine.ab12.tmp"}
    child    {"written": 24387916}                                           or {"os_error": [28, "No space left ..."]}
    child    {"sha256": "...", "inputs": [...], "asked": {...}, "proof": {...}, ...}

Between the last two the parent waits for the disk, and this process reads back what it built. It imports little, since
all of it adds to the memory of the build. A child that finds its standard input closed has lost its parent, and ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from densenet_deploy.engines.options import BuildOptions
from densenet_deploy.engines.precision import PrecisionProof, from_inspector
from densenet_deploy.engines.rtx_plan import read_rtx_plan
from densenet_deploy.engines.support import require_supported
from densenet_deploy.engines.tensorrt import BuiltEngine, engine_from_onnx
from densenet_deploy.errors import BackendError, DensenetDeployError, ResourceError
from densenet_deploy.processes import answers, say
from densenet_deploy.runtime.gpus import find_gpus
from densenet_deploy.runtime.plan import HEADER_BYTES, sniff
from densenet_deploy.runtime.trt import TensorRT, load_tensorrt


def main() -> None:
    """Be the child."""
    with answers() as stream:
        _serve(sys.stdin.buffer, stream)


def _serve(questions: BinaryIO, stream: BinaryIO) -> None:
    """Answer the parent: agree to the options, then build."""
    line = questions.readline()
    if not line:  # started ahead, and not wanted
        return
    request = json.loads(line)
    if request["verbose"]:
        import logging

        logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        for answer in _answers(request["options"], questions):
            say(stream, answer)
    except MemoryError:
        fix = "close other programs or build a smaller batch; the ONNX is kept"
        _say_error(stream, ResourceError("TensorRT", "memory ran out while building", fix))
    except DensenetDeployError as exc:
        _say_error(stream, exc)


def _say_error(stream: BinaryIO, exc: DensenetDeployError) -> None:
    say(stream, {"error": [type(exc).__name__, exc.subject, exc.why, exc.fix]})


def _answers(facts: Mapping[str, Any], questions: BinaryIO) -> Iterator[Mapping[str, Any]]:
    options = BuildOptions.from_facts(facts)
    trt, gpus = load_tensorrt(options.flavour), find_gpus()
    require_supported(trt, options, gpus)
    gpu = gpus[0] if gpus else None
    yield {
        "version": trt.version,
        "gpu": gpu and gpu.name,
        "compute_capability": gpu and gpu.compute_capability,
    }
    line = questions.readline()
    if not line:
        return
    _end_with(questions)
    places = json.loads(line)
    built = engine_from_onnx(trt, Path(places["onnx"]), options)
    try:
        with Path(places["plan"]).open("xb") as file:
            file.write(built.plan)
    except OSError as exc:
        yield {"os_error": [exc.errno, exc.strerror]}
        return
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


def _end_with(questions: BinaryIO) -> None:
    """End this process when its parent closes the line, whatever native call it is in."""

    def wait() -> None:
        questions.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
