"""The envelope reader against the onnx package, on whole, cut, random and hostile files."""

from __future__ import annotations

import contextlib
import io
import time
from collections import Counter

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from densenet_deploy.onnx_envelope import append_metadata, count_stored_elements, read_metadata

FACTS = {"a": "1", "Katze 🐈": "naïve\n\x00", "": "empty key", "empty value": "", "long": "x" * 70_000}


def _model(**metadata: str) -> onnx.ModelProto:
    weights = [
        numpy_helper.from_array(np.zeros((2, 3), np.float32), "raw"),
        helper.make_tensor("typed", TensorProto.FLOAT, (4,), np.zeros(4)),
        helper.make_tensor("half", TensorProto.FLOAT16, (5, 1), np.zeros(5)),
        helper.make_tensor("scalar", TensorProto.INT64, (), [7]),
        helper.make_tensor("nothing", TensorProto.INT8, (0, 3), []),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 3))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ("N", 3))
    model = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y], weights))
    helper.set_model_props(model, metadata)
    return model


def _stored(model: onnx.ModelProto) -> Counter[int]:
    counts: Counter[int] = Counter()
    for tensor in model.graph.initializer:
        counts[tensor.data_type] += int(np.prod(tensor.dims, dtype=np.int64))
    return counts


def _props(model: onnx.ModelProto) -> dict[str, str]:
    return {pair.key: pair.value for pair in model.metadata_props}


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def test_metadata_is_what_onnx_reads():
    data = _model(**FACTS).SerializeToString()
    assert read_metadata(io.BytesIO(data)) == FACTS


def test_appended_metadata_is_what_onnx_reads():
    model = _model(old="fact")
    longer = onnx.ModelProto.FromString(append_metadata(model.SerializeToString(), FACTS))
    assert _props(longer) == {"old": "fact", **FACTS}
    assert longer.graph == model.graph


def test_of_a_key_given_twice_the_last_counts():
    data = append_metadata(_model(a="old").SerializeToString(), {"a": "new"})
    assert read_metadata(io.BytesIO(data)) == {"a": "new"}


def test_elements_are_those_that_onnx_counts():
    model = _model()
    assert count_stored_elements(io.BytesIO(model.SerializeToString())) == _stored(model)


def test_elements_of_an_exported_network(tiny_onnx):
    with tiny_onnx.open("rb") as file:
        assert count_stored_elements(file) == _stored(onnx.load(tiny_onnx))
        assert read_metadata(file) == _props(onnx.load(tiny_onnx))


def test_elements_in_external_data_are_counted_by_their_shape(tmp_path):
    model = _model()
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert any(
        tensor.external_data for tensor in onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer
    )
    (tmp_path / "w.bin").unlink()
    with (tmp_path / "m.onnx").open("rb") as file:
        assert count_stored_elements(file) == _stored(model)


def test_dimensions_may_be_packed():
    tensor = _field(1, _varint(300) + _varint(2)) + _varint(2 << 3) + _varint(TensorProto.FLOAT)
    assert TensorProto.FromString(tensor).dims == [300, 2]
    assert count_stored_elements(io.BytesIO(_field(7, _field(5, tensor)))) == {TensorProto.FLOAT: 600}


def test_a_file_cut_anywhere_is_read_or_refused_as_protobuf_does():
    data = _model(a="1", b="two").SerializeToString()
    for end in range(len(data)):
        try:
            whole = onnx.ModelProto.FromString(data[:end])
        except DecodeError:
            with pytest.raises(ValueError, match=r"cut short|no graph"):
                read_metadata(io.BytesIO(data[:end]))
            continue
        if whole.HasField("graph"):  # cut between two fields: a shorter, well-formed message
            assert read_metadata(io.BytesIO(data[:end])) == _props(whole)


@pytest.mark.parametrize("seed", range(200))
def test_random_bytes_are_refused_or_read_but_never_crash(seed):
    rng = np.random.default_rng(seed)
    data = bytearray(_model(a="1").SerializeToString()) if seed % 2 else bytearray(rng.bytes(300))
    for place in rng.integers(0, len(data), 5):
        data[place] = rng.integers(256)
    for read in (read_metadata, count_stored_elements):
        with contextlib.suppress(ValueError):
            read(io.BytesIO(bytes(data)))


def test_a_file_without_a_graph_is_not_a_model():
    with pytest.raises(ValueError, match="no graph"):
        read_metadata(io.BytesIO(_field(2, b"pytorch")))


HUGE = _varint(2**63)
HOSTILE = {
    "a field of 2^63 bytes": _varint(7 << 3 | 2) + HUGE,
    "metadata of 2^63 bytes": _varint(14 << 3 | 2) + HUGE,
    "an inner field of 2^63 bytes": _field(7, _varint(5 << 3 | 2) + HUGE),
    "a number without end": _field(7, b"\x80" * 1000),
    "field number 0": b"\x00\x00",
    "groups": b"\x3b\x3c",
    "an inner field longer than its message": _field(7, b"\x2a\x05") + b"more bytes behind",
    "a tensor of 60 000 dimensions": _field(7, _field(5, _field(1, HUGE * 60_000))),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_sizes_are_refused_at_once(data):
    start = time.process_time()
    with pytest.raises(ValueError, match=r"cut short|too long|number 0|wire type|unreasonable"):
        count_stored_elements(io.BytesIO(data))
    assert time.process_time() - start < 10  # the last is walked in 0.3 s; to multiply it takes over 30


def test_dimensions_that_multiply_beyond_any_memory_are_only_numbers():
    tensor = b"".join(_varint(1 << 3) + _varint(10**10) for _ in range(3)) + _varint(2 << 3) + b"\x01"
    assert count_stored_elements(io.BytesIO(_field(7, _field(5, tensor)))) == {TensorProto.FLOAT: 10**30}


def test_metadata_that_is_not_utf8_is_refused():
    with pytest.raises(ValueError, match="utf-8"):
        read_metadata(io.BytesIO(_field(7, b"") + _field(14, _field(1, b"\xff\xfe"))))
