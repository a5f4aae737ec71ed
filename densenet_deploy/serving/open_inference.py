"""The open inference protocol (KServe v2): requests to arrays, and arrays to answers, with every count checked.

A tensor comes as JSON numbers, nested or flat, or as bytes: little-endian, in the order of the tensors, behind the JSON
whose length the header `Inference-Header-Content-Length` gives (the binary tensor data extension). gRPC has its own
messages for the same (`grpc_server.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from densenet_deploy.errors import ModelFileError, printable
from densenet_deploy.records import parse_json, write_json
from densenet_deploy.runtime.feeds import Array, TensorSpec

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
VERSION: Final = "1"
"""The only version of a served model."""
EXTENSIONS: Final = ("binary_tensor_data",)

DATATYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
}
_NAMES: Final = {dtype: name for name, dtype in DATATYPES.items()}
_JSON_TYPES: Final[Mapping[str, set[type]]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}
_UNSUPPORTED: Final = ("classification", "shared_memory_region")
_MOST_AXES: Final = 32
_TOO_MANY_NUMBERS: Final = 2**48
"""NumPy makes no array of so many, even where another size is 0."""


class RequestError(Exception):
    """A request that cannot be answered: the HTTP status, and the sentence for the client."""

    def __init__(self, status: int, sentence: str, kind: str = "bad_request") -> None:
        super().__init__(sentence)
        self.status, self.kind = status, kind


def refused(subject: object, why: str) -> RequestError:
    """Return the error for a request that is not one of the protocol."""
    return RequestError(400, f"request: {printable(subject)}: {why}")


@dataclass(frozen=True)
class RequestedOutput:
    """An output that the client asked for, and whether as bytes."""

    name: str
    is_binary: bool = False


@dataclass(frozen=True)
class InferRequest:
    """A request: arrays by input name, the outputs that are asked for, and the client's own name for it."""

    feeds: Mapping[str, Array]
    outputs: tuple[RequestedOutput, ...]
    id: str = ""


def datatype_of(spec: TensorSpec) -> str:
    """Return the protocol's name for the type of a tensor.

    Raises:
        ModelFileError: if it has none.
    """
    if spec.dtype not in _NAMES:
        raise ModelFileError(spec, "has a type that the open inference protocol does not name", "serve another form")
    return _NAMES[spec.dtype]


def metadata(name: str, platform: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Return the metadata of a model; -1 is a size that may vary."""

    def described(spec: TensorSpec) -> dict[str, Any]:
        shape = [-1 if size is None else size for size in spec.shape]
        return {"name": spec.name, "datatype": datatype_of(spec), "shape": shape}

    tensors = {"inputs": [*map(described, inputs)], "outputs": [*map(described, outputs)]}
    return {"name": name, "versions": [VERSION], "platform": platform, **tensors}


def json_length(header_length: str | None, total: int) -> int:
    """Return how many of the `total` bytes of a body are JSON; see `read_request`.

    Raises:
        RequestError: status 400, if `header_length` is not a number of bytes that the body has.
    """
    if header_length is None:
        return total
    is_number = header_length.isascii() and header_length.isdigit() and len(header_length) < 16
    if not (is_number and int(header_length) <= total):
        raise refused(HEADER_LENGTH, f"is {printable(header_length)}, the body has {total} bytes")
    return int(header_length)


def read_request(
    body: bytes, header_length: str | None, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> InferRequest:
    """Read the body of a request over HTTP.

    Args:
        body: JSON, and the bytes of tensors behind it.
        header_length: the value of `Inference-Header-Content-Length`; None where it is missing: all is JSON.
        inputs: those of the model.
        outputs: those of the model.

    Raises:
        RequestError: status 400, if it is not a request for the model.
    """
    length = json_length(header_length, len(body))
    try:
        facts = parse_json(body[:length])
    except ValueError as exc:
        raise refused("body", f"is not JSON: {printable(exc)}") from exc
    facts = _object(facts, "body")
    tensors = _BinaryTensors(memoryview(body)[length:])
    feeds: dict[str, Array] = {}
    for entry in _entries(facts, "inputs"):
        spec = requested_tensor(entry.get("name"), inputs, feeds, "input")
        shape = checked_shape(spec, entry.get("datatype"), entry.get("shape"))
        feeds[spec.name] = _array(spec, shape, entry, tensors)
    tensors.require_end()
    require_all(inputs, feeds)
    request_id = facts.get("id", "")
    if not isinstance(request_id, str):
        raise refused("id", "is not text")
    return InferRequest(feeds, _requested(facts, outputs), request_id)


def write_answer(name: str, request: InferRequest, answer: Mapping[str, Array]) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of its JSON if bytes of tensors follow.

    Raises:
        ModelFileError: if an output that is asked for as JSON holds NaN or Inf, which JSON does not have.
    """
    entries, parts = [], []
    for output in request.outputs:
        array = answer[output.name]
        entry: dict[str, Any] = {"name": output.name, "datatype": _NAMES[array.dtype], "shape": list(array.shape)}
        if output.is_binary:
            parts.append(to_bytes(array))
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ModelFileError(output.name, "holds NaN or Inf, which JSON does not have", "ask for binary data")
            entry["data"] = array.ravel().tolist()
        entries.append(entry)
    facts: dict[str, Any] = {"model_name": name, "model_version": VERSION}
    facts |= {"id": request.id} if request.id else {}
    header = write_json(facts | {"outputs": entries}).encode()
    return (b"".join([header, *parts]), len(header)) if parts else (header + b"\n", None)


def to_bytes(array: Array) -> bytes:
    """Return an array as the protocol's bytes: little-endian, row by row."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def from_bytes(spec: TensorSpec, shape: tuple[int, ...], data: bytes | memoryview) -> Array:
    """Return the array in a tensor's bytes.

    Raises:
        RequestError: if there are not as many as the shape takes.
    """
    expected = math.prod(shape) * spec.dtype.itemsize
    if len(data) != expected:
        raise refused(spec.name, f"has {len(data)} bytes, {list(shape)} {datatype_of(spec)} takes {expected}")
    if spec.dtype.kind == "b" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise refused(spec.name, "holds bytes other than 0 and 1")
    return np.frombuffer(data, spec.dtype.newbyteorder("<")).astype(spec.dtype, copy=False).reshape(shape)


def requested_tensor(name: object, specs: Sequence[TensorSpec], seen: Mapping[str, object], kind: str) -> TensorSpec:
    """Return the spec that `name` means.

    Raises:
        RequestError: if there is none, or `name` was `seen` before.
    """
    known = {spec.name: spec for spec in specs}
    if not isinstance(name, str) or name not in known:
        raise refused(name, f"is not an {kind} of the model: {', '.join(known)}")
    if name in seen:
        raise refused(name, f"comes twice among the {kind}s")
    return known[name]


def checked_shape(spec: TensorSpec, datatype: object, shape: object) -> tuple[int, ...]:
    """Return the shape of a tensor.

    Raises:
        RequestError: if the type is not the model's, or the shape is not one. Whether the model takes it is the
            runner's to say.
    """
    if datatype != datatype_of(spec):
        raise refused(spec.name, f"has datatype {printable(datatype)}, the model takes {datatype_of(spec)}")
    is_short = isinstance(shape, list) and len(shape) <= _MOST_AXES
    if not is_short or not all(type(size) is int and size >= 0 for size in shape):  # type: ignore[attr-defined]
        raise refused(spec.name, f"has shape {printable(shape)}, which is not a list of sizes")
    if math.prod(max(size, 1) for size in shape) >= _TOO_MANY_NUMBERS:  # type: ignore[attr-defined]
        raise refused(spec.name, f"has shape {printable(shape)}, which is not a list of sizes that memory holds")
    return tuple(shape)  # type: ignore[arg-type]


def require_all(inputs: Sequence[TensorSpec], feeds: Mapping[str, object]) -> None:
    """Refuse a request without one of the inputs.

    Raises:
        RequestError: naming the first.
    """
    for spec in inputs:
        if spec.name not in feeds:
            raise refused(spec.name, "is an input of the model, and is missing")


def require_supported(subject: object, parameters: Mapping[str, object]) -> None:
    """Refuse parameters that would change the answer and are not supported.

    Raises:
        RequestError: naming the first.
    """
    for name in _UNSUPPORTED:
        if name in parameters:
            raise refused(subject, f"asks for {name}, which this server does not support")


class _BinaryTensors:
    """The bytes behind the JSON, taken tensor by tensor."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._start = data, 0

    def take(self, name: str, size: object) -> memoryview:
        if type(size) is not int or size < 0:
            raise refused(name, f"has binary_data_size {printable(size)}, which is not a size")
        end = self._start + size
        if end > len(self._data):
            raise refused(name, f"has binary_data_size {size}, the body has {len(self._data) - self._start} bytes left")
        taken, self._start = self._data[self._start : end], end
        return taken

    def require_end(self) -> None:
        if left := len(self._data) - self._start:
            raise refused("body", f"has {left} bytes that belong to no tensor")


def _object(value: object, subject: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise refused(subject, "is not a JSON object")
    return value


def _entries(facts: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    entries = facts.get(name)
    if not isinstance(entries, list) or not entries:
        raise refused(name, "is not a list of tensors")
    return [_object(entry, name) for entry in entries]


def _parameters(facts: Mapping[str, Any], subject: str) -> dict[str, Any]:
    found = facts.get("parameters")
    parameters = {} if found is None else _object(found, f"{subject}.parameters")
    require_supported(subject, parameters)
    return parameters


def _array(spec: TensorSpec, shape: tuple[int, ...], entry: Mapping[str, Any], tensors: _BinaryTensors) -> Array:
    parameters = _parameters(entry, spec.name)
    has_bytes, has_data = "binary_data_size" in parameters, "data" in entry
    if has_bytes == has_data:
        raise refused(spec.name, "has both data and binary_data_size" if has_data else "has no data")
    if has_bytes:
        return from_bytes(spec, shape, tensors.take(spec.name, parameters["binary_data_size"]))
    values = _flat(spec.name, entry["data"], shape)
    allowed = _JSON_TYPES[spec.dtype.kind]
    if wrong := {type(value) for value in values} - allowed:
        raise refused(spec.name, f"holds {_json_name(wrong.pop())}, the model takes {datatype_of(spec)}")
    try:
        with np.errstate(over="ignore"):  # becomes Inf, which the runner refuses
            return np.array(values, spec.dtype).reshape(shape)
    except OverflowError as exc:
        raise refused(spec.name, f"holds a number that is not one of {datatype_of(spec)}") from exc


def _json_name(kind: type) -> str:
    names = {bool: "true or false", str: "text", dict: "an object", list: "a list", int: "whole numbers"}
    return names.get(kind, "null" if kind is type(None) else "fractions")


def _flat(name: str, data: object, shape: tuple[int, ...]) -> list[Any]:
    """Return the numbers of a flat list, or of lists nested as the shape says."""
    if not isinstance(data, list):
        raise refused(name, "has data that is not a list")
    level, is_nested = data, bool(data) and isinstance(data[0], list)
    if is_nested:
        for axis, size in enumerate(shape):
            rows = [level] if axis == 0 else level
            if not all(isinstance(row, list) and len(row) == size for row in rows):
                raise refused(name, f"has data that is not nested as its shape {list(shape)}")
            level = list(itertools.chain.from_iterable(rows))
    if len(level) != math.prod(shape):
        raise refused(name, f"has {len(level)} numbers, its shape {list(shape)} takes {math.prod(shape)}")
    return level


def _requested(facts: Mapping[str, Any], outputs: Sequence[TensorSpec]) -> tuple[RequestedOutput, ...]:
    is_binary = _flag(_parameters(facts, "request"), "binary_data_output", otherwise=False)
    if facts.get("outputs") in (None, []):
        return tuple(RequestedOutput(spec.name, is_binary) for spec in outputs)
    found: dict[str, RequestedOutput] = {}
    for entry in _entries(facts, "outputs"):
        spec = requested_tensor(entry.get("name"), outputs, found, "output")
        own = _flag(_parameters(entry, spec.name), "binary_data", otherwise=is_binary)
        found[spec.name] = RequestedOutput(spec.name, own)
    return tuple(found.values())


def _flag(parameters: Mapping[str, Any], name: str, *, otherwise: bool) -> bool:
    value = parameters.get(name, otherwise)
    if not isinstance(value, bool):
        raise refused(name, f"is {printable(value)}, not true or false")
    return value
