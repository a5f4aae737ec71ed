"""Rows as files: CSV, JSON Lines and Parquet. The same rows give the same bytes.

A file is made in memory, from the rows of one shard, and written by `artifacts`; files are joined without holding more
than one of them.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from densenet_deploy.artifacts import os_errors_about, put_in_place, written_beside
from densenet_deploy.errors import DataError, UnknownNameError, printable
from densenet_deploy.records import to_plain, write_json
from densenet_deploy.serving.batch.rows import Row, RowLayout


class RowFormat(ABC):
    """A kind of file that holds rows, with the `packages` that it takes to write one."""

    suffix: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()

    def __init__(self, layout: RowLayout) -> None:
        self.layout = layout

    @abstractmethod
    def encoded(self, rows: Iterable[Row]) -> bytes:
        """Return a file that holds `rows`."""

    @abstractmethod
    def read(self, path: Path) -> Iterator[tuple[str, bool]]:
        """Yield for every row of a file its image, and whether that was bad. Raises ValueError or OSError."""

    @abstractmethod
    def _join(self, parts: Sequence[Path], out: Path) -> None:
        """Write the rows of all `parts` to the new file `out`."""

    def bad_among(self, path: Path, files: Sequence[str]) -> int:
        """Check that a file holds the rows of `files`, and return how many of them are bad images.

        Raises:
            DataError: if it is not such a file, is cut, or holds rows of other images.
        """
        fix = "remove it, and go on with --resume"
        with os_errors_about(path):
            try:
                rows = list(self.read(path))
            except (ValueError, KeyError, TypeError, csv.Error, OSError) as exc:
                if isinstance(exc, OSError) and exc.errno is not None:  # pyarrow has none where a checksum differs
                    raise
                raise DataError(path, f"does not hold rows as this job writes them ({exc})", fix) from exc
        if len(rows) != len(files):
            raise DataError(path, f"holds {len(rows)} rows, its shard has {len(files)} images", fix)
        for number, ((found, _), file) in enumerate(zip(rows, files, strict=True), start=1):
            if _utf8(found) != _utf8(file):
                raise DataError(path, f"row {number} is of {printable(found)}, not of {printable(file)}", fix)
        return sum(is_bad for _, is_bad in rows)

    def join(self, parts: Sequence[Path], out: Path) -> None:
        """Write the rows of all `parts`, in order, to `out`, whole or not at all.

        Raises:
            ResourceError: if the disk is full, read-only or not permitted.
        """
        with written_beside(out) as temporary:
            self._join(parts, temporary)
            put_in_place(temporary, out)


class CsvRows(RowFormat):
    """A header, and a line for every image."""

    suffix = ".csv"

    def encoded(self, rows: Iterable[Row]) -> bytes:
        lines: list[Sequence[object]] = [self.layout.csv_columns(), *map(self.layout.cells, rows)]
        return _utf8("".join(map(_csv_line, lines))).encode()

    def read(self, path: Path) -> Iterator[tuple[str, bool]]:
        with _whole_lines(path) as lines, _cells_of_any_length():
            reader = csv.reader(lines, strict=True)
            header, width = next(reader, []), len(self.layout.csv_columns())
            if header != [_utf8(name) for name in self.layout.csv_columns()]:
                raise ValueError("another header")
            for cells in reader:
                if len(cells) != width:
                    raise ValueError(f"line {reader.line_num}: {len(cells)} cells")
                yield cells[0], cells[-2] != ""

    def _join(self, parts: Sequence[Path], out: Path) -> None:
        header = self.encoded([])
        with _synced(out) as file:
            file.write(header)
            for part in parts:
                file.write(part.read_bytes()[len(header) :])


class JsonRows(RowFormat):
    """A JSON object on every line."""

    suffix = ".jsonl"

    def encoded(self, rows: Iterable[Row]) -> bytes:
        return "".join(f"{write_json(row)}\n" for row in rows).encode()

    def read(self, path: Path) -> Iterator[tuple[str, bool]]:
        with _whole_lines(path) as lines:
            for row in map(json.loads, lines):
                if tuple(row) != self.layout.columns:
                    raise ValueError("other keys")
                yield row["file"], row["error"] is not None

    def _join(self, parts: Sequence[Path], out: Path) -> None:
        with _synced(out) as file:
            for part in parts:
                file.write(part.read_bytes())


class ParquetRows(RowFormat):
    """A Parquet file with a fixed schema, whose metadata name the task and the outputs (extra `scale`)."""

    suffix = ".parquet"
    packages = ("pyarrow",)

    def encoded(self, rows: Iterable[Row]) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = io.BytesIO()
        pq.write_table(
            pa.Table.from_pylist([_storable(row) for row in rows], self._schema()), sink, write_page_checksum=True
        )
        return sink.getvalue()

    def read(self, path: Path) -> Iterator[tuple[str, bool]]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(path, page_checksum_verification=True) as file:  # ArrowInvalid is a ValueError
            if file.schema_arrow.names != self._schema().names:
                raise ValueError("other columns")
            for batch in file.iter_batches():  # all columns, for their checksums
                yield from zip(
                    batch.column("file").to_pylist(), batch.column("error").is_valid().to_pylist(), strict=True
                )

    def _join(self, parts: Sequence[Path], out: Path) -> None:
        import pyarrow.parquet as pq

        with _synced(out) as file, pq.ParquetWriter(file, self._schema(), write_page_checksum=True) as writer:
            for part in parts:
                writer.write_table(pq.read_table(part, schema=self._schema()))

    def _schema(self) -> Any:
        import pyarrow as pa

        index, text, number = pa.int32(), pa.string(), pa.float64()
        kinds = {
            "index": index,
            "label": text,
            "score": number,
            "top": pa.list_(pa.struct([("index", index), ("label", text), ("score", number)])),
            "positive": pa.list_(text),
            "scores": pa.list_(number),
            "values": pa.list_(number),
            "length": index,
            "norm": number,
            "features": pa.list_(pa.float32()),
            "file": text,
            "error": text,
            "notes": pa.list_(text),
        }
        facts = {"densenet_deploy": write_json(to_plain(self.layout))}
        return pa.schema([(name, kinds[name]) for name in self.layout.columns], metadata=facts)


FORMATS: Final[Mapping[str, type[RowFormat]]] = {"parquet": ParquetRows, "csv": CsvRows, "jsonl": JsonRows}


def format_named(name: str) -> type[RowFormat]:
    """Return the format `name`.

    Raises:
        UnknownNameError: if there is none.
    """
    if name not in FORMATS:
        raise UnknownNameError.among("format", name, FORMATS)
    return FORMATS[name]


@contextlib.contextmanager
def _synced(path: Path) -> Iterator[Any]:
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _whole_lines(path: Path) -> Iterator[Iterator[str]]:
    """Yield the lines of a text file; the last one raises ValueError if it does not end."""

    def checked(lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            if not line.endswith("\n"):
                raise ValueError("the last line is cut")
            yield line

    with path.open(encoding="utf-8", newline="\n") as file:
        yield checked(file)


@contextlib.contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Lift the limit of `csv` (131072 characters), which features of several thousand numbers reach."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _csv_line(cells: Sequence[object]) -> str:
    """Return a line of a CSV. Before Python 3.13 csv quotes a CR only where it belongs to the end of a line."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _utf8(text: str) -> str:
    """Escape what UTF-8 cannot carry: a lone surrogate, from a file name in other bytes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _storable(row: Row) -> dict[str, Any]:
    return {**row, "file": _utf8(row["file"]), **({} if row["error"] is None else {"error": _utf8(row["error"])})}
