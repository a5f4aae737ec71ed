"""Quantize: calibrate on images → equalize → write INT8 by a recipe → measure what it costs → artifact.

The float graph first goes through the exact passes. Calibration then reads the per-channel ranges of what convolutions
read and of the segments of every dense block; equalization uses them to make one scale per tensor serve all channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Unpack

from densenet_deploy.artifacts import StrPath
from densenet_deploy.errors import GateError, UnknownNameError, counted
from densenet_deploy.model import InputDescription, Model, untrained_note
from densenet_deploy.options import or_default
from densenet_deploy.packages import require_packages
from densenet_deploy.parity.compare import Parity, compare_outputs
from densenet_deploy.reports import TimedReport, line, wrote
from densenet_deploy.workflows.compare import ParityOfOutputs, measured_parity, require_sqnr
from densenet_deploy.workflows.compression import Finetuning
from densenet_deploy.workflows.export import as_onnx
from densenet_deploy.workflows.float_model import float32_form, normalized_form, pixel_form, sized_by
from densenet_deploy.workflows.load import LoadOptions, input_of, preprocessing_of
from densenet_deploy.workflows.outputs import Destination
from densenet_deploy.workflows.quantize.finetuning import finetuned, require_trainable
from densenet_deploy.workflows.quantize.layer_choice import (
    Speed,
    Trials,
    demanded,
    layers_behind_baseline,
    layers_for_accuracy,
    layers_for_speed,
    stage_of,
)
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.preparation import Int8Preparation, chosen_recipe, int8_manifest, prepare_int8
from densenet_deploy.workflows.samples import taken
from densenet_deploy.workflows.stages import Listener, Stages, in_notebook

if TYPE_CHECKING:
    from densenet_deploy.quantization.cache import CalibrationCache
    from densenet_deploy.quantization.int8_writer import Int8File

PARITY_SAMPLES: Final = 64
_FLOAT_INPUT: Final = (
    "speed was measured on forms of both that take normalized float32 images, from which pixels are made"
)


@dataclass(frozen=True, kw_only=True)
class QuantizeReport(TimedReport, ParityOfOutputs):
    """An INT8 graph, how far its outputs are from the float graph's on calibration images, and what stayed float.

    Attributes:
        outputs: the parity of each output.
        layers_int8, layers_float: numbers of convolutions.
        float_layers: names of the convolutions that stayed float.
        float_unasked: those of them that were asked for in INT8: what the recipe keeps.
        weight_bits: of the quantized weights.
        calibrated_on: number of images.
        finetune: what fine-tuning did; None where it was not asked for.
        speed: against the float graph on this machine; None where it was not measured.
        explanation: one sentence per layer, where asked for.
    """

    kind: ClassVar[str] = "quantize"
    derived: ClassVar[tuple[str, ...]] = ("parity", "seconds")

    onnx: Path | None
    recipe: str
    outputs: Mapping[str, Parity]
    layers_int8: int
    layers_float: int
    float_layers: tuple[str, ...]
    float_unasked: tuple[str, ...]
    weight_bits: int
    calibrated_on: int
    input: InputDescription | None = None
    finetune: Finetuning | None = None
    speed: Speed | None = None
    explanation: tuple[str, ...] = ()

    def to_text(self) -> str:
        kept = f": {', '.join(self.float_layers)}" if self.float_layers else ""
        images, in_int8 = counted(self.calibrated_on, "image"), counted(self.layers_int8, "convolution")
        return "\n".join(
            [
                *wrote(self.onnx),
                line("recipe", f"{self.recipe}, {self.weight_bits}-bit weights, {images}"),
                line("layers", f"{in_int8} in INT8, {self.layers_float} in float{kept}"),
                line("checked", self._unasked()),
                *([line("input", self.input)] if self.input is not None else []),
                *self.parity_lines(),
                *([line("fine-tuned", self.finetune)] if self.finetune is not None else []),
                line("speed", self.speed or "not measured"),
                *self.stage_lines(),
                *(line("layer", sentence) for sentence in self.explanation),
            ]
        )

    def _unasked(self) -> str:
        count = len(self.float_unasked)
        if not count:
            return "every layer that was to be INT8 is INT8"
        layers = "1 layer was" if count == 1 else f"{count} layers were"
        return f"{layers} to be INT8, and the recipe {self.recipe} keeps float: {', '.join(self.float_unasked)}"


def quantize(
    source: Any,
    calibration: Any,
    options: QuantizeOptions | None = None,
    *,
    out: StrPath | None = None,
    force: bool = False,
    explain: bool = False,
    cache: CalibrationCache | None = None,
    progress: Listener = in_notebook,
    **stated: Unpack[LoadOptions],
) -> Model:
    """Return the INT8 form of a float32 model, calibrated on images.

    >>> quantize("digits.onnx", "calibration/samples", QuantizeOptions(never_slower=False)).report.layers_int8
    39

    Args:
        source: whatever `load` takes that holds or exports to a float32 ONNX graph.
        calibration: a folder of images, an `.npy` or `.npz` file, an array, or any iterable of images or batches.
        options: see `QuantizeOptions`.
        out: a file, or a folder for `NAME.int8.RECIPE.onnx`; None writes nothing.
        force: replace whatever stands at `out`.
        explain: add a sentence about every layer to the report.
        cache: of calibrated ranges.
        progress: is called when a stage begins, and after each of its steps.
        **stated: facts about the source; see `load`.

    Raises:
        UsageError: if an option is invalid.
        ModelFileError: if the source is not a float32 image model.
        DataError: if the calibration data are too few, all alike, or not normalized.
        OutputExistsError: if another artifact stands where the result should go.
        GateError: if no convolution is INT8 in the end, a demand is missed, or the result gives NaN or Inf.
        DensenetDeployError: if the graph that was written has a fault, which is ours; then nothing is written.
        MissingPackageError: if a package is missing.
    """
    require_packages("export", "onnx", "onnxscript")
    options, stages = or_default(options, QuantizeOptions), Stages(progress)
    if options.finetune:
        require_packages("export", "torch")
    recipe = chosen_recipe(options.recipe)
    given = sized_by(float32_form(as_onnx(source, stages, **stated)), calibration)
    model, preprocessing = normalized_form(given), preprocessing_of(given)
    name, manifest = f"{model.name}.int8.{recipe}", int8_manifest(given.manifest, recipe)
    size = len(model.to_bytes()) // 4
    destination = Destination.of(out, f"{name}.onnx", manifest, force=force, size_bytes=size)
    ready = prepare_int8(model, calibration, options, stages, cache, from_pixels=preprocessing.takes_pixels)
    if options.finetune:
        require_trainable(ready, options)
    with Trials(ready, model) as trials:
        run = _Run(trials, ready, options, calibration, recipe, stages)
        choice = run.chosen_layers()
        with stages("write INT8"):
            written = ready.writer.write(choice.float_layers)
        subject = destination.path or name
        with stages("check"):
            result = _sound(name, written, recipe, takes_pixels=preprocessing.takes_pixels)
        _require_int8(written.layers_int8, choice, subject)
        finetuning = None
        if options.finetune:
            written, finetuning = run.finetuned(choice.float_layers)
            with stages("check"):
                result = _sound(name, written, recipe, takes_pixels=preprocessing.takes_pixels)
        with stages("parity"):
            if preprocessing.takes_pixels:
                samples = taken(itertools.islice(ready.data, PARITY_SAMPLES), preprocessing)
                outputs = measured_parity(given, result, samples, ready.writer.backend)
            else:
                found = trials.outputs(choice.float_layers, PARITY_SAMPLES)
                outputs = compare_outputs(ready.floats.first(PARITY_SAMPLES), found, trials.class_outputs)
    require_sqnr(outputs, options.min_sqnr, subject, "ask for less, or leave layers float in a recipe file")
    result = destination.write(result)
    measured = (_FLOAT_INPUT,) if preprocessing.takes_pixels and choice.speed is not None else ()
    learnt = _learnt_from(finetuning, ready.count)
    notes = (*model.notes, *untrained_note(model.manifest), ready.note, *choice.notes, *measured, *learnt)
    notes = tuple(dict.fromkeys(notes))
    unasked = tuple(layer for layer in written.layers_float if layer not in choice.float_layers)
    report = QuantizeReport(
        onnx=result.path,
        recipe=recipe,
        outputs=outputs,
        layers_int8=len(written.layers_int8),
        layers_float=len(written.layers_float),
        float_layers=written.layers_float,
        float_unasked=unasked,
        weight_bits=ready.writer.options.weight_bits,
        calibrated_on=ready.count,
        input=input_of(given),
        finetune=finetuning,
        speed=choice.speed,
        explanation=run.explanation(written, unasked, choice) if explain else (),
        stages=stages.seconds,
        notes=notes,
    )
    return result.replaced(report=report, notes=notes)


@dataclass(frozen=True)
class _LayerChoice:
    """The layers that stay float, what was found out on the way, and the speed if it was measured."""

    float_layers: frozenset[str]
    notes: tuple[str, ...] = ()
    speed: Speed | None = None


@dataclass(frozen=True)
class _Run:
    """One call of `quantize`, once the data are calibrated."""

    trials: Trials
    ready: Int8Preparation
    options: QuantizeOptions
    calibration: Any
    recipe: str
    stages: Stages

    def chosen_layers(self) -> _LayerChoice:
        """Decide which layers stay float: those that were named, that cost too much accuracy, or that gain no time."""
        options, trials = self.options, self.trials
        known = [layer.name for layer in trials.layers]
        for name in options.float_layers:
            if name not in known:
                raise UnknownNameError.among("convolution", name, known)
        float_layers, notes = frozenset(options.float_layers), list[str]()
        with self.stages("accuracy"):
            if options.max_drop is not None or options.min_sqnr is not None:
                found, judgement = layers_for_accuracy(trials, options, self.calibration)
                float_layers |= set(found.float_layers)
                kept, took = counted(len(found.float_layers), "float layer"), counted(found.trials, "trial")
                notes += [f"accuracy: {kept}, found in {took}", *judgement]
            elif trials.runs_here:
                float_layers, behind = layers_behind_baseline(trials, float_layers)
                notes += [behind] if behind is not None else []
        if not options.never_slower:
            return _LayerChoice(float_layers, tuple(notes))
        if not trials.runs_here:
            notes.append(f"speed was not measured: no backend here runs what the recipe {self.recipe} is for")
            return _LayerChoice(float_layers, tuple(notes))
        with self.stages("speed", f"up to {options.speed_seconds:g} s, --no-never-slower skips it"):
            float_layers, speed = layers_for_speed(trials, float_layers, options.speed_seconds)
        return _LayerChoice(float_layers, tuple(notes), speed)

    def finetuned(self, float_layers: frozenset[str]) -> tuple[Int8File, Finetuning]:
        """Fine-tune the form that leaves `float_layers` float; `trials` then measure what comes of it."""

        def demanded_of(file: Int8File) -> float:
            if self.ready.writer.write(float_layers) is not file:
                self.trials.replace(float_layers, file)
            return demanded(self.trials, float_layers, self.options, self.calibration, PARITY_SAMPLES)

        def why_unacceptable(old: Int8File, new: Int8File) -> str | None:
            is_acceptable = demanded_of(old) <= demanded_of(new)
            return None if is_acceptable else "the file would be further from --max-drop or --min-sqnr"

        found, report = finetuned(float_layers, self.ready, self.options, self.stages, why_unacceptable)
        self.trials.replace(float_layers, found)
        return found, report

    def explanation(self, written: Int8File, unasked: Collection[str], choice: _LayerChoice) -> tuple[str, ...]:
        """Return a sentence about each layer; `unasked` are those that the recipe keeps float."""
        put_back = choice.speed.put_back if choice.speed is not None else ()
        sentences = [
            f"{name}: INT8, {self.ready.writer.options.weight_bits}-bit weights" for name in written.layers_int8
        ]
        for name in written.layers_float:
            why = "faster in float on this machine" if stage_of(name) in put_back else "asked for, or for accuracy"
            sentences.append(f"{name}: float, {f'the recipe {self.recipe} keeps it' if name in unasked else why}")
        return tuple(sentences)


def _learnt_from(finetuning: Finetuning | None, count: int) -> tuple[str, ...]:
    """Say that the parity is measured on images that were learnt from."""
    if finetuning is None or not finetuning.kept:
        return ()
    images = f"parity is measured on calibration images: {finetuning.images} of all {count} were learnt from"
    return (f"{images}; on the {finetuning.held_out} held-out ones the SQNR is {finetuning.sqnr_after_db:.1f} dB",)


def _require_int8(layers_int8: Sequence[str], choice: _LayerChoice, subject: object) -> None:
    """Refuse to call a float file INT8."""
    if layers_int8:
        return
    speed = choice.speed
    if speed is not None and speed.put_back:
        gain = f"{speed.speedup:.2f} x float" if speed.speedup <= 1 else "each of its blocks is faster in float"
        why = f"INT8 gains nothing on this machine ({gain}): every layer would stay float"
        raise GateError(subject, why, "keep the float file, or write INT8 anyway with --no-never-slower")
    raise GateError(subject, "no convolution can be INT8", "keep the float file, or try another recipe")


def _sound(name: str, written: Int8File, recipe: str, *, takes_pixels: bool) -> Model:
    """Return what was written, checked: no fault in the graph, and as many convolutions on integers as reported."""
    from densenet_deploy.quantization.checks import require_float, require_sound

    result = Model.from_bytes(name, written.data)
    result = pixel_form(result) if takes_pixels else result
    require_sound(result.onnx, recipe)
    require_float(result.onnx, recipe, written.layers_float)
    return result
