"""Which model a report says to ship, and what it says to consider before."""

from __future__ import annotations

import pytest

from densenet_deploy.workflows.html_report.decide import Decision, decide
from densenet_deploy.workflows.html_report.load import ReportSources, load_material
from tests.workflows.html_report.conftest import ReportFolder, evaluation, parity, result, validation


def decided(sources: ReportSources) -> Decision:
    return decide(load_material(sources))


def test_the_fastest_of_those_accurate_enough_is_chosen(reports: ReportFolder) -> None:
    choice = decided(reports.sources(benchmarks=(reports.compared(),), evaluations=reports.evaluated(0.9, 0.895)))
    assert (choice.model, choice.latency_ms, choice.top1) == ("fast.onnx", 2.0, 0.895)
    assert "it loses 0.50 points" in choice.reasons[0]


def test_the_fastest_is_not_chosen_where_it_loses_too_much(reports: ReportFolder) -> None:
    given = {"benchmarks": (reports.compared(),), "evaluations": reports.evaluated(0.9, 0.88)}
    assert decided(reports.sources(**given)).model == "slow.onnx"
    assert decided(reports.sources(**given, max_drop=2.0)).model == "fast.onnx"


def test_among_equally_fast_models_the_more_accurate_is_chosen_as_by_tune(reports: ReportFolder) -> None:
    given = {"benchmarks": (reports.compared(2.02, 2.0),), "evaluations": reports.evaluated(0.9, 0.895)}
    choice = decided(reports.sources(**given))
    assert (choice.model, choice.latency_ms) == ("slow.onnx", 2.02)
    assert "the fastest of" in choice.reasons[0]
    assert "within 2 %" in choice.reasons[0]


def test_without_accuracy_the_fastest_is_chosen_and_the_lack_is_said(reports: ReportFolder) -> None:
    choice = decided(reports.sources(benchmarks=(reports.compared(),)))
    assert choice.model == "fast.onnx"
    assert any("accuracy is unknown" in caution for caution in choice.cautions)
    assert any("Untrained" in caution for caution in choice.cautions)


def test_what_was_not_evaluated_is_not_chosen(reports: ReportFolder) -> None:
    (slow, _) = reports.evaluated(0.9, 0.9)
    choice = decided(reports.sources(benchmarks=(reports.compared(),), evaluations=(slow,)))
    assert choice.model == "slow.onnx"
    assert any("Not evaluated" in caution and "fast.onnx" in caution for caution in choice.cautions)


def test_a_measurement_of_other_bytes_counts_for_nothing(reports: ReportFolder) -> None:
    benchmark = reports.benchmark(
        result(reports.slow, 4.0, reports.hash(reports.slow)), result(reports.fast, 2.0, "0" * 64)
    )
    choice = decided(reports.sources(benchmarks=(benchmark,)))
    assert choice.model == "slow.onnx"
    assert any("has changed since it was measured" in caution for caution in choice.cautions)


def test_a_missed_gate_keeps_a_model_out(reports: ReportFolder) -> None:
    missed = reports.write("validate.json", validation(reports.slow, reports.fast, passed=False))
    choice = decided(reports.sources(benchmarks=(reports.compared(),), validations=(missed,)))
    assert choice.model == "slow.onnx"
    assert any("missed a gate" in caution for caution in choice.cautions)
    held = reports.write("validate.json", validation(reports.slow, reports.fast))
    assert decided(reports.sources(benchmarks=(reports.compared(),), validations=(held,))).model == "fast.onnx"


@pytest.mark.parametrize(("slow", "said"), [(2.1, True), (4.0, False)])
def test_overlapping_intervals_are_said(reports: ReportFolder, slow: float, said: bool) -> None:
    choice = decided(reports.sources(benchmarks=(reports.compared(slow, 2.0),)))
    assert choice.model == "fast.onnx"
    assert any("may be as fast" in caution for caution in choice.cautions) is said


def test_the_smallest_batch_decides(reports: ReportFolder) -> None:
    slow, fast = reports.hash(reports.slow), reports.hash(reports.fast)
    rows = [result(reports.slow, 4.0, slow, batch=8), result(reports.fast, 9.0, fast, batch=8)]
    rows += [result(reports.slow, 3.0, slow), result(reports.fast, 2.0, fast)]
    assert decided(reports.sources(benchmarks=(reports.benchmark(*rows),))).model == "fast.onnx"


def test_nothing_measured_is_no_choice(reports: ReportFolder) -> None:
    choice = decided(reports.sources(evaluations=reports.evaluated(0.9, 0.9)))
    assert (choice.model, choice.path) == ("", None)
    assert "Nothing was measured yet" in choice.reasons[0]


def test_different_numbers_of_images_are_reported(reports: ReportFolder) -> None:
    slow = reports.write("slow.json", evaluation(reports.slow, 0.9, count=10))
    fast = reports.write("fast.json", evaluation(reports.fast, 0.9, count=20))
    choice = decided(reports.sources(benchmarks=(reports.compared(),), evaluations=(slow, fast)))
    assert any("different numbers of images" in caution for caution in choice.cautions)


def trial(reports: ReportFolder, **changes: object) -> dict[str, object]:
    facts = {
        "model": str(reports.slow),
        "sha256": reports.hash(reports.slow),
        "backend": "onnxruntime",
        "precision": "fp32",
        "threads": 1,
        "batch": 1,
        "latency_ms": 5.5,
        "interval_ms": [5.0, 6.0],
        "top1": 0.91,
        "drop_points": 0.4,
        "parity": parity(),
        "peak_memory_bytes": 2**21,
        "outcome": "the fastest within 1 point",
    }
    return facts | changes


def test_what_tune_chose_goes_before_the_rule(reports: ReportFolder) -> None:
    tune = reports.write("tune.json", {"chosen": trial(reports), "pareto": [trial(reports)]})
    choice = decided(reports.sources(benchmarks=(reports.compared(),), tunings=(tune,)))
    assert (choice.model, choice.latency_ms, choice.interval_ms, choice.top1) == ("slow.onnx", 5.5, (5.0, 6.0), 0.91)
    assert choice.reasons[0] == "The fastest within 1 point."
    assert not any("has changed" in caution for caution in choice.cautions)


def test_a_tuned_file_that_changed_is_reported(reports: ReportFolder) -> None:
    changed = reports.write("tune.json", {"chosen": trial(reports, sha256="0" * 64), "pareto": []})
    cautions = decided(reports.sources(tunings=(changed,))).cautions
    assert any("has changed since it was tuned" in caution for caution in cautions)


def test_a_tuned_file_that_was_not_given_is_compared_where_it_lies(reports: ReportFolder) -> None:
    """Only a file that is not there is said to be missing."""
    other = reports.folder / "tuned.int8.onnx"
    facts = {"chosen": trial(reports, model=str(other)), "pareto": []}
    tune = reports.write("tune.json", facts)
    missing = decided(reports.sources(tunings=(tune,)))
    assert missing.path is None
    assert any(str(other) in caution for caution in missing.cautions)
    other.write_bytes(reports.slow.read_bytes())
    present = decided(reports.sources(tunings=(tune,)))
    assert (present.path, present.cautions) == (other, ())
    other.write_bytes(b"another model")
    assert len(decided(reports.sources(tunings=(tune,))).cautions) == 1


def test_what_tune_measured_is_the_accuracy_where_nothing_was_evaluated(reports: ReportFolder) -> None:
    tune = reports.write("tune.json", {"chosen": None, "pareto": [], "candidates": [trial(reports)]})
    material = load_material(reports.sources(tunings=(tune,)))
    assert material.top1_of(material.models[0]) == 0.91, "the same bytes as those tuned"
    chosen = reports.write("chosen.json", {"chosen": trial(reports, top1=None), "pareto": []})
    evaluated = reports.evaluated(0.9, 0.8)
    assert decided(reports.sources(tunings=(chosen,), evaluations=evaluated)).top1 == 0.9


def test_tune_may_choose_nothing(reports: ReportFolder) -> None:
    tune = reports.write("tune.json", {"chosen": None, "pareto": [], "reason": "no candidate within 1 ms"})
    choice = decided(reports.sources(benchmarks=(reports.compared(),), tunings=(tune,)))
    assert (choice.model, choice.reasons) == ("", ("No candidate within 1 ms.",))
