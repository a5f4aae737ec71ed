"""Shared code of the benchmarks: alternating rounds, the description of the machine, and the report.

The speed of a shared machine drifts by tens of per cent within minutes, so candidates never run one after the other:
they take turns, and the reported value is the median over the rounds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final, TypeVar

from densenet_deploy.artifacts import write_file
from densenet_deploy.bench.machine import Machine as Machine
from densenet_deploy.bench.machine import busy_cpus as busy_cpus

T = TypeVar("T")

RESULTS: Final = Path(__file__).parent / "results"


def take_turns(candidates: Mapping[str, Callable[[], T]], *, rounds: int, seconds: float = 0) -> dict[str, list[T]]:
    """Call every candidate once per round, and return the results of each by name.

    The order is reversed from round to round, so that no candidate always benefits from the caches of the one before.
    There are at least `rounds` rounds, and further ones until `seconds` have passed.
    """
    names = list(candidates)
    results: dict[str, list[T]] = {name: [] for name in names}
    deadline = time.perf_counter() + seconds
    completed = 0
    while completed < rounds or time.perf_counter() < deadline:
        for name in names:
            results[name].append(candidates[name]())
        names.reverse()
        completed += 1
    return results


def seconds_of(call: Callable[[], object]) -> float:
    """Return the duration of one call, in seconds."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def write_results(path: Path, machine: Machine, results: Mapping[str, object]) -> None:
    """Write `results` as JSON with a description of the machine, and warn on stderr if other programs kept it busy."""
    for note in machine.notes:
        print(f"warning: {note}", file=sys.stderr)
    text = json.dumps({"machine": asdict(machine), **results}, indent=2, allow_nan=False)
    write_file(path, f"{text}\n".encode())


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table with aligned columns."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    rule = "|".join("-" * (width + 2) for width in widths)
    print(f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:]), sep="\n")
