"""Quantize: calibrate on images → equalize → write INT8 by a recipe → measure what it costs → artifact.

The float graph is first given the exact passes. Calibration then reads the per-channel ranges of what convolutions read
and of the segments of every dense block; equalization uses them to make one scale a tensor serve all its channels.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from densenet_deploy.artifacts import Artifact, output_path, prepare_output, write_file
from densenet_deploy.errors import GateError, UnknownNameError
from densenet_deploy.packages import require_packages
from densenet_deploy.parity.compare import Parity, ParityMeter
from densenet_deploy.runtime.batching import run_batched
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.workflows.notes import untrained_note
from densenet_deploy.workflows.quantize.int8 import Int8File
from densenet_deploy.workflows.quantize.layer_choice import Speed, Trials, layers_for_accuracy, layers_for_speed
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.preparation import Int8Ready, chosen_recipe, int8_manifest, prepare_int8
from densenet_deploy.workflows.quantize.report import QuantizeReport
from densenet_deploy.workflows.stages import Listener, Stages, ignore

if TYPE_CHECKING:
    from densenet_deploy.quantize.cache import CalibrationCache
    from densenet_deploy.quantize.calibration_data import CalibrationData

PARITY_SAMPLES: Final = 64


def quantize(
    model: Path,
    calibration: Path,
    options: QuantizeOptions | None = None,
    out: str | None = None,
    *,
    force: bool = False,
    cache: CalibrationCache | None = None,
    listener: Listener = ignore,
) -> QuantizeReport:
    """Write the INT8 form of a float ONNX file, calibrated on a folder of images or an `.npy`/`.npz` file.

    Raises:
        UsageError: if an option cannot be meant.
        ModelFileError: if the file is no float32 image model.
        DataError: if the calibration data are too few, all alike, or not normalized.
        OutputExistsError: if something else stands where the result should go.
        GateError: if the result gives NaN or Inf.
        DensenetDeployError: if the graph that was written has a fault, which is ours; then nothing is written.
        MissingPackageError: if a package is missing.
    """
    require_packages("export", "onnx", "onnxscript")
    options = options or QuantizeOptions()
    artifact, recipe = Artifact.open(model), chosen_recipe(options.recipe)
    path = _output(out, model, recipe)
    prepare_output(path, int8_manifest(artifact, recipe), force=force, size_bytes=model.stat().st_size // 4)
    stages = Stages(listener)
    ready = prepare_int8(artifact, calibration, options, stages, cache)
    choice = _Choice(frozenset(_known_layers(options.float_layers, ready.writer.layers)))
    if options.max_drop is not None or options.min_sqnr is not None:
        with stages("accuracy"):
            choice = _for_accuracy(choice, _trials(ready, model), options, calibration, model)
    if options.never_slower and ready.writer.backend is None:
        unmeasured = f"speed was not measured: no backend here runs what the recipe {recipe} is for"
        choice = dataclasses.replace(choice, notes=(*choice.notes, unmeasured))
    elif options.never_slower:
        with stages("speed"):
            choice = _for_speed(choice, _trials(ready, model))
    with stages("write INT8"):
        file = ready.writer.write(ready.manifest, choice.float_layers)
    with stages("check"):
        _require_sound(file, recipe)
    with stages("parity"):
        parity = _compare(model, file.data, ready.writer.backend, ready.data)
    if parity.nonfinite:
        raise GateError(path, f"the INT8 model gives {parity.nonfinite} NaN or infinite values", "report this model")
    if options.min_sqnr is not None and parity.sqnr_db < options.min_sqnr:
        why = f"reaches {parity.sqnr_db:.1f} dB on {PARITY_SAMPLES} images, {options.min_sqnr:g} dB were asked for"
        raise GateError(path, why, "ask for less, or leave layers float in a recipe file")
    write_file(path, file.data)
    return QuantizeReport(
        path,
        recipe,
        parity,
        file.layers_int8,
        file.layers_float,
        ready.weight_bits,
        ready.count,
        stages.seconds,
        (*untrained_note(artifact.manifest), ready.note, *choice.notes),
        choice.speed,
        float_unasked=tuple(name for name in file.layers_float if name not in choice.float_layers),
    )


@dataclass(frozen=True)
class _Choice:
    """The layers that stay float so far, and what was found out on the way."""

    float_layers: frozenset[str]
    notes: tuple[str, ...] = ()
    speed: Speed | None = None


def _known_layers(names: Collection[str], layers: Sequence[str]) -> Collection[str]:
    for name in names:
        if name not in layers:
            raise UnknownNameError.among("convolution", name, layers)
    return names


def _trials(ready: Int8Ready, model: Path) -> Trials:
    return Trials(ready.writer, ready.manifest, model, ready.data)


def _require_sound(file: Int8File, recipe: str) -> None:
    """Read back what was written: no fault in the graph, and as many convolutions on integers as are claimed.

    Raises:
        DensenetDeployError: if not.
    """
    import onnx

    from densenet_deploy.quantize.checks import require_float, require_sound

    proto = onnx.load_from_string(file.data)
    require_sound(proto, recipe)
    require_float(proto, recipe, file.layers_float)


def _for_accuracy(choice: _Choice, trials: Trials, options: QuantizeOptions, calibration: Path, model: Path) -> _Choice:
    found = layers_for_accuracy(trials, options, calibration, model)
    note = f"accuracy: {len(found.float_layers)} layers stay float, found in {found.trials} trials"
    return _Choice(choice.float_layers | set(found.float_layers), (*choice.notes, note))


def _for_speed(choice: _Choice, trials: Trials) -> _Choice:
    float_layers, speed = layers_for_speed(trials, choice.float_layers)
    notes = choice.notes
    if len(float_layers) == len(trials.layers):
        notes += (f"speed: INT8 gains nothing here ({speed.speedup.median:.2f} x float): every layer is float again",)
    return _Choice(float_layers, notes, speed)


def _output(out: str | None, model: Path, recipe: str) -> Path:
    name = f"{model.stem}.int8.{recipe}.onnx"
    return model.with_name(name) if out is None else output_path(out, name)


def _compare(model: Path, quantized: bytes, backend: str | None, data: CalibrationData) -> Parity:
    """Run both files on calibration images, the INT8 one by the backend it was written for."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        write_file(path, quantized)
        with open_runner(model, backend, "cpu") as ours, open_runner(path, backend, "cpu") as theirs:
            output = ours.outputs[0].name
            meter = ParityMeter(class_scores=output != "features")
            for sample in itertools.islice(data, PARITY_SAMPLES):
                meter.update(run_batched(ours, sample)[output], run_batched(theirs, sample)[output])
    return meter.result()
