"""Parts that several sections share."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from densenet_deploy.analysis.report.page import Block, Cell, Commands, Remarks
from densenet_deploy.workflows.html_report import cells


def made_by(command: str, *arguments: object, missing: str = "There are no data for this yet") -> Commands:
    """Say what is `missing`, with which words after `command` it is made, and which option takes what that prints."""
    line = shlex.join(["densenet-deploy", command, *map(str, arguments), "--json"])
    lead = f"{missing}. This makes them; give what it prints with --{command} {command}.json."
    return Commands([f"{line} > {command}.json"], lead)


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
