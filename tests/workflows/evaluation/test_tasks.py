"""What each task reads and measures, on a model whose answers are the colours of the images."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from densenet_deploy.analysis.multilabel import LabelAnswers, LabelMetrics
from densenet_deploy.analysis.regression import NumberAnswers, OutputErrors
from densenet_deploy.errors import DataError, ModelFileError, UsageError
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.workflows.evaluate import EvaluateOptions, evaluate
from densenet_deploy.workflows.evaluation.report import ChangedImage, ChangedOutput
from densenet_deploy.workflows.evaluation.tasks import (
    LabelledData,
    Multiclass,
    Multilabel,
    Regression,
    check_sources,
    images_of,
    judged_by,
    task_of,
)
from tests.function_runner import FunctionRunner
from tests.workflows.evaluation.colours import COLOURS, painted, runner

AT_HALF = "no thresholds are stated: F1, precision and recall are those at 0.5"
IMAGES = {"a.png": (200, 10, 127), "b.png": (128, 20, 255), "c.png": (127, 30, 0), "d.png": (50, 40, 129)}


@pytest.fixture
def folder(tmp_path):
    return painted(tmp_path, IMAGES)


def _csv(folder, *lines):
    (folder / "truth.csv").write_text("\n".join(lines) + "\n")
    return folder / "truth.csv"


def test_labels_are_judged_by_rank_and_threshold(folder):
    data = _csv(folder, "file,blue,red,green", "a.png,0,1,1", "b.png,1,1,1", "c.png,,0,1", "d.png,0,1,1")
    report = evaluate(runner(), data)
    assert (report.task, report.count, report.labels) == ("multilabel", 4, COLOURS)
    red, green, blue = report.by_label
    assert red == LabelMetrics(0, "red", 4, 3, 2, 2 / 3, (1 + 1 + 3 / 4) / 3, 2 * 2 / 5, 1.0, 2 / 3)
    assert green == LabelMetrics(1, "green", 4, 4, 0, None, None, 0.0, None, 0.0)
    assert blue == LabelMetrics(2, "blue", 3, 1, 2, 1.0, 1.0, 2 / 3, 1 / 2, 1.0)
    assert report.auroc == pytest.approx((2 / 3 + 1) / 2)
    assert report.average_precision == pytest.approx((11 / 12 + 1) / 2)
    assert report.f1 == pytest.approx((4 / 5 + 0 + 2 / 3) / 3)
    assert report.notes == (AT_HALF, "AUROC is undefined without both positive and negative images: green")


def test_thresholds_are_those_of_the_model(folder):
    """A logit of 0 is a score of exactly 0.5, which reaches the threshold; red of b is that one."""
    data = _csv(folder, "file,red,green,blue", *(f"{name},1,0,0" for name in IMAGES))
    strict = evaluate(runner(thresholds=(0.6, 0.5, 0.5)), data)
    assert (strict.by_label[0].answered, evaluate(runner(), data).by_label[0].answered) == (1, 2)
    assert AT_HALF not in strict.notes


def test_scores_that_saturate_are_still_ranked(folder):
    """The sigmoid of 40 and of 45 are both 1 in float64; the logits tell them apart."""
    painted(folder, {"e.png": (240, 0, 0), "f.png": (245, 0, 0)})
    data = _csv(folder, "file,red,green,blue", "e.png,0,0,0", "f.png,1,0,0")
    assert evaluate(runner(shift=-200.0), data).by_label[0].auroc == 1.0


def test_folders_give_one_positive_label(tmp_path):
    painted(tmp_path, {"red/a.png": (200, 0, 0), "blue/b.png": (0, 0, 200), "blue/c.png": (150, 0, 10)})
    report = evaluate(runner(), tmp_path)
    assert [(one.positives, one.answered) for one in report.by_label] == [(1, 2), (0, 0), (2, 1)]
    assert report.by_label[1].auroc is report.by_label[1].f1 is None
    assert report.notes[0] == "the class of an image was taken as its only positive label, all others as negative"


def test_a_file_of_classes_gives_one_positive_label(folder):
    truth = folder / "truth.txt"
    truth.write_text("".join(f"{name} {index}\n" for name, index in zip(IMAGES, (0, 1, 2, 0), strict=True)))
    report = evaluate(runner(), folder, EvaluateOptions(ground_truth=truth))
    assert [one.positives for one in report.by_label] == [2, 1, 1]


def test_folders_cannot_judge_a_single_label(tmp_path):
    painted(tmp_path, {"red/a.png": (200, 0, 0), "other/b.png": (0, 0, 0)})
    with pytest.raises(DataError) as caught:
        evaluate(runner(labels=("red",), outputs=1), tmp_path)
    assert (caught.value.subject, caught.value.fix) == (str(tmp_path), "give a CSV: file,red")
    with pytest.raises(DataError) as caught:
        evaluate(runner(labels=(), outputs=1), tmp_path)
    assert caught.value.fix == "give a CSV: file,label"


def test_a_single_label_takes_any_column_name(folder):
    data = _csv(folder, "file,sick", "a.png,1", "b.png,1", "c.png,0", "d.png,0")
    report = evaluate(runner(labels=(), outputs=1), data)
    assert (report.auroc, report.f1, report.notes) == (1.0, 1.0, (AT_HALF,))


def test_columns_in_the_order_of_the_outputs_are_remarked_on(folder):
    data = _csv(folder, "file,x,y,z", *(f"{name},1,0,0" for name in IMAGES))
    notes = evaluate(runner(labels=()), data).notes
    assert notes[0] == "the model has no labels: the columns were taken as its outputs in order"
    assert notes[2].endswith(": label 0, label 1, label 2")


def test_many_undefined_labels_are_counted(folder):
    labels = tuple("abcdefgh")
    model = FunctionRunner(lambda batch: {"logits": np.zeros((len(batch), 8), np.float32)})
    model.manifest = dataclasses.replace(runner().manifest, labels=labels)
    data = _csv(folder, f"file,{','.join(labels)}", "a.png,1,1,1,1,1,1,1,1")
    report = evaluate(model, data)
    assert report.notes[1].endswith(": a, b, c, d, e and 3 more")
    assert (report.auroc, report.average_precision, report.f1) == (None, None, 1.0)
    assert report.accuracy is None


@pytest.mark.parametrize(
    ("scale", "word"), [(1 / 255, "scores, since all are in 0..1"), (1 / 254, "logits, since some are outside 0..1")]
)
def test_whether_outputs_are_scores_is_decided_by_all_of_them(folder, scale, word):
    """Alone, the row of d is within 0..1 either way."""
    data = _csv(folder, "file,red,green,blue", "a.png,1,1,0", "b.png,0,0,1", "d.png,1,0,0")
    report = evaluate(runner(is_ours=False, shift=0.0, scale=scale), data)
    assert report.notes[-1] == f"the model does not show whether it ends in a sigmoid: its outputs were taken as {word}"
    assert [one.answered for one in report.by_label] == ([2, 0, 2] if "scores" in word else [3, 3, 3])


def test_numbers_are_judged_by_their_errors(folder):
    data = _csv(folder, "file,green,red,blue", "a.png,10,203,127", "b.png,20,124,255")
    report = evaluate(runner("regression", shift=0.0), data)
    assert (report.task, report.count, report.mae) == ("regression", 2, 7 / 6)
    assert report.rmse == pytest.approx(math.sqrt(25 / 6))
    assert report.by_output == (
        OutputErrors(0, "red", 3.5, math.sqrt(25 / 2)),
        OutputErrors(1, "green", 0.0, 0.0),
        OutputErrors(2, "blue", 0.0, 0.0),
    )
    assert report.notes == ()
    assert evaluate(runner("regression", (), shift=0.0), data).notes == (
        "the model has no labels: the columns were taken as its outputs in order",
    )


@pytest.mark.parametrize("given", [{}, {"ground_truth": "truth.txt"}])
def test_folders_hold_no_numbers(tmp_path, given):
    painted(tmp_path, {"red/a.png": (200, 0, 0)})
    for labels, fix in ((COLOURS, "give a CSV: file,red"), ((), "give a CSV: file,value")):
        with pytest.raises(DataError) as caught:
            evaluate(runner("regression", labels), tmp_path, EvaluateOptions(**given))
        assert caught.value.fix == fix


def test_one_number_is_taken_as_a_regression_which_is_said(folder):
    data = _csv(folder, "file,red", "a.png,200")
    report = evaluate(runner(None, outputs=1, labels=(), shift=0.0), data)
    assert (report.task, report.mae) == ("regression", 0.0)
    assert report.notes[0].startswith("the model does not state its task: its one number is taken as a regression")
    with pytest.raises(DataError) as caught:
        evaluate(runner(None, outputs=1, labels=()), folder)
    assert caught.value.fix == "give a CSV: file,value, or state the task multilabel if it is a yes or no"


def test_classes_from_a_csv(folder):
    data = _csv(folder, "file,label", "a.png,red", "b.png,blue", "c.png,green", "d.png,blue")
    report = evaluate(runner("multiclass"), data)
    assert (report.task, report.top1, report.top5, report.count) == ("multiclass", 0.75, None, 4)
    assert [(one.label, one.count, one.right, one.answered) for one in report.classes] == [
        ("red", 1, 1, 2), ("green", 1, 0, 0), ("blue", 2, 2, 2),
    ]  # fmt: skip


def test_features_are_neither_right_nor_wrong(folder):
    with pytest.raises(ModelFileError) as caught:
        evaluate(runner("features"), _csv(folder, "file,label", "a.png,0"))
    assert "features" in caught.value.why


@pytest.mark.parametrize("kind", [Multiclass, Multilabel, Regression])
def test_every_other_task_has_its_evaluation(kind):
    assert type(task_of(Classifier(runner(kind.task)), "model")) is kind


@pytest.mark.parametrize("shown", [3, None])
def test_a_model_that_does_not_show_its_classes_is_run_once(shown):
    model = runner(shown=shown)
    assert Multilabel(Classifier(model)).classes == 3
    assert model.runs == (0 if shown else 1)


def test_a_model_that_does_not_show_its_classes_still_refuses_others(folder):
    with pytest.raises(DataError) as caught:
        evaluate(runner("multiclass", (), shown=None), _csv(folder, "file,label", "a.png,3"))
    assert "classes 0 to 2" in caught.value.why


def test_without_labels_there_are_as_many_folders_as_classes(tmp_path):
    for number in range(4):
        painted(tmp_path, {f"{number}/a.png": (0, 0, 0)})
        if number == 2:
            assert evaluate(runner("multiclass", ()), tmp_path).count == 3
        else:
            with pytest.raises(DataError) as caught:
                evaluate(runner("multiclass", ()), tmp_path)
            assert caught.value.why == f"has {number + 1} class folders, the model 3 classes"


def test_images_of_a_folder_and_of_a_csv(folder):
    assert [path.name for path in images_of(folder)] == list(IMAGES)
    assert [path.name for path in images_of(_csv(folder, "file,x", "d.png,1", "a.png,0"))] == ["d.png", "a.png"]


def test_a_table_with_tabs_is_a_table_too(folder):
    _csv(folder, "file\tlabel", "a.png\t0").rename(folder / "truth.tsv")
    assert images_of(folder / "truth.tsv") == (folder / "a.png",)


def test_a_folder_may_be_called_csv(tmp_path):
    assert images_of(painted(tmp_path / "all.csv", {"a.png": (0, 0, 0)})) == (tmp_path / "all.csv" / "a.png",)


def test_a_csv_holds_the_truth_itself(tmp_path):
    check_sources(tmp_path, tmp_path / "truth.txt")
    check_sources(tmp_path / "truth.CSV", None)
    with pytest.raises(UsageError) as caught:
        check_sources(tmp_path / "truth.CSV", tmp_path / "truth.txt")
    assert caught.value.subject == "ground-truth"


@pytest.mark.parametrize(("task", "figure"), [("multiclass", "top1"), (None, "top1"), ("multilabel", "auroc")])
def test_what_judges_a_task(task, figure):
    assert judged_by(runner(task), "model", "--max-drop") == figure


@pytest.mark.parametrize("task", ["regression", "features"])
def test_other_tasks_are_not_judged_in_points(task):
    with pytest.raises(UsageError) as caught:
        judged_by(runner(task), "model", "--max-drop")
    assert (caught.value.subject, task in caught.value.why) == ("--max-drop", True)


def test_sets_of_images_are_told_apart_by_their_truth():
    one = LabelledData({Path("x/a.png"): 0, Path("x/b.png"): 1})
    assert one.sha256 == LabelledData({Path("y/b.png"): 1, Path("y/a.png"): 0}).sha256
    for other in ({Path("x/a.png"): 0, Path("x/b.png"): 0}, {Path("x/a.png"): 0}, {Path("a"): 0, Path("b"): 1}):
        assert LabelledData(other).sha256 != one.sha256


def test_labelled_data_has_no_remarks_by_itself():
    assert LabelledData({}).remarks == ()


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_without_shared_images_there_is_no_difference(task):
    found = task_of(Classifier(runner(task)), "model")
    names = ("auroc", "average_precision", "f1") if task == "multilabel" else ("mae", "rmse")
    assert found.compared(None, None, []) == {"difference": dict.fromkeys(names), "changed": ()}


def test_differences_are_those_on_shared_images():
    """Ours is right about both shared images, theirs about one; the image that only theirs read does not count."""
    found = task_of(Classifier(runner("regression")), "model")
    ours = NumberAnswers(np.array([[1.0], [2.0]]), np.array([[1.0], [2.0]]))
    theirs = NumberAnswers(np.array([[9.0], [2.0], [1.0]]), np.array([[0.0], [2.0], [4.0]]))
    shared = [("a.png", 0, 2), ("b.png", 1, 1)]
    compared = found.compared(ours, theirs, shared)
    assert compared["difference"] == {"mae": -1.5, "rmse": pytest.approx(-math.sqrt(4.5))}
    assert compared["changed"] == (ChangedImage("a.png", (ChangedOutput(index=0, truth=1.0, first=1.0, second=4.0),)),)


def test_a_difference_of_what_is_undefined_is_undefined():
    found = task_of(Classifier(runner("multilabel")), "model")
    truth, outputs, positive = np.array([[1.0], [0.0]]), np.array([[0.9], [0.1]]), np.array([[True], [True]])
    ours = LabelAnswers(truth, outputs, positive, outputs)
    theirs = LabelAnswers(truth, -outputs, ~positive, 1 - outputs)
    both = [("a.png", 0, 0), ("b.png", 1, 1)]
    expected = {"auroc": 1.0, "average_precision": 0.5, "f1": pytest.approx(2 / 3)}
    assert found.compared(ours, theirs, both)["difference"] == expected
    expected = {"auroc": None, "average_precision": None, "f1": 1.0}
    assert found.compared(ours, theirs, both[:1])["difference"] == expected


def test_a_label_that_one_model_alone_gives_is_found_with_both_scores():
    """Each by its own threshold: the second model gives the label at a lower score."""
    found = task_of(Classifier(runner("multilabel")), "model")
    truth = np.array([[1.0, 0.0], [math.nan, 0.0], [1.0, 1.0]])
    scores = np.array([[0.9, 0.2], [0.6, 0.1], [0.9, 0.9]])
    others = np.array([[0.9, 0.4], [0.4, 0.1], [0.8, 0.8]])
    ours = LabelAnswers(truth, scores, scores >= 0.5, scores)
    theirs = LabelAnswers(truth[::-1], others[::-1], others[::-1] >= [0.5, 0.3], others[::-1])
    shared = [("a.png", 0, 2), ("b.png", 1, 1), ("c.png", 2, 0)]
    assert found.compared(ours, theirs, shared)["changed"] == (
        ChangedImage("a.png", (ChangedOutput(index=1, truth=0.0, first=0.2, second=0.4, only_first=False),)),
        ChangedImage("b.png", (ChangedOutput(index=0, truth=None, first=0.6, second=0.4, only_first=True),)),
    )
    assert found.compared(ours, theirs, shared[2:])["changed"] == ()


def test_numbers_that_differ_most_are_found_in_units_of_their_output():
    """Of centimetres and kilometres, 2 km are more than 50 cm where each usually differs by less."""
    found = task_of(Classifier(runner("regression")), "model")
    zeros = np.zeros((3, 2))
    differences = np.array([[50.0, 0.0], [10.0, 2.0], [10.0, 0.0]])  # root mean squares 30 and 1.15: 1.67, 1.73, 0.33
    shared = [(f"{name}.png", row, row) for row, name in enumerate("abc")]
    compared = found.compared(NumberAnswers(zeros, zeros), NumberAnswers(zeros, differences), shared)
    found_outputs = [(image.file, image.outputs[0].index, image.outputs[0].second) for image in compared["changed"]]
    assert found_outputs == [("b.png", 1, 2.0), ("a.png", 0, 50.0), ("c.png", 0, 10.0)]


@pytest.mark.parametrize(("count", "kept"), [(20, 20), (21, 20)])
def test_twenty_numbers_are_kept_and_equal_ones_are_not(count, kept):
    found = task_of(Classifier(runner("regression")), "model")
    shared = [(f"{row}.png", row, row) for row in range(count + 1)]
    values = np.array([[float(row)] for row in range(count + 1)])  # the first differs by nothing
    compared = found.compared(NumberAnswers(values, values), NumberAnswers(values, 2 * values), shared)
    assert [image.file for image in compared["changed"]] == [f"{row}.png" for row in range(count, count - kept, -1)]
