"""Gates: how they are read, on which side of the limit they pass, and how a missed one is reported."""

from __future__ import annotations

import dataclasses
import math
import sys

import pytest

from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.parity.gates import DEFAULT_GATES, Gate, failed_gates, first_divergence, parse_gate
from densenet_deploy.parity.metrics import Parity

ERRORS = ("max_abs", "mean_abs", "max_rel", "mean_rel")
QUALITIES = ("cosine", "sqnr_db", "centred_sqnr_db", "top1_agreement", "top5_agreement")
HALF = Parity(*(0.5,) * 9, count=64)
"""Every metric is 0.5."""

LARGEST = sys.float_info.max
RANGES = {
    **dict.fromkeys(ERRORS, (0.0, LARGEST)),
    "cosine": (-1.0, 1.0),
    "sqnr_db": (-LARGEST, LARGEST),
    "centred_sqnr_db": (-LARGEST, LARGEST),
    "top1_agreement": (0.0, 1.0),
    "top5_agreement": (0.0, 1.0),
}


def above(value):
    return math.nextafter(value, math.inf)


def below(value):
    return math.nextafter(value, -math.inf)


def test_a_gate_is_read_as_written():
    assert parse_gate("cosine=0.9999") == Gate("cosine", 0.9999)
    assert parse_gate("sqnr_db = 30") == Gate("sqnr_db", 30.0)
    assert parse_gate("max_abs=1e-3") == Gate("max_abs", 0.001)


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        parse_gate("cosin=0.9")
    assert caught.value.subject == "cosin"
    assert "'cosine'" in str(caught.value)


@pytest.mark.parametrize("text", ["cosine", "cosine=", "cosine=high", "", "cosine==0.9", "cosine=0.9=0.8"])
def test_a_malformed_gate_is_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_gate(text)
    assert caught.value.subject == (text or "''")
    assert not isinstance(caught.value, UnknownNameError)


def test_a_number_without_a_metric_is_refused():
    with pytest.raises(UnknownNameError):
        parse_gate("=0.9")


@pytest.mark.parametrize(("metric", "low", "high"), [(metric, *limits) for metric, limits in RANGES.items()])
def test_a_limit_lies_in_the_range_of_its_metric(metric, low, high):
    for limit in (low, high):
        assert Gate(metric, limit).limit == limit
    for limit in (below(low), above(high), math.nan):
        with pytest.raises(UsageError) as caught:
            Gate(metric, limit)
        assert caught.value.subject == f"{metric}={limit}"


@pytest.mark.parametrize("metric", ERRORS)
def test_an_error_may_reach_its_limit_and_not_exceed_it(metric):
    assert failed_gates(HALF, [Gate(metric, 0.5)]) == ()
    assert failed_gates(HALF, [Gate(metric, above(0.5))]) == ()
    assert failed_gates(HALF, [Gate(metric, below(0.5))]) == (f"{metric} is 0.5, required at most 0.5",)


@pytest.mark.parametrize("metric", QUALITIES)
def test_a_measure_of_quality_must_reach_its_limit(metric):
    assert failed_gates(HALF, [Gate(metric, 0.5)]) == ()
    assert failed_gates(HALF, [Gate(metric, below(0.5))]) == ()
    assert failed_gates(HALF, [Gate(metric, above(0.5))]) == (f"{metric} is 0.5, required at least 0.5",)


@pytest.mark.parametrize("metric", RANGES)
def test_a_metric_without_a_meaning_misses_every_limit(metric):
    low, high = RANGES[metric]
    for limit in (low, high):
        assert Gate(metric, limit).failure(dataclasses.replace(HALF, **{metric: math.nan})) is not None
        (sentence,) = failed_gates(dataclasses.replace(HALF, **{metric: None}), [Gate(metric, limit)])
        assert sentence.startswith(f"{metric} is not defined")


def test_identical_outputs_reach_any_sqnr():
    identical = dataclasses.replace(HALF, sqnr_db=math.inf, centred_sqnr_db=math.inf)
    assert failed_gates(identical, [Gate("sqnr_db", LARGEST), Gate("centred_sqnr_db", LARGEST)]) == ()


def test_every_missed_gate_is_reported_in_the_order_of_the_gates():
    gates = [Gate("cosine", 0.9), Gate("sqnr_db", 0.1), Gate("max_abs", 0.1)]
    assert [sentence.partition(" ")[0] for sentence in failed_gates(HALF, gates)] == ["cosine", "max_abs"]


def test_nonfinite_values_fail_without_a_gate_and_are_reported_first():
    broken = dataclasses.replace(HALF, nonfinite=1)
    first = "1 of 64 values are NaN or infinite, required none"
    assert failed_gates(broken, []) == (first,)
    assert failed_gates(broken, [Gate("cosine", 0.5)]) == (first,)
    assert failed_gates(broken, [Gate("cosine", 0.9)]) == (first, "cosine is 0.5, required at least 0.9")


@pytest.mark.parametrize(("precision", "relative_error"), [("fp32", 0.00447), ("fp16", 0.01414), ("bf16", 0.0447)])
def test_the_default_gate_admits_a_relative_error_and_not_more(precision, relative_error):
    """An error of ε beside a signal of 1 lowers the cosine by ε²/2: to 1 − 1e-5, 1 − 1e-4 and 1 − 1e-3."""
    (gate,) = DEFAULT_GATES[precision]
    cosine = 1 - relative_error**2 / 2
    assert gate.metric == "cosine"
    assert gate.limit == pytest.approx(cosine, abs=1e-3 * (1 - cosine))  # ε is written with three digits
    assert failed_gates(dataclasses.replace(HALF, cosine=gate.limit), DEFAULT_GATES[precision]) == ()
    assert failed_gates(dataclasses.replace(HALF, cosine=below(gate.limit)), DEFAULT_GATES[precision]) != ()


def test_the_default_gates_are_those_of_the_precisions_and_int8_has_none():
    assert list(DEFAULT_GATES) == ["fp32", "fp16", "bf16", "int8"]
    assert DEFAULT_GATES["int8"] == ()


def test_the_first_divergence_is_the_first_in_order_not_the_worst():
    good, bad = (dataclasses.replace(HALF, max_abs=error) for error in (0.1, 0.9))
    layers = {"conv0": good, "norm0": HALF, "classifier": bad}
    assert first_divergence(layers, [Gate("max_abs", 0.3)]) == "norm0"
    assert first_divergence(layers, [Gate("max_abs", 0.9)]) is None


def test_a_layer_with_nan_diverges_without_a_gate():
    assert first_divergence({"conv0": HALF, "norm0": dataclasses.replace(HALF, nonfinite=1)}, ()) == "norm0"


def test_a_gate_on_what_is_not_measured_of_layers_does_not_judge_them():
    inner = dataclasses.replace(HALF, top1_agreement=None, centred_sqnr_db=None)
    gates = [Gate("top1_agreement", 1.0), Gate("centred_sqnr_db", 40.0)]
    assert first_divergence({"conv0": inner}, gates) is None
    assert first_divergence({"conv0": inner}, [*gates, Gate("cosine", 0.9)]) == "conv0"
    assert first_divergence({"conv0": dataclasses.replace(inner, nonfinite=1)}, gates) == "conv0"
