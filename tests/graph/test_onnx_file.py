"""Reading ONNX files, refusing broken ones, and exposing inner tensors as outputs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import InputError, ModelFileError, ResourceError
from densenet_deploy.graph.onnx_file import (
    expose_values,
    has_quantization,
    image_shape_of,
    keep_what_makes,
    load_onnx,
    operators,
    with_image_size,
)
from tests.graph.onnx_text import model_of, outputs_of

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
SOUND = HEADER + "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }"
NEWEST = onnx.defs.onnx_opset_version()
WEIGHTS = np.array([1, 2], np.float32).tobytes()


def _bytes(text: str) -> bytes:
    return onnx.parser.parse_model(text).SerializeToString()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def _written(folder: Path, content: bytes) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(content)
    return path


def _refusal(folder: Path, content: bytes) -> str:
    """Write `content` as model.onnx and return the sentence with which it is refused."""
    path = _written(folder, content)
    with pytest.raises(InputError) as caught:
        load_onnx(path)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert caught.value.subject == str(path)
    assert message.isprintable()
    return message


NAMED = (
    HEADER
    + "gggg (float[2] xxxx) => (float[2] yyyy) <float[2] wwww = {1, 2}, float[2] vvvv> "
    + "{ [nnnn] aaaa = Add(xxxx, wwww) vvvv = Neg(aaaa) yyyy = Abs(vvvv) }"
)


@pytest.mark.parametrize("name", ["gggg", "xxxx", "yyyy", "wwww", "vvvv", "nnnn", "aaaa", "Add", "my.own"])
def test_a_name_that_is_not_text_is_refused(folder, name):
    text = NAMED
    if name == "my.own":
        text = NAMED.replace("]", ', "my.own" : 1]', 1).replace("Neg", "my.own.twice")
        text += ' <domain: "my.own", opset_import: ["" : 17]> twice (a) => (b) { b = Add(a, a) }'
    model = _bytes(text)
    load_onnx(_written(folder, model))
    with pytest.raises(ModelFileError):
        load_onnx(_written(folder, model.replace(name.encode(), b"\xff" + name[1:].encode())))


def test_a_sound_file_is_read(folder):
    (folder / "model.onnx").write_bytes(_bytes(SOUND))
    assert load_onnx(folder / "model.onnx") == onnx.parser.parse_model(SOUND)


def test_a_missing_file_is_named(folder):
    with pytest.raises(InputError) as caught:
        load_onnx(folder / "gone.onnx")
    assert caught.value.subject == str(folder / "gone.onnx")


def test_a_model_in_memory_is_read_and_checked():
    path = Path("in memory")
    assert load_onnx(Artifact(path, "onnx", None, data=_bytes(SOUND))) == onnx.parser.parse_model(SOUND)
    for data in (b"\xff\xff", _bytes(SOUND.replace("Add", "Odd"))):
        with pytest.raises(ModelFileError) as caught:
            load_onnx(Artifact(path, "onnx", None, data=data))
        assert caught.value.subject == "in memory"


def test_an_artifact_on_disk_is_read_from_there(folder):
    path = _written(folder, _bytes(SOUND))
    assert load_onnx(Artifact(path, "onnx", None)) == onnx.parser.parse_model(SOUND)


@pytest.mark.parametrize(("message", "reason"), [("one\ntwo", "one"), ("\none", "one"), ("", "ValueError")])
def test_an_error_of_the_onnx_package_is_told_by_its_first_line(folder, monkeypatch, message, reason):
    path = _written(folder, _bytes(SOUND))

    def fail(*_: object, **__: object) -> None:
        raise ValueError(message)

    monkeypatch.setattr(onnx, "load", fail)
    with pytest.raises(ModelFileError) as caught:
        load_onnx(path)
    assert caught.value.why.endswith(f": {reason}")


@pytest.mark.parametrize(
    ("error", "raised"), [(MemoryError(), MemoryError), (OSError(errno.ENOMEM, "out of memory"), ResourceError)]
)
def test_a_lack_of_memory_is_not_the_models_fault(folder, monkeypatch, error, raised):
    path = _written(folder, _bytes(SOUND))

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(onnx, "load", fail)
    with pytest.raises(raised):
        load_onnx(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (_bytes(SOUND)[:-3], "not an ONNX file"),
        (b"<!DOCTYPE html><html>404</html>", "not an ONNX file"),
        (b"\x00" * 64, "not an ONNX file"),
        (bytes(range(1, 200)), "not an ONNX file"),
    ],
    ids=["empty", "truncated", "a web page", "zeros", "bytes"],
)
def test_a_file_of_another_kind_is_refused(folder, content, reason):
    assert reason in _refusal(folder, content)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            HEADER + "g (float[1] x) => (float[1] y) { a = Add(x, b)  b = Add(x, a)  y = Relu(b) }",
            "topologically sorted",
        ),
        (HEADER + "g (float[1] x) => (float[1] y) { a = Relu(x)  a = Neg(x)  y = Relu(a) }", "multiple times"),
        (HEADER + "g (float[1] x) => (float[1] y) <float[1] w={1}, float[1] w={2}> { y = Add(x, w) }", "not unique"),
        (HEADER + "g (float[1] x) => (float[1] y) { y = my.own.Relu(x) }", "No opset import for domain 'my.own'"),
        (
            HEADER.replace("]", ', "my.own" : 1]') + "g (float[1] x) => (float[1] y) { y = my.own.Relu(x) }",
            "unknown domain my.own",
        ),
        (HEADER + "g (float[1] x) => (float[1] y) { y = Rleu(x) }", "No Op registered for Rleu"),
        (HEADER + "g (float[1] x) => (float[1] y) { y = Conv(x) }", "input size 1"),
        (HEADER + "g (float[1] x) => (float[1,2] y) { y = Relu(x) }", "differ in rank"),
        (HEADER.replace("17", "999") + "g (float[1] x) => (float[1] y) { y = Relu(x) }", "opset 999, newer than"),
        (HEADER.replace("17", "0") + "g (float[1] x) => (float[1] y) { y = Relu(x) }", "No Op registered"),
        (HEADER.replace("8", "99") + "g (float[1] x) => (float[1] y) { y = Relu(x) }", "ir_version 99"),
    ],
)
def test_graphs_that_cannot_be_meant_are_refused(folder, text, reason):
    assert reason in _refusal(folder, _bytes(text))


@pytest.mark.parametrize("domain", ["ai.onnx.ml", "com.microsoft"])
def test_operator_sets_of_known_domains_are_read(folder, domain):
    header = HEADER.replace("17]", f'{NEWEST}, "{domain}" : 1000]').replace("8", "10", 1)
    node = "Normalizer" if domain == "ai.onnx.ml" else "Gelu"
    header = header.replace("1000", "1") if domain == "ai.onnx.ml" else header
    text = header + f"g (float[N,2] x) => (float[N,2] y) {{ y = {domain}.{node}(x) }}"
    assert operators(load_onnx(_written(folder, _bytes(text)))) == {node: 1}


def test_operators_of_onnx_runtime_are_read(folder):
    header = HEADER.replace("]", ', "com.microsoft" : 1]')
    (folder / "model.onnx").write_bytes(_bytes(header + "g (float[1] x) => (float[1] y) { y = com.microsoft.Gelu(x) }"))
    assert operators(load_onnx(folder / "model.onnx")) == {"Gelu": 1}


def test_functions_of_the_models_own_are_read(folder):
    text = HEADER.replace("]", ', "my.own" : 1]') + (
        "g (float[1] x) => (float[1] y) { y = my.own.twice(x) }"
        ' <domain: "my.own", opset_import: ["" : 17]> twice (a) => (b) { b = Add(a, a) }'
    )
    (folder / "model.onnx").write_bytes(_bytes(text))
    assert operators(load_onnx(folder / "model.onnx")) == {"twice": 1}


def _external(location: str | None, where: str, offset: str = "0", length: str = "8") -> bytes:
    """A model whose weight is stored at `location`, held by an `initializer` or by the attribute of a `constant`."""
    model = onnx.parser.parse_model(SOUND)
    weight = TensorProto(name="w", dims=[2], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    facts = {"location": location, "offset": offset, "length": length}
    for key, value in facts.items():
        if value is not None:
            weight.external_data.add(key=key, value=value)
    del model.graph.initializer[:]
    if where == "initializer":
        model.graph.initializer.append(weight)
    if where == "constant":
        model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    return model.SerializeToString()


@pytest.fixture(params=["initializer", "constant"])
def where(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("location", ["weights.bin", "sub/weights.bin"])
def test_data_beside_or_below_the_model_is_loaded(folder, where, location):
    (folder / location).parent.mkdir(exist_ok=True)
    (folder / location).write_bytes(WEIGHTS)
    (folder / "model.onnx").write_bytes(_external(location, where))
    model = load_onnx(folder / "model.onnx")
    tensors = [*model.graph.initializer, *(a.t for n in model.graph.node for a in n.attribute)]
    assert [tensor.raw_data for tensor in tensors] == [WEIGHTS]


@pytest.mark.parametrize("way", ["dots", "absolute", "symlink", "symlinked folder", "hardlink"])
def test_data_outside_the_folder_is_refused(folder, where, way):
    secret = folder.parent / "secret.bin"
    secret.write_bytes(WEIGHTS)
    (folder / "symlink.bin").symlink_to(secret)
    (folder / "folder").symlink_to(folder.parent)
    os.link(secret, folder / "hardlink.bin")
    location = {
        "dots": "../secret.bin",
        "absolute": str(secret),
        "symlink": "symlink.bin",
        "symlinked folder": "folder/secret.bin",
        "hardlink": "hardlink.bin",
    }[way]
    message = _refusal(folder, _external(location, where))
    if where == "initializer":  # looked at by us, before the onnx package reads anything
        assert f"its data file {location} " in message
        assert (
            "is a hard link to a file elsewhere" if way == "hardlink" else "lies outside the model's folder"
        ) in message
    else:
        assert "its external data cannot be used" in message
        assert message.endswith("put the complete data file beside the model")


@pytest.mark.parametrize(
    ("location", "offset", "length"),
    [
        ("gone.bin", "0", "8"),
        ("folder", "0", "8"),
        ("pipe", "0", "8"),
        ("", "0", "8"),
        (None, "0", "8"),
        ("weights.bin", "0", "9"),
        ("weights.bin", "4", "8"),
        ("weights.bin", "0", "4"),
        ("weights.bin", "0", str(10**15)),
        ("weights.bin", str(10**15), "8"),
        ("weights.bin", "-8", "8"),
        ("weights.bin", "0", "eight"),
    ],
)
def test_data_that_is_missing_or_short_is_refused(folder, where, location, offset, length):
    (folder / "weights.bin").write_bytes(WEIGHTS)
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    assert "model.onnx: " in _refusal(folder, _external(location, where, offset, length))


def _image_model(inputs: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        HEADER + f"g ({inputs}) => (float[N] y) <float[3] w = {{1, 2, 3}}> {{ y = Relu(x) }}"
    )


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [
        ("float[N,3,32,32] x", (3, 32, 32)),
        ("float[1,3,32,32] x", (3, 32, 32)),
        ("float[N,3,32,32] x, float[3] w", (3, 32, 32)),  # the second is an initializer
        ("float[N,1,32,64] x", (1, 32, 64)),
        ("float[N,4,64,32] x", (4, 64, 32)),
        ("float[N,3,1,1] x", (3, 1, 1)),
        ("float[N,3,H,W] x", (3, None, None)),
        ("float[N,C,32,W] x", (None, 32, None)),
        ("float[N,3,?,?] x", (3, None, None)),
        ("float[N,3,0,0] x", (3, None, None)),
        ("float[N,3,32,3] x", (3, 32, 3)),
    ],
)
def test_the_shape_of_images_is_read(inputs, shape):
    assert image_shape_of(_image_model(inputs), Path("model.onnx")) == shape


@pytest.mark.parametrize(
    ("inputs", "found", "what"),
    [
        ("", "no input", "not one"),
        ("float[N,3,32,32] x, float[N,1] z", "x (N, 3, 32, 32) float, z (N, 1) float", "not one"),
        ("float[N,3,32,32] x, float16[N,1] z", "x (N, 3, 32, 32) float, z (N, 1) float16", "not one"),
        ("float[N,32,32,3] x", "x (N, 32, 32, 3) float", "in the layout NHWC"),
        ("float[N,?,?,1] x", "x (N, ?, ?, 1) float", "in the layout NHWC"),
        ("float[N,1,32,32,32] x", "x (N, 1, 32, 32, 32) float", "3-D"),
        ("float[N,3,32] x", "x (N, 3, 32) float", "not one"),
        ("float[N,3072] x", "x (N, 3072) float", "not one"),
        ("uint8[N,3,32,32] x", "x (N, 3, 32, 32) uint8", "not one"),
        ("float16[N,3,32,32] x", "x (N, 3, 32, 32) float16", "not one"),
    ],
)
def test_a_model_without_an_image_input_is_refused_for_what_it_takes(inputs, found, what):
    with pytest.raises(ModelFileError) as caught:
        image_shape_of(_image_model(inputs), Path("model.onnx"))
    assert caught.value.subject == "model.onnx"
    assert caught.value.why.startswith(f"takes {found}, which is {what}")
    assert ("export" in caught.value.fix) == ("NHWC" in what)


def test_operators_are_counted_most_frequent_first():
    text = HEADER + "g (float[1] x) => (float[1] y) { a = Neg(x)  b = Relu(a)  y = Relu(b) }"
    assert list(operators(onnx.parser.parse_model(text)).items()) == [("Relu", 2), ("Neg", 1)]


MODEL = model_of("a = Relu(x)  b = Neg(a)  y = Exp(b)", "", outputs="float[N,3,5,5] y")


def test_every_value_is_an_output_in_execution_order():
    exposed = expose_values(ir.to_proto(MODEL))
    assert [value.name for value in exposed.graph.output] == ["a", "b", "y"]


CONVERTED = """
q = QuantizeLinear(x, s)  d = DequantizeLinear(q, s)  a = Relu(d)  b = QuantizeLinear(a, s)  y = DequantizeLinear(b, s)
"""


def test_conversions_are_no_outputs_unless_they_are_asked_for():
    proto = ir.to_proto(model_of(CONVERTED, "float s = {1}", outputs="float[N,3,5,5] y"))
    assert [value.name for value in expose_values(proto).graph.output] == ["a"]
    assert [value.name for value in expose_values(proto, ["b", "gone", "q"]).graph.output] == ["q", "b"]
    assert [value.name for value in expose_values(proto, []).graph.output] == []


def test_an_output_that_a_node_leaves_out_is_no_value():
    proto = ir.to_proto(model_of("y = MaxPool<kernel_shape=[1,1]>(x)", "", outputs="float[N,3,5,5] y"))
    proto.graph.node[0].output.append("")
    for names in (None, ["", "y"]):
        assert [value.name for value in expose_values(proto, names).graph.output] == ["y"]


def test_exposed_values_keep_the_types_that_the_file_says():
    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(MODEL))
    del inferred.graph.value_info[1]
    outputs = expose_values(inferred).graph.output
    assert [value.HasField("type") for value in outputs] == [True, False, True]
    assert outputs[0] == inferred.graph.value_info[0]


def test_the_values_are_those_that_the_graph_computes():
    typed = onnx.shape_inference.infer_shapes(ir.to_proto(MODEL))
    relu, negated, result = outputs_of(ir.from_proto(expose_values(typed)))
    np.testing.assert_array_equal(negated, -relu)
    np.testing.assert_array_equal([result], outputs_of(MODEL))


def test_the_model_itself_is_unchanged():
    proto = ir.to_proto(MODEL)
    before = proto.SerializeToString(deterministic=True)
    expose_values(proto)
    assert proto.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("operator", "quantized"),
    [
        ("y = QuantizeLinear(x, x)", True),
        ("y = DequantizeLinear(x, x)", True),
        ("y, s, z = DynamicQuantizeLinear(x)", True),
        ("y = QLinearConv(x, x, x, x, x, x, x, x)", True),
        ("y = com.microsoft.QLinearConcat(x, x, x)", True),
        ("y = ConvInteger(x, x)", True),
        ("y = MatMulInteger(x, x)", True),
        ("y = Conv(x, x)", False),
        ("y = other.NotQLinear(x)", False),
        ("y = other.IntegerNot(x)", False),
    ],
)
def test_quantization_is_seen_by_one_of_the_operators(operator, quantized):
    text = f"{HEADER} g (float[2] x) => (float[2] y) {{ a = Relu(x)  {operator} }}"
    assert has_quantization(onnx.parser.parse_model(text)) is quantized


def test_an_image_size_is_written_into_a_copy():
    text = """<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,H,W] x) => (float[N,2,h,w] y)
    <float[2,3,1,1] w = {1, 2, 3, 4, 5, 6}> { c = Conv(x, w)  y = Relu(c) }"""
    model = onnx.parser.parse_model(text)
    sized = with_image_size(model, 8, 6)
    values = (*sized.graph.input, *sized.graph.value_info)
    dims = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    assert (dims["x"], dims["c"]) == ([0, 3, 8, 6], [0, 2, 8, 6])
    assert model.graph.input[0].type.tensor_type.shape.dim[2].dim_param == "H"


def test_what_some_values_do_not_depend_on_is_dropped():
    text = """<ir_version: 9, opset_import: ["" : 20]> g (float[2] x, float[2] given) => (float[2] y, float[2] z) {
        a = Add (x, w)  b = Mul (x, v)  c = Neg (b)
        y = If (yes) <then_branch = one () => (float[2] i) { i = Relu (a) }, else_branch = two () => (float[2] b) { }>
        z = Mul (c, u)
    }"""
    graph = onnx.parser.parse_model(text).graph
    for name in ("w", "v", "u", "given"):
        graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), name))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    keep_what_makes(graph, ["y"])
    assert [node.output[0] for node in graph.node] == ["a", "b", "y"]
    assert [tensor.name for tensor in graph.initializer] == ["w", "v", "given", "yes"], "an input keeps its default"
    keep_what_makes(graph, ["b"])
    assert [node.output[0] for node in graph.node] == ["b"]
    assert [tensor.name for tensor in graph.initializer] == ["v", "given"]
