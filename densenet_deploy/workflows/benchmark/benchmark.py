"""Benchmark: any artifacts and checkpoints against each other, by backend, device, batch size and threads.

Contenders of one batch size are raced together: each alone in a process, loaded one after the other, warmed up until
steady, then timed in rounds of one turn each, so that a drift of the machine meets all of them. Batch sizes follow one
another, because memory is to hold one field of contenders at a time.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from densenet_deploy.artifacts import Artifact, output_path, prepare_output, sha256_of, write_file
from densenet_deploy.bench.candidate import BatchRefusedError, Candidate, CandidateWorker
from densenet_deploy.bench.comparison import EarlierRun
from densenet_deploy.bench.machine import Machine
from densenet_deploy.bench.measurement import Measurement
from densenet_deploy.bench.rounds import RoundResults, measure_rounds
from densenet_deploy.bench.scenarios import SCENARIOS
from densenet_deploy.errors import BackendError, UsageError
from densenet_deploy.options import require_choice, require_range
from densenet_deploy.packages import require_packages
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.runner import Device, backends
from densenet_deploy.workflows.benchmark.report import BenchmarkReport, file_content
from densenet_deploy.workflows.load import is_checkpoint
from densenet_deploy.workflows.notes import untrained_note
from densenet_deploy.workflows.stages import Listener, ignore

PACKAGES: Final = (
    "densenet-deploy",
    "numpy",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "torch",
    "tensorrt",
    "tensorrt-rtx",
)
_CHECKPOINT_PROGRAM: Final = "densenet_deploy.workflows.benchmark.contender"
_MOST_WARM_UP_ROUNDS: Final = 6
_FEWEST_ROUNDS: Final = 3  # an interval around fewer would look surer than it is

_Loaded = dict[str, tuple[Candidate, CandidateWorker]]


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to time, and for how long.

    Attributes:
        backends, devices: every model is run on each; empty means each model's own.
        batches: images a call.
        threads: CPU threads of a call; empty means all that this process may use (offline: shared by the streams).
        scenario: `single-stream`, `offline` or `camera`, see `bench.scenarios`.
        fps: frames a second, of `camera` alone.
        streams: callers at the same time, of `offline` alone; None means one for each usable CPU.
        seconds: how long each contender is timed in all, in `rounds` turns of the same length.
        compare: the JSON of an earlier run.
    """

    backends: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = ()
    scenario: str = "single-stream"
    fps: float | None = None
    streams: int | None = None
    seconds: float = 5.0
    rounds: int = 10
    compare: Path | None = None

    def __post_init__(self) -> None:
        require_choice("scenario", self.scenario, SCENARIOS)
        require_range("seconds", self.seconds, 0.0, 86400.0)
        require_range("rounds", self.rounds, _FEWEST_ROUNDS, 10_000)
        for size in self.batches:
            require_range("batch", size, 1, 65536)
        for count in self.threads:
            require_range("threads", count, 1, 1024)
        for word in self.devices:
            Device.parse(word)
        for name, value, scenario in (("fps", self.fps, "camera"), ("streams", self.streams, "offline")):
            if value is not None and self.scenario != scenario:
                raise UsageError(
                    f"{name}={value:g}", f"belongs to the scenario {scenario}", f"add --scenario {scenario}"
                )
        if self.scenario == "camera" and self.fps is None:
            raise UsageError("scenario=camera", "has no frame rate", "add --fps, such as --fps 30")


def benchmark(
    models: Sequence[Path],
    options: BenchmarkOptions | None = None,
    out: str | None = None,
    *,
    force: bool = False,
    listener: Listener = ignore,
) -> BenchmarkReport:
    """Time `models` and, where `out` is given, write the report to that `.json` or `.csv` file.

    >>> benchmark([Path("artifacts/densenet121.onnx")]).results[0].latency.p50      # doctest: +SKIP
    15.8

    Raises:
        UsageError: if a word or number cannot be meant.
        InputError: if a model or the earlier run cannot be used, or another file stands at `out` (without `force`).
        BackendError: if a backend or device cannot be had, or no model takes any of the batch sizes.
    """
    options = options or BenchmarkOptions()
    target = target_of(out, force=force)
    earlier = None if options.compare is None else EarlierRun.read(options.compare)
    artifacts = {model: Artifact.open(model) for model in models}
    hashes = {model: sha256_of(model) for model in artifacts}
    field, notes = _field(models, options)
    listener("looking at the machine")
    machine = Machine.this(*PACKAGES)
    results: list[Measurement] = []
    for batch in dict.fromkeys(options.batches):
        listener(f"batch {batch}: {len(field)} contenders, at least {options.seconds:g} s each")
        with contextlib.ExitStack() as stack:
            loaded, refused = _load([replace(contender, batch=batch) for contender in field], stack)
            notes += refused
            results += _measure(loaded, options, hashes)
    if not results:
        raise BackendError("batch", "; ".join(notes) or "no model was given", "give another --batch")
    untrained = {note: None for artifact in artifacts.values() for note in untrained_note(artifact.manifest)}
    report = BenchmarkReport(tuple(results), machine, (*untrained, *notes), earlier, seconds_each=options.seconds)
    if target is not None:
        write_file(target, file_content(report, target.suffix))
        return replace(report, file=target)
    return report


def target_of(out: str | None, *, force: bool) -> Path | None:
    """Return the file that `out` names; None without it.

    Raises:
        UsageError: if it names a file that is neither JSON nor CSV.
        OutputExistsError: if another file stands there (without `force`).
    """
    if out is None:
        return None
    target = output_path(out, "benchmark.csv" if out.lower().endswith(".csv") else "benchmark.json")
    prepare_output(target, None, force=force)
    return target


def _field(models: Sequence[Path], options: BenchmarkOptions) -> tuple[list[Candidate], list[str]]:
    """Every model with every backend that reads it, device and number of threads; notes on the pairs left out."""
    streams = _streams(options)
    field: list[Candidate] = []
    notes: list[str] = []
    for model, backend in itertools.product(models, options.backends or (None,)):
        if backend is not None and not _reads(backend, model):
            notes.append(f"{model}: {backend} does not read {model.suffix} files; left out")
            continue
        program = _CHECKPOINT_PROGRAM if is_checkpoint(model) else Candidate.program
        field += [
            Candidate(model, backend, device=device, threads=threads, streams=streams, fps=options.fps, program=program)
            for device in options.devices or (None,)
            for threads in options.threads or (None if streams == 1 else max(1, usable_cpus() // streams),)
        ]
    return field, notes


def _streams(options: BenchmarkOptions) -> int:
    if options.scenario != "offline":
        return 1
    return options.streams or usable_cpus()


def _reads(backend: str, model: Path) -> bool:
    """Whether `backend` runs files like `model`.

    Raises:
        UnknownNameError: if there is no such backend.
        MissingPackageError: if it is not installed.
    """
    kind = backends.get(backend)
    reads = backend == "torch" if is_checkpoint(model) else model.suffix.lower() in kind.suffixes
    if reads:
        require_packages(kind.extra, kind.requires)
    return reads


def _load(field: Sequence[Candidate], stack: contextlib.ExitStack) -> tuple[_Loaded, list[str]]:
    """Start the contenders one after the other, so that each loads undisturbed; leave out who refuses the batch."""
    loaded: _Loaded = {}
    notes: list[str] = []
    for number, contender in enumerate(field):
        process = stack.enter_context(CandidateWorker(contender))
        try:
            _ = process.opening
        except BatchRefusedError as exc:
            process.close()
            notes.append(f"{contender.model}: {exc.why}; {exc.fix}; left out")
        else:
            loaded[str(number)] = contender, process
    return loaded, notes


def _measure(loaded: _Loaded, options: BenchmarkOptions, hashes: dict[Path, str]) -> Iterator[Measurement]:
    if not loaded:
        return
    result = measure_rounds(
        {name: process for name, (_, process) in loaded.items()},
        rounds=options.rounds,
        seconds_per_round=options.seconds / options.rounds,
        max_warm_up_rounds=_MOST_WARM_UP_ROUNDS,
    )
    first = next(iter(loaded))
    for name, (contender, _) in loaded.items():
        yield _measurement(name, first, contender, result, options.scenario, hashes[contender.model])


def _measurement(
    name: str, first: str, contender: Candidate, result: RoundResults, scenario: str, sha256: str
) -> Measurement:
    return Measurement(
        candidate=contender,
        scenario=scenario,
        sha256=sha256,
        opening=result.openings[name],
        timings=result.timings[name],
        warm_up_rounds=result.warm_up_rounds,
        steady=name not in result.unsteady,
        speedup=None if name == first else result.speedup(name, over=first),
    )
