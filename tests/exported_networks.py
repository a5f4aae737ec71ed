"""Small networks of every head, stem and kind of layer, each translated once a test run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch

from densenet_deploy.graph.simplify import simplify_onnx
from densenet_deploy.models.build import DenseNet, build_model
from densenet_deploy.models.to_onnx import OnnxOptions, onnx_from_module
from densenet_deploy.variants.spec import DenseNetSpec
from tests.made_once import made_once


@dataclass(frozen=True)
class Exported:
    """A module, how it was written, and what was written: as the exporter left it, and simplified."""

    module: DenseNet
    options: OnnxOptions
    raw: onnx.ModelProto
    simple: onnx.ModelProto


CASES = {
    "classifier of bottlenecks, CIFAR stem, dynamic batch, opset 20": (
        DenseNetSpec(growth_rate=4, blocks=(2, 2), init_features=8, bn_size=2, stem="cifar", num_classes=5),
        OnnxOptions(image_size=16),
    ),
    "features of plain layers, CIFAR stem, batch 3, opset 18": (
        DenseNetSpec(growth_rate=4, blocks=(2, 1), init_features=8, bn_size=0, stem="cifar", head="features"),
        OnnxOptions(image_size=16, batch=3, opset=18),
    ),
    "multiscale of bottlenecks, ImageNet stem, dropout, batch 1, opset 23": (
        DenseNetSpec(
            growth_rate=4, blocks=(1, 2), init_features=8, bn_size=2, drop_rate=0.2, head="multiscale", num_classes=5
        ),
        OnnxOptions(image_size=32, batch=1, opset=23),
    ),
}


@pytest.fixture(scope="session", params=CASES.values(), ids=CASES)
def exported(request: pytest.FixtureRequest) -> Exported:
    """A network with statistics and biases that are all different, so that no mix-up goes unseen."""
    spec, options = request.param
    module = build_model(spec, seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and ("norm" in name or name.endswith("bias")):
            tensor.uniform_(0.5, 1.5, generator=generator)

    def translate(folder: Path) -> None:
        raw = ir.to_proto(onnx_from_module(module, spec.output_name, options))
        onnx.save(raw, folder / "raw.onnx")
        onnx.save(simplify_onnx(raw).model, folder / "simple.onnx")

    files = made_once(f"exported-{spec.head}", translate)
    return Exported(module, options, onnx.load(files / "raw.onnx"), onnx.load(files / "simple.onnx"))
