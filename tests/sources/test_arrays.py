"""Checkpoints read without PyTorch hold what PyTorch reads from them; what is not a tensor is not built."""

import argparse
import collections
import datetime as dt
import io
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch

from densenet_deploy.errors import CheckpointError, MissingPackageError
from densenet_deploy.sources import arrays
from densenet_deploy.sources.arrays import (
    ForbiddenNameError,
    NeedsTorchError,
    array_of,
    number_of,
    safetensors_arrays,
    unfilled_array,
    zip_content,
)
from densenet_deploy.sources.checkpoint_file import read_checkpoint


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def changed(data, *left_out, **entries):
    """The zip with other entries, by the end of their names, and without some."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            known = next((content for end, content in entries.items() if name.endswith(end)), None)
            if not name.endswith(left_out or "/"):
                new.writestr(name, old.read(name) if known is None else known)
    return buffer.getvalue()


def rewritten(value, old, new):
    """What torch saves of `value`, with other bytes in its pickle."""
    data = saved(value)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        text = archive.read("archive/data.pkl")
    assert text.count(old) == 1
    return changed(data, **{"data.pkl": text.replace(old, new)})


base = torch.arange(24.0)
TENSORS = {
    "whole": base,
    "part": base[5:9],
    "turned": base.reshape(4, 6).T,
    "every other": base[::2],
    "spread": torch.ones(1).expand(3, 4),
    "number": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "last": torch.rand(1, 3, 2, 2).to(memory_format=torch.channels_last),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    **{
        str(kind): torch.tensor([1, 0, 3]).to(kind)
        for kind in (
            *(torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8),
            *(torch.uint8, torch.bool),
        )
    },
}


def test_tensors_are_read_as_by_pytorch():
    content = zip_content(saved({"net": TENSORS, "epoch": 3}))
    assert content["epoch"] == 3
    for name, tensor in TENSORS.items():
        array = content["net"][name]
        assert str(array.dtype) == str(tensor.dtype).removeprefix("torch.")
        assert array.shape == tensor.shape
        assert array.tolist() == tensor.tolist(), name


def test_tensors_that_share_a_storage_share_memory():
    content = zip_content(saved({"a": base, "b": base[2:]}))
    assert np.shares_memory(content["a"], content["b"])
    assert not content["b"].flags.writeable


def test_numbers_paths_and_a_command_line_may_lie_beside_the_weights():
    beside = {
        "float": np.float64(0.25),
        "int": np.int32(-7),
        "bool": np.bool_(True),
        "arguments": argparse.Namespace(lr=0.5),
        "path": pathlib.PurePosixPath("/data/a"),
        "size": torch.Size([2, 3]),
    }
    read = zip_content(saved(beside))
    assert read == {**beside, "path": "//data/a", "size": (2, 3)}
    assert read["float"].dtype == np.float64


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
@pytest.mark.parametrize("kind", ["PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"])
def test_paths_of_every_system_and_python_are_text(module, kind):
    path = pathlib.PurePosixPath("data/a")
    written, other = b"pathlib\nPurePosixPath\n", f"{module}\n{kind}\n".encode()
    assert zip_content(rewritten({"a": path}, written, other)) == {"a": "data/a"}


def test_histories_arrays_and_dates_may_lie_beside_the_weights():
    history = collections.defaultdict(list, loss=[0.5, 0.25])
    now = dt.datetime(2024, 5, 6, 7, 8, 9)  # noqa: DTZ001 - as training code writes it
    arrays = {
        "losses": np.arange(6.0).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        "names": np.array(["cat", "dog"]),
    }
    content = zip_content(saved({"history": history, "now": now, "took": dt.timedelta(2), **arrays}))
    assert (content["history"], content["now"], content["took"]) == (history, now, dt.timedelta(2))
    for name, array in arrays.items():
        assert content[name].dtype == array.dtype
        np.testing.assert_array_equal(content[name], array)


@pytest.mark.parametrize("count", [1, 2**40])
def test_an_array_whose_bytes_are_not_its_shape_is_refused(count):
    class Array:
        def __reduce__(self):
            made = np.empty(0).__reduce__()
            return made[0], made[1], (1, (count,), np.dtype("f4"), False, bytes(8))

    with pytest.raises(ValueError, match="buffer"):
        zip_content(saved({"a": torch.ones(1), "b": Array()}))


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.array([{}]), "NumPy's type O8"),
        (np.zeros(2, complex), "NumPy's type c16"),
        (np.str_("a"), "numpy.dtype"),
        (os.system, "posix.system"),
        (eval, "__builtin__.eval"),
        (np.load, "numpy.load"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_any_other_name_is_refused(value, name):
    with pytest.raises((ForbiddenNameError, ValueError)) as caught:
        zip_content(saved({"a": torch.ones(1), "b": value}))
    if name != "numpy.dtype":
        assert caught.value.name == name


@pytest.mark.parametrize(
    ("value", "written", "other"),
    [
        (np.float64(0.25), b"numpy._core.multiarray\nscalar\n", b"numpy.core.multiarray\nscalar\n"),
        (np.arange(3), b"numpy._core.multiarray\n_reconstruct\n", b"numpy.core.multiarray\n_reconstruct\n"),
        (collections.defaultdict(list, a=[1]), b"__builtin__\nlist\n", b"builtins\nlist\n"),
        (collections.defaultdict(float, a=2.5), b"__builtin__\nfloat\n", b"builtins\nfloat\n"),
    ],
    ids=["number", "array", "list", "float"],
)
def test_names_of_other_versions_mean_the_same(value, written, other):
    for data in (saved({"a": value}), rewritten({"a": value}, written, other)):
        np.testing.assert_array_equal(zip_content(data)["a"], value)


def test_bytes_are_those_of_one_encoding():
    with pytest.raises(ForbiddenNameError) as caught:
        zip_content(rewritten({"a": np.float64(0.25)}, b"latin1", b"utf-16"))
    assert caught.value.name == "_codecs.encode to utf-16"


def test_an_array_is_empty_until_its_state_fills_it():
    assert unfilled_array(np.ndarray, (3,), b"b").shape == (0,)


def test_a_storage_is_pytorchs():
    with pytest.raises(ForbiddenNameError) as caught:
        zip_content(rewritten({"a": torch.ones(1)}, b"torch\nFloatStorage\n", b"mine\nFloatStorage\n"))
    assert (caught.value.name, str(caught.value)) == ("mine.FloatStorage", "it needs mine.FloatStorage")


def test_code_is_not_run(tmp_path):
    with pytest.raises(ForbiddenNameError) as caught:
        zip_content(saved({"a": torch.ones(1), "b": Bomb(tmp_path / "marker")}))
    assert caught.value.name == "posix.mkdir"
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (torch.ones(2, 2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (torch.ones(1, dtype=torch.complex64), "torch.ComplexFloatStorage"),
        (torch.nn.Conv2d(1, 1, 1), "torch.nn.modules.conv.Conv2d"),
        (torch.device("cpu"), "torch.device"),
    ],
    ids=["sparse", "complex", "module", "device"],
)
def test_what_pytorch_alone_understands_is_named(value, what):
    with pytest.raises(NeedsTorchError) as caught:
        zip_content(saved({"a": value}))
    assert (caught.value.what, str(caught.value)) == (what, f"it holds {what}")


def test_numbers_of_the_other_byte_order_beside_the_weights_are_refused():
    assert zip_content(saved({"a": np.zeros(1, "<f4")}))["a"].dtype == np.float32
    with pytest.raises(NeedsTorchError):
        zip_content(saved({"a": np.zeros(1, ">f4")}))


def test_big_endian_numbers_are_refused():
    data = saved({"a": torch.ones(1)})
    assert zip_content(changed(data, "byteorder"))["a"].tolist() == [1.0], "as before PyTorch 2.1"
    assert zip_content(changed(data, byteorder=b"little"))["a"].tolist() == [1.0]
    with pytest.raises(NeedsTorchError):
        zip_content(changed(data, byteorder=b"big"))


def test_a_tensor_stays_inside_its_storage():
    sizes = pickle.dumps((5, 1), protocol=2)[2:-1]
    assert sizes.startswith(b"K\x05K\x01\x86")
    pickled, stride = b"K\x05K\x01\x86", b"K\x01K\x05\x86"
    value = torch.ones(1, 5).T
    assert zip_content(saved(value)).shape == (5, 1)
    with pytest.raises(ValueError, match="beyond"):
        zip_content(rewritten(value, pickled, b"K\x06K\x01\x86"))
    with pytest.raises(ValueError, match="beyond"):
        zip_content(rewritten(value, stride, b"K\x02K\x05\x86"))
    with pytest.raises(ValueError, match="whole"):
        zip_content(rewritten(value, stride, b"K\x01J" + struct.pack("<i", -5) + b"\x86"))


@pytest.mark.parametrize(
    ("offset", "size", "stride", "fits"),
    [
        (0, (4,), (1,), True),
        (1, (4,), (1,), False),
        (2, (2,), (1,), True),
        (0, (2, 2), (2, 1), True),
        (0, (2, 2), (3, 1), False),
        (0, (2,), (3,), True),
        (4, (0,), (1,), True),
        (5, (0,), (1,), False),
        (0, (9, 4), (0, 1), True),
        (0, (), (), True),
        (4, (), (), False),
        (0, (2,), (1, 1), False),
        (-1, (2,), (1,), False),
        (0, (True,), (1,), False),
        (0, (2.0,), (1,), False),
    ],
)
def test_views_of_four_numbers(offset, size, stride, fits):
    storage = np.arange(4.0)
    if not fits:
        with pytest.raises(ValueError, match="tensor"):
            arrays._tensor(storage, offset, size, stride)
        return
    expected = torch.as_strided(torch.arange(4.0, dtype=torch.float64), size, stride, offset)
    view = arrays._tensor(storage, offset, size, stride)
    np.testing.assert_array_equal(view, expected.numpy())
    assert not view.flags.writeable


def test_a_number_is_as_many_bytes_as_its_type():
    assert number_of(np.dtype("<i2"), b"\x01\x02") == 0x201
    for kind, data in (("<i2", b"\x01"), ("<i2", b"\x01\x02\x03"), ("O", bytes(8)), ("S2", b"ab")):
        with pytest.raises(ValueError, match="bytes are not one"):
            number_of(np.dtype(kind), data)


def test_a_storage_holds_as_many_numbers_as_it_says():
    data = saved({"a": torch.ones(3)})
    with pytest.raises(ValueError, match="3 numbers"):
        zip_content(changed(data, **{"data/0": bytes(16)}))


SPANS = {"a": ("F32", [2, 1]), "b": ("BF16", [2]), "c": ("I64", []), "d": ("F8_E4M3", [3]), "e": ("F16", [0])}


def test_the_tensors_of_a_safetensors_file_lie_where_its_header_says():
    parts = {
        "a": np.array([[0.5], [-2.0]], "<f4"),
        "b": np.array([1.5, -3.0], ml_dtypes.bfloat16),
        "c": np.array(-7, "<i8"),
        "d": np.array([1, 2, 4], ml_dtypes.float8_e4m3fn),
        "e": np.zeros(0, "<f2"),
    }
    data, header = b"header", {}
    for name, (kind, shape) in SPANS.items():
        begin = len(data) - 6
        data += parts[name].tobytes()
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, len(data) - 6]}
    read = safetensors_arrays(data, header, 6)
    for name, array in parts.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
    assert not read["a"].flags.writeable


KINDS = {
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BOOL": "bool",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


@pytest.mark.parametrize(("kind", "name"), KINDS.items())
def test_every_type_of_a_safetensors_file_has_its_numbers(kind, name):
    expected = np.array([1, 0, 1]).astype(np.dtype(getattr(ml_dtypes, name, name)))
    data = expected.tobytes()
    header = {"a": {"dtype": kind, "shape": [3], "data_offsets": [0, len(data)]}}
    (array,) = safetensors_arrays(data, header, 0).values()
    assert (array.dtype.name, array.dtype.byteorder in "<=|") == (name, True)
    np.testing.assert_array_equal(array, expected)


def test_types_that_numpy_lacks_are_those_of_another_package():
    script = "from densenet_deploy.sources.arrays import _dtype; import sys; print(_dtype(sys.argv[1]).name)"
    done = subprocess.run([sys.executable, "-c", script, "bfloat16"], capture_output=True, text=True, check=True)
    assert done.stdout == "bfloat16\n"


def test_the_array_of_a_tensor_is_its_memory():
    tensor = torch.arange(3.0).requires_grad_()
    array = array_of(tensor)
    assert array.__array_interface__["data"][0] == tensor.data_ptr()
    assert array_of(array) is array
    assert array_of(torch.arange(6).reshape(2, 3).T).flags.c_contiguous


class TestFiles:
    """The errors of a whole file, where PyTorch is not installed."""

    @pytest.fixture(autouse=True)
    def _without_torch(self, monkeypatch):
        monkeypatch.setattr("densenet_deploy.sources.checkpoint_file.is_installed", lambda package: package != "torch")

    def test_a_zip_is_read(self, tmp_path):
        torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
        assert isinstance(read_checkpoint(tmp_path / "a.pth").content["a"], np.ndarray)

    def test_a_bare_pickle_needs_pytorch(self, tmp_path):
        torch.save({"a": torch.ones(2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
        with pytest.raises(MissingPackageError) as caught:
            read_checkpoint(tmp_path / "a.pth")
        assert caught.value.subject == "torch"

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (saved({"a": eval}), "is a pickle that needs __builtin__.eval, and pickled code is never run"),
            (
                saved({"a": torch.ones(2, 2).to_sparse()}),
                "holds torch._utils._rebuild_sparse_tensor, which only PyTorch reads",
            ),
            (changed(saved({"a": torch.ones(1)}), **{"data.pkl": b"\x80\x02."}), "is not a PyTorch checkpoint"),
            (changed(saved({"a": torch.ones(1)}), **{"data.pkl": b""}), "is not a PyTorch checkpoint (EOFError)"),
        ],
        ids=["code", "sparse", "empty stack", "no pickle"],
    )
    def test_each_failure_is_a_checkpoint_error(self, tmp_path, data, why):
        (tmp_path / "a.pth").write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(tmp_path / "a.pth")
        assert caught.value.subject == str(tmp_path / "a.pth")
        assert caught.value.why.startswith(why)
