"""Weights and biases as integers: what is stored gives back what it stands for, and no bias overflows."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.quantize.weights import LIMITS, quantize_rows, quantize_with_bias


@pytest.fixture
def weights():
    return np.random.default_rng(0).standard_normal((8, 4, 3, 3)) * np.logspace(-3, 1, 8).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("bits", LIMITS)
def test_every_weight_is_within_half_a_step(weights, bits):
    codes, scales = quantize_rows(weights, bits=bits)
    assert np.abs(codes).max() == LIMITS[bits]
    column = scales.reshape(-1, 1, 1, 1)
    # half a step, and what a float32 scale rounds by (6e-8) over 127 steps
    assert (np.abs(codes * column - weights) <= column * (0.5 + 127 * 1e-7)).all()


def test_one_scale_for_all_rows(weights):
    codes, scales = quantize_rows(weights, per_channel=False)
    assert scales.shape == ()
    assert np.abs(codes * scales - weights).max() <= scales / 2 * (1 + 1e-5)


def test_zero_weights_are_zero_codes():
    codes, scales = quantize_rows(np.zeros((2, 3, 1, 1)))
    assert not codes.any()
    assert (scales > 0).all()


def test_a_bias_is_kept_to_half_a_step(weights):
    bias = np.linspace(-3, 3, 8)
    integers = quantize_with_bias(weights, bias, 0.02)
    steps = 0.02 * integers.scales
    assert (np.abs(integers.bias * steps - bias) <= steps / 2 * (1 + 1e-4) + 1e-6).all()


def test_a_nearly_dead_channel_keeps_its_bias():
    """A norm with γ = 1e-9 and β = 0.5: at the weights' own scale the bias would need 6·10¹² and overflow int32."""
    weights = np.array([1e-9, 0.3]).reshape(2, 1, 1, 1)
    bias = np.array([0.5, 0.5])
    integers = quantize_with_bias(weights, bias, 0.01)
    steps = 0.01 * integers.scales.astype(np.float64)
    assert (np.abs(integers.bias * steps - bias) <= steps / 2).all()
    assert integers.codes[0] == 0
    assert integers.codes[1] == 127


def test_an_all_zero_filter_is_its_bias():
    integers = quantize_with_bias(np.zeros((1, 2, 3, 3)), np.array([-2.0]), 0.05)
    assert integers.bias[0] * 0.05 * float(integers.scales[0]) == pytest.approx(-2.0, rel=1e-6)
