"""What a tuning remembers: every finished step, found by what its result depends on, so that none is done twice.

A key is a step's name and all that could change its result: hashes of the model and the data, options, versions, and of
a timing the machine. The file is written whole after every step, so an interrupted run loses the step under way alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from densenet_deploy.artifacts import os_errors_about, write_file
from densenet_deploy.errors import DataError

NAME: Final = "tune.state.json"
FORMAT: Final = 1  # raise it whenever the same key would give another result
_KIND: Final = "densenet_deploy.tune"
_MEASUREMENTS: Final = ("heat", "quality")

Facts = Mapping[str, Any]
T = TypeVar("T")


class Memory:
    """The steps in one file; a file that is not there remembers nothing, and is not made before the first step ends.

    Attributes:
        reused, done: how many steps were remembered, and how many had to be done.

    Raises:
        DataError: if another file stands there.
    """

    def __init__(self, path: Path, *, measure_again: bool = False) -> None:
        """Read `path`; with `measure_again` forget its timings and accuracies, but not which files are up to date."""
        self.path = path
        self.reused = self.done = 0
        entries = _read(path) if path.exists() else {}
        self._entries = {
            digest: entry
            for digest, entry in entries.items()
            if not (measure_again and entry["key"].get("step") in _MEASUREMENTS)
        }

    def recall(self, key: Facts, read: Callable[[Facts], T | None]) -> T | None:
        """Return what `read` makes of the result kept under `key`; None where there is none that it can use."""
        entry = self._entries.get(_digest(key))
        if entry is None:
            return None
        try:
            return read(entry["value"])
        except (KeyError, TypeError, ValueError, AttributeError):  # edited by hand: the step is done again
            return None

    def step(self, key: Facts, read: Callable[[Facts], T | None], work: Callable[[], tuple[T, Facts]]) -> T:
        """Return the result kept under `key`, or do the `work`, which gives the result and the facts to keep of it.

        Raises:
            ResourceError: if the file cannot be written.
        """
        known = self.recall(key, read)
        if known is not None:
            self.reused += 1
            return known
        result, facts = work()
        self._entries[_digest(key)] = {"key": _plain(key), "value": _plain(facts)}
        self._write()
        self.done += 1
        return result

    def _write(self) -> None:
        content = {"kind": _KIND, "format": FORMAT, "entries": self._entries}
        write_file(self.path, f"{json.dumps(content, allow_nan=False)}\n".encode())


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the entries; none where an older format wrote them.

    Raises:
        DataError: if it is no such file.
    """
    with os_errors_about(path):
        text = path.read_bytes()
    try:
        content = json.loads(text)
        if content["kind"] != _KIND:
            raise ValueError(content["kind"])
        entries: dict[str, dict[str, Any]] = content["entries"] if content["format"] == FORMAT else {}
        if not all(isinstance(entry["key"], dict) and isinstance(entry["value"], dict) for entry in entries.values()):
            raise ValueError("entries")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise DataError(path, "is not the state of a tuning", "move it away, or name another folder with -o") from exc
    return entries


def _digest(key: Facts) -> str:
    text = json.dumps({"format": FORMAT, **key}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(facts: Facts) -> Any:
    return json.loads(json.dumps(facts, allow_nan=False))
