"""Tune: write a model in every precision, time the files here, compare their answers, and name the one to ship.

Precision × recipe × backend × threads × batch, of one or several models. `models.py` makes the files, `measure.py`
measures, `search.py` decides what has to be timed, and `cache.py` keeps the results.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

from densenet_deploy.artifacts import FILE_SUFFIXES, StrPath
from densenet_deploy.bench.machine import Machine
from densenet_deploy.errors import InputError, UsageError
from densenet_deploy.model import untrained_note
from densenet_deploy.options import or_default
from densenet_deploy.packages import require_packages
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.workflows.benchmark import PACKAGES
from densenet_deploy.workflows.evaluation.tasks import images_of, judged_by
from densenet_deploy.workflows.load import LoadOptions, several
from densenet_deploy.workflows.stages import Listener, in_notebook
from densenet_deploy.workflows.tune.cache import FILE_NAME, ResultCache
from densenet_deploy.workflows.tune.candidates import GIVEN, ModelFile, PrecisionOption, SearchSpace, Trial, TuneOptions
from densenet_deploy.workflows.tune.measure import LocalMeasurer
from densenet_deploy.workflows.tune.models import BuildFailure, FloatModel, ModelBuilder, Source
from densenet_deploy.workflows.tune.report import DryRunReport, PlannedFile, PlannedWork, TuneReport, report_of
from densenet_deploy.workflows.tune.search import Limits, Search

if TYPE_CHECKING:
    from densenet_deploy.quantization.cache import CalibrationCache

DEFAULT_FOLDER: Final = "artifacts/tune/"
_MIB: Final = 2**20
_NOT_ACROSS: Final = "without --data the answers of different models cannot be ranked: the fastest of any is chosen"
_LEARNT_FROM: Final = "pruned and fine-tuned files learnt from those images, so their answers look better than they are"
_ON_CALIBRATION: Final = "answers were compared on the calibration images; give --data to use others"


def tune(
    sources: Any = (),
    options: TuneOptions | None = None,
    *,
    out: StrPath | None = None,
    force: bool = False,
    measure_again: bool = False,
    cache: CalibrationCache | None = None,
    progress: Listener | None = None,
    **stated: Unpack[LoadOptions],
) -> TuneReport:
    """Search what to ship of `sources`, or continue where an earlier search of them was interrupted.

    >>> options = TuneOptions(precisions=("fp32",), backends=("onnxruntime",), threads=(1,))
    >>> tune(["digits.onnx"], options, out="tune").chosen.precision
    'fp32'

    Args:
        sources: one or several of ONNX files, checkpoints, or whatever else `load` takes, with different names. Of
            weights in FP16 or BF16 the float32 form is tuned, which a note says.
        options: the space, the data and the limits.
        out: the folder for files and results; None means `artifacts/tune/`.
        force: replace other files there.
        measure_again: forget the timings and accuracies of earlier runs.
        cache: of calibration ranges.
        progress: called with every step.
        **stated: facts about the sources; see `load`.

    Raises:
        UsageError: if an option is invalid.
        InputError: if a model or the data cannot be used, or another file exists where one should go.
        BackendError: if a backend is not available, or the reference cannot run.
    """
    start = time.perf_counter()
    options, progress = or_default(options, TuneOptions), progress or in_notebook
    given, space, results = _prepared(sources, options, out, measure_again=measure_again, stated=stated)
    builder = _builder(options, results, cache=cache, force=force, progress=progress)
    models = [builder.float_model(source) for source in given]
    _require_accuracy(models, options, space.precisions[0].backends[0])
    files, failures = _files(models, space.precisions, builder)
    trials = space.trials(files)
    progress("measuring the load of the machine")
    machine = Machine.this(*PACKAGES)
    measurer = LocalMeasurer(
        reference=_reference(trials),
        models={model.file.base: model for model in models},
        results=results,
        device=options.device,
        calibration=builder.calibration,
        samples=options.samples,
        data=None if options.data is None else Path(options.data),
    )
    memory = options.max_memory_mib
    limits = Limits(options.max_drop, options.max_latency_ms, None if memory is None else int(memory * _MIB))
    search = Search(measurer, limits, options.goal, progress)
    search.run(trials)
    return report_of(
        search,
        trials,
        machine=machine,
        seconds=time.perf_counter() - start,
        results=results,
        notes=(*_notes(given, models, options), *space.notes, *map(str, failures), *machine.notes),
        compare_models=len(models) == 1 or options.data is not None,
    )


def dry_run(
    sources: Sequence[Any] = (),
    options: TuneOptions | None = None,
    *,
    out: StrPath | None = None,
    measure_again: bool = False,
    **stated: Unpack[LoadOptions],
) -> DryRunReport:
    """List what `tune` would try; nothing is written or timed. Errors as `tune`."""
    options = or_default(options, TuneOptions)
    given, space, results = _prepared(sources, options, out, measure_again=measure_again, stated=stated)
    builder = _builder(options, results)
    models = [(source, builder.known_float_model(source)) for source in given]
    files = [_planned_file(source, model, option, builder) for source, model in models for option in space.precisions]
    pairs = sum(len(option.backends) for option in space.precisions)
    batches = sum(len(space.batches_of(None if model is None else model.file)) for _, model in models)
    plan = PlannedWork(
        files=tuple(files),
        candidates=pairs * len(space.threads) * batches,
        comparisons=pairs * len(models),
        backends=tuple(dict.fromkeys(name for option in space.precisions for name in option.backends)),
        threads=space.threads,
        batches=space.batches,
    )
    notes = dict.fromkeys(note for source in given for note in source.notes)
    return DryRunReport(plan=plan, state=results.path, notes=(*notes, *space.notes))


def _require_accuracy(models: Sequence[FloatModel], options: TuneOptions, backend: str) -> None:
    """Check that the accuracy that was asked for is defined for these models, and the same for all."""
    if options.data is None and options.max_drop is None:
        return
    option = "--data" if options.max_drop is None else "--max-drop"
    figures = {}
    for model in models:
        with open_runner(model.file.path, backend) as runner:
            figures[model.file.path.name] = judged_by(
                runner, model.file.path.name, option, takes_errors=options.max_drop is None
            )
    if len(set(figures.values())) > 1:
        why = f"the models are of different tasks: {', '.join(f'{name} by {key}' for name, key in figures.items())}"
        raise UsageError(option, why, "tune them one by one")
    if options.data is None and "auroc" in figures.values():
        raise UsageError("--max-drop", "of a multilabel model needs labels", "give --data: a CSV, or class folders")


def _planned_file(
    source: Source, model: FloatModel | None, option: PrecisionOption, builder: ModelBuilder
) -> PlannedFile:
    if model is None:
        return PlannedFile(builder.path_of(source.stem, option), option.name, up_to_date=False)
    path = model.file.path if option.name == GIVEN else builder.path_of(model.file.path.stem, option)
    return PlannedFile(path, option.name, builder.is_built(model, option))


def _prepared(
    sources: Any, options: TuneOptions, out: StrPath | None, *, measure_again: bool, stated: LoadOptions
) -> tuple[list[Source], SearchSpace, ResultCache]:
    """Check everything that can be checked before the work."""
    require_packages("export", "torch", "onnx", "onnxscript", "onnxsim")
    given = [*(Source.of(source, **stated) for source in several(sources)), *map(Source.of, options.variants)]
    if not given:
        raise UsageError("tune", "no model was given", "give a MODEL or --variant")
    stems = [source.stem for source in given]
    repeated = next((stem for stem in stems if stems.count(stem) > 1), None)
    if repeated is not None:
        raise UsageError(repeated, "is the name of two models", "rename one: files are named after them")
    if options.calibration is not None and not Path(options.calibration).exists():
        raise InputError(options.calibration, "no such file or folder", "check the path")
    if options.data is not None:
        images_of(Path(options.data))
    folder = Path(DEFAULT_FOLDER if out is None else out)
    if folder.suffix.lower() in FILE_SUFFIXES or folder.is_file():
        raise UsageError(out, "is not a folder", "name a folder with -o")
    return given, SearchSpace.of(options), ResultCache(folder / FILE_NAME, measure_again=measure_again)


def _builder(options: TuneOptions, results: ResultCache, **more: Any) -> ModelBuilder:
    calibration = None if options.calibration is None else Path(options.calibration)
    return ModelBuilder(results.path.parent, results, calibration, options.samples, **more)


def _files(
    models: Sequence[FloatModel], options: Sequence[PrecisionOption], builder: ModelBuilder
) -> tuple[list[tuple[PrecisionOption, ModelFile]], list[BuildFailure]]:
    files: list[tuple[PrecisionOption, ModelFile]] = []
    failures: list[BuildFailure] = []
    for model, option in itertools.product(models, options):
        found = builder.build(model, option)
        if isinstance(found, BuildFailure):
            failures.append(found)
        else:
            files.append((option, found))
    return files, failures


def _reference(trials: Sequence[Trial]) -> Trial:
    """The first FP32 file on its first backend, with all threads and the smallest batch."""
    first = trials[0]
    own = [one for one in trials if (one.file, one.backend) == (first.file, first.backend)]
    return max(own, key=lambda one: (one.threads, -one.batch))


def _notes(sources: Sequence[Source], models: Sequence[FloatModel], options: TuneOptions) -> Iterator[str]:
    yield from dict.fromkeys(note for source in sources for note in source.notes)
    yield from dict.fromkeys(note for model in models for note in untrained_note(model.manifest))
    if len(models) > 1 and options.data is None:
        yield _NOT_ACROSS
    if options.data is None and options.calibration is not None:
        yield _ON_CALIBRATION
        if options.ratios or options.finetune:
            yield _LEARNT_FROM
    for model in models:
        if model.file.fixed_batch is not None:
            yield f"{model.file.path.name} accepts only batches of {model.file.fixed_batch}"
