"""Every recipe on small dense blocks and on the trained digits model: integers where asked, and the same answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import DataError, ModelFileError, OutputExistsError, UnknownNameError, UsageError
from densenet_deploy.graph.onnx_file import operators
from densenet_deploy.quantization.cache import CalibrationCache
from densenet_deploy.quantization.observers.observer import ChannelRanges
from densenet_deploy.quantization.observers.percentile import PercentileOptions
from densenet_deploy.quantization.recipes.recipe import RecipeOptions, recipes
from densenet_deploy.quantization.scales import choose_types
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.workflows.compare import CompareOptions, compare
from densenet_deploy.workflows.evaluate import evaluate
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.preparation import weight_bits
from densenet_deploy.workflows.quantize.quantize import quantize
from tests.conftest import DIGITS

SAMPLES = DIGITS.parents[1] / "calibration" / "samples"
HELD_OUT = DIGITS / "held_out"


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def recipe(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> CalibrationCache:
    return CalibrationCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def int8(recipe, digits_onnx, cache, tmp_path_factory):
    """The report of quantizing the digits model."""
    options = QuantizeOptions(never_slower=False, recipe=recipe)
    return quantize(digits_onnx, SAMPLES, options, out=tmp_path_factory.mktemp("int8"), cache=cache).report


def test_every_convolution_is_in_int8(int8):
    assert (int8.layers_int8, int8.layers_float) == (39, 0)
    assert int8.calibrated_on == 128


def test_the_accuracy_stays(int8, digits_onnx):
    """Within 0.2 points of float on 360 held-out digits: not one answer may be lost on balance."""
    assert evaluate(int8.onnx, HELD_OUT).top1 >= evaluate(digits_onnx, HELD_OUT).top1 - 0.002


def test_the_logits_stay_close(int8, digits_onnx, recipe):
    """Measured 38.5 dB; NNCF and quantize_static reach 24 to 36 dB on networks of this kind."""
    options = CompareOptions(samples=360, gates=(), reference_backend=recipe)
    parity = compare(digits_onnx, int8.onnx, HELD_OUT, options).parity
    assert parity.sqnr_db >= 36
    assert parity.top1_agreement is not None
    assert parity.top1_agreement >= 0.997


def test_equalization_is_worth_decibels(int8, recipe, digits_onnx, cache):
    plain = quantize(
        digits_onnx,
        SAMPLES,
        QuantizeOptions(never_slower=False, recipe=recipe, equalize=False),
        cache=cache,
    ).report
    assert int8.parity.sqnr_db > plain.parity.sqnr_db + 1


def test_the_file_says_what_it_is(int8, recipe, digits_onnx):
    artifact = Artifact.open(int8.onnx)
    float_manifest = Artifact.open(digits_onnx).manifest
    assert artifact.precision == "int8"
    assert artifact.manifest is not None
    assert float_manifest is not None
    assert (artifact.manifest.precision, artifact.manifest.recipe) == ("int8", recipe)
    assert artifact.manifest.labels == float_manifest.labels
    with open_runner(int8.onnx) as runner:
        assert (runner.placement.backend, runner.placement.precision) == (recipe, "int8")


def test_weights_are_stored_in_a_byte_each(int8, digits_onnx):
    assert int8.onnx.stat().st_size < 0.6 * digits_onnx.stat().st_size


@pytest.mark.parametrize("equalize", [True, False])
def test_the_onnxruntime_recipe_leaves_two_conversions(equalize, digits_onnx, cache):
    options = QuantizeOptions(never_slower=False, recipe="onnxruntime", equalize=equalize)
    counted = operators(quantize(digits_onnx, SAMPLES, options, cache=cache).onnx)
    assert (counted["QuantizeLinear"], counted["DequantizeLinear"]) == (1, 1)
    assert "Conv" not in counted
    assert "BatchNormalization" not in counted


def test_the_openvino_recipe_quantizes_a_segment_once(digits_onnx, cache):
    """The input, what 18 second convolutions and 2 transitions read, and 3 buses of 7 segments; clips need none."""
    model = quantize(digits_onnx, SAMPLES, QuantizeOptions(never_slower=False, recipe="openvino"), cache=cache)
    assert operators(model.onnx)["QuantizeLinear"] == 1 + 18 + 2 + 3 * 7


def test_per_tensor_weights_and_other_observers(digits_onnx, cache, recipe):
    for observer in ("percentile", "mse", "entropy"):
        options = QuantizeOptions(
            never_slower=False, recipe=recipe, observer=observer, weights="per-tensor", samples=48
        )
        report = quantize(digits_onnx, SAMPLES, options, cache=cache).report
        assert report.parity.top1_agreement == 1.0


def test_a_quantized_file_is_refused(int8):
    with pytest.raises(ModelFileError) as caught:
        quantize(int8.onnx, SAMPLES)
    assert caught.value.subject == str(int8.onnx)


def test_too_few_images_are_refused(digits_onnx, tmp_path):
    with pytest.raises(DataError):
        quantize(digits_onnx, SAMPLES, QuantizeOptions(samples=31), out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_file_in_the_way_survives(digits_onnx, tmp_path):
    foreign = tmp_path / "x.onnx"
    foreign.write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        quantize(digits_onnx, SAMPLES, out=foreign)
    assert foreign.read_bytes() == b"mine"


def test_words_and_numbers_are_checked(digits_onnx):
    with pytest.raises(UnknownNameError) as caught:
        quantize(digits_onnx, SAMPLES, QuantizeOptions(never_slower=False, recipe="openvin"))
    assert "'openvino'" in caught.value.fix
    with pytest.raises(UnknownNameError) as caught:
        QuantizeOptions(weights="per-chanel")
    assert "'per-channel'" in caught.value.fix
    with pytest.raises(UsageError) as caught:
        QuantizeOptions(alpha=1.5)
    assert caught.value.subject == "alpha=1.5"


def test_observers_and_their_options_are_checked_at_once():
    with pytest.raises(UnknownNameError):
        QuantizeOptions(observer="percentil")
    with pytest.raises(UsageError):
        QuantizeOptions(observer="mse", observer_options=PercentileOptions())
    options = QuantizeOptions(observer="percentile", observer_options=PercentileOptions(percentile=99.9))
    assert options.observer_options.percentile == 99.9


def test_seven_bits_only_where_kernels_saturate():
    assert weight_bits(frozenset({"sse2", "avx2"})) == 7
    assert weight_bits(frozenset({"sse2", "avx2", "avx512_vnni"})) == 8
    assert weight_bits(frozenset({"asimd"})) == 8


BLOCK = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[1, 4, 8, 8] x) => (float[1, 6, 8, 8] y) {
    a = Conv <kernel_shape: ints = [1, 1]> (x, wa)
    n = BatchNormalization (a, gamma, beta, mean, variance)
    r = Relu (n)
    b = Conv <kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1]> (r, wb)
    c = Concat <axis: int = 1> (a, b)
    y = Conv <kernel_shape: ints = [1, 1]> (c, wy, by)
}
"""


@pytest.fixture
def block() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    numbers = {
        "wa": rng.standard_normal((4, 4, 1, 1)),
        "gamma": rng.uniform(-2, 2, 4),
        "beta": rng.standard_normal(4),
        "mean": rng.standard_normal(4),
        "variance": rng.uniform(0.5, 2, 4),
        "wb": rng.standard_normal((2, 4, 3, 3)),
        "wy": rng.standard_normal((6, 6, 1, 1)),
        "by": rng.standard_normal(6),
    }
    model = onnx.parser.parse_model(BLOCK)
    tensors = [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in numbers.items()]
    model.graph.initializer.extend(tensors)
    return onnx.shape_inference.infer_shapes(model)


def _ranges(model: onnx.ModelProto, inputs: np.ndarray, folder: Path) -> dict[str, ChannelRanges]:
    from densenet_deploy.graph.onnx_file import expose_values

    (folder / "all.onnx").write_bytes(expose_values(model).SerializeToString())
    with open_runner(folder / "all.onnx", "onnxruntime") as runner:
        values = {"x": inputs, **runner.run({"x": inputs})}
    return {n: ChannelRanges(v.min(axis=(0, 2, 3)), v.max(axis=(0, 2, 3))) for n, v in values.items()}


@pytest.mark.parametrize("float_nodes", [(), ("conv_b",), ("conv_a", "norm")])
def test_a_block_computes_the_same_with_some_nodes_left_float(block, recipe, float_nodes, tmp_path):
    for node, name in zip(block.graph.node, ("conv_a", "norm", "relu", "conv_b", "concat", "conv_y"), strict=True):
        node.name = name
    inputs = np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype(np.float32)
    ranges = _ranges(block, inputs, tmp_path)
    model = ir.from_proto(block)
    types = choose_types(model.graph, ranges)
    written = recipes.get(recipe)().write(model, types, RecipeOptions(float_nodes=float_nodes))
    assert set(written).isdisjoint(float_nodes)
    assert "conv_b" in written or "conv_b" in float_nodes
    expected, found = (answer["y"] for answer in _answers(block, model, inputs, recipe, tmp_path))
    # 8 bits a value, three convolutions deep: about 1 % of the largest value
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def test_inputs_of_a_concat_share_one_type(block, tmp_path):
    inputs = np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype(np.float32)
    types = choose_types(ir.from_proto(block).graph, _ranges(block, inputs, tmp_path))
    assert types["a"] == types["b"] == types["c"]
    assert types["a"].zero_point == 128
    assert types["r"].zero_point == 0
    assert types["a"] != types["r"]


def test_json_has_the_keys_that_others_rely_on(int8):
    answer = json.loads(json.dumps(int8.to_json(), allow_nan=False))
    assert set(answer) >= {"onnx", "recipe", "parity", "layers_int8", "layers_float"}


def test_layers_are_compared_with_quantized_values_and_equalization_undone(int8, digits_onnx):
    """Every tensor that both files have, 8 bits apart: 25 dB is far below what the worst shows and far above noise."""
    compared = compare(digits_onnx, int8.onnx, HELD_OUT, CompareOptions(samples=4, per_layer=True, gates=()))
    assert len(compared.layers) > 40
    assert min(parity.sqnr_db for parity in compared.layers.values()) > 25
    assert any("absorbed" in reason for reason in compared.skipped.values())


def _answers(proto, written, inputs, recipe, folder):
    """What the float model gives, and its INT8 form, on the recipe's backend."""
    int8 = ir.to_proto(written)
    del int8.graph.value_info[:]
    onnx.checker.check_model(int8)
    answers = []
    for name, saved in (("float", proto), ("int8", int8)):
        (folder / f"{name}.onnx").write_bytes(saved.SerializeToString())
        with open_runner(folder / f"{name}.onnx", recipe) as runner:
            answers.append(runner.run({"x": inputs}))
    return answers


POOLED = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[1, 4, 8, 8] x) => (float[1, 4, 4, 4] p, float[1, 6, 4, 4] y) {
    a = Conv <kernel_shape: ints = [1, 1]> (x, wa)
    p = MaxPool <kernel_shape: ints = [2, 2], strides: ints = [2, 2]> (a)
    y = Conv <kernel_shape: ints = [1, 1]> (p, wy)
}
"""

BOUNDED = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[1, 4, 8, 8] x) => (float[1, 6, 8, 8] y) {
    a = Conv <kernel_shape: ints = [1, 1]> (x, wa)
    p = Max (a, bound)
    y = Conv <kernel_shape: ints = [1, 1]> (p, wy)
}
"""


@pytest.mark.parametrize("text", [POOLED, BOUNDED], ids=["a pool that leaves the graph", "a bound of the model's own"])
def test_nodes_that_move_quantized_values_stay_float_if_they_must(text, recipe, tmp_path):
    """An output is float, and a Max whose result was calibrated has a type of its own."""
    rng, proto = np.random.default_rng(0), onnx.parser.parse_model(text)
    for name, array in (
        ("wa", rng.standard_normal((4, 4, 1, 1))),
        ("wy", rng.standard_normal((6, 4, 1, 1))),
        ("bound", np.full((1, 1, 1), 9.0)),
    ):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    proto = onnx.shape_inference.infer_shapes(proto)
    inputs = rng.standard_normal((1, 4, 8, 8)).astype(np.float32)
    model, ranges = ir.from_proto(proto), _ranges(proto, inputs, tmp_path)
    recipes.get(recipe)().write(model, choose_types(model.graph, ranges), RecipeOptions())
    expected, found = _answers(proto, model, inputs, recipe, tmp_path)
    for name, wanted in expected.items():
        assert np.abs(found[name] - wanted).max() < 0.03 * np.abs(wanted).max()


GROWING = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[1, 4, 8, 8] x) => (float[1, 6, 8, 8] y) {
    a = Conv <kernel_shape: ints = [1, 1]> (x, wa)
    b = Conv <kernel_shape: ints = [1, 1]> (a, wb)
    c = Concat <axis: int = 1> (a, b)
    d = Conv <kernel_shape: ints = [1, 1]> (c, wd)
    e = Concat <axis: int = 1> (c, d)
    m = Max (e, bound)
    y = Conv <kernel_shape: ints = [1, 1]> (m, wy)
}
"""


def test_a_concat_that_a_conv_reads_itself_has_its_codes_before_it(recipe, tmp_path):
    """The clip after the second Concat needs the first one quantized, which an earlier Conv reads."""
    rng, proto = np.random.default_rng(0), onnx.parser.parse_model(GROWING)
    shapes = {"wa": (4, 4, 1, 1), "wb": (2, 4, 1, 1), "wd": (2, 6, 1, 1), "wy": (6, 8, 1, 1), "bound": (8, 1, 1)}
    for name, shape in shapes.items():
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    proto = onnx.shape_inference.infer_shapes(proto)
    inputs = rng.standard_normal((1, 4, 8, 8)).astype(np.float32)
    model, ranges = ir.from_proto(proto), _ranges(proto, inputs, tmp_path)
    del ranges["m"]  # as of a clip that a pass put there: it has the type of what it reads
    recipes.get(recipe)().write(model, choose_types(model.graph, ranges), RecipeOptions())
    expected, found = _answers(proto, model, inputs, recipe, tmp_path)
    assert np.abs(found["y"] - expected["y"]).max() < 0.03 * np.abs(expected["y"]).max()
