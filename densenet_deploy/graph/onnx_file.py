"""Read an ONNX file, refusing one that is broken or reaches outside its folder, and answer questions about it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

import onnx

from densenet_deploy.artifacts import Artifact, os_errors_about, require_data_within, require_file
from densenet_deploy.errors import ModelFileError
from densenet_deploy.manifest import ImageShape
from densenet_deploy.runtime.batching import IMAGE_CHANNELS, is_nhwc, why_not_images

_QUANTIZATION_OPS: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_CONVERSIONS: Final = ("QuantizeLinear", "DequantizeLinear")
_OPTIMIZED_DOMAINS: Final = frozenset({"com.microsoft.nchwc", "com.ms.internal.nhwc"})
_KNOWN_DOMAINS: Final = frozenset({"", "ai.onnx.ml", "com.microsoft"})


def load_onnx(source: Artifact | Path) -> onnx.ModelProto:
    """Return the model of a file with its external data, or of one in memory, after checking it.

    Raises:
        InputError, ModelFileError: as `read_onnx` and `check_onnx`.
    """
    model = read_onnx(source)
    check_onnx(model, source.path if isinstance(source, Artifact) else source)
    return model


def read_onnx(source: Artifact | Path) -> onnx.ModelProto:
    """Return the model of a file with its external data, or of one in memory; the graph is not checked.

    External data is checked before the onnx package opens it, which would refuse links too.

    Raises:
        InputError: if the file does not exist.
        ModelFileError: if it cannot be parsed, or its external data is missing, cut short or elsewhere.
    """
    if isinstance(source, Artifact) and source.data is not None:
        with invalid_onnx_refused(source.path):
            return onnx.load_from_string(source.data)
    path = source.path if isinstance(source, Artifact) else source
    require_file(path)
    require_data_within(path)  # refuses anything but an ONNX envelope before a full parse
    with os_errors_about(path):
        with invalid_onnx_refused(path):
            model = onnx.load(path, load_external_data=False)
        with _refused(path, "its external data cannot be used", "put the complete data file beside the model"):
            onnx.load_external_data_for_model(model, str(path.parent))
    return model


def check_onnx(model: onnx.ModelProto, subject: object) -> None:
    """Check a model in memory, which `subject` names in errors.

    Raises:
        ModelFileError: if it is not a valid ONNX model, or holds operators that no backend here knows.
    """
    with invalid_onnx_refused(subject):
        onnx.checker.check_model(model, full_check=True)
    _refuse_broken_names(model, subject)
    refuse_optimized(model, subject)
    _refuse_unknown_operators(model, subject)


def refuse_optimized(model: onnx.ModelProto, subject: object) -> None:
    """Refuse a graph that ONNX Runtime saved after optimizing it for one machine: only ONNX Runtime runs that.

    Raises:
        ModelFileError: naming the first operator that it put in.
    """
    for node in model.graph.node:
        if node.domain in _OPTIMIZED_DOMAINS or (node.domain == "com.microsoft" and node.op_type.startswith("Fused")):
            why = f"was optimized by ONNX Runtime: it holds {node.op_type} ({node.domain})"
            raise ModelFileError(subject, why, "give the original file, from before the optimization")


def image_shape_of(model: onnx.ModelProto, subject: object) -> ImageShape:
    """Return (channels, height, width) of the images that `model` takes; None for what may vary.

    Raises:
        ModelFileError: if it does not take one input, float (N, C, H, W) or uint8 (N, H, W, C).
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    shapes = [[dim.dim_value or None for dim in value.type.tensor_type.shape.dim] for value in inputs]
    kinds = [value.type.tensor_type.elem_type for value in inputs]
    if kinds == [onnx.TensorProto.FLOAT] and len(shapes[0]) == 4 and not is_nhwc(shapes[0]):
        _, channels, height, width = shapes[0]
        return channels, height, width
    if kinds == [onnx.TensorProto.UINT8] and len(shapes[0]) == 4 and shapes[0][1] not in IMAGE_CHANNELS:
        _, height, width, channels = shapes[0]
        return channels, height, width
    found = ", ".join(map(_described, inputs)) or "no input"
    why, fix = why_not_images(shapes)
    raise ModelFileError(subject, f"takes {found}, which is {why}", fix)


def with_image_size(model: onnx.ModelProto, height: int, width: int) -> onnx.ModelProto:
    """Return a copy of `model`, which takes images of any size, for this size alone; shapes are inferred anew."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {tensor.name for tensor in copy.graph.initializer}
    image = next(value for value in copy.graph.input if value.name not in stored)
    dims = image.type.tensor_type.shape.dim
    first = 1 if image.type.tensor_type.elem_type == onnx.TensorProto.UINT8 else 2
    dims[first].dim_value, dims[first + 1].dim_value = height, width
    del copy.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(copy)


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


def expose_values(model: onnx.ModelProto, names: Collection[str] | None = None) -> onnx.ModelProto:
    """Return a copy of `model` with its inner values `names` as outputs, in execution order, for any backend to show.

    Without names these are the outputs of all nodes but Q/DQ nodes, which only convert other values.

    A backend cannot fuse across such an output, so rounding may differ from the deployed graph's in the last bits.
    """
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    known = {info.name: info for info in (*model.graph.value_info, *model.graph.output)}
    made = [
        name
        for node in model.graph.node
        for name in node.output
        if name and (name in names if names is not None else node.op_type not in _CONVERSIONS)
    ]
    del exposed.graph.output[:]
    exposed.graph.output.extend(known.get(name) or onnx.helper.make_empty_tensor_value_info(name) for name in made)
    return exposed


def keep_what_makes(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Drop what the values `names` do not depend on: the nodes, which ONNX Runtime computes too, and constants."""
    needed, kept = set(names), []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(_read_by(node))
            kept.append(node)
    kept.reverse()
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)
    needed.update(value.name for value in graph.input)
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name not in needed:
            del graph.initializer[place]


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that `node` and the nodes inside its branches read."""
    yield from node.input
    for attribute in node.attribute:
        for branch in (attribute.g, *attribute.graphs):
            for inner in branch.node:
                yield from _read_by(inner)
            yield from (value.name for value in branch.output)  # a branch may hand on a value from outside


@contextlib.contextmanager
def invalid_onnx_refused(subject: object) -> Iterator[None]:
    """Turn an error of the onnx packages inside the block into a ModelFileError about `subject`."""
    with _refused(subject, "is not a valid ONNX model", "export or download it again"):
        yield


@contextlib.contextmanager
def _refused(subject: object, why: str, fix: str) -> Iterator[None]:
    """Turn an error of the onnx package inside the block into a ModelFileError with its first line."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as exc:
        first: BaseException = exc
        while first.__cause__ is not None:  # onnx-ir says where it was, and in the cause what was wrong
            first = first.__cause__
        reason = str(first).strip().partition("\n")[0] or type(first).__name__
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
    """Refuse what the checker lets pass: unknown newer operator sets, and domains that no backend here knows."""
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
