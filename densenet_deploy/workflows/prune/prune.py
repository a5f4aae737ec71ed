"""Prune: fewer channels in the bottlenecks of a float graph, the weights that remain refitted, without a label.

Three quarters of the calibration images choose channels and fit weights (`pruning`); the others judge: the parity in the
report, and every trial of `min_sqnr` and `max_drop`, is measured on them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

from densenet_deploy.artifacts import StrPath
from densenet_deploy.errors import GateError, ModelFileError, UsageError
from densenet_deploy.manifest import Manifest
from densenet_deploy.model import Model, untrained_note
from densenet_deploy.packages import require_packages
from densenet_deploy.parity.compare import Parity, worst
from densenet_deploy.runtime.runner import REFERENCE_BACKEND
from densenet_deploy.workflows.accuracy_limit import accuracy_of, judgement, require_labelled_folder
from densenet_deploy.workflows.compare import measured_parity
from densenet_deploy.workflows.evaluate import evaluate
from densenet_deploy.workflows.evaluation.tasks import judged_by
from densenet_deploy.workflows.export import as_onnx
from densenet_deploy.workflows.float_model import (
    calibration_data,
    exact_graph,
    knows_normalization,
    normalized_form,
    pixel_form,
    require_float32,
    sized_by,
)
from densenet_deploy.workflows.load import LoadOptions, input_of, preprocessing_of
from densenet_deploy.workflows.outputs import Destination
from densenet_deploy.workflows.prune.checkpoint import network_of, pruned_manifest, pruned_spec, pruned_weights
from densenet_deploy.workflows.prune.images import SplitImages, judging_folder
from densenet_deploy.workflows.prune.limit import MOST_TRIALS, most_steps
from densenet_deploy.workflows.prune.options import PER_LAYER, UNIFORM, PruneOptions
from densenet_deploy.workflows.prune.report import JudgedAccuracy, LayerWidth, PruneReport
from densenet_deploy.workflows.quantize.preparation import about_range
from densenet_deploy.workflows.samples import taken
from densenet_deploy.workflows.simplify import finished
from densenet_deploy.workflows.stages import Listener, Stages, ignore

if TYPE_CHECKING:
    import onnx

    from densenet_deploy.graph.bottlenecks import Bottlenecks
    from densenet_deploy.pruning.reconstruction import PrunedGraph, Reconstruction
    from densenet_deploy.pruning.widths import Schedule
    from densenet_deploy.quantization.calibration_data import CalibrationData

_CHECKPOINT: Final = ".safetensors"
_FEW_ROWS: Final = 2.0
_GAIN_IMAGES: Final = 8
_LISTED: Final = 3


@dataclass(frozen=True, eq=False)
class _Work:
    """What pruning starts from.

    Attributes:
        model: the float graph that takes normalized images.
        proto: after the exact passes, for images of one size.
        found: its bottlenecks.
        data: the calibration data, and `images` what was read of them.
    """

    model: Model
    proto: onnx.ModelProto
    found: Bottlenecks
    data: CalibrationData
    images: SplitImages
    reconstruction: Reconstruction


@dataclass(frozen=True, eq=False)
class _Choice:
    """The pruned graph, and how it was found."""

    pruned: PrunedGraph
    trials: int = 1
    accuracy: JudgedAccuracy | None = None
    notes: tuple[str, ...] = ()


def prune(
    source: Any,
    calibration: Any,
    options: PruneOptions,
    *,
    out: StrPath | None = None,
    force: bool = False,
    progress: Listener = ignore,
    **stated: Unpack[LoadOptions],
) -> Model:
    """Return a float32 model with fewer bottleneck channels, refitted on images, which need no labels.

    >>> prune("chest.pth", "calibration/", PruneOptions(ratio=0.25)).report.macs_after          # doctest: +SKIP
    2255470592

    Of a checkpoint or module the result holds a module too, and can be saved as either: `save("small.onnx")` or
    `save("small.safetensors")`, from which `train` can go on.

    Args:
        source: whatever `load` takes that holds or exports to a float32 ONNX graph with bottleneck layers.
        calibration: a folder of images, an `.npy` or `.npz` file, an array, or any iterable of images or batches.
        options: see `PruneOptions`.
        out: a file `.onnx`, or of a checkpoint `.safetensors`, or a folder for `NAME.pruned.onnx`; None writes nothing.
        force: replace whatever stands at `out`.
        progress: is called when a stage begins, and after each of its steps.
        **stated: facts about the source; see `load`.

    Raises:
        UsageError: if an option is invalid, or a layer would be left without channels.
        ModelFileError: if the source is not a float32 image model, or has no bottleneck that can be pruned.
        DataError: if the calibration data are too few, all alike, or not normalized.
        OutputExistsError: if another artifact stands where the result should go.
        GateError: if no channel can be removed within the limit, or the result gives NaN or Inf; nothing is written.
        MissingPackageError: if a package is missing.
    """
    require_packages("export", "onnx", "onnxscript")
    require_packages(REFERENCE_BACKEND, REFERENCE_BACKEND)
    stages = Stages(progress)
    if options.max_drop is not None:
        require_labelled_folder(calibration)
    given = sized_by(as_onnx(source, stages, **stated), calibration)
    require_float32(given)
    name = f"{given.name}.pruned"
    destination = _destination(given, name, out, force=force)
    work = _prepared(given, calibration, options, stages)
    choice = _chosen(work, options, stages)
    result = _result(given, name, work, choice.pruned, stages)
    with stages("parity"):
        judging = taken(work.images.judging, preprocessing_of(given))
        outputs = measured_parity(given, result, judging)
    _require_demands(outputs, options, destination.path or name)
    result = _written(result, destination)
    notes = (*given.notes, *untrained_note(given.manifest), *choice.notes, *_notes(work, choice, result, given))
    notes = tuple(dict.fromkeys(notes))
    report = _report(work, choice, options, result, destination.path, outputs, stages, notes)
    return result.replaced(report=report, notes=notes)


def _destination(given: Model, name: str, out: StrPath | None, *, force: bool) -> Destination:
    suffix = _CHECKPOINT if out is not None and Path(out).suffix.lower() == _CHECKPOINT else ".onnx"
    if suffix == _CHECKPOINT and given.weights is None:
        why = f"is a checkpoint, which the graph of {given.name} cannot become"
        raise UsageError(out, why, "give the checkpoint that it was exported from, or name an .onnx file")
    if suffix == _CHECKPOINT:
        require_packages("export", "torch")
    return Destination.of(out, f"{name}{suffix}", None, force=force, size_bytes=len(given.to_bytes()))


def _prepared(given: Model, calibration: Any, options: PruneOptions, stages: Stages) -> _Work:
    from densenet_deploy.graph.bottlenecks import find_bottlenecks
    from densenet_deploy.pruning.reconstruction import Reconstruction, images_that_fit

    model = normalized_form(given)
    with stages("passes"):
        import onnx_ir

        graph = exact_graph(_of_one_size(model))
        found = find_bottlenecks(graph.graph)
        if not found.found:
            why = f"has no bottleneck that can be pruned: {found.refused[0] if found.refused else 'no dense layers'}"
            raise ModelFileError(given.path or given.name, why, "prune a DenseNet with 1x1 and 3x3 convolutions")
        proto = onnx_ir.to_proto(graph)
    if options.ratio is not None:
        _uniform(found, options.ratio)  # which refuses a ratio before any image is read
    with stages("read images"):
        data = calibration_data(model, calibration, options.samples)
        images = SplitImages.of(data, images_that_fit(proto, found.found))
    with stages("original"):
        reconstruction = Reconstruction(proto, found.found, images.choosing, batch=_fixed_batch(model))
    return _Work(model, proto, found, data, images, reconstruction)


def _of_one_size(model: Model) -> Model:
    """Return `model` for images of the size that its facts say, if its graph takes any."""
    from densenet_deploy.graph.onnx_file import image_shape_of, with_image_size

    if None not in image_shape_of(model.onnx, model.name):
        return model
    _, height, width = preprocessing_of(model).shape
    return Model.from_onnx(model.name, with_image_size(model.onnx, height, width), model.manifest)


def _fixed_batch(model: Model) -> int | None:
    stored = {tensor.name for tensor in model.onnx.graph.initializer}
    image = next(value for value in model.onnx.graph.input if value.name not in stored)
    return image.type.tensor_type.shape.dim[0].dim_value or None


def _uniform(found: Bottlenecks, ratio: float) -> dict[str, int]:
    from densenet_deploy.pruning.widths import uniform_widths

    return uniform_widths({bottleneck.name: bottleneck.width for bottleneck in found.found}, ratio)


# -- how wide the layers stay


def _chosen(work: _Work, options: PruneOptions, stages: Stages) -> _Choice:
    layers, images = len(work.found.found), work.reconstruction.count
    if not options.is_per_layer:
        assert options.ratio is not None
        with stages("prune", f"{layers} layers on {images} images") as step:
            return _Choice(work.reconstruction.pruned(_uniform(work.found, options.ratio), step))
    with stages("choose widths", f"{layers} layers on {images} images") as step:
        plan = _plan(work, step)
    if options.ratio is not None:
        with stages("prune", f"{layers} layers on {images} images") as step:
            return _Choice(work.reconstruction.pruned(_of_same_cost(work, plan, options.ratio), step))
    with stages("prune", f"up to {MOST_TRIALS} networks of {layers} layers on {images} images") as step:
        return _within_limit(work, plan, options, step)


def _plan(work: _Work, step: Callable[[int, int | None], None]) -> Schedule:
    """Order the steps by what each costs at the outputs and saves in multiply-accumulates."""
    import numpy as np

    from densenet_deploy.pruning.elimination import eliminate
    from densenet_deploy.pruning.noise import noise_gains
    from densenet_deploy.pruning.widths import Curve, least_width, schedule

    made = {bottleneck.name: str(bottleneck.reading.outputs[0].name) for bottleneck in work.found.found}
    few = _fixed_batch(work.model) or _GAIN_IMAGES
    gains = noise_gains(work.proto, list(made.values()), np.concatenate(work.images.choosing[:few]))
    curves, per_channel = [], _macs_per_channel(work)
    widths = {bottleneck.name: bottleneck.width for bottleneck in work.found.found}
    for number, (name, problem) in enumerate(work.reconstruction.problems(), start=1):
        found = eliminate(problem, least_width(widths[name]))
        unit = gains[made[name]] / problem.signal if problem.signal else 0.0
        noise = tuple(max(objective, 0.0) * unit for objective in found.objectives)
        curves.append(Curve(name, widths[name], per_channel[name], noise))
        step(number, len(widths))
    return schedule(curves)


def _macs_per_channel(work: _Work) -> dict[str, int]:
    from densenet_deploy.analysis.onnx_cost import onnx_cost

    macs = {layer.name: layer.macs for layer in onnx_cost(work.proto).layers}
    return {
        bottleneck.name: (macs[bottleneck.name] + macs[str(bottleneck.reading.name)]) // bottleneck.width
        for bottleneck in work.found.found
    }


def _of_same_cost(work: _Work, plan: Schedule, ratio: float) -> dict[str, int]:
    """Return the widths after the fewest steps that save as much as a uniform ratio does."""
    per_channel = _macs_per_channel(work)

    def saved(widths: Mapping[str, int]) -> int:
        return sum((plan.widths[name] - width) * per_channel[name] for name, width in widths.items())

    wanted = saved(_uniform(work.found, ratio))
    counts = range(len(plan.steps) + 1)
    return next((widths for count in counts if saved(widths := plan.at(count)) >= wanted), plan.at(len(plan.steps)))


def _within_limit(
    work: _Work, plan: Schedule, options: PruneOptions, step: Callable[[int, int | None], None]
) -> _Choice:
    """Return the smallest network found within `max_drop` or `min_sqnr`."""
    found: dict[int, PrunedGraph] = {}
    values: dict[int, float] = {}

    def measured(count: int, value_of: Callable[[Model], float]) -> float:
        found[count] = work.reconstruction.pruned(plan.at(count))
        values[count] = value_of(Model.from_onnx("trial", found[count].proto, work.model.manifest))
        step(len(values), None)
        return values[count]

    if options.min_sqnr is not None:
        least, notes, images = options.min_sqnr, (), len(work.images.judging)
        count = most_steps(plan, lambda n: measured(n, lambda trial: _sqnr_db(work, trial)), least, predicts=True)
        _require_step(count, f"SQNR {values.get(1, 0.0):.1f} dB", f"--min-sqnr {least:g}", work)
        return _Choice(found[count], len(values), notes=notes)
    assert options.max_drop is not None
    _require_accuracy(work)
    folder = Path(str(work.data.origin))
    with judging_folder(folder, work.data, work.reconstruction.count) as judging:
        original = evaluate(work.model, judging)
        least, images = accuracy_of(original) - options.max_drop / 100, original.count
        count = most_steps(
            plan, lambda n: measured(n, lambda trial: accuracy_of(evaluate(trial, judging))), least, predicts=False
        )
    _require_step(count, f"accuracy {values.get(1, 0.0):.2%}", f"--max-drop {options.max_drop:g}", work)
    accuracy = JudgedAccuracy(accuracy_of(original), values[count], images)
    return _Choice(found[count], len(values), accuracy, judgement(original))


def _sqnr_db(work: _Work, trial: Model) -> float:
    parity = worst(measured_parity(work.model, trial, work.images.judging))[1]
    return -float("inf") if parity.nonfinite else parity.sqnr_db


def _require_accuracy(work: _Work) -> None:
    with work.model.runner(REFERENCE_BACKEND, "cpu") as runner:
        judged_by(runner, work.model.name, "--max-drop")


def _require_step(count: int, value: str, limit: str, work: _Work) -> None:
    if count == 0:
        why = f"keeps no limit of {limit} when the cheapest channels are removed ({value})"
        raise GateError(work.model.name, why, "keep the model as it is, or ask for less")


# -- the result


def _result(given: Model, name: str, work: _Work, pruned: PrunedGraph, stages: Stages) -> Model:
    """Return the graph with its facts, and the module and weights where the source had some."""
    spec = pruned_spec(given.spec, pruned)
    if spec is not None and given.weights is not None:
        assert given.spec is not None
        weights = pruned_weights(given.weights, given.spec, pruned)
        manifest = pruned_manifest(given.manifest, spec, weights)
        assert manifest is not None
        return as_onnx(network_of(name, manifest, spec, weights), stages)
    manifest = pruned_manifest(given.manifest, spec, pruned.weights)
    return _graph_result(given, name, work, pruned, manifest)


def _graph_result(given: Model, name: str, work: _Work, pruned: PrunedGraph, manifest: Manifest | None) -> Model:
    import onnx_ir

    from densenet_deploy.pruning.reconstruction import with_weights

    proto = pruned.proto
    if _of_one_size(work.model) is not work.model:  # the graph takes images of any size, and so does the result
        proto = with_weights(onnx_ir.to_proto(exact_graph(work.model)), pruned.weights)
    takes_pixels = preprocessing_of(given).takes_pixels
    if takes_pixels and manifest is not None:
        manifest = dataclasses.replace(
            manifest, preprocessing=dataclasses.replace(manifest.preprocessing, dtype="float32")
        )
    result = Model.from_onnx(name, finished(proto, name), manifest)
    return pixel_form(result) if takes_pixels else result


def _written(result: Model, destination: Destination) -> Model:
    if destination.path is not None and destination.path.suffix.lower() == _CHECKPOINT:
        result.save(destination.path, force=destination.force)
        return result
    return destination.write(result)


def _require_demands(outputs: Mapping[str, Parity], options: PruneOptions, subject: object) -> None:
    for name, parity in outputs.items():
        if parity.nonfinite:
            why = f"the output {name} holds {parity.nonfinite} NaN or infinite values"
            raise GateError(subject, why, "report this model")
    lowest = worst(outputs)[1].sqnr_db
    if options.min_sqnr is not None and lowest < options.min_sqnr:
        why = f"reaches {lowest:.2f} dB in the end, below the {options.min_sqnr:g} dB asked for"
        raise GateError(subject, why, "ask for a little less")


def _notes(work: _Work, choice: _Choice, result: Model, given: Model) -> list[str]:
    """Say what the figures do not."""
    notes = []
    judging = len(work.images.judging)
    notes.append(f"parity: on {judging} calibration images held out; it says little about images unlike these")
    if work.images.left_out:
        used = work.reconstruction.count
        notes.append(f"{used} images chose the channels, {work.images.left_out} more do not fit into memory")
    few = [fit for fit in choice.pruned.layers.values() if fit.rows_per_column < _FEW_ROWS]
    if few:
        worst_fit = min(fit.rows_per_column for fit in few)
        notes.append(
            f"{len(few)} layers were fitted on fewer than {_FEW_ROWS:g} pixels per weight ({worst_fit:.1f} the fewest): "
            "give more images"
        )
    if work.found.refused:
        listed = "; ".join(work.found.refused[:_LISTED])
        more = f"; and {len(work.found.refused) - _LISTED} more" if len(work.found.refused) > _LISTED else ""
        notes.append(f"not pruned: {listed}{more}")
    if given.spec is not None and result.spec is None:
        notes.append(f"the layers of the graph are not those of {given.name}'s architecture, which is no longer stated")
    beyond = about_range(work.data, is_stated=knows_normalization(work.model.manifest))
    return [*notes, beyond] if beyond is not None else notes


def _report(
    work: _Work,
    choice: _Choice,
    options: PruneOptions,
    result: Model,
    path: Path | None,
    outputs: Mapping[str, Parity],
    stages: Stages,
    notes: tuple[str, ...],
) -> PruneReport:
    from densenet_deploy.analysis.onnx_cost import onnx_cost

    before, after = onnx_cost(work.proto), onnx_cost(choice.pruned.proto)
    fits = choice.pruned.layers.values()
    return PruneReport(
        onnx=result.path,
        checkpoint=path if result.path is None else None,
        variant=result.manifest.variant if result.manifest is not None else "third-party",
        macs_before=before.macs,
        macs_after=after.macs,
        parameters_before=before.parameters,
        parameters_after=after.parameters,
        removed=1 - sum(fit.after for fit in fits) / sum(fit.before for fit in fits),
        widths=PER_LAYER if options.is_per_layer else UNIFORM,
        layers={fit.name: LayerWidth.of(fit.before, fit.after, fit.relative_error) for fit in fits},
        outputs=outputs,
        chosen_on=work.reconstruction.count,
        held_out=len(work.images.judging),
        trials=choice.trials,
        input=input_of(result),
        accuracy=choice.accuracy,
        stages=stages.seconds,
        notes=notes,
    )
