"""What a benchmark found, as JSON, as CSV and as a table, with what makes it less than certain."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from densenet_deploy.bench.comparison import EarlierRun, key_of, speedup_since, unmatched, verdict
from densenet_deploy.bench.machine import Machine
from densenet_deploy.bench.measurement import NOISY_VARIATION, NOTICED_OUTSIDE, Measurement, flat
from densenet_deploy.bench.rounds import Interval
from densenet_deploy.errors import printable

_SCHEMA: Final = 1
_MIB: Final = 2**20


@dataclass(frozen=True)
class Compared:
    """One result against that of an earlier run: `speedup` is how many times as fast it is now."""

    before_ms: float
    speedup: Interval
    same_file: bool

    @property
    def verdict(self) -> str:
        return verdict(self.speedup)

    def to_json(self) -> dict[str, object]:
        """Return the comparison with plain types."""
        return {
            "before_ms": self.before_ms,
            "speedup": dataclasses.asdict(self.speedup),
            "verdict": self.verdict,
            "same_file": self.same_file,
        }


@dataclass(frozen=True)
class BenchmarkReport:
    """A measurement for each contender and batch size, the machine, and the earlier run to compare with, if any.

    `seconds_each` is how long each contender was to be timed.
    """

    results: tuple[Measurement, ...]
    machine: Machine
    remarks: tuple[str, ...] = ()
    earlier: EarlierRun | None = None
    file: Path | None = None
    seconds_each: float | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.remarks, *self.machine.notes, *self._noise(), *self._outside(), *self._about_earlier())

    @functools.cached_property
    def compared(self) -> tuple[Compared | None, ...]:
        """Each result against that of the earlier run, where that has one of the same name, backend and so on."""
        return tuple(map(self._compared, self.results))

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types."""
        return {
            "results": [
                result.to_json() | {"compared": None if compared is None else compared.to_json()}
                for result, compared in zip(self.results, self.compared, strict=True)
            ],
            "machine": dataclasses.asdict(self.machine),
            "seconds_each": self.seconds_each,
            "compared_with": None if self.earlier is None else str(self.earlier.path),
            "file": None if self.file is None else str(self.file),
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return a table and lines for people."""
        table = _table([_row(result) for result in self.results])
        lines = ["", str(self.machine)]
        if self.earlier is not None:
            lines += ["", *map(_comparison_line, self.results, self.compared)]
        return "\n".join([*table, *lines, *([] if self.file is None else [f"wrote {printable(self.file)}"])])

    def _compared(self, result: Measurement) -> Compared | None:
        if self.earlier is None:
            return None
        before = self.earlier.figures.get(key_of(result.to_json()))
        if before is None:
            return None
        speedup = speedup_since(before.rounds_ms, result.rounds_ms)
        return Compared(Interval.of(before.rounds_ms).median, speedup, before.sha256 == result.sha256)

    def _noise(self) -> tuple[str, ...]:
        noisy = [result for result in self.results if result.variation > NOISY_VARIATION]
        unsettled = [result for result in self.results if not result.steady]
        told = []
        if noisy:
            worst = max(noisy, key=lambda result: result.variation)
            share = f"{len(noisy)} of {len(self.results)} results, most in {_title(worst)}: {worst.variation:.0%}"
            told.append(f"the machine is noisy: rounds vary by more than {NOISY_VARIATION:.0%} in {share}")
        if unsettled:
            share = f"{len(unsettled)} of {len(self.results)} results"
            told.append(f"after {unsettled[0].warm_up_rounds} rounds of warm-up times had not settled in {share}")
        return tuple(told)

    def _outside(self) -> tuple[str, ...]:
        """Name the results in which our own copies and checks take a noticeable part of a call."""
        return tuple(
            f"{_title(result)}: {share:.0%} of a call are copies and checks around the backend's own call"
            for result in self.results
            if (share := result.outside_share) is not None and share > NOTICED_OUTSIDE
        )

    def _about_earlier(self) -> tuple[str, ...]:
        if self.earlier is None:
            return ()
        told = ["between two runs the machine itself may have changed; race both files in one run to be sure"]
        if self.earlier.cpu != self.machine.cpu:
            told.append(f"the earlier run was made on another machine: {printable(self.earlier.cpu)}")
        left = unmatched(self.earlier, (key_of(result.to_json()) for result in self.results))
        if left:
            told.append(f"{left} results of the earlier run have no match here")
        return tuple(told)


def file_content(report: BenchmarkReport, suffix: str) -> bytes:
    """Return the report as the bytes of a `.csv` file (one row a result) or a `.json` file."""
    facts = report.to_json()
    if suffix.lower() == ".csv":
        return _csv([result.to_json() for result in report.results])
    return f"{json.dumps({'schema': _SCHEMA, **facts}, indent=2, allow_nan=False)}\n".encode()


def _csv(results: Sequence[dict[str, object]]) -> bytes:
    rows = [flat(result) for result in results]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")


_HEADER: Final = ("model", "backend", "precision", "batch", "threads", "ms [95 %]", "p90", "p99", "images/s", "MiB",
                  "load ms", "first ms", "as fast as the first")  # fmt: skip


def _row(result: Measurement) -> tuple[str, ...]:
    placement, interval = result.opening.placement, result.interval_ms
    streams = "" if result.candidate.streams == 1 else f"{result.candidate.streams} x "
    return (
        printable(result.candidate.model.name, 60),
        placement.backend if placement.device == "cpu" else f"{placement.backend} {placement.device}",
        placement.precision,
        str(result.candidate.batch),
        f"{streams}{placement.threads}",
        f"{interval.median:.2f} [{interval.low:.2f}, {interval.high:.2f}]",
        f"{result.latency.p90:.2f}",
        f"{result.latency.p99:.2f}",
        f"{result.images_per_second:.1f}",
        f"{result.peak_memory_bytes / _MIB:.0f}",
        f"{result.opening.load_seconds * 1e3:.0f}",
        f"{result.opening.first_seconds * 1e3:.1f}",
        "" if result.speedup is None else _times(result.speedup),
        *_camera_cells(result),
    )


def _camera_cells(result: Measurement) -> tuple[str, ...]:
    camera = result.camera
    if camera is None:
        return ()
    return (f"{camera.missed:.1%} of {camera.frames}", str(camera.dropped), str(camera.late))


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    header = (*_HEADER, "missed", "dropped", "late")[: len(rows[0])]
    cells = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _comparison_line(result: Measurement, compared: Compared | None) -> str:
    if compared is None:
        return f"{_title(result)}: not in the earlier run"
    file = "" if compared.same_file else " (another file)"
    now = f"{compared.before_ms:.2f} ms before, {result.interval_ms.median:.2f} ms now"
    return f"{_title(result)}{file}: {compared.verdict}, {now}, {_times(compared.speedup)} as fast"


def _title(result: Measurement) -> str:
    backend, batch = result.opening.placement.backend, result.candidate.batch
    return f"{printable(result.candidate.model.name, 60)} on {backend}, batch {batch}"


def _times(speedup: Interval) -> str:
    return f"{speedup.median:.2f} x [{speedup.low:.2f}, {speedup.high:.2f}]"
