"""The float32 file that roads into other precisions start from, and its graph after the exact passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import ModelFileError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.preprocess import default_preprocessing

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


def load_float(artifact: Artifact) -> onnx.ModelProto:
    """Return the model of a float32 ONNX file.

    Raises:
        ModelFileError: if it is no ONNX file, or quantized, or holds 16-bit floats.
    """
    from densenet_deploy.graph.onnx_file import has_quantization, load_onnx

    if artifact.kind != "onnx":
        raise ModelFileError(artifact.path, f"is an {artifact.kind} file", "give a float32 .onnx file")
    proto = load_onnx(artifact.path)
    if has_quantization(proto):
        raise ModelFileError(artifact.path, "is already quantized", "give the float32 file it was made from")
    if artifact.precision != "fp32":
        raise ModelFileError(artifact.path, f"holds {artifact.precision} weights", "give the float32 file")
    return proto


def preprocessing_of(artifact: Artifact, proto: onnx.ModelProto) -> Preprocessing:
    """Return how images are prepared: as the file says, or ImageNet's way for a stranger's.

    Raises:
        ModelFileError: if the model does not take one float (N, 3, S, S) input of fixed S.
    """
    from densenet_deploy.graph.onnx_file import image_size_of

    size = image_size_of(proto, artifact.path)
    return artifact.manifest.preprocessing if artifact.manifest is not None else default_preprocessing(size)


def with_exact_passes(proto: onnx.ModelProto) -> ir.Model:
    """Return the graph after the exact passes, with shapes inferred and a name for every node."""
    import onnx
    import onnx_ir

    from densenet_deploy.graph.graph_pass import EXACT, apply_passes

    graph = onnx_ir.from_proto(proto)
    apply_passes(graph, EXACT)
    graph = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(onnx_ir.to_proto(graph)))  # recipes count channels
    for node in graph.graph:
        node.name = node.name or str(node.outputs[0].name)  # layers are told apart by name
    return graph
