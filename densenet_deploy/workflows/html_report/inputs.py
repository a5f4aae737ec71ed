"""What the reports of other commands say, as far as the HTML report shows it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from densenet_deploy.workflows.html_report.json_report import JsonReport


@dataclass(frozen=True)
class Measured:
    """One result of `benchmark`: times in milliseconds, memory in bytes.

    `median` is that of the rounds' medians, which `interval` belongs to.
    """

    model: str
    sha256: str
    backend: str
    device: str
    precision: str
    batch: int
    threads: int | None
    streams: int
    scenario: str
    median: float
    interval: tuple[float, float] | None
    p90: float | None
    p99: float | None
    images_per_second: float | None
    memory_bytes: float | None
    device_memory_bytes: float | None
    load_ms: float | None
    first_ms: float | None
    missed: float | None
    fps: float | None
    rounds: int

    @classmethod
    def of(cls, result: JsonReport) -> Self:
        """Read a result."""
        latency, camera, rounds = result.part("latency_ms"), result.known_part("camera"), result.numbers("rounds_ms")
        interval = result.numbers("interval_ms")
        threads = result.known_number("threads")
        return cls(
            model=result.text("model"),
            sha256=result.known_text("sha256"),
            backend=result.text("backend"),
            device=result.known_text("device"),
            precision=result.text("precision"),
            batch=int(result.number("batch")),
            threads=None if threads is None else int(threads),
            streams=int(result.known_number("streams") or 1),
            scenario=result.known_text("scenario") or "single-stream",
            median=statistics.median(rounds) if rounds else latency.number("p50"),
            interval=(interval[0], interval[1]) if len(interval) == 2 else None,
            p90=latency.known_number("p90"),
            p99=latency.known_number("p99"),
            images_per_second=result.known_number("images_per_second"),
            memory_bytes=result.known_number("peak_memory_bytes"),
            device_memory_bytes=result.known_number("device_memory_bytes"),
            load_ms=result.known_number("load_ms"),
            first_ms=result.known_number("first_ms"),
            missed=None if camera is None else camera.number("missed"),
            fps=None if camera is None else camera.number("fps"),
            rounds=len(rounds),
        )


@dataclass(frozen=True)
class MachineFacts:
    """The machine that `benchmark` ran on, as it told."""

    cpu: str
    usable_cpus: int
    system: str
    python: str
    date: str
    quota: float | None
    mhz: float | None
    gpus: tuple[str, ...]
    versions: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, machine: JsonReport) -> Self:
        """Read what `benchmark` calls `machine`."""
        versions = machine.known_part("versions")
        return cls(
            cpu=machine.text("cpu"),
            usable_cpus=int(machine.number("usable_cpus")),
            system=machine.known_text("system"),
            python=machine.known_text("python"),
            date=machine.known_text("date"),
            quota=machine.known_number("cpu_quota"),
            mhz=machine.known_number("cpu_mhz"),
            gpus=tuple(f"{gpu.text('name')}, driver {gpu.known_text('driver')}" for gpu in machine.parts("gpus")),
            versions=() if versions is None else tuple((name, versions.text(name)) for name in versions.facts),
        )


@dataclass(frozen=True)
class Benchmark:
    """A run of `benchmark`; `seconds_each` is how long each contender was timed, None where that is not recorded."""

    path: Path
    results: tuple[Measured, ...]
    machine: MachineFacts | None
    notes: tuple[str, ...]
    seconds_each: float | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the JSON of `benchmark`."""
        report = JsonReport.read(path, "benchmark", "results")
        machine = report.known_part("machine")
        results = tuple(map(Measured.of, report.parts("results")))
        facts = None if machine is None else MachineFacts.of(machine)
        return cls(path, results, facts, report.texts("notes"), report.known_number("seconds_each"))


@dataclass(frozen=True)
class ClassAccuracy:
    """A class by name, how many figures it had, and how many of them were recognised."""

    name: str
    count: int
    right: int


@dataclass(frozen=True)
class Accuracy:
    """What `evaluate` found of one model; fractions are 0 to 1. `mistaken` is (truth, answer, times)."""

    path: Path
    model: str
    top1: float
    top5: float | None
    count: int
    images_per_second: float | None
    calibration_error: float | None
    backend: str
    precision: str
    classes: tuple[ClassAccuracy, ...]
    mistaken: tuple[tuple[str, str, int], ...]
    unreadable: int
    against: str
    agreement: float | None
    notes: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the JSON of `evaluate`."""
        report = JsonReport.read(path, "evaluate", "model", "top1", "count")
        against, parts = report.known_part("against"), report.parts("classes")
        names = {int(part.number("index")): _class_name(part) for part in parts}
        return cls(
            path=path,
            model=report.text("model"),
            top1=report.number("top1"),
            top5=report.known_number("top5"),
            count=int(report.number("count")),
            images_per_second=report.known_number("images_per_second"),
            calibration_error=report.known_number("calibration_error"),
            backend=report.known_text("backend"),
            precision=report.known_text("precision"),
            classes=tuple(
                ClassAccuracy(_class_name(part), int(part.number("count")), int(part.number("right"))) for part in parts
            ),
            mistaken=_mistaken(report.parts("confusion"), names),
            unreadable=len(report.parts("bad")),
            against="" if against is None else against.text("model"),
            agreement=None if against is None else against.known_number("top1_agreement"),
            notes=report.texts("notes"),
        )


def _class_name(part: JsonReport) -> str:
    return part.known_text("label") or f"class {int(part.number('index'))}"


def _mistaken(confusion: Sequence[JsonReport], names: dict[int, str]) -> tuple[tuple[str, str, int], ...]:
    """Wrong answers, the most frequent first."""
    found = []
    for entry in confusion:
        truth, answer, times = (int(entry.number(key)) for key in ("truth", "predicted", "count"))
        if truth != answer:
            found.append((names.get(truth, f"class {truth}"), names.get(answer, f"class {answer}"), times))
    return tuple(sorted(found, key=lambda item: -item[2]))


@dataclass(frozen=True)
class ParityFacts:
    """How far outputs are from those of a reference; None where infinite or without meaning."""

    name: str
    sqnr_db: float | None
    cosine: float | None
    max_abs: float | None
    top1_agreement: float | None

    @classmethod
    def of(cls, name: str, parity: JsonReport) -> Self:
        """Read what commands call `parity`."""
        keys = ("sqnr_db", "cosine", "max_abs", "top1_agreement")
        return cls(name, *(parity.known_number(key) for key in keys))


@dataclass(frozen=True)
class Validation:
    """What `validate` found; `layers` are the worst, where it compared them, and `passed` is None without a gate."""

    path: Path
    reference: str
    candidate: str
    parity: ParityFacts
    passed: bool | None
    failed: tuple[str, ...]
    first_divergence: str
    layers: tuple[ParityFacts, ...]
    notes: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the JSON of `validate`."""
        report = JsonReport.read(path, "validate", "reference", "candidate", "parity", "passed")
        return cls(
            path=path,
            reference=report.text("reference"),
            candidate=report.text("candidate"),
            parity=ParityFacts.of("outputs", report.part("parity")),
            passed=None if report.facts["passed"] is None else report.flag("passed"),
            failed=report.texts("failed"),
            first_divergence=report.known_text("first_divergence"),
            layers=tuple(ParityFacts.of(layer.text("name"), layer) for layer in report.parts("worst_layers")),
            notes=report.texts("notes"),
        )

    @property
    def model(self) -> str:
        """The file of the candidate, which stands before what it ran on."""
        return file_of(self.candidate)


def file_of(described: str) -> str:
    """Return the file in `FILE: backend version, provider, …`."""
    return described.rpartition(": ")[0] or described


@dataclass(frozen=True)
class Quantization:
    """What `quantize` did: the file, its recipe, on how many figures ranges were found, what became of the layers."""

    path: Path
    model: str
    recipe: str
    calibrated_on: int
    weight_bits: int | None
    layers_int8: int
    float_layers: tuple[str, ...]
    parity: ParityFacts
    speed: str
    notes: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the JSON of `quantize`."""
        report = JsonReport.read(path, "quantize", "onnx", "recipe", "parity", "calibrated_on")
        bits, speed = report.known_number("weight_bits"), report.known_part("speed")
        return cls(
            path=path,
            model=report.text("onnx"),
            recipe=report.text("recipe"),
            calibrated_on=int(report.number("calibrated_on")),
            weight_bits=None if bits is None else int(bits),
            layers_int8=int(report.number("layers_int8")),
            float_layers=report.texts("float_layers"),
            parity=ParityFacts.of("outputs", report.part("parity")),
            speed="not measured" if speed is None else _speed(speed),
            notes=report.texts("notes"),
        )


def _speed(speed: JsonReport) -> str:
    known = ((name, speed.facts[name]) for name in speed.facts)
    return ", ".join(f"{name} {value:.4g}" for name, value in known if isinstance(value, (int, float)))
