"""Whole small DenseNets as ONNX, of several exporters, with numbers in which every mix-up shows."""

from __future__ import annotations

import functools
import io
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
import torchvision

from densenet_deploy.graph.graph_pass import apply_passes
from densenet_deploy.graph.onnx_file import expose_values
from densenet_deploy.graph.simplify import simplify_onnx
from densenet_deploy.graph.tensor_changes import TensorChange, read_tensor_changes
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.models.build import build_model
from densenet_deploy.models.to_onnx import OnnxOptions, onnx_from_module
from densenet_deploy.parity.samples import natural_images, noise
from densenet_deploy.variants.spec import DenseNetSpec
from tests.made_once import made_once

# FP32 rounding alone: sums of at most 500 products in another order, in at most 20 layers one after the other, are off
# by some 1e-6 of the largest value of a tensor. A wrong channel, factor or pool is off by 1e-1.
ROUNDING = 2e-5


@dataclass(frozen=True)
class Network:
    """A model, how many buses, layers and transitions it has, and images to run it on, (N, 3, S, S)."""

    proto: onnx.ModelProto
    blocks: tuple[int, ...]
    images: np.ndarray

    def model(self) -> ir.Model:
        """A copy to rewrite."""
        return ir.from_proto(self.proto)

    @functools.cached_property
    def values(self) -> dict[str, np.ndarray]:
        """What its nodes make of the images; not to be changed."""
        return run(self.proto, self.images)


def run(model: ir.Model | onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    """Check `model` and return every value that its nodes make, computed without ONNX Runtime's own rewrites."""
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    exposed = expose_values(proto).SerializeToString()
    session = onnxruntime.InferenceSession(exposed, options, ["CPUExecutionProvider"])
    (fed,) = session.get_inputs()
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, {fed.name: images}), strict=True))


def ranges_of(model: ir.Model | onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    """Calibrate: the largest absolute value of each channel of every feature map."""
    return {name: np.abs(array).max((0, 2, 3)) for name, array in run(model, images).items() if array.ndim == 4}


def assert_same(model: ir.Model, network: Network) -> set[str]:
    """Compare every tensor of the rewritten `model` with the network's, undoing recorded changes.

    Return the names, in the network, of the tensors compared; its output must be among them.
    """
    old, new = network.values, run(model, network.images)
    changes = read_tensor_changes(model.metadata_props)
    compared = set()
    for name, array in new.items():
        change = changes.get(name, TensorChange(name))
        if change.moved is not None or change.of not in old:
            continue
        tolerance = ROUNDING * np.abs(old[change.of]).max()
        np.testing.assert_allclose(change.undone(array), old[change.of], rtol=0, atol=tolerance, err_msg=name)
        compared.add(change.of)
    assert {value.name for value in network.proto.graph.output} <= compared
    return compared


def _classifier() -> onnx.ModelProto:
    return _ours(DenseNetSpec(growth_rate=4, blocks=(2, 3), init_features=8, bn_size=2, num_classes=5), 32)


def _plain_features() -> onnx.ModelProto:
    spec = DenseNetSpec(growth_rate=4, blocks=(2, 1), init_features=8, bn_size=0, stem="cifar", head="features")
    return _ours(spec, 16)


def _multiscale() -> onnx.ModelProto:
    spec = DenseNetSpec(growth_rate=4, blocks=(1, 2), init_features=8, bn_size=2, head="multiscale", num_classes=5)
    return _ours(spec, 32)


def _optimized() -> onnx.ModelProto:
    """The classifier after the basic optimizations of ONNX Runtime, without names and shapes."""
    return _anonymous(_basically_optimized(make_network("classifier").proto))


@functools.cache
def make_network(name: str) -> Network:
    """Ours with each head, torchvision's through the TorchScript exporter, and an optimized one with other names."""
    blocks, size, make = NETWORKS[name]
    folder = made_once(f"network {name}", lambda folder: onnx.save(make(), folder / "model.onnx"))
    return Network(onnx.load(folder / "model.onnx"), blocks, _images(size))


def _images(size: int) -> np.ndarray:
    """Two natural images and two of noise."""
    return np.concatenate([*natural_images(2, Preprocessing(image_size=size)), *noise(2, (1, 3, size, size))])


def _ours(spec: DenseNetSpec, size: int) -> onnx.ModelProto:
    module = _randomized(build_model(spec, seed=1))
    raw = ir.to_proto(onnx_from_module(module, spec.output_name, OnnxOptions(size)))
    model = ir.from_proto(simplify_onnx(raw).model)
    apply_passes(model, ("remove-single-concat", "fold-batchnorm"))
    return ir.to_proto(model)


def _torchscript() -> onnx.ModelProto:
    module = torchvision.models.DenseNet(growth_rate=4, block_config=(2, 3), num_init_features=8, num_classes=5).eval()
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the TorchScript exporter is deprecated, and what it wrote is still around
        torch.onnx.export(
            _randomized(module),
            (torch.zeros(4, 3, 32, 32),),
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=["pixels"],
            output_names=["scores"],
        )
    return onnx.load_from_string(buffer.getvalue())


def _randomized(module: torch.nn.Module) -> torch.nn.Module:
    """Give every number its own value: norms of both signs, and channels whose ranges spread a hundredfold."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.ndim == 1:
            tensor.normal_(generator=generator)
        elif tensor.ndim == 4:
            spread = 10 ** torch.empty(len(tensor), 1, 1, 1).uniform_(-1, 1, generator=generator)
            tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator).mul_(spread)
    return module


def _basically_optimized(proto: onnx.ModelProto) -> onnx.ModelProto:
    """What the basic optimizations of ONNX Runtime leave of `proto`."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def _anonymous(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Drop the names of nodes and the shapes of values, and number the values that are neither input nor output."""
    model = ir.from_proto(proto)
    values = [value for node in model.graph for value in node.outputs if not value.is_graph_output()]
    for number, value in enumerate((*values, *model.graph.initializers.values())):
        value.name = f"t{number}"
    for value in values:
        value.shape = None
    for node in model.graph:
        node.name = None
    return ir.to_proto(model)


NETWORKS: Mapping[str, tuple[tuple[int, ...], int, Callable[[], onnx.ModelProto]]] = {
    "classifier": ((2, 3), 32, _classifier),
    "plain features": ((2, 1), 16, _plain_features),
    "multiscale": ((1, 2), 32, _multiscale),
    "torchvision": ((2, 3), 32, _torchscript),
    "optimized, other names": ((2, 3), 32, _optimized),
}
"""The layers of each block, the size of the images, and what makes the model."""
