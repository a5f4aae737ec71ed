"""The spread of channel ranges, moved from the inputs of a convolution into its weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from densenet_deploy.errors import UsageError
from densenet_deploy.graph.nodes import constant
from densenet_deploy.graph.passes.equalize_layer import EqualizeLayer
from densenet_deploy.graph.tensor_changes import read_tensor_changes
from tests.graph.onnx_text import constants, model_of, operators, weights
from tests.graph.passes.checks import rewritten, skipped

SHAPES = {
    "gamma": (3,), "beta": (3,), "mean": (3,), "var": (3,), "s": (3, 1, 1), "t": (1, 3, 1, 1), "b": (3,),
    "v": (3, 3, 1, 1), "w": (4, 3, 1, 1), "u": (4, 3, 3, 3), "g": (6, 1, 1, 1),
}  # fmt: skip
NORM = "n = BatchNormalization(x, gamma, beta, mean, var)  r = Relu(n)  "
BODY = NORM + "y = Conv(r, w)"
OUTPUT = "float[N,4,5,5] y"
RANGES = {"r": np.array([2, 0.1, 7], np.float32)}


def _model(body=BODY, outputs=OUTPUT, **shapes):
    return model_of(body, weights(**{**SHAPES, **shapes}), outputs=outputs)


def _weight(model: ir.Model) -> np.ndarray:
    (conv,) = (node for node in model.graph if node.outputs[0].name == "y")
    array = constant(conv.inputs[1])
    assert array is not None
    return array


@pytest.mark.parametrize(
    "maker",
    [
        NORM,
        NORM.replace("(x", "<epsilon=0.5>(x"),
        "m = Mul(x, s)  n = Add(m, t)  r = Relu(n)  ",
        "m = Mul(t, x)  n = Add(s, m)  r = Relu(n)  ",
        "m = Mul(x, one)  n = Add(m, one)  r = Relu(n)  ",
        "n = Conv(x, v, b)  r = Relu(n)  ",
        "r = Conv(x, v)  ",
        "n = Conv<group=3>(x, d, b)  p = Relu(n)  r = MaxPool<kernel_shape=[1,1]>(p)  ",
    ],
    ids=["norm", "epsilon", "mul and add", "from the left", "one number", "conv", "no activation", "depthwise"],
)
@pytest.mark.parametrize(
    "reader", ["y = Conv(r, w)", "y = Conv<pads=[1,1,1,1]>(r, u)", "z = Conv<group=3>(r, g)  y = Conv(z, h)"]
)
def test_makers_are_divided_and_weights_multiplied(maker, reader):
    model = _model(maker + reader, one=(1,), d=(3, 1, 1, 1), h=(4, 6, 1, 1))
    kinds = operators(model)
    report = rewritten(model, EqualizeLayer(RANGES))
    assert (report.name, operators(model)) == ("equalize-layer", kinds)
    assert "r:scaled" in read_tensor_changes(model.metadata_props)


def test_the_norm_of_a_transition_is_divided_through_its_pool():
    body = NORM + "p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(r)  y = Conv(p, w)"
    model = _model(body, "float[N,4,2,2] y")
    rewritten(model, EqualizeLayer({"p": RANGES["r"]}))
    assert set(read_tensor_changes(model.metadata_props)) == {"n:scaled", "r:scaled", "p:scaled"}


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_factors_balance_ranges_against_weights(alpha):
    model = _model()
    sizes = np.abs(_weight(model)).max((0, 2, 3))
    rewritten(model, EqualizeLayer(RANGES, alpha))
    change = read_tensor_changes(model.metadata_props)["r:scaled"]
    np.testing.assert_allclose(change.factor, RANGES["r"] ** alpha / sizes ** (1 - alpha), rtol=1e-6)  # float32


@pytest.mark.parametrize(
    ("attributes", "weight", "outputs"),
    [
        ("", np.reshape([[1, -4, 2, 0], [-2, 3, 8, -1]], (2, 4, 1, 1)), "float[N,2,5,5] y"),
        # two groups of kernels 1x2: channels 0 and 1 are read by the first two rows, 2 and 3 by the others
        (
            "<group=2>",
            np.reshape([1, -2, 0, 4, 2, 0, 1, 1, -8, 1, 0, 1, 1, 1, 0, 0], (4, 2, 1, 2)),
            "float[N,4,5,4] y",
        ),
    ],
    ids=["one group", "groups"],
)
def test_factors_take_the_largest_absolute_weight_that_reads_a_channel(attributes, weight, outputs):
    body = "c = Conv(x, w)  r = Relu(c)  y = Conv" + attributes + "(r, k)"
    numbers = constants(w=np.ones((4, 3, 1, 1)), k=weight)
    model = model_of(body, numbers, outputs=outputs)
    rewritten(model, EqualizeLayer({"r": np.array([8, 64, 2, 16])}))
    change = read_tensor_changes(model.metadata_props)["r:scaled"]
    assert change.factor == (2, 4, 0.5, 4)  # the roots of 8/2, 64/4, 2/8 and 16/1


def test_by_name_it_has_no_ranges_and_says_so():
    assert "no range of r is given" in skipped(_model(), "equalize-layer")


def test_halfway_activations_and_weights_have_the_same_spread():
    model = _model()
    rewritten(model, EqualizeLayer(RANGES))
    factor = np.array(read_tensor_changes(model.metadata_props)["r:scaled"].factor)
    np.testing.assert_allclose(np.abs(_weight(model)).max((0, 2, 3)), RANGES["r"] / factor, rtol=1e-6)  # float32


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_dead_channels_and_unread_channels_keep_their_results(alpha):
    model = _model()
    read = _weight(model).copy()
    read[:, 2] = 0
    model.graph.initializers["w"].const_value = ir.tensor(read)
    rewritten(model, EqualizeLayer({"r": np.array([0, 5, 1])}, alpha))
    factor = np.array(read_tensor_changes(model.metadata_props)["r:scaled"].factor)
    assert (factor > 0).all()
    assert factor.max() / factor.min() < 1e6 + 1  # both sizes are held at a thousandth of their largest


def test_both_sides_of_a_convolution_are_rewritten():
    body = NORM + "c = Conv(r, v, b)  q = Relu(c)  y = Conv(q, w)"
    model = _model(body)
    report = rewritten(model, EqualizeLayer({**RANGES, "q": np.array([9, 0.5, 1])}))
    assert len(report.changed) == 2
    assert {name for name in model.graph.initializers if name.endswith("_")} == set()


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_is_a_fraction(alpha):
    with pytest.raises(UsageError) as caught:
        EqualizeLayer(RANGES, alpha)
    assert caught.value.subject == f"alpha={alpha}"


REASONS = {
    "its input is the graph's": ("y = Conv(x, w)", OUTPUT, "x is an input of the graph"),
    "its input has a second reader": (BODY + "  z = Neg(r)", f"{OUTPUT}, float[N,3,5,5] z", "r has other readers"),
    "its input leaves the graph": (BODY, f"{OUTPUT}, float[N,3,5,5] r", "r has other readers"),
    "its norm has a second reader": (BODY + "  z = Neg(n)", f"{OUTPUT}, float[N,3,5,5] z", "n has other readers"),
    "its norm leaves the graph": (BODY, f"{OUTPUT}, float[N,3,5,5] n", "n has other readers"),
    "its activation bends": (BODY.replace("Relu", "Sigmoid"), OUTPUT, "made by Sigmoid"),
    "its activation is of another domain": (BODY.replace("Relu", "other.Relu"), OUTPUT, "made by Relu"),
    "its norm is of another domain": (BODY.replace("= Batch", "= other.Batch"), OUTPUT, "made by BatchNormalization"),
    "it follows a Concat": ("r = Concat<axis=1>(x)  y = Conv(r, w)", OUTPUT, "made by Concat"),
    "it follows a scale alone": ("r = Mul(x, s)  y = Conv(r, w)", OUTPUT, "made by Mul"),
    "it follows a shift alone": ("r = Add(x, s)  y = Conv(r, w)", OUTPUT, "made by Add"),
    "its scale is one a row": ("m = Mul(x, row)  r = Add(m, s)  y = Conv(r, w)", OUTPUT, "made by Add"),
    "its shift is one a row": ("m = Mul(x, s)  r = Add(m, row)  y = Conv(r, w)", OUTPUT, "made by Add"),
    "its weights come from outside": (BODY.replace("r, w", "r, f"), OUTPUT, "float32 constants"),
    "it is read as weights": (NORM.replace("(x", "(k") + "y = Conv(x, r)", OUTPUT, "x is an input of the graph"),
}


@pytest.mark.parametrize(("body", "outputs", "why"), REASONS.values(), ids=REASONS)
def test_a_convolution_that_cannot_be_scaled_is_skipped(body, outputs, why):
    inputs = "float[N,3,5,5] x, float[4,3,1,1] f, float[4,3,1,1] k"
    model = model_of(body, weights(**SHAPES, row=(5, 1)), inputs, outputs)
    assert why in skipped(model, EqualizeLayer(RANGES))


@pytest.mark.parametrize(
    ("ranges", "why"),
    [
        ({}, "no range of r is given"),
        ({"r": np.ones(2)}, r"the shape (2,), not (3,)"),
        ({"r": np.array([1, np.nan, 1])}, "negative or not finite"),
        ({"r": np.zeros(3)}, "zero everywhere"),
    ],
)
def test_ranges_that_say_nothing_change_nothing(ranges, why):
    assert why in skipped(_model(), EqualizeLayer(ranges))


def test_weights_of_zero_change_nothing():
    model = _model()
    model.graph.initializers["w"].const_value = ir.tensor(np.zeros((4, 3, 1, 1), np.float32))
    assert "zero everywhere" in skipped(model, EqualizeLayer(RANGES))


def test_other_convs_are_not_ours():
    assert skipped(_model(NORM + "y = other.Conv(r, w)"), EqualizeLayer(RANGES)) == ""


FORMS = {
    "as exported": (),
    "pools first": ("remove-single-concat", "pool-before-conv"),
    "affine, in steps": ("norm-to-affine", "concat-incremental"),
}
