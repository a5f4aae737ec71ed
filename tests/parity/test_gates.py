"""Gates: how they are read, on which side of the limit they pass, and how a missed one is reported."""

import numpy as np
import pytest

from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.parity.compare import compare
from densenet_deploy.parity.gates import DEFAULT_GATES, Gate, failed_gates, first_divergence, parse_gate

REFERENCE = np.eye(8)
CLOSE = compare(REFERENCE, REFERENCE + 0.01)
IDENTICAL = compare(REFERENCE, REFERENCE)


def test_a_gate_is_read_as_written():
    assert parse_gate("cosine=0.9999") == Gate("cosine", 0.9999)
    assert parse_gate("sqnr_db = 30") == Gate("sqnr_db", 30.0)


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        parse_gate("cosin=0.9")
    assert caught.value.subject == "cosin"
    assert "'cosine'" in str(caught.value)


@pytest.mark.parametrize("text", ["cosine", "cosine=", "cosine=high", "", "=0.9"])
def test_a_malformed_gate_is_refused(text):
    with pytest.raises(UsageError):
        parse_gate(text)


@pytest.mark.parametrize("text", ["cosine=1.1", "cosine=nan", "top1_agreement=99", "max_abs=-1", "sqnr_db=inf"])
def test_a_limit_out_of_range_is_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_gate(text)
    assert caught.value.subject.startswith(text.partition("=")[0])


@pytest.mark.parametrize(
    ("metric", "kept", "missed"),
    [
        ("cosine", CLOSE.cosine, 0.99999),
        ("sqnr_db", CLOSE.sqnr_db, 60.0),
        ("max_abs", CLOSE.max_abs, 0.009),
        ("mean_abs", CLOSE.mean_abs, 0.009),
        ("max_rel", CLOSE.max_rel, 0.009),
        ("mean_rel", CLOSE.mean_rel, 0.009),
    ],
)
def test_a_limit_that_is_just_reached_passes_and_a_stricter_one_does_not(metric, kept, missed):
    assert failed_gates(CLOSE, [Gate(metric, kept)]) == ()
    (sentence,) = failed_gates(CLOSE, [Gate(metric, missed)])
    assert metric in sentence
    assert f"{getattr(CLOSE, metric):.7g}" in sentence
    assert f"{missed:.7g}" in sentence


def test_agreements_must_be_reached():
    parity = compare(np.eye(8), np.roll(np.eye(8), 1, axis=1))
    assert len(failed_gates(parity, [Gate("top1_agreement", 0.5), Gate("top5_agreement", 1.0)])) == 2
    assert failed_gates(CLOSE, [Gate("top1_agreement", 1.0), Gate("top5_agreement", 1.0)]) == ()


def test_identical_outputs_pass_any_sqnr():
    assert failed_gates(IDENTICAL, [Gate("sqnr_db", 1e6)]) == ()


def test_a_metric_that_is_not_defined_does_not_pass():
    (sentence,) = failed_gates(compare(np.ones((2, 3, 4)), np.ones((2, 3, 4))), [Gate("top1_agreement", 0.0)])
    assert sentence.startswith("top1_agreement")


def test_nonfinite_values_fail_without_any_gate():
    candidate = REFERENCE.copy()
    candidate[0, 0] = np.nan
    assert failed_gates(compare(REFERENCE, candidate), []) == ("1 of 64 values are NaN or infinite, required none",)


@pytest.mark.parametrize(("precision", "smallest_failing"), [("fp32", 0.01), ("fp16", 0.02), ("bf16", 0.06)])
def test_default_gates_admit_a_third_of_the_error_that_they_refuse(precision, smallest_failing):
    """White relative error ε lowers the cosine by ε²/2: limits 1e-5, 1e-4, 1e-3 lie at ε = 0.0045, 0.014, 0.045."""
    rng = np.random.default_rng(0)
    reference, error = rng.standard_normal((2, 100_000))
    gates = DEFAULT_GATES[precision]
    assert failed_gates(compare(reference, reference + smallest_failing * error), gates)
    assert not failed_gates(compare(reference, reference + smallest_failing / 3 * error), gates)


def test_int8_has_no_default_gate():
    assert DEFAULT_GATES["int8"] == ()


def test_the_centred_sqnr_has_gates():
    parity = compare(REFERENCE, 0.99 * REFERENCE)
    assert parity.centred_sqnr_db == pytest.approx(40.0)  # the error is a hundredth of the signal
    assert failed_gates(parity, [Gate("centred_sqnr_db", 39.0)]) == ()
    assert len(failed_gates(parity, [Gate("centred_sqnr_db", 41.0)])) == 1


def test_the_first_divergence_is_the_first_in_order_not_the_worst():
    layers = {"conv0": IDENTICAL, "norm0": CLOSE, "classifier": compare(REFERENCE, -REFERENCE)}
    assert first_divergence(layers, [Gate("max_abs", 0.005)]) == "norm0"
    assert first_divergence({"conv0": IDENTICAL, "norm0": CLOSE}, [Gate("cosine", 0.999)]) is None


def test_a_layer_with_nan_diverges_without_any_gate():
    layers = {"conv0": IDENTICAL, "norm0": compare(REFERENCE, np.full((8, 8), np.nan))}
    assert first_divergence(layers, ()) == "norm0"
