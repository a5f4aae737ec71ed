"""What a tuning would try, and about how long that would take; nothing is made, and nothing timed but a matrix product.

The estimate is rough: multiply-accumulates of the model over how many this machine does in a matrix product, and fixed
costs that were measured on two cores of a server. It is meant to tell a minute from an hour.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from densenet_deploy.analysis.cost import ModelCost, model_cost
from densenet_deploy.errors import printable
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.image_folders import find_images
from densenet_deploy.variants import find_variant
from densenet_deploy.variants.spec import DenseNetSpec
from densenet_deploy.workflows.cast import PARITY_SAMPLES as CAST_SAMPLES
from densenet_deploy.workflows.load import load
from densenet_deploy.workflows.tune.candidates import Form, Space, TuneOptions
from densenet_deploy.workflows.tune.forms import Base, Source, Workshop
from densenet_deploy.workflows.tune.search import HEAT_SIZE, PACES
from densenet_deploy.workflows.tune.track import PARITY_SAMPLES

if TYPE_CHECKING:
    from densenet_deploy.workflows.tune.track import Pace

_MATRIX: Final = 96  # small enough for one thread, which waits for no other
_PRODUCTS: Final = 200
_SHARE: Final = 1.0  # of the speed of such products, that a whole network reaches on average over the candidates
_STEP_SECONDS: Final = {"export": 8.0, "fp16": 2.0, "bf16": 1.0, "int8": 3.0}  # imports, checks
_LAYER_SECONDS: Final = {"export": 0.06, "fp16": 0.03, "bf16": 0.02, "int8": 0.04}  # of convolutions and norms
_RANGES: Final = {"fp16": "cast", "bf16": "cast", "int8": "int8"}  # forms of a kind share the ranges they are made from
_PASSES: Final = {"cast": 3.0, "int8": 3.0}  # how often calibration data go through some form of the model
_AGAIN: Final = {"cast": 0.3, "int8": 1.0}  # where the ranges are there already
_OPEN_SECONDS: Final = 1.0
_SECOND_HEAT_SHARE: Final = 0.25  # of the candidates
_LAST_HEAT_SHARE: Final = 0.5  # of the tunings


@dataclass(frozen=True)
class PlannedFile:
    """A file that would be made, unless it is `up_to_date`; `seconds` is about how long that takes."""

    path: Path
    form: str
    up_to_date: bool
    seconds: float


@dataclass(frozen=True)
class TunePlan:
    """Files to make, candidates to time by model, and about how many seconds each part takes."""

    files: tuple[PlannedFile, ...]
    candidates: int
    backends: tuple[str, ...]
    threads: tuple[int, ...]
    batches: tuple[int, ...]
    measuring_seconds: float
    state: Path
    notes: tuple[str, ...]

    @property
    def expected_seconds(self) -> float:
        """Of everything that is not up to date, measurements included."""
        return self.measuring_seconds + sum(file.seconds for file in self.files)

    def to_json(self) -> dict[str, object]:
        """Return the plan with plain types, under the keys of a report of a tuning."""
        return {
            "pareto": [],
            "chosen": None,
            "dry_run": True,
            "plan": {
                "files": [
                    {"file": str(f.path), "form": f.form, "up_to_date": f.up_to_date, "expected_seconds": f.seconds}
                    for f in self.files
                ],
                "candidates": self.candidates,
                "backends": list(self.backends),
                "threads": list(self.threads),
                "batches": list(self.batches),
                "measuring_seconds": self.measuring_seconds,
            },
            "expected_seconds": self.expected_seconds,
            "state": str(self.state),
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return lines for people."""
        threads, batches = ", ".join(map(str, self.threads)), ", ".join(map(str, self.batches))
        return "\n".join(
            [
                *(f"file        {printable(file.path)}: {_what(file)}" for file in self.files),
                f"candidates  {self.candidates}: on {', '.join(self.backends)}; threads {threads}; batches {batches}",
                f"measuring   about {self.measuring_seconds:.0f} s; what is remembered in {self.state.name} takes none",
                f"expected    about {self.expected_seconds / 60:.1f} minutes, give or take a factor of two",
            ]
        )


def plan(sources: Sequence[Source], options: TuneOptions, space: Space, workshop: Workshop) -> TunePlan:
    """Look at what is there, and estimate.

    Raises:
        InputError: if a model or the data cannot be used.
    """
    rate = _macs_per_second()
    images = 0 if options.data is None else len(find_images(options.data))
    files: list[PlannedFile] = []
    candidates, seconds = 0, 0.0
    for source in sources:
        base = workshop.known_base(source)
        cost = _cost(source, base)
        latency = cost.macs / rate / _SHARE + 1e-3
        batches = space.batches if base is None or base.file.fixed_batch is None else (base.file.fixed_batch,)
        files += _planned_files(source, base, space.forms, workshop, cost, latency)
        pairs = sum(len(form.backends) for form in space.forms)
        candidates += pairs * len(space.threads) * len(batches)
        seconds += pairs * (_OPEN_SECONDS + latency * (PARITY_SAMPLES + 1.3 * images))
        seconds += sum(pairs * len(space.threads) * _heats(latency * batch) for batch in batches)
        seconds += _LAST_HEAT_SHARE * HEAT_SIZE * _heat(PACES[2], latency * batches[0])
    backends = tuple(dict.fromkeys(name for form in space.forms for name in form.backends))
    return TunePlan(
        tuple(files), candidates, backends, space.threads, space.batches, seconds, workshop.memory.path, space.notes
    )


def _what(file: PlannedFile) -> str:
    return "up to date" if file.up_to_date else f"to be made, about {file.seconds:.0f} s"


def _planned_files(
    source: Source, base: Base | None, forms: Sequence[Form], workshop: Workshop, cost: ModelCost, latency: float
) -> list[PlannedFile]:
    known: set[str] = set()
    files: list[PlannedFile] = []
    for form in forms:
        kind = _RANGES.get(form.precision, "")
        passes = (_AGAIN if kind in known else _PASSES).get(kind, 0.0)
        known.add(kind)
        files.append(_planned(source, base, form, workshop, cost, passes * latency))
    return files


def _planned(
    source: Source, base: Base | None, form: Form, workshop: Workshop, cost: ModelCost, image_seconds: float
) -> PlannedFile:
    if base is not None:
        path = base.file.path if form.precision == "fp32" else workshop.path_of(base, form)
        made = workshop.is_made(base, form)
    else:
        made = False
        path = workshop.folder / (
            f"{source.stem}.onnx" if form.precision == "fp32" else f"{source.stem}.{form.name}.onnx"
        )
    step = "export" if form.precision == "fp32" else form.precision
    through = image_seconds * _calibration_count(workshop)
    seconds = _STEP_SECONDS[step] + _LAYER_SECONDS[step] * len(cost.layers) + through
    return PlannedFile(path, form.name, made, 0.0 if made else seconds)


def _calibration_count(workshop: Workshop) -> int:
    """Images that go through a form while it is made and checked; without calibration data those of a comparison."""
    if workshop.calibration is None:
        return CAST_SAMPLES
    if not workshop.calibration.is_dir():
        return workshop.samples
    return min(workshop.samples, len(find_images(workshop.calibration)))


def _heats(latency: float) -> float:
    return _heat(PACES[0], latency) + _SECOND_HEAT_SHARE * _heat(PACES[1], latency)


def _heat(pace: Pace, latency: float) -> float:
    """Seconds of one candidate in a heat: opening, a turn of warm-up, the turns."""
    return _OPEN_SECONDS + (pace.rounds + 1) * (max(pace.turn_seconds, 3 * latency) + 2 * latency + 0.05)


def _cost(source: Source, base: Base | None) -> ModelCost:
    if base is None:
        if source.variant is not None:
            variant = find_variant(source.variant)
            return model_cost(variant.spec, variant.preprocessing.image_size)
        described = load(source.path)
        assert described.spec is not None
        assert described.manifest is not None
        return model_cost(described.spec, described.manifest.preprocessing.image_size)
    manifest = base.artifact.manifest
    if manifest is not None:
        return model_cost(DenseNetSpec.from_facts(manifest.spec), base.preprocessing.image_size)
    from densenet_deploy.analysis.onnx_cost import onnx_cost
    from densenet_deploy.graph.onnx_file import load_onnx

    return onnx_cost(load_onnx(base.file.path))


def _macs_per_second() -> float:
    """Multiply-accumulates a second of all usable CPUs, from the fastest of many small products."""
    matrix = np.ones((_MATRIX, _MATRIX), np.float32)
    times = []
    for _ in range(_PRODUCTS):
        start = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - start)
    return float(_MATRIX**3 / min(times)) * usable_cpus()
