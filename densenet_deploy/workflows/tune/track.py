"""Where candidates are measured: heats of a few processes side by side, and answers compared with the float file's.

Every result is remembered, so that a tuning that was interrupted measures only what is missing.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from densenet_deploy.artifacts import sha256_of
from densenet_deploy.bench.candidate import Candidate as Timed
from densenet_deploy.bench.candidate import CandidateWorker
from densenet_deploy.bench.rounds import Interval, RoundResults, measure_rounds
from densenet_deploy.errors import BackendError, InputError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.parity.compare import ParityMeter
from densenet_deploy.runtime.batching import run_batched
from densenet_deploy.runtime.cpus import cpu_name, usable_cpus
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.image_folders import find_images
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.workflows.evaluate import evaluate
from densenet_deploy.workflows.samples import samples_of, seeded_samples
from densenet_deploy.workflows.tune.candidates import Candidate, ModelFile
from densenet_deploy.workflows.tune.forms import Base, data_digests, versions
from densenet_deploy.workflows.tune.memory import Memory
from densenet_deploy.workflows.tune.results import Lap, Quality

PARITY_SAMPLES: Final = 64

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Pace:
    """How long a heat is: rounds of one turn each, and the seconds of a turn."""

    rounds: int
    turn_seconds: float


class Track(Protocol):
    """Whoever can tell how fast a candidate runs and how good its answers are."""

    def heat(self, field: Sequence[Candidate], pace: Pace) -> Mapping[Candidate, Lap | str]:
        """Time all of `field` side by side; of one that cannot run, the reason."""

    def quality(self, file: ModelFile, backend: str) -> Quality | str:
        """Compare answers with the float model's; where it cannot run, the reason."""


@dataclass(frozen=True)
class LocalTrack:
    """Measures on this machine.

    Attributes:
        reference: runs in every heat, so that speeds of different heats compare.
        bases: the float models by name, which answers are compared with, on the backend of the reference.
        memory: of what was measured before.
        device: None means the best of each backend.
        calibration, data: images to compare answers on, `data` first; seeded inputs where there are none.
        samples: of calibration data.
    """

    reference: Candidate
    bases: Mapping[str, Base]
    memory: Memory
    device: str | None = None
    calibration: Path | None = None
    samples: int = 512
    data: Path | None = None

    def heat(self, field: Sequence[Candidate], pace: Pace) -> dict[Candidate, Lap | str]:
        """Race `field` and the reference, each alone in a process.

        Raises:
            BackendError: if the reference itself cannot run.
        """
        key = {
            "step": "heat",
            "field": [self._facts(one) for one in (self.reference, *field)],
            "rounds": pace.rounds,
            "turn_seconds": pace.turn_seconds,
            "machine": [cpu_name(), usable_cpus()],
            "versions": versions(),
        }

        def work() -> tuple[list[Lap | str], Facts]:
            laps = self._raced(field, pace)
            return laps, {"laps": [lap if isinstance(lap, str) else lap.to_json() for lap in laps]}

        def read(facts: Facts) -> list[Lap | str]:
            return [lap if isinstance(lap, str) else Lap.read(lap) for lap in facts["laps"]]

        return dict(zip(field, self.memory.step(key, read, work), strict=True))

    def quality(self, file: ModelFile, backend: str) -> Quality | str:
        """Compare answers on up to 64 images, and count right ones on class folders."""
        base = self.bases[file.base]
        key = {
            "step": "quality",
            "model": file.sha256,
            "float": base.file.sha256,
            "backends": [self.reference.backend, backend],
            "device": self.device,
            "calibration": data_digests(self.calibration, base.preprocessing, self.samples),
            "data": self._data_digests,
            "versions": versions(),
        }

        def work() -> tuple[Quality | str, Facts]:
            found = self._judged(file, backend, base)
            return found, {"refused": found} if isinstance(found, str) else found.to_json()

        def read(facts: Facts) -> Quality | str:
            return str(facts["refused"]) if "refused" in facts else Quality.read(facts)

        return self.memory.step(key, read, work)

    @functools.cached_property
    def _wanted(self) -> dict[str, list[Array]]:
        """The answers of each float model, by its name, once they are known."""
        return {}

    @functools.cached_property
    def _data_digests(self) -> Facts | None:
        if self.data is None:
            return None
        return {path.relative_to(self.data).as_posix(): sha256_of(path) for path in find_images(self.data)}

    def _facts(self, one: Candidate) -> Facts:
        return {
            "model": one.file.sha256,
            "backend": one.backend,
            "threads": one.threads,
            "batch": one.batch,
            "device": self.device,
        }

    def _raced(self, field: Sequence[Candidate], pace: Pace) -> list[Lap | str]:
        with contextlib.ExitStack() as stack:
            processes: dict[str, CandidateWorker] = {"reference": stack.enter_context(self._process(self.reference))}
            _ = processes["reference"].opening
            refused: dict[int, str] = {}
            for number, one in enumerate(field):
                process = stack.enter_context(self._process(one))
                try:
                    _ = process.opening
                except (BackendError, InputError) as exc:
                    process.close()
                    refused[number] = f"cannot run: {exc.why}"
                else:
                    processes[str(number)] = process
            result = measure_rounds(processes, rounds=pace.rounds, seconds_per_round=pace.turn_seconds)
        return [
            refused[number] if number in refused else self._lap(one, str(number), result)
            for number, one in enumerate(field)
        ]

    def _process(self, one: Candidate) -> CandidateWorker:
        return CandidateWorker(Timed(one.file.path, one.backend, one.batch, self.device, threads=one.threads))

    def _lap(self, one: Candidate, name: str, result: RoundResults) -> Lap:
        ratio = result.speedup(name, over="reference")
        scale = one.batch / self.reference.batch
        latency = Interval.of([turn.median * 1e3 for turn in result.timings[name]])
        placement = result.openings[name].placement
        return Lap(
            speed=Interval(ratio.median * scale, ratio.low * scale, ratio.high * scale),
            latency_ms=latency.median,
            low_ms=latency.low,
            high_ms=latency.high,
            peak_memory_bytes=max(turn.peak_memory_bytes for turn in result.timings[name]),
            device=placement.device,
            precision=placement.precision,
            rounds=len(result.timings[name]),
        )

    def _judged(self, file: ModelFile, backend: str, base: Base) -> Quality | str:
        samples, kind = self._samples(base.preprocessing)
        try:
            answers = _answers(file.path, backend, self.device, samples)
            report = None if self.data is None else evaluate(file.path, self.data, backend=backend, device=self.device)
        except BackendError as exc:
            return f"cannot run: {exc.why}"
        if base.file.base not in self._wanted:
            self._wanted[base.file.base] = _answers(base.file.path, self.reference.backend, self.device, samples)
        meter = ParityMeter(class_scores=answers[0].ndim == 2 and not _gives_features(base))
        for wanted, given in zip(self._wanted[base.file.base], answers, strict=True):
            meter.update(wanted, given)
        top1, labelled = (None, 0) if report is None else (report.top1, report.count)
        return Quality(meter.result(), len(samples), kind, top1, labelled)

    def _samples(self, preprocessing: Preprocessing) -> tuple[list[Array], str]:
        if self.data is not None:
            return list(samples_of(self.data, preprocessing, PARITY_SAMPLES)), "images of the labelled data"
        if self.calibration is not None:
            from densenet_deploy.quantize.calibration_data import open_calibration_data

            opened = open_calibration_data(self.calibration, preprocessing, self.samples)
            return list(itertools.islice(opened, PARITY_SAMPLES)), "calibration images"
        return list(seeded_samples(PARITY_SAMPLES, preprocessing)), "seeded inputs"


def _answers(path: Path, backend: str, device: str | None, samples: Sequence[Array]) -> list[Array]:
    with open_runner(path, backend, device) as runner:
        output = runner.outputs[0].name
        return [np.array(run_batched(runner, sample)[output]) for sample in samples]


def _gives_features(base: Base) -> bool:
    manifest = base.artifact.manifest
    return manifest is not None and manifest.spec.get("head") == "features"
