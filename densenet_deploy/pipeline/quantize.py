"""Quantize: calibrate on pictures → equalize → write INT8 by a recipe → measure what it costs → artifact.

The float graph is first given the exact passes. Calibration then reads the per-channel ranges of what convolutions read
and of the segments of every dense block; equalization uses them to make one scale a tensor serve all its channels.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Collection, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from densenet_deploy.artifacts import Artifact, output_path, refuse_foreign_output, sha256_of, write_file
from densenet_deploy.errors import GateError, ModelFileError, UnknownNameError, printable
from densenet_deploy.manifest import Manifest, Preprocessing
from densenet_deploy.packages import is_installed, require_packages
from densenet_deploy.parity.compare import Parity, ParityMeter
from densenet_deploy.pipeline.layer_choice import Speed, Trials, block_of, layers_for_accuracy, layers_for_speed
from densenet_deploy.pipeline.load import untrained_note
from densenet_deploy.pipeline.quantize_options import QuantizeOptions
from densenet_deploy.pipeline.stages import Listener, Stages, ignore
from densenet_deploy.runtime.batching import run_batched
from densenet_deploy.runtime.cpus import cpu_flags
from densenet_deploy.runtime.preprocess import default_preprocessing
from densenet_deploy.runtime.runner import RunnerOptions, open_runner

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from densenet_deploy.quantize.cache import CalibrationCache
    from densenet_deploy.quantize.calibration_data import CalibrationData
    from densenet_deploy.quantize.observers.observer import ChannelRanges

PARITY_SAMPLES: Final = 64
_NO_SATURATION: Final = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


@dataclass(frozen=True)
class QuantizeReport:
    """An INT8 file, how far its outputs are from the float file's on calibration pictures, and what stayed float."""

    onnx: Path
    recipe: str
    parity: Parity
    layers_int8: tuple[str, ...]
    layers_float: tuple[str, ...]
    weight_bits: int
    calibrated_on: int
    stages: Mapping[str, float]
    notes: tuple[str, ...]
    speed: Speed | None = None
    explanation: tuple[str, ...] = ()

    def explained(self) -> QuantizeReport:
        """Return the report with a sentence about every layer."""
        put_back = self.speed.put_back if self.speed is not None else ()
        told = [f"{name}: INT8, {self.weight_bits}-bit weights" for name in self.layers_int8]
        for name in self.layers_float:
            why = "faster in float on this machine" if block_of(name) in put_back else "asked for, or for accuracy"
            told.append(f"{name}: float, {why}")
        return dataclasses.replace(self, explanation=tuple(told))

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types."""
        return {
            "onnx": str(self.onnx),
            "recipe": self.recipe,
            "parity": self.parity.to_json(),
            "layers_int8": len(self.layers_int8),
            "layers_float": len(self.layers_float),
            "float_layers": list(self.layers_float),
            "weight_bits": self.weight_bits,
            "calibrated_on": self.calibrated_on,
            "seconds": sum(self.stages.values()),
            "stages": dict(self.stages),
            "speed": self.speed.to_json() if self.speed is not None else None,
            "notes": list(self.notes),
            **({"explanation": list(self.explanation)} if self.explanation else {}),
        }

    def to_text(self) -> str:
        """Return lines for people."""
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.stages.items())
        kept = f": {', '.join(self.layers_float)}" if self.layers_float else ""
        return "\n".join(
            [
                f"wrote       {printable(self.onnx)}",
                f"recipe      {self.recipe}, {self.weight_bits}-bit weights, {self.calibrated_on} pictures",
                f"layers      {len(self.layers_int8)} in INT8, {len(self.layers_float)} float{kept}",
                f"parity      {self.parity}",
                f"speed       {self.speed or 'not measured'}",
                f"seconds     {sum(self.stages.values()):.1f} ({stages})",
                *(f"layer       {sentence}" for sentence in self.explanation),
            ]
        )


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
    """Write the INT8 form of a float ONNX file, calibrated on a folder of pictures or an `.npy`/`.npz` file.

    Raises:
        UsageError: if an option cannot be meant.
        ModelFileError: if the file is no float32 image model.
        DataError: if the calibration data are too few, all alike, or not normalized.
        OutputExistsError: if something else stands where the result should go.
        GateError: if the result gives NaN or Inf.
        MissingPackageError: if a package is missing.
    """
    require_packages("export", "onnx", "onnxscript")
    options = options or QuantizeOptions()
    from densenet_deploy.graph.onnx_file import image_size_of
    from densenet_deploy.pipeline.int8 import Int8Writer
    from densenet_deploy.quantize.calibration_data import open_calibration_data
    from densenet_deploy.quantize.recipes.recipe import RecipeOptions

    artifact, recipe = Artifact.open(model), chosen_recipe(options.recipe)
    stages = Stages(listener)
    with stages("load"):
        proto = _float_model(artifact)
        preprocessing = _preprocessing(artifact.manifest, image_size_of(proto, model))
        data = open_calibration_data(calibration, preprocessing, options.samples)
        count = len(data) if isinstance(data, Sized) else 0
        manifest = _int8_manifest(artifact.manifest, recipe)
        path = _output(out, model, recipe)
        refuse_foreign_output(path, manifest, force=force)
    with stages("passes"):
        graph = _with_exact_passes(proto)
    with stages("calibrate"):
        ranges, note = _calibrated(graph, data, preprocessing, options, cache)
    with stages("prepare"):
        per_channel = options.weights == "per-channel"
        how = RecipeOptions(per_channel, weight_bits(), quantize_bus=options.quantize_bus)
        alpha = options.alpha if options.equalize else None
        writer = Int8Writer(graph, ranges, recipe, how, alpha=alpha, samples=data if options.correct_bias else ())
        choice = _Choice(frozenset(_known_layers(options.float_layers, writer.layers)))
    if options.max_drop is not None or options.min_sqnr is not None:
        with stages("accuracy"):
            choice = _for_accuracy(choice, Trials(writer, manifest, model, data), options, calibration, model)
    if options.never_slower and writer.backend is None:
        unmeasured = f"speed was not measured: no backend here runs what the recipe {recipe} is for"
        choice = dataclasses.replace(choice, notes=(*choice.notes, unmeasured))
    elif options.never_slower:
        with stages("speed"):
            choice = _for_speed(choice, Trials(writer, manifest, model, data))
    with stages("write INT8"):
        file = writer.write(manifest, choice.float_layers)
    with stages("parity"):
        parity = _compare(model, file.data, writer.backend, data)
    if parity.nonfinite:
        raise GateError(path, f"the INT8 model gives {parity.nonfinite} NaN or infinite values", "report this model")
    if options.min_sqnr is not None and parity.sqnr_db < options.min_sqnr:
        why = f"reaches {parity.sqnr_db:.1f} dB on {PARITY_SAMPLES} pictures, {options.min_sqnr:g} dB were asked for"
        raise GateError(path, why, "ask for less, or leave layers float in a recipe file")
    write_file(path, file.data)
    notes = (*untrained_note(artifact.manifest), note, *choice.notes)
    return QuantizeReport(
        path,
        recipe,
        parity,
        file.layers_int8,
        file.layers_float,
        how.weight_bits,
        count,
        stages.seconds,
        notes,
        choice.speed,
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


def chosen_recipe(name: str) -> str:
    """Return the recipe called `name`; `auto` is openvino where it is installed, else onnxruntime.

    Raises:
        UnknownNameError: if there is no such recipe.
    """
    from densenet_deploy.quantize.recipes.recipe import recipes

    if name != "auto":
        recipes.get(name)
        return name
    return "openvino" if is_installed("openvino") else "onnxruntime"


def weight_bits(flags: frozenset[str] | None = None) -> int:
    """Return 7 for x86 CPUs whose INT8 kernels add pairs of products in saturating 16 bits, else 8."""
    known = cpu_flags() if flags is None else flags
    return 7 if "sse2" in known and not known & _NO_SATURATION else 8


def _float_model(artifact: Artifact) -> onnx.ModelProto:
    from densenet_deploy.graph.onnx_file import has_quantization, load_onnx

    if artifact.kind != "onnx":
        raise ModelFileError(artifact.path, f"is an {artifact.kind} file", "quantize a float .onnx file")
    proto = load_onnx(artifact.path)
    if has_quantization(proto):
        raise ModelFileError(artifact.path, "is already quantized", "quantize the float file it was made from")
    if artifact.precision != "fp32":
        raise ModelFileError(artifact.path, f"holds {artifact.precision} weights", "quantize the float32 file")
    return proto


def _preprocessing(manifest: Manifest | None, size: int) -> Preprocessing:
    return manifest.preprocessing if manifest is not None else default_preprocessing(size)


def _int8_manifest(manifest: Manifest | None, recipe: str) -> Manifest | None:
    return None if manifest is None else dataclasses.replace(manifest, precision="int8", recipe=recipe)


def _output(out: str | None, model: Path, recipe: str) -> Path:
    name = f"{model.stem}.int8.{recipe}.onnx"
    return model.with_name(name) if out is None else output_path(out, name)


def _with_exact_passes(proto: onnx.ModelProto) -> ir.Model:
    import onnx
    import onnx_ir

    from densenet_deploy.graph.graph_pass import apply_passes
    from densenet_deploy.graph.presets import EXACT

    graph = onnx_ir.from_proto(proto)
    apply_passes(graph, EXACT)
    graph = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(onnx_ir.to_proto(graph)))  # recipes count channels
    for node in graph.graph:
        node.name = node.name or str(node.outputs[0].name)  # layers are told apart by name
    return graph


def _calibrated(
    graph: ir.Model,
    data: CalibrationData,
    preprocessing: Preprocessing,
    options: QuantizeOptions,
    cache: CalibrationCache | None,
) -> tuple[dict[str, ChannelRanges], str]:
    """The ranges of the tensors that INT8 needs, and whether they came from the cache."""
    import onnx_ir

    from densenet_deploy.graph.expose_values import expose_values
    from densenet_deploy.quantize.cache import CalibrationKey, Hit
    from densenet_deploy.quantize.calibrate import CalibrationPlan, Checkpoint, collect_ranges
    from densenet_deploy.quantize.observers.observer import ChannelRanges

    names = _tensors_to_observe(graph)
    plan = CalibrationPlan(options.observer, tensors=names)
    with tempfile.TemporaryDirectory() as folder:
        exposed = Path(folder) / "exposed.onnx"
        write_file(exposed, expose_values(onnx_ir.to_proto(graph), names).SerializeToString())
        key = CalibrationKey(sha256_of(exposed), data.digests() or {}, preprocessing, plan)
        found = cache.lookup(key) if cache else None
        if isinstance(found, Hit):
            ranges, note = dict(found.ranges), "calibration: from the cache"
        else:
            checkpoint = Checkpoint(cache.folder / f"{key.digest}.partial.npz", key.digest) if cache else None
            with open_runner(exposed, options=RunnerOptions(check_values=False)) as runner:
                ranges = collect_ranges(runner, data, plan, checkpoint)
            if cache:
                cache.store(key, ranges)
            note = f"calibration: {found.reason}" if found else "calibration: not cached"
    low, high = preprocessing.value_range
    ranges[str(graph.graph.inputs[0].name)] = ChannelRanges(np.full(3, low, np.float32), np.full(3, high, np.float32))
    return ranges, note


def _tensors_to_observe(model: ir.Model) -> tuple[str, ...]:
    """What convolutions read, what ReLUs give, what meets in Concats; the range of the input is known anyway."""
    from densenet_deploy.graph.graph_pass import is_operator

    values: dict[str, None] = {}
    for node in model.graph:
        if is_operator(node, "Conv"):
            values[str(node.inputs[0].name)] = None  # type: ignore[union-attr]
        if is_operator(node, "Relu") or is_operator(node, "Concat"):
            values[str(node.outputs[0].name)] = None
        if is_operator(node, "Concat"):
            values |= dict.fromkeys(str(value.name) for value in node.inputs if value is not None)
    inputs = {str(value.name) for value in model.graph.inputs}
    return tuple(name for name in values if name not in inputs)


def _compare(model: Path, quantized: bytes, backend: str | None, data: CalibrationData) -> Parity:
    """Run both files on calibration pictures, the INT8 one by the backend it was written for."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        write_file(path, quantized)
        with open_runner(model, backend, "cpu") as ours, open_runner(path, backend, "cpu") as theirs:
            output = ours.outputs[0].name
            meter = ParityMeter(class_scores=output != "features")
            for sample in itertools.islice(data, PARITY_SAMPLES):
                meter.update(run_batched(ours, sample)[output], run_batched(theirs, sample)[output])
    return meter.result()
