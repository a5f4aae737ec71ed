"""The decision: what is as fast, what is compared with what, and the words for it, at each limit."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from densenet_deploy.analysis.choice import Accuracy
from densenet_deploy.records import from_plain, to_plain
from densenet_deploy.workflows.decision import (
    NOISE_IMAGES,
    Decision,
    MeasuredCandidate,
    answers_differ,
    answers_in_words,
    from_page,
    size_in_words,
    speed_in_words,
    times,
)

MIB = 2**20


def candidate(model: str = "int8.onnx", ms: float = 2.0, spread: float = 0.1, **changes: Any) -> MeasuredCandidate:
    known = MeasuredCandidate(
        model=model,
        precision="int8",
        backend="openvino",
        threads=2,
        batch=1,
        latency_ms=ms,
        interval_ms=(ms - spread, ms + spread),
        file_bytes=MIB,
        memory_bytes=64 * MIB,
        accuracy=Accuracy("top1", 0.9),
        labelled=1000,
        drop_points=0.0,
    )
    return dataclasses.replace(known, **changes)


def given(ms: float = 6.0, **changes: Any) -> MeasuredCandidate:
    facts = {"model": "fp32.onnx", "precision": "fp32", "file_bytes": 4 * MIB, "is_given": True}
    return candidate(ms=ms, **{**facts, **changes})


def test_the_headline_says_what_is_gained_and_lost() -> None:
    decision = Decision.of([given(), candidate()])
    assert decision.headline == ("3.0 × faster", "4.0 × smaller", "same accuracy")
    assert decision.sentence == (
        "3.0 × faster, 4.0 × smaller, same accuracy. "
        "Compared with fp32.onnx on openvino, 2 threads: 2.00 [1.90, 2.10] against 6.00 [5.90, 6.10] ms per call, "
        "1.0 against 4.0 MiB, top-1 90.00% against 90.00% of 1000 images. "
        "The fastest of 2 candidates."
    )
    assert not decision.is_worse


def test_the_fp32_file_is_compared_with_nothing() -> None:
    decision = Decision.of([given(1.0), candidate()])
    assert (decision.headline, decision.chosen) == ((), decision.baseline)
    assert decision.compared_with.startswith("The FP32 file itself, run as fast as it runs here: 1.00 [0.900, 1.10] ms")


def test_without_an_fp32_file_nothing_is_compared() -> None:
    decision = Decision.of([candidate()])
    assert (decision.headline, decision.baseline) == ((), None)
    assert "no FP32 file was measured" in decision.sentence
    assert decision.place_in_words == "The only candidate."


def test_the_baseline_is_the_most_accurate_fp32_file_at_its_fastest() -> None:
    slow, fast = given(8.0, threads=1), given(6.0)
    worse = given(3.0, model="small.onnx", accuracy=Accuracy("top1", 0.8))
    assert Decision.of([slow, fast, worse, candidate()]).baseline == fast
    other = given(1.0, batch=8)
    assert Decision.of([fast, dataclasses.replace(other, refused="another batch"), candidate()]).baseline == fast


@pytest.mark.parametrize(("ms", "ties"), [(2.2, True), (2.21, False)])
def test_intervals_that_touch_are_as_fast(ms: float, ties: bool) -> None:
    """2.0 ± 0.1 ends at 2.1, where 2.2 ± 0.1 begins."""
    other = candidate("other.onnx", ms, file_bytes=2 * MIB)
    decision = Decision.of([given(), candidate(), other])
    assert decision.as_fast == ([other] if ties else [])
    assert decision.verdict(other) == ("as fast" if ties else "1.1 × slower")
    said = "As fast as other.onnx on openvino, 2 threads (95% intervals overlap), of 3 candidates."
    assert decision.place_in_words == (
        f"{said} Chosen over it for a smaller file." if ties else "The fastest of 3 candidates."
    )


def test_among_those_as_fast_the_better_answers_win_although_slower() -> None:
    better = candidate("better.onnx", 2.1, accuracy=Accuracy("top1", 0.91))
    decision = Decision.of([given(), candidate(), better])
    assert decision.chosen == better
    assert decision.place_in_words.endswith("Chosen over it for better answers.")


def test_many_ties_are_counted_and_the_runner_up_is_named() -> None:
    others = [candidate(f"{name}.onnx", 2.05, file_bytes=size * MIB) for size, name in enumerate("abc", 2)]
    words = Decision.of([given(), candidate(), *others]).place_in_words
    assert words == (
        "As fast as a.onnx on openvino, 2 threads, b.onnx on openvino, 2 threads and 1 more (95% intervals overlap), "
        "of 5 candidates. Chosen over a.onnx on openvino, 2 threads for a smaller file."
    )


def test_what_is_faster_but_refused_is_named_with_the_reason() -> None:
    refused = candidate("wrong.onnx", 1.0, refused="misses --max-drop")
    decision = Decision.of([given(), candidate(), refused])
    assert decision.verdict(refused) == "2.0 × faster; misses --max-drop"
    assert decision.place_in_words == (
        "The fastest of 2 candidates considered. Not considered: wrong.onnx on openvino, 2 threads "
        "(2.0 × faster; misses --max-drop)."
    )
    assert Decision.of([refused]).chosen is None
    assert Decision.of([refused]).sentence == ""


def test_calls_of_another_batch_are_not_compared_by_latency() -> None:
    batch = candidate("int8.onnx", 4.0, batch=8, refused="not the smallest batch")
    decision = Decision.of([given(), candidate(), batch])
    assert decision.verdict(batch) == "not the smallest batch"
    assert "Not considered" not in decision.sentence
    assert (
        Decision.of([given(), candidate(), dataclasses.replace(batch, refused="")], goal="throughput").chosen.batch == 8
    )


def test_a_choice_that_the_rule_would_not_make_is_not_called_the_fastest() -> None:
    chosen = candidate("old.onnx", 4.0)
    decision = Decision.of([given(), candidate(), chosen], chosen)
    assert decision.place_in_words == "Not the fastest: int8.onnx on openvino, 2 threads is 2.0 × faster."


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (1.004, "0.4%"),
        (1.094, "9.4%"),
        (1.095, "1.1 ×"),
        (2.96, "3.0 ×"),
        (9.94, "9.9 ×"),
        (9.95, "10 ×"),
        (123.4, "123 ×"),
    ],
)
def test_ratios_are_written_with_two_digits(ratio: float, words: str) -> None:
    assert times(ratio) == words


def test_slower_and_larger_are_said() -> None:
    assert speed_in_words(given(), candidate()) == "3.0 × slower"
    assert size_in_words(given(), candidate()) == "4.0 × larger"
    assert size_in_words(candidate(file_bytes=1004), candidate(file_bytes=1000)) == "same size"
    assert size_in_words(candidate(file_bytes=1006), candidate(file_bytes=1000)) == "0.6% larger"


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (0, "same accuracy"),
        (5, "same accuracy within noise (5 of 1000 images)"),
        (6, "0.60 points less accurate"),
        (-5, "same accuracy within noise (5 of 1000 images)"),
        (-6, "0.60 points more accurate"),
    ],
)
def test_five_images_are_noise_and_six_are_not(images: int, words: str) -> None:
    """The exact sign test: 2 · 2⁻⁵ is above 5 %, 2 · 2⁻⁶ is below."""
    assert 2 * 2**-NOISE_IMAGES > 0.05 > 2 * 2 ** -(NOISE_IMAGES + 1)
    other = candidate(accuracy=Accuracy("top1", 0.9 - images / 1000))
    assert answers_in_words(other, candidate()) == words
    assert answers_differ(other, candidate()) is (abs(images) > NOISE_IMAGES)
    assert Decision.of([given(), other]).is_worse is (images > NOISE_IMAGES)


def test_on_different_images_nothing_is_called_noise() -> None:
    other = candidate(accuracy=Accuracy("top1", 0.899), labelled=999)
    assert answers_in_words(other, candidate()) == "0.10 points less accurate"


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (Accuracy("auroc", 0.81), Accuracy("auroc", 0.83), "AUROC 0.0200 lower"),
        (Accuracy("auroc", 0.83), Accuracy("auroc", 0.83), "same AUROC"),
        (Accuracy("auroc", 0.830001), Accuracy("auroc", 0.83), "same AUROC"),
        (Accuracy("mae", 2.2), Accuracy("mae", 2.0), "MAE 10.0% higher"),
        (Accuracy("mae", 1.9), Accuracy("mae", 2.0), "MAE 5.0% lower"),
        (Accuracy("mae", 0.5), Accuracy("mae", 0.0), "MAE 0.5 higher"),
        (Accuracy("mae", 2.0), Accuracy("top1", 0.9), "accuracy not measured"),
        (None, Accuracy("top1", 0.9), "accuracy not measured"),
    ],
)
def test_labels_and_numbers_have_their_own_words(ours: Accuracy | None, theirs: Accuracy, words: str) -> None:
    assert answers_in_words(candidate(accuracy=ours), candidate(accuracy=theirs)) == words


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (1.0, "same class of 64 seeded inputs"),
        (0.96875, "3.1% of 64 seeded inputs get another class"),
        (None, "accuracy not measured"),
    ],
)
def test_without_labels_the_classes_that_changed_count(share: float | None, words: str) -> None:
    other = candidate(accuracy=None, same_class=share, compared_on="64 seeded inputs")
    assert Decision.of([given(accuracy=None), other]).headline[-1] == words


def test_a_larger_error_is_worse_and_a_smaller_one_chosen_among_ties() -> None:
    worse = candidate(accuracy=Accuracy("mae", 2.5))
    assert Decision.of([given(accuracy=Accuracy("mae", 2.0)), worse]).is_worse
    better = candidate("better.onnx", 2.1, accuracy=Accuracy("mae", 2.4))
    assert Decision.of([worse, better]).chosen == better


def test_table_and_figure_hold_the_same_candidates_under_the_same_numbers() -> None:
    shown = [candidate(), candidate("int8.onnx", 2.05, threads=1), given(), candidate("slow.onnx", 9.0)]
    hidden = [given(7.0, threads=1), candidate("slow.onnx", 9.5, threads=1)]
    decision = Decision.of([*hidden, *shown])
    assert decision.shown == shown
    assert decision.others == hidden
    rows = decision.table("", decision.shown).rows
    points = [point for _, point in decision.points()]
    assert [row[0].text for row in rows] == [str(point.number) for point in points] == ["1", "2", "3", "5"]
    assert [row[4].text for row in rows] == ["chosen", "as fast", "3.0 × slower", "4.5 × slower"]
    assert [point.chosen for point in points] == [True, False, False, False]
    assert [row[3].text.split(" ")[0] for row in rows] == ["2.00", "2.05", "6.00", "9.00"]
    assert [point.latency_ms for point in points] == [2.0, 2.05, 6.0, 9.0]


def test_columns_without_values_are_left_out() -> None:
    decision = Decision.of([candidate(accuracy=None, drop_points=None, memory_bytes=None)])
    heads = decision.table("", decision.shown).headings
    assert list(heads) == ["#", "file", "runs on", "ms per call [95%]", "relative to the choice", "file MiB"]
    through = Decision.of([candidate()], goal="throughput")
    assert "images/s" in through.table("", through.shown).headings


def test_a_decision_is_kept_as_json() -> None:
    decision = Decision.of([given(), candidate(sqnr_db=40.0, refused="x<y"), candidate(interval_ms=None)])
    facts = json.loads(json.dumps(to_plain(decision), allow_nan=False))
    assert from_plain(Decision, facts) == decision


def test_a_choice_that_is_not_there_is_none() -> None:
    assert Decision((candidate(),), 1).chosen is None


@pytest.mark.parametrize(
    ("path", "page", "shown"),
    [
        ("a.onnx", "page.html", "a.onnx"),
        ("artifacts/a.onnx", "artifacts/a.report.html", "a.onnx"),
        ("artifacts/tune/a.onnx", "page.html", "artifacts/tune/a.onnx"),
        ("a.onnx", "pages/page.html", "../a.onnx"),
        ("/elsewhere/a.onnx", "page.html", "/elsewhere/a.onnx"),
    ],
)
def test_paths_are_those_of_the_folder_of_the_page(path: str, page: str, shown: str) -> None:
    assert from_page(Path(path), Path(page)) == shown


def test_an_absolute_path_beside_the_page_is_relative(tmp_path: Path) -> None:
    assert from_page(tmp_path / "tune" / "a.onnx", tmp_path / "page.html") == "tune/a.onnx"


def test_a_file_of_unknown_size_is_shown_without_one() -> None:
    found = candidate(file_bytes=None)
    assert (found.size, size_in_words(found, candidate()), size_in_words(candidate(), found)) == ("", "", "")
    decision = Decision.of([given(), found], given())
    table = decision.table("", decision.candidates)
    assert [row[list(table.headings).index("file MiB")].text for row in table.rows] == ["–", "4.0"]


def test_the_sqnr_of_the_reference_is_a_dash_and_of_an_equal_file_infinite() -> None:
    found = [candidate(sqnr_db=math.inf, is_given=True), candidate(sqnr_db=math.inf), candidate(sqnr_db=40.04)]
    table = Decision.of(found, found[0]).table("", found)
    assert [row[list(table.headings).index("SQNR dB")].text for row in table.rows] == ["–", "∞", "40.0"]
