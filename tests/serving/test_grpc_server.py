"""A server over gRPC, judged by Triton's client: answers, metadata, refusals."""

import numpy as np
import pytest
from grpc import RpcError, insecure_channel
from tritonclient import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from densenet_deploy.errors import ModelFileError, ResourceError
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.feeds import TensorSpec
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.serving.dynamic_batching import QueueOptions
from densenet_deploy.serving.grpc_server import GrpcServer
from densenet_deploy.serving.service import Service
from tests.serving.servers import WAIT_S, rows_runner, serving

ROWS = np.array([[1, 2]], np.float32)


@pytest.fixture(scope="module")
def server(digits_onnx):
    runner = open_runner(digits_onnx)
    service = Service("digits", runner, Classifier(runner), QueueOptions(max_delay_s=0.001))
    with serving(service, grpc_port=0, max_body_mib=1) as server:
        server.path = digits_onnx
        yield server


@pytest.fixture
def client(server):
    with grpc.InferenceServerClient(server.grpc) as client:
        yield client


def images(count=1):
    return np.random.default_rng(count).standard_normal((count, 3, 32, 32), np.float32)


def tensor(array, name="input", datatype="FP32"):
    found = grpc.InferInput(name, array.shape, datatype)
    found.set_data_from_numpy(array)
    return found


def refusal(call):
    with pytest.raises(InferenceServerException) as caught:
        call()
    assert "Traceback" not in caught.value.message()
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


@pytest.mark.parametrize("count", [1, 3])
def test_answers_have_the_bits_of_the_runner(server, client, count) -> None:
    answer = client.infer("digits", [tensor(images(count))], request_id="7")
    with open_runner(server.path) as runner:
        assert np.array_equal(answer.as_numpy("logits"), runner.run(images(count))["logits"])
    response = answer.get_response()
    assert (response.id, response.model_name, response.model_version) == ("7", "digits", "1")


def test_health_and_metadata(client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert client.get_server_metadata().name == "densenet-deploy"
    model = client.get_model_metadata("digits")
    assert (model.name, list(model.versions)) == ("digits", ["1"])
    assert [(one.name, one.datatype, list(one.shape)) for one in model.inputs] == [("input", "FP32", [-1, 3, 32, 32])]
    assert [(one.name, one.datatype, list(one.shape)) for one in model.outputs] == [("logits", "FP32", [-1, 10])]


def test_a_server_that_is_not_ready_says_so(server, client) -> None:
    server.service.is_open = False
    try:
        assert not client.is_server_ready()
        assert not client.is_model_ready("digits")
        assert client.is_server_live()
    finally:
        server.service.is_open = True


def test_wrong_requests_are_refused_with_their_reason(client) -> None:
    nan = images()
    nan[0, 0, 0, 0] = np.nan
    wrong = {
        "holds NaN or Inf; feed finite values": lambda: client.infer("digits", [tensor(nan)]),
        "has shape (1, 3, 16, 16)": lambda: client.infer("digits", [tensor(images()[:, :, :16, :16])]),
        "z: is not an input": lambda: client.infer("digits", [tensor(images(), "z")]),
        "has datatype FP64": lambda: client.infer("digits", [tensor(images().astype(np.float64), datatype="FP64")]),
        "y: is not an output": lambda: client.infer(
            "digits", [tensor(images())], outputs=[grpc.InferRequestedOutput("y")]
        ),
        "classification": lambda: client.infer(
            "digits", [tensor(images())], outputs=[grpc.InferRequestedOutput("logits", class_count=3)]
        ),
        "comes twice": lambda: client.infer("digits", [tensor(images()), tensor(images())]),
        "is missing": lambda: client.infer("digits", []),
    }
    for sentence, call in wrong.items():
        code, message = refusal(call)
        assert (code, sentence in message) == ("INVALID_ARGUMENT", True), message
    for call in (
        lambda: client.infer("other", [tensor(images())]),
        lambda: client.infer("digits", [tensor(images())], model_version="2"),
        lambda: client.get_model_metadata("../digits"),
    ):
        assert refusal(call)[0] == "NOT_FOUND"
    assert refusal(lambda: client.infer("digits", [tensor(images(100))]))[0] == "RESOURCE_EXHAUSTED"  # over 1 MiB
    assert client.infer("digits", [tensor(images())]).as_numpy("logits").shape == (1, 10)


def message(datatype="FP32", shape=(1, 2), raw=(), **contents):
    request = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=raw)
    entry = request.inputs.add(name="input", datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(entry.contents, field).extend(values)
    return request


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("FP32", "fp32_contents", [1.5, 2]),
        ("FP64", "fp64_contents", [1.5, 2]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT64", "int64_contents", [2**62, -1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT64", "uint64_contents", [2**63, 1]),
        ("BOOL", "bool_contents", [True, False]),
    ],
)
def test_typed_contents_are_the_array(datatype, field, values) -> None:
    from densenet_deploy.serving.grpc_messages import message_classes
    from densenet_deploy.serving.grpc_server import read_feeds
    from densenet_deploy.serving.open_inference import DATATYPES

    spec = TensorSpec("input", (None, 2), DATATYPES[datatype])
    sent = message(datatype, **{field: values}).SerializeToString()
    (array,) = read_feeds(message_classes()["ModelInferRequest"].FromString(sent), (spec,)).values()
    assert array.dtype == spec.dtype
    assert array.tolist() == [values]


@pytest.fixture(scope="module")
def raw():
    """A server of a model that doubles, and the calls of the protocol as they are."""
    import grpc as grpcio

    def double(feeds):
        if (feeds["input"] == 7).any():
            raise ModelFileError("m", "does not like 7", "send another number")
        return {"output": feeds["input"] * 2}

    service = Service("m", rows_runner(double), "no images", QueueOptions(max_delay_s=0))
    with serving(service, grpc_port=0) as server, grpcio.insecure_channel(server.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def test_typed_contents_are_answered(raw) -> None:
    response = raw.ModelInfer(message(fp32_contents=[1, 2]))
    assert np.frombuffer(response.raw_output_contents[0], np.float32).tolist() == [2, 4]
    assert [(one.name, one.datatype, list(one.shape)) for one in response.outputs] == [("output", "FP32", [1, 2])]


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (message(fp32_contents=[1]), "has 1 numbers"),
        (message(fp32_contents=[1, 2, 3]), "has 3 numbers"),
        (message(fp64_contents=[1, 2]), "has fp64_contents; FP32 goes into fp32_contents"),
        (message(), "has 0 numbers"),
        (message(raw=[bytes(8), bytes(8)]), "has 2 entries for 1 inputs"),
        (message(raw=[bytes(7)]), "has 7 bytes, [1, 2] FP32 takes 8"),
        (message(raw=[bytes(8)], fp32_contents=[1, 2]), "has both contents and raw_input_contents"),
        (message(shape=(-1, 2), fp32_contents=[1, 2]), "not a list of sizes"),
        (message(shape=(2**62, 2), fp32_contents=[1, 2]), "sizes that memory holds"),
    ],
)
def test_wrong_contents_are_refused(raw, request_, why) -> None:
    import grpc as grpcio

    with pytest.raises(grpcio.RpcError) as caught:
        raw.ModelInfer(request_)
    assert caught.value.code() == grpcio.StatusCode.INVALID_ARGUMENT
    assert why in caught.value.details()


def test_a_model_that_fails_is_internal_and_the_server_goes_on(raw) -> None:
    import grpc as grpcio

    with pytest.raises(grpcio.RpcError) as caught:
        raw.ModelInfer(message(fp32_contents=[7, 7]))
    assert caught.value.code() == grpcio.StatusCode.INTERNAL
    assert caught.value.details() == "model: m: does not like 7; send another number"
    assert raw.ModelInfer(message(fp32_contents=[1, 2])).model_name == "m"


def test_a_port_that_is_taken_is_an_error(server) -> None:
    import asyncio

    async def again():
        GrpcServer(server.service, server.grpc, 1)

    with pytest.raises(ResourceError, match="--grpc-port"):
        asyncio.run(again())


def test_bytes_that_are_not_a_message_are_refused(server) -> None:
    with insecure_channel(server.grpc) as channel, pytest.raises(RpcError) as caught:
        channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\xff\xff", timeout=WAIT_S)
    assert caught.value.code().name == "INVALID_ARGUMENT"
    assert caught.value.details() == "request: message: is not a ModelInferRequest"
