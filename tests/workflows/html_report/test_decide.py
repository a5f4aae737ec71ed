"""Which model a report says to ship, and what it says to consider before."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from densenet_deploy.analysis.choice import Accuracy
from densenet_deploy.bench.machine import Machine
from densenet_deploy.parity.compare import Parity
from densenet_deploy.records import from_plain
from densenet_deploy.workflows.decision import MeasuredCandidate
from densenet_deploy.workflows.evaluation.report import EvaluateReport
from densenet_deploy.workflows.html_report.decide import Advice, decide
from densenet_deploy.workflows.html_report.load import ReportSources, load_material
from densenet_deploy.workflows.tune.report import Choice, Steps, TrialResult, TuneReport
from densenet_deploy.workflows.tune.search import Limits
from tests.workflows.html_report.conftest import ReportFolder, evaluation, machine, parity, result, validation


def decided(sources: ReportSources) -> Advice:
    return decide(load_material(sources))


def shipped(advice: Advice) -> MeasuredCandidate:
    chosen = advice.decision.chosen
    assert chosen is not None
    return chosen


def test_the_fastest_of_those_accurate_enough_is_chosen(reports: ReportFolder) -> None:
    choice = decided(reports.sources(benchmarks=(reports.compared(),), evaluations=reports.evaluated(0.9, 0.895)))
    assert (choice.model, shipped(choice).latency_ms, shipped(choice).accuracy) == (
        "fast.onnx",
        2.0,
        Accuracy("top1", 0.895),
    )
    assert choice.decision.headline == ("2.0 × faster", "same size", "same accuracy within noise (1 of 200 images)")


def test_the_fastest_is_not_chosen_where_it_loses_too_much(reports: ReportFolder) -> None:
    given = {"benchmarks": (reports.compared(),), "evaluations": reports.evaluated(0.9, 0.88)}
    assert decided(reports.sources(**given)).model == "slow.onnx"
    assert decided(reports.sources(**given, max_drop=2.0)).model == "fast.onnx"


def test_among_equally_fast_models_the_more_accurate_is_chosen_as_by_tune(reports: ReportFolder) -> None:
    given = {"benchmarks": (reports.compared(2.02, 2.0),), "evaluations": reports.evaluated(0.9, 0.895)}
    choice = decided(reports.sources(**given))
    assert (choice.model, shipped(choice).latency_ms) == ("slow.onnx", 2.02)
    assert "As fast as fast.onnx" in choice.decision.sentence
    assert "for better answers" in choice.decision.sentence


def test_without_accuracy_the_fastest_is_chosen_and_the_lack_is_reported(reports: ReportFolder) -> None:
    choice = decided(reports.sources(benchmarks=(reports.compared(),)))
    assert choice.model == "fast.onnx"
    assert any("accuracy is unknown" in caution for caution in choice.cautions)
    assert any("Untrained" in caution for caution in choice.cautions)


def test_what_was_not_evaluated_is_not_chosen(reports: ReportFolder) -> None:
    (slow, _) = reports.evaluated(0.9, 0.9)
    choice = decided(reports.sources(benchmarks=(reports.compared(),), evaluations=(slow,)))
    assert choice.model == "slow.onnx"
    (said,) = [caution for caution in choice.cautions if caution.startswith("fast.onnx")]
    line = f"densenet-deploy evaluate {reports.fast} --data FOLDER --json"
    why = "fast.onnx was measured (2.00 ms) but not evaluated, so it was not considered"
    assert said.startswith(f"{why}: run `{line}`")
    assert "fast.onnx on openvino, 2 threads (2.0 × faster; not evaluated)" in choice.decision.sentence


@pytest.mark.parametrize(
    ("is_evaluated", "why"), [(False, "not evaluated"), (True, "not among the models of this page")]
)
def test_a_faster_file_that_is_not_on_the_page_is_named(reports: ReportFolder, is_evaluated: bool, why: str) -> None:
    benchmark = reports.benchmark(
        result(reports.slow, 4.0, reports.hash(reports.slow)),
        result("models/other.onnx", 2.5, "0" * 64, threads=1),
        result("models/other.onnx", 2.0, "0" * 64),
    )
    evaluations = [reports.evaluated(0.9, 0.9)[0]]
    if is_evaluated:
        evaluations.append(reports.write("other.json", evaluation("other.onnx", 0.9)))
    sources = ReportSources((reports.slow,), benchmarks=(benchmark,), evaluations=tuple(evaluations))
    choice = decided(sources)
    assert (choice.model, [one.file_bytes for one in choice.decision.candidates][:2]) == ("slow.onnx", [None, None])
    assert f"Not considered: other.onnx on openvino, 2 threads (2.0 × faster; {why})." in choice.decision.sentence
    (said,) = [caution for caution in choice.cautions if caution.startswith("other.onnx")]
    assert said.startswith("other.onnx was measured (2.00 ms)")
    assert ("evaluate models/other.onnx --data FOLDER" in said) is not is_evaluated


def test_a_file_that_was_evaluated_but_not_measured_is_named(reports: ReportFolder) -> None:
    benchmark = reports.benchmark(result(reports.slow, 4.0, reports.hash(reports.slow)))
    choice = decided(reports.sources(benchmarks=(benchmark,), evaluations=reports.evaluated(0.9, 0.905)))
    (said,) = [caution for caution in choice.cautions if "not measured" in caution]
    line = f"densenet-deploy benchmark {reports.fast} --json"
    why = "fast.onnx was evaluated (top-1 90.50%) but not measured, so it was not considered"
    assert said.startswith(f"{why}: run `{line}`")
    everything = decided(reports.sources(benchmarks=(reports.compared(),), evaluations=reports.evaluated(0.9, 0.905)))
    assert not any("not considered" in caution for caution in everything.cautions)


@pytest.mark.parametrize(("top1", "chosen"), [(0.895, "fast.onnx"), (0.88, "slow.onnx")])
def test_the_second_model_of_an_evaluation_is_judged_too(reports: ReportFolder, top1: float, chosen: str) -> None:
    both = evaluation(reports.slow, 0.9) | {
        "against": {
            "model": str(reports.fast),
            "count": 200,
            "shared": 200,
            "images_per_second": 60.0,
            "top1": top1,
            "backend": "openvino",
            "precision": "int8",
        }
    }
    path = reports.write("both.json", both)
    choice = decided(reports.sources(benchmarks=(reports.compared(),), evaluations=(path,)))
    assert choice.model == chosen
    assert not any("considered" in caution for caution in choice.cautions)
    own = reports.write("own.json", evaluation(reports.fast, 0.897))
    found = decided(reports.sources(benchmarks=(reports.compared(),), evaluations=(own, path)))
    assert shipped(found).accuracy == Accuracy("top1", 0.897)


def two_runs(reports: ReportFolder, **changes: object) -> list[Path]:
    """A run of each model, the second on a machine that differs by `changes`."""
    slow = json.loads(reports.benchmark(result(reports.slow, 4.0, reports.hash(reports.slow))).read_text())
    fast = json.loads(reports.benchmark(result(reports.fast, 2.0, reports.hash(reports.fast))).read_text())
    fast["machine"] |= changes
    return [reports.write("one.json", slow), reports.write("two.json", fast)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"cpu": "Another"}, "cpu A CPU of 1999, now Another"), ({"usable_cpus": 8}, "usable cpus 3, now 8")],
)
def test_times_of_another_machine_are_not_compared(
    reports: ReportFolder, changes: dict[str, object], words: str
) -> None:
    one, two = two_runs(reports, **changes)
    choice = decided(reports.sources(benchmarks=(one, two)))
    assert (choice.model, choice.machine.cpu) == ("slow.onnx", "A CPU of 1999")
    told = (
        f"two.json was measured on another machine than that of one.json ({words}), so its files were not considered."
    )
    assert told in choice.cautions
    assert "fast.onnx on openvino, 2 threads (2.0 × faster; measured on another machine)" in choice.decision.sentence
    choice = decided(reports.sources(benchmarks=(two, one)))
    assert (choice.model, choice.machine.cpu) == ("fast.onnx", changes.get("cpu", "A CPU of 1999"))


def test_runs_on_one_machine_are_compared_which_is_said(reports: ReportFolder) -> None:
    told = "The times are of 2 runs: what changed between them is not part of the intervals."
    choice = decided(reports.sources(benchmarks=two_runs(reports, date="2026-02-03", cpu_mhz=800.0)))
    assert (choice.model, told in choice.cautions) == ("fast.onnx", True)
    assert not any("runs" in caution for caution in decided(reports.sources(benchmarks=(reports.compared(),))).cautions)


@pytest.mark.parametrize(("other", "known"), [("a" * 64, True), ("b" * 64, False), (None, True)])
def test_accuracies_on_different_images_are_not_compared(reports: ReportFolder, other: str | None, known: bool) -> None:
    """With as many images, and 2 points more for the slow file, which would be within noise of a smaller set."""
    paths = [
        reports.write(f"{path.stem}.json", evaluation(path, top1) | {"truth_sha256": images})
        for path, top1, images in ((reports.slow, 0.92, "a" * 64), (reports.fast, 0.9, other))
    ]
    choice = decided(reports.sources(benchmarks=(reports.compared(),), evaluations=paths))
    assert choice.model == ("slow.onnx" if known else "fast.onnx")
    assert (shipped(choice).accuracy is not None) is known
    said = "The models were evaluated on different images, so accuracy was not considered."
    assert (said in choice.cautions) is not known


@pytest.mark.parametrize("is_stale", [True, False])
def test_an_evaluation_of_other_bytes_counts_for_nothing(reports: ReportFolder, is_stale: bool) -> None:
    paths = [
        reports.write(f"{path.stem}.json", evaluation(path, top1) | {"sha256": sha256})
        for path, top1, sha256 in (
            (reports.slow, 0.9, reports.hash(reports.slow)),
            (reports.fast, 0.9, "0" * 64 if is_stale else reports.hash(reports.fast)),
        )
    ]
    choice = decided(reports.sources(benchmarks=(reports.compared(),), evaluations=paths))
    assert choice.model == ("slow.onnx" if is_stale else "fast.onnx")
    said = f"{reports.fast} has changed since it was evaluated; that evaluation was not used."
    assert (said in choice.cautions) is is_stale


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


@pytest.mark.parametrize(("slow", "overlap"), [(2.1, True), (4.0, False)])
def test_overlapping_intervals_are_reported(reports: ReportFolder, slow: float, overlap: bool) -> None:
    choice = decided(reports.sources(benchmarks=(reports.compared(slow, 2.0),)))
    assert choice.model == "fast.onnx"
    assert ("As fast as slow.onnx" in choice.decision.sentence) is overlap
    assert ("The fastest of 2" in choice.decision.sentence) is not overlap


def test_the_smallest_batch_decides(reports: ReportFolder) -> None:
    slow, fast = reports.hash(reports.slow), reports.hash(reports.fast)
    rows = [result(reports.slow, 4.0, slow, batch=8), result(reports.fast, 9.0, fast, batch=8)]
    rows += [result(reports.slow, 3.0, slow), result(reports.fast, 2.0, fast)]
    assert decided(reports.sources(benchmarks=(reports.benchmark(*rows),))).model == "fast.onnx"


def test_without_measurements_there_is_no_choice(reports: ReportFolder) -> None:
    for sources, says in (
        (reports.sources(), "Nothing was measured yet"),
        (reports.sources(evaluations=reports.evaluated(0.9, 0.9)), "The speed was not measured yet"),
    ):
        choice = decided(sources)
        assert (choice.model, choice.path) == ("", None)
        assert choice.why_none.startswith(says)


def labelled(model: Path, auroc: float | None) -> dict[str, Any]:
    facts = evaluation(model, 0.0) | {"task": "multilabel", "top1": None, "auroc": auroc}
    return EvaluateReport.from_json(facts).to_json()


def test_labels_are_judged_by_their_auroc(reports: ReportFolder) -> None:
    rows = [labelled(reports.slow, 0.9), labelled(reports.fast, 0.88)]
    given = tuple(reports.write(f"{place}.json", one) for place, one in enumerate(rows))
    sources = {"benchmarks": (reports.compared(),), "evaluations": given}
    choice = decided(reports.sources(**sources))
    assert (choice.model, shipped(choice).accuracy) == ("slow.onnx", Accuracy("auroc", 0.9))
    assert "fast.onnx on openvino, 2 threads (2.0 × faster; loses more than 1 point)" in choice.decision.sentence
    assert decided(reports.sources(**sources, max_drop=2.0)).model == "fast.onnx"


def test_accuracies_of_two_kinds_are_not_compared(reports: ReportFolder) -> None:
    slow = reports.write("slow.json", labelled(reports.slow, 0.9))
    fast = reports.write("fast.json", evaluation(reports.fast, 0.1))
    choice = decided(reports.sources(benchmarks=(reports.compared(),), evaluations=(slow, fast)))
    assert (choice.model, shipped(choice).accuracy) == ("fast.onnx", None)
    assert any("different figures (AUROC, top-1)" in caution for caution in choice.cautions)


def test_errors_of_a_regression_are_shown_and_not_limited(reports: ReportFolder) -> None:
    changes = {"task": "regression", "top1": None, "mae": 1.0}
    rows = [evaluation(model, 0.0) | changes for model in (reports.slow, reports.fast)]
    given = tuple(reports.write(f"{place}.json", one) for place, one in enumerate(rows))
    choice = decided(reports.sources(benchmarks=(reports.compared(),), evaluations=given))
    assert (choice.model, shipped(choice).accuracy) == ("fast.onnx", Accuracy("mae", 1.0))
    assert any("No limit applies to the error of a regression" in caution for caution in choice.cautions)
    assert choice.decision.headline == (), "of two equal FP32 files the faster is what others are compared with"


def test_different_numbers_of_images_are_reported(reports: ReportFolder) -> None:
    slow = reports.write("slow.json", evaluation(reports.slow, 0.9, count=10))
    fast = reports.write("fast.json", evaluation(reports.fast, 0.9, count=20))
    choice = decided(reports.sources(benchmarks=(reports.compared(),), evaluations=(slow, fast)))
    assert any("different numbers of images" in caution for caution in choice.cautions)


def trial(reports: ReportFolder, **changes: Any) -> TrialResult:
    known = TrialResult(
        model=reports.slow,
        base="slow",
        form="fp32",
        precision="fp32",
        backend="onnxruntime",
        threads=1,
        batch=1,
        bytes=3 * 2**20,
        sha256=reports.hash(reports.slow),
        outcome="x",
        latency_ms=5.5,
        interval_ms=(5.0, 6.0),
        images_per_second=180.0,
        peak_memory_bytes=2**21,
        device="cpu",
        runs_in="fp32",
        top1=0.91,
        labelled=100,
        parity=Parity.from_json(parity()),
        drop_points=0.4,
    )
    return dataclasses.replace(known, **changes)


def tuned(reports: ReportFolder, *trials: TrialResult, chosen: TrialResult | None = None, reason: str = "why") -> Path:
    """Write the report of a tuning that found `trials` on the front, and return its path."""
    found = trials or ((chosen,) if chosen is not None else ())
    command = "densenet-deploy benchmark slow.onnx --threads 1"
    facts = {} if chosen is None else {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)}
    report = TuneReport(
        chosen=Choice(**facts, reason=reason, path=chosen.model, command=command) if chosen is not None else None,
        reason=reason,
        pareto=found,
        candidates=found,
        limits=Limits(),
        goal="latency",
        reference="slow.onnx",
        machine=from_plain(Machine, machine()),
        seconds=1.0,
        steps=Steps(0, 1),
        state=Path("tune.state.json"),
    )
    return reports.write("tune.json", report.to_json())


def test_what_tune_chose_goes_before_the_rule(reports: ReportFolder) -> None:
    tune = tuned(reports, chosen=trial(reports), reason="the shortest call of 2 candidates")
    choice = decided(reports.sources(benchmarks=(reports.compared(),), tunings=(tune,)))
    assert (choice.model, shipped(choice).latency_ms, shipped(choice).interval_ms) == ("slow.onnx", 5.5, (5.0, 6.0))
    assert shipped(choice).accuracy == Accuracy("top1", 0.91)
    assert choice.decision.place_in_words == "The only candidate."
    assert not any("has changed" in caution for caution in choice.cautions)


def test_a_tuned_file_that_changed_is_reported(reports: ReportFolder) -> None:
    changed = tuned(reports, chosen=trial(reports, sha256="0" * 64))
    cautions = decided(reports.sources(tunings=(changed,))).cautions
    assert any("has changed since it was tuned" in caution for caution in cautions)


def test_a_tuned_file_that_was_not_given_is_compared_where_it_lies(reports: ReportFolder) -> None:
    """Only a file that is not there is reported as missing."""
    other = reports.folder / "tuned.int8.onnx"
    tune = tuned(reports, chosen=trial(reports, model=other))
    missing = decided(reports.sources(tunings=(tune,)))
    assert missing.path is None
    assert any(str(other) in caution for caution in missing.cautions)
    other.write_bytes(reports.slow.read_bytes())
    present = decided(reports.sources(tunings=(tune,)))
    assert (present.path, present.cautions) == (other, ())
    other.write_bytes(b"another model")
    assert len(decided(reports.sources(tunings=(tune,))).cautions) == 1


def test_what_tune_measured_is_the_accuracy_where_nothing_was_evaluated(reports: ReportFolder) -> None:
    evaluations = reports.evaluated(0.9, 0.8)
    tune = tuned(reports, chosen=trial(reports))
    assert shipped(decided(reports.sources(tunings=(tune,), evaluations=evaluations))).accuracy == Accuracy(
        "top1", 0.91
    )
    tune = tuned(reports, chosen=trial(reports, top1=None))
    found = shipped(decided(reports.sources(tunings=(tune,), evaluations=evaluations)))
    assert (found.accuracy, found.labelled, found.drop_points) == (Accuracy("top1", 0.9), 200, 0.0)


def test_tune_may_choose_nothing(reports: ReportFolder) -> None:
    tune = tuned(reports, trial(reports), reason="no candidate within 1 ms")
    choice = decided(reports.sources(benchmarks=(reports.compared(),), tunings=(tune,)))
    assert (choice.model, choice.why_none) == ("", "No candidate within 1 ms.")
