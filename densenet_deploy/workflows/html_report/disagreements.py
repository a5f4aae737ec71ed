"""The images to which two models give the most different answers, small, with the answer of each.

What `evaluate --against` lists is ranked here: first images that one model alone has right, then by the lower of the
two scores, so that two confident answers that exclude each other come before two guesses.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps, UnidentifiedImageError

from densenet_deploy.reports import percent
from densenet_deploy.workflows.evaluation.report import Disagreement, EvaluateReport
from densenet_deploy.workflows.html_report.load import Loaded, Material
from densenet_deploy.workflows.html_report.page import Block, ImageCard, Images, Remarks

MOST: Final = 12
_PIXELS: Final = 112
_MOST_PIXELS: Final = 64 * 2**20  # of an image that is decoded only to be shown
_QUALITY: Final = 80


def disagreement_blocks(material: Material) -> list[Block]:
    """Return the worst disagreements of every evaluation that compared two models."""
    return [block for loaded in material.evaluations for block in _of_evaluation(loaded)]


def _of_evaluation(loaded: Loaded[EvaluateReport]) -> list[Block]:
    report = loaded.report
    other = report.against
    if other is None or report.task != "multiclass" or not other.shared:
        return []
    names = f"{Path(report.model).name} and {Path(other.model).name}"
    found = other.disagreements
    if not found:
        return [Remarks([f"{names} give the same class to all {other.shared} images."])]
    ranked = sorted(found, key=_rank)[:MOST]
    shown = "" if len(found) == len(ranked) else f" The worst {len(ranked)}:"
    right = f"{other.only_first_right} are right only for the first, {other.only_second_right} only for the second"
    lead = f"{names} give different classes to {len(found)} of {other.shared} images; {right}.{shown}"
    return [Images(lead, [_card(one, report, loaded.path.parent) for one in ranked])]


def _rank(one: Disagreement) -> tuple[bool, float, str]:
    return one.truth not in (one.first, one.second), -min(one.first_score, one.second_score), str(one.file)


def _card(one: Disagreement, report: EvaluateReport, folder: Path) -> ImageCard:
    assert report.against is not None
    places = (one.file, folder / one.file)
    data = next(filter(None, map(thumbnail, places)), "")
    return ImageCard(
        data,
        [
            one.file.name if data else f"{one.file.name} (not here)",
            f"is {report.name_of(one.truth)}",
            f"{Path(report.model).name}: {report.name_of(one.first)} ({percent(one.first_score)})",
            f"{Path(report.against.model).name}: {report.name_of(one.second)} ({percent(one.second_score)})",
        ],
    )


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
