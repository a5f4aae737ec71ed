"""Parts that several sections share."""

from __future__ import annotations

from collections.abc import Iterable

from densenet_deploy.analysis.report.page import Block, Cell, Commands, Remarks
from densenet_deploy.pipeline.html_report import cells


def made_by(line: str, option: str, what: str = "There are no data for this") -> Commands:
    """Say which command makes what is missing, and which option takes it."""
    return Commands([line], f"{what} yet. This command makes them; give them with {option}.")


def remarks(sentences: Iterable[str]) -> list[Block]:
    """The sentences as a block, or no block where there are none."""
    told = list(sentences)
    return [Remarks(told)] if told else []


def file_name(path: str) -> Cell:
    """The name of a file without its folder, which no two models share."""
    return cells.text(path.rpartition("/")[2])


def count(number: int) -> Cell:
    """A whole number."""
    return cells.number(number, cells.fixed(0))
