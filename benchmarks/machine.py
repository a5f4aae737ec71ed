"""What the benchmarks share: the machine they ran on, turns that are fair, an interval around a median, and the report.

Times of a shared machine drift by tens of per cent within minutes, so contenders never run one after the other: they
take turns, and what is reported is the median of what each turn says.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, Self, TypeVar

from densenet_deploy.artifacts import write_file
from densenet_deploy.runtime.cpus import cpu_name, usable_cpus

T = TypeVar("T")

RESULTS: Final = Path(__file__).parent / "results"
_QUIET_CPUS: Final = 0.1
_STAT: Final = Path("/proc/stat")


@dataclass(frozen=True)
class Machine:
    """Where and when a benchmark ran; `busy_cpus` is the CPUs' worth of work that others did just before it."""

    cpu: str
    usable_cpus: int
    system: str
    python: str
    versions: Mapping[str, str]
    date: str
    busy_cpus: float | None

    @classmethod
    def this(cls, *packages: str) -> Self:
        """Describe this machine and the versions of `packages`; say so on stderr if others keep it busy."""
        busy = busy_cpus()
        if busy is not None and busy > _QUIET_CPUS:
            print(f"warning: other programs use {busy:.2f} CPUs; figures are preliminary", file=sys.stderr)
        return cls(
            cpu=cpu_name() or platform.processor(),
            usable_cpus=usable_cpus(),
            system=platform.platform(),
            python=platform.python_version(),
            versions={package: metadata.version(package) for package in packages},
            date=dt.datetime.now(dt.UTC).date().isoformat(),
            busy_cpus=busy,
        )


def busy_cpus(seconds: float = 1.0) -> float | None:
    """Return how many CPUs' worth of work is done while this process sleeps; None where the system does not say."""
    if not _STAT.exists():
        return None
    before = _busy_ticks()
    time.sleep(seconds)
    return round((_busy_ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds, 2)


def take_turns(contenders: Mapping[str, Callable[[], T]], *, rounds: int, seconds: float = 0) -> dict[str, list[T]]:
    """Call every contender once a round and return what each call returned, by name.

    The order is reversed from round to round, so that none always profits from what the one before left in a cache.
    There are at least `rounds` rounds, and more until `seconds` are over.
    """
    names = list(contenders)
    results: dict[str, list[T]] = {name: [] for name in names}
    deadline = time.perf_counter() + seconds
    played = 0
    while played < rounds or time.perf_counter() < deadline:
        for name in names:
            results[name].append(contenders[name]())
        names.reverse()
        played += 1
    return results


def seconds_of(call: Callable[[], object]) -> float:
    """Return how long one call took."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def write_results(path: Path, machine: Machine, results: Mapping[str, object]) -> None:
    """Write `results` as JSON together with the machine they belong to."""
    text = json.dumps({"machine": asdict(machine), **results}, indent=2, allow_nan=False)
    write_file(path, f"{text}\n".encode())


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table with aligned columns."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    rule = "|".join("-" * (width + 2) for width in widths)
    print(f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:]), sep="\n")


def _busy_ticks() -> int:
    """Ticks that any CPU spent on anything but idling and waiting for disks, since boot (proc_stat(5))."""
    fields = list(map(int, _STAT.read_text().split("\n", 1)[0].split()[1:9]))
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return user + nice + system + irq + softirq + steal
