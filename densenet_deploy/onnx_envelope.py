"""Read what an ONNX file says about itself, and extend its metadata, without the onnx package.

A protobuf message is a list of (field number, wire type, value) records, so everything uninteresting is skipped by its
length: the metadata of a 100 MB model is read in microseconds, and no parser here reads an untrusted graph.
Wire format: https://protobuf.dev/programming-guides/encoding; field numbers: onnx.proto of onnx/onnx.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import BinaryIO, Final, NamedTuple

_LARGEST_METADATA_BYTES: Final = 64 * 2**20
_FIXED_BYTES: Final = {0: 0, 1: 8, 5: 4}  # by wire type; 0 is the number itself
_MOST_DIMS: Final = 64  # numpy's limit; the product of a million hostile sizes would take hours

# ModelProto, GraphProto, NodeProto, ValueInfoProto, TensorProto and StringStringEntryProto
_MODEL_GRAPH, _MODEL_METADATA = 7, 14
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_OUTPUT = 1, 5, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR = 1, 2, 4
_VALUE_NAME = 1
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_EXTERNAL = 1, 2, 13
_PAIR_KEY, _PAIR_VALUE = 1, 2

_PASS_VALUES_ON: Final = frozenset(
    {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Clip", "QuantizeLinear", "DequantizeLinear"}
)
_COMBINE_VALUES: Final = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Sum", "Mean", "Min", "Max", "Concat", "Where", "Transpose", "Slice", "Gather"}
    | {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"}
)
_Maker = tuple[str, list[str]]  # an operator and its inputs
_NOTHING: Final[_Maker] = ("", [])
_MOST_VALUES_BEHIND: Final = 256  # of an output, so that a hostile graph ends soon; a mean of twenty networks has 60


class _Record(NamedTuple):  # a model has thousands, and frozen dataclasses are slow to make
    """One field of a message: a number (`varint`) or `length` bytes at `offset`."""

    number: int
    varint: int
    offset: int
    length: int


def read_metadata(file: BinaryIO) -> dict[str, str]:
    """Return the `metadata_props` of the ONNX model in `file`, the last of each key.

    Raises:
        ValueError: if the bytes are not a protobuf message, or one without a graph.
    """
    pairs: dict[str, str] = {}
    has_graph = False
    for record in _records(file, 0, _size(file)):
        has_graph = has_graph or record.number == _MODEL_GRAPH
        if record.number == _MODEL_METADATA:
            key, text = _string_pair(file, record)
            pairs[key] = text
    if not has_graph:
        raise ValueError("it has no graph")
    return pairs


def append_metadata(model: bytes, strings: Mapping[str, str]) -> bytes:
    """Return the serialized `model` with `strings` added to its `metadata_props`.

    Protobuf merges concatenated messages by appending their repeated fields: nothing is parsed or rebuilt.
    """
    pairs = (_field(_PAIR_KEY, key.encode()) + _field(_PAIR_VALUE, text.encode()) for key, text in strings.items())
    return model + b"".join(_field(_MODEL_METADATA, pair) for pair in pairs)


def count_stored_elements(file: BinaryIO) -> Counter[int]:
    """Return how many initializer elements the ONNX model in `file` stores, by TensorProto data type.

    Raises:
        ValueError: if the bytes are not a protobuf message.
    """
    counts: Counter[int] = Counter()
    for tensor in _initializers(file):
        data_type, elements = _tensor_facts(file, tensor)
        counts[data_type] += elements
    return counts


def final_operators(file: BinaryIO) -> dict[str, frozenset[str]]:
    """Return the outputs of the ONNX model in `file` by name, each with the operators that compute its values.

    Operators that only reshape, convert or limit values are passed over; arithmetic is, too, but is named: the mean of
    two softmaxes has `{"Mean", "Softmax"}`. An output that no node makes has none.

    Raises:
        ValueError: if the bytes are not a protobuf message.
    """
    makers: dict[str, _Maker] = {}
    outputs: list[str] = []
    for record in _graph_records(file):
        if record.number == _GRAPH_NODE:
            texts = _texts(file, record, {_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR})
            makers |= dict.fromkeys(texts[_NODE_OUTPUT], ("".join(texts[_NODE_OPERATOR][:1]), texts[_NODE_INPUT]))
        elif record.number == _GRAPH_OUTPUT:
            outputs += _texts(file, record, {_VALUE_NAME})[_VALUE_NAME]
    return {name: _operators_behind(name, makers) for name in outputs}


def _operators_behind(value: str, makers: dict[str, _Maker]) -> frozenset[str]:
    """Return the operators that compute `value`: one, or what arithmetic combines and the arithmetic itself."""
    found, seen, left = set(), {value}, [value]
    while left and len(seen) < _MOST_VALUES_BEHIND:
        operator, sources = _maker_behind(left.pop(), makers)
        if operator not in ("", "Constant"):
            found.add(operator)
        if operator in _COMBINE_VALUES:
            left += [source for source in sources if source not in seen]
            seen.update(sources)
    return frozenset(found)


def _maker_behind(value: str, makers: dict[str, _Maker]) -> _Maker:
    """Return what computes `value`, and note it for all values on the way, which others may pass too."""
    passed = [value]
    maker = makers.pop(value, _NOTHING)  # popped, so that a cycle ends
    while maker[0] in _PASS_VALUES_ON:
        passed.append("".join(maker[1][:1]))
        maker = makers.pop(passed[-1], _NOTHING)
    makers |= dict.fromkeys(passed, maker)
    return maker


def external_files(file: BinaryIO) -> dict[str, int]:
    """Return the files that hold initializers, by path as in the model, and the smallest size of each in bytes.

    Raises:
        ValueError: if the bytes are not a protobuf message, or an offset or length is not a number.
    """
    lengths: dict[str, int] = {}
    for tensor in _initializers(file):
        records = _records(file, tensor.offset, tensor.length)
        entries = dict(_string_pair(file, record) for record in records if record.number == _TENSOR_EXTERNAL)
        if "\0" in entries.get("location", ""):
            raise ValueError("the name of a data file contains NUL")
        if "location" in entries:
            end = int(entries.get("offset", "0")) + int(entries.get("length", "0"))
            lengths[entries["location"]] = max(end, lengths.get(entries["location"], 0))
    return lengths


def _graph_records(file: BinaryIO) -> Iterator[_Record]:
    for graph in _records(file, 0, _size(file)):
        if graph.number == _MODEL_GRAPH:
            yield from _records(file, graph.offset, graph.length)


def _initializers(file: BinaryIO) -> Iterator[_Record]:
    return (record for record in _graph_records(file) if record.number == _GRAPH_INITIALIZER)


def _texts(file: BinaryIO, message: _Record, numbers: Collection[int]) -> dict[int, list[str]]:
    """Return the strings in the fields `numbers` of a message."""
    found: dict[int, list[str]] = {number: [] for number in numbers}
    for record in _records(file, message.offset, message.length):
        if record.number in found:
            found[record.number].append(_read(file, record).decode())
    return found


def _tensor_facts(file: BinaryIO, tensor: _Record) -> tuple[int, int]:
    data_type, dims = 0, []
    for record in _records(file, tensor.offset, tensor.length):
        if record.number == _TENSOR_TYPE:
            data_type = record.varint
        if record.number == _TENSOR_DIMS and record.length:  # packed
            dims += _packed(file, record)
        elif record.number == _TENSOR_DIMS:
            dims.append(record.varint)
    if len(dims) > _MOST_DIMS:
        raise ValueError("unreasonable rank of a tensor")
    return data_type, math.prod(dims)


def _packed(file: BinaryIO, record: _Record) -> list[int]:
    values = []
    while file.tell() < record.offset + record.length:
        values.append(_varint(file))
    return values


def _records(file: BinaryIO, offset: int, length: int) -> Iterator[_Record]:
    """Yield the records of a message, each with the file at the start of its bytes."""
    end = offset + length
    while offset < end:
        file.seek(offset)
        tag = _varint(file)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise ValueError("field number 0")
        varint = _varint(file) if wire_type in (0, 2) else 0
        size = varint if wire_type == 2 else _FIXED_BYTES.get(wire_type)
        offset = file.tell()
        if size is None:
            raise ValueError(f"wire type {wire_type}")
        if offset + size > end:
            raise ValueError("cut short")
        yield _Record(number, varint, offset, size)
        offset += size


def _string_pair(file: BinaryIO, pair: _Record) -> tuple[str, str]:
    texts = {record.number: _read(file, record).decode() for record in _records(file, pair.offset, pair.length)}
    return texts.get(_PAIR_KEY, ""), texts.get(_PAIR_VALUE, "")


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _read(file: BinaryIO, record: _Record) -> bytes:
    if record.length > _LARGEST_METADATA_BYTES:
        raise ValueError("unreasonable size of the metadata")
    return file.read(record.length)


def _varint(file: BinaryIO) -> int:
    byte = file.read(1)
    if byte and byte[0] < 0x80:  # most are short
        return byte[0]
    value = 0
    for shift in range(0, 70, 7):
        if not byte:
            raise ValueError("cut short")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        byte = file.read(1)
    raise ValueError("number too long")


def _field(number: int, value: bytes) -> bytes:
    return _encode_varint(number << 3 | 2) + _encode_varint(len(value)) + value


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
