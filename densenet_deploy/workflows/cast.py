"""Cast: float32 graph → exact passes → range check → FP16 or BF16 → measured against the float32 graph.

Two measurements, since no CPU computes as a GPU does. `file`: ONNX Runtime runs the file itself. Its CPU kernels
accumulate FP16 in FP32 and keep most activations there, so it shows what rounding the weights costs; for BF16 it has no
convolution at all. `rounded`: the same graph in FP32 with weights and every tensor rounded to 16 bits, which also shows
what overflows. Both must pass the gates, and neither covers the speed or the kernels of a GPU.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Unpack

from densenet_deploy.artifacts import StrPath
from densenet_deploy.errors import ModelFileError
from densenet_deploy.manifest import Manifest
from densenet_deploy.model import InputDescription, Model, untrained_note
from densenet_deploy.options import or_default, require_choice, require_range
from densenet_deploy.packages import require_packages
from densenet_deploy.parity.compare import Parity, worst
from densenet_deploy.parity.gates import Gate
from densenet_deploy.reports import TimedReport, line, wrote
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.runner import REFERENCE_BACKEND
from densenet_deploy.workflows.compare import ParityOfOutputs, measured_parities, require_parity
from densenet_deploy.workflows.export import as_onnx
from densenet_deploy.workflows.float_model import (
    calibration_data,
    exact_graph,
    float32_form,
    input_manifest,
    normalized_form,
    pixel_form,
    require_float32,
    sized_by,
)
from densenet_deploy.workflows.load import LoadOptions, input_of, preprocessing_of
from densenet_deploy.workflows.outputs import Destination
from densenet_deploy.workflows.samples import seeded_samples, taken
from densenet_deploy.workflows.stages import Listener, Stages, Step, in_notebook

if TYPE_CHECKING:
    import onnx_ir as ir

    from densenet_deploy.graph.reduced_precision import ReducedModel
    from densenet_deploy.quantization.cache import CalibrationCache
    from densenet_deploy.quantization.calibration_data import CalibrationData

PRECISIONS: Final = ("fp16", "bf16")
PARITY_SAMPLES: Final = 16
_MEASURED: Final = {
    "file": "the file in ONNX Runtime, whose CPU kernels accumulate FP16 in FP32",
    "rounded": "in FP32 with weights and every tensor rounded to {}, as no CPU here computes in it throughout",
}
_UNCHECKED: Final = "activations were not checked against FP16's range on your images: give --calibration for that"
_ON_ARRAYS: Final = "activations were checked against FP16's range on the arrays given"
_NO_RANGE_NEEDED: Final = "BF16 reaches as far as FP32: nothing can overflow that did not before"
_NO_GPU: Final = "parity was measured on a CPU; nothing was run on a GPU"


@dataclass(frozen=True)
class CastOptions:
    """How to cast.

    >>> CastOptions("bf16").precision
    'bf16'

    Attributes:
        precision: `fp16` or `bf16`.
        samples: images to calibrate on, a seeded subset; all if there are fewer.
        float_nodes: names of nodes that stay in FP32 in any case.
        gates: limits; None means those of the precision.
    """

    precision: str = "fp16"
    samples: int = 512
    float_nodes: tuple[str, ...] = ()
    gates: tuple[Gate, ...] | None = None

    def __post_init__(self) -> None:
        require_choice("precision", self.precision, PRECISIONS)
        require_range("samples", self.samples, 1, 1_000_000)


@dataclass(frozen=True, kw_only=True)
class CastReport(TimedReport, ParityOfOutputs):
    """A 16-bit graph, its parity with the float32 graph, and the nodes that stayed in FP32.

    Attributes:
        outputs: the parity of each output, of the file where a CPU can run it, else rounded.
        parity_rounded: the worst output's, every tensor rounded.
        parity_measured: how each was measured.
        float_nodes: nodes in FP32, with the reason for each.
        bytes: size of the file.
    """

    kind: ClassVar[str] = "cast"
    derived: ClassVar[tuple[str, ...]] = ("parity", "seconds")

    onnx: Path | None
    precision: str
    outputs: Mapping[str, Parity]
    parity_rounded: Parity
    parity_measured: Mapping[str, str]
    float_nodes: Mapping[str, str]
    bytes: int
    input: InputDescription

    def to_text(self) -> str:
        shown = {"file": self.parity, "rounded": self.parity_rounded}
        return "\n".join(
            [
                *wrote(self.onnx),
                line(
                    "precision", f"{self.precision}, {self.bytes / 1e6:.1f} MB, {len(self.float_nodes)} nodes in FP32"
                ),
                *(f"  {name}: {reason}" for name, reason in self.float_nodes.items()),
                line("input", self.input),
                *(
                    f"{line('parity', shown[how])}\n{line('', sentence)}"
                    for how, sentence in self.parity_measured.items()
                ),
                *self.stage_lines(),
            ]
        )


def cast(
    source: Any,
    options: CastOptions | None = None,
    *,
    calibration: Any = None,
    out: StrPath | None = None,
    force: bool = False,
    cache: CalibrationCache | None = None,
    progress: Listener = in_notebook,
    **stated: Unpack[LoadOptions],
) -> Model:
    """Return the FP16 or BF16 form of an ONNX model, measured against its float32 form; inputs and outputs are float32.

    >>> cast("digits.onnx", CastOptions("bf16")).report.parity.sqnr_db
    48.5

    Args:
        source: whatever `load` takes. Weights of the other 16-bit precision are widened to float32 first, and a note
            says so.
        options: precision, gates, and what stays in FP32.
        calibration: a folder of images, an array file, or an iterable: what overflows FP16 there stays in FP32. Without
            it only the weights are checked. BF16 reaches as far as FP32 and needs none.
        out: a file, or a folder for `NAME.fp16.onnx`; None writes nothing.
        force: replace whatever stands at `out`.
        cache: of calibrated ranges.
        progress: is called when a stage begins, and after each of its steps.
        **stated: facts about the source; see `load`.

    Raises:
        ModelFileError: if the source is not an image model, is quantized or in that precision already, or an operator
            has no 16-bit form.
        UnknownNameError: if a name in `float_nodes` is not that of a node.
        DataError: if the calibration data are too few, all alike, or not normalized.
        OutputExistsError: if another artifact stands where the result should go.
        GateError: if the result computes something else; then nothing is written.
        MissingPackageError: if a package is missing.
    """
    require_packages("export", "onnx", "onnxscript")
    require_packages(REFERENCE_BACKEND, REFERENCE_BACKEND)
    options, stages = or_default(options, CastOptions), Stages(progress)
    given = sized_by(_float32_of(as_onnx(source, stages, **stated), options.precision), calibration)
    name = f"{given.name}.{options.precision}"
    model, preprocessing = normalized_form(given), preprocessing_of(given)
    manifest = reduced_manifest(given.manifest, options.precision)
    size = len(model.to_bytes()) // 2 if model.is_onnx else 0
    destination = Destination.of(out, f"{name}.onnx", manifest, force=force, size_bytes=size)
    require_float32(model)
    data = calibration_data(model, calibration, options.samples) if calibration is not None else None
    with stages("passes"):
        graph = exact_graph(model)
    ranges, remark = None, _UNCHECKED if options.precision == "fp16" else _NO_RANGE_NEEDED
    if data is not None and options.precision == "fp16":
        with stages("calibrate") as step:
            ranges, found = _ranges(graph, data, cache, step)
            remark = found if isinstance(calibration, (str, os.PathLike)) else _ON_ARRAYS
    with stages("cast"):
        import onnx_ir

        from densenet_deploy.graph.reduced_precision import reduce_precision

        kept = options.float_nodes
        reduced = reduce_precision(onnx_ir.to_proto(graph), options.precision, ranges or {}, float_nodes=kept)
        result = Model.from_onnx(name, reduced.model, input_manifest(manifest, "float32"))
        result = pixel_form(result) if preprocessing.takes_pixels else result
    with stages("parity"):
        seeded = seeded_samples(PARITY_SAMPLES, preprocessing)
        samples = list(itertools.islice(taken(data, preprocessing) if data is not None else seeded, PARITY_SAMPLES))
        parities = _measured(given, result, reduced, options, samples)
    result = destination.write(result)
    notes = tuple(dict.fromkeys((*model.notes, *untrained_note(model.manifest), *reduced.notes, remark, _NO_GPU)))
    how = {name: _MEASURED[name].format(options.precision.upper()) for name in parities}
    report = CastReport(
        onnx=result.path,
        precision=options.precision,
        outputs=next(iter(parities.values())),
        parity_rounded=worst(parities["rounded"])[1],
        parity_measured=how,
        float_nodes=reduced.reasons,
        bytes=len(result.to_bytes()),
        input=input_of(given),
        stages=stages.seconds,
        notes=notes,
    )
    return result.replaced(report=report, notes=notes)


def _float32_of(model: Model, precision: str) -> Model:
    """Return the float32 form of `model`, which must not be in `precision` already: a second cast changes nothing."""
    if model.is_onnx and model.precision == precision:
        fix = f"use it as it is, or choose {' or '.join(name for name in PRECISIONS if name != precision)}"
        raise ModelFileError(model.path or model.name, f"is already in {precision}", fix)
    return float32_form(model)


def reduced_manifest(manifest: Manifest | None, precision: str) -> Manifest | None:
    """Return the facts of the 16-bit file; BF16 lifts older operator sets."""
    from densenet_deploy.graph.reduced_precision import BF16_OPSET

    if manifest is None:
        return None
    lifted = manifest.opset is not None and precision == "bf16"
    opset = max(manifest.opset or 0, BF16_OPSET) if lifted else manifest.opset
    return dataclasses.replace(manifest, precision=precision, opset=opset)


def _ranges(
    graph: ir.Model, data: CalibrationData, cache: CalibrationCache | None, step: Step
) -> tuple[dict[str, float], str]:
    """Return the largest absolute value of every float tensor, by name, and where the numbers came from."""
    import numpy as np
    import onnx_ir

    from densenet_deploy.quantization.calibrate import calibrate
    from densenet_deploy.quantization.derived_ranges import derivable, derived
    from densenet_deploy.quantization.observers.minmax import MinMaxOptions
    from densenet_deploy.quantization.observers.observer import CalibrationConfig

    made = [value for node in graph.graph for value in node.outputs if value.dtype == onnx_ir.DataType.FLOAT]
    names = [str(value.name) for value in made if value.shape is None or len(value.shape) >= 2]
    follow = {str(node.outputs[0].name) for node in derivable(graph.graph, names)}
    observed = tuple(name for name in names if name not in follow)
    config = CalibrationConfig(options=MinMaxOptions(headroom=0.0), tensors=observed)
    calibration = calibrate(onnx_ir.to_proto(graph), data, config, cache, step)
    extremes = derived(graph.graph, calibration.ranges)
    ranges = {name: MinMaxOptions().widened(found) for name, found in extremes.items()}
    return {name: float(np.abs([found.low, found.high]).max()) for name, found in ranges.items()}, calibration.note


def _measured(
    model: Model, result: Model, reduced: ReducedModel, options: CastOptions, samples: Iterable[Array]
) -> dict[str, dict[str, Parity]]:
    """Return the parity of each output by how it was measured."""
    from densenet_deploy.graph.reduced_precision import rounded

    candidates = {"file": result} if options.precision == "fp16" else {}
    candidates["rounded"] = Model.from_onnx(result.name, rounded(reduced.model), model.manifest)
    parities = measured_parities(model, candidates, samples)
    for how, outputs in parities.items():
        precision = options.precision.upper()
        why = f"{precision} misses its gates ({_MEASURED[how].format(precision)})"
        fix = "nothing was written; give --calibration, use --bf16, or set another --gate"
        require_parity(outputs, options.precision, model.name, why, fix, options.gates)
    return parities
