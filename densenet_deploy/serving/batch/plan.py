"""The plan of a batch job: which images are in which shard, and all that their rows depend on.

It is fixed before the first image is read, and lies beside the shards as `_plan.json`. A shard is one file, written
whole: if it is there, it is done, and what is left to do is a difference of sets. Shards of another plan are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Final, Self

from densenet_deploy.artifacts import os_errors_about, write_file
from densenet_deploy.errors import DataError, DensenetDeployError
from densenet_deploy.records import Range, from_plain, parse_json, to_plain, write_json
from densenet_deploy.serving.batch.rows import RowLayout

PLAN: Final = "_plan.json"
"""What reads a folder as one table leaves out names with an underscore."""


@dataclass(frozen=True)
class Shard:
    """The images `start` to `start + count` of a plan, whose rows are one file, `name`."""

    number: int
    start: int
    count: int
    name: str


@dataclass(frozen=True)
class Plan:
    """What the rows of a job depend on. Workers, the engine, and threads that change no bit are not among it.

    Attributes:
        images: how many there are.
        images_sha256: of their names, in order.
        shard_size: images of every shard but the last.
        format: see `formats.FORMATS`.
        layout: what a row holds.
        batch: images per call of the model.
        model: the name and SHA-256 of the model's file, and what runs it.
        input: how images are prepared.
    """

    images: Annotated[int, Range(1)]
    images_sha256: str
    shard_size: Annotated[int, Range(1)]
    format: str
    layout: RowLayout
    batch: Annotated[int, Range(1)]
    model: Mapping[str, object]
    input: Mapping[str, object]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the plan in `folder`.

        Raises:
            InputError: if there is none.
            DataError: if it cannot be read.
        """
        path = folder / PLAN

        def fail(where: str, why: str) -> DensenetDeployError:
            return DataError(path, f"is not the plan of a batch job: {where} {why}", "choose another -o")

        with os_errors_about(path):
            data = path.read_bytes()
        try:
            facts = parse_json(data)
        except ValueError as exc:
            raise fail("it", f"is not JSON ({exc})") from exc
        return from_plain(cls, facts, fail=fail)

    def write(self, folder: Path) -> None:
        """Write it into `folder`, which is made.

        Raises:
            ResourceError: if it cannot be written.
        """
        write_file(folder / PLAN, f"{write_json(to_plain(self), indent=2)}\n".encode())

    def require_same(self, begun: Plan, folder: Path) -> None:
        """Check that `begun`, the plan in `folder`, is this one.

        Raises:
            DataError: naming what differs.
        """
        mine, theirs = to_plain(self), to_plain(begun)
        for name in (field.name for field in fields(self)):
            if mine[name] != theirs[name] and name in _OPTIONS:
                why = f"was begun with {_OPTIONS[name]} {theirs[name]}, now {mine[name]}"
                fix = f"repeat it with {_OPTIONS[name]} {theirs[name]}, or choose another -o"
                raise DataError(folder / PLAN, why, fix)
            if mine[name] != theirs[name]:
                why = f"was begun with other {_WORDS.get(name, name)}: {_difference(theirs[name], mine[name])}"
                fix = "run with what it was begun with, or choose another -o"
                raise DataError(folder / PLAN, why, fix)

    def shards(self, suffix: str) -> Iterator[Shard]:
        """Yield the shards in order, with files of this suffix."""
        return shards_of(self.images, self.shard_size, suffix)


def shards_of(images: int, size: int, suffix: str = "") -> Iterator[Shard]:
    """Yield the shards of so many images in order, with files of this suffix; the last one may be smaller."""
    starts = range(0, images, size)
    digits = max(5, len(str(len(starts) - 1)))  # so that the order of the names is that of the shards
    for number, start in enumerate(starts):
        yield Shard(number, start, min(size, images - start), f"part-{number:0{digits}d}{suffix}")


_OPTIONS: Final = {"shard_size": "--shard-size", "format": "--format", "batch": "--batch"}
_WORDS: Final = {"images_sha256": "images", "layout": "rows", "input": "preparation"}


def digest_of(names: Sequence[str]) -> str:
    """Return the SHA-256 of a list of names, in hex."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def _difference(theirs: Any, mine: Any) -> str:
    if isinstance(theirs, Mapping) and isinstance(mine, Mapping):
        key = next(key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key))
        return f"{key} {_difference(theirs.get(key), mine.get(key))}"
    return f"{theirs} then, {mine} now"
