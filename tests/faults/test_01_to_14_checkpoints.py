"""Cases 01 to 14: checkpoints. Each is given to `export` as its weights; what loads is shown by `inspect`.

The same files are given to the reader itself, in more forms, in `tests/models/`.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from densenet_deploy.models.build import build_model
from densenet_deploy.variants import find_variant
from tests.faults.harness import Commands

State = dict[str, torch.Tensor]

pytestmark = pytest.mark.filterwarnings(  # torch deprecates what old files still hold
    "ignore:`torch.jit:FutureWarning", "ignore:torch.quantize_per_tensor:UserWarning"
)


def saved(value: object, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def refused(commands: Commands, data: bytes, *says: str, name: str = "weights.pth", more: tuple[str, ...] = ()) -> str:
    path = commands.folder / name
    path.write_bytes(data)
    return commands.refused("export", "--weights", path, "-o", "out/model.onnx", *more, says=(name, *says))


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.bin"])
def test_01_an_empty_file(commands: Commands, name: str) -> None:
    refused(commands, b"", "is empty", name=name)


@pytest.mark.parametrize(
    "words", [("inspect",), ("export", "-o", "out/model.onnx", "--weights")], ids=["inspect", "export"]
)
def test_01_a_pipe_that_nobody_writes_to(commands: Commands, words: tuple[str, ...]) -> None:
    os.mkfifo(commands.folder / "weights.pth")
    commands.refused(*words, commands.folder / "weights.pth", says=("weights.pth", "is empty"))


@pytest.mark.parametrize("tenth", range(10))
def test_02_a_zip_cut_at_ten_places(commands: Commands, state: State, tenth: int) -> None:
    data = saved(state)
    refused(commands, data[: max(1, len(data) * tenth // 10)])


@pytest.mark.parametrize("head", [b"", b"PK\x03\x04", b"\x80\x02"], ids=["bytes", "as a zip", "as a pickle"])
def test_03_random_bytes(commands: Commands, head: bytes) -> None:
    refused(commands, head + random.Random(3).randbytes(5000))


class Bomb:
    """Creates the marker file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


PICKLES = {
    "04 zip": saved,
    "05 legacy": lambda bomb: saved(bomb, zipped=False),
    "05 bare, protocol 2": lambda bomb: pickle.dumps(bomb, protocol=2),
    "05 bare, protocol 5": lambda bomb: pickle.dumps(bomb, protocol=5),
}


@pytest.mark.parametrize("form", PICKLES)
def test_04_05_a_pickle_that_calls_the_system_is_not_run(commands: Commands, form: str, tmp_path_factory) -> None:
    marker = tmp_path_factory.mktemp("marker") / "marker"
    refused(commands, PICKLES[form]({"weight": Bomb(marker)}))
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists(), "the control explodes"


def script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2)), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "make",
    [lambda: saved(torch.nn.ReLU()), lambda: saved(torch.nn.ReLU(), zipped=False)],
    ids=["module", "legacy module"],
)
def test_06_a_module_is_refused_with_how_to_save_its_weights(commands: Commands, make: Callable[[], bytes]) -> None:
    refused(commands, make(), "torch.save(model.state_dict(), 'weights.pth')")


def test_06_a_torchscript_program_is_refused_with_how_to_load_it(commands: Commands) -> None:
    refused(commands, script(), "densenet_deploy.load(torch.jit.load(path))")


def test_07_a_zip_bomb_is_refused_before_it_is_inflated(commands: Commands) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(200_000_000))
    refused(commands, buffer.getvalue(), "would unpack to 200000000 bytes")


def tensors(header: object, body: bytes = bytes(8), *, size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body


def entry(start: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]}


HEADERS = {
    "2^63": tensors({}, size=2**63),
    "over 100 MB": tensors(b"{" + b" " * 100_000_001 + b"}"),
    "overlapping": tensors({"a": entry(0, 8), "b": entry(4, 8)}),
    "out of range": tensors({"a": entry(0, 4096)}),
    "duplicate keys": tensors(b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 8)).encode(),) * 2)),
    "no JSON": tensors(b"hello"),
}


@pytest.mark.parametrize("header", HEADERS)
def test_08_a_lying_safetensors_header(commands: Commands, header: str) -> None:
    refused(commands, HEADERS[header], name="weights.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_09_weights_that_are_not_finite_are_named_and_counted(commands: Commands, state: State, value: float) -> None:
    state["features.conv0.weight"][0, 0, 0, :2] = value
    state["classifier.bias"][1] = value
    refused(
        commands,
        saved(state),
        "3 NaN or Inf values in 2 of its tensors, the first features.conv0.weight",
        "--allow-nonfinite",
    )


def test_09_and_let_in_when_asked_to(commands: Commands, state: State) -> None:
    state["classifier.bias"][1] = float("nan")
    (commands.folder / "weights.pth").write_bytes(saved(state))
    answer = commands.answer("export", "--weights", "weights.pth", "--allow-nonfinite", "-o", "model.onnx")
    assert any("NaN and Inf" in note for note in answer["notes"])


def test_10_another_class_count_names_both(commands: Commands, state: State) -> None:
    refused(commands, saved(state), "5 classes", "--num-classes asks for 1000", more=("--num-classes", "1000"))


WRAPPINGS: dict[str, Callable[[State], object]] = {
    "module.": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "state_dict": lambda state: {"state_dict": state},
    "model": lambda state: {"model": state},
    "norm.1": lambda state: {name.replace("norm1.", "norm.1."): tensor for name, tensor in state.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_11_wrappings_load_with_one_line_of_info(commands: Commands, state: State, wrapping: str) -> None:
    (commands.folder / "weights.pth").write_bytes(saved(WRAPPINGS[wrapping](state)))
    info, assumed = commands.printed("inspect", "weights.pth").err.splitlines()
    assert "assumed: conv0 stride 1" not in info
    assert "assumed: conv0 stride 1" in assumed


def test_11_the_twin_without_a_wrapping_says_only_what_is_assumed(commands: Commands, state: State) -> None:
    (commands.folder / "weights.pth").write_bytes(saved(state))
    (assumed,) = commands.printed("inspect", "weights.pth").err.splitlines()
    assert assumed.startswith("note: assumed: conv0 stride 1")


def test_12_at_most_five_misfits_and_what_it_looks_like(commands: Commands) -> None:
    other = build_model(find_variant("cifar-40-12").spec).state_dict()
    line = refused(commands, saved(other), "looks like", "cifar-40-12", more=("--variant", "cifar-bc-100-12"))
    assert line.count("features.") == 5


def test_12_a_missing_and_an_unexpected_key(commands: Commands, state: State) -> None:
    del state["features.norm5.bias"]
    state["features.denseblock1.extra.weight"] = torch.zeros(1)
    refused(commands, saved(state), "norm5.bias is missing", "extra.weight is unexpected")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_13_other_floats_are_cast_with_a_note(commands: Commands, state: State, dtype: torch.dtype) -> None:
    cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    (commands.folder / "weights.pth").write_bytes(saved(cast))
    assert f"{str(dtype)[6:]} weights cast to float32" in commands.printed("inspect", "weights.pth").err


def test_13_integers_are_refused(commands: Commands, state: State) -> None:
    state["classifier.weight"] = state["classifier.weight"].to(torch.int8)
    refused(commands, saved(state), "classifier.weight has the type int8")


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("sparse", lambda tensor: tensor.to_sparse()),
        ("meta", lambda tensor: tensor.to("meta")),
        ("quantized", lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)),
    ],
)
def test_14_tensors_without_plain_numbers(
    commands: Commands, state: State, kind: str, spoil: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    state["classifier.weight"] = spoil(state["classifier.weight"])
    refused(commands, saved(state), f"classifier.weight is a {kind} tensor")
