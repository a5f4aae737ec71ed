"""A cache of collected ranges, by everything that they depend on.

The key is the SHA-256 of everything that could change them: the model, each calibration file, the preprocessing, the
observer and its options, the tensors, and the format of this cache. A stale entry is never found; and since each entry
keeps the parts of its key, a miss can report which of them changed.

An entry is `<key>.npz`, the ranges, and `<key>.json`, the parts of the key and the SHA-256 of the other file. It is
used only if both agree.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from densenet_deploy.artifacts import cache_folder, os_errors_about, write_file
from densenet_deploy.errors import printable
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.quantization.observers.observer import CalibrationConfig, ChannelRanges

FORMAT: Final = 1  # raise it whenever the same key would give other ranges

log = logging.getLogger(__name__)

Parts = Mapping[str, Any]


@dataclass(frozen=True)
class CalibrationKey:
    """Everything that ranges depend on.

    Attributes:
        model: SHA-256 of the model, hex.
        data: SHA-256 of the calibration data, as returned by `CalibrationData.digests`.
        preprocessing: how images become inputs.
        config: observer, options and tensors.
    """

    model: str
    data: Mapping[str, str]
    preprocessing: Preprocessing
    config: CalibrationConfig

    def parts(self) -> dict[str, Any]:
        """Return the parts of the digest, with the types of JSON."""
        facts = {"format": FORMAT, "model": self.model, "data": dict(self.data)}
        prepared = {name: value for name, value in asdict(self.preprocessing).items() if name != "dtype"}
        facts |= {"preprocessing": prepared} | self.config.facts()  # calibration data are float32 in any case
        parts: dict[str, Any] = json.loads(_canonical(facts))
        return parts

    @property
    def digest(self) -> str:
        """The key itself, 64 hex digits."""
        return hashlib.sha256(_canonical(self.parts()).encode()).hexdigest()


class CalibrationCache:
    """A folder of ranges; by default `densenet-deploy/calibration` below `$XDG_CACHE_HOME` or `~/.cache`."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder("calibration")

    def lookup(self, key: CalibrationKey) -> dict[str, ChannelRanges] | str:
        """Return the ranges of `key` by tensor, or why there are none: what changed since the nearest entry.

        A damaged entry counts as none.

        Raises:
            ResourceError: if the folder cannot be read.
        """
        entry = self._entry(key.digest)
        if entry.with_suffix(".json").exists():
            try:
                return _read_ranges(entry, key)
            except ValueError as exc:
                return f"the cached ranges are damaged ({printable(exc)}); they are collected again"
        return self._explanation(key.parts())

    def store(self, key: CalibrationKey, ranges: Mapping[str, ChannelRanges]) -> None:
        """Keep the ranges of `key`.

        Raises:
            ResourceError: if the folder cannot be written.
        """
        entry, payload = self._entry(key.digest), _packed(ranges)
        facts = {"key": key.parts(), "sha256": hashlib.sha256(payload).hexdigest()}
        write_file(entry.with_suffix(".npz"), payload)
        write_file(entry.with_suffix(".json"), _canonical(facts).encode())  # last: it makes the entry valid

    def _entry(self, digest: str) -> Path:
        return self.folder / digest

    def _explanation(self, parts: Parts) -> str:
        earlier = list(self._earlier_parts())
        if not earlier:
            return "nothing is cached yet"
        related = [old for old in earlier if any(old.get(name) == parts[name] for name in ("model", "data"))]
        if not related:
            return "neither this model nor these data are cached yet"
        nearest = min((_changes(old, parts) for old in related), key=len)
        return f"not in the cache; unlike the closest run there: {'; '.join(nearest)}"

    def _earlier_parts(self) -> Iterator[Parts]:
        """Yield the parts of all keys that can be read, the newest first."""
        with os_errors_about(self.folder):
            files = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files:
            try:
                yield _read_facts(path)["key"]
            except ValueError as exc:
                log.warning("%s is ignored: %s", path, exc)


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _packed(ranges: Mapping[str, ChannelRanges]) -> bytes:
    file = io.BytesIO()
    low, high = ([getattr(r, side) for r in ranges.values()] for side in ("low", "high"))
    channels = np.array([len(array) for array in low])
    np.savez(file, names=np.array(list(ranges)), low=np.concatenate(low), high=np.concatenate(high), channels=channels)
    return file.getvalue()


def _read_ranges(entry: Path, key: CalibrationKey) -> dict[str, ChannelRanges]:
    """Read an entry back; ValueError if it is not what `store` wrote for `key`."""
    facts = _read_facts(entry.with_suffix(".json"))
    if facts["key"] != key.parts():
        raise ValueError("the entry belongs to another key")
    payload = _read(entry.with_suffix(".npz"))
    if hashlib.sha256(payload).hexdigest() != facts["sha256"]:
        raise ValueError("its hash does not match")
    with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
        cuts = np.cumsum(arrays["channels"])[:-1]
        triples = zip(arrays["names"], np.split(arrays["low"], cuts), np.split(arrays["high"], cuts), strict=True)
        return {str(name): ChannelRanges(low, high) for name, low, high in triples}


def _read_facts(path: Path) -> dict[str, Any]:
    """Read the JSON of an entry; ValueError if it is not one."""
    try:
        facts = json.loads(_read(path))
    except RecursionError as exc:
        raise ValueError("nests too deep") from exc
    if not isinstance(facts, dict) or facts.keys() != {"key", "sha256"} or not isinstance(facts["key"], dict):
        raise ValueError("is not an entry of this cache")
    return facts


def _read(path: Path) -> bytes:
    if not path.exists():
        raise ValueError(f"{path.name} is missing")
    with os_errors_about(path):
        return path.read_bytes()


def _changes(earlier: Parts, now: Parts) -> list[str]:
    """Return one phrase for every part that differs."""
    return [_phrase(name, earlier.get(name), now[name]) for name in now if earlier.get(name) != now[name]]


def _phrase(name: str, old: Any, new: Any) -> str:
    if name == "data" and isinstance(old, dict | None):  # what a damaged entry holds can be anything
        return f"data changed (files: {_change_of_names(old or {}, new)})"
    return f"{name} changed ({_change(old, new)})"


def _change(old: object, new: object) -> str:
    match old, new:
        case dict(), dict():
            names = [name for name in dict.fromkeys((*old, *new)) if old.get(name) != new.get(name)]
            return ", ".join(f"{name} {_change(old.get(name), new.get(name))}" for name in names)
        case [str(), *_], [str(), *_]:
            return _change_of_names(dict.fromkeys(map(str, old)), dict.fromkeys(new))
    return f"{_short(old)} → {_short(new)}"


def _change_of_names(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> str:
    common = old.keys() & new.keys()
    modified = sum(old[name] != new[name] for name in common)
    counts = {"added": len(new) - len(common), "removed": len(old) - len(common), "modified": modified}
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "another order"


def _short(value: object) -> str:
    return printable(value, 12 if isinstance(value, str) and len(value) == 64 else 60)
