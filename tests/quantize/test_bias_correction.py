"""What quantization does to means, measured layer by layer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.graph_pass import constant, new_initializer
from densenet_deploy.quantize.bias_correction import correct_bias, mean_shifts
from densenet_deploy.runtime.runner import RunnerOptions, open_runner
from tests.graph.onnx_text import model_of, weights

BODY = "a = Conv<pads=[1,1,1,1]>(x, w)  y = Conv(a, v)"
SAMPLES = list(np.random.default_rng(0).standard_normal((8, 1, 3, 5, 5)).astype(np.float32))


def _model() -> ir.Model:
    model = model_of(BODY, weights(w=(4, 3, 3, 3), v=(4, 4, 1, 1)))
    for node, name in zip(model.graph, ("first", "second"), strict=True):
        node.name = name
    return model


def _open(path):
    return open_runner(path, "onnxruntime", "cpu", RunnerOptions(check_values=False))


def _add_one_to_the_first(model: ir.Model) -> None:
    """A stand-in for quantization that moves the mean of the first Conv by one."""
    conv = model.graph[0]
    correct_bias(model.graph, conv, np.full(4, -1.0))


def test_a_shift_is_that_of_the_layer_alone():
    """The second Conv reads a shifted input, but what that does to its mean belongs to the first."""
    shifts = mean_shifts(_model(), _add_one_to_the_first, SAMPLES, _open)
    np.testing.assert_allclose(shifts["first"], np.ones(4), atol=1e-5)
    # its twin reads the twin of the first through no QuantizeLinear, so here it does see the shift
    weight = constant(_model().graph[1].inputs[1])
    np.testing.assert_allclose(shifts["second"], weight[:, :, 0, 0].sum(axis=1), rtol=1e-4)


def test_a_bias_that_was_there_is_corrected():
    model = _model()
    conv = model.graph[1]
    conv.resize_inputs(3)
    conv.replace_input_with(2, new_initializer(model.graph, "bias", np.arange(4, dtype=np.float32)))
    correct_bias(model.graph, conv, np.ones(4))
    np.testing.assert_array_equal(constant(conv.inputs[2]), [-1, 0, 1, 2])
