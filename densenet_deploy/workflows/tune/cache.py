"""The results of finished steps, each under a key of all that it depends on, so that none is done twice.

A key is the name of a step and everything that could change its result: hashes of the model and the data, options,
versions, and for a timing the machine. The file is written whole after every step, so an interrupted run loses only
the step in progress.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from densenet_deploy.artifacts import os_errors_about, write_file
from densenet_deploy.errors import DataError, DensenetDeployError
from densenet_deploy.records import Choice, from_plain, parse_json, to_plain

FILE_NAME: Final = "tune.state.json"
FORMAT: Final = 2  # raise it whenever the same key would give another result
_KIND: Final = "densenet_deploy.tune"
_MEASUREMENTS: Final = ("speed", "quality")

Facts = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class _Entry:
    key: Mapping[str, object]
    value: object


@dataclass(frozen=True)
class _State:
    kind: Annotated[str, Choice(_KIND)]
    format: int
    entries: Mapping[str, _Entry] = field(default_factory=dict)


class ResultCache:
    """The results in one file, which is not created before the first step ends.

    Attributes:
        reused, done: how many results were known, and how many steps had to be done.

    Raises:
        DataError: if there is another file at that path.
    """

    def __init__(self, path: Path, *, measure_again: bool = False) -> None:
        """Read `path`; `measure_again` forgets its timings and accuracies, but not which files are up to date."""
        self.path = path
        self.reused = self.done = 0
        entries = _read(path) if path.exists() else {}
        self._entries = {
            digest: entry
            for digest, entry in entries.items()
            if not (measure_again and entry.key.get("step") in _MEASUREMENTS)
        }

    def recall(self, kind: type[T], key: Facts) -> T | None:
        """Return the result under `key`; None if there is none, or it is not a valid `kind` (edited by hand)."""
        entry = self._entries.get(_digest(key))
        if entry is None:
            return None
        try:
            return from_plain(kind, entry.value)
        except (DensenetDeployError, LookupError):
            return None

    def holds(self, result: object) -> bool:
        """Whether `result` is that of a step, under whatever key."""
        plain = to_plain(result)
        return any(entry.value == plain for entry in self._entries.values())

    def get(self, kind: type[T], key: Facts, work: Callable[[], T], is_valid: Callable[[T], bool] | None = None) -> T:
        """Return the result under `key` if there is a valid one, else that of `work`, which is kept.

        Raises:
            ResourceError: if the file cannot be written.
        """
        known = self.recall(kind, key)
        if known is not None and (is_valid is None or is_valid(known)):
            self.reused += 1
            return known
        result = work()
        self._entries[_digest(key)] = _Entry(to_plain(key), to_plain(result))
        state = _State(_KIND, FORMAT, self._entries)
        write_file(self.path, f"{json.dumps(to_plain(state), allow_nan=False)}\n".encode())
        self.done += 1
        return result


def _read(path: Path) -> Mapping[str, _Entry]:
    """Return the entries; none if an older version wrote them."""
    fix = "move it away, or name another folder with -o"

    def fail(where: str, why: str) -> DensenetDeployError:
        return DataError(path, f"is not the state of a tuning: {where} {why}", fix)

    with os_errors_about(path):
        data = path.read_bytes()
    try:
        facts = parse_json(data)
    except ValueError as exc:
        raise DataError(path, "is not the state of a tuning: it is not JSON", fix) from exc
    state = from_plain(_State, facts, fail=fail)
    return state.entries if state.format == FORMAT else {}


def _digest(key: Facts) -> str:
    text = json.dumps({"format": FORMAT, **to_plain(key)}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
