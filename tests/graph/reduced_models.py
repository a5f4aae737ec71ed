"""Questions that the tests of both 16-bit types ask about a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

from densenet_deploy.graph.onnx_file import load_onnx
from densenet_deploy.graph.reduced_precision import ReducedModel
from tests.graph.onnx_text import HEADER

FLOAT, FLOAT16, BFLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16


def graph_of(
    body: str, constants: Mapping[str, object], inputs: str, outputs: str, header: str = HEADER, check: bool = True
) -> onnx.ModelProto:
    """Parse a graph whose nodes are `body`, with float32 `constants`."""
    proto = onnx.parser.parse_model(f"{header} g ({inputs}) => ({outputs}) {{ {body} }}")
    tensors = [onnx.numpy_helper.from_array(np.array(array, np.float32), name) for name, array in constants.items()]
    proto.graph.initializer.extend(tensors)
    if check:
        onnx.checker.check_model(proto)
    return proto


def evaluate(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute `proto` with the evaluator of the onnx package, which rounds each tensor to the type that it has."""
    with np.errstate(all="ignore"):
        results = ReferenceEvaluator(proto).run(None, dict(feeds))
    return {value.name: array for value, array in zip(proto.graph.output, results, strict=True)}


def run_all(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute `model` as the product does, with all of ONNX Runtime's rewrites."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(feeds)), strict=True))


def results_of(reduced: ReducedModel, feeds: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Results of the onnx package, with every tensor rounded, and of ONNX Runtime, which has no BF16 Conv."""
    results = [evaluate(reduced.model, feeds)]
    is_bf16 = any(tensor.data_type == BFLOAT16 for tensor in reduced.model.graph.initializer)
    return results if is_bf16 else [*results, run_all(reduced.model, feeds)]


def cosine(reference: np.ndarray, candidate: np.ndarray) -> float:
    """The cosine of the angle between two arrays."""
    a, b = (array.astype(np.float64).ravel() for array in (reference, candidate))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def types_of(proto: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor, from the file or, where it holds none, inferred."""
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True).graph
    infos = (*inferred.value_info, *inferred.input, *inferred.output)
    stored = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    return {info.name: info.type.tensor_type.elem_type for info in infos} | stored


def casts(proto: onnx.ModelProto) -> list[tuple[str, str]]:
    """What each Cast reads and makes."""
    return [(node.input[0], node.output[0]) for node in proto.graph.node if node.op_type == "Cast"]


def useless_casts(proto: onnx.ModelProto) -> list[str]:
    """What Casts make that nothing reads, that was made before, or that undoes another Cast."""
    pairs = casts(proto)
    read = {name for node in proto.graph.node for name in node.input} | {value.name for value in proto.graph.output}
    made = {result for _, result in pairs}
    twice = [result for number, (origin, result) in enumerate(pairs) if origin in {o for o, _ in pairs[:number]}]
    return [result for origin, result in pairs if result not in read or origin in made] + twice


def node_named(proto: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """The node called `name`."""
    return next(node for node in proto.graph.node if node.name == name)


def saved(proto: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Write `proto` and read it as the product reads files."""
    onnx.save(proto, folder / "reduced.onnx")
    return load_onnx(folder / "reduced.onnx")
