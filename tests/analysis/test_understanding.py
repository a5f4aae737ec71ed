"""Feature reuse and growth against computations by hand."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.analysis.plots.growth import growth_steps
from densenet_deploy.analysis.plots.reuse import reuse_maps
from densenet_deploy.errors import DataError
from densenet_deploy.variants.spec import DenseNetSpec

# Two channels enter a block of two layers with k = 1.
SPEC = DenseNetSpec(growth_rate=1, blocks=(2,), init_features=2, bn_size=1)


def weights(*rows: list[float]) -> np.ndarray:
    return np.asarray(rows, np.float32)[:, :, None, None]


def test_a_reuse_map_holds_averages_over_the_channels_of_a_source() -> None:
    (found,) = reuse_maps(
        SPEC,
        {
            "denseblock1.denselayer1": weights([1.0, -3.0]),  # input: (1 + 3) / 2
            "denseblock1.denselayer2": weights([-1.0, 0.0, 4.0], [1.0, 2.0, -4.0]),  # input: 4 / 4; layer 1: 8 / 2
        },
    )
    assert found.block == "denseblock1"
    np.testing.assert_allclose(found.weights, [[0.5, 0.25], [np.nan, 1.0]])  # over the largest, 4


def test_kernels_larger_than_one_pixel_are_averaged_too() -> None:
    kernels = np.zeros((1, 2, 3, 3), np.float32)
    kernels[0, 0] = 9
    (found,) = reuse_maps(DenseNetSpec(1, (1,), 2, bn_size=0), {"denseblock1.denselayer1": kernels})
    assert found.weights.tolist() == [[1.0]]


def test_weights_of_zero_do_not_divide_by_zero() -> None:
    (found,) = reuse_maps(DenseNetSpec(1, (1,), 2), {"denseblock1.denselayer1": weights([0.0, 0.0])})
    assert found.weights.tolist() == [[0.0]]


@pytest.mark.parametrize("given", [{}, {"denseblock1.denselayer1": weights([1.0])}], ids=["missing", "another width"])
def test_weights_of_another_network_are_refused(given: dict[str, np.ndarray]) -> None:
    with pytest.raises(DataError) as caught:
        reuse_maps(SPEC, given)
    assert caught.value.subject == "denseblock1.denselayer1"


def test_growth_adds_what_each_layer_made() -> None:
    steps = growth_steps(
        {
            "denseblock2.denselayer1": (3, 4, 4),
            "conv0": (6, 16, 16),
            "denseblock1.denselayer1": (3, 8, 8),
            "denseblock1.denselayer2": (3, 8, 8),
            "transition1": (5, 8, 8),
        }
    )
    assert [(step.block, step.layer, step.channels, step.size) for step in steps] == [
        (1, 0, 6, 8),
        (1, 1, 9, 8),
        (1, 2, 12, 8),
        (2, 0, 5, 4),
        (2, 1, 8, 4),
    ]
    assert steps[2].values == 12 * 64


def test_the_tenth_layer_comes_after_the_ninth() -> None:
    shapes = {"conv0": (2, 8, 8)} | {f"denseblock1.denselayer{layer}": (1, 8, 8) for layer in range(12, 0, -1)}
    assert [step.layer for step in growth_steps(shapes)] == list(range(13))


@pytest.mark.parametrize("shapes", [{}, {"conv0": (1, 2, 2)}, {"denseblock1.denselayer1": (1, 2, 2)}])
def test_a_run_without_dense_layers_or_their_source_is_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(DataError) as caught:
        growth_steps(shapes)
    assert caught.value.subject == "growth"
