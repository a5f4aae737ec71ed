"""Read an ONNX file into the onnx package, refusing what is broken or reaches outside its folder."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import onnx

from densenet_deploy.artifacts import onnx_metadata, os_errors_about, require_data_within, require_file
from densenet_deploy.errors import ModelFileError

_QUANTIZATION_OPS: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_KNOWN_DOMAINS: Final = frozenset({"", "ai.onnx.ml", "com.microsoft"})


def load_onnx(path: Path) -> onnx.ModelProto:
    """Return the model with its external data, after checking it.

    External data are looked at before the onnx package, which would refuse links too, opens them.

    Raises:
        InputError: if there is no such file.
        ModelFileError: if it is no valid ONNX model, or its external data is missing, cut short or elsewhere.
    """
    require_file(path)
    onnx_metadata(path)  # refuses what is no ONNX envelope before a full parse
    require_data_within(path)
    with os_errors_about(path):
        with _refused(path, "is no valid ONNX model", "export or download it again"):
            model = onnx.load(path, load_external_data=False)
        with _refused(path, "its external data cannot be used", "put the data file itself, whole, beside the model"):
            onnx.load_external_data_for_model(model, str(path.parent))
    check_onnx(model, path)
    return model


def check_onnx(model: onnx.ModelProto, subject: object) -> None:
    """Check a model in memory, which `subject` names in errors.

    Raises:
        ModelFileError: if it is not a valid ONNX model, or holds operators that no backend here knows.
    """
    with _refused(subject, "is not a valid ONNX model", "export or download it again"):
        onnx.checker.check_model(model, full_check=True)
    _refuse_broken_names(model, subject)
    _refuse_unknown_operators(model, subject)


def image_size_of(model: onnx.ModelProto, path: Path) -> int:
    """Return the height and width in pixels of the images that `model` takes.

    Raises:
        ModelFileError: if it does not take one float (N, 3, S, S) input of fixed S.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) == 1 and inputs[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
        match [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]:
            case [_, 3, int(height), int(width)] if height == width > 0:
                return height
    found = ", ".join(map(_described, inputs)) or "no input"
    why = f"takes {found}, expected one float32 (N, 3, S, S) input"
    raise ModelFileError(path, why, "give an image classifier in NCHW layout")


def _described(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    sizes = (str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim)
    return f"{value.name} ({', '.join(sizes)}) {onnx.TensorProto.DataType.Name(tensor.elem_type).lower()}"


def has_quantization(model: onnx.ModelProto) -> bool:
    """Whether the graph holds Q/DQ nodes or integer operators (QLinearConv, ConvInteger, …)."""
    return any(
        node.op_type in _QUANTIZATION_OPS or node.op_type.startswith("QLinear") or node.op_type.endswith("Integer")
        for node in model.graph.node
    )


def operators(model: onnx.ModelProto) -> Mapping[str, int]:
    """Count the nodes of `model` by operator, most frequent first."""
    return dict(Counter(node.op_type for node in model.graph.node).most_common())


@contextlib.contextmanager
def _refused(subject: object, why: str, fix: str) -> Iterator[None]:
    """Turn what the onnx package raises inside the block into a ModelFileError that says its first line."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as exc:
        reason = str(exc).strip().partition("\n")[0] or type(exc).__name__
        raise ModelFileError(subject, f"{why}: {reason}", fix) from exc


def _refuse_broken_names(model: onnx.ModelProto, subject: object) -> None:
    """Refuse names that are not UTF-8: the checker lets them pass, and protobuf gives them as bytes."""
    graph = model.graph
    values = (*graph.initializer, *graph.input, *graph.output, *graph.value_info)
    names = [graph.name, *(value.name for value in values)]
    for node in graph.node:
        names += [node.name, node.op_type, node.domain, *node.input, *node.output]
    for name in names:
        if not isinstance(name, str):
            raise ModelFileError(
                subject, f"holds a name that is not UTF-8 text: {name!r}", "export or download it again"
            )


def _refuse_unknown_operators(model: onnx.ModelProto, subject: object) -> None:
    """Refuse what the checker lets pass: operator sets of the future, and domains that no backend here knows."""
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain == "" and opset.version > newest:
            why = f"is of opset {opset.version}, newer than {newest}, the newest known here"
            raise ModelFileError(subject, why, "upgrade the onnx package, or export with a lower --opset")
    own = {function.domain for function in model.functions}
    for node in model.graph.node:
        if node.domain not in _KNOWN_DOMAINS | own:
            why = f"holds the operator {node.op_type} of the unknown domain {node.domain}"
            raise ModelFileError(subject, why, "export it with standard operators")
