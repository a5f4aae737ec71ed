"""The protocol: requests to arrays and arrays to answers, and each way in which a request can be wrong."""

import json

import numpy as np
import pytest

from densenet_deploy.errors import ModelFileError
from densenet_deploy.runtime.feeds import TensorSpec
from densenet_deploy.serving.open_inference import (
    DATATYPES,
    InferRequest,
    RequestedOutput,
    RequestError,
    checked_shape,
    datatype_of,
    from_bytes,
    metadata,
    read_request,
    to_bytes,
    write_answer,
)

X = TensorSpec("x", (None, 2), np.dtype(np.float32))
Y = TensorSpec("y", (None, 3), np.dtype(np.uint8))
OUT = (TensorSpec("a", (None, 2), np.dtype(np.float32)), TensorSpec("b", (None,), np.dtype(np.int64)))


def tensor(name="x", datatype="FP32", shape=(1, 2), **more):
    return {"name": name, "datatype": datatype, "shape": list(shape), **more}


def read(facts, data=b"", length=None, inputs=(X,)):
    head = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
    if length is None and data:
        length = str(len(head))
    return read_request(head + data, length, inputs, OUT)


def test_numbers_flat_and_nested_are_the_same_array() -> None:
    for data in ([1, 2.5], [[1, 2.5]]):
        request = read({"inputs": [tensor(data=data)]})
        assert request.feeds["x"].dtype == np.float32
        assert request.feeds["x"].tolist() == [[1.0, 2.5]]
        assert request.outputs == (RequestedOutput("a"), RequestedOutput("b"))
        assert request.id == ""


def test_bytes_of_several_tensors_are_taken_in_their_order() -> None:
    x, y = np.array([[1, -2]], np.float32), np.array([[1, 2, 255]], np.uint8)
    entries = [
        tensor("y", "UINT8", (1, 3), parameters={"binary_data_size": 3}),
        tensor(parameters={"binary_data_size": 8}),
    ]
    request = read({"id": "7", "inputs": entries}, y.tobytes() + x.tobytes(), inputs=(X, Y))
    assert request.id == "7"
    assert np.array_equal(request.feeds["x"], x)
    assert np.array_equal(request.feeds["y"], y)


def test_outputs_are_those_asked_for_in_that_order() -> None:
    asked = [{"name": "b", "parameters": {"binary_data": True}}, {"name": "a"}]
    request = read({"inputs": [tensor(data=[1, 2])], "outputs": asked})
    assert request.outputs == (RequestedOutput("b", is_binary=True), RequestedOutput("a"))
    whole = read({"inputs": [tensor(data=[1, 2])], "parameters": {"binary_data_output": True}})
    assert all(output.is_binary for output in whole.outputs)


ONE = [tensor(data=[1, 2])]
WRONG = [
    (b"", "is not JSON"),
    (b"{", "is not JSON"),
    (b"\xff\xfe", "is not JSON"),
    (b"[" * 100_000, "is not JSON"),
    (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [NaN, 1]}]}', "is not JSON"),
    (b"[]", "is not a JSON object"),
    ({}, "inputs: is not a list"),
    ({"inputs": []}, "inputs: is not a list"),
    ({"inputs": {"x": 1}}, "inputs: is not a list"),
    ({"inputs": [1]}, "is not a JSON object"),
    ({"inputs": [tensor("z", data=[1, 2])]}, "z: is not an input of the model: x"),
    ({"inputs": [tensor(["x"], data=[1, 2])]}, "is not an input"),
    ({"inputs": ONE * 2}, "x: comes twice"),
    ({"inputs": [tensor(datatype="FP16", data=[1, 2])]}, "has datatype FP16, the model takes FP32"),
    ({"inputs": [tensor(datatype=None, data=[1, 2])]}, "has datatype None"),
    ({"inputs": [tensor(shape=(1, -2), data=[1, 2])]}, "not a list of sizes"),
    ({"inputs": [tensor(shape=(True, 2), data=[1, 2])]}, "not a list of sizes"),
    ({"inputs": [tensor(shape=(1.0, 2), data=[1, 2])]}, "not a list of sizes"),
    ({"inputs": [tensor(shape=(2**47, 2), data=[1, 2])]}, "sizes that memory holds"),
    ({"inputs": [tensor(shape=(0, 2**24, 2**24), data=[])]}, "sizes that memory holds"),
    ({"inputs": [tensor(shape=[1] * 33, data=[1])]}, "not a list of sizes"),
    ({"inputs": [{**tensor(data=[1, 2]), "shape": "1,2"}]}, "not a list of sizes"),
    ({"inputs": [tensor()]}, "has no data"),
    ({"inputs": [tensor(data=[1, 2], parameters={"binary_data_size": 8})]}, "both"),
    ({"inputs": [tensor(data=3)]}, "not a list"),
    ({"inputs": [tensor(data=[1])]}, "has 1 numbers, its shape [1, 2] takes 2"),
    ({"inputs": [tensor(data=[1, 2, 3])]}, "has 3 numbers"),
    ({"inputs": [tensor(data=[[1], [2]])]}, "not nested as its shape"),
    ({"inputs": [tensor(data=[[1, 2], 3])]}, "not nested as its shape"),
    ({"inputs": [tensor(data=[1, [2]])]}, "holds a list"),
    ({"inputs": [tensor(data=["1", 2])]}, "holds text"),
    ({"inputs": [tensor(data=[True, 2])]}, "holds true or false"),
    ({"inputs": [tensor(data=[None, 2])]}, "holds null"),
    ({"inputs": [tensor(data=[10**400, 2])]}, "not one of FP32"),
    ({"inputs": ONE, "outputs": [{"name": "c"}]}, "c: is not an output of the model: a, b"),
    ({"inputs": ONE, "outputs": [{"name": "a"}, {"name": "a"}]}, "comes twice"),
    ({"inputs": ONE, "outputs": [{"name": "a", "parameters": {"binary_data": 1}}]}, "not true or false"),
    ({"inputs": ONE, "outputs": [{"name": "a", "parameters": {"classification": 3}}]}, "classification"),
    ({"inputs": [tensor(data=[1, 2], parameters={"shared_memory_region": "r"})]}, "shared_memory_region"),
    ({"inputs": ONE, "parameters": []}, "is not a JSON object"),
    ({"inputs": ONE, "id": 7}, "id: is not text"),
]


@pytest.mark.parametrize(("facts", "why"), WRONG)
def test_a_wrong_request_is_refused_with_its_reason(facts, why) -> None:
    with pytest.raises(RequestError) as caught:
        read(facts)
    assert why in str(caught.value)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("data", "why"),
    [([1, 2, 256], "not one of UINT8"), ([1, 2, -1], "not one of UINT8"), ([1, 2, 3.0], "holds fractions")],
)
def test_whole_numbers_are_not_cut(data, why) -> None:
    with pytest.raises(RequestError, match=why):
        read({"inputs": [tensor("y", "UINT8", (1, 3), data=data)]}, inputs=(Y,))


def test_an_input_that_is_missing_is_named() -> None:
    with pytest.raises(RequestError, match="y: is an input of the model, and is missing"):
        read({"inputs": ONE}, inputs=(X, Y))


def binary(size):
    return {"inputs": [tensor(parameters={"binary_data_size": size})]}


@pytest.mark.parametrize(
    ("size", "data", "length", "why"),
    [
        (8, bytes(7), None, "has binary_data_size 8, the body has 7 bytes left"),
        (8, bytes(9), None, "has 1 bytes that belong to no tensor"),
        (7, bytes(7), None, "has 7 bytes, [1, 2] FP32 takes 8"),
        (-8, bytes(8), None, "not a size"),
        (True, bytes(8), None, "not a size"),
        ("8", bytes(8), None, "not a size"),
        (8, bytes(8), "99999", "Inference-Header-Content-Length: is 99999"),
        (8, bytes(8), "-1", "Inference-Header-Content-Length"),
        (8, bytes(8), "1e2", "Inference-Header-Content-Length"),
        (8, bytes(8), "٣", "Inference-Header-Content-Length"),
        (8, bytes(8), "", "Inference-Header-Content-Length"),
        (8, bytes(8), "9" * 5000, "Inference-Header-Content-Length"),
        (8, bytes(8), "10", "is not JSON"),
    ],
)
def test_bytes_are_counted(size, data, length, why) -> None:
    with pytest.raises(RequestError) as caught:
        read(binary(size), data, length)
    assert why in str(caught.value)


def test_bytes_behind_json_need_the_header() -> None:
    head = json.dumps(binary(8)).encode()
    with pytest.raises(RequestError, match="is not JSON"):
        read_request(head + bytes(8), None, (X,), OUT)
    assert read(binary(8), bytes(8)).feeds["x"].tolist() == [[0, 0]]


def test_an_answer_is_read_back_to_its_bits() -> None:
    answer = {"a": np.array([[0.1, -3e-39]], np.float32), "b": np.array([2**60], np.int64)}
    outputs = (RequestedOutput("a"), RequestedOutput("b", is_binary=True))
    body, length = write_answer("m", InferRequest({}, outputs, "id-7"), answer)
    facts = json.loads(body[:length])
    assert (facts["model_name"], facts["model_version"], facts["id"]) == ("m", "1", "id-7")
    first, second = facts["outputs"]
    assert (first["datatype"], first["shape"]) == ("FP32", [1, 2])
    assert np.array(first["data"], np.float32).tobytes() == answer["a"].tobytes()
    assert second == {"name": "b", "datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": 8}}
    assert body[length:] == answer["b"].tobytes()
    plain, length = write_answer("m", InferRequest({}, outputs[:1]), answer)
    assert length is None
    assert "id" not in json.loads(plain)


def test_json_does_not_carry_nan_and_bytes_do() -> None:
    answer = {"a": np.array([[np.nan, 1]], np.float32)}
    with pytest.raises(ModelFileError, match="NaN"):
        write_answer("m", InferRequest({}, (RequestedOutput("a"),)), answer)
    body, length = write_answer("m", InferRequest({}, (RequestedOutput("a", is_binary=True),)), answer)
    assert body[length:] == answer["a"].tobytes()


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_goes_through_its_bytes(datatype) -> None:
    spec = TensorSpec("x", (None,), DATATYPES[datatype])
    assert datatype_of(spec) == datatype
    array = np.array([0, 1, 1], spec.dtype)
    assert np.array_equal(from_bytes(spec, (3,), to_bytes(array)), array)
    assert from_bytes(spec, (3,), to_bytes(array)).dtype == spec.dtype


def test_a_bool_is_0_or_1() -> None:
    spec = TensorSpec("x", (None,), np.dtype(np.bool_))
    with pytest.raises(RequestError, match="other than 0 and 1"):
        from_bytes(spec, (2,), b"\x01\x02")


def test_metadata_names_types_and_what_may_vary() -> None:
    assert metadata("m", "p", (X,), OUT) == {
        "name": "m",
        "versions": ["1"],
        "platform": "p",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [
            {"name": "a", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "b", "datatype": "INT64", "shape": [-1]},
        ],
    }
    with pytest.raises(ModelFileError, match="does not name"):
        metadata("m", "p", (TensorSpec("x", (1,), np.dtype("complex64")),), OUT)


def test_only_a_shape_of_more_numbers_than_numpy_counts_is_refused_before_its_data() -> None:
    assert checked_shape(X, "FP32", [0, 2**24, 2**24 - 1]) == (0, 2**24, 2**24 - 1)
    np.empty((0, 2**24, 2**24 - 1), np.float64)
    with pytest.raises(RequestError, match="memory"):
        checked_shape(X, "FP32", [0, 2**24, 2**24])
