"""Gains of noise where they can be computed by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from densenet_deploy.pruning.noise import noise_gains

IMAGES, PIXELS = 64, 16


def _gain(body: str, images: np.ndarray, seed: int = 0, outputs: str = "float[N,1,H,W] y") -> float:
    """Of the tensor `a`, which holds the images."""
    constants = "float[1] three = {3.0}, float[1] zero = {0.0}, float[1] one = {1.0}"
    text = f'<ir_version: 9, opset_import: ["" : 17]> g (float[N,1,4,4] x) => ({outputs}) <{constants}> {{ {body} }}'
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    return noise_gains(proto, ["a"], images, seed)["a"]


def _noise(*, is_flat: bool = False) -> np.ndarray:
    """Images of independent pixels, or of one value each."""
    shape = (IMAGES, 1, 1, 1) if is_flat else (IMAGES, 1, 4, 4)
    drawn = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return np.ascontiguousarray(np.broadcast_to(drawn, (IMAGES, 1, 4, 4)))


@pytest.mark.parametrize("body", ["a = Identity(x)  y = Identity(a)", "a = Identity(x)  y = Mul(a, three)"])
def test_what_hands_everything_on_has_a_gain_of_one(body):
    assert _gain(body, _noise()) == pytest.approx(1, rel=0.1)


def test_the_signal_is_what_varies_from_image_to_image():
    """A large constant changes nothing."""
    body = "a = Identity(x)  b = Add(a, three)  c = Mul(b, three)  y = Add(c, three)"
    assert _gain(body, _noise()) == pytest.approx(_gain("a = Identity(x)  y = Identity(a)", _noise()), rel=1e-3)


@pytest.mark.parametrize(("is_flat", "gain"), [(False, 1.0), (True, 1 / PIXELS)])
def test_an_average_over_pixels_removes_noise_and_not_what_they_share(is_flat, gain):
    body = "a = Identity(x)  y = GlobalAveragePool(a)"
    assert _gain(body, _noise(is_flat=is_flat), outputs="float[N,1,1,1] y") == pytest.approx(gain, rel=0.4)


def test_outputs_add_up_and_one_that_never_varies_counts_nothing():
    one = _gain("a = Identity(x)  y = Identity(a)", _noise())
    two = _gain("a = Identity(x)  y = Identity(a)  z = Neg(a)", _noise(), outputs="float[N,1,H,W] y, float[N,1,H,W] z")
    assert two == pytest.approx(2 * one, rel=1e-3)
    assert _gain("a = Identity(x)  y = Mul(a, zero)", _noise()) == 0


def test_the_gain_does_not_depend_on_the_size_of_the_signal():
    small, large = (_gain("a = Identity(x)  y = Identity(a)", factor * _noise()) for factor in (0.01, 100))
    assert small == pytest.approx(large, rel=1e-3)


def test_the_same_seed_draws_the_same_noise():
    body, images = "a = Identity(x)  y = Identity(a)", _noise()
    assert _gain(body, images, 5) == _gain(body, images, 5)
    assert _gain(body, images, 5) != _gain(body, images, 6)


def test_the_noise_is_20_db_below_the_signal():
    """A clip that noise of that size hardly ever passes: its gain would be larger with more noise."""
    body = "a = Identity(x)  b = Clip(a, zero)  y = Clip(b, , one)"
    images = np.where(_noise() > 0, 2, -1).astype(np.float32)  # the ends are 1 away, the noise deviates by 0.15
    assert _gain(body, images) == 0
