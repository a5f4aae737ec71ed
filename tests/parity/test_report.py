"""A report says the same to people and to programs."""

import json

import numpy as np

from densenet_deploy.parity.compare import compare
from densenet_deploy.parity.gates import Gate, failed_gates
from densenet_deploy.parity.layers import SkippedLayer, compare_layers
from densenet_deploy.parity.report import WORST_LAYERS, ComparisonReport

CLEAN = np.eye(8)


def report(error, layers=(), skipped=()):
    parity = compare(CLEAN, CLEAN + error)
    failed = failed_gates(parity, [Gate("max_abs", 0.1)])
    return ComparisonReport("a.onnx, fp32", "b.onnx, int8", parity, failed, layers, skipped)


def test_a_passed_comparison():
    passed = report(0.05)
    assert passed.passed
    assert passed.to_json()["passed"] is True
    assert passed.to_text().splitlines()[-1] == "passed"


def test_a_failed_comparison_says_by_what():
    missed = report(0.5)
    assert not missed.passed
    assert "failed     max_abs is 0.5, wanted at most 0.1" in missed.to_text()
    assert missed.to_json()["failed"] == ["max_abs is 0.5, wanted at most 0.1"]


def test_the_worst_layers_come_first_and_are_not_too_many():
    ours = {f"layer{number}": CLEAN for number in range(WORST_LAYERS + 5)}
    theirs = {name: CLEAN + 0.01 * number for number, name in enumerate(ours)}
    detailed = report(0.0, compare_layers([ours], [theirs]).layers)
    names = [layer["name"] for layer in detailed.to_json()["worst_layers"]]
    assert names == [f"layer{number}" for number in range(WORST_LAYERS + 4, 4, -1)]
    assert [line.split()[0] for line in detailed.to_text().splitlines() if line.startswith("layer")] == names


def test_skipped_layers_are_told():
    told = report(0.0, skipped=(SkippedLayer("pool0", "only in the reference"),))
    assert told.to_json()["skipped"] == {"pool0": "only in the reference"}
    assert "skipped    1 only in the reference: pool0" in told.to_text()


def test_json_survives_infinite_and_broken_metrics():
    broken = {"same": CLEAN, "nan": np.full((2, 2), np.nan)}
    layers = compare_layers([{"same": CLEAN, "nan": np.ones((2, 2))}], [broken]).layers
    facts = report(0.0, layers).to_json()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert [layer["sqnr_db"] for layer in facts["worst_layers"]] == [None, None]
