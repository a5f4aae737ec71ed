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

from densenet_deploy.onnx_envelope import (
    append_metadata,
    count_stored_elements,
    external_files,
    final_operators,
    read_metadata,
)

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


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 129, 255, 256, 16_383, 16_384, 16_385])
def test_appended_texts_of_any_length_are_what_onnx_reads(length):
    """Lengths are numbers of 7 bits a byte; those of the pair and of the text cross 128 at different lengths."""
    facts = {"k": "v" * length}
    longer = append_metadata(_model().SerializeToString(), facts)
    assert _props(onnx.ModelProto.FromString(longer)) == facts
    assert read_metadata(io.BytesIO(longer)) == facts


def test_fields_of_every_other_kind_are_skipped():
    """Field 100 as 8 bytes, as 4 bytes and as a number, as a later version of the format might have it."""
    others = (
        _varint(100 << 3 | 1) + b"\xff" * 8,
        _varint(100 << 3 | 5) + b"\xff" * 4,
        _varint(100 << 3) + _varint(2**63),
    )
    data = b"".join(others) + append_metadata(_field(7, b""), {"a": "b"}) + b"".join(others)
    assert onnx.ModelProto.FromString(data).metadata_props[0].value == "b"
    assert read_metadata(io.BytesIO(data)) == {"a": "b"}


def test_a_pair_without_key_or_value_has_empty_ones():
    data = _field(7, b"") + _field(14, _field(2, b"v")) + _field(14, _field(1, b"k")) + _field(14, b"")
    assert read_metadata(io.BytesIO(data)) == {"": "", "k": ""}


@pytest.mark.parametrize("too_much", [0, 1])
def test_a_text_of_64_mib_is_the_largest(too_much, tmp_path):
    size = 64 * 2**20 + too_much
    pair = _field(1, b"k") + _varint(2 << 3 | 2) + _varint(size)
    with (tmp_path / "sparse.onnx").open("w+b") as file:
        file.write(_field(7, b"") + _varint(14 << 3 | 2) + _varint(len(pair) + size) + pair)
        file.truncate(file.tell() + size)
        if too_much:
            with pytest.raises(ValueError, match="unreasonable"):
                read_metadata(file)
        else:
            assert len(read_metadata(file)["k"]) == size


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


def _tensor(*fields: bytes) -> io.BytesIO:
    """A model with one initializer of these fields."""
    return io.BytesIO(_field(7, _field(5, b"".join(fields))))


def test_a_tensor_of_64_dimensions_is_the_largest():
    dim, kind = _varint(1 << 3) + _varint(1), _varint(2 << 3) + _varint(TensorProto.INT8)
    assert count_stored_elements(_tensor(dim * 64, kind)) == {TensorProto.INT8: 1}
    with pytest.raises(ValueError, match="unreasonable"):
        count_stored_elements(_tensor(dim * 65, kind))


def test_a_tensor_without_a_type_has_that_of_number_0():
    dim = _varint(1 << 3) + _varint(3)
    assert count_stored_elements(_tensor(dim)) == {TensorProto.UNDEFINED: 3}
    assert count_stored_elements(_tensor(dim, _varint(2 << 3 | 5) + bytes(4))) == {TensorProto.UNDEFINED: 3}


def test_the_longest_number_has_10_bytes():
    """2^63 is the smallest that takes 10; zeros make any number longer without changing it."""
    field = _varint(100 << 3)
    assert read_metadata(io.BytesIO(field + _varint(2**63) + _field(7, b""))) == {}
    assert read_metadata(io.BytesIO(field + b"\x80" * 9 + b"\0" + _field(7, b""))) == {}
    with pytest.raises(ValueError, match="too long"):
        read_metadata(io.BytesIO(field + b"\x80" * 10 + b"\0" + _field(7, b"")))


# --- weights in other files


def _external(*files: dict[str, str]) -> io.BytesIO:
    """A model with an initializer in each of these files."""
    model = _model()
    for entries in files:
        tensor = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[1])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
    return io.BytesIO(model.SerializeToString())


def test_without_data_in_other_files_there_are_none():
    assert external_files(_external()) == {}


@pytest.mark.parametrize(
    ("entries", "size"),
    [
        ({"offset": "100", "length": "8"}, 108),
        ({"offset": "100"}, 100),
        ({"length": "8"}, 8),
        ({}, 0),
        ({"checksum": "5"}, 0),
    ],
)
def test_a_file_is_as_long_as_offset_and_length_need(entries, size):
    assert external_files(_external({"location": "w.bin", **entries})) == {"w.bin": size}


def test_of_all_tensors_in_a_file_the_last_end_counts():
    first, last = ({"location": "w.bin", "offset": offset, "length": "8"} for offset in ("0", "8"))
    other = {"location": "v.bin", "length": "3"}
    assert external_files(_external(first, other, last)) == {"w.bin": 16, "v.bin": 3}
    assert external_files(_external(last, other, first)) == {"w.bin": 16, "v.bin": 3}


def test_entries_without_a_place_name_no_file():
    assert external_files(_external({"offset": "5"})) == {}


@pytest.mark.parametrize(
    "entries", [{"location": "a\0b"}, {"location": "a", "offset": "x"}, {"location": "a", "length": ""}]
)
def test_entries_that_are_no_name_or_number_are_refused(entries):
    with pytest.raises(ValueError):  # noqa: PT011 - the type is all that callers look at
        external_files(_external(entries))


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


def test_random_bytes_are_refused_or_read_but_never_crash():
    whole = _model(a="1").SerializeToString()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        data = bytearray(whole) if seed % 2 else bytearray(rng.bytes(300))
        for place in rng.integers(0, len(data), 5):
            data[place] = rng.integers(256)
        for read in (read_metadata, count_stored_elements, external_files, final_operators):
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


# --- the operators behind outputs


def _graph(nodes: str, outputs: str = "y") -> onnx.ModelProto:
    """A graph of nodes `y = Softmax(x)`, separated by semicolons; an operator may lack its inputs."""
    graph = onnx.GraphProto(name="g")
    for text in filter(None, map(str.strip, nodes.split(";"))):
        made, _, call = text.partition(" = ")
        operator, _, inputs = call.rstrip(")").partition("(")
        graph.node.add(op_type=operator, input=filter(None, inputs.split(",")), output=made.split(","))
    for name in outputs.split():
        graph.output.add(name=name)
    return onnx.ModelProto(graph=graph)


def _behind(nodes: str, outputs: str = "y") -> dict[str, str]:
    found = final_operators(io.BytesIO(_graph(nodes, outputs).SerializeToString()))
    return {name: " ".join(sorted(operators)) for name, operators in found.items()}


PASSING = (
    "Clip",
    "Identity",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Cast",
    "QuantizeLinear",
    "DequantizeLinear",
)


@pytest.mark.parametrize("operator", PASSING)
def test_what_only_reshapes_converts_or_limits_an_output_is_passed_over(operator):
    assert _behind(f"a = Sigmoid(x); y = {operator}(a,s)") == {"y": "Sigmoid"}
    assert _behind(f"a = Sigmoid(x); b = {operator}(a,s); y = {operator}(b,s)") == {"y": "Sigmoid"}
    assert _behind(f"a = Sigmoid(x); y = {operator}(s,a)") == {"y": ""}  # the first input is the value


@pytest.mark.parametrize("operator", ["Relu", "TopK", "QLinearConv", "LogSoftmax", "Dropout", "Einsum"])
def test_any_other_operator_computes_the_output(operator):
    assert _behind(f"a = Sigmoid(x); y = {operator}(a)") == {"y": operator}


@pytest.mark.parametrize(
    ("nodes", "operators"),
    [
        ("a = Softmax(x); b = Softmax(z); c = Add(a,b); y = Div(c,two)", "Add Div Softmax"),
        ("a = Sigmoid(x); y = Sub(one,a)", "Sigmoid Sub"),
        ("a = Softmax(x); k = Constant(); y = Mul(k,a)", "Mul Softmax"),
        ("a = Gemm(x); y = Div(a,temperature)", "Div Gemm"),
        ("a = Sigmoid(x); g = Gemm(a); y = Add(g,bias)", "Add Gemm"),  # a hidden Sigmoid is not an answer
        (
            "a = Softmax(x); b = Unsqueeze(a); c = Softmax(z); d = Concat(b,c); y = ReduceMean(d)",
            "Concat ReduceMean Softmax",
        ),
        ("y = Add(y,y)", "Add"),
    ],
)
def test_arithmetic_is_named_with_what_it_combines(nodes, operators):
    assert _behind(nodes) == {"y": operators}


def test_a_combination_of_many_values_ends():
    sums = "; ".join(f"a{i} = Add(a{i + 1},b{i})" for i in range(300))
    assert _behind(f"{sums}; a300 = Softmax(x)", "a0 a200") == {"a0": "Add", "a200": "Add Softmax"}


@pytest.mark.parametrize(
    ("nodes", "outputs", "operators"),
    [
        ("y = Softmax(x)", "y", {"y": "Softmax"}),
        ("y = Flatten(a); a = Softmax(x)", "y", {"y": "Softmax"}),  # in any order
        ("a = Gemm(x); y = Sigmoid(a); z = Identity(a)", "z y", {"z": "Gemm", "y": "Sigmoid"}),
        ("a = Sigmoid(x); b = Flatten(a); y = Identity(b); z = Cast(b)", "y z b", dict.fromkeys("yzb", "Sigmoid")),
        ("a,y = Split(x); z = Identity(a)", "y z", {"y": "Split", "z": "Split"}),
        ("y = Identity(x)", "y", {"y": ""}),
        ("y = Identity()", "y", {"y": ""}),
        ("", "x", {"x": ""}),
        ("y = Softmax(x)", "", {}),
        ("y = (x)", "y", {"y": ""}),
        ("y = Relu(x); y = Softmax(x)", "y", {"y": "Softmax"}),  # of two, the last
    ],
)
def test_every_output_has_the_operator_that_computes_its_values(nodes, outputs, operators):
    assert _behind(nodes, outputs) == operators


@pytest.mark.parametrize(
    "cycle", ["y = Identity(y)", "y = Identity(a); a = Cast(y)", "y = Cast(a); a = Cast(b); b = Cast(a)"]
)
def test_a_cycle_has_no_operator(cycle):
    assert _behind(cycle, "y y") == {"y": ""}


def test_long_chains_of_many_outputs_take_no_longer_than_the_file():
    """Each of 20 000 outputs lies behind up to 20 000 Casts: 200 million steps, if each were walked by itself."""
    count = 20_000
    nodes = b"".join(
        _field(1, _field(1, b"%d" % i) + _field(2, b"%d" % (i + 1)) + _field(4, b"Cast")) for i in range(count)
    )
    first = _field(1, _field(2, b"0") + _field(4, b"Sigmoid"))
    outputs = b"".join(_field(12, _field(1, b"%d" % i)) for i in range(count + 1))
    start = time.process_time()
    found = final_operators(io.BytesIO(_field(7, nodes + first + outputs)))
    assert time.process_time() - start < 10  # 0.7 s
    assert found == dict.fromkeys(map(str, range(count + 1)), frozenset({"Sigmoid"}))


def test_a_node_without_an_output_makes_nothing():
    assert final_operators(io.BytesIO(_field(7, _field(1, _field(4, b"Relu")) + _field(12, _field(1, b"y"))))) == {
        "y": frozenset()
    }


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_are_refused_or_have_no_operators(data):
    with contextlib.suppress(ValueError):
        assert final_operators(io.BytesIO(data)) == {}


@pytest.mark.parametrize(
    "graph",
    [
        _field(1, _field(4, b"\xff")),
        _field(1, _field(1, b"\xff")),
        _field(1, _field(2, b"\xff")),
        _field(12, _field(1, b"\xff")),
        _field(1, _varint(4 << 3 | 2) + HUGE),
        _field(12, b"\x0a\x05abc"),
        _field(1, b"\x00\x00"),
    ],
)
def test_nodes_and_outputs_that_are_no_message_are_refused(graph):
    with pytest.raises(ValueError):  # noqa: PT011 - the type is all that callers look at
        final_operators(io.BytesIO(_field(7, graph)))


def test_the_operators_of_a_cut_file_are_read_or_it_is_refused():
    data = _graph("a = Sigmoid(x); y = Flatten(a)").SerializeToString()
    assert final_operators(io.BytesIO(data)) == {"y": frozenset({"Sigmoid"})}
    for end in range(1, len(data)):
        with pytest.raises(ValueError, match="cut short"):
            final_operators(io.BytesIO(data[:end]))
