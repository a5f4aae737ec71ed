"""Which images a list of sources names: files, folders, glob patterns, tables of paths, and URLs.

A table is a CSV with a header, or a Parquet file, in which the column `file` holds URLs, or paths relative to
the folder of the table. What else it holds is not read.
"""

from __future__ import annotations

import csv
import fnmatch
import glob
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from densenet_deploy.artifacts import StrPath, is_url, os_errors_about, require_file
from densenet_deploy.errors import DataError, InputError, UsageError
from densenet_deploy.packages import require_packages
from densenet_deploy.runtime.image_folders import find_images
from densenet_deploy.runtime.image_urls import images_at

FILE_COLUMN: Final = "file"
_SEPARATOR: Final = re.compile(r'\s*("?)[^",;\t\r\n]*\1[ ]*([,;\t])')
_CSV_SUFFIXES: Final = (".csv", ".tsv")
_PARQUET_SUFFIXES: Final = (".parquet", ".pq")


def image_names(sources: StrPath | Iterable[StrPath]) -> tuple[str, ...]:
    """Return the paths and URLs of the images that `sources` name, in their order; folders and patterns are sorted.

    >>> image_names(["photos/", "more/*.png", "list.csv"])      # doctest: +SKIP
    ('photos/1.jpg', 'photos/2.jpg', 'more/1.png', 'archive/7.jpg')

    Raises:
        UsageError: if one is not a path.
        DataError: if a folder holds no images, or a table has no column `file`, or names no image.
        InputError: if a pattern matches nothing.
        MissingPackageError: if fsspec (URLs) or pyarrow (Parquet) is needed and not installed.
    """
    given = [sources] if isinstance(sources, (str, os.PathLike)) else sources
    return tuple(name for source in given for name in _named_by(_path(source)))


def _path(source: object) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    fix = "give the path of an image or a folder; an image in memory is classified by densenet_deploy.Classifier"
    raise UsageError(type(source).__name__, "is not the path of an image", fix)


def _named_by(source: str) -> Iterator[str]:
    path = Path(source)
    if is_url(source):
        yield from images_at(source)
    elif path.is_dir():
        yield from map(str, find_images(path))
    elif path.suffix.lower() in (*_CSV_SUFFIXES, *_PARQUET_SUFFIXES):
        yield from _listed_in(path)
    elif path.exists() or not glob.has_magic(source):
        yield str(path)
    else:
        with os_errors_about(source):
            found = sorted({*map(Path, _matches("", path.parts))}, key=str)
        if not found:
            raise InputError(source, "matches no file", "check the pattern")
        images = (image for match in found for image in (find_images(match) if match.is_dir() else (match,)))
        yield from dict.fromkeys(map(str, images))


def _matches(folder: str, parts: Sequence[str]) -> Iterator[str]:
    """Yield the paths below `folder` that the parts of a pattern mean, as `glob` does.

    `glob` skips folders that it may not read, and with `**` it follows links, which may form a loop. Here the first is
    an OSError, and `**` follows none.
    """
    if not parts:
        yield folder
        return
    if parts == ("**",):
        parts = ("**", "*")
    for path in _folders_below(folder) if parts[0] == "**" else _named(folder, parts[0]):
        yield from _matches(path, parts[1:])


def _folders_below(folder: str) -> Iterator[str]:
    """Yield a folder and all below it, but hidden ones."""
    for place, folders, _ in os.walk(folder or os.curdir, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield place


def _named(folder: str, pattern: str) -> Iterator[str]:
    """Yield what is directly in a folder, if it is one, and has a name of this pattern."""
    if not glob.has_magic(pattern):
        names = [pattern] if os.path.lexists(Path(folder, pattern)) else []
    else:
        found = os.listdir(folder or os.curdir) if Path(folder).is_dir() else []  # noqa: PTH208 - names
        is_shown = [name for name in found if pattern.startswith(".") or not name.startswith(".")]
        names = fnmatch.filter(is_shown, pattern)
    yield from (str(Path(folder, name)) for name in names)


def _raise(exc: OSError) -> None:
    raise exc


def _listed_in(file: Path) -> Iterator[str]:
    names = _of_csv(file) if file.suffix.lower() in _CSV_SUFFIXES else _of_parquet(file)
    if not names:
        raise DataError(file, "names no image", "write one line per image below the header")
    for row, name in enumerate(names, start=1):
        if not name:
            raise DataError(file, f"row {row}: the cell 'file' is empty", "write a path or URL in every row")
        yield name if is_url(name) else os.path.normpath(file.parent / name)


def _of_csv(file: Path) -> list[str]:
    (_, header), *rows = [(line, cells) for line, cells in csv_lines(file) if any(cells)] or [(1, [])]
    if FILE_COLUMN not in header:
        raise DataError(file, "has no column 'file'", "write a header with the column file above the paths")
    for line, cells in rows:
        if len(cells) != len(header):
            why = f"line {line}: has {len(cells)} cells, the header {len(header)}"
            raise DataError(file, why, "write one cell per column; quote names with commas")
    return [cells[header.index(FILE_COLUMN)] for _, cells in rows]


def _of_parquet(file: Path) -> list[str]:
    require_packages("scale", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_file(file)
    with os_errors_about(file):
        try:
            table = pq.ParquetFile(file)
            if FILE_COLUMN not in table.schema_arrow.names:
                raise DataError(file, "has no column 'file'", "name the column of the paths file")
            values = table.read(columns=[FILE_COLUMN]).column(0).to_pylist()
        except pa.ArrowException as exc:
            raise DataError(file, f"is not a Parquet file ({exc})", "write it again") from exc
    if any(not isinstance(value, (str, type(None))) for value in values):
        raise DataError(file, "has a column 'file' that does not hold text", "write paths or URLs in it")
    return [value or "" for value in values]


def csv_lines(file: Path) -> list[tuple[int, list[str]]]:
    """Return the stripped cells of every line of a CSV with commas, semicolons or tabs, and the number of the line.

    Raises:
        InputError: if the file does not exist.
        DataError: if it is not UTF-8, or not such a CSV.
    """
    with os_errors_about(file):
        data = file.read_bytes()
    try:
        text = data.decode("utf-8-sig")
        header = _SEPARATOR.match(text)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=header[2] if header else ",", strict=True)
        return [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except UnicodeDecodeError as exc:
        raise DataError(file, f"is not UTF-8 at byte {exc.start}", "save it as UTF-8 text") from exc
    except csv.Error as exc:
        fix = "write a CSV with commas, semicolons or tabs, and double quotes"
        raise DataError(file, f"line {reader.line_num}: {exc}", fix) from exc
