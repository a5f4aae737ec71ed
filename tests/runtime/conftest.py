"""A real engine on a real GPU, where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import DensenetDeployError
from densenet_deploy.packages import is_installed
from densenet_deploy.runtime.batching import BatchProfile
from densenet_deploy.runtime.cudart import load_cuda
from densenet_deploy.runtime.engine_files import sniff
from densenet_deploy.runtime.nvidia import Gpu
from densenet_deploy.runtime.trt import FLAVOURS, MODULES, TensorRT, load_tensorrt
from tests.runtime.plans import sidecar_of, write_engine

PROFILE = BatchProfile(1, 2, 8)


@pytest.fixture(scope="session")
def real_gpu() -> Gpu:
    """The first GPU of this machine; skips, with the reason, where none answers."""
    try:
        return load_cuda().gpu(0)
    except DensenetDeployError as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def real_engine(real_gpu: Gpu, tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a float32 engine of whichever TensorRT supports the GPU, batches 1 to 8."""
    for flavour in (flavour for flavour in FLAVOURS if is_installed(MODULES[flavour])):
        trt = load_tensorrt(flavour)
        plan = float32_plan(trt, tiny_onnx.read_bytes())
        header = sniff(plan)
        assert header is not None
        if flavour == "rtx" and not header.supports(real_gpu.compute_capability):
            continue
        path = tmp_path_factory.mktemp("engine") / "tiny.engine"
        targets = header.targets or (real_gpu.compute_capability,)
        manifest = Artifact.open(tiny_onnx).manifest
        write_engine(path, plan, sidecar_of(plan, precision="fp32", targets=targets, manifest=manifest))
        return path
    pytest.skip(f"no installed TensorRT supports compute capability {real_gpu.compute_capability}")


def float32_plan(trt: TensorRT, onnx: bytes) -> bytes:
    """Build with TensorRT's own calls, so that these tests stand without our builder."""
    module: Any = trt.module
    builder = module.Builder(trt.log.native)
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = module.OnnxParser(network, trt.log.native)
    assert parser.parse(onnx), trt.log.last_error()
    config = builder.create_builder_config()
    config.clear_flag(module.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    entry = network.get_input(0)
    shapes = [(batch, *tuple(entry.shape)[1:]) for batch in (PROFILE.min, PROFILE.opt, PROFILE.max)]
    profile.set_shape(entry.name, *shapes)
    assert config.add_optimization_profile(profile) == 0
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, trt.log.last_error()
    return bytes(plan)
