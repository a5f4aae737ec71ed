"""Damaged and hostile files, each refused without running a pickle; safetensors headers, and our own writer."""

import argparse
import collections
import datetime as dt
import io
import json
import os
import pathlib
import pickle
import random
import struct
import warnings
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from densenet_deploy.errors import CheckpointError, InputError
from densenet_deploy.sources.arrays import array_of
from densenet_deploy.sources.checkpoint_file import (
    checked_metadata,
    float32_bytes,
    is_left_to_torch,
    read_checkpoint,
    require_weights_zip,
)

ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def saved(value, *, zipped=True):
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def refusal(path, data):
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    assert caught.value.exit_code == 3
    assert caught.value.subject == str(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Bomb:
    """Creates the marker file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_whole_file_is_read(tmp_path, model, zipped):
    path = tmp_path / "whole.pth"
    path.write_bytes(saved(model.state_dict(), zipped=zipped))
    file = read_checkpoint(path)
    content = file.content
    assert (file.path, file.size_bytes, file.strings) == (path, path.stat().st_size, {})
    assert isinstance(content["features.conv0.weight"], np.ndarray if zipped else torch.Tensor)
    assert all(np.array_equal(array_of(content[name]), tensor) for name, tensor in model.state_dict().items())
    assert is_left_to_torch(path) != zipped


def test_01_an_empty_file(tmp_path):
    assert "is empty" in refusal(tmp_path / "empty.pth", b"")


@pytest.mark.parametrize("tenth", range(10))
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_02_a_cut_file(tmp_path, model, zipped, tenth):
    data = saved(model.state_dict(), zipped=zipped)
    refusal(tmp_path / "cut.pth", data[: max(1, len(data) * tenth // 10)])


@pytest.mark.parametrize("size", [1, 2, 7, 100, 10_000])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_03_random_bytes(tmp_path, size, suffix):
    refusal(tmp_path / f"random{suffix}", random.Random(size).randbytes(size))


def test_03_random_bytes_with_the_head_of_a_zip(tmp_path):
    assert "damaged or truncated zip" in refusal(
        tmp_path / "random.pth", b"PK\x03\x04" + random.Random(0).randbytes(500)
    )


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle 2", "bare pickle 4"])
def test_04_and_05_a_pickle_that_calls_the_system_is_not_run(tmp_path, form):
    marker = tmp_path / "marker"
    bomb = {"weight": Bomb(marker)}
    data = {
        "zip": saved(bomb),
        "legacy": saved(bomb, zipped=False),
        "bare pickle 2": pickle.dumps(bomb, protocol=2),
        "bare pickle 4": pickle.dumps(bomb, protocol=4),
    }[form]
    refusal(tmp_path / "evil.pth", data)
    assert not marker.exists()


def test_05_the_control_of_the_bomb_explodes(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_06_a_pickled_module_is_refused_with_how_to_save(tmp_path, zipped):
    message = refusal(tmp_path / "module.pth", saved(torch.nn.Conv2d(1, 1, 1), zipped=zipped))
    assert "torch.nn.modules.conv.Conv2d" in message
    assert "torch.save(model.state_dict()" in message


def zip_of(entries, comment=b""):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        archive.comment = comment
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["program.pt2", "program.pt"])
def test_06_a_program_of_torch_export_is_refused_with_how_to_load_it(tmp_path, name):
    path = tmp_path / name
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "saved.pt2")
    (tmp_path / "saved.pt2").rename(path)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert "torch.export.load(path)" in caught.value.fix


def test_06_torchscript_is_refused_with_how_to_save(tmp_path):
    data = zip_of({"archive/data.pkl": b"1", "archive/constants.pkl": b"2", "archive/version": b"3"})
    message = refusal(tmp_path / "script.pt", data)
    assert "TorchScript" in message
    assert "torch.jit.load" in message


def test_constants_elsewhere_are_no_program(tmp_path):
    data = zip_of({"archive/data.pkl": b"1", "archive/constants.pkl/0": b"2", "/constants.pkl.txt": b"3"})
    require_weights_zip(tmp_path, io.BytesIO(data))


@pytest.mark.parametrize(("missing", "refused"), [(0, False), (1, True)])
def test_07_a_zip_may_unpack_to_four_times_its_size_and_to_no_more(tmp_path, missing, refused):
    entries = {"archive/data.pkl": bytes(40_000)}
    padding = 10_000 - len(zip_of(entries)) - missing
    data = zip_of(entries, bytes(padding))
    assert len(data) == 10_000 - missing
    if refused:
        with pytest.raises(CheckpointError) as caught:
            require_weights_zip(tmp_path, io.BytesIO(data))
        assert caught.value.subject == str(tmp_path)
        assert "would unpack to 40000 bytes" in caught.value.why
    else:
        require_weights_zip(tmp_path, io.BytesIO(data))


def test_a_file_may_be_as_large_as_the_limit_and_no_larger(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(file_of({}))
    assert read_checkpoint(path, largest_bytes=10).size_bytes == 10
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path, largest_bytes=9)
    assert (caught.value.subject, caught.value.why) == (str(path), "is larger than 9 bytes")


def test_more_than_four_gibibytes_are_not_read(tmp_path):
    path = tmp_path / "sparse.pth"
    with path.open("wb") as file:
        file.truncate(4 * 2**30 + 1)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert caught.value.why == "is larger than 4294967296 bytes"


def test_07_a_zip_bomb_is_refused_before_it_is_inflated(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(5_000_000))
    assert "would unpack to 5000000 bytes" in refusal(tmp_path / "bomb.pth", buffer.getvalue())


def test_a_suffix_of_something_else_is_refused(tmp_path):
    assert "'.h5'" in refusal(tmp_path / "weights.h5", b"x")


@pytest.mark.parametrize("name", ["weights", "weights.th", "weights.pkl", "weights.model", "epoch.3"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_pytorch_saved_is_read_whatever_it_is_called(tmp_path, name, zipped):
    path = tmp_path / name
    path.write_bytes(saved({"a": torch.arange(3.0)}, zipped=zipped))
    assert read_checkpoint(path).content["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("data", [b"", b"PK", b"\x80\x02}q\x00.", pickle.dumps({"a": 1}), b"\x89HDF\r\n"])
def test_other_bytes_under_such_a_name_are_not(tmp_path, data):
    assert "has the suffix '.th'" in refusal(tmp_path / "weights.th", data)


def test_a_zip_of_something_else_is_not(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, data=np.ones(2))
    assert "has the suffix '.npz'" in refusal(tmp_path / "weights.npz", buffer.getvalue())


@pytest.mark.parametrize("suffix", [".ckpt", ".bin"])
def test_other_suffixes_of_pytorch_are_read_and_as_wary(tmp_path, model, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(saved(model.state_dict()))
    assert set(read_checkpoint(path).content) == set(model.state_dict())
    assert "is not a PyTorch checkpoint" in refusal(path, b"x")
    refusal(path, saved({"weight": Bomb(tmp_path / "marker")}))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_numbers_of_numpy_and_a_command_line_may_lie_beside_the_weights(tmp_path, model, zipped):
    path = tmp_path / "training.pth"
    beside = {
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(0.75),
        "epoch": np.int64(3),
        "done": np.bool_(True),
        **{f"number {letter}": np.dtype(letter).type(1) for letter in "?bhilqBHILQefd"},
    }
    path.write_bytes(saved({"state_dict": model.state_dict(), **beside}, zipped=zipped))
    content = read_checkpoint(path).content
    assert {key: content[key] for key in beside} == beside


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_histories_arrays_and_dates_may_lie_beside_the_weights(tmp_path, zipped):
    path = tmp_path / "training.pth"
    history = collections.defaultdict(list, loss=[0.5, 0.25])
    now = dt.datetime(2024, 5, 6, 7, 8, 9)  # noqa: DTZ001 - as training code writes it
    arrays = {
        "losses": np.arange(6.0).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        "names": np.array(["cat", "dog"]),
    }
    path.write_bytes(saved({"history": history, "now": now, "took": dt.timedelta(2), **arrays}, zipped=zipped))
    content = read_checkpoint(path).content
    assert (content["history"], content["now"], content["took"]) == (history, now, dt.timedelta(2))
    for name, array in arrays.items():
        assert content[name].dtype == array.dtype
        np.testing.assert_array_equal(content[name], array)


@pytest.mark.parametrize(
    "state", [(1, (4,), np.dtype("f4"), False, bytes(8)), (1, (2**40,), np.dtype("f4"), False, b"")]
)
def test_an_array_whose_bytes_are_not_its_shape_is_refused(tmp_path, state):
    class Array:
        def __reduce__(self):
            return np.empty(0).__reduce__()[0], (np.ndarray, (0,), b"b"), state

    refusal(tmp_path / "lie.pth", saved({"losses": Array()}))


def test_a_bomb_inside_an_array_is_not_run(tmp_path):
    refusal(tmp_path / "evil.pth", saved({"losses": np.array([Bomb(tmp_path / "marker")], dtype=object)}))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (np.dtype("O"), "anything"),
        (np.dtype("S4"), b"text"),
        (np.dtype("<f8"), bytes(16)),
        (np.dtype("<f8"), bytes(4)),
        (np.dtype("c16"), bytes(16)),
        (np.dtype("M8[s]"), bytes(8)),
    ],
    ids=str,
)
def test_other_things_of_numpy_are_not_numbers(tmp_path, kind, data):
    class Scalar:
        def __reduce__(self):
            return np.float64(0).__reduce__()[0], (kind, data)

    refusal(tmp_path / "object.pth", saved({"best": Scalar()}))


def rezipped(data, old, new):
    """The same zip, with `old` in its pickle replaced."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in entries if name.endswith("/data.pkl"))
    assert old in entries[pickled]
    return zip_of(entries | {pickled: entries[pickled].replace(old, new)})


def test_a_number_of_an_older_numpy_is_read(tmp_path):
    path = tmp_path / "old.pth"
    path.write_bytes(rezipped(saved({"best": np.float64(3)}), b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_checkpoint(path).content == {"best": 3.0}


def test_the_weights_of_another_device_are_read_on_the_cpu(tmp_path):
    path = tmp_path / "gpu.pth"
    there = b"X\x06\x00\x00\x00cuda:9"
    path.write_bytes(rezipped(saved({"w": torch.ones(2)}), b"X\x03\x00\x00\x00cpu", there))
    assert read_checkpoint(path).content["w"].tolist() == [1.0, 1.0]


def test_what_torch_warns_of_is_not_shown_and_the_filters_stay(tmp_path):
    path = tmp_path / "sparse.pth"
    path.write_bytes(saved({"w": torch.eye(2).to_sparse()}))
    before = list(warnings.filters)
    assert read_checkpoint(path).content["w"].is_sparse  # torch warns of it, and a warning is an error in these tests
    assert warnings.filters == before


def test_a_bomb_inside_a_command_line_is_not_run(tmp_path):
    refusal(tmp_path / "evil.pth", saved({"args": argparse.Namespace(out=Bomb(tmp_path / "marker"))}))
    assert not (tmp_path / "marker").exists()


def test_what_is_allowed_here_is_not_allowed_elsewhere(tmp_path, model):
    """The list of harmless objects is torch's own, and global; it is put back."""
    path = tmp_path / "training.pth"
    path.write_bytes(saved({"args": argparse.Namespace()}))
    read_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError, match="argparse"):
        torch.load(path, weights_only=True)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError) as caught:
        read_checkpoint(tmp_path / "nothing.pth")
    assert caught.value.subject == str(tmp_path / "nothing.pth")


def test_a_folder_is_not_a_checkpoint(tmp_path):
    folder = tmp_path / "folder.pth"
    folder.mkdir()
    with pytest.raises(InputError) as caught:
        read_checkpoint(folder)
    assert caught.value.subject == str(folder)


def file_of(header, body=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def test_what_the_library_writes_is_read():
    tensors = {"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16), "c": torch.tensor(5)}
    assert checked_metadata(safetensors.torch.save(tensors, {"key": "text"})) == {"key": "text"}


def test_what_we_write_the_library_reads():
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(0.5), "empty": torch.zeros(0, 3)}
    read = safetensors.torch.load(float32_bytes(tensors, {"naïve": "…"}))
    assert {name: tensor.tolist() for name, tensor in read.items()} == {n: t.tolist() for n, t in tensors.items()}
    assert checked_metadata(float32_bytes(tensors, {"naïve": "…"})) == {"naïve": "…"}


@pytest.mark.parametrize("letters", range(8))
def test_what_we_write_is_the_header_padded_to_eight_bytes_and_the_values(letters):
    data = float32_bytes(
        {
            "b": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T,
            "a": torch.tensor(0.5, dtype=torch.float16, requires_grad=True),
        },
        {"y": "ü", "x": "z" * letters},
    )
    header = (
        f'{{"__metadata__": {{"x": "{"z" * letters}", "y": "ü"}}, '
        '"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}, '
        '"b": {"dtype": "F32", "shape": [2, 2], "data_offsets": [4, 20]}}'
    ).encode()
    header += b" " * (-len(header) % 8)
    assert data == struct.pack("<Q", len(header)) + header + struct.pack("<5f", 0.5, 1, 3, 2, 4)


@pytest.mark.parametrize(
    ("width", "types"),
    [
        (1, "BOOL U8 I8 F8_E4M3 F8_E5M2"),
        (2, "I16 U16 F16 BF16"),
        (4, "I32 U32 F32"),
        (8, "I64 U64 F64"),
    ],
)
def test_each_type_has_its_width(width, types):
    for name in types.split():
        entry = {"dtype": name, "shape": [3, 2], "data_offsets": [0, 6 * width]}
        assert checked_metadata(file_of({"a": entry}, bytes(6 * width))) == {}


def test_the_order_of_the_header_is_not_that_of_the_data():
    later = {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]}
    assert checked_metadata(file_of({"z": later, "b": {**ONE, "data_offsets": [4, 8]}, "c": ONE}, bytes(8))) == {}


@pytest.mark.parametrize(
    ("size", "why"), [(100_000_000, "not a JSON object"), (100_000_001, "header claims 100000001")]
)
def test_a_header_is_read_up_to_a_hundred_megabytes(size, why):
    with pytest.raises(ValueError, match=why):
        checked_metadata(size.to_bytes(8, "little") + bytes(size))


def test_a_suffix_in_capitals_is_the_same(tmp_path):
    path = tmp_path / "M.SAFETENSORS"
    path.write_bytes(file_of({"__metadata__": {"a": "b"}, "a": ONE}, b"\0\0\0\0"))
    file = read_checkpoint(path)
    assert (file.path, file.size_bytes, file.strings) == (path, path.stat().st_size, {"a": "b"})


def test_the_order_of_arguments_does_not_change_the_file():
    one, two = torch.ones(2), torch.zeros(3)
    assert float32_bytes({"a": one, "b": two}, {"x": "1", "y": "2"}) == float32_bytes(
        {"b": two, "a": one}, {"y": "2", "x": "1"}
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"1234", "header claims"),
        (file_of({}, length=2**63), "header claims 9223372036854775808"),
        (b"12345678", "header claims"),
        (file_of({}, length=3), "header claims 3"),
        (file_of(b" {}"), "not a JSON object"),
        (file_of(b"[]"), "not a JSON object"),
        (file_of(b"{'a': 1}"), "not JSON"),
        (file_of(b'{"a":' * 100_000), "not JSON"),
        (file_of(b'{"a": "\xff"}'), "not JSON"),
        (file_of(b'{"a": 1, "a": 2}'), "twice"),
        (file_of(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "twice"),
        (file_of({"__metadata__": {"a": 1}}), "pairs of strings"),
        (file_of({"__metadata__": {"a": "text", "b": 1}}), "pairs of strings"),
        (file_of({"__metadata__": ["a"]}), "pairs of strings"),
        (file_of({"a": [1]}), "not described"),
        (file_of({"a": ["dtype", "shape", "data_offsets"]}), "not described"),
        (file_of({"a": {**ONE, "more": 1}}, b"1234"), "not described"),
        (file_of({"a": {"dtype": "F32", "shape": [1]}}, b"1234"), "not described"),
        (file_of({"a": {**ONE, "dtype": "F99"}}, b"1234"), "unknown type F99"),
        (file_of({"a": {**ONE, "shape": [-1]}}, b"1234"), "not whole numbers"),
        (file_of({"a": {**ONE, "shape": [True]}}, b"1234"), "not whole numbers"),
        (file_of({"a": {**ONE, "shape": [-1, -1]}}, b"1234"), "not whole numbers"),
        (file_of({"a": {**ONE, "shape": [1, 1.0]}}, b"1234"), "not whole numbers"),
        (file_of({"a": {**ONE, "shape": {}}}, b"1234"), "not whole numbers"),
        (file_of({"a": {**ONE, "data_offsets": [0, 4, 8]}}, b"1234"), "does not fit the offsets"),
        (file_of({"a": {**ONE, "data_offsets": []}}, b"1234"), "does not fit the offsets"),
        (file_of({"a": {**ONE, "shape": [2]}}, b"1234"), "does not fit the offsets"),
        (file_of({"a": {**ONE, "data_offsets": [4, 0]}}, b"1234"), "does not fit the offsets"),
        (file_of({"a": {**ONE, "data_offsets": [0]}}, b"1234"), "does not fit the offsets"),
        (file_of({"a": ONE, "b": {**ONE, "data_offsets": [2, 6]}}, b"123456"), "overlaps"),
        (file_of({"a": ONE, "b": ONE}, b"1234"), "overlaps"),
        (file_of({"a": ONE, "b": {**ONE, "data_offsets": [5, 9]}}, b"123456789"), "hole"),
        (file_of({"a": ONE}, b"123"), "need 4 bytes, but it holds 3"),
        (file_of({"a": ONE}, b"12345"), "need 4 bytes, but it holds 5"),
    ],
)
def test_08_lying_headers_are_refused(tmp_path, data, reason):
    path = tmp_path / "lie.safetensors"
    assert reason in refusal(path, data)


def test_08_the_twin_that_does_not_lie_is_read(tmp_path):
    path = tmp_path / "truth.safetensors"
    path.write_bytes(file_of({"a": ONE}, b"\0\0\0\0"))
    assert read_checkpoint(path).content["a"].tolist() == [0.0]


def test_paths_among_the_settings_become_text(tmp_path):
    content = {"weight": torch.ones(1), "dir": pathlib.PurePosixPath("/data/a"), "win": pathlib.PureWindowsPath("C:/b")}
    torch.save(content, tmp_path / "mine.ckpt")
    read = read_checkpoint(tmp_path / "mine.ckpt").content
    assert (type(read["dir"]), read["dir"].strip("/")) == (str, "data/a")
    assert isinstance(read["win"], str)


@pytest.mark.parametrize(
    ("suffix", "fix"),
    [
        (".h5", "tf2onnx"),
        (".KERAS", "tf2onnx"),
        (".trt", ".engine"),
        (".caffemodel", ".onnx"),
        (".xyz", ".safetensors"),
    ],
)
def test_files_of_other_frameworks_say_how_they_come_in(tmp_path, suffix, fix):
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / f"model{suffix}")
    assert fix in caught.value.fix
