"""Which classifiers are stored as FP16, and that they compute what the rounded weights say."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from densenet_deploy.quantization.half_classifier import halve

ROWS, COLUMNS = 256, 256  # as few as are worth a node


def _weight(rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


def _model(weight: np.ndarray) -> ir.Model:
    """One Gemm, f (N, C) to y."""
    rows, columns = weight.shape
    kind = "double" if weight.dtype == np.float64 else "float"
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 17]>\n'
        f"g ({kind}[N,{columns}] f) => ({kind}[N,{rows}] y) {{ y = Gemm<transB=1>(f, w) }}"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return ir.from_proto(proto)


def _halved(weight: np.ndarray) -> tuple[bool, ir.Model]:
    model = _model(weight)
    (gemm,) = model.graph
    return halve(model.graph, gemm), model


def test_the_file_holds_half_of_the_bytes_and_computes_with_the_rounded_weights():
    weight, pixels = _weight(), np.random.default_rng(1).standard_normal((3, COLUMNS)).astype(np.float32)
    is_half, model = _halved(weight)
    assert is_half
    assert [node.op_type for node in model.graph] == ["Cast", "Gemm"]
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    used = {name for node in proto.graph.node for name in node.input}
    stored = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    assert [(one.data_type, tuple(one.dims)) for one in stored] == [(onnx.TensorProto.FLOAT16, weight.shape)]
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = pixels @ weight.astype(np.float16).astype(np.float32).T
    np.testing.assert_allclose(session.run(None, {"f": pixels})[0], wanted, rtol=1e-5, atol=1e-4)


def test_a_small_classifier_stays():
    assert not _halved(_weight(ROWS - 1))[0]
    assert _halved(_weight(ROWS))[0]


@pytest.mark.parametrize("axis", [0, 1], ids=["a class", "an input"])
@pytest.mark.parametrize(
    ("factor", "is_half"),
    [(1.0, True), (2.0**-14, True), (2.0**-24, False), (0.0, True), (2.0**13, True), (2.0**16, False)],
    ids=["as others", "near the smallest", "below FP16's steps", "dead", "near the largest", "beyond FP16"],
)
def test_each_class_and_each_input_keeps_60_db(factor, is_half, axis):
    weight = _weight()
    weight[(slice(None),) * axis + (7,)] *= np.float32(factor)
    found, model = _halved(weight)
    assert found == is_half
    assert len(list(model.graph)) == (2 if is_half else 1)


def test_the_limit_is_a_millionth_of_the_power():
    """One number between two FP16 numbers, 2^-24 apart: off by 0.4 of that."""
    for share, is_half in ((399.4, False), (401.4, True)):
        weight = np.zeros((ROWS, COLUMNS), np.float32)
        weight[3, 5] = share * 2.0**-24
        assert _halved(weight)[0] == is_half, share


def test_nan_and_computed_weights_stay():
    weight = _weight()
    weight[1, 1] = np.nan
    assert not _halved(weight)[0]
    model = _model(_weight())
    (gemm,) = model.graph
    negated = ir.node("Neg", [gemm.inputs[1]])
    model.graph.insert_before(gemm, negated)
    gemm.replace_input_with(1, negated.outputs[0])
    assert not halve(model.graph, gemm)


def test_what_is_not_float32_stays():
    assert not _halved(_weight().astype(np.float64))[0]
