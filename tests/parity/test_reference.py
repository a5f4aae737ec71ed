"""The forward pass in NumPy: by hand for a network of a few numbers, and as PyTorch computes every kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from densenet_deploy.models.build import build_model
from densenet_deploy.parity.reference import numpy_outputs
from densenet_deploy.variants.spec import HEADS, POOLINGS, STEMS, DenseNetSpec

SMALL = {"growth_rate": 3, "blocks": (2, 1), "init_features": 4, "bn_size": 2, "num_classes": 5}


def state_of(spec: DenseNetSpec) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    module = build_model(spec, seed=1).double()
    generator = torch.Generator().manual_seed(2)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and ("norm" in name or name.endswith("bias")):
            tensor.uniform_(0.5, 1.5, generator=generator)
    return module, {name: tensor.numpy() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize(
    "numbers",
    [
        *({"stem": stem} for stem in STEMS),
        *({"pooling": pooling, "hidden": "linear:7 norm relu linear:6:nobias"} for pooling in POOLINGS),
        *({"head": head, "bias": False} for head in HEADS),
        {"bn_size": 0, "blocks": (1, 2, 1), "compression": 0.75, "in_channels": 1, "drop_rate": 0.3},
        {"bottlenecks": (1, 5, 4)},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(32, 32), (27, 41)], ids=str)
def test_it_computes_what_pytorch_computes(numbers, size):
    spec = DenseNetSpec(**{**SMALL, **numbers})
    module, state = state_of(spec)
    images = np.random.default_rng(0).standard_normal((2, spec.in_channels, *size))
    with torch.inference_mode():
        expected = module(torch.from_numpy(images)).numpy()
    found = numpy_outputs(spec, state, images)
    assert found.dtype == np.float64
    # both in float64: some thousand roundings of numbers near 1
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


def test_a_network_of_a_few_numbers_by_hand():
    spec = DenseNetSpec(1, (1,), 1, bn_size=0, stem="cifar", num_classes=1, in_channels=1, head="features")
    norm = {"weight": [2.0], "bias": [1.0], "running_mean": [0.5], "running_var": [0.25 - 1e-5]}
    state = {f"features.denseblock1.denselayer1.norm1.{name}": np.array(value) for name, value in norm.items()}
    state |= {f"features.norm5.{name}": np.array(value * 2) for name, value in norm.items()}
    kernel = np.zeros((1, 1, 3, 3))
    kernel[0, 0, 0, 0] = 1.0  # what lies up and left of a pixel
    state |= {"features.conv0.weight": kernel, "features.denseblock1.denselayer1.conv1.weight": 3 * kernel}
    images = np.array([[[[1.0, -2.0], [7.0, 5.0]]]])
    # conv0: [[0, 0], [0, 1]]; norm: 4x - 1; relu: [[0, 0], [0, 3]]; conv1 moves the first pixel down and right: zeros
    # norm5 of both channels: [[-1, -1], [-1, 3]] and four times -1; relu, mean
    assert numpy_outputs(spec, state, images).tolist() == pytest.approx(np.array([[0.75, 0.0]]))
