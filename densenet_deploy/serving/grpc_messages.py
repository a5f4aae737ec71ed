"""The messages of the open inference protocol over gRPC, described here and built by protobuf at run time.

The published `.proto` would need a compiler at build time, or a generated file that is tied to one version of protobuf.
What this server does not read or write (statistics, repositories, streams) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE: Final = "inference"

_TENSOR_METADATA: Final = {"name": "string 1", "datatype": "string 2", "shape": "repeated int64 3"}

_MESSAGES: Final[Mapping[str, Mapping[str, str]]] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": "bool 1"},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": "bool 1"},
    "ModelReadyRequest": {"name": "string 1", "version": "string 2"},
    "ModelReadyResponse": {"ready": "bool 1"},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {"name": "string 1", "version": "string 2", "extensions": "repeated string 3"},
    "ModelMetadataRequest": {"name": "string 1", "version": "string 2"},
    "ModelMetadataResponse": {
        "name": "string 1",
        "versions": "repeated string 2",
        "platform": "string 3",
        "inputs": "repeated TensorMetadata 4",
        "outputs": "repeated TensorMetadata 5",
    },
    "TensorMetadata": _TENSOR_METADATA,
    "InferParameter": {
        "bool_param": "bool 1",
        "int64_param": "int64 2",
        "string_param": "string 3",
        "double_param": "double 4",
        "uint64_param": "uint64 5",
    },
    "InferTensorContents": {
        "bool_contents": "repeated bool 1",
        "int_contents": "repeated int32 2",
        "int64_contents": "repeated int64 3",
        "uint_contents": "repeated uint32 4",
        "uint64_contents": "repeated uint64 5",
        "fp32_contents": "repeated float 6",
        "fp64_contents": "repeated double 7",
        "bytes_contents": "repeated bytes 8",
    },
    "ParametersEntry": {"key": "string 1", "value": "InferParameter 2"},
    "InferInputTensor": {
        "name": "string 1",
        "datatype": "string 2",
        "shape": "repeated int64 3",
        "parameters": "repeated ParametersEntry 4",
        "contents": "InferTensorContents 5",
    },
    "InferRequestedOutputTensor": {"name": "string 1", "parameters": "repeated ParametersEntry 2"},
    "InferOutputTensor": {"name": "string 1", "datatype": "string 2", "shape": "repeated int64 3"},
    "ModelInferRequest": {
        "model_name": "string 1",
        "model_version": "string 2",
        "id": "string 3",
        "parameters": "repeated ParametersEntry 4",
        "inputs": "repeated InferInputTensor 5",
        "outputs": "repeated InferRequestedOutputTensor 6",
        "raw_input_contents": "repeated bytes 7",
    },
    "ModelInferResponse": {
        "model_name": "string 1",
        "model_version": "string 2",
        "id": "string 3",
        "outputs": "repeated InferOutputTensor 5",
        "raw_output_contents": "repeated bytes 6",
    },
}
"""Message → field → type and number. On the wire a map is a list of entries, and nesting does not show."""


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package=PACKAGE, syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, text in fields.items():
            *repeated, kind, number = text.split()
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            entry = message.field.add(name=field, number=int(number), label=label)
            if kind in _MESSAGES:
                entry.type, entry.type_name = kinds.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
            else:
                entry.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    return file


def message_classes() -> dict[str, Any]:
    """Return the classes by name, in a pool of their own: a client in the same process has messages of these names."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in _MESSAGES
    }
