"""Safetensors headers: what the library writes is read, what lies is refused, and our own writer never varies."""

import json

import pytest
import safetensors.torch
import torch

from densenet_deploy.errors import CheckpointError
from densenet_deploy.models.checkpoint_file import read_checkpoint
from densenet_deploy.models.safetensors_file import checked_metadata, float32_bytes

ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


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
        (file_of(b"{}" + b" " * 100_000_001), "header claims 100000003"),
        (file_of(b"[]"), "no JSON object"),
        (file_of(b"{'a': 1}"), "not JSON"),
        (file_of(b'{"a":' * 100_000), "not JSON"),
        (file_of(b'{"a": "\xff"}'), "not JSON"),
        (file_of(b'{"a": 1, "a": 2}'), "twice"),
        (file_of(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "twice"),
        (file_of({"__metadata__": {"a": 1}}), "pairs of text"),
        (file_of({"a": [1]}), "not described"),
        (file_of({"a": {**ONE, "dtype": "F99"}}, b"1234"), "unknown type F99"),
        (file_of({"a": {**ONE, "shape": [-1]}}, b"1234"), "no whole numbers"),
        (file_of({"a": {**ONE, "shape": [True]}}, b"1234"), "no whole numbers"),
        (file_of({"a": {**ONE, "shape": [2]}}, b"1234"), "cannot lie"),
        (file_of({"a": {**ONE, "data_offsets": [4, 0]}}, b"1234"), "cannot lie"),
        (file_of({"a": {**ONE, "data_offsets": [0]}}, b"1234"), "cannot lie"),
        (file_of({"a": ONE, "b": {**ONE, "data_offsets": [2, 6]}}, b"123456"), "overlaps"),
        (file_of({"a": ONE, "b": ONE}, b"1234"), "overlaps"),
        (file_of({"a": ONE, "b": {**ONE, "data_offsets": [5, 9]}}, b"123456789"), "hole"),
        (file_of({"a": ONE}, b"123"), "need 4 bytes, and 3 are there"),
        (file_of({"a": ONE}, b"12345"), "need 4 bytes, and 5 are there"),
    ],
)
def test_08_lying_headers_are_refused(tmp_path, data, reason):
    path = tmp_path / "lie.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(path)


def test_08_the_twin_that_does_not_lie_is_read(tmp_path):
    path = tmp_path / "truth.safetensors"
    path.write_bytes(file_of({"a": ONE}, b"\0\0\0\0"))
    assert read_checkpoint(path).content["a"].tolist() == [0.0]
