"""Files of other exporters: adopted, they compute the same; what cannot be mended is refused with the reason."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from densenet_deploy.errors import ModelFileError
from densenet_deploy.graph.bus import find_buses
from densenet_deploy.graph.foreign import LIFTED_OPSET, OLDEST_OPSET, adopt
from densenet_deploy.graph.graph_pass import EXACT, apply_passes
from tests.foreign_networks import (
    BLOCKS,
    CONVOLUTIONS,
    ENDINGS,
    HEADS,
    NORMS,
    WEIGHTS,
    Encoding,
    image,
    plain,
    written,
)

# Sums of some 100 float32 products near 1, in another order: a few ulps of scores near 3.
ROUNDING = 2e-5


def _run(model: onnx.ModelProto, feed: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: feed})[0]


def _nchw(encoding: Encoding, images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2) if encoding.layout == "NHWC" else images


def _drawn(count: int, seed: int) -> list[Encoding]:
    """Draw `count` encodings, none of them valid only by chance."""
    rng = np.random.default_rng(seed)
    choices = {
        "opset": range(OLDEST_OPSET, 18), "norm": NORMS, "head": HEADS, "weights": WEIGHTS, "ending": ENDINGS,
        "flat": (True, False), "pads": (True, False), "shuffled": (True, False), "names": ("own", "same", "none"),
        "layout": ("NCHW", "NHWC"), "channels": (1, 3, 4), "bias_as_add": (True, False), "batch": ("N", 2),
    }  # fmt: skip
    drawn = (
        {name: values[int(rng.integers(len(values)))] for name, values in choices.items()} for _ in itertools.count()
    )
    return [Encoding(**facts, seed=place) for place, facts in zip(range(count), drawn, strict=False)]


def _assert_adopted(encoding: Encoding) -> None:
    """Adopt the file, run the exact passes on it, and compare all three with the plain form."""
    file, images = written(encoding), image(encoding)
    expected = _run(plain(encoding), images)
    adopted = adopt(file, "file.onnx")
    np.testing.assert_allclose(_run(adopted.model, _nchw(encoding, images)), expected, rtol=ROUNDING, atol=ROUNDING)
    assert adopted.model.opset_import[0].version == max(encoding.opset, LIFTED_OPSET)
    assert len(adopted.model.graph.input) == 1
    model = ir.from_proto(onnx.shape_inference.infer_shapes(adopted.model))
    apply_passes(model, EXACT)
    rewritten = ir.to_proto(model)
    onnx.checker.check_model(rewritten, full_check=True)
    np.testing.assert_allclose(_run(rewritten, _nchw(encoding, images)), expected, rtol=ROUNDING, atol=ROUNDING)
    _assert_canonical(model, encoding)


def _assert_canonical(model: ir.Model, encoding: Encoding) -> None:
    """Check that the passes found norms, convolutions, buses and classifier, however they were written."""
    counts = {
        kind: sum(node.op_type == kind for node in model.graph) for kind in ("Conv", "Gemm", "BatchNormalization")
    }
    inner = BLOCKS * 2 + BLOCKS - 1 + 1
    assert counts == {"Conv": CONVOLUTIONS, "Gemm": 1, "BatchNormalization": inner}
    assert not {"Mul", "Add", "Sub", "Div", "Reshape", "MatMul", "Pad", "Shape"} & {n.op_type for n in model.graph}
    assert len(find_buses(model.graph).found) == BLOCKS
    assert str(model.graph.outputs[0].name) == "scores"
    assert encoding.head != "conv" or model.graph.outputs[0].shape.rank() == 4


@pytest.mark.parametrize("encoding", _drawn(12, seed=0), ids=str)
def test_a_file_in_any_encoding_computes_the_same_and_shows_its_structure(encoding):
    _assert_adopted(encoding)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", _drawn(120, seed=1), ids=str)
def test_many_files_in_any_encoding_compute_the_same(encoding):
    _assert_adopted(encoding)


def test_a_plain_file_comes_back_as_it_is():
    model = written(Encoding(opset=LIFTED_OPSET))
    adopted = adopt(model, "file.onnx")
    assert adopted.model is model
    assert adopted.notes == ()


@pytest.mark.parametrize(
    ("encoding", "notes"),
    [
        (Encoding(opset=17), ()),
        (Encoding(opset=12), ("operator set 12 was lifted to 13",)),
        (Encoding(opset=7), ("operator set 7 was lifted to 13",)),
        (Encoding(weights="inputs"), ("56 weights that were listed as inputs are constants",)),
        (Encoding(shuffled=True), ("nodes were sorted into execution order",)),
        (Encoding(names="same"), ("40 nodes whose name another node has were renamed",)),
        (Encoding(names="none"), ()),
        (Encoding(weights="constants"), ("56 Constant nodes were stored as initializers",)),
        (Encoding(weights="computed"), ("20 nodes that compute constants were replaced by what they compute",)),
        (
            Encoding(layout="NHWC"),
            ("images enter as (N, C, H, W): a Transpose to the (N, H, W, C) of the file was put in front",),
        ),
    ],
    ids=str,
)
def test_every_thing_done_is_said(encoding, notes):
    assert adopt(written(encoding), "file.onnx").notes == notes


def test_the_given_model_is_unchanged():
    model = written(Encoding(opset=9, weights="inputs", names="same", layout="NHWC"))
    before = model.SerializeToString(deterministic=True)
    adopt(model, "file.onnx")
    assert model.SerializeToString(deterministic=True) == before


def test_images_of_another_layout_enter_under_the_same_name_and_keep_their_sizes():
    adopted = adopt(written(Encoding(layout="NHWC", channels=4)), "file.onnx").model
    (given,) = adopted.graph.input
    assert given.name == "image"
    assert [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim] == ["N", 4, 16, 16]


@pytest.mark.parametrize("size", [3, 16])
def test_an_image_is_nhwc_only_if_its_last_axis_holds_what_the_first_convolution_reads(size):
    text = f"""<ir_version: 8, opset_import: ["" : 13]> g (float[N,{size},16,3] x) => (float[a,b,c,d] y)
        <float[4,3,1,1] w = {{1,1,1,1,1,1,1,1,1,1,1,1}}> {{
            t = {"Transpose<perm=[0,3,1,2]>" if size == 16 else "Identity"}(x)  y = Conv(t, w) }}"""
    notes = adopt(onnx.parser.parse_model(text), "file.onnx").notes
    assert len(notes) == (size == 16)


@pytest.mark.parametrize(("channels", "is_nhwc"), [(3, True), (16, False)])
def test_a_gray_image_of_nhwc_may_be_repeated_before_the_first_convolution(channels, is_nhwc):
    repeat = "t = Concat<axis=3>(x, x, x)  u = Transpose<perm=[0,3,1,2]>(t)" if is_nhwc else "u = Identity(x)"
    text = f"""<ir_version: 8, opset_import: ["" : 13]> g (float[N,16,16,1] x) => (float[a,b,c,d] y)
        <float[1,{channels},1,1] w = {{{",".join(["2"] * channels)}}}> {{ {repeat}  y = Conv(u, w) }}"""
    adopted = adopt(onnx.parser.parse_model(text), "file.onnx")
    assert len(adopted.notes) == is_nhwc
    if is_nhwc:
        image = np.random.default_rng(0).random((2, 1, 16, 16), np.float32)
        np.testing.assert_allclose(_run(adopted.model, image), 6 * image, rtol=1e-6)


@pytest.mark.parametrize("kind", ["float16", "double", "bfloat16"])
def test_images_and_scores_of_another_float_type_are_cast(kind):
    shape = f"{kind}[N,3,4,4]"
    text = f"""<ir_version: 8, opset_import: ["" : 13]> g ({shape} x) => ({shape} y, {shape} z) {{
        y = Neg(x)  z = Identity(y) }}"""
    adopted = adopt(onnx.parser.parse_model(text), "file.onnx")
    assert adopted.notes == (
        f"images enter as float32: a Cast to the {kind} of the file was put in front",
        f"2 outputs leave as float32: a Cast from the {kind} of the file was put after them",
    )
    graph = adopted.model.graph
    assert [node.op_type for node in graph.node] == ["Cast", "Neg", "Identity", "Cast", "Cast"]
    assert [value.name for value in (*graph.input, *graph.output)] == ["x", "y", "z"]
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {TensorProto.FLOAT}
    if kind != "bfloat16":  # which ONNX Runtime negates on no CPU
        images = np.full((1, 3, 4, 4), 0.5, np.float32)
        np.testing.assert_array_equal(_run(adopted.model, images), -images)


@pytest.mark.parametrize("kind", ["float", "int64"])
def test_images_of_float32_and_of_integers_are_not_cast(kind):
    text = f"""<ir_version: 8, opset_import: ["" : 13]>
        g ({kind}[N,3,4,4] x) => ({kind}[N,3,4,4] y) {{ y = Identity(x) }}"""
    assert adopt(onnx.parser.parse_model(text), "file.onnx").notes == ()


@pytest.mark.parametrize(
    ("shape", "notes"),
    [("N,8,9,3", 0), ("N,?,?,1", 0), ("N,3,8,9", 1), ("N,1,?,?", 1), ("N,3,4,4", 1), ("N,4,5,5", 1)],
)
def test_pixels_enter_with_channels_last(shape, notes):
    sizes = [None if size in "N?" else int(size) for size in shape.split(",")]
    text = f"""<ir_version: 8, opset_import: ["" : 13]>
        g (uint8[{shape}] x) => (float[{shape}] y) {{ y = Cast <to = 1> (x) }}"""
    adopted = adopt(onnx.parser.parse_model(text), "file.onnx")
    assert len(adopted.notes) == notes
    order = (0, 2, 3, 1) if notes else (0, 1, 2, 3)
    found = adopted.model.graph.input[0].type.tensor_type
    assert [dim.dim_value or None for dim in found.shape.dim] == [sizes[axis] for axis in order]
    assert found.elem_type == TensorProto.UINT8


@pytest.mark.parametrize("shape", ["N,?,?,?", "N,8,9,2", "N,8,9,12"])
def test_pixels_of_unclear_channels_are_refused(shape):
    text = f"""<ir_version: 8, opset_import: ["" : 13]>
        g (uint8[{shape}] x) => (float[{shape}] y) {{ y = Cast <to = 1> (x) }}"""
    with pytest.raises(ModelFileError) as caught:
        adopt(onnx.parser.parse_model(text), "file.onnx")
    assert "uint8" in caught.value.why


def test_names_that_are_taken_are_not_given_again():
    text = """<ir_version: 8, opset_import: ["" : 13]> g (float[N] x) => (float[N] y) { a = Relu(x)  b = Relu(a)
        c = Relu(b)  y = Relu(c) }"""
    model = onnx.parser.parse_model(text)
    for node, name in zip(model.graph.node, ("n", "n_2", "n", "n"), strict=True):
        node.name = name
    adopted = adopt(model, "file.onnx")
    assert [node.name for node in adopted.model.graph.node] == ["n", "n_2", "n_3", "n_4"]
    assert adopted.notes == ("2 nodes whose name another node has were renamed",)


def test_what_stands_twice_is_dropped_and_what_contradicts_itself_is_refused():
    model = written(Encoding())
    model.graph.node.append(model.graph.node[-1])
    model.graph.initializer.append(model.graph.initializer[0])
    adopted = adopt(model, "file.onnx")
    assert adopted.notes == ("2 weights or nodes that the file holds twice were dropped",)
    assert adopted.model.graph.node == written(Encoding()).graph.node
    model.graph.initializer[-1].raw_data = bytes(len(model.graph.initializer[-1].raw_data))
    with pytest.raises(ModelFileError):
        adopt(model, "file.onnx")


def test_functions_are_inlined():
    text = """<ir_version: 9, opset_import: ["" : 17, "own" : 1]> g (float[N,3,5,5] x) => (float[N,3,5,5] y) {
        y = own.twice(x) }
        <opset_import: ["" : 17], domain: "own"> twice (a) => (b) { k = Relu(a)  b = Add(k, k) }"""
    adopted = adopt(onnx.parser.parse_model(text), "file.onnx")
    assert [node.op_type for node in adopted.model.graph.node] == ["Relu", "Add"]
    assert adopted.notes == ("1 functions were inlined",)


def test_a_weight_that_a_graph_without_its_listing_holds_stays(tmp_path):
    """In IR 3 every weight had to be an input; the version is raised with the change."""
    model = written(Encoding(opset=7, weights="inputs"))
    assert model.ir_version == 3
    assert adopt(model, "file.onnx").model.ir_version >= 4


@pytest.mark.parametrize("opset", range(OLDEST_OPSET, LIFTED_OPSET))
def test_old_operator_sets_are_lifted_exactly(opset):
    encoding = Encoding(opset=opset, norm="caffe", head="view", ending="Softmax", pads=True, weights="inputs")
    images = image(encoding)
    np.testing.assert_array_equal(
        _run(adopt(written(encoding), "file.onnx").model, images), _run(plain(encoding), images)
    )


def _refused(model: onnx.ModelProto) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        adopt(model, "file.onnx")
    assert caught.value.exit_code == 3
    assert caught.value.subject == "file.onnx"
    return caught.value


def test_operator_sets_before_7_are_refused():
    model = written(Encoding(opset=OLDEST_OPSET))
    model.opset_import[0].version = OLDEST_OPSET - 1
    assert "operator set 6" in _refused(model).why


NUMBERS = "float[3] s = {1,1,1}, float[3] b = {0,0,0}, float[3] m = {0,0,0}, float[3] v = {1,1,1}"


def _graph(
    body: str, opset: int = 13, stored: str = NUMBERS, shape: str = "N,3,5,5", result: str = "N,3,5,5"
) -> onnx.ModelProto:
    header = f'<ir_version: 7, opset_import: ["" : {opset}, "com.microsoft" : 1, "com.microsoft.nchwc" : 1]>'
    return onnx.parser.parse_model(f"{header} g (float[{shape}] x) => (float[{result}] y) <{stored}> {{ {body} }}")


@pytest.mark.parametrize(
    ("body", "opset"),
    [
        ("y, r, t = BatchNormalization<training_mode=1>(x, s, b, m, v)", 14),
        ("y, r, t, p, q = BatchNormalization(x, s, b, m, v)", 9),
        ("t = Constant<value = bool {1}>()  r = Constant<value = float {0.5}>()  y = Dropout(x, r, t)", 13),
    ],
)
def test_a_network_in_training_mode_is_refused_with_the_cure(body, opset):
    error = _refused(_graph(body, opset))
    assert "training mode" in error.why
    assert "model.eval()" in error.fix


@pytest.mark.parametrize(
    "body",
    [
        "n = RandomNormalLike(x)  y = Add(x, n)",
        "p = Mul(x, x)  y = Bernoulli(p)",
        "n = RandomUniformLike(x)  y = Mul(x, n)",
    ],
)
def test_a_network_whose_results_are_random_is_refused_with_the_cure(body):
    error = _refused(_graph(body, 15))
    assert "makes results random" in error.why
    assert "model.eval()" in error.fix


def test_an_input_that_nothing_reads_is_dropped_and_said():
    model = _graph("y = Relu(x)")
    model.graph.input.append(onnx.helper.make_tensor_value_info("is_training", onnx.TensorProto.BOOL, []))
    adopted = adopt(model, "file.onnx")
    assert [value.name for value in adopted.model.graph.input] == ["x"]
    assert adopted.notes == ("inputs that nothing reads were dropped: is_training",)


def test_inputs_that_are_read_or_are_all_there_is_stay():
    model = _graph("f = Cast<to=1>(flag)  y = Mul(x, f)")
    model.graph.input.append(onnx.helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []))
    assert len(adopt(model, "file.onnx").model.graph.input) == 2
    alone = _graph("y = ConstantOfShape(s)", stored="int64[4] s = {1, 3, 5, 5}", result="1,3,5,5")
    assert [value.name for value in adopt(alone, "file.onnx").model.graph.input] == ["x"]


@pytest.mark.parametrize(
    ("body", "opset"),
    [
        ("y = BatchNormalization<training_mode=0>(x, s, b, m, v)", 14),
        ("y = BatchNormalization(x, s, b, m, v)", 13),
        ("t = Constant<value = bool {0}>()  r = Constant<value = float {0.5}>()  y = Dropout(x, r, t)", 13),
        ("y = Dropout(x)", 13),
    ],
)
def test_a_network_in_inference_is_not(body, opset):
    assert adopt(_graph(body, opset), "file.onnx").notes == ()


@pytest.mark.parametrize(
    "body",
    ["y = com.microsoft.FusedConv(x, w)", "y = com.microsoft.nchwc.Conv(x, w)", "y = com.microsoft.FusedGemm(x, w)"],
)
def test_what_onnx_runtime_has_optimized_is_refused(body):
    error = _refused(_graph(body, stored="float[1,3,1,1] w = {1,1,1}", result="N,1,5,5"))
    assert "optimized by ONNX Runtime" in error.why
    assert "original" in error.fix


def test_volumes_are_refused():
    error = _refused(_graph("y = Conv(x, w)", stored="float[1,1,1,1,1] w = {1}", shape="N,1,8,8,8", result="N,1,8,8,8"))
    assert "3-D" in error.why


def test_what_is_not_valid_is_refused():
    model = written(Encoding())
    model.graph.node[3].input[0] = "nothing"
    assert "not a valid ONNX model" in _refused(model).why
    assert "cycle" in _refused(_graph("k = Relu(l)  l = Relu(k)  y = Relu(l)")).why


def test_what_cannot_be_lifted_is_kept_and_said():
    model = _graph("y = BatchNormalization<spatial=0>(x, s, b, m, v)", opset=7)
    adopted = adopt(model, "file.onnx")
    assert len(adopted.notes) == 1
    assert adopted.notes[0].startswith("operator set 7 was kept: cannot be lifted")
    assert adopted.model.opset_import[0].version == 7
    assert [node.op_type for node in adopted.model.graph.node] == ["BatchNormalization"]


def test_shapes_of_outputs_that_are_left_out_are_inferred():
    model = _graph("y = Relu(x)")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    adopted = adopt(model, "file.onnx")
    assert adopted.notes == ("the shapes of outputs, which the file leaves out, were inferred",)
    assert adopted.model.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 3


def test_a_weight_too_large_for_any_densenet_is_refused():
    shape = numpy_helper.from_array(np.array([2**20, 2**20], np.int64), "k")
    graph = helper.make_graph(
        [helper.make_node("ConstantOfShape", ["k"], ["w"], "fill"), helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 2**20))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2**20))],
        [shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    with pytest.raises(ModelFileError) as caught:
        adopt(model, "file.onnx")
    assert caught.value.subject == "fill"


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(
    ("axis", "opset", "depends"), [(0, 13, True), (-2, 13, True), (0, 9, True), (1, 13, False), (-1, 13, False)]
)
def test_scores_that_depend_on_the_other_images_of_a_batch_are_refused(operator, axis, opset, depends):
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]> g (float[N,5] x) => (float[N,5] y) {{
        y = {operator}<axis={axis}>(x) }}"""
    if not depends:
        assert adopt(onnx.parser.parse_model(text), "file.onnx").notes == ()
        return
    with pytest.raises(ModelFileError) as caught:
        adopt(onnx.parser.parse_model(text), "file.onnx")
    assert caught.value.subject == "file.onnx"
    assert "whole batch" in caught.value.why


def test_an_inner_softmax_over_the_first_axis_is_not_one_of_scores():
    text = """<ir_version: 8, opset_import: ["" : 13]> g (float[N,5] x) => (float[N,5] y) {
        s = Softmax<axis=0>(x)  y = Neg(s) }"""
    assert adopt(onnx.parser.parse_model(text), "file.onnx").notes == ()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("weights", ["initializers", "constants"])
@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (4, -1e-7, "holds 1 negative values in {name}, the variance of BatchNormalization {node}"),
        (4, np.nan, "holds 1 NaN or Inf values in {name}, a weight of BatchNormalization {node}"),
        (4, np.inf, "holds 1 NaN or Inf values in {name}, a weight of BatchNormalization {node}"),
        (1, np.nan, "holds 1 NaN or Inf values in {name}, a weight of BatchNormalization {node}"),
        (3, -1e-7, None),
        (4, 0.0, None),
    ],
)
def test_damaged_weights_are_named_and_refused_unless_accepted(dtype, weights, place, value, says):
    numbers = np.array([0.5, value, 0.25], dtype)
    bare = {name: np.array([1, 1, 1], dtype) for name in ("a", "b", "c", "d")}
    bare[list(bare)[place - 1]] = numbers
    image, result = (
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["N", 3, 4, 4])
        for name in ("x", "y")
    )
    node = helper.make_node("BatchNormalization", ["x", *bare], ["y"], "norm")
    tensors = [numpy_helper.from_array(array, name) for name, array in bare.items()]
    constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors]
    nodes, stored = ([node], tensors) if weights == "initializers" else ([*constants, node], [])
    graph = helper.make_graph(nodes, "norm", [image], [result], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if says is None:
        adopt(model, "file.onnx")
        return
    with pytest.raises(ModelFileError) as caught:
        adopt(model, "file.onnx")
    assert caught.value.why == says.format(name=list(bare)[place - 1], node="norm")
    assert adopt(model, "file.onnx", allow_nonfinite=True).model.graph.node


@pytest.mark.parametrize("operator", ["Conv", "Gemm", "MatMul"])
def test_nan_in_a_weight_of_any_layer_is_refused(operator):
    sizes = {"Conv": ("N,3,8,8", "2,3,1,1", "N,2,8,8"), "Gemm": ("4,3", "3,2", "4,2"), "MatMul": ("4,3", "3,2", "4,2")}
    entering, weight, leaving = sizes[operator]
    text = (
        f'<ir_version: 8, opset_import: ["": 17]> g (float[{entering}] x) => (float[{leaving}] y) {{'
        f" w = Constant <value = float[{weight}] {{1, 2, 3, 4, 5, 6}}> () y = {operator}(x, w) }}"
    )
    model = onnx.parser.parse_model(text)
    adopt(model, "file.onnx")
    tensor = model.graph.node[0].attribute[0].t
    array = numpy_helper.to_array(tensor).copy()
    array.flat[2] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    with pytest.raises(ModelFileError) as caught:
        adopt(model, "file.onnx")
    assert "1 NaN or Inf values" in caught.value.why
