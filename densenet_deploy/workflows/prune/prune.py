"""Prune: fewer channels in the bottlenecks of a float graph, the weights that remain refitted, without a label.

Three quarters of the calibration images choose channels and fit weights (`pruning`); the others judge: the parity in
the report, and every trial of `min_sqnr` and `max_drop`, is measured on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Unpack

from densenet_deploy.artifacts import CHECKPOINT_SUFFIXES, StrPath
from densenet_deploy.errors import UsageError
from densenet_deploy.model import InputDescription, Model, untrained_note
from densenet_deploy.options import or_default
from densenet_deploy.packages import require_packages
from densenet_deploy.parity.compare import Parity
from densenet_deploy.reports import TimedReport, line, table, wrote
from densenet_deploy.runtime.runner import REFERENCE_BACKEND
from densenet_deploy.workflows.compare import ParityOfOutputs, measured_parity, require_sqnr
from densenet_deploy.workflows.compression import Finetuning, require_labelled_folder
from densenet_deploy.workflows.export import as_onnx
from densenet_deploy.workflows.float_model import knows_normalization, require_float32, sized_by
from densenet_deploy.workflows.load import LoadOptions, input_of, preprocessing_of
from densenet_deploy.workflows.outputs import Destination
from densenet_deploy.workflows.prune.choice import Choice, JudgedAccuracy, choose
from densenet_deploy.workflows.prune.finetuning import finetuned, unused_images
from densenet_deploy.workflows.prune.options import PER_LAYER, UNIFORM, PruneOptions
from densenet_deploy.workflows.prune.preparation import Preparation, prepare
from densenet_deploy.workflows.prune.result import pruned_model
from densenet_deploy.workflows.quantize.preparation import about_range
from densenet_deploy.workflows.samples import taken
from densenet_deploy.workflows.stages import Listener, Stages, in_notebook

if TYPE_CHECKING:
    from densenet_deploy.pruning.reconstruction import LayerFit

_CHECKPOINT: Final = ".safetensors"
_FEW_ROWS: Final = 2.0
_LISTED: Final = 3


@dataclass(frozen=True)
class LayerWidth:
    """The channels of a bottleneck, and the SQNR in dB of what its layer makes on the images that chose them.

    The SQNR is None where the layer makes exactly what it made before.
    """

    before: int
    after: int
    sqnr_db: float | None

    @classmethod
    def of(cls, fit: LayerFit) -> LayerWidth:
        error = fit.relative_error
        return cls(fit.before, fit.after, -10 * math.log10(error) if error > 0 else None)

    @property
    def cells(self) -> tuple[str, str]:
        """What the table of the report shows."""
        return f"{self.before} -> {self.after}", "exact" if self.sqnr_db is None else f"{self.sqnr_db:.1f} dB"


@dataclass(frozen=True, kw_only=True)
class PruneReport(TimedReport, ParityOfOutputs):
    """A smaller float graph, and how far its outputs are from the original's on images that did not choose it.

    Attributes:
        onnx, checkpoint: the file that was written; None of the other kind, and while the result is only in memory.
        macs_before, macs_after: multiply-accumulates of one image.
        parameters_before, parameters_after: numbers in the graph's convolutions, norms and linear layers.
        removed: share of the channels of all bottlenecks.
        widths: `uniform`, or `per-layer`.
        layers: each bottleneck, by the name of its first convolution.
        outputs: the parity of each output with that of the float original on the images held out.
        chosen_on, held_out: numbers of calibration images.
        trials: networks that were pruned and measured.
        accuracy: with `max_drop`.
        finetune: what fine-tuning did; None without it.
    """

    kind: ClassVar[str] = "prune"
    derived: ClassVar[tuple[str, ...]] = ("parity", "seconds")

    onnx: Path | None
    checkpoint: Path | None
    variant: str
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    removed: float
    widths: str
    layers: Mapping[str, LayerWidth]
    outputs: Mapping[str, Parity]
    chosen_on: int
    held_out: int
    trials: int
    input: InputDescription
    accuracy: JudgedAccuracy | None = None
    finetune: Finetuning | None = None

    def to_text(self) -> str:
        rows = [(name, *layer.cells) for name, layer in self.layers.items()]
        accuracy = [] if self.accuracy is None else [line("accuracy", self.accuracy)]
        return "\n".join(
            [
                *wrote(self.onnx or self.checkpoint),
                line("model", self.variant),
                line("MACs", _change(self.macs_before, self.macs_after)),
                line("parameters", _change(self.parameters_before, self.parameters_after)),
                line("channels", f"{self.removed:.1%} of the bottlenecks' channels removed, {self.widths}"),
                line("images", f"{self.chosen_on} chose the channels, {self.held_out} others judge the result"),
                line("input", self.input),
                *self.parity_lines(),
                *accuracy,
                *([line("fine-tuned", self.finetune)] if self.finetune is not None else []),
                *self.stage_lines(),
                *(f"  {row}" for row in table(("bottleneck", "channels", "its layer"), rows)),
            ]
        )


def _change(before: int, after: int) -> str:
    return f"{before:,} -> {after:,} ({after / before:.1%})"


def prune(
    source: Any,
    calibration: Any,
    options: PruneOptions,
    *,
    out: StrPath | None = None,
    force: bool = False,
    progress: Listener = in_notebook,
    **stated: Unpack[LoadOptions],
) -> Model:
    """Return a float32 model with fewer bottleneck channels, refitted on images, which need no labels.

    >>> prune("densenet_digits.safetensors", "calibration/samples", PruneOptions(ratio=0.25)).report.macs_after
    55296640

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
    options = or_default(options, PruneOptions)
    if options.finetune:
        require_packages("export", "torch")
    stages = Stages(progress)
    if options.max_drop is not None:
        require_labelled_folder(calibration)
    given = sized_by(as_onnx(source, stages, **stated), calibration)
    require_float32(given)
    name = f"{given.name}.pruned"
    destination = _destination(given, name, out, force=force)
    ready = prepare(given, calibration, options, stages)
    choice = choose(ready, options, stages)
    if options.finetune:
        choice = finetuned(ready, choice, options, stages)
    result = pruned_model(given, name, ready, choice.pruned, stages)
    with stages("parity"):
        every, unused = ready.images.judging, unused_images(ready, choice)
        outputs = measured_parity(given, result, taken(unused, preprocessing_of(given)))
        judged = outputs
        if len(unused) < len(every):
            judged = measured_parity(given, result, taken(every, preprocessing_of(given)))
    require_sqnr(judged, options.min_sqnr, destination.path or name, "ask for a little less")
    result = _written(result, destination)
    notes = (*given.notes, *untrained_note(given.manifest), *choice.notes, *_notes(ready, choice, result, given))
    notes = tuple(dict.fromkeys(notes))
    report = _report(ready, choice, options, result, destination.path, outputs, stages, notes)
    return result.replaced(report=report, notes=notes)


def _destination(given: Model, name: str, out: StrPath | None, *, force: bool) -> Destination:
    suffix = ".onnx" if out is None or Path(out).is_dir() else Path(out).suffix.lower()
    if suffix in CHECKPOINT_SUFFIXES and suffix != _CHECKPOINT:
        raise UsageError(out, f"is not a file that is written: {suffix}", f"name an .onnx or a {_CHECKPOINT} file")
    suffix = _CHECKPOINT if suffix == _CHECKPOINT else ".onnx"
    if suffix == _CHECKPOINT and (given.weights is None or preprocessing_of(given).takes_pixels):
        why = f"is a checkpoint, which the graph of {given.name} cannot become"
        raise UsageError(out, why, "give the checkpoint that it was exported from, or name an .onnx file")
    if suffix == _CHECKPOINT:
        require_packages("export", "torch")
    return Destination.of(out, f"{name}{suffix}", None, force=force, size_bytes=len(given.to_bytes()))


def _written(result: Model, destination: Destination) -> Model:
    if destination.path is not None and destination.path.suffix.lower() == _CHECKPOINT:
        result.save(destination.path, force=destination.force)
        return result
    return destination.write(result)


def _notes(ready: Preparation, choice: Choice, result: Model, given: Model) -> list[str]:
    """Say what the figures do not."""
    notes = []
    judging = len(unused_images(ready, choice))
    notes.append(f"parity: on {judging} calibration images held out; it says little about images unlike these")
    if ready.images.left_out:
        used = ready.reconstruction.count
        notes.append(f"{used} images chose the channels, {ready.images.left_out} more do not fit into memory")
    few = [fit for fit in choice.pruned.layers.values() if fit.rows_per_column < _FEW_ROWS]
    if few:
        worst_fit = min(fit.rows_per_column for fit in few)
        notes.append(
            f"{len(few)} layers were fitted on fewer than {_FEW_ROWS:g} pixels per weight (at least {worst_fit:.1f}): "
            "give more images"
        )
    if ready.found.refused:
        listed = "; ".join(ready.found.refused[:_LISTED])
        more = f"; and {len(ready.found.refused) - _LISTED} more" if len(ready.found.refused) > _LISTED else ""
        notes.append(f"not pruned: {listed}{more}")
    if given.spec is not None and result.spec is None:
        notes.append(f"the layers of the graph are not those of {given.name}'s architecture, which is no longer stated")
    beyond = about_range(ready.data, is_stated=knows_normalization(ready.model.manifest))
    return [*notes, beyond] if beyond is not None else notes


def _report(
    ready: Preparation,
    choice: Choice,
    options: PruneOptions,
    result: Model,
    path: Path | None,
    outputs: Mapping[str, Parity],
    stages: Stages,
    notes: tuple[str, ...],
) -> PruneReport:
    from densenet_deploy.analysis.onnx_cost import onnx_cost

    before, after = onnx_cost(ready.proto), onnx_cost(choice.pruned.proto)
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
        layers={fit.name: LayerWidth.of(fit) for fit in fits},
        outputs=outputs,
        chosen_on=ready.reconstruction.count,
        held_out=len(unused_images(ready, choice)),
        trials=choice.trials,
        input=input_of(result),
        accuracy=choice.accuracy,
        finetune=choice.finetuning,
        stages=stages.seconds,
        notes=notes,
    )
