"""The images on which two models disagree: the worst first, small, and named where they are not here."""

from __future__ import annotations

import base64
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.workflows.evaluation.report import ChangedImage, ChangedOutput, Disagreement, EvaluateReport
from densenet_deploy.workflows.html_report.disagreements import MOST, disagreement_blocks, thumbnail
from densenet_deploy.workflows.html_report.load import Loaded, Material, ReportSources
from densenet_deploy.workflows.html_report.page import Images, Remarks
from tests.workflows.evaluation.test_report import MULTICLASS, MULTILABEL, REGRESSION


def blocks(folder: Path, *found: Disagreement, report: EvaluateReport = MULTICLASS):
    assert report.against is not None
    against = dataclasses.replace(report.against, disagreements=found)
    loaded = Loaded(folder / "evaluate.json", dataclasses.replace(report, against=against))
    return disagreement_blocks(Material(ReportSources(("a.onnx",)), (), evaluations=(loaded,)))


def drawn(path: Path, size: tuple[int, int]) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def opened(data: str) -> Image.Image:
    head, _, encoded = data.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


@pytest.mark.parametrize(
    ("size", "shown"), [((640, 320), (112, 56)), ((112, 112), (112, 112)), ((32, 16), (96, 48)), ((100, 50), (100, 50))]
)
def test_an_image_is_made_small_and_a_tiny_one_visible(tmp_path: Path, size, shown) -> None:
    data = thumbnail(drawn(tmp_path / "a.png", size))
    assert opened(data).size == shown
    assert len(data) < 20_000


def test_what_is_not_an_image_has_no_thumbnail(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n rest")
    assert [thumbnail(tmp_path / "a.png"), thumbnail(tmp_path), thumbnail(tmp_path / "gone.png")] == ["", "", ""]


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    Image.new("1", (8192, 8193)).save(tmp_path / "huge.png")
    assert thumbnail(tmp_path / "huge.png") == ""


def test_answers_of_both_models_stand_below_the_image(tmp_path: Path) -> None:
    drawn(tmp_path / "x.png", (8, 8))
    (shown,) = blocks(
        tmp_path, Disagreement(Path("x.png"), 0, 0, 0.9, 1, 0.75), Disagreement(Path("y.png"), 1, 0, 0.5, 1, 0.5)
    )
    assert isinstance(shown, Images)
    assert shown.lead.startswith("a.onnx and b.onnx give different classes to 2 of ")
    here, gone = shown.cards
    assert opened(here.data).size == (112, 112)
    assert list(here.lines) == ["x.png", "is cat", "a.onnx: cat (90.00%)", "b.onnx: dog (75.00%)"]
    assert (gone.data, gone.lines[0]) == ("", "y.png (not here)")


def test_confident_answers_that_exclude_each_other_come_first(tmp_path: Path) -> None:
    guess = Disagreement(Path("guess"), 0, 0, 0.5, 1, 0.4)
    sure = Disagreement(Path("sure"), 0, 0, 0.8, 1, 0.9)
    one_sided = Disagreement(Path("one-sided"), 0, 0, 0.99, 1, 0.3)
    both_wrong = Disagreement(Path("both wrong"), 2, 0, 0.99, 1, 0.99)
    (shown,) = blocks(tmp_path, both_wrong, guess, one_sided, sure, report=dataclasses.replace(MULTICLASS, labels=()))
    assert [card.lines[0].removesuffix(" (not here)") for card in shown.cards] == [
        "sure",
        "guess",
        "one-sided",
        "both wrong",
    ]


@pytest.mark.parametrize(("count", "says"), [(MOST, False), (MOST + 1, True)])
def test_the_worst_twelve_are_shown(tmp_path: Path, count: int, says: bool) -> None:
    (shown,) = blocks(tmp_path, *(Disagreement(Path(f"{n}"), 0, 0, 0.9, 1, 0.9) for n in range(count)))
    assert len(shown.cards) == MOST
    assert ("The worst 12:" in shown.lead) is says


def test_agreement_is_said(tmp_path: Path) -> None:
    (shown,) = blocks(tmp_path)
    assert isinstance(shown, Remarks)
    assert "give the same class to all" in shown.sentences[0]


def changed(folder: Path, report: EvaluateReport, *found: ChangedImage, shared: int = 50):
    against = dataclasses.replace(report.against, changed=found, shared=shared)
    loaded = Loaded(folder / "evaluate.json", dataclasses.replace(report, against=against))
    return disagreement_blocks(Material(ReportSources(("a.onnx",)), (), evaluations=(loaded,)))


def flipped(index: int, truth: float | None, first: float, second: float) -> ChangedOutput:
    return ChangedOutput(index=index, truth=truth, first=first, second=second, only_first=first > second)


def test_labels_that_one_model_gives_stand_below_the_image_with_both_scores(tmp_path: Path) -> None:
    drawn(tmp_path / "x.png", (8, 8))
    near = ChangedImage(Path("near.png"), (flipped(0, 0, 0.51, 0.49),))
    far = ChangedImage(Path("x.png"), (flipped(0, 1, 0.6, 0.4), flipped(1, 1, 0.1, 0.9)))
    unknown = ChangedImage(Path("unknown.png"), (flipped(0, None, 0.0, 1.0),))
    (shown,) = changed(tmp_path, MULTILABEL, near, unknown, far)
    assert isinstance(shown, Images)
    assert shown.lead == (
        "a.onnx and b.onnx give different labels to 3 of 50 images; of the 4 labels that differ, "
        "the first is right about 1, the second about 2, and the truth of 1 is not known."
    )
    assert [list(card.lines) for card in shown.cards] == [
        ["x.png", "Hernia: truth yes", "a.onnx: no (10.00%)", "b.onnx: yes (90.00%)",
         "Edema: truth yes", "a.onnx: yes (60.00%)", "b.onnx: no (40.00%)"],
        ["near.png (not here)", "Edema: truth no", "a.onnx: yes (51.00%)", "b.onnx: no (49.00%)"],
        ["unknown.png (not here)", "Edema: truth not known", "a.onnx: no (0.00%)", "b.onnx: yes (100.00%)"],
    ]  # fmt: skip
    assert opened(shown.cards[0].data).size == (112, 112)


@pytest.mark.parametrize(("count", "more"), [(3, []), (4, ["and 1 more"])])
def test_three_labels_of_an_image_are_shown(tmp_path: Path, count: int, more: list[str]) -> None:
    image = ChangedImage(Path("x.png"), tuple(flipped(index, 1, 0.9, 0.1) for index in range(count)))
    (shown,) = changed(tmp_path, dataclasses.replace(MULTILABEL, labels=()), image)
    assert [*shown.cards[0].lines][10:] == more


def test_numbers_that_differ_most_stand_below_the_image(tmp_path: Path) -> None:
    found = (ChangedImage(Path("x.png"), (ChangedOutput(index=1, truth=3.0, first=2.0, second=7.25),)),)
    (shown,) = changed(tmp_path, REGRESSION, *found)
    assert shown.lead == "a.onnx and b.onnx differ most on these of 50 images."
    assert list(shown.cards[0].lines) == ["x.png (not here)", "output 1: truth 3", "a.onnx: 2", "b.onnx: 7.25"]
    (shown,) = changed(tmp_path, REGRESSION, *found * (MOST + 1))
    assert (len(shown.cards), shown.lead.endswith("images.")) == (MOST, True)


@pytest.mark.parametrize(("report", "answer"), [(MULTILABEL, "labels"), (REGRESSION, "numbers")])
def test_equal_answers_are_said_and_nothing_of_a_report_that_did_not_look(tmp_path: Path, report, answer) -> None:
    (shown,) = changed(tmp_path, report)
    assert shown.sentences == [f"a.onnx and b.onnx give the same {answer} to all 50 images."]
    assert changed(tmp_path, report, shared=0) == []
    old = dataclasses.replace(report, against=dataclasses.replace(report.against, changed=None))
    material = Material(ReportSources(("a.onnx",)), (), evaluations=(Loaded(tmp_path / "evaluate.json", old),))
    assert disagreement_blocks(material) == []
