"""Calibration images in two parts: those that choose channels and fit weights, and those that judge the result."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from densenet_deploy.errors import DataError
from densenet_deploy.quantization.calibrate import varied
from densenet_deploy.quantization.calibration_data import CalibrationData, ImageFolder
from densenet_deploy.runtime.image_folders import find_images

if TYPE_CHECKING:
    from densenet_deploy.runtime.feeds import Array

MOST_JUDGING: Final = 64
_EVERY: Final = 4


@dataclass(frozen=True, eq=False)
class SplitImages:
    """Inputs (1, C, H, W): of four that follow each other, three choose and the fourth judges.

    Attributes:
        choosing: they choose channels and fit weights.
        judging: at most 64, which do neither.
        left_out: how many of the first kind were not used.
    """

    choosing: tuple[Array, ...]
    judging: tuple[Array, ...]
    left_out: int

    @classmethod
    def of(cls, data: CalibrationData, most: int) -> SplitImages:
        """Read `data`; at most `most` choose.

        Raises:
            DataError: if there are fewer than 32, or they are all alike, or an image cannot be read.
        """
        choosing: list[Array] = []
        judging: list[Array] = []
        left_out = 0
        for place, sample in enumerate(varied(data, data.origin)):
            if _judges(place):
                judging += [sample] if len(judging) < MOST_JUDGING else []
            elif len(choosing) < most:
                choosing.append(sample)
            else:
                left_out += 1
        return cls(tuple(choosing), tuple(judging), left_out)


def _judges(place: int) -> bool:
    return place % _EVERY == _EVERY - 1


@contextlib.contextmanager
def judging_folder(folder: Path, data: CalibrationData, choosing: int) -> Iterator[Path]:
    """Give a folder for the block with class folders of links: to all images of `folder` that did not choose.

    `choosing` is how many of `data` did.

    Raises:
        DataError: if a class would have no image, which would make other classes of a model without labels.
    """
    assert isinstance(data, ImageFolder)  # as is every folder
    chose = {path for place, path in enumerate(data.paths) if not _judges(place)}
    chose = set([path for path in data.paths if path in chose][:choosing])
    with tempfile.TemporaryDirectory() as made:
        for path in find_images(folder):
            if path not in chose:
                link = Path(made) / path.relative_to(folder)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.absolute())
        missing = sorted({path.parent.name for path in chose} - {path.name for path in Path(made).iterdir()})
        if missing:
            why = "has no image left to judge by, all of them choose channels"
            raise DataError(folder / missing[0], why, "give more images of it, or use --min-sqnr")
        yield Path(made)
