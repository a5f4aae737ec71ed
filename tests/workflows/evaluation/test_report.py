"""The report of `evaluate`: text, JSON and HTML of every task."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from densenet_deploy.analysis.accuracy import Confusion, ReliabilityBin
from densenet_deploy.analysis.multilabel import LabelMetrics
from densenet_deploy.analysis.regression import OutputErrors
from densenet_deploy.errors import DataError
from densenet_deploy.workflows.evaluation.report import (
    Accuracy,
    BadFile,
    ChangedImage,
    ChangedOutput,
    ClassResult,
    Disagreement,
    EvaluateReport,
    ModelComparison,
    number,
    percent,
)

RAN = {"images_per_second": 12.34, "seconds": 2.0, "backend": "onnxruntime", "device": "cpu", "precision": "fp32"}
OTHER = {
    "model": "b.onnx",
    "count": 4,
    "images_per_second": 9.0,
    "backend": "openvino",
    "precision": "int8",
    "shared": 3,
}

MULTICLASS = EvaluateReport(
    model="a.onnx",
    task="multiclass",
    count=4,
    top1=0.75,
    top5=1.0,
    calibration_error=0.125,
    reliability=(ReliabilityBin(0.0, 1 / 15, 4, 0.05, 0.75),),
    classes=(ClassResult(0, 3, 2, 2, "cat", 2 / 3), ClassResult(1, 1, 1, 2, "dog", 1.0)),
    confusion=(Confusion(0, 0, 2), Confusion(0, 1, 1), Confusion(1, 1, 1)),
    labels=("cat", "dog"),
    against=ModelComparison(
        **OTHER,
        top1=0.5,
        top5=1.0,
        calibration_error=0.25,
        top1_agreement=2 / 3,
        only_first_right=1,
        only_second_right=0,
        disagreements=(Disagreement(Path("x/1.png"), 0, 0, 0.9, 1, 0.6),),
    ),
    **RAN,
)

LABEL = LabelMetrics(0, "Edema", 4, 1, 2, 0.81234, 0.5, 0.66667, 0.5, 1.0)

MULTILABEL = EvaluateReport(
    model="a.onnx",
    task="multilabel",
    count=4,
    auroc=0.81234,
    average_precision=0.5,
    f1=0.66667,
    by_label=(LABEL, LabelMetrics(1, "Hernia", 4, 0, 0, None, None, None, None, None)),
    labels=("Edema", "Hernia"),
    bad=(BadFile(Path("x/bad.png"), "cannot be decoded"),),
    against=ModelComparison(
        **OTHER,
        auroc=0.8,
        average_precision=0.25,
        f1=None,
        difference={"auroc": 0.01234, "average_precision": -0.25, "f1": None},
        changed=(
            ChangedImage(
                Path("x/1.png"),
                (
                    ChangedOutput(index=0, truth=1.0, first=0.75, second=0.25, only_first=True),
                    ChangedOutput(index=1, truth=None, first=0.4, second=0.6, only_first=False),
                ),
            ),
        ),
        by_label=(LABEL, LABEL),
    ),
    **RAN,
)

REGRESSION = EvaluateReport(
    model="a.onnx",
    task="regression",
    count=4,
    mae=2.0,
    rmse=2.54951,
    by_output=(OutputErrors(0, None, 1.0, 1.5), OutputErrors(1, None, 3.0, 3.25)),
    against=ModelComparison(
        **OTHER,
        mae=2.5,
        rmse=3.0,
        difference={"mae": -0.5, "rmse": -0.45049},
        changed=(ChangedImage(Path("x/1.png"), (ChangedOutput(index=1, truth=3.0, first=2.0, second=7.25),)),),
        by_output=(OutputErrors(0, None, 9.0, 9.5),),
    ),
    **RAN,
)

REPORTS = {one.task: one for one in (MULTICLASS, MULTILABEL, REGRESSION)}
SHARED_KEYS = [
    "images_per_second",
    "seconds",
    "bad",
    "backend",
    "device",
    "precision",
    "labels",
    "sha256",
    "truth_sha256",
    "input",
    "against",
    "notes",
]
OTHER_KEYS = {"model", "count", "images_per_second", "backend", "precision", "sha256", "shared"}


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_a_report_reads_its_own_json(report):
    facts = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert EvaluateReport.from_json(facts) == report
    alone = dataclasses.replace(report, against=None)
    assert alone.to_json()["against"] is None
    assert EvaluateReport.from_json(alone.to_json()) == alone


@pytest.mark.parametrize(
    ("task", "figures", "parts", "compared"),
    [
        (
            "multiclass",
            ["top1", "top5", "calibration_error"],
            ["reliability", "classes", "confusion"],
            {"top1_agreement", "only_first_right", "only_second_right", "disagreements"},
        ),
        ("multilabel", ["auroc", "average_precision", "f1"], ["by_label"], {"difference", "by_label", "changed"}),
        ("regression", ["mae", "rmse"], ["by_output"], {"difference", "by_output", "changed"}),
    ],
)
def test_the_json_has_the_keys_of_its_task_alone(task, figures, parts, compared):
    facts = REPORTS[task].to_json()
    assert list(facts)[: 3 + len(figures)] == ["model", "task", "count", *figures]
    assert set(facts) == {"model", "task", "count", *figures, *parts, *SHARED_KEYS}
    assert set(facts["against"]) == OTHER_KEYS | set(figures) | compared


def test_a_task_that_is_not_evaluated_is_no_report():
    facts = REGRESSION.to_json() | {"task": "features"}
    with pytest.raises(DataError):
        EvaluateReport.from_json(facts)


def test_multiclass_in_words():
    assert MULTICLASS.to_text().splitlines() == [
        "top-1 75.00%, top-5 100.00% on 4 images",
        "calibration error 12.50%",
        "weakest classes: cat (66.7% of 3)",
        "most frequent confusions: cat as dog (1)",
        "12.3 images/s, including decoding (onnxruntime, cpu, fp32)",
        "against b.onnx: top-1 50.00%, 66.67% agreement, only one is right: 1 (this model), 0 (the other)",
        "  x/1.png: truth cat; this model cat (90%), the other dog (60%)",
    ]


def test_multilabel_in_words():
    assert MULTILABEL.to_text().splitlines() == [
        "AUROC 0.8123, average precision 0.5, F1 0.6667 (means over the labels) on 4 images",
        "label   known  positive   AUROC  avg. precision      F1  precision  recall",
        "Edema       4         1  0.8123             0.5  0.6667        0.5       1",
        "Hernia      4         0       –               –       –          –       –",
        "12.3 images/s, including decoding (onnxruntime, cpu, fp32)",
        "not read: x/bad.png: cannot be decoded",
        "against b.onnx: AUROC 0.8, average precision 0.25, F1 – on 4 images",
        "difference, this model minus the other on 3 shared images: AUROC +0.01234, average precision -0.25, F1 –",
        "different labels on 1 of 3 shared images",
        "  x/1.png: Edema: 0.75, the other 0.25, truth 1; Hernia: 0.4, the other 0.6, truth not known",
    ]


def test_regression_in_words():
    assert REGRESSION.to_text().splitlines() == [
        "MAE 2, RMSE 2.55 on 4 images",
        "output    MAE  RMSE",
        "output 0    1   1.5",
        "output 1    3  3.25",
        "12.3 images/s, including decoding (onnxruntime, cpu, fp32)",
        "against b.onnx: MAE 2.5, RMSE 3 on 4 images",
        "difference, this model minus the other on 3 shared images: MAE -0.5, RMSE -0.4505",
        "largest differences:",
        "  x/1.png: output 1: 2, the other 7.25, truth 3",
    ]


def test_one_output_needs_no_table():
    one = dataclasses.replace(REGRESSION, by_output=REGRESSION.by_output[:1], against=None)
    assert len(one.to_text().splitlines()) == 2


def test_twenty_disagreements_are_listed():
    def shown(count):
        found = (MULTICLASS.against.disagreements[0],) * count
        lines = dataclasses.replace(MULTICLASS, against=dataclasses.replace(MULTICLASS.against, disagreements=found))
        return lines.to_text().splitlines()[6:]

    assert len(shown(20)) == 20
    assert shown(21)[20:] == ["… and 1 more; --json lists all"]


@pytest.mark.parametrize("report", [MULTILABEL, REGRESSION])
def test_twenty_changed_images_are_listed_and_none_of_a_report_that_did_not_look(report):
    def shown(changed):
        found = dataclasses.replace(report, against=dataclasses.replace(report.against, changed=changed))
        return found.to_text().splitlines()

    without = len(shown(None))
    assert shown(None)[-1].startswith("difference")
    assert len(shown(report.against.changed * 20)) == without + 21
    assert shown(report.against.changed * 21)[without + 21 :] == ["… and 1 more; --json lists all"]
    facts = report.to_json()
    del facts["against"]["changed"]  # of an older version
    assert EvaluateReport.from_json(facts).against.changed is None


def test_three_weak_classes_and_confusions_are_listed_the_worst_first():
    classes = tuple(ClassResult(index, 10, right, 0, None, right / 10) for index, right in enumerate((9, 1, 10, 5, 2)))
    confusion = tuple(Confusion(0, index, index) for index in range(6))
    report = dataclasses.replace(MULTICLASS, classes=classes, confusion=confusion, labels=(), top5=None, against=None)
    assert report.to_text().splitlines()[:4] == [
        "top-1 75.00% on 4 images",
        "calibration error 12.50%",
        "weakest classes: class 1 (10.0% of 10), class 4 (20.0% of 10), class 3 (50.0% of 10)",
        "most frequent confusions: class 0 as class 5 (5), class 0 as class 4 (4), class 0 as class 3 (3)",
    ]


def test_models_without_a_shared_image_have_no_agreement():
    against = dataclasses.replace(MULTICLASS.against, top1_agreement=None, disagreements=())
    report = dataclasses.replace(MULTICLASS, against=against)
    assert "no image in common" in report.to_text().splitlines()[-1]


@pytest.mark.parametrize(
    ("task", "name"), [("multiclass", "class 7"), ("multilabel", "label 7"), ("regression", "output 7")]
)
def test_outputs_without_labels_are_numbered(task, name):
    assert dataclasses.replace(REPORTS[task], labels=()).name_of(7) == name


def test_a_long_label_is_cut():
    report = dataclasses.replace(MULTICLASS, labels=("x" * 40, "x" * 41))
    assert (report.name_of(0), report.name_of(1)) == ("x" * 40, "x" * 39 + "…")


def test_a_notebook_shows_the_text_and_the_notes():
    page = dataclasses.replace(MULTILABEL, labels=("<b>", "Hernia"), notes=("a & b",))._repr_html_()
    assert "&lt;b&gt;" in page
    assert "AUROC 0.8123" in page
    assert "a &amp; b" in page


def test_what_judges_a_model():
    assert MULTICLASS.accuracy == Accuracy("top1", 0.75)
    assert MULTILABEL.accuracy == Accuracy("auroc", 0.81234)
    assert REGRESSION.accuracy == Accuracy("mae", 2.0)
    assert dataclasses.replace(MULTILABEL, auroc=None).accuracy is None
    assert (str(MULTICLASS.accuracy), str(MULTILABEL.accuracy)) == ("top-1 75.00%", "AUROC 0.8123")


def test_undefined_numbers_are_dashes():
    assert (percent(0.5), percent(0.0), percent(None)) == ("50.00%", "0.00%", "–")
    assert (number(0.81234), number(0.0), number(61.527), number(None)) == ("0.8123", "0", "61.53", "–")


def test_classes_of_the_same_label_are_told_apart_by_their_index():
    report = dataclasses.replace(MULTICLASS, labels=("crane", "crane"))
    assert [report.name_of(index) for index in (0, 1)] == ["crane (0)", "crane (1)"]
    assert "crane (0) as crane (1) (1)" in report.to_text()
    assert dataclasses.replace(MULTICLASS, labels=("x" * 60, "dog")).name_of(0) == "x" * 39 + "…"
    assert dataclasses.replace(MULTICLASS, labels=()).name_of(1) == "class 1"
