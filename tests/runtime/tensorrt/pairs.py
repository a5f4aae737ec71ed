"""A network of two inputs and two outputs, as an engine on a simulated GPU, and what it computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from densenet_deploy.runtime.cudart import load_cuda
from densenet_deploy.runtime.engine_files import Plan, read_plan
from densenet_deploy.runtime.nvidia import NvidiaOptions
from densenet_deploy.runtime.tensorrt.engine import Engine, engine_from_plan
from densenet_deploy.runtime.tensorrt.execution_pool import ExecutionPool
from densenet_deploy.runtime.trt import load_tensorrt
from tests.runtime.simulated_tensorrt import FULL, HEADERS, simulated_gpu
from tests.runtime.simulated_tensorrt.cuda import SimulatedCuda, SimulatedMachine
from tests.runtime.simulated_tensorrt.tensorrt import Behaviour, simulated_plan

PAIR: Final = """<ir_version: 8, opset_import: ["" : 18]>
pair (float[N,2,4,4] image, float[N,2] offset) => (float[N,2] shifted, float[N,2] total) {
  pooled = GlobalAveragePool(image)
  means = Flatten(pooled)
  shifted = Add(means, offset)
  first = Constant<value_ints=[0]>()
  sum = ReduceSum<keepdims=1>(means, first)
  total = Add(sum, offset)
}"""
"""Its second output depends on every sample of the batch that runs, so it shows what fills a batch up."""


def feeds_of(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Whole numbers, of which float32 computes sums and means of 16 exactly."""
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(-9, 9, (count, 2, 4, 4)).astype(np.float32),
        "offset": random.integers(-9, 9, (count, 2)).astype(np.float32),
    }


def computed(feeds: Mapping[str, np.ndarray], batch: int | None = None) -> dict[str, np.ndarray]:
    """What the network returns for all samples in one run, as a batch of `batch`: the last one fills it up."""
    means = feeds["image"].mean((2, 3))
    filled = [*means, *[means[-1]] * ((batch or len(means)) - len(means))]
    return {"shifted": means + feeds["offset"], "total": np.sum(filled, 0) + feeds["offset"]}


@dataclass
class Bench:
    """A simulated GPU with an engine of the network on it."""

    gpu: SimulatedCuda
    engine: Engine
    plan: Plan

    def pool(self, **options: Any) -> ExecutionPool:
        return ExecutionPool(self.engine, self.plan, NvidiaOptions(**options))


@contextlib.contextmanager
def pair_on_gpu(
    folder: Path,
    behaviour: Behaviour = FULL,
    profiles: tuple[tuple[int, int, int], ...] = ((1, 2, 8),),
    machine: SimulatedMachine | None = None,
) -> Iterator[Bench]:
    with simulated_gpu(behaviour, machine) as gpu:
        path, onnx_bytes = folder / "pair.engine", onnx.parser.parse_model(PAIR).SerializeToString()
        path.write_bytes(simulated_plan(onnx_bytes, profiles, **HEADERS[behaviour.flavour], version=behaviour.version))
        plan, cuda = read_plan(path, trust_engine=True), load_cuda()
        yield Bench(gpu, engine_from_plan(plan, load_tensorrt(behaviour.flavour), cuda, cuda.gpu(0)), plan)
