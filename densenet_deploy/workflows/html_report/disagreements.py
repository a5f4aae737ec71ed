"""The images to which two models give the most different answers, small, with the answer of each.

What `evaluate --against` lists is ranked here. Of classes: first images that one model alone has right, then by the
lower of the two scores, so that two confident answers that exclude each other come before two guesses. Of labels: by
the largest difference of the scores of a label that only one model gives, those of which nobody knows the truth last.
Numbers come ranked.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageOps, UnidentifiedImageError

from densenet_deploy.reports import number, percent
from densenet_deploy.workflows.evaluation.report import (
    ChangedImage,
    ChangedOutput,
    Disagreement,
    EvaluateReport,
    ModelComparison,
)
from densenet_deploy.workflows.html_report.load import Loaded, Material
from densenet_deploy.workflows.html_report.page import Block, ImageCard, Images, Remarks

MOST: Final = 12
_MOST_LABELS: Final = 3  # of one image
_PIXELS: Final = 112
_MOST_PIXELS: Final = 64 * 2**20  # of an image that is decoded only to be shown
_QUALITY: Final = 80


def disagreement_blocks(material: Material) -> list[Block]:
    """Return the worst disagreements of every evaluation that compared two models."""
    return [block for loaded in material.evaluations for block in _of_evaluation(loaded)]


def _of_evaluation(loaded: Loaded[EvaluateReport]) -> list[Block]:
    report, other = loaded.report, loaded.report.against
    if other is None or not other.shared:
        return []
    found: Sequence[Any] | None = other.disagreements if report.task == "multiclass" else other.changed
    if found is None:
        return []
    names, kind = f"{Path(report.model).name} and {Path(other.model).name}", _KINDS[report.task]
    if not found:
        return [Remarks([f"{names} give the same {kind.answer} to all {other.shared} images."])]
    ranked = (sorted(found, key=kind.rank) if kind.rank else found)[:MOST]
    shown = "" if len(found) == len(ranked) or kind.rank is None else f" The worst {len(ranked)}:"
    cards = [_card(one.file, kind.lines(report, one), loaded.path.parent) for one in ranked]
    return [Images(f"{names} {kind.lead(other)}.{shown}", cards)]


def _card(file: Path, lines: Sequence[str], folder: Path) -> ImageCard:
    data = next(filter(None, map(thumbnail, (file, folder / file))), "")
    return ImageCard(data, [file.name if data else f"{file.name} (not here)", *lines])


def _answers(report: EvaluateReport, first: str, second: str) -> list[str]:
    assert report.against is not None
    return [f"{Path(report.model).name}: {first}", f"{Path(report.against.model).name}: {second}"]


# -- classes


def _class_lead(other: ModelComparison) -> str:
    right = f"{other.only_first_right} are right only for the first, {other.only_second_right} only for the second"
    return f"give different classes to {len(other.disagreements)} of {other.shared} images; {right}"


def _class_rank(one: Disagreement) -> tuple[bool, float, str]:
    return one.truth not in (one.first, one.second), -min(one.first_score, one.second_score), str(one.file)


def _class_lines(report: EvaluateReport, one: Disagreement) -> list[str]:
    first, second = ((one.first, one.first_score), (one.second, one.second_score))
    answers = (f"{report.name_of(index)} ({percent(score)})" for index, score in (first, second))
    return [f"is {report.name_of(one.truth)}", *_answers(report, *answers)]


# -- labels


def _label_lead(other: ModelComparison) -> str:
    labels = [label for image in other.changed or () for label in image.outputs]
    known = [label for label in labels if label.truth is not None]
    first = sum((label.truth == 1) == label.only_first for label in known)
    right = f"the first is right about {first}, the second about {len(known) - first}"
    unknown = f", and the truth of {len(labels) - len(known)} is not known" if len(known) < len(labels) else ""
    images = f"{len(other.changed or ())} of {other.shared} images"
    return f"give different labels to {images}; of the {len(labels)} labels that differ, {right}{unknown}"


def _label_rank(one: ChangedImage) -> tuple[bool, float, str]:
    largest = max(abs(label.first - label.second) for label in one.outputs)
    return all(label.truth is None for label in one.outputs), -largest, str(one.file)


def _label_lines(report: EvaluateReport, one: ChangedImage) -> list[str]:
    ranked = sorted(one.outputs, key=lambda label: -abs(label.first - label.second))
    lines = [line for label in ranked[:_MOST_LABELS] for line in _lines_of_label(report, label)]
    more = len(ranked) - _MOST_LABELS
    return [*lines, *([f"and {more} more"] if more > 0 else [])]


def _lines_of_label(report: EvaluateReport, label: ChangedOutput) -> list[str]:
    truth = "not known" if label.truth is None else "yes" if label.truth == 1 else "no"
    first, second = ("yes", "no") if label.only_first else ("no", "yes")
    answers = _answers(report, f"{first} ({percent(label.first)})", f"{second} ({percent(label.second)})")
    return [f"{report.name_of(label.index)}: truth {truth}", *answers]


# -- numbers


def _number_lead(other: ModelComparison) -> str:
    return f"differ most on these of {other.shared} images"


def _number_lines(report: EvaluateReport, one: ChangedImage) -> list[str]:
    (output,) = one.outputs
    answers = _answers(report, number(output.first), number(output.second))
    return [f"{report.name_of(output.index)}: truth {number(output.truth)}", *answers]


@dataclass(frozen=True)
class _Kind:
    """How the disagreements of a task are told: what an answer is, their sum, the lines of one, and their order."""

    answer: str
    lead: Callable[[ModelComparison], str]
    lines: Callable[[EvaluateReport, Any], list[str]]
    rank: Callable[[Any], tuple[bool, float, str]] | None = None


_KINDS: Final = {
    "multiclass": _Kind("class", _class_lead, _class_lines, _class_rank),
    "multilabel": _Kind("labels", _label_lead, _label_lines, _label_rank),
    "regression": _Kind("numbers", _number_lead, _number_lines),
}


def thumbnail(path: Path) -> str:
    """Return the image as a `data:` address, at most 112 pixels high and wide; empty where it cannot be read."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > _MOST_PIXELS:
                return ""
            image.draft("RGB", (_PIXELS, _PIXELS))
            small = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return ""
    small.thumbnail((_PIXELS, _PIXELS))
    if max(small.size) < _PIXELS:  # dots of small images are to be seen
        factor = _PIXELS // max(small.size)
        small = small.resize((small.width * factor, small.height * factor), Image.Resampling.NEAREST)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
