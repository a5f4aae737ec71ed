"""Which tensors the writer observes, what it does to a float graph before a recipe writes it, and what goes with it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from densenet_deploy.graph.onnx_file import expose_values
from densenet_deploy.graph.tensor_changes import TensorChange, TensorChanges, read_tensor_changes
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.packages import is_installed
from densenet_deploy.quantization import weight_rounding
from densenet_deploy.quantization.int8_writer import (
    Int8File,
    Int8Writer,
    _with_following,
    backend_of,
    tensors_to_observe,
)
from densenet_deploy.quantization.observers.minmax import MinMaxOptions
from densenet_deploy.quantization.observers.observer import ChannelRanges
from densenet_deploy.quantization.recipes.recipe import RecipeOptions
from densenet_deploy.runtime.runner import backends
from tests.graph.onnx_text import constants, model_of, weights
from tests.quantization.recipes.written import CONSTANTS, graph_of, lines

# --- which tensors are observed

OBSERVED = """
a = Conv(x, w)  r = Relu(a)  b = Conv(r, v)  p = Neg(r)  c = Concat<axis=1>(x, b, p)
z = Abs(c)  d = Conv(z, u)  e = other.Relu(d)
i = Cast<to=7>(c)  k = Concat<axis=1>(i, i)
f = Flatten(c)  g = Relu(f)  y = Add(e, e)
"""


def _observed(outputs: str, *, inferred: bool = True) -> tuple[str, ...]:
    model = model_of(OBSERVED, weights(w=(4, 3, 1, 1), v=(2, 4, 1, 1), u=(1, 9, 1, 1)), outputs=outputs)
    proto = ir.to_proto(model)
    return tensors_to_observe(ir.from_proto(onnx.shape_inference.infer_shapes(proto) if inferred else proto))


def test_feature_maps_of_convolutions_relus_and_concats_are_observed():
    """Not the output of a Conv that a ReLU follows, the input of the graph, whole numbers or rows."""
    assert _observed("float[N,1,5,5] y") == ("r", "b", "c", "p", "z", "d")


def test_a_convolution_is_observed_itself_where_something_else_reads_it_too():
    assert _observed("float[N,1,5,5] y, float[N,4,5,5] a") == ("a", "r", "b", "c", "p", "z", "d")


def test_what_may_be_a_feature_map_for_all_that_is_known_is_observed():
    assert _observed("float[N,1,5,5] y", inferred=False) == ("r", "b", "c", "p", "z", "d", "i")


NORMED = """
a = Conv(x, w)  n = BatchNormalization(a, g, b, m, v)  s = Sigmoid(n)  t = Mul(n, s)
o = BatchNormalization(t, g, b, m, v)  e = Exp(o)  p = {}
h = Conv(p, w)  r = Relu(h)  k = Conv(r, w)  f = Sigmoid(k)  j = Concat<axis=1>(f, f)  y = Mul(e, f)  z = Conv(j, u)
"""


def _observed_with(pool: str, declared: str = "float[N,3,5,5] y, float[N,3,H,W] z") -> tuple[str, ...]:
    shapes = weights(w=(3, 3, 1, 1), u=(3, 6, 1, 1), **dict.fromkeys("gbmv", (3,)))
    text = f"{shapes}, int64[2] axes = {{2, 3}}, int64[1] one = {{1}}"
    proto = ir.to_proto(model_of(NORMED.format(pool), text, outputs=declared))
    return tensors_to_observe(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))


@pytest.mark.parametrize("pool", ["GlobalAveragePool(e)", "GlobalMaxPool(e)", "ReduceMean<axes=[2,3]>(e)"])
def test_norms_are_observed_where_they_read_and_what_is_computed_from_averages_is_not(pool):
    """One pixel costs no time in float: a gate's convolutions, and all that reads nothing else."""
    assert _observed_with(pool) == ("a", "t")


@pytest.mark.parametrize("pool", ["AveragePool<kernel_shape=[3,3]>(e)", "other.GlobalAveragePool(e)", "Identity(e)"])
def test_other_pools_make_feature_maps(pool):
    outputs = "float[N,3,H,W] y, float[N,3,H,W] z"
    assert _observed_with(pool, outputs) == ("a", "t", "p", "r", "k", "f", "z"), "j is a Concat of observed tensors"


def test_an_average_over_channels_is_a_feature_map():
    """As spatial attention takes: (N, 1, H, W)."""
    body = "p = ReduceMean<axes=[1]>(x)  h = Conv(p, w)  y = Sigmoid(h)"
    proto = ir.to_proto(model_of(body, weights(w=(3, 1, 1, 1)), outputs="float[N,3,5,5] y"))
    assert tensors_to_observe(ir.from_proto(onnx.shape_inference.infer_shapes(proto))) == ("p", "h")


def test_an_average_of_unknown_size_may_be_a_feature_map():
    model = model_of(
        "p = ReduceMean<axes=[2,3]>(x)  h = Conv(p, w)  y = Sigmoid(h)",
        weights(w=(3, 3, 1, 1)),
        outputs="float[N,3,1,1] y",
    )
    assert tensors_to_observe(model) == ("p", "h")


JOINED = """
a = Relu(x)  b = Conv(a, w)  c = Concat<axis=1>(b, a)  d = Concat<axis=-3>(c, b)
e = Concat<axis=2>(b, b)  f = Concat<axis=1>(b, x)  g = Flatten(f)  h = Concat<axis=1>(g, g)
y = Add(d, d)
"""


def test_a_concat_along_channels_has_the_ranges_of_what_it_joins():
    """Not one along rows, or one of the input, whose range is known and whose values are not."""
    proto = ir.to_proto(model_of(JOINED, weights(w=(3, 3, 1, 1)), outputs="float[N,9,5,5] y"))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    assert tensors_to_observe(model) == ("a", "b", "e", "f")
    known = _ranges(a=([0, 0, 0], [1, 2, 3]), b=([-1, -2, -3], [4, 5, 6]))
    found = _with_following(model.graph, known, None)
    assert list(found) == ["a", "b", "c", "d"]
    assert found["d"].low.tolist() == [-1, -2, -3, 0, 0, 0, -1, -2, -3]
    assert found["d"].high.tolist() == [4, 5, 6, 1, 2, 3, 4, 5, 6]


RECTIFIED = """
a = Conv(x, w)  n = BatchNormalization<epsilon=0.0>(a, g, b, m, v)  r = Relu(n)
k = BatchNormalization<epsilon=0.0>(x, g, b, m, v)  s = Relu(k)  y = Add(r, s)
"""


def test_the_relu_of_a_norm_has_the_ranges_that_the_norm_makes_of_its_input():
    """2·x + 1, -x and 0·x + 3 of x in [-1, 4]; headroom is of what the ReLU reaches, not of what the norm reads."""
    numbers = constants(g=[2, -1, 0], b=[1, 0, 3], m=[0, 0, 0], v=[1, 1, 1])
    proto = ir.to_proto(model_of(RECTIFIED, f"{weights(w=(3, 3, 1, 1))}, {numbers}"))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    assert tensors_to_observe(model) == ("a", "r", "s")
    assert tensors_to_observe(model, through_norms=True) == ("a", "s"), "x is not observed"
    options = MinMaxOptions(0.1)
    known = {"a": options.widened(ChannelRanges(np.full(3, -1, np.float32), np.full(3, 4, np.float32)))}
    found = _with_following(model.graph, known, options)
    assert list(found) == ["a", "r"]
    # float32 on the way there and back
    np.testing.assert_allclose(found["r"].low, [0, 0, 3], rtol=1e-6)
    np.testing.assert_allclose(found["r"].high, [9.9, 1.1, 3], rtol=1e-6)
    assert list(_with_following(model.graph, known, None)) == ["a"]


# --- where files run


@pytest.mark.parametrize(
    ("recipe", "backend"),
    [("onnxruntime", "onnxruntime"), ("openvino", "openvino"), ("tensorrt", None), ("torch", None), ("other", None)],
)
def test_the_backend_of_a_recipe_is_one_that_runs_onnx_files(recipe, backend):
    assert backend_of(recipe) == backend


def test_a_backend_that_is_not_installed_is_none():
    class Elsewhere:
        suffixes = (".onnx",)
        requires = "a_package_that_is_not_installed"

    assert not is_installed(Elsewhere.requires)
    with backends.restored():
        backends.register("elsewhere")(Elsewhere)
        assert backend_of("elsewhere") is None


# --- a block of whole numbers

BLOCK = """
[c0] a = Conv(x, w)
[n1] n = BatchNormalization<epsilon=0.0>(a, gamma, beta, mean, variance)  [r1] r = Relu(n)  [c1] b = Conv(r, v)
[j] c = Concat<axis=1>(a, b)
[n2] m = BatchNormalization<epsilon=0.0>(c, gamma4, beta4, mean4, variance4)  [r2] s = Relu(m)  [c2] y = Conv(s, u)
"""


def _ranges(**ends: tuple[list[float], list[float]]) -> dict[str, ChannelRanges]:
    return {name: ChannelRanges(np.float32(low), np.float32(high)) for name, (low, high) in ends.items()}


RANGES = _ranges(
    x=([0, 0], [3, 3]),
    a=([0, -3], [6, 3]),
    r=([1, 0], [13, 4]),
    b=([0, -13], [4, 3]),
    c=([0, -3, 0, -13], [6, 3, 4, 3]),
    s=([0, 0, 1, 1], [6, 4, 9, 16]),
)


def _writer(recipe: str, alpha: float | None, body: str = BLOCK, **arguments: object) -> Int8Writer:
    model = graph_of(body)
    return Int8Writer(model, RANGES, recipe, RecipeOptions(weight_bits=7), alpha=alpha, **arguments)  # type: ignore[arg-type]


def _written(file: Int8File) -> list[str]:
    """The nodes of a file, all of which are needed; the numbers of scales are left out."""
    onnx.checker.check_model(onnx.load_from_string(file.data), full_check=True)
    model = ir.from_proto(onnx.load_from_string(file.data))
    shown = lines(model)
    assert len(shown) == len(list(model.graph))
    return [line.replace(" axis=1", "") for line in shown]


def _nodes(file: Int8File) -> list[str]:
    """What each node makes, and its operator."""
    return [line.partition("(")[0] for line in _written(file)]


def _changes(file: Int8File) -> dict[str, TensorChange]:
    model = onnx.load_from_string(file.data)
    return read_tensor_changes({entry.key: entry.value for entry in model.metadata_props})


def test_layers_are_in_execution_order_and_their_multiplications_are_counted():
    writer = _writer("openvino", None)
    assert writer.layers == ("c0", "c1", "c2")
    assert writer.macs == {"c0": 2 * 2 * 16, "c1": 2 * 2 * 16, "c2": 2 * 4 * 16}


@pytest.mark.parametrize(
    ("body", "inputs", "shapes", "macs"),
    [
        ("[c] y = Conv(x, wide)", "float[1,2,6,4] x", True, 2 * 2 * 9 * 4 * 2),
        ("[c] y = Conv(x, wide)", "float[N,2,H,6] x", True, 2 * 2 * 9 * 4),
        ("[c] a = Conv(x, wide)  y = Neg(a)", "float[1,2,6,4] x", False, 2 * 2 * 9),
        ("k = Identity(w)  [c] a = Conv(x, k)  y = Neg(a)", "float[1,2,6,4] x", False, 1),
    ],
    ids=["all sizes", "unknown sizes", "no shape of the result", "no shapes at all"],
)
def test_multiplications_are_those_of_known_sizes(body, inputs, shapes, macs):
    model = graph_of(body, inputs, shapes=shapes)
    assert Int8Writer(model, {}, "openvino", RecipeOptions(), alpha=None).macs == {"c": macs}


# --- preparation


def test_buses_are_shifted_and_equalized_by_what_their_readers_tell_apart():
    """n needs a from -0.5 and up to 1, m needs a from 0 and up to 1 and b from -0.5 and from -4.

    So channel 1 of a is shifted by 3 and 4 wide, not 6, and channel 1 of b is shifted by 4 and 7 wide, not 16.
    """
    largest = 3.4028235e38
    changes = _changes(_writer("openvino", 0.5).write())
    a = TensorChange("a", factor=(6, 4), offset=(0, -3), low=(-0.5, -largest), high=(largest, 1))
    b = TensorChange("b", factor=(4, 7), offset=(0, -4), low=(-0.5, -4), high=(largest, largest))
    both = {name: (*getattr(a, name), *getattr(b, name)) for name in ("factor", "offset", "low", "high")}
    assert {name: change for name, change in changes.items() if change.moved is None} == {
        "a:shifted:scaled": a,
        "b:shifted:scaled": b,
        "c:shifted:scaled": TensorChange("c", **both),
        "n": TensorChange("n", low=(0, 0), high=(largest, largest)),
        "m": TensorChange("m", low=(-0.5, 0, 0, 0), high=(largest,) * 4),
    }


def test_a_recipe_that_keeps_buses_float_shifts_nothing_and_equalizes_by_magnitude():
    """a and b by the larger end, r by √(13 / (1/13)) and √(4 / (1/4)): the weights are 1 and those of b are scaled."""
    changes = _changes(_writer("tensorrt", 0.5).write())
    assert {name: change.factor for name, change in changes.items()} == {
        "a:scaled": (6, 3),
        "b:scaled": (4, 13),
        "c:scaled": (6, 3, 4, 13),
        "n:scaled": (13, 4),
        "r:scaled": (13, 4),
        "m:scaled": pytest.approx((6**0.5, 2, 3, 4), rel=1e-6),
        "s:scaled": pytest.approx((6**0.5, 2, 3, 4), rel=1e-6),
    }
    assert not any(change.offset or change.low for change in changes.values())


def test_the_strength_of_equalization_is_a_half_if_it_is_not_said():
    model = graph_of(BLOCK)
    assert Int8Writer(model, RANGES, "tensorrt", RecipeOptions()).write() == _writer("tensorrt", 0.5).write()
    assert _writer("tensorrt", 0.25).write() != _writer("tensorrt", 0.5).write()


def test_types_follow_the_tensors_to_their_new_names():
    """Every channel of the bus is 1 wide then, from zero."""
    written = _written(_writer("openvino", 0.5).write())
    assert written == [
        "x:codes = QuantizeLinear(x, f32:0.0117647, u8:0)",
        "x:quantized = DequantizeLinear(x:codes, f32:0.0117647, u8:0)",
        "w:scaled:quantized = DequantizeLinear(i8[2,2,1,1], f32[2], i8[2]) axis=0",
        "a:shifted:scaled = Conv(x:quantized, w:scaled:quantized, f32[2])",
        "a:shifted:scaled:codes = QuantizeLinear(a:shifted:scaled, f32:0.00392157, u8:0)",
        "r:max:codes = Max(a:shifted:scaled:codes, u8[2,1,1])",
        "r:min:codes = Min(r:max:codes, u8[2,1,1])",
        "r:min:quantized = DequantizeLinear(r:min:codes, f32:0.00392157, u8:0)",
        "v:scaled.absorbed.weight:quantized = DequantizeLinear(i8[2,2,1,1], f32[2], i8[2]) axis=0",
        "b:shifted:scaled = Conv(r:min:quantized, v:scaled.absorbed.weight:quantized, f32[2])",
        "b:shifted:scaled:codes = QuantizeLinear(b:shifted:scaled, f32:0.00392157, u8:0)",
        "c:shifted:scaled:codes = Concat(a:shifted:scaled:codes, b:shifted:scaled:codes)",
        "s:max:codes = Max(c:shifted:scaled:codes, u8[4,1,1])",
        "s:min:codes = Min(s:max:codes, u8[4,1,1])",
        "s:min:quantized = DequantizeLinear(s:min:codes, f32:0.00392157, u8:0)",
        "u.absorbed.weight:quantized = DequantizeLinear(i8[2,4,1,1], f32[2], i8[2]) axis=0",
        "y = Conv(s:min:quantized, u.absorbed.weight:quantized, f32[2])",
    ]


def test_without_equalization_tensors_keep_their_names_and_the_recipe_its_passes():
    assert _nodes(_writer("openvino", None).write()) == [
        "x:codes = QuantizeLinear",
        "x:quantized = DequantizeLinear",
        "w:quantized = DequantizeLinear",
        "a = Conv",
        "a:codes = QuantizeLinear",
        "r:max:codes = Max",
        "r:min:codes = Min",
        "r:min:quantized = DequantizeLinear",
        "v.absorbed.weight:quantized = DequantizeLinear",
        "b = Conv",
        "b:codes = QuantizeLinear",
        "c:codes = Concat",
        "s:max:codes = Max",
        "s:min:codes = Min",
        "s:min:quantized = DequantizeLinear",
        "u.absorbed.weight:quantized = DequantizeLinear",
        "y = Conv",
    ]


@pytest.mark.parametrize("missing", ["c", "s"])
def test_a_tensor_without_a_range_is_not_in_the_way(missing):
    ranges = {name: found for name, found in RANGES.items() if name != missing}
    writer = Int8Writer(graph_of(BLOCK), ranges, "openvino", RecipeOptions(weight_bits=7))
    assert _nodes(writer.write()) == _nodes(_writer("openvino", 0.5).write())


def test_a_norm_with_numbers_from_outside_needs_all_values():
    body, inputs = BLOCK.replace("gamma4", "k"), "float[1,2,4,4] x, float[4] k"
    writer = Int8Writer(graph_of(body, inputs), RANGES, "openvino", RecipeOptions(weight_bits=7))
    assert writer.layers == ("c0", "c1", "c2")
    assert "m" not in _changes(writer.write())


@pytest.mark.parametrize(
    ("change", "scale"),
    [
        (TensorChange("old", factor=(2.0, 4.0)), 127.5 / 255),
        (TensorChange("old", offset=(-255.0, 0.0)), 510 / 255),
        (TensorChange("old", moved="somewhere"), None),
        (TensorChange("unknown", factor=(2.0, 4.0)), None),
    ],
    ids=["scaled", "shifted", "moved", "of a tensor without a range"],
)
def test_ranges_follow_what_earlier_rewrites_did(change, scale):
    """Channels 0 to 255 and 0 to 510 of a tensor that this graph has under another name."""
    model = graph_of("[c] y = Conv(x, w)")
    TensorChanges({"x": change}).write_to(model)
    ranges = _ranges(old=([0, 0], [255, 510]))
    file = Int8Writer(model, ranges, "openvino", RecipeOptions()).write()
    shown = _written(file)[0]
    assert shown == (f"x:codes = QuantizeLinear(x, f32:{scale:g}, u8:0)" if scale else "y = Conv(x, f32[2,2,1,1])")


# --- layers that stay float


def test_the_clips_that_only_a_float_convolution_reads_stay_float_too():
    file = _writer("openvino", None).write(("c2",))
    assert (file.layers_int8, file.layers_float) == (("c0", "c1"), ("c2",))
    assert _nodes(file)[-7:] == [
        "b = Conv",
        "b:codes = QuantizeLinear",
        "b:quantized = DequantizeLinear",
        "c = Concat",
        "s:max = Max",
        "s:min = Min",
        "y = Conv",
    ]


def test_a_bus_that_no_integer_convolution_reads_is_not_quantized():
    file = _writer("openvino", None).write(("c1", "c2"))
    assert (file.layers_int8, file.layers_float) == (("c0",), ("c1", "c2"))
    assert _nodes(file) == [
        "x:codes = QuantizeLinear",
        "x:quantized = DequantizeLinear",
        "w:quantized = DequantizeLinear",
        "a = Conv",
        "r:max = Max",
        "r:min = Min",
        "b = Conv",
        "c = Concat",
        "s:max = Max",
        "s:min = Min",
        "y = Conv",
    ]


def test_a_bus_that_one_integer_convolution_reads_is_quantized():
    file = _writer("openvino", None).write(("c0", "c1"))
    assert (file.layers_int8, file.layers_float) == (("c2",), ("c0", "c1"))
    assert _nodes(file) == [
        "a = Conv",
        "a:codes = QuantizeLinear",
        "a:quantized = DequantizeLinear",
        "r:max = Max",
        "r:min = Min",
        "b = Conv",
        "b:codes = QuantizeLinear",
        "c:codes = Concat",
        "s:max:codes = Max",
        "s:min:codes = Min",
        "s:min:quantized = DequantizeLinear",
        "u.absorbed.weight:quantized = DequantizeLinear",
        "y = Conv",
    ]


CHAIN = """
[c0] a = Conv(x, w)  [m] m = Min(a, high)  [p] p = AveragePool<kernel_shape=[2,2]>(m)
[c1] b = Conv(p, v)  [q] q = Max(b, low)  [c2] c = Conv(q, w)  [c3] d = Conv(q, v)  [t] r = Relu(d)
z = Neg(r)  t = Neg(c)  y = Add(z, t)
"""
CHAIN_RANGES = _ranges(
    x=([0, 0], [3, 3]), a=([-3, -3], [6, 3]), b=([-3, -3], [6, 3]), c=([-6, -6], [6, 6]), r=([0, 0], [9, 9])
)


@pytest.mark.parametrize(
    ("float_layers", "integer"),
    [
        ((), ["a:codes = QLinearConv", "m:codes = Min", "p:codes = QLinearConv", "b:codes = QLinearConv"]),
        (("c1",), ["a:codes = QLinearConv"]),
        (("c0",), ["m:codes = Min", "p:codes = QLinearConv", "b:codes = QLinearConv"]),
    ],
)
def test_a_pool_and_a_clip_before_a_float_convolution_stay_float_and_convolutions_do_not(float_layers, integer):
    writer = Int8Writer(graph_of(CHAIN), CHAIN_RANGES, "onnxruntime", RecipeOptions(weight_bits=7), alpha=None)
    nodes = _nodes(writer.write(float_layers))
    first = [line for line in nodes if line[0] in "ampb" and ":codes" in line and "Quantize" not in line]
    assert first == integer
    assert nodes.count("q:codes = Max") == 1


def test_a_clip_that_two_convolutions_read_is_quantized_if_one_of_them_is_integer():
    writer = Int8Writer(graph_of(CHAIN), CHAIN_RANGES, "onnxruntime", RecipeOptions(weight_bits=7), alpha=None)
    nodes = _nodes(writer.write(("c2",)))
    assert "q:codes = Max" in nodes
    assert "c = Conv" in nodes
    assert "r:codes = QLinearConv" in nodes


# --- the file

MANIFEST = Manifest("mine", {}, WeightsOrigin("none", "00", 0), Preprocessing(), ("one", "two"), precision="int8")


def _metadata(file: Int8File) -> list[tuple[str, str]]:
    return [(entry.key, entry.value) for entry in onnx.load_from_string(file.data).metadata_props]


@pytest.mark.parametrize("float_layers", [(), ("c2",), ("c0", "c1", "c2"), ("c0", "c1", "c2", "others")])
@pytest.mark.parametrize("manifest", [None, MANIFEST])
def test_the_manifest_goes_with_the_file_and_replaces_that_of_the_float_file(manifest, float_layers):
    model = graph_of(BLOCK)
    if manifest is not None:
        model.metadata_props.update(dict.fromkeys(MANIFEST.to_strings(), "of the float file"))
    writer = Int8Writer(model, RANGES, "openvino", RecipeOptions(), manifest=manifest)
    found = _metadata(writer.write(float_layers))
    keys = [key for key, _ in found]
    assert len(keys) == len(set(keys))
    if manifest is None:
        assert not set(keys) & set(MANIFEST.to_strings())
    else:
        stored = Manifest.from_strings(dict(found))
        assert (stored.labels, stored.precision) == (("one", "two"), "fp32" if len(float_layers) > 2 else "int8")


@pytest.mark.parametrize("others", [(), ("something else",)])
def test_with_all_layers_float_the_file_is_the_float_graph(others):
    file = _writer("openvino", 0.5).write(("c2", "c0", "c1", *others))
    assert (file.layers_int8, file.layers_float) == ((), ("c0", "c1", "c2"))
    assert _written(file) == [line.replace(" axis=1", "") for line in lines(graph_of(BLOCK))]


def test_writing_leaves_no_trace_on_the_next_file():
    writer = _writer("openvino", 0.5)
    first = writer.write()
    writer.write(("c1",))
    assert writer.write() == first


# --- corrections


def _run(proto: onnx.ModelProto, pixels: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": pixels})


HEAD = """
[c0] a = Conv(x, w)  r = Relu(a)  [c1] b = Conv(r, v)  q = Relu(b)
p = GlobalAveragePool(q)  f = Flatten(p)  [fc] y = Gemm<transB=1>(f, square, bias)
"""
HEAD_RANGES = _ranges(x=([0, 0], [3, 3]), r=([0, 0], [3, 2]), b=([-1, -1], [2, 2]), q=([0, 0], [1.5, 1]))
"""Too narrow, so that the means of outputs move."""

SAMPLES = [np.float32(sample) for sample in np.random.default_rng(0).uniform(0, 3, (130, 1, 2, 4, 4))]


def _head(recipe: str) -> tuple[ir.Model, Int8Writer]:
    model = graph_of(HEAD, outputs="float[1,2] y")
    return model, Int8Writer(model, HEAD_RANGES, recipe, RecipeOptions(weight_bits=7), alpha=None)


@pytest.mark.parametrize("recipe", ["onnxruntime", "openvino", "tensorrt"])
def test_after_correction_the_mean_of_every_output_is_that_of_the_float_graph(recipe):
    float_graph = ir.to_proto(graph_of(HEAD, outputs="float[1,2] y"))
    _, writer = _head(recipe)
    plain = writer.write()
    writer.correct(SAMPLES[:20])
    corrected = writer.write()
    wanted, before, after = (
        np.mean([_run(proto, sample)[0] for sample in SAMPLES[:20]], axis=(0, 1))
        for proto in (float_graph, *(onnx.load_from_string(file.data) for file in (plain, corrected)))
    )
    assert (np.abs(before - wanted) > 0.1).any()
    # of float32 or FP16 numbers
    np.testing.assert_allclose(after, wanted, atol=5e-3)


def test_only_integer_convolutions_are_corrected():
    _, writer = _head("openvino")
    writer.correct(SAMPLES[:4])
    makers = [line for line in _nodes(writer.write(("c1",))) if "Dequantize" in line and ":codes" not in line]
    assert makers == ["x:quantized = DequantizeLinear", "w.corrected.weight:quantized = DequantizeLinear"]


def test_a_network_without_a_classifier_has_its_convolutions_corrected():
    writer = _writer("openvino", None)
    writer.correct(SAMPLES[:4])
    assert sum("corrected" in line for line in _nodes(writer.write())) == 3


@pytest.mark.parametrize(("recipe", "casts"), [("onnxruntime", 1), ("openvino", 1), ("tensorrt", 0)])
def test_a_large_classifier_is_stored_as_fp16_after_it_was_corrected(recipe, casts, monkeypatch):
    """The graphs for TensorRT are FP16 in any case."""
    monkeypatch.setitem(CONSTANTS, "square", np.random.default_rng(0).uniform(0.5, 1, (2**15, 2)))
    monkeypatch.setitem(CONSTANTS, "bias", np.zeros(2**15))
    model = graph_of(HEAD, outputs=f"float[1,{2**15}] y")
    float_graph = ir.to_proto(model)
    writer = Int8Writer(model, HEAD_RANGES, recipe, RecipeOptions(weight_bits=7), alpha=None)
    writer.correct(SAMPLES[:20])
    proto = onnx.load_from_string(writer.write().data)
    kinds = [one.data_type for one in proto.graph.initializer if tuple(one.dims) == (2**15, 2)]
    assert kinds == [onnx.TensorProto.FLOAT16]
    weight = next(node.input[1] for node in proto.graph.node if node.op_type == "Gemm")
    assert [node.op_type for node in proto.graph.node if weight in node.output] == ["Cast"] * casts
    wanted, found = (np.mean([_run(one, x)[0] for x in SAMPLES[:20]], axis=(0, 1)) for one in (float_graph, proto))
    np.testing.assert_allclose(found, wanted, rtol=1e-2)


@pytest.mark.parametrize("recipe", ["onnxruntime", "openvino"])
def test_what_is_only_timed_has_the_nodes_of_the_file_and_another_classifier(recipe):
    _, writer = _head(recipe)
    writer.correct(SAMPLES[:4])
    shipped = writer.write()
    assert writer.timed() is shipped
    timed = writer.timed(("c1",))
    assert writer.write() is shipped, "it is still the last"
    written = writer.write(("c1",))
    assert timed.layers_float == written.layers_float == ("c1",)
    made = [line.replace(":corrected", "") for line in _nodes(written)]
    assert _nodes(timed) == made
    assert timed.data != written.data


def test_without_samples_nothing_is_corrected():
    _, writer = _head("openvino")
    plain = writer.write()
    writer.correct([])
    assert writer.write() == plain


def test_128_samples_are_measured():
    _, writer = _head("openvino")
    samples = iter(SAMPLES)
    writer.correct(samples)
    assert next(samples) is SAMPLES[128]


# --- weights rounded for what layers read

LAYERS = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    [c0] a = Conv <kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1]> (x, w0, b0)  r = Relu(a)
    [c1] b = Conv <kernel_shape: ints = [3, 3], strides: ints = [2, 2]> (r, w1, b1)  q = Relu(b)
    p = GlobalAveragePool(q)  f = Flatten(p)  [fc] y = Gemm<transB=1>(f, w2, b2)
}
"""
IMAGES = [np.float32(image) for image in np.random.default_rng(1).uniform(0, 1, (24, 1, 3, 8, 8))]


def _layers(recipe: str, *, per_channel: bool = True, correct: bool = False) -> tuple[onnx.ModelProto, Int8Writer]:
    """A network with random weights, and its writer, calibrated on IMAGES."""
    proto, rng = onnx.parser.parse_model(LAYERS), np.random.default_rng(0)
    for number, shape in enumerate([(8, 3, 3, 3), (8, 8, 3, 3), (5, 8)]):
        for name, array in (("w", rng.standard_normal(shape)), ("b", rng.standard_normal(shape[0]) / 8)):
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(array), f"{name}{number}"))
    proto = onnx.shape_inference.infer_shapes(proto)
    names = ["x", "r", "q"]
    shown = expose_values(proto, names[1:])
    values = [np.concatenate(IMAGES), *_run(shown, np.concatenate(IMAGES))]
    ranges = _ranges(**{n: (v.min(axis=(0, 2, 3)), v.max(axis=(0, 2, 3))) for n, v in zip(names, values, strict=True)})
    options = RecipeOptions(per_channel=per_channel, weight_bits=7)
    writer = Int8Writer(ir.from_proto(proto), ranges, recipe, options, alpha=None)
    if correct:
        writer.correct(IMAGES)
    return proto, writer


def _stored(file: Int8File) -> list[np.ndarray]:
    """The initializers, in the order in which nodes read them."""
    graph = onnx.load_from_string(file.data).graph
    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return [known[name] for node in graph.node for name in node.input if name in known]


def _noise(proto: onnx.ModelProto, file: Int8File) -> float:
    images = np.concatenate(IMAGES)
    wanted, found = _run(proto, images)[0], _run(onnx.load_from_string(file.data), images)[0]
    return float(np.square(found.astype(np.float64) - wanted).sum() / np.square(wanted).sum())


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("recipe", ["onnxruntime", "openvino", "tensorrt"])
def test_the_file_holds_the_rounded_values(recipe, per_channel, monkeypatch):
    """Whatever is corrected afterwards: gains change scales, and where all rows share one, only means are corrected."""
    wanted, original = [], weight_rounding.rounded_rows

    def noted(*given):
        wanted.append(original(*given))
        return wanted[-1]

    monkeypatch.setattr(weight_rounding, "rounded_rows", noted)
    _, writer = _layers(recipe, per_channel=per_channel)
    plain = writer.write()
    rounded = writer.rounded(IMAGES)
    assert writer.write() is plain, "what was written before is still there"
    assert (rounded.layers_int8, rounded.layers_float) == (plain.layers_int8, plain.layers_float)
    before, after = ([a for a in _stored(file) if a.ndim == 4 and a.dtype == np.int8] for file in (plain, rounded))
    assert [array.shape for array in after] == [array.shape for array in before]
    assert len(after) == len(wanted) == len(plain.layers_int8)
    for found, given, codes in zip(after, before, wanted, strict=True):
        assert np.array_equal(found.reshape(codes.shape), codes)
        assert (found != given).any()
    scales = [[a for a in _stored(file) if a.ndim == 0 and a.dtype.kind == "f"] for file in (plain, rounded)]
    assert all(np.array_equal(old, new) for old, new in zip(*scales, strict=True)), "also those that all rows share"


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("recipe", ["onnxruntime", "openvino"])
def test_rounded_weights_are_closer_to_the_float_network(recipe, per_channel):
    proto, writer = _layers(recipe, per_channel=per_channel, correct=True)
    assert _noise(proto, writer.rounded(IMAGES)) < 0.8 * _noise(proto, writer.write())


def test_weights_of_layers_that_stay_float_stay_as_they_are():
    proto, writer = _layers("openvino", correct=True)
    file = writer.rounded(IMAGES, ("c1",))
    assert (file.layers_int8, file.layers_float) == (("c0",), ("c1",))
    wanted = onnx.numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == "w1"))
    assert any(np.array_equal(stored, wanted) for stored in _stored(file))


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("recipe", ["onnxruntime", "openvino", "tensorrt"])
def test_after_rounding_outputs_are_corrected_to_those_of_the_original_network(recipe, correct):
    proto, writer = _layers(recipe, correct=correct)
    images = np.concatenate(IMAGES)
    wanted, found = (
        _run(model, images)[0].mean(axis=0) for model in (proto, onnx.load_from_string(writer.rounded(IMAGES).data))
    )
    # a scale in FP16 is rounded up by 2^-10 at most, in two layers
    np.testing.assert_allclose(found, wanted, rtol=2**-9 if recipe == "tensorrt" else 1e-5)


# --- dead channels

NET = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
    [c0] a = Conv <kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1]> (x, w0)
    [n1] n = BatchNormalization (a, gamma, beta, mean, var)
    [r1] r = Relu (n)
    [c1] h = Conv <kernel_shape: ints = [1, 1]> (r, w1)
    [j0] k = Concat <axis: int = 1> (a, a)
    [c2] d = Conv <kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1]> (h, w2)
    [r3] b = Relu (d)
    [j] j = Concat <axis: int = 1> (a, b)
    [n2] m = BatchNormalization (j, gamma2, beta2, mean2, var2)
    [r2] s = Relu (m)
    [c3] y = Conv <kernel_shape: ints = [1, 1]> (s, w3)
}
"""


@pytest.mark.parametrize("recipe", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("also", ["", ", float[N, 4, 8, 8] b, float[N, 8, 8, 8] k"], ids=["inside", "an output too"])
def test_channels_whose_relu_never_opens_cost_nothing(recipe, sign, also):
    """Half of the channels of both norms are dead, with scales of a thousandth: θ is 500 to 3000 steps away.

    Where a segment is an output too, the bus has a copy, and what the output needs says nothing about the bus.
    """
    rng = np.random.default_rng(0)
    numbers = {"w0": (4, 3, 3, 3), "w1": (8, 4, 1, 1), "w2": (4, 8, 3, 3), "w3": (4, 8, 1, 1)}
    values = {name: rng.standard_normal(shape) / np.prod(shape[1:]) ** 0.5 for name, shape in numbers.items()}
    for ending, count in (("", 4), ("2", 8)):
        dead = np.arange(count) % 2 == 0
        values |= {
            f"gamma{ending}": np.where(dead, sign * 1e-3, rng.uniform(0.5, 1, count)),
            f"beta{ending}": np.where(dead, -1.0, 0.3),
            f"mean{ending}": np.zeros(count),
            f"var{ending}": np.ones(count),
        }
    proto = onnx.parser.parse_model(NET.replace(" y)", f" y{also})"))
    tensors = [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in values.items()]
    proto.graph.initializer.extend(tensors)
    proto = onnx.shape_inference.infer_shapes(proto)
    pixels = rng.standard_normal((4, 3, 8, 8)).astype(np.float32)
    exposed = expose_values(proto)
    seen = dict(zip([o.name for o in exposed.graph.output], _run(exposed, pixels), strict=True)) | {"x": pixels}
    ranges = {name: ChannelRanges(a.min((0, 2, 3)), a.max((0, 2, 3))) for name, a in seen.items() if a.ndim == 4}
    writer = Int8Writer(ir.from_proto(proto), ranges, recipe, RecipeOptions(weight_bits=7))  # exact on every CPU
    found = _run(onnx.load_from_string(writer.write().data), pixels)[0]
    noise = ((found - seen["y"]).astype(np.float64) ** 2).sum() / (seen["y"].astype(np.float64) ** 2).sum()
    assert 10 * np.log10(noise) < (-30 if also else -35)
