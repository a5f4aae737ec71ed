"""Writing a norm as one scale and one shift per channel."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from densenet_deploy.graph.passes.norm_to_affine import NormToAffine
from tests.graph.onnx_text import constants, model_of, numbers_of, operators, weights
from tests.graph.passes.checks import assert_tidy, rewritten, skipped

NAME = "norm-to-affine"
NORM = {"gamma": (4,), "beta": (4,), "mean": (4,), "var": (4,)}
BODY = "a = Concat<axis=1>(x, x)  y = BatchNormalization(a, gamma, beta, mean, var)"
INPUT = "float[N,2,5,5] x"


@pytest.mark.parametrize("body", [BODY, BODY.replace("(a", "<epsilon=0.5>(a")], ids=["default epsilon", "epsilon"])
def test_a_norm_becomes_mul_and_add(body):
    model = model_of(body, weights(**NORM), INPUT)
    rewritten(model, NAME)
    assert operators(model) == ["Concat", "Mul", "Add"]
    assert model.graph[2].outputs[0].name == "y"
    assert len(model.graph.initializers) == 2


@pytest.mark.parametrize(("label", "name"), [("[norm] ", "norm"), ("", "y")])
def test_scale_and_shift_are_rounded_once_and_named_after_the_norm_or_its_output(label, name):
    numbers = constants(g=[2, -4], b=[8, 16], m=[32, 64], v=[3, 15])
    body = f"{label}y = BatchNormalization<epsilon=1.0>(x, g, b, m, v)"
    model = model_of(body, numbers, INPUT, "float[N,2,5,5] y")
    outcome = NormToAffine()(model)
    assert (len(outcome.changed), outcome.skipped) == (1, ())
    assert_tidy(model)
    mul, add = model.graph
    assert (mul.name, add.name or "y") == (f"{name}.mul", name)
    product = mul.outputs[0]
    assert (product.name, product.dtype, product.shape) == ("y:product", ir.DataType.FLOAT, add.outputs[0].shape)
    assert add.outputs[0].shape == ir.Shape(["N", 2, 5, 5])
    assert [value.name for value in (*mul.inputs, *add.inputs)] == ["x", f"{name}.scale", "y:product", f"{name}.shift"]
    assert numbers_of(mul.inputs[1]).tolist() == [[[1]], [[-1]]]
    assert numbers_of(add.inputs[1]).tolist() == [[[8 - 32]], [[16 + 64]]]


@pytest.mark.parametrize("size", ["5", "5,5,5"], ids=["signals", "volumes"])
def test_any_number_of_axes(size):
    model = model_of(BODY, weights(**NORM), f"float[N,2,{size}] x", f"float[N,4,{size}] y")
    rewritten(model, NAME)


@pytest.mark.parametrize(
    "body",
    [
        BODY,
        "r = Relu(x)  d = Concat<axis=1>(r, r)  " + BODY.replace("(x, x)", "(d)"),
        "f = Flatten(x)  y = BatchNormalization(f, gamma, beta, mean, var)",
        "c = Conv(x, w)  m = Mul(c, half)  a = Add(half, m)  y = BatchNormalization(a, gamma, beta, mean, var)",
    ],
)
def test_axes_are_counted_without_shapes(body):
    outputs = "float[N,4] y" if "Flatten" in body else "float[N,4,5,5] y"
    inputs = "float[N,4] x" if "Flatten" in body else INPUT
    model = model_of(body, weights(**NORM, w=(4, 2, 1, 1), half=(4, 1, 1)), inputs, outputs)
    rewritten(model, NAME)
    assert "BatchNormalization" not in operators(model)


def test_names_in_use_are_avoided():
    model = model_of(BODY.replace("a =", "prod =").replace("(a", "(prod"), weights(**NORM), INPUT)
    model.graph[0].outputs[0].name = "y:product"
    rewritten(model, NAME)


def test_numbers_that_are_fed_are_skipped():
    shapes = {name: shape for name, shape in NORM.items() if name != "gamma"}
    model = model_of(BODY, weights(**shapes), f"{INPUT}, float[4] gamma")
    assert "not float32 constants" in skipped(model, NAME)


def test_a_norm_in_training_is_skipped():
    body = "a = Concat<axis=1>(x, x)  y, m, v = BatchNormalization<training_mode=1>(a, gamma, beta, mean, var)"
    assert "training" in skipped(model_of(body, weights(**NORM), INPUT), NAME)


def test_an_unknown_number_of_axes_is_skipped():
    body = "s = Sigmoid(x)  y = BatchNormalization(s, gamma, beta, mean, var)"
    model = model_of(body, weights(**NORM), "float[N,4,5,5] x")
    assert "number of axes" in skipped(model, NAME)


def test_operators_of_another_domain_are_not_ours():
    model = model_of(BODY.replace("= Batch", "= other.Batch"), weights(**NORM), INPUT)
    assert skipped(model, NAME) == ""
