"""Collect the ranges of activations: one pass over the samples, memory that does not grow with their number.

The model comes as a runner whose outputs are the tensors to observe. A run that was interrupted goes on from its
`Checkpoint` and ends with the same bits as one that was not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from densenet_deploy.artifacts import os_errors_about, write_file
from densenet_deploy.errors import DataError, ModelFileError, UnknownNameError, UsageError
from densenet_deploy.options import require_range
from densenet_deploy.quantize.observers.observer import ChannelRanges, Observer, ObserverOptions, observers
from densenet_deploy.runtime.batching import run_batched
from densenet_deploy.runtime.feeds import Array, Feeds
from densenet_deploy.runtime.runner import Runner

FEWEST_SAMPLES: Final = 32
_CHECKPOINT_FORMAT: Final = 1
_SEAL_BYTES: Final = hashlib.sha256().digest_size

log = logging.getLogger(__name__)

Listener = Callable[[int], None]


@dataclass(frozen=True)
class CalibrationPlan:
    """What to collect: the `observer`, its `options` (None: its defaults) and the `tensors` (None: all float32 ones).

    Raises:
        UnknownNameError: if there is no such observer.
        UsageError: if the options are another observer's.
    """

    observer: str = "minmax"
    options: ObserverOptions | None = None
    tensors: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        wanted = observers.get(self.observer).options_type
        if self.options is not None and type(self.options) is not wanted:
            found = type(self.options).__name__
            raise UsageError(found, f"are no options of {self.observer!r}", f"give {wanted.__name__}")

    def facts(self) -> dict[str, Any]:
        """Return the plan with plain types, defaults spelled out."""
        options = self.options or observers.get(self.observer).options_type()
        tensors = None if self.tensors is None else list(self.tensors)
        return {"observer": self.observer, "options": dataclasses.asdict(options), "tensors": tensors}


@dataclass(frozen=True)
class Checkpoint:
    """Where an unfinished run is kept, rewritten every `every` samples and removed at the end.

    `identity` says what the run is of (the digest of a cache key); one left by anything else is overwritten, not used.
    """

    path: Path
    identity: str
    every: int = 128

    def __post_init__(self) -> None:
        require_range("every", self.every, 1, 2**31)


def ignore(done: int) -> None:
    """Listen to nothing."""


def collect_ranges(
    runner: Runner,
    samples: Iterable[Array],
    plan: CalibrationPlan,
    checkpoint: Checkpoint | None = None,
    listener: Listener = ignore,
    origin: object = "calibration",
) -> dict[str, ChannelRanges]:
    """Run every sample and return the ranges of each observed tensor by name, in the order of the outputs.

    Args:
        runner: gives the tensors to observe as outputs, (N, C, ...).
        samples: inputs (1, 3, S, S) float32; at least 32, of which the first 32 are neither all alike nor all of one
            colour. To go on from a checkpoint they are read again from the first, but not run.
        plan: observer, options, tensors.
        checkpoint: where to save the run and look for an earlier one.
        listener: told the number of samples done after each.
        origin: where the samples come from, as errors name it.

    Raises:
        DataError: if the samples are too few or all alike, or are not those that the checkpoint saw.
        FeedError: if a sample is not what the model takes.
        ModelFileError: if an activation is NaN or Inf, or a tensor has no channels.
        UnknownNameError: if a tensor of the plan is no output.
    """
    names = _tensors_to_observe(runner, plan)
    run = _Run.resumed(checkpoint, plan) or _Run(plan)
    seen = hashlib.sha256()
    done = 0
    for done, sample in enumerate(_varied(samples, origin), start=1):
        seen.update(sample.tobytes())
        if done > run.done:
            results = run_batched(runner, sample)
            run.update({name: results[name] for name in names}, seen.hexdigest())
            if checkpoint is not None and done % checkpoint.every == 0:
                run.save(checkpoint)
        elif done == run.done:
            _require_same(seen.hexdigest() == run.seen, checkpoint)
        listener(done)
    _require_same(done == run.done, checkpoint)
    if checkpoint is not None:
        with os_errors_about(checkpoint.path):
            checkpoint.path.unlink(missing_ok=True)
    return run.ranges()


class _Run:
    """The observers of a run, by tensor; how many samples they saw (`done`), and the SHA-256 of those (`seen`)."""

    def __init__(self, plan: CalibrationPlan) -> None:
        self.done = 0
        self.seen = ""
        self._plan = plan
        self._observers: dict[str, Observer] = {}

    def update(self, tensors: Feeds, seen: str) -> None:
        """Observe the tensors of one more sample."""
        for name, array in tensors.items():
            try:
                self._observer_of(name, array).update(array)
            except DataError as exc:
                why = f"{exc.subject} {exc.why} for calibration sample {self.done + 1}"
                raise ModelFileError(f"tensor {name!r}", why, exc.fix) from exc
        self.done, self.seen = self.done + 1, seen

    def ranges(self) -> dict[str, ChannelRanges]:
        return {name: observer.ranges() for name, observer in self._observers.items()}

    def save(self, checkpoint: Checkpoint) -> None:
        names = list(self._observers)
        facts = _facts(checkpoint, self._plan) | {"done": self.done, "seen": self.seen, "names": names}
        states = (observer.state() for observer in self._observers.values())
        arrays = {f"{index}.{part}": array for index, state in enumerate(states) for part, array in state.items()}
        file = io.BytesIO()
        np.savez_compressed(file, facts=np.array(json.dumps(facts)), **arrays)  # type: ignore[arg-type]
        with file.getbuffer() as payload:  # which may be tens of MiB: it is not copied
            write_file(checkpoint.path, hashlib.sha256(payload).digest(), payload)

    @classmethod
    def resumed(cls, checkpoint: Checkpoint | None, plan: CalibrationPlan) -> _Run | None:
        """Return the run that the checkpoint holds, or None if there is none, it is damaged or of something else."""
        if checkpoint is None or not checkpoint.path.exists():
            return None
        try:
            with np.load(io.BytesIO(_unsealed(checkpoint.path)), allow_pickle=False) as arrays:
                return cls._restored(dict(arrays), _facts(checkpoint, plan), plan)
        except ValueError as exc:
            log.warning("%s %s; calibration starts anew", checkpoint.path, exc)
            return None

    @classmethod
    def _restored(cls, arrays: dict[str, npt.NDArray[Any]], wanted: dict[str, Any], plan: CalibrationPlan) -> _Run:
        facts = json.loads(str(arrays.pop("facts")))
        if {key: facts[key] for key in wanted} != wanted:
            raise ValueError("is the checkpoint of another run")
        run = cls(plan)
        run.done, run.seen = facts["done"], facts["seen"]
        for index, name in enumerate(facts["names"]):
            prefix = f"{index}."
            state = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
            run._new_observer(name, len(state["low"])).restore(state)
        return run

    def _observer_of(self, name: str, array: Array) -> Observer:
        if name in self._observers:
            return self._observers[name]
        if array.ndim < 2 or array.dtype != np.float32:
            why = f"is {array.shape} {array.dtype}, which has no float32 channels"
            raise ModelFileError(f"tensor {name!r}", why, "observe tensors of (N, C, ...)")
        return self._new_observer(name, array.shape[1])

    def _new_observer(self, name: str, channels: int) -> Observer:
        kind = observers.get(self._plan.observer)
        self._observers[name] = kind(channels, self._plan.options)
        return self._observers[name]


def _facts(checkpoint: Checkpoint, plan: CalibrationPlan) -> dict[str, Any]:
    return {"format": _CHECKPOINT_FORMAT, "identity": checkpoint.identity, "plan": plan.facts()}


def _unsealed(path: Path) -> bytes:
    """Return what follows the SHA-256 with which a checkpoint begins; ValueError if it is another's."""
    with os_errors_about(path):
        data = path.read_bytes()
    digest, payload = data[:_SEAL_BYTES], data[_SEAL_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError("is damaged")
    return payload


def _require_same(is_same: bool, checkpoint: Checkpoint | None) -> None:
    if not is_same:
        assert checkpoint is not None
        raise DataError(checkpoint.path, "was made with other samples", "remove it and calibrate again")


def _tensors_to_observe(runner: Runner, plan: CalibrationPlan) -> Sequence[str]:
    known = [spec.name for spec in runner.outputs]
    if plan.tensors is None:
        return [spec.name for spec in runner.outputs if spec.dtype == np.float32]
    for name in plan.tensors:
        if name not in known:
            raise UnknownNameError.among("tensor", name, known)
    return [name for name in known if name in plan.tensors]


def _varied(samples: Iterable[Array], origin: object) -> Iterator[Array]:
    """Yield the samples, once the first 32 have shown that there are enough and that they differ.

    Raises:
        DataError: if not.
    """
    iterator = iter(samples)
    first = list(itertools.islice(iterator, FEWEST_SAMPLES))
    if len(first) < FEWEST_SAMPLES:
        raise DataError(origin, f"has {len(first)} samples", f"give at least {FEWEST_SAMPLES}")
    if all(_is_one_colour(sample) for sample in first):
        raise DataError(origin, f"has one colour in each of the first {len(first)} samples", "give images")
    if all(np.array_equal(sample, first[0]) for sample in first[1:]):
        raise DataError(origin, f"has the same image {len(first)} times first", "give different images")
    while first:
        yield first.pop(0)
    yield from iterator


def _is_one_colour(sample: Array) -> bool:
    pixels = sample.reshape(*sample.shape[:2], -1)
    return bool((pixels == pixels[:, :, :1]).all())
