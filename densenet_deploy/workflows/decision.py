"""Which file to ship: one value that the sentence, the table and the figure of `tune` and `report` are read from.

Candidates are told apart by their 95 % intervals. Those whose interval overlaps that of the choice are *as fast as* it,
whatever their medians. The choice is compared with the *baseline*: the FP32 file with the best accuracy, run as fast as
it runs here.

Accuracies on the same images differ by noise if the images that only one model has right could be a matter of chance.
Where only the two counts are known, a difference of up to five images is always noise: the exact sign test finds no
fewer than six significant at 5 % (2 · 2⁻⁵ = 6.3 %, 2 · 2⁻⁶ = 3.1 %), and images on which the models err in turn only
weaken it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

from densenet_deploy.analysis.choice import (
    Accuracy,
    ModelMerits,
    ParetoPoint,
    choose,
    merit,
    overlap,
    place_of,
    score_of,
)
from densenet_deploy.bench.measurement import require_times
from densenet_deploy.errors import printable
from densenet_deploy.records import Choice, Range
from densenet_deploy.reports import Cell, Table, mebibytes, mib, number_cell, table_of, text_cell, time_cell

NOISE_IMAGES: Final = 5
_SAME_SIZE: Final = 0.005
_NAMED: Final = 2

Positive = Annotated[float, Range(1e-9)]


@dataclass(frozen=True, kw_only=True)
class MeasuredCandidate:
    """One way to run one file, and what was measured of it.

    Attributes:
        model: the file name.
        latency_ms: the median call, with its 95 % interval `interval_ms` where that is known.
        file_bytes: None where the file is not here.
        accuracy: on `labelled` images; `images` tells sets of them apart (`EvaluateReport.truth_sha256`), where known.
        same_class: without labels, the share of `compared_on` with the same best class as the FP32 model's.
        sqnr_db: of the outputs to those of the FP32 model; None where unknown or equal.
        drop_points: percentage points of the accuracy lost to the best FP32 file, or of images with another class.
        is_given: whether it is an FP32 file, which others may be compared with.
        refused: why it may not be shipped, or was not considered; empty where it may.
    """

    model: str
    precision: str
    backend: str
    threads: int
    batch: Annotated[int, Range(1)]
    latency_ms: Positive
    interval_ms: tuple[Positive, Positive] | None
    file_bytes: Annotated[int, Range(1)] | None
    memory_bytes: float | None
    accuracy: Accuracy | None = None
    labelled: int = 0
    images: str | None = None
    same_class: float | None = None
    compared_on: str = ""
    sqnr_db: float | None = None
    drop_points: float | None = None
    is_given: bool = False
    refused: str = ""

    def __post_init__(self) -> None:
        require_times(self.latency_ms, self.interval_ms)

    @property
    def place(self) -> str:
        """How it ran."""
        return place_of(self.backend, self.threads, self.batch)

    @property
    def title(self) -> str:
        """The file and how it ran."""
        return f"{printable(self.model)} on {self.place}"

    @property
    def key(self) -> tuple[str, str, int, int]:
        """The same of the same candidate in another report."""
        return self.model, self.backend, self.threads, self.batch

    @property
    def time(self) -> str:
        """The median call in milliseconds with its interval."""
        return time_cell(self.latency_ms, self.interval_ms).text

    @property
    def size(self) -> str:
        """The size of the file in MiB; empty where it is unknown."""
        return "" if self.file_bytes is None else mib(self.file_bytes)

    @property
    def merits(self) -> ModelMerits:
        """What the rule weighs."""
        low, high = self.interval_ms or (self.latency_ms, self.latency_ms)
        speeds = (self.batch / high, self.batch / low)
        score = score_of(self.accuracy, self.sqnr_db)
        return ModelMerits(self.batch / self.latency_ms, score, self.file_bytes or 0, self.memory_bytes or 0.0, speeds)

    def is_as_fast_as(self, other: MeasuredCandidate) -> bool:
        """Whether the intervals overlap."""
        return overlap(self.merits.span, other.merits.span)


@dataclass(frozen=True)
class Decision:
    """All candidates, the fastest first, and the place of the choice among them; None where nothing can be shipped."""

    candidates: tuple[MeasuredCandidate, ...]
    choice: int | None
    goal: Annotated[str, Choice("latency", "throughput")] = "latency"

    @classmethod
    def of(
        cls,
        candidates: Sequence[MeasuredCandidate],
        chosen: MeasuredCandidate | None = None,
        goal: str = "latency",
    ) -> Decision:
        """Return the decision for `chosen`, or else for what the rule chooses of those that may be shipped."""
        ranked = sorted(candidates, key=lambda one: one.latency_ms / (one.batch if goal == "throughput" else 1))
        kept = [place for place, one in enumerate(ranked) if not one.refused]
        if chosen is not None:
            return cls(tuple(ranked), ranked.index(chosen), goal)
        choice = kept[choose([ranked[place].merits for place in kept])] if kept else None
        return cls(tuple(ranked), choice, goal)

    @property
    def chosen(self) -> MeasuredCandidate | None:
        """The candidate to ship."""
        return None if self.choice is None or self.choice >= len(self.candidates) else self.candidates[self.choice]

    @property
    def kept(self) -> list[MeasuredCandidate]:
        """Those that may be shipped."""
        return [one for one in self.candidates if not one.refused]

    @property
    def as_fast(self) -> list[MeasuredCandidate]:
        """The others that may be shipped and are as fast as the choice."""
        chosen = self.chosen
        return [one for one in self.kept if chosen is not None and one is not chosen and one.is_as_fast_as(chosen)]

    @property
    def baseline(self) -> MeasuredCandidate | None:
        """What the choice is compared with."""
        chosen = self.chosen
        given = [one for one in self.candidates if chosen is not None and one.is_given]
        alike = [one for one in given if chosen is not None and one.batch == chosen.batch] or given
        return max(alike, key=lambda one: (_accuracy(one), one.merits.speed), default=None)

    @property
    def headline(self) -> tuple[str, ...]:
        """How much faster and smaller the choice is, and what is lost; empty where it is itself the baseline."""
        chosen, baseline = self.chosen, self.baseline
        if chosen is None or baseline is None or chosen is baseline:
            return ()
        return speed_in_words(chosen, baseline), size_in_words(chosen, baseline), answers_in_words(chosen, baseline)

    @property
    def is_worse(self) -> bool:
        """Whether the answers of the choice are worse than the baseline's by more than noise."""
        chosen, baseline = self.chosen, self.baseline
        if chosen is None or baseline is None or chosen.accuracy is None or baseline.accuracy is None:
            return False
        return answers_differ(chosen, baseline) and chosen.accuracy.score < baseline.accuracy.score

    @property
    def compared_with(self) -> str:
        """The sentence that the headline belongs to."""
        chosen, baseline = self.chosen, self.baseline
        if chosen is None:
            return ""
        if baseline is None:
            return f"{chosen.time} ms per call; no FP32 file was measured to compare it with."
        if chosen is baseline:
            accuracy = "" if chosen.accuracy is None else f", {chosen.accuracy} of {chosen.labelled} images"
            return f"The FP32 file itself, run as fast as it runs here: {chosen.time} ms per call{accuracy}."
        facts = [f"{chosen.time} against {baseline.time} ms per call"]
        facts.append(f"{chosen.size.removesuffix(' MiB')} against {baseline.size}")
        if chosen.accuracy is not None and baseline.accuracy is not None:
            shown = f"{chosen.accuracy} against {baseline.accuracy.shown}"
            facts.append(f"{shown} of {chosen.labelled} images")
        return f"Compared with {baseline.title}: {', '.join(facts)}."

    @property
    def place_in_words(self) -> str:
        """Whether it is the fastest, or as fast as which others, and what then decided."""
        chosen, ties, count = self.chosen, self.as_fast, len(self.kept)
        if chosen is None:
            return ""
        considered = " considered" if count < len(self.candidates) else ""
        if count == 1:
            return f"The only candidate{considered}.{self._faster_but_refused}"
        what = "fastest" if self.goal == "latency" else "fastest per image"
        if not ties:
            faster = [one for one in self.kept if one.merits.speed > chosen.merits.speed]
            if faster:  # a choice of an older version, or edited by hand
                return f"Not the {what}: {faster[0].title} is {speed_in_words(faster[0], chosen)}."
            return f"The {what} of {count} candidates{considered}.{self._faster_but_refused}"
        next_best = ties[choose([one.merits for one in ties])]
        reason = merit(chosen.merits, next_best.merits)
        over = "it" if len(ties) == 1 else self._named(next_best)
        why = f" Chosen over {over} for {reason}." if reason else ""
        names = ", ".join(map(self._named, ties[:_NAMED]))
        more = f" and {len(ties) - _NAMED} more" if len(ties) > _NAMED else ""
        tied = f"As fast as {names}{more} (95% intervals overlap), of {count} candidates{considered}."
        return f"{tied}{why}{self._faster_but_refused}"

    @property
    def _faster_but_refused(self) -> str:
        """What would be faster than the choice, and why it was not considered: one candidate of each file."""
        chosen, found = self.chosen, dict[str, MeasuredCandidate]()
        for one in self.candidates:
            is_faster = chosen is not None and one.merits.speed > chosen.merits.speed
            if is_faster and one.refused and self._is_like(one):
                found.setdefault(one.model, one)
        named = [f"{one.title} ({self.verdict(one)})" for one in [*found.values()][:_NAMED]]
        return f" Not considered: {', '.join(named)}." if named else ""

    def _is_like(self, one: MeasuredCandidate) -> bool:
        """Whether its speed says anything about the goal: calls of another batch size do not about latency."""
        return self.chosen is None or self.goal == "throughput" or one.batch == self.chosen.batch

    def _named(self, one: MeasuredCandidate) -> str:
        """The title of another candidate, which may run the file of the choice in another way."""
        return f"the same file on {one.place}" if self.chosen and one.model == self.chosen.model else one.title

    @property
    def sentence(self) -> str:
        """The decision in words."""
        head = ", ".join(self.headline)
        return " ".join(filter(None, [f"{head}." if head else "", self.compared_with, self.place_in_words]))

    def verdict(self, one: MeasuredCandidate) -> str:
        """How a candidate compares with the choice, or why it may not be shipped."""
        chosen = self.chosen
        if one is chosen:
            return "chosen"
        speed = "" if chosen is None or not self._is_like(one) else speed_in_words(one, chosen)
        return f"{speed}; {one.refused}" if speed and one.refused else speed or one.refused

    @property
    def shown(self) -> list[MeasuredCandidate]:
        """The choice, those as fast, the baseline, and the fastest candidate of every other file."""
        known = [self.chosen, self.baseline, *self.as_fast]
        models = {one.model for one in known if one is not None}
        others: dict[str, MeasuredCandidate] = {}
        for one in [*self.kept, *self.candidates]:
            if one.model not in models:
                others.setdefault(one.model, one)
        wanted = [*known, *others.values()]
        return [one for one in self.candidates if any(one is other for other in wanted)]

    @property
    def others(self) -> list[MeasuredCandidate]:
        """Those that `shown` leaves out."""
        shown = self.shown
        return [one for one in self.candidates if not any(one is other for other in shown)]

    def number(self, one: MeasuredCandidate) -> int:
        """The number of a candidate, in the table and in the figure."""
        return 1 + next(place for place, other in enumerate(self.candidates) if other is one)

    def table(self, caption: str, rows: Sequence[MeasuredCandidate], folded: str = "") -> Table:
        """Return a table of candidates; columns without any value are left out."""
        longest = max((one.interval_ms or (0.0, one.latency_ms))[1] for one in rows)
        names = dict.fromkeys(one.accuracy.name for one in self.candidates if one.accuracy is not None)
        columns: dict[str, Callable[[MeasuredCandidate], Cell]] = {
            "#": lambda one: Cell(str(self.number(one)), self.number(one)),
            "file": lambda one: replace(text_cell(printable(one.model, 80)), tone=self._tone(one)),
            "runs on": lambda one: text_cell(one.place),
            "ms per call [95%]": lambda one: time_cell(one.latency_ms, one.interval_ms, longest),
            "relative to the choice": lambda one: replace(text_cell(self.verdict(one)), tone=self._tone(one)),
        }
        if self.goal == "throughput":
            columns["images/s"] = lambda one: number_cell(1e3 * one.merits.speed, "{:,.1f}".format)
        columns |= {name: _accuracy_cell(name) for name in names}
        columns |= {
            "points lost": lambda one: number_cell(one.drop_points, "{:.2f}".format),
            "SQNR dB": _sqnr_cell,
            "file MiB": lambda one: number_cell(one.file_bytes, mebibytes),
            "memory MiB": lambda one: number_cell(one.memory_bytes, mebibytes),
        }
        return table_of(caption, rows, columns, folded).without_empty_columns()

    def points(self) -> Iterator[tuple[str, ParetoPoint]]:
        """The key of the metric and the point of every candidate that `shown` has an accuracy of."""
        for one in self.shown:
            if one.accuracy is not None:
                label = f"{printable(one.model, 80)}, {one.place}"
                is_chosen, number = one is self.chosen, self.number(one)
                point = ParetoPoint(label, one.latency_ms, one.accuracy.value, one.interval_ms, number=number)
                yield one.accuracy.key, replace(point, chosen=is_chosen)

    def _tone(self, one: MeasuredCandidate) -> str:
        return "good" if one is self.chosen else "quiet" if one.refused else ""


def _accuracy(one: MeasuredCandidate) -> float:
    return -math.inf if one.accuracy is None else one.accuracy.score


def _sqnr_cell(one: MeasuredCandidate) -> Cell:
    """A dash for the FP32 file that the others are compared with, as it is not compared with itself."""
    if one.sqnr_db == math.inf:
        return number_cell(None) if one.is_given else Cell("∞", math.inf)
    return number_cell(one.sqnr_db, "{:.1f}".format)


def _accuracy_cell(name: str) -> Callable[[MeasuredCandidate], Cell]:
    def cell(one: MeasuredCandidate) -> Cell:
        found = one.accuracy
        return Cell(found.shown, found.value) if found is not None and found.name == name else number_cell(None)

    return cell


def times(ratio: float) -> str:
    """Return a ratio above 1 in words.

    >>> times(12.3), times(2.96), times(1.034)
    ('12 ×', '3.0 ×', '3.4%')
    """
    if ratio >= 1.095:
        return f"{ratio:.0f} ×" if ratio >= 9.95 else f"{ratio:.1f} ×"
    return f"{100 * (ratio - 1):.2g}%"


def speed_in_words(one: MeasuredCandidate, other: MeasuredCandidate) -> str:
    """Return how much faster `one` is: as fast, where the intervals overlap."""
    ratio = one.merits.speed / other.merits.speed
    if one.is_as_fast_as(other):
        return "as fast"
    return f"{times(ratio)} faster" if ratio > 1 else f"{times(1 / ratio)} slower"


def size_in_words(one: MeasuredCandidate, other: MeasuredCandidate) -> str:
    """Return how much smaller the file of `one` is; nothing where one of the sizes is unknown."""
    if one.file_bytes is None or other.file_bytes is None:
        return ""
    ratio = other.file_bytes / one.file_bytes
    if abs(ratio - 1) < _SAME_SIZE:
        return "same size"
    return f"{times(ratio)} smaller" if ratio > 1 else f"{times(1 / ratio)} larger"


def answers_differ(one: MeasuredCandidate, other: MeasuredCandidate) -> bool:
    """Whether the accuracies differ by more than noise, as far as the counts tell."""
    ours, theirs = one.accuracy, other.accuracy
    if ours is None or theirs is None or ours.key != theirs.key:
        return True
    if ours.key == "top1" and one.labelled == other.labelled:
        return _images_apart(one, other) > NOISE_IMAGES
    return ours.shown != theirs.shown


def _images_apart(one: MeasuredCandidate, other: MeasuredCandidate) -> int:
    assert one.accuracy is not None
    assert other.accuracy is not None
    return abs(round(one.labelled * (one.accuracy.value - other.accuracy.value)))


def answers_in_words(one: MeasuredCandidate, other: MeasuredCandidate) -> str:
    """Return what `one` loses to `other`."""
    ours, theirs = one.accuracy, other.accuracy
    if ours is None or theirs is None or ours.key != theirs.key:
        if one.same_class is None:
            return "accuracy not measured"
        changed = 1 - one.same_class
        return (
            f"{changed:.1%} of {one.compared_on} get another class" if changed else f"same class of {one.compared_on}"
        )
    what = "accuracy" if ours.key == "top1" else ours.name
    if ours.value == theirs.value:
        return f"same {what}"
    if not answers_differ(one, other):
        images = f" ({_images_apart(one, other)} of {one.labelled} images)" if ours.key == "top1" else ""
        return f"same {what} within noise{images}" if images else f"same {what}"
    if ours.key == "top1":
        return f"{_points(abs(theirs.value - ours.value))} {'less' if ours.value < theirs.value else 'more'} accurate"
    higher = "higher" if ours.value > theirs.value else "lower"
    if ours.metric.is_error and theirs.value:
        return f"{what} {abs(ours.value / theirs.value - 1):.1%} {higher}"
    return f"{what} {ours.metric.shown(abs(ours.value - theirs.value))} {higher}"


def _points(fraction: float) -> str:
    return f"{100 * fraction:.2f} points"


def from_page(path: Path, page: Path) -> str:
    """Return `path` as a shell in the folder of `page` finds it: relative, unless it is absolute and elsewhere.

    >>> from_page(Path("artifacts/a.onnx"), Path("artifacts/a.html")), from_page(Path("/m/a.onnx"), Path("a.html"))
    ('a.onnx', '/m/a.onnx')
    """
    import os

    folder = page.absolute().parent
    if path.is_absolute() and not path.is_relative_to(folder):
        return str(path)
    return os.path.relpath(path.absolute(), folder)
