"""The accuracy section: the figures of each task, and the classes, labels or outputs that are weak."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from densenet_deploy.reports import Cell, Table, number, number_cell, percent, table_of, text_cell
from densenet_deploy.workflows.evaluation.report import FIGURES, EvaluateReport
from densenet_deploy.workflows.html_report.load import Material
from densenet_deploy.workflows.html_report.page import Block, Section, file_cell, remarks

_WORST: Final = 10

_LEADS: Final = {
    "multiclass": "The calibration error is the mean distance between a model's confidence and how often it is right.",
    "multilabel": "AUROC, average precision and F1 are means over the labels for which they are defined.",
    "regression": "The errors have the unit of the numbers: their mean, and the root of their mean square.",
}


def accuracy_section(material: Material, disagreements: Sequence[Block] = ()) -> Section:
    """How good the models are, by task, where they err, and where they disagree."""
    evaluations = [loaded.report for loaded in material.evaluations]
    tasks = [task for task in FIGURES if any(one.task == task for one in evaluations)]
    lead = " ".join(["Measured on labelled images.", *(_LEADS[task] for task in tasks or ["multiclass"])])
    blocks: list[Block] = [_evaluated(material, task) for task in tasks]
    blocks += [*_mistakes(evaluations), *_labels(evaluations), *_outputs(evaluations), *disagreements]
    notes = dict.fromkeys(note for found in evaluations for note in found.notes)
    return Section("accuracy", "Accuracy", lead, [*blocks, *remarks(notes)])


def _evaluated(material: Material, task: str) -> Table:
    found = [loaded.report for loaded in material.evaluations if loaded.report.task == task]

    def agreement(one: EvaluateReport) -> Cell:
        if one.against is None or one.against.top1_agreement is None:
            return number_cell(None)
        agreed = one.against.top1_agreement
        return Cell(f"{one.against.model.rpartition('/')[2]}: {percent(agreed)}", agreed)

    rows: list[EvaluateReport] = []
    for one in found:
        rows += [one] if one.second is None else [one, one.second]
    columns: dict[str, Callable[[EvaluateReport], Cell]] = {
        "model": lambda one: file_cell(f"{one.model} (since changed)" if material.is_stale(one) else one.model),
        "ran on": lambda one: text_cell(f"{one.backend}, {one.precision}"),
        **{words: _figure(key, percent if task == "multiclass" else number) for key, words in FIGURES[task].items()},
        "images": lambda one: number_cell(one.count),
        "unreadable": lambda one: number_cell(len(one.bad) if one in found else None),
    }
    if task == "multiclass":
        columns["same answer as"] = agreement
    return table_of("Accuracy" if task == "multiclass" else f"Accuracy, {task}", rows, columns)


def _figure(key: str, form: Callable[[float], str]) -> Callable[[EvaluateReport], Cell]:
    return lambda one: number_cell(getattr(one, key), form)


def _mistakes(found: Sequence[EvaluateReport]) -> list[Block]:
    """The weakest classes and the most frequent confusions of every model, folded."""
    weak = [
        (one, part)
        for one in found
        for part in sorted((p for p in one.classes if p.right < p.count), key=lambda p: p.top1)[:_WORST]
    ]
    wrong = [(one.model, *mistake) for one in found for mistake in _confusions(one)]
    caption, blocks = f"At most {_WORST} per model", list[Block]()
    if weak:
        columns: dict[str, Callable[..., Cell]] = {
            "model": lambda row: file_cell(row[0].model),
            "class": lambda row: text_cell(_class_of(row[0], row[1].index)),
            "top-1": lambda row: number_cell(row[1].top1, percent),
            "images": lambda row: number_cell(row[1].count),
        }
        blocks.append(table_of(caption, weak, columns, "Weakest classes"))
    if wrong:
        columns = {
            "model": lambda row: file_cell(row[0]),
            "class": lambda row: text_cell(row[1]),
            "classified as": lambda row: text_cell(row[2]),
            "times": lambda row: number_cell(row[3]),
        }
        blocks.append(table_of(caption, wrong, columns, "Most frequent confusions"))
    return blocks


def _labels(found: Sequence[EvaluateReport]) -> list[Block]:
    """The metrics of every label of the multilabel models, folded."""
    rows = [(one, part) for one in found for part in one.by_label]
    if not rows:
        return []
    columns: dict[str, Callable[..., Cell]] = {
        "model": lambda row: file_cell(row[0].model),
        "label": lambda row: text_cell(row[0].name_of(row[1].index)),
        "AUROC": lambda row: number_cell(row[1].auroc, number),
        "average precision": lambda row: number_cell(row[1].average_precision, number),
        "F1": lambda row: number_cell(row[1].f1, number),
        "precision": lambda row: number_cell(row[1].precision, number),
        "recall": lambda row: number_cell(row[1].recall, number),
        "known": lambda row: number_cell(row[1].count),
        "positive": lambda row: number_cell(row[1].positives),
    }
    return [table_of("F1, precision and recall are those at the thresholds of the model", rows, columns, "Every label")]


def _outputs(found: Sequence[EvaluateReport]) -> list[Block]:
    """The errors of every output of the regressions with several, folded."""
    rows = [(one, part) for one in found if len(one.by_output) > 1 for part in one.by_output]
    if not rows:
        return []
    columns: dict[str, Callable[..., Cell]] = {
        "model": lambda row: file_cell(row[0].model),
        "output": lambda row: text_cell(row[0].name_of(row[1].index)),
        "MAE": lambda row: number_cell(row[1].mae, number),
        "RMSE": lambda row: number_cell(row[1].rmse, number),
    }
    return [table_of("The errors of each output", rows, columns, "Every output")]


def _confusions(report: EvaluateReport) -> list[tuple[str, str, int]]:
    """Class, predicted class and how often, the most frequent first."""
    wrong = sorted((one for one in report.confusion if one.truth != one.predicted), key=lambda one: -one.count)
    return [(_class_of(report, one.truth), _class_of(report, one.predicted), one.count) for one in wrong[:_WORST]]


def _class_of(report: EvaluateReport, index: int) -> str:
    """Return the name of a class; of a report without the labels of all outputs, that of a class with images."""
    known = next((one.label for one in report.classes if one.index == index), None)
    return known if known is not None and not report.labels else report.name_of(index)
