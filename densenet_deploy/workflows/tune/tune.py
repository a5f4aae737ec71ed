"""Tune: make the forms of a model, time them here, compare their answers, and say which one to ship.

Precision × recipe × backend × threads × batch, of one or several models. The files are made by the roads of `export`,
`cast` and `quantize`; how little has to be timed is in `search.py`, what is remembered in `memory.py`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from densenet_deploy.artifacts import FILE_SUFFIXES, Artifact
from densenet_deploy.bench.machine import Machine
from densenet_deploy.errors import InputError, UsageError
from densenet_deploy.packages import require_packages
from densenet_deploy.runtime.image_folders import find_images
from densenet_deploy.workflows.benchmark import PACKAGES
from densenet_deploy.workflows.notes import untrained_note
from densenet_deploy.workflows.stages import Listener, ignore
from densenet_deploy.workflows.tune.candidates import Candidate, Form, ModelFile, Space, TuneOptions
from densenet_deploy.workflows.tune.forms import Base, Refused, Source, Workshop
from densenet_deploy.workflows.tune.memory import NAME, Memory
from densenet_deploy.workflows.tune.plan import TunePlan, plan
from densenet_deploy.workflows.tune.report import TuneReport
from densenet_deploy.workflows.tune.results import Limits
from densenet_deploy.workflows.tune.search import Question, Search
from densenet_deploy.workflows.tune.track import LocalTrack

if TYPE_CHECKING:
    from densenet_deploy.quantize.cache import CalibrationCache

DEFAULT_FOLDER: Final = "artifacts/tune/"
_NOT_ACROSS: Final = "without --data nothing says which model answers better: the fastest of any model is chosen"
_ON_CALIBRATION: Final = "answers were compared on the calibration images; give --data for others"


def tune(
    sources: Sequence[Source],
    options: TuneOptions | None = None,
    out: str | None = None,
    *,
    force: bool = False,
    measure_again: bool = False,
    cache: CalibrationCache | None = None,
    listener: Listener = ignore,
) -> TuneReport:
    """Search what to ship of `sources`, or go on where an earlier search of them was interrupted.

    >>> tune([Source(Path("artifacts/densenet121.onnx"))]).chosen.candidate      # doctest: +SKIP

    Args:
        sources: what to tune; each name of a file once.
        options: the space, the data and the limits.
        out: the folder for files and state; None means `artifacts/tune/`.
        force: replace files that are in the way there.
        measure_again: forget timings and accuracies that are remembered.
        cache: of calibration ranges.
        listener: told of every step.

    Raises:
        UsageError: if an option cannot be meant.
        InputError: if a model or the data cannot be used, or something else stands where a file should go.
        BackendError: if a backend cannot be had.
    """
    start = time.perf_counter()
    options = options or TuneOptions()
    space, memory = _prepared(sources, options, out, measure_again=measure_again)
    shop = Workshop(memory.path.parent, memory, options.calibration, options.samples, cache, force, listener)
    bases = [shop.base(source) for source in sources]
    made, refused = _made(bases, space.forms, shop)
    candidates = space.candidates(made)
    listener("looking at the machine")
    machine = Machine.this(*PACKAGES)
    track = LocalTrack(
        reference=_reference(candidates),
        bases={base.file.base: base for base in bases},
        memory=memory,
        device=options.device,
        calibration=options.calibration,
        samples=options.samples,
        data=options.data,
    )
    limits = _limits(options)
    tried = Search(track, Question(limits, options.goal), listener).run(candidates)
    return TuneReport(
        tried=tried,
        limits=limits,
        goal=options.goal,
        reference=str(track.reference),
        machine=machine,
        seconds=time.perf_counter() - start,
        reused=memory.reused,
        done=memory.done,
        state=memory.path,
        remarks=(
            *_remarks(bases, options),
            *space.notes,
            *(f"left out: {one.form.name}: {one.why}" for one in refused),
        ),
        compare_across_models=_across(sources, options),
    )


def dry_run(
    sources: Sequence[Source],
    options: TuneOptions | None = None,
    out: str | None = None,
    *,
    measure_again: bool = False,
) -> TunePlan:
    """Say what `tune` would try and about how long it would take; nothing is written.

    Raises:
        UsageError, InputError, BackendError: as `tune`.
    """
    options = options or TuneOptions()
    space, memory = _prepared(sources, options, out, measure_again=measure_again)
    shop = Workshop(memory.path.parent, memory, options.calibration, options.samples)
    return plan(sources, options, space, shop)


def _prepared(
    sources: Sequence[Source], options: TuneOptions, out: str | None, *, measure_again: bool
) -> tuple[Space, Memory]:
    """Check everything that can be checked before the work."""
    require_packages("export", "torch", "onnx", "onnxscript", "onnxsim")
    _check(sources)
    if options.calibration is not None and not options.calibration.exists():
        raise InputError(options.calibration, "no such file or folder", "check the path")
    if options.data is not None:
        find_images(options.data)
    folder = Path(DEFAULT_FOLDER if out is None else out)
    if folder.suffix.lower() in FILE_SUFFIXES or folder.is_file():
        raise UsageError(out, "is no folder", "name a folder with -o")
    return Space.of(options), Memory(folder / NAME, measure_again=measure_again)


def _check(sources: Sequence[Source]) -> None:
    if not sources:
        raise UsageError("tune", "was given no model", "give a MODEL or --variant")
    names: set[str] = set()
    for source in sources:
        if source.path is not None:
            Artifact.open(source.path)
        if source.stem in names:
            raise UsageError(source.stem, "is the name of two models", "rename one: files are named after them")
        names.add(source.stem)


def _made(
    bases: Sequence[Base], forms: Sequence[Form], shop: Workshop
) -> tuple[list[tuple[Form, ModelFile]], list[Refused]]:
    made: list[tuple[Form, ModelFile]] = []
    refused: list[Refused] = []
    for base, form in itertools.product(bases, forms):
        found = shop.make(base, form)
        if isinstance(found, Refused):
            refused.append(found)
        else:
            made.append((form, found))
    return made, refused


def _reference(candidates: Sequence[Candidate]) -> Candidate:
    """The first float file on its first backend, with all threads, one of the smallest batch."""
    first = candidates[0]
    own = [one for one in candidates if (one.file, one.backend) == (first.file, first.backend)]
    return max(own, key=lambda one: (one.threads, -one.batch))


def _limits(options: TuneOptions) -> Limits:
    memory = options.max_memory_mib
    return Limits(options.max_drop, options.max_latency_ms, None if memory is None else int(memory * 2**20))


def _across(sources: Sequence[Source], options: TuneOptions) -> bool:
    return len(sources) == 1 or options.data is not None


def _remarks(bases: Sequence[Base], options: TuneOptions) -> Iterator[str]:
    yield from dict.fromkeys(note for base in bases for note in untrained_note(base.artifact.manifest))
    if len(bases) > 1 and options.data is None:
        yield _NOT_ACROSS
    if options.data is None and options.calibration is not None:
        yield _ON_CALIBRATION
    fixed = [base for base in bases if base.file.fixed_batch is not None]
    yield from (f"{base.file.path.name} takes batches of {base.file.fixed_batch} alone" for base in fixed)
