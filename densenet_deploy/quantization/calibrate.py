"""Collect the ranges of activations: one pass over the samples, memory that does not grow with their number.

`calibrate` gives the model its inner tensors as outputs, looks into the cache and runs it; `collect_ranges` is the
loop. A run that was interrupted continues from its `Checkpoint` and ends with the same bits as one that was not.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from densenet_deploy.artifacts import os_errors_about, write_file
from densenet_deploy.errors import DataError, ModelFileError, UnknownNameError
from densenet_deploy.options import require_range
from densenet_deploy.packages import is_installed
from densenet_deploy.quantization.cache import CalibrationCache, CalibrationKey
from densenet_deploy.quantization.calibration_data import CalibrationData
from densenet_deploy.quantization.observers.observer import CalibrationConfig, ChannelRanges, Observer, observers
from densenet_deploy.runtime.batching import run_each, shared_cpus
from densenet_deploy.runtime.feeds import Array, Feeds
from densenet_deploy.runtime.runner import REFERENCE_BACKEND, Runner, RunnerOptions, open_runner

if TYPE_CHECKING:
    import onnx

FEWEST_SAMPLES: Final = 32
_CHECKPOINT_FORMAT: Final = 1
_KEPT_BYTES: Final = 64 * 2**20
_SEAL_BYTES: Final = hashlib.sha256().digest_size

log = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Is called after each sample with the number done and the number of all, None where that is unknown."""


@dataclass(frozen=True)
class Calibration:
    """The ranges of the observed tensors and of the input, by name, and a sentence about their origin.

    `outputs` are the outputs of the graph, by name, of the first samples, as far as they were asked for and are not
    from the cache.
    """

    ranges: dict[str, ChannelRanges]
    note: str
    outputs: tuple[Feeds, ...] = ()


class KeptOutputs:
    """The outputs `names` of the first `most` samples, as far as they fit into 64 MiB."""

    def __init__(self, names: Collection[str], most: int) -> None:
        self.found: list[Feeds] = []
        self.names, self._most = names, most

    def add(self, number: int, results: Feeds) -> None:
        """Keep the outputs of sample `number`, from 1 on, if all before it were kept."""
        outputs = {name: results[name] for name in self.names}
        size = sum(array.nbytes for array in outputs.values())
        if number == len(self.found) + 1 and number <= self._most and number * size <= _KEPT_BYTES:
            self.found.append(outputs)


@dataclass(frozen=True)
class Checkpoint:
    """Where an unfinished run is kept, rewritten every `every` samples and removed at the end.

    `identity` tells runs apart (the digest of a cache key); the checkpoint of another run is overwritten, not used.
    """

    path: Path
    identity: str
    every: int = 128

    def __post_init__(self) -> None:
        require_range("every", self.every, 1, 2**31)


def ignore(done: int, total: int | None) -> None:
    """Report no progress."""


def calibrate(
    model: onnx.ModelProto,
    data: CalibrationData,
    config: CalibrationConfig,
    cache: CalibrationCache | None = None,
    progress: Progress = ignore,
    keep: int = 0,
) -> Calibration:
    """Return the ranges of the input and of inner tensors of `model` on `data`.

    Args:
        model: the float graph.
        data: see `open_calibration_data`; at least 32 samples.
        config: observer, its options, and tensors, float32 (N, C, ...).
        cache: where ranges of the same model, data and configuration are looked up and kept. Data without an identity
            (an iterable that is not an iterator) are not cached.
        progress: see `Progress`.
        keep: of how many samples to keep the outputs of the graph, for which `config` has to name its tensors.

    Raises:
        DataError: if the data are too few, all alike, or not normalized.
        ModelFileError: if an activation is NaN or Inf, or a tensor has no channels.
        UnknownNameError: if a tensor of the configuration does not exist.
    """
    from densenet_deploy.graph.onnx_file import expose_values

    if data.samples < FEWEST_SAMPLES:
        why = f"{data.samples} samples were asked for, at least {FEWEST_SAMPLES} are needed"
        raise DataError(data.origin, why, "ask for more samples")
    kept = KeptOutputs([value.name for value in model.graph.output] if keep else (), keep)
    names = None if config.tensors is None else {*config.tensors, *kept.names}
    exposed = expose_values(model, names).SerializeToString()
    if cache is not None and (digests := data.digests()) is not None:
        key = CalibrationKey(hashlib.sha256(exposed).hexdigest(), digests, data.preprocessing, config)
        ranges, note = _found_or_collected(exposed, data, key, cache, progress, kept)
    else:
        ranges, note = _collected(exposed, data, config, None, progress, kept), "not cached"
    found = ranges | {_input_of(model): data.input_range()}
    return Calibration(found, f"calibration: {note}", tuple(kept.found))


def _found_or_collected(
    exposed: bytes,
    data: CalibrationData,
    key: CalibrationKey,
    cache: CalibrationCache,
    progress: Progress,
    kept: KeptOutputs,
) -> tuple[dict[str, ChannelRanges], str]:
    found = cache.lookup(key)
    if not isinstance(found, str):
        return found, "from the cache"
    checkpoint = Checkpoint(cache.folder / f"{key.digest}.partial.npz", key.digest)
    ranges = _collected(exposed, data, key.config, checkpoint, progress, kept)
    cache.store(key, ranges)
    return ranges, found


def _input_of(model: onnx.ModelProto) -> str:
    stored = {tensor.name for tensor in model.graph.initializer}
    return next(str(value.name) for value in model.graph.input if value.name not in stored)


def _collected(
    exposed: bytes,
    data: CalibrationData,
    config: CalibrationConfig,
    checkpoint: Checkpoint | None,
    progress: Progress,
    kept: KeptOutputs,
) -> dict[str, ChannelRanges]:
    backend = REFERENCE_BACKEND if is_installed(REFERENCE_BACKEND) else None
    calls, threads = shared_cpus(backend)
    options = RunnerOptions(threads=threads, check_values=False, arena=False)
    with open_runner(exposed, backend, options=options) as runner:
        calls = calls if runner.placement.device == "cpu" else 1
        return collect_ranges(runner, data, config, checkpoint, progress, data.origin, calls, kept)


def collect_ranges(
    runner: Runner,
    samples: Iterable[Array],
    config: CalibrationConfig,
    checkpoint: Checkpoint | None = None,
    progress: Progress = ignore,
    origin: object = "calibration",
    calls: int = 1,
    kept: KeptOutputs | None = None,
) -> dict[str, ChannelRanges]:
    """Run every sample and return the ranges of each observed tensor by name, in the order of the outputs.

    Args:
        runner: gives the tensors to observe as outputs, (N, C, ...).
        samples: inputs (1, C, H, W) float32; at least 32, of which the first 32 are neither all alike nor all of one
            colour. To continue from a checkpoint they are read again from the first, but not run.
        config: observer, options, tensors.
        checkpoint: where to save the run and to look for an earlier one.
        progress: see `Progress`.
        origin: where the samples come from, as errors name it.
        calls: how many samples run at the same time; the result does not depend on it.
        kept: is given the results of every sample that is run.

    Raises:
        DataError: if the samples are too few or all alike, or are not those that the checkpoint saw.
        FeedError: if a sample is not what the model takes.
        ModelFileError: if an activation is NaN or Inf, or a tensor has no channels.
        UnknownNameError: if a tensor of the configuration is not an output.
    """
    names = _tensors_to_observe(runner, config)
    run = _Run.resumed(checkpoint, config) or _Run(config)
    seen, total = hashlib.sha256(), len(samples) if isinstance(samples, Sized) else None
    rest, done = varied(samples, origin), 0
    for done, sample in enumerate(itertools.islice(rest, run.done), start=1):
        seen.update(sample.tobytes())
        _require_same(done < run.done or seen.hexdigest() == run.seen, checkpoint)
        progress(done, total)
    _require_same(done == run.done, checkpoint)
    for sample, results in run_each(runner, rest, calls):
        seen.update(sample.tobytes())
        run.update({name: results[name] for name in names}, seen.hexdigest())
        if kept is not None:
            kept.add(run.done, results)
        if checkpoint is not None and run.done % checkpoint.every == 0:
            run.save(checkpoint)
        progress(run.done, total)
    if checkpoint is not None:
        with os_errors_about(checkpoint.path):
            checkpoint.path.unlink(missing_ok=True)
    return run.ranges()


class _Run:
    """The observers of a run by tensor, the number of samples they saw (`done`), and the SHA-256 of those (`seen`)."""

    def __init__(self, config: CalibrationConfig) -> None:
        self.done = 0
        self.seen = ""
        self._config = config
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
        facts = _facts(checkpoint, self._config) | {"done": self.done, "seen": self.seen, "names": names}
        states = (observer.state() for observer in self._observers.values())
        arrays = {f"{index}.{part}": array for index, state in enumerate(states) for part, array in state.items()}
        file = io.BytesIO()
        np.savez_compressed(file, facts=np.array(json.dumps(facts)), **arrays)  # type: ignore[arg-type]
        with file.getbuffer() as payload:  # which may be tens of MiB: it is not copied
            write_file(checkpoint.path, hashlib.sha256(payload).digest(), payload)

    @classmethod
    def resumed(cls, checkpoint: Checkpoint | None, config: CalibrationConfig) -> _Run | None:
        """Return the run in the checkpoint, or None if there is none, or a damaged one or one of another run."""
        if checkpoint is None or not checkpoint.path.exists():
            return None
        try:
            with np.load(io.BytesIO(_unsealed(checkpoint.path)), allow_pickle=False) as arrays:
                return cls._restored(dict(arrays), _facts(checkpoint, config), config)
        except ValueError as exc:
            log.warning("%s %s; calibration starts again", checkpoint.path, exc)
            return None

    @classmethod
    def _restored(
        cls, arrays: dict[str, npt.NDArray[Any]], expected: dict[str, Any], config: CalibrationConfig
    ) -> _Run:
        facts = json.loads(str(arrays.pop("facts")))
        if {key: facts[key] for key in expected} != expected:
            raise ValueError("is the checkpoint of another run")
        run = cls(config)
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
            why = f"is {array.shape} {array.dtype}, which does not have float32 channels"
            raise ModelFileError(f"tensor {name!r}", why, "observe tensors of (N, C, ...)")
        return self._new_observer(name, array.shape[1])

    def _new_observer(self, name: str, channels: int) -> Observer:
        kind = observers.get(self._config.observer)
        self._observers[name] = kind(channels, self._config.options)
        return self._observers[name]


def _facts(checkpoint: Checkpoint, config: CalibrationConfig) -> dict[str, Any]:
    return {"format": _CHECKPOINT_FORMAT, "identity": checkpoint.identity, "plan": config.facts()}


def _unsealed(path: Path) -> bytes:
    """Return what follows the SHA-256 at the start of a checkpoint; ValueError if it does not match."""
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


def _tensors_to_observe(runner: Runner, config: CalibrationConfig) -> Sequence[str]:
    known = [spec.name for spec in runner.outputs]
    if config.tensors is None:
        return [spec.name for spec in runner.outputs if spec.dtype == np.float32]
    for name in config.tensors:
        if name not in known:
            raise UnknownNameError.among("tensor", name, known)
    return [name for name in known if name in config.tensors]


def varied(samples: Iterable[Array], origin: object) -> Iterator[Array]:
    """Yield the samples, after checking that there are at least 32 and that the first 32 differ.

    Raises:
        DataError: about `origin`, if there are fewer, or those are all alike or of one colour.
    """
    iterator = iter(samples)
    first = list(itertools.islice(iterator, FEWEST_SAMPLES))
    if len(first) < FEWEST_SAMPLES:
        raise DataError(origin, f"has {len(first)} samples", f"give at least {FEWEST_SAMPLES}")
    if all(_is_one_colour(sample) for sample in first):
        raise DataError(origin, f"each of the first {len(first)} samples has a single colour", "give images")
    if all(np.array_equal(sample, first[0]) for sample in first[1:]):
        raise DataError(origin, f"the first {len(first)} samples are the same image", "give different images")
    while first:
        yield first.pop(0)
    yield from iterator


def _is_one_colour(sample: Array) -> bool:
    pixels = sample.reshape(*sample.shape[:2], -1)
    return bool((pixels == pixels[:, :, :1]).all())
