"""A report gives the same facts as text and as JSON."""

import json

import numpy as np
import pytest

from densenet_deploy.parity.compare import LayerComparison, compare
from densenet_deploy.parity.gates import Gate
from densenet_deploy.workflows.compare import WORST_LAYERS, ComparisonReport
from tests.parity.layers import compare_layers

CLEAN = np.eye(8)
GATES = (Gate("max_abs", 0.1),)


def report(error, *, gates=GATES, layers=None):
    outputs = {"logits": compare(CLEAN, CLEAN + error)}
    return ComparisonReport.of(("a.onnx, fp32", "b.onnx, int8"), outputs, gates, layers)


def test_a_passed_comparison():
    passed = report(0.05)
    assert passed.passed is True
    assert passed.to_json()["passed"] is True
    assert passed.to_text().splitlines()[-1] == "passed"


def test_a_failed_comparison_names_the_gate():
    missed = report(0.5)
    assert missed.passed is False
    assert missed.to_json()["failed"] == list(missed.failed)
    assert f"failed      {missed.failed[0]}" in missed.to_text()
    assert missed.failed[0].startswith("max_abs is 0.5")


def test_without_a_gate_nothing_passes_and_nothing_fails():
    measured = report(0.5, gates=())
    assert (measured.passed, measured.failed) == (None, ())
    assert measured.to_json()["passed"] is None
    assert measured.to_text().splitlines()[-1] == "no gate"
    assert report(np.nan, gates=()).passed is False


def test_every_output_is_reported_and_the_worst_counts():
    outputs = {"logits": compare(CLEAN, CLEAN), "embedding": compare(CLEAN, CLEAN + 0.5)}
    both = ComparisonReport.of(("a.onnx", "b.onnx"), outputs, GATES)
    facts = both.to_json()
    assert facts["parity"] == facts["outputs"]["embedding"]
    assert facts["outputs"]["logits"]["max_abs"] == 0.0
    assert both.failed[0].startswith("embedding: max_abs")
    assert "worst output: embedding" in both.to_text()
    assert f"logits: {outputs['logits']}" in both.to_text()


def test_the_worst_layers_come_first_and_are_not_too_many():
    ours = {f"layer{number}": CLEAN for number in range(WORST_LAYERS + 5)}
    theirs = {name: CLEAN + 0.01 * number for number, name in enumerate(ours)}
    detailed = report(0.0, layers=compare_layers([ours], [theirs]))
    names = [layer["name"] for layer in detailed.to_json()["worst_layers"]]
    assert names == [f"layer{number}" for number in range(WORST_LAYERS + 4, 4, -1)]
    assert [line.split()[0] for line in detailed.to_text().splitlines() if line.startswith("layer")] == names


def test_skipped_layers_are_reported():
    skipping = report(0.0, layers=LayerComparison({}, {"pool0": "only in the reference"}))
    assert skipping.to_json()["skipped"] == {"pool0": "only in the reference"}
    assert "skipped     1 only in the reference: pool0" in skipping.to_text()


@pytest.mark.parametrize("broken", [np.full((2, 2), np.nan), np.full((2, 2), np.inf)])
def test_json_holds_null_for_infinite_and_undefined_metrics(broken):
    candidate = {"same": CLEAN, "broken": broken}
    layers = compare_layers([{"same": CLEAN, "broken": np.ones((2, 2))}], [candidate])
    facts = report(0.0, layers=layers).to_json()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert [layer["sqnr_db"] for layer in facts["worst_layers"]] == [None, None]


def test_a_report_reads_its_own_json():
    ours = {"a": CLEAN, "b": np.eye(3)}
    written = report(np.diag(np.linspace(0, 1, 8)), layers=compare_layers([ours], [{"a": CLEAN + 0.1}]))
    again = ComparisonReport.from_json(json.loads(json.dumps(written.to_json())))
    assert again.to_json() == written.to_json()
    assert str(again) == str(written)
