"""The gRPC side of a server: the open inference protocol, in the event loop of the HTTP side."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from densenet_deploy.errors import ResourceError
from densenet_deploy.runtime.feeds import Array, TensorSpec
from densenet_deploy.serving.grpc_messages import PACKAGE, message_classes
from densenet_deploy.serving.open_inference import (
    VERSION,
    RequestError,
    checked_shape,
    datatype_of,
    from_bytes,
    refused,
    requested_tensor,
    require_all,
    require_supported,
    to_bytes,
)
from densenet_deploy.serving.service import Service

_SERVICE: Final = f"{PACKAGE}.GRPCInferenceService"
_CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}
_CONTENTS: Final = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


class GrpcServer:
    """A gRPC server of one model.

    Args:
        service: the model.
        address: `host:port`; port 0 takes a free one.
        max_message_bytes: of a request.
        shares_port: whether other processes listen there too.

    Attributes:
        port: where it listens.

    Raises:
        ResourceError: if the port is taken.
    """

    def __init__(self, service: Service, address: str, max_message_bytes: int, *, shares_port: bool = False) -> None:
        options = [("grpc.so_reuseport", int(shares_port)), ("grpc.max_receive_message_length", max_message_bytes)]
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((_Calls(service).handler(),))
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as exc:
            raise ResourceError(address, "cannot be listened on", "choose another --grpc-port") from exc

    async def start(self) -> None:
        """Begin to answer."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, and give those under way `grace_s` seconds."""
        await self._server.stop(grace_s)


class _Calls:
    """One method per call of the protocol."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._messages = message_classes()

    def handler(self) -> Any:
        calls: Mapping[str, Callable[[Any], Awaitable[Any]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
        }
        handlers = {name: self._handler(name, call) for name, call in calls.items()}
        return grpc.method_handlers_generic_handler(_SERVICE, handlers)

    def _handler(self, name: str, call: Callable[[Any], Awaitable[Any]]) -> Any:
        async def answer(request: bytes, context: Any) -> Any:
            try:
                with self._service.counted(f"grpc {name}"):
                    return await call(self._read(name, request))
            except RequestError as error:
                await context.abort(_CODES[error.status], str(error))

        return grpc.unary_unary_rpc_method_handler(
            answer,
            response_serializer=self._messages[f"{name}Response"].SerializeToString,
        )

    def _read(self, name: str, data: bytes) -> Any:
        try:
            return self._messages[f"{name}Request"].FromString(data)
        except DecodeError as exc:
            raise refused("message", f"is not a {name}Request") from exc

    async def _server_live(self, _request: Any) -> Any:
        return self._messages["ServerLiveResponse"](live=not self._service.is_stuck)

    async def _server_ready(self, _request: Any) -> Any:
        return self._messages["ServerReadyResponse"](ready=self._service.is_ready)

    async def _server_metadata(self, _request: Any) -> Any:
        facts = self._service.server_metadata()
        return self._messages["ServerMetadataResponse"](**{**facts, "extensions": ()})  # tensors are bytes in any case

    async def _model_ready(self, request: Any) -> Any:
        self._service.require_model(request.name, request.version)
        return self._messages["ModelReadyResponse"](ready=self._service.is_ready)

    async def _model_metadata(self, request: Any) -> Any:
        self._service.require_model(request.name, request.version)
        return self._messages["ModelMetadataResponse"](**self._service.model_metadata())

    async def _model_infer(self, request: Any) -> Any:
        service = self._service
        service.require_model(request.model_name, request.model_version)
        outputs = _requested(request, service.outputs)
        answer = await service.infer(read_feeds(request, service.inputs))
        tensors = [
            {"name": spec.name, "datatype": datatype_of(spec), "shape": answer[spec.name].shape} for spec in outputs
        ]
        return self._messages["ModelInferResponse"](
            model_name=service.name,
            model_version=VERSION,
            id=request.id,
            outputs=tensors,
            raw_output_contents=[to_bytes(answer[spec.name]) for spec in outputs],
        )


def read_feeds(request: Any, inputs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """Return the arrays of a ModelInferRequest, by input name.

    Raises:
        RequestError: if it is not a request for the model.
    """
    raw, count = request.raw_input_contents, len(request.inputs)
    require_supported("request", _parameters(request))
    if raw and len(raw) != count:
        raise refused("raw_input_contents", f"has {len(raw)} entries for {count} inputs")
    feeds: dict[str, Array] = {}
    for place, tensor in enumerate(request.inputs):
        spec = requested_tensor(tensor.name, inputs, feeds, "input")
        require_supported(spec.name, _parameters(tensor))
        shape = checked_shape(spec, tensor.datatype, list(tensor.shape))
        has_contents = tensor.contents.ByteSize() > 0
        if raw and has_contents:
            raise refused(spec.name, "has both contents and raw_input_contents")
        feeds[spec.name] = from_bytes(spec, shape, raw[place]) if raw else _from_contents(spec, shape, tensor.contents)
    require_all(inputs, feeds)
    return feeds


def _from_contents(spec: TensorSpec, shape: tuple[int, ...], contents: Any) -> Array:
    datatype = datatype_of(spec)
    field = _CONTENTS.get(datatype)
    others = [descriptor.name for descriptor, _ in contents.ListFields() if descriptor.name != field]
    if field is None or others:
        raise refused(spec.name, f"has {', '.join(others) or 'no data'}; {datatype} goes into {field or 'raw bytes'}")
    values = getattr(contents, field)
    if len(values) != math.prod(shape):
        raise refused(spec.name, f"has {len(values)} numbers, its shape is {list(shape)}")
    try:
        return np.array(list(values), spec.dtype).reshape(shape)
    except OverflowError as exc:
        raise refused(spec.name, f"holds a number that is not one of {datatype}") from exc


def _requested(request: Any, outputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    found: dict[str, TensorSpec] = {}
    for tensor in request.outputs:
        spec = requested_tensor(tensor.name, outputs, found, "output")
        require_supported(spec.name, _parameters(tensor))
        found[spec.name] = spec
    return tuple(found.values()) or outputs


def _parameters(message: Any) -> dict[str, Any]:
    return {entry.key: entry.value for entry in message.parameters}
