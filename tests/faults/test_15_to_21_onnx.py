"""Cases 15 to 21: ONNX files, given to every command that opens one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from densenet_deploy.graph.tensor_changes import KEY
from densenet_deploy.manifest import PREFIX
from densenet_deploy.onnx_envelope import append_metadata
from tests.faults.harness import Commands

COMMANDS: dict[str, tuple[str, ...]] = {
    "run": ("run", "bad.onnx", "image.png"),
    "inspect": ("inspect", "bad.onnx"),
    "simplify": ("simplify", "bad.onnx", "-o", "new/out.onnx"),
    "validate": ("validate", "bad.onnx", "bad.onnx", "--samples", "1"),
    "quantize": ("quantize", "bad.onnx", "--calibration", "images", "--no-never-slower", "-o", "new/out.onnx"),
    "cast": ("cast", "bad.onnx", "--fp16", "-o", "new/out.onnx"),
    "build-trt": ("build-trt", "bad.onnx", "--fp16", "--flavour", "rtx", "-o", "new/out.engine"),
}


@pytest.fixture(params=COMMANDS)
def words(request: pytest.FixtureRequest, image: Path) -> tuple[str, ...]:
    """One command after the other, in a folder that holds an image and enough of them to calibrate on."""
    folder = image.parent / "images"
    folder.mkdir()
    for number in range(32):
        (folder / f"{number}.png").write_bytes(image.read_bytes())
    return COMMANDS[request.param]


def write(commands: Commands, data: bytes) -> Path:
    path = commands.folder / "bad.onnx"
    path.write_bytes(data)
    return path


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


CORRUPTED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": cut,
    "without its last byte": lambda data: data[:-1],
    "text": lambda _: b"<html>404 Not Found</html>",
    "random": lambda _: np.random.default_rng(0).bytes(4000),
    "no graph": lambda _: b"\x08\x0a",
}


@pytest.mark.parametrize("way", CORRUPTED)
def test_15_an_incomplete_model(commands: Commands, words: tuple[str, ...], tiny_onnx: Path, way: str) -> None:
    write(commands, CORRUPTED[way](tiny_onnx.read_bytes()))
    commands.refused(*words, says="bad.onnx")


def with_external_weight(commands: Commands, tiny_onnx: Path, location: str, length: int | None = None) -> int:
    """Let the first weight of the model lie in the file `location`, and return how many bytes that should hold."""
    model = onnx.load(tiny_onnx)
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    size = len(numpy_helper.to_array(weight).tobytes())
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length or size))):
        weight.external_data.add(key=key, value=value)
    write(commands, model.SerializeToString())
    return size


PLACES = {
    "../": "../outside.bin",
    "absolute": "/etc/hostname",
    "symbolic link": "link.bin",
    "hard link": "hard.bin",
    "link within the folder": "inner.bin",
}


@pytest.fixture
def places(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """A folder of its own for the model, with ways out of it."""
    inside = commands.folder / "inside"
    for folder in (inside, commands.folder / "elsewhere"):
        folder.mkdir()
    for path in (commands.folder / "outside.bin", commands.folder / "elsewhere" / "own.bin", inside / "whole.bin"):
        path.write_bytes(bytes(10_000))
    (inside / "link.bin").symlink_to("../outside.bin")
    (inside / "inner.bin").symlink_to("whole.bin")
    (inside / "hard.bin").hardlink_to(commands.folder / "elsewhere" / "own.bin")
    os.chdir(inside)
    return Commands(inside, commands.streams)


def here(words: tuple[str, ...]) -> list[str]:
    """The command from inside the model's folder."""
    return [f"../{word}" if word.startswith("image") else word for word in words]


@pytest.mark.parametrize("place", PLACES)
def test_16_external_data_outside_the_folder(
    places: Commands, words: tuple[str, ...], tiny_onnx: Path, place: str
) -> None:
    with_external_weight(places, tiny_onnx, PLACES[place])
    places.refused(*here(words), says=("bad.onnx", PLACES[place]))


def test_16_the_twin_beside_the_model_is_read(places: Commands, image: Path, tiny_onnx: Path) -> None:
    with_external_weight(places, tiny_onnx, "whole.bin")
    for command in ("run", "inspect"):
        places.answer(*(f"../{word}" if word.startswith("image") else word for word in COMMANDS[command]))


@pytest.mark.parametrize("way", ["missing", "short"])
def test_17_external_data_missing_or_short(
    commands: Commands, words: tuple[str, ...], tiny_onnx: Path, way: str
) -> None:
    size = with_external_weight(commands, tiny_onnx, "weights.bin")
    if way == "short":
        (commands.folder / "weights.bin").write_bytes(bytes(size - 1))
    commands.refused(*words, says=("bad.onnx", "weights.bin", "is missing or cut short"))


IMAGE = "float[1,3,8,8] input"
GRAPHS = {
    "cycle": f"g ({IMAGE}) => (float[1,3,8,8] y) {{ a = Add(input, b)  b = Relu(a)  y = Relu(b) }}",
    "duplicate names": f"g ({IMAGE}) => (float[1,3,8,8] y) {{ a = Relu(input)  a = Sigmoid(input)  y = Relu(a) }}",
    "unknown domain": f"g ({IMAGE}) => (float[1,3,8,8] y) {{ y = odd.domain.Magic(input) }}",
    "unknown operator": f"g ({IMAGE}) => (float[1,3,8,8] y) {{ y = Magic(input) }}",
    "wrong opset": f"g ({IMAGE}) => (float[1,3,8,8] y) {{ y = Relu(input) }}",
}


@pytest.mark.parametrize("fault", GRAPHS)
def test_18_graphs_that_cannot_be_meant(commands: Commands, words: tuple[str, ...], fault: str) -> None:
    opset = 999 if fault == "wrong opset" else 20
    text = f'<ir_version: 10, opset_import: ["" : {opset}, "odd.domain" : 1]> {GRAPHS[fault]}'
    write(commands, onnx.parser.parse_model(text).SerializeToString())
    commands.refused(*words, says="bad.onnx")


MEANS = "y = ReduceMean <axes = [2, 3], keepdims = 0> (m)"
NOT_IMAGE_MODELS = {
    "rank": ("float[1,10] input", "float[1,10] y", "y = Mul(input, w)", "(1, 10)"),
    "two inputs": (
        "float[1,3,8,8] input, float[1,3,8,8] second",
        "float[1,3] y",
        f"s = Add(input, second)  m = Mul(s, w)  {MEANS}",
        "second",
    ),
    "NHWC": ("float[1,8,8,3] input", "float[1,8] y", f"m = Mul(input, w)  {MEANS}", "(1, 8, 8, 3)"),
}


@pytest.mark.parametrize("kind", NOT_IMAGE_MODELS)
def test_19_an_error_about_another_kind_of_model_names_expected_and_found(
    commands: Commands, words: tuple[str, ...], kind: str
) -> None:
    inputs, output, body, found = NOT_IMAGE_MODELS[kind]
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({output}) <float[1] w = {{2}}> {{ {body} }}'
    write(commands, onnx.parser.parse_model(text).SerializeToString())
    commands.refused(*words, says=("NCHW", found))


def test_20_control_characters_and_megabytes_of_metadata_are_escaped_and_cut(
    commands: Commands, digits_onnx: Path, image: Path
) -> None:
    label = "\\u001b[31mred\\n" + "x" * 3_000_000
    labels = "[" + ",".join(f'"{label}{number}"' for number in range(10)) + "]"
    weights = '{"source": "\\u001b[2Jhome\\r", "sha256": "00", "seed": null}'
    model = onnx.load(digits_onnx)
    for pair in model.metadata_props:
        pair.value = {PREFIX + "labels": labels, PREFIX + "weights": weights}.get(pair.key, pair.value)
    write(commands, model.SerializeToString())
    for command in ("run", "inspect"):
        ended = commands.printed(*COMMANDS[command])
        text = (ended.out + ended.err).replace("\n", "")
        assert text.isprintable(), text[:2000]
        assert len(text) < 10_000
    assert "\\x1b[31mred\\n" in commands.printed(*COMMANDS["run"]).out


BROKEN_FACTS = {
    "newer schema": {PREFIX + "schema": "999"},
    "labels that are text": {PREFIX + "labels": '"cat"'},
    "tensors that are a list": {KEY: "[1]"},
    "tensors that are no JSON": {KEY: "{"},
    "an unknown field": {KEY: '{"input": {"of": "x", "factor": null, "moved": null, "colour": 1}}'},
    "another number of channels": {KEY: '{"features.conv0": {"of": "x", "factor": [1, 2], "moved": null}}'},
    "deep": {KEY: "[" * 100_000},
}


@pytest.mark.parametrize("fault", BROKEN_FACTS)
def test_20_metadata_of_an_unknown_shape(commands: Commands, tiny_onnx: Path, fault: str) -> None:
    """What an INT8 file says of its tensors is read where layers are compared."""
    data = append_metadata(tiny_onnx.read_bytes(), BROKEN_FACTS[fault])
    write(commands, data)
    commands.refused("validate", tiny_onnx, "bad.onnx", "--per-layer", "--samples", "1", says="metadata")


QUANTIZED = """<ir_version: 10, opset_import: ["" : 20]> g (float[1,3,8,8] input) => (float[1,3,8,8] y)
<float s = {0.1}, uint8 z = {0}> { q = QuantizeLinear(input, s, z)  y = DequantizeLinear(q, s, z) }"""


def test_21_a_quantized_graph_is_not_quantized_again(commands: Commands, image: Path) -> None:
    folder = commands.folder / "images"
    folder.mkdir()
    (folder / "image.png").write_bytes(image.read_bytes())
    write(commands, onnx.parser.parse_model(QUANTIZED).SerializeToString())
    commands.refused(*COMMANDS["quantize"], says=("bad.onnx", "quantized"))


def test_21_a_half_precision_graph_is_not_int8(commands: Commands, image: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float16), "w")
    nodes = [
        helper.make_node("Cast", ["input"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["half", "w"], ["conv"]),
        helper.make_node("Cast", ["conv"], ["y"], to=TensorProto.FLOAT),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, c, 8, 8]) for name, c in (("input", 3), ("y", 4))
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    write(commands, model.SerializeToString())
    words = ("build-trt", "bad.onnx", "--int8", "--calibration", ".", "--flavour", "rtx")
    commands.refused(*words, says=("bad.onnx", "fp16", "FP32"))
