"""Read what is true about images from a CSV, in the form that the task of the model asks for.

::

    file,label                      multiclass: a label of the model, or the index of a class counted from 0
    a.png,tabby

    file,Edema,Effusion             multilabel: 1 where the label holds, 0 where it does not; empty, nan or -1
    a.png,1,0                       where nobody knows
    b.png,,1

    file,age                        regression: numbers
    a.png,61.5

Semicolons and tabs may stand for the commas, and True and False for 1 and 0. Files are relative to the folder of the
CSV. Columns are matched to the labels of the model by name, in any order; a
model without labels takes them in the order of its outputs. All that does not fit is refused, with its line and column.
"""

from __future__ import annotations

import difflib
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from densenet_deploy.artifacts import StrPath
from densenet_deploy.errors import DataError
from densenet_deploy.workflows.image_sources import FILE_COLUMN, csv_lines

_CLASS_COLUMNS: Final = ("label",)
_UNKNOWN: Final = ("", "nan")
_TRUTH: Final = {"true": 1.0, "false": 0.0}
_SHOWN: Final = 5


@dataclass(frozen=True)
class Row:
    """The line of a row in the CSV, its image, and the cells after that."""

    line: int
    path: Path
    cells: tuple[str, ...]


@dataclass(frozen=True)
class LabelTable:
    """A CSV about images: the line of its header, the names in it after `file`, and a row for every image.

    >>> LabelTable.read("val.csv").classes(("cat", "dog"), 2)      # doctest: +SKIP
    {PosixPath('val/1.png'): 1, PosixPath('val/2.png'): 0}
    """

    file: Path
    line: int
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @classmethod
    def read(cls, file: StrPath) -> Self:
        """Read a UTF-8 file with commas, semicolons or tabs between its cells; lines without anything are skipped.

        Raises:
            InputError: if the file does not exist.
            DataError: if it is not such a CSV, holds no image, or names one that does not exist, or names one twice.
        """
        file = Path(file)
        lines = [(line, cells) for line, cells in csv_lines(file) if any(cells)]
        if not lines:
            raise DataError(file, "is empty", "write a header, such as file,label, and one line per image")
        (first, (name, *columns)), *rest = lines
        if name != FILE_COLUMN:
            raise DataError(file, f"line {first}: the first column is {name!r}, not 'file'", "write a header: file,…")
        if not columns:
            raise DataError(file, f"line {first}: has no column after 'file'", "add one, such as label")
        name, count = Counter(columns).most_common(1)[0]
        if count > 1 or not all(columns):
            why = f"column {name!r} appears {count} times" if count > 1 else "a column has no name"
            raise DataError(file, f"line {first}: {why}", "give every column a name of its own")
        if not rest:
            raise DataError(file, "names no image", "write one line per image below the header")
        return cls(file, first, tuple(columns), tuple(_rows(file, len(columns), rest)))

    def classes(self, labels: Sequence[str], count: int | None) -> dict[Path, int]:
        """Return the index of the class of every image.

        Args:
            labels: of the model, or none.
            count: how many classes it has; None if it does not say.

        Raises:
            DataError: if there are other columns than `label`, or a cell is not a class of the model.
        """
        if self.columns != _CLASS_COLUMNS:
            why = f"line {self.line}: has the columns {_listed(self.columns)}; a multiclass model needs one, 'label'"
            raise DataError(self.file, why, "write file,label; for several labels per image state --task multilabel")
        places: dict[str, list[int]] = {}
        for index, label in enumerate(labels):
            places.setdefault(label, []).append(index)
        if any(row.cells[0] in places for row in self.rows):
            return {row.path: self._named(row, places) for row in self.rows}
        return {row.path: self._numbered(row, labels, count) for row in self.rows}

    def label_rows(self, labels: Sequence[str], count: int | None) -> dict[Path, tuple[float, ...]]:
        """Return 1, 0 or NaN (unknown) for every label of every image, in the order of the outputs.

        Arguments as of `classes`.

        Raises:
            DataError: if the columns are not the labels of the model, or a cell is something else.
        """
        return self._in_order(labels, count, self._known)

    def numbers(self, labels: Sequence[str], count: int | None) -> dict[Path, tuple[float, ...]]:
        """Return the numbers of every image, in the order of the outputs.

        Arguments as of `classes`.

        Raises:
            DataError: if the columns are not the outputs of the model, or a cell is not a finite number.
        """
        return self._in_order(labels, count, self._number)

    def _named(self, row: Row, places: Mapping[str, Sequence[int]]) -> int:
        (name,) = row.cells
        if name not in places:
            near = difflib.get_close_matches(name, places)
            fix = f"did you mean {near[0]!r}?" if near else f"the labels are {_listed(tuple(places))}"
            raise DataError(self.file, f"{_at(row, 'label')}: {name!r} is not a label of the model", fix)
        index, *others = places[name]
        if others:
            why = f"{_at(row, 'label')}: {name!r} is the label of several classes"
            raise DataError(self.file, why, "write indices counted from 0 in the whole column")
        return index

    def _numbered(self, row: Row, labels: Sequence[str], count: int | None) -> int:
        (text,) = row.cells
        if not (text.isascii() and text.isdecimal()):
            fix = f"the labels are {_listed(labels)}" if labels else "write indices counted from 0, or state --labels"
            raise DataError(self.file, f"{_at(row, 'label')}: {text!r} is neither a label nor an index", fix)
        if count is not None and int(text) >= count:
            why = f"{_at(row, 'label')}: is class {text}, the model has classes 0 to {count - 1}"
            raise DataError(self.file, why, "count from 0, in the order of the model")
        return int(text)

    def _in_order(
        self, labels: Sequence[str], count: int | None, value: Callable[[Row, int], float]
    ) -> dict[Path, tuple[float, ...]]:
        places = self._places(labels, count)
        return {row.path: tuple(value(row, place) for place in places) for row in self.rows}

    def _places(self, labels: Sequence[str], count: int | None) -> list[int]:
        """Return the column of every output."""
        if not labels:
            if count not in (None, len(self.columns)):
                found = f"{len(self.columns)} columns after 'file'"
                why = f"line {self.line}: has {found}, the model has {count} outputs and no labels"
                raise DataError(self.file, why, "write one column per output in their order, or state --labels")
            return list(range(len(self.columns)))
        repeated, times = Counter(labels).most_common(1)[0]
        if times > 1:
            why = f"{repeated!r} is the label of {times} outputs, so columns cannot be matched to outputs by name"
            raise DataError(self.file, why, "state distinct --labels")
        unknown = next((name for name in self.columns if name not in labels), None)
        if unknown is not None:
            near = difflib.get_close_matches(unknown, labels)
            fix = f"did you mean {near[0]!r}?" if near else f"remove it; the labels are {_listed(labels)}"
            raise DataError(self.file, f"line {self.line}, column {unknown!r}: is not a label of the model", fix)
        missing = [name for name in labels if name not in self.columns]
        if missing:
            fix = "add them; cells may be empty where a label is unknown (multilabel only)"
            raise DataError(self.file, f"line {self.line}: has no column for {_listed(missing)}", fix)
        return [self.columns.index(name) for name in labels]

    def _known(self, row: Row, place: int) -> float:
        text = row.cells[place]
        if text.lower() in _UNKNOWN:
            return math.nan
        value = _TRUTH.get(text.lower(), _parsed(text))
        if value is None or value not in (-1, 0, 1):
            why = f"{_at(row, self.columns[place])}: is {text!r}, not 1, 0, true, false, or (unknown) empty, nan, -1"
            raise DataError(self.file, why, "correct the cell")
        return math.nan if value == -1 else value

    def _number(self, row: Row, place: int) -> float:
        text = row.cells[place]
        value = _parsed(text)
        if value is None:
            why = f"{_at(row, self.columns[place])}: is {text!r}, not a finite number"
            raise DataError(self.file, why, "correct the cell, or remove the line")
        return value


def _rows(file: Path, columns: int, lines: Sequence[tuple[int, list[str]]]) -> list[Row]:
    rows: dict[Path, Row] = {}
    for line, (name, *cells) in lines:
        if len(cells) != columns:
            why = f"line {line}: has {len(cells) + 1} cells, the header {columns + 1}"
            raise DataError(file, why, "write one cell per column; quote names with commas")
        path = Path(os.path.normpath(file.parent / name))
        if not name or not path.is_file():
            why = f"line {line}, column 'file': there is no file {name!r} in {file.parent}"
            raise DataError(file, why, "write paths relative to the folder of the CSV")
        if path in rows:
            why = f"line {line}, column 'file': {name!r} is already in line {rows[path].line}"
            raise DataError(file, why, "name every image once")
        rows[path] = Row(line, path, tuple(cells))
    return list(rows.values())


def _parsed(text: str) -> float | None:
    """Return the finite number that `text` is; None if it is not one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


def _at(row: Row, column: str) -> str:
    return f"line {row.line}, column {column!r}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
