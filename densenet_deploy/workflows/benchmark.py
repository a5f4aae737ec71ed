"""Benchmark: models side by side, by backend, device, batch size and number of threads.

The candidates of one batch size are measured together: each is loaded alone in its own process, all are warmed up until
their times are steady, then timed in alternating rounds, so that a drift of the machine affects all of them. Batch
sizes follow one another, because memory has to hold the candidates of only one at a time.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from densenet_deploy.artifacts import (
    Artifact,
    StrPath,
    is_checkpoint_name,
    model_sha256,
    output_path,
    prepare_output,
    write_file,
)
from densenet_deploy.bench.candidate import FPS_RANGE, Candidate, CandidateWorker
from densenet_deploy.bench.machine import Machine
from densenet_deploy.bench.measurement import NOISY_VARIATION, NOTICEABLE_OVERHEAD, Comparison, Measurement
from densenet_deploy.bench.rounds import RoundResults, measure_rounds
from densenet_deploy.bench.scenarios import SCENARIOS
from densenet_deploy.errors import BackendError, DensenetDeployError, UsageError, printable
from densenet_deploy.model import untrained_note
from densenet_deploy.options import or_default, require_choice, require_range
from densenet_deploy.packages import require_packages
from densenet_deploy.reports import Report, line, table, wrote
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.runner import Device, Runner, RunnerOptions, backends
from densenet_deploy.variants import find_variant, is_variant
from densenet_deploy.workflows.load import is_file_name, load, open_model, several
from densenet_deploy.workflows.stages import Listener, in_notebook

if TYPE_CHECKING:
    from densenet_deploy.model import Model

PACKAGES: Final = ("densenet-deploy", "numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "openvino", "torch",
                   "tensorrt", "tensorrt-rtx")  # fmt: skip
_SCHEMA: Final = 1
_MIB: Final = 2**20
_MAX_WARM_UP_ROUNDS: Final = 6
_MIN_ROUNDS: Final = 3  # an interval from fewer would look more certain than it is
_NOT_PAIRED: Final = "the machine may have changed between the two runs; measure both files in one run to be certain"


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to time, and for how long.

    >>> BenchmarkOptions(batches=(1, 8), scenario="offline", streams=2).seconds
    5.0

    Attributes:
        backends, devices: every model runs on each; empty means the default of each model.
        batches: images per call.
        threads: CPU threads per call; empty means all that this process may use (offline: divided among the streams).
        variants: names of untrained networks to time beside the models: `121`, `cifar-bc-100-12`.
        scenario: `single-stream`, `offline` or `camera`, see `bench.scenarios`.
        fps: frames per second; for `camera` only.
        streams: concurrent callers; for `offline` only. None means one per usable CPU.
        seconds: how long each candidate is timed in total.
        rounds: parts of that time, in which all candidates take turns; at least 3.
        compare: the JSON of an earlier run.

    Raises:
        UsageError: if an option is out of range, unknown, or does not apply to the scenario.
    """

    backends: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = ()
    variants: tuple[str, ...] = ()
    scenario: str = "single-stream"
    fps: float | None = None
    streams: int | None = None
    seconds: float = 5.0
    rounds: int = 10
    compare: StrPath | None = None

    def __post_init__(self) -> None:
        require_choice("scenario", self.scenario, SCENARIOS)
        require_range("seconds", self.seconds, 0.0, 86400.0)
        require_range("rounds", self.rounds, _MIN_ROUNDS, 10_000)
        for size in self.batches:
            require_range("batch", size, 1, 65536)
        for count in self.threads:
            require_range("threads", count, 1, 1024)
        for find, words in ((Device.parse, self.devices), (backends.get, self.backends), (find_variant, self.variants)):
            for word in words:
                find(word)  # raises if there is none of that name
        self._check_scenario()

    def _check_scenario(self) -> None:
        for name, value, scenario in (("fps", self.fps, "camera"), ("streams", self.streams, "offline")):
            if value is not None and self.scenario != scenario:
                raise UsageError(f"{name}={value:g}", f"applies only to {scenario}", f"add --scenario {scenario}")
        if self.scenario != "camera":
            return
        if self.fps is None:
            raise UsageError("scenario=camera", "needs a frame rate", "add --fps, such as --fps 30")
        require_range("fps", self.fps, *FPS_RANGE)


@dataclass(frozen=True)
class FailedCandidate:
    """A model that did not run on a backend (None: its default), and why."""

    model: str
    backend: str | None
    reason: str

    @classmethod
    def of(cls, model: str, backend: str | None, error: DensenetDeployError) -> FailedCandidate:
        return cls(model, backend, f"{error.why}; {error.fix}")

    def __str__(self) -> str:
        place = "" if self.backend is None else f" on {self.backend}"
        return f"{printable(self.model)}{place}: {printable(self.reason)}"


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport(Report):
    """A measurement per candidate and batch size, and the machine.

    Attributes:
        failed: candidates that could not be measured.
        seconds_each: how long each candidate was timed; more if its calls are slow.
        compared_with: the earlier run, if there was one; see `Measurement.compared`.
        file: where the report was written.
    """

    kind: ClassVar[str] = "benchmark"

    results: tuple[Measurement, ...]
    machine: Machine
    failed: tuple[FailedCandidate, ...] = ()
    seconds_each: float | None = None
    compared_with: str | None = None
    file: Path | None = None

    def to_text(self) -> str:
        """Return a table, followed by the failures, the machine and the comparison."""
        lines = table(_header(self.results[0]), map(_row, self.results))
        lines += ["", *(line("failed", one) for one in self.failed), line("machine", self.machine)]
        if self.compared_with is not None:
            lines += ["", *map(_comparison_line, self.results)]
        return "\n".join([*lines, *wrote(self.file)])

    def to_csv(self) -> str:
        """Return one row per result; a nested key becomes `latency_ms.p50`."""
        rows = [_flat(result) for result in self.to_json()["results"]]
        names = dict.fromkeys(name for row in rows for name in row)
        columns = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def benchmark(
    models: Any = (),
    options: BenchmarkOptions | None = None,
    *,
    out: StrPath | None = None,
    force: bool = False,
    progress: Listener | None = None,
) -> BenchmarkReport:
    """Time models against each other; a candidate that cannot run is reported in `failed`.

    >>> benchmark(["digits.onnx"], BenchmarkOptions(seconds=0.3, rounds=3)).results[0].latency_ms.p50
    1.13

    Args:
        models: one or several of files, names of variants, or whatever else `load` takes. A module in memory has to be
            a known DenseNet.
        options: what to time, and for how long.
        out: a `.json` or `.csv` file to write.
        force: replace another file at `out`.
        progress: called with each step.

    Raises:
        UsageError: if a name or number is invalid, or a module in memory is not a known DenseNet.
        InputError: if a file or the earlier run cannot be used, or another file exists at `out` (without `force`).
        DensenetDeployError: the error of the first candidate if none can run.
    """
    options, progress = or_default(options, BenchmarkOptions), progress or in_notebook
    target = _target_of(out, force=force)
    earlier = None if options.compare is None else BenchmarkReport.read(Path(options.compare))
    with contextlib.ExitStack() as stack:
        timed = [*_models(several(models), stack), *(_TimedModel.of_variant(name, stack) for name in options.variants)]
        progress("measuring the load of the machine")
        machine = Machine.this(*PACKAGES)
        results, failures = _measured(timed, options, progress)
    if not results:
        raise next(iter(failures.values()), UsageError("benchmark", "no model was given", "give a MODEL or --variant"))
    results = [_compared(result, earlier) for result in results]
    notes = (*(note for model in timed for note in model.notes), *_notes(results, machine, earlier))
    report = BenchmarkReport(
        results=tuple(results),
        machine=machine,
        failed=tuple(dict.fromkeys(failures)),
        seconds_each=options.seconds,
        compared_with=None if options.compare is None else str(options.compare),
        file=target,
        notes=tuple(dict.fromkeys(notes)),
    )
    if target is not None:
        is_csv = target.suffix.lower() == ".csv"
        content = report.to_csv().encode(errors="backslashreplace") if is_csv else report.to_file({"schema": _SCHEMA})
        write_file(target, content)
    return report


def _target_of(out: StrPath | None, *, force: bool) -> Path | None:
    if out is None:
        return None
    name = str(out)
    target = output_path(name, "benchmark.csv" if name.lower().endswith(".csv") else "benchmark.json")
    prepare_output(target, None, force=force)
    return target


@dataclass(frozen=True)
class _TimedModel:
    """A model to time: its `title` in reports, its file, and for an untrained network the name of its `variant`."""

    title: str
    notes: tuple[str, ...]
    file: Path | None = None
    variant: str | None = None
    folder: Path = field(default_factory=Path)

    @classmethod
    def of_variant(cls, name: str, stack: contextlib.ExitStack) -> _TimedModel:
        """Return an untrained network; its ONNX file is written to a temporary folder when it is needed."""
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        title = find_variant(name).artifact_name
        note = f"{title} has untrained weights: its speed is that of a trained one, its predictions are meaningless"
        return cls(title, (note,), variant=name, folder=folder)

    def is_read_by(self, kind: type[Runner]) -> bool:
        """Whether the backend can run it."""
        if kind.reads_modules and (self.file is None or is_checkpoint_name(self.file)):
            return True
        return (".onnx" if self.file is None else self.file.suffix.lower()) in kind.suffixes

    def candidate(self, backend: str | None) -> Candidate:
        """Return what a worker opens."""
        if self.file is not None:
            program = __name__ if is_checkpoint_name(self.file) else Candidate.program
            return Candidate(self.file, backend, program=program, name=self.title)
        if backend == "torch":
            return Candidate(Path(str(self.variant)), backend, program=__name__, name=self.title)
        return Candidate(self._exported, backend, name=self.title)

    def sha256_of(self, candidate: Candidate) -> str:
        """Return the hash of the file that `candidate` runs; empty if there is none."""
        return model_sha256(candidate.model) if candidate.model.exists() else ""

    @functools.cached_property
    def _exported(self) -> Path:
        from densenet_deploy.workflows.export import export

        path = self.folder / f"{self.title}.onnx"
        export(self.variant, out=path)
        return path


def _models(models: Iterable[Any], stack: contextlib.ExitStack) -> Iterator[_TimedModel]:
    for model in models:
        if is_file_name(model):
            yield _TimedModel(str(model), untrained_note(Artifact.open(Path(model)).manifest), Path(model))
        elif isinstance(model, str) and is_variant(model):
            yield _TimedModel.of_variant(model, stack)
        else:
            held = load(model)
            yield _TimedModel(held.name, untrained_note(held.manifest), held.path or _saved(held, stack))


def _saved(model: Model, stack: contextlib.ExitStack) -> Path:
    """Write a model in memory to a temporary file, which a worker opens."""
    if not model.is_onnx and model.spec is None:
        why = "is a module of unknown architecture, which another process cannot rebuild to time it"
        raise UsageError(model.name, why, "export it first: densenet_deploy.export(module)")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    return model.save(folder / f"{Path(model.name).name}{'.onnx' if model.is_onnx else '.safetensors'}")


def _measured(
    models: Sequence[_TimedModel], options: BenchmarkOptions, progress: Listener
) -> tuple[list[Measurement], Mapping[FailedCandidate, DensenetDeployError]]:
    failures: dict[FailedCandidate, DensenetDeployError] = {}
    candidates: list[Candidate] = []
    hashes: dict[Path, str] = {}
    for model, candidate in _candidates(models, options, failures):
        candidates.append(candidate)
        hashes[candidate.model] = hashes.get(candidate.model) or model.sha256_of(candidate)
    results: list[Measurement] = []
    for batch in dict.fromkeys(options.batches):
        progress(f"batch {batch}: {len(candidates)} candidates, at least {options.seconds:g} s each")
        sized = [replace(candidate, batch=batch) for candidate in candidates]
        found = _rounds(sized, options)
        for number, error in found.failures.items():
            candidate = sized[int(number)]
            failures[FailedCandidate.of(candidate.title, candidate.backend, error)] = error
        results += _measurements(sized, found, options.scenario, hashes)
    return results, failures


def _candidates(
    models: Sequence[_TimedModel], options: BenchmarkOptions, failures: dict[FailedCandidate, DensenetDeployError]
) -> Iterator[tuple[_TimedModel, Candidate]]:
    """Every model on every backend that reads it, every device and number of threads."""
    streams = 1 if options.scenario != "offline" else options.streams or usable_cpus()
    threads = options.threads or (None if streams == 1 else max(1, usable_cpus() // streams),)
    for model, backend in itertools.product(models, options.backends or (None,)):
        try:
            if backend is not None:
                _require_reader(backend, model)
            candidate = model.candidate(backend)
        except DensenetDeployError as exc:
            failures[FailedCandidate.of(model.title, backend, exc)] = exc
            continue
        for device, count in itertools.product(options.devices or (None,), threads):
            yield model, replace(candidate, device=device, threads=count, streams=streams, fps=options.fps)


def _require_reader(backend: str, model: _TimedModel) -> None:
    kind = backends.get(backend)
    if not model.is_read_by(kind):
        kinds = "untrained networks" if model.file is None else f"{model.file.suffix} files"
        raise BackendError(model.title, f"{backend} does not read {kinds}", "name another backend")
    require_packages(kind.extra, kind.requires)


def _rounds(candidates: Sequence[Candidate], options: BenchmarkOptions) -> RoundResults:
    with contextlib.ExitStack() as stack:
        workers = {}
        for number, candidate in enumerate(candidates):
            workers[str(number)] = worker = stack.enter_context(CandidateWorker(candidate))
            with contextlib.suppress(DensenetDeployError):  # `measure_rounds` records it
                _ = worker.opening  # so that each loads undisturbed
        return measure_rounds(
            workers,
            rounds=options.rounds,
            seconds_per_round=options.seconds / options.rounds,
            max_warm_up_rounds=_MAX_WARM_UP_ROUNDS,
        )


def _measurements(
    candidates: Sequence[Candidate], found: RoundResults, scenario: str, hashes: Mapping[Path, str]
) -> Iterator[Measurement]:
    baseline = next(iter(found.timings), None)
    for name, timings in found.timings.items():
        candidate = candidates[int(name)]
        yield Measurement.of(
            candidate,
            found.openings[name],
            timings,
            scenario=scenario,
            sha256=hashes[candidate.model],
            warm_up_rounds=found.warm_up_rounds,
            steady=name not in found.unsteady,
            speedup=None if name == baseline else found.speedup(name, over=str(baseline)),
        )


def _compared(result: Measurement, earlier: BenchmarkReport | None) -> Measurement:
    known = {} if earlier is None else {before.configuration: before for before in earlier.results if before.rounds_ms}
    before = known.get(result.configuration)
    return replace(result, compared=None if before is None else Comparison.of(before, result))


def _notes(results: Sequence[Measurement], machine: Machine, earlier: BenchmarkReport | None) -> Iterator[str]:
    """What makes the figures less certain."""
    yield from machine.notes
    noisy = [result for result in results if result.variation > NOISY_VARIATION]
    if noisy:
        worst = max(noisy, key=lambda result: result.variation)
        most = f"most in {_title(worst)}: {worst.variation:.0%}"
        share = f"{len(noisy)} of {len(results)} results, {most}"
        yield f"the machine is noisy: rounds vary by more than {NOISY_VARIATION:.0%} in {share}"
    unsteady = [result for result in results if not result.steady]
    if unsteady:
        share = f"{len(unsteady)} of {len(results)} results"
        yield f"times had not settled after {unsteady[0].warm_up_rounds} rounds of warm-up in {share}"
    for result in results:
        if result.outside_share is not None and result.outside_share > NOTICEABLE_OVERHEAD:
            share = f"{result.outside_share:.0%} of a call"
            yield f"{_title(result)}: {share} is spent in copies and checks around the backend's own call"
    if earlier is not None:
        yield from _notes_about(earlier, results, machine)


def _notes_about(earlier: BenchmarkReport, results: Sequence[Measurement], machine: Machine) -> Iterator[str]:
    yield _NOT_PAIRED
    if earlier.machine.cpu != machine.cpu:
        yield f"the earlier run was made on another machine: {printable(earlier.machine.cpu)}"
    known = {result.configuration for result in results}
    unmatched = sum(result.configuration not in known for result in earlier.results)
    if unmatched:
        yield f"{unmatched} results of the earlier run have no match here"


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Return nested facts as one row: `latency_ms` with `p50` becomes `latency_ms.p50`, lists are joined by spaces."""
    row: dict[str, object] = {}
    for key, value in facts.items():
        if isinstance(value, dict):
            row |= _flat(value, f"{prefix}{key}.")
        else:
            row[prefix + key] = " ".join(map(str, value)) if isinstance(value, list) else value
    return row


def _header(result: Measurement) -> tuple[str, ...]:
    header = ("model", "backend", "precision", "batch", "threads", "ms [95 %]", "p90", "p99", "images/s", "MiB",
              "load ms", "first ms", "speedup [95 %]")  # fmt: skip
    return header if result.camera is None else (*header, "missed", "dropped", "late")


def _row(result: Measurement) -> tuple[str, ...]:
    streams = "" if result.streams == 1 else f"{result.streams} x "
    low, high = result.interval_ms
    camera = result.camera
    return (
        printable(Path(result.model).name, 60),
        result.backend if result.device == "cpu" else f"{result.backend} {result.device}",
        result.precision,
        str(result.batch),
        f"{streams}{result.threads}",
        f"{result.median_ms:.2f} [{low:.2f}, {high:.2f}]",
        f"{result.latency_ms.p90:.2f}",
        f"{result.latency_ms.p99:.2f}",
        f"{result.images_per_second:.1f}",
        f"{result.peak_memory_bytes / _MIB:.0f}",
        f"{result.load_ms:.0f}",
        f"{result.first_ms:.1f}",
        "" if result.speedup is None else str(result.speedup),
        *(() if camera is None else (f"{camera.missed:.1%} of {camera.frames}", f"{camera.dropped}", f"{camera.late}")),
    )


def _comparison_line(result: Measurement) -> str:
    compared = result.compared
    if compared is None:
        return f"{_title(result)}: not in the earlier run"
    file = "" if compared.same_file else " (another file)"
    now = f"{compared.before_ms:.2f} ms before, {result.median_ms:.2f} ms now"
    return f"{_title(result)}{file}: {compared.verdict}, {now}, {compared.speedup} times as fast"


def _title(result: Measurement) -> str:
    return f"{printable(Path(result.model).name, 60)} on {result.backend}, batch {result.batch}"


def main(requests: Iterator[Any]) -> Iterator[Any]:
    """Serve a candidate that is a checkpoint, or the name of an untrained network."""
    from densenet_deploy.bench.candidate import serve_candidate

    return serve_candidate(requests, _open)


def _open(path: Path, backend: str | None, device: str | None, options: RunnerOptions) -> Runner:
    return open_model(path if is_checkpoint_name(path) else str(path), backend, device, options)
