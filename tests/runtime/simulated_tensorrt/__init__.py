"""TensorRT and the CUDA runtime, simulated: every line of our logic runs where there is no GPU.

What a GPU does with it is another question, which `pytest -m gpu` asks where there is one.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from densenet_deploy.artifacts import Artifact
from densenet_deploy.runtime.batching import BatchProfile
from densenet_deploy.runtime.engine_files import sniff
from densenet_deploy.runtime.trt import load_tensorrt
from tests.runtime.plans import sidecar_of, write_engine
from tests.runtime.simulated_tensorrt.cuda import SimulatedCuda, SimulatedMachine
from tests.runtime.simulated_tensorrt.tensorrt import Behaviour, simulated_module, simulated_plan

RTX = Behaviour()
FULL = Behaviour("tensorrt", (10, 3, 0, 26), has_runtime_config=False)
HEADERS: dict[str, dict[str, Any]] = {"rtx": {}, "tensorrt": {"magic": b"ftrt", "mask": 0}}


@contextlib.contextmanager
def simulated_gpu(behaviour: Behaviour = RTX, machine: SimulatedMachine | None = None) -> Iterator[SimulatedCuda]:
    """Let `import tensorrt_rtx` or `import tensorrt`, and `import cuda.bindings.runtime`, find the simulation."""
    cuda = SimulatedCuda(machine)
    module = simulated_module(cuda, behaviour)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as cache:
        patch.setenv("XDG_CACHE_HOME", cache)
        patch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
        patch.setitem(sys.modules, module.__name__, module)
        load_tensorrt.cache_clear()
        try:
            yield cuda
        finally:
            load_tensorrt.cache_clear()


def write_simulated_engine(
    folder: Path,
    onnx: Path,
    behaviour: Behaviour = RTX,
    profiles: tuple[tuple[int, int, int], ...] = ((1, 2, 8),),
    **changes: Any,
) -> Path:
    """Write a plan that holds the model `onnx`, and its sidecar with `changes`."""
    header = {**HEADERS[behaviour.flavour], "version": behaviour.version}
    plan = simulated_plan(onnx.read_bytes(), profiles, **header)
    found = sniff(plan)
    assert found is not None
    facts: dict[str, Any] = {
        "precision": "fp32",
        "targets": found.targets or ("8.9",),
        "profiles": tuple(BatchProfile(*profile) for profile in profiles),
        "manifest": Artifact.open(onnx).manifest,
    }
    path = folder / f"{onnx.stem}.engine"
    write_engine(path, plan, sidecar_of(plan, **{**facts, **changes}))
    return path
