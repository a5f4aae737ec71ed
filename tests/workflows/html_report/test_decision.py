"""Which model a report says to ship, and what it says against it."""

from __future__ import annotations

import pytest

from densenet_deploy.errors import DataError, UsageError
from densenet_deploy.workflows.html_report.decision import Choice, decide
from densenet_deploy.workflows.html_report.material import ReportSources, gather_material
from tests.workflows.html_report.conftest import Desk, evaluation, parity, result, validation


def decided(sources: ReportSources) -> Choice:
    return decide(gather_material(sources))


def test_the_fastest_of_those_accurate_enough_is_chosen(desk: Desk) -> None:
    choice = decided(desk.sources(benchmarks=(desk.raced(),), evaluations=desk.evaluated(0.9, 0.895)))
    assert (choice.model, choice.latency_ms, choice.top1) == ("fast.onnx", 2.0, 0.895)
    assert "it loses 0.50 points" in choice.reasons[0]


def test_the_fastest_is_not_chosen_where_it_loses_too_much(desk: Desk) -> None:
    given = {"benchmarks": (desk.raced(),), "evaluations": desk.evaluated(0.9, 0.88)}
    assert decided(desk.sources(**given)).model == "slow.onnx"
    assert decided(desk.sources(**given, max_drop=2.0)).model == "fast.onnx"


def test_without_accuracy_the_fastest_is_chosen_and_the_lack_is_said(desk: Desk) -> None:
    choice = decided(desk.sources(benchmarks=(desk.raced(),)))
    assert choice.model == "fast.onnx"
    assert any("No accuracy is known" in caution for caution in choice.cautions)
    assert any("Untrained" in caution for caution in choice.cautions)


def test_what_was_not_evaluated_is_not_chosen(desk: Desk) -> None:
    (slow, _) = desk.evaluated(0.9, 0.9)
    choice = decided(desk.sources(benchmarks=(desk.raced(),), evaluations=(slow,)))
    assert choice.model == "slow.onnx"
    assert any("Not evaluated" in caution and "fast.onnx" in caution for caution in choice.cautions)


def test_a_measurement_of_other_bytes_counts_for_nothing(desk: Desk) -> None:
    benchmark = desk.benchmark(result(desk.slow, 4.0, desk.hash(desk.slow)), result(desk.fast, 2.0, "0" * 64))
    choice = decided(desk.sources(benchmarks=(benchmark,)))
    assert choice.model == "slow.onnx"
    assert any("has changed since it was measured" in caution for caution in choice.cautions)


def test_a_missed_gate_keeps_a_model_out(desk: Desk) -> None:
    missed = desk.write("validate.json", validation(desk.slow, desk.fast, passed=False))
    choice = decided(desk.sources(benchmarks=(desk.raced(),), validations=(missed,)))
    assert choice.model == "slow.onnx"
    assert any("missed a gate" in caution for caution in choice.cautions)
    held = desk.write("validate.json", validation(desk.slow, desk.fast))
    assert decided(desk.sources(benchmarks=(desk.raced(),), validations=(held,))).model == "fast.onnx"


@pytest.mark.parametrize(("slow", "said"), [(2.1, True), (4.0, False)])
def test_overlapping_intervals_are_said(desk: Desk, slow: float, said: bool) -> None:
    choice = decided(desk.sources(benchmarks=(desk.raced(slow, 2.0),)))
    assert choice.model == "fast.onnx"
    assert any("may be as fast" in caution for caution in choice.cautions) is said


def test_the_smallest_batch_decides(desk: Desk) -> None:
    slow, fast = desk.hash(desk.slow), desk.hash(desk.fast)
    rows = [result(desk.slow, 4.0, slow, batch=8), result(desk.fast, 9.0, fast, batch=8)]
    rows += [result(desk.slow, 3.0, slow), result(desk.fast, 2.0, fast)]
    assert decided(desk.sources(benchmarks=(desk.benchmark(*rows),))).model == "fast.onnx"


def test_nothing_measured_is_no_choice(desk: Desk) -> None:
    choice = decided(desk.sources(evaluations=desk.evaluated(0.9, 0.9)))
    assert (choice.model, choice.facts) == ("", None)
    assert "Nothing was measured yet" in choice.reasons[0]


def test_different_numbers_of_figures_are_said(desk: Desk) -> None:
    slow = desk.write("slow.json", evaluation(desk.slow, 0.9, count=10))
    fast = desk.write("fast.json", evaluation(desk.fast, 0.9, count=20))
    choice = decided(desk.sources(benchmarks=(desk.raced(),), evaluations=(slow, fast)))
    assert any("different numbers of figures" in caution for caution in choice.cautions)


def trial(desk: Desk, **changes: object) -> dict[str, object]:
    return {"model": str(desk.slow), "backend": "onnxruntime", "threads": 1, "batch": 1, "sha256": desk.hash(desk.slow),
            "precision": "fp32", "latency_ms": 5.5, "interval_ms": [5.0, 6.0], "top1": 0.91, "drop_points": 0.4,
            "parity": parity(), "peak_memory_bytes": 2**21,
            "outcome": "the fastest within 1 point"} | changes  # fmt: skip


def test_what_tune_chose_goes_before_the_rule(desk: Desk) -> None:
    tune = desk.write("tune.json", {"chosen": trial(desk), "pareto": [trial(desk)]})
    choice = decided(desk.sources(benchmarks=(desk.raced(),), tunings=(tune,)))
    assert (choice.model, choice.latency_ms, choice.interval, choice.top1) == ("slow.onnx", 5.5, (5.0, 6.0), 0.91)
    assert choice.reasons[0] == "The fastest within 1 point."
    assert not any("has changed" in caution for caution in choice.cautions)


def test_a_tuned_file_that_changed_or_is_not_here_is_said(desk: Desk) -> None:
    changed = desk.write("tune.json", {"chosen": trial(desk, sha256="0" * 64), "pareto": []})
    assert any("has changed since it was tuned" in c for c in decided(desk.sources(tunings=(changed,))).cautions)
    elsewhere = desk.write("tune.json", {"chosen": trial(desk, model="other.onnx"), "pareto": []})
    assert any("was not given" in c for c in decided(desk.sources(tunings=(elsewhere,))).cautions)


def test_tune_may_choose_nothing(desk: Desk) -> None:
    tune = desk.write("tune.json", {"chosen": None, "pareto": [], "reason": "no candidate within 1 ms"})
    choice = decided(desk.sources(benchmarks=(desk.raced(),), tunings=(tune,)))
    assert (choice.model, choice.reasons) == ("", ("no candidate within 1 ms",))


def test_a_dry_run_of_tune_is_refused(desk: Desk) -> None:
    tune = desk.write("tune.json", {"chosen": None, "pareto": [], "dry_run": True})
    with pytest.raises(DataError, match="it is a dry run"):
        decided(desk.sources(tunings=(tune,)))


def test_two_models_of_one_name_are_refused(desk: Desk) -> None:
    with pytest.raises(UsageError, match="name of two models"):
        gather_material(ReportSources((desk.slow, desk.slow)))
    with pytest.raises(UsageError):
        ReportSources(())
    with pytest.raises(UsageError):
        desk.sources(max_drop=-1.0)
