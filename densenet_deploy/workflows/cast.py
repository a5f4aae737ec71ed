"""Cast: a float32 file → exact passes → range check → FP16 or BF16 → measured against the float file → artifact.

Two measurements, since no CPU computes as a GPU does. `file`: ONNX Runtime runs the file itself. Its CPU kernels
accumulate FP16 in FP32 and keep most activations there, so that shows what rounded weights cost; of BF16 it has no
convolution at all. `rounded`: the same graph in FP32 with weights and every tensor rounded to 16 bits, which also shows
what overflows. Both must pass the gates, and neither says anything about the speed or the kernels of a GPU.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from densenet_deploy.artifacts import Artifact, output_path, prepare_output, write_file
from densenet_deploy.errors import GateError, printable
from densenet_deploy.manifest import Manifest, Preprocessing
from densenet_deploy.onnx_envelope import append_metadata
from densenet_deploy.options import require_choice, require_range
from densenet_deploy.packages import require_packages
from densenet_deploy.parity.compare import Parity, ParityMeter
from densenet_deploy.parity.gates import DEFAULT_GATES, Gate, failed_gates
from densenet_deploy.runtime.batching import run_batched
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.workflows.calibration import Observation, observe
from densenet_deploy.workflows.float_model import load_float, preprocessing_of, with_exact_passes
from densenet_deploy.workflows.notes import untrained_note
from densenet_deploy.workflows.samples import seeded_samples
from densenet_deploy.workflows.stages import Listener, Stages, Step, ignore

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from densenet_deploy.graph.reduced_precision import ReducedModel
    from densenet_deploy.quantize.cache import CalibrationCache
    from densenet_deploy.quantize.calibration_data import CalibrationData

PRECISIONS: Final = ("fp16", "bf16")
PARITY_SAMPLES: Final = 16
_BACKEND: Final = "onnxruntime"
_MEASURED: Final = {
    "file": "the file in ONNX Runtime, whose CPU kernels accumulate FP16 in FP32",
    "rounded": "in FP32 with weights and every tensor rounded to {}, as no CPU here computes in it throughout",
}
_UNCHECKED: Final = "activations were not checked against FP16's range on images of yours: give --calibration for that"
_ON_ARRAYS: Final = "activations were checked against FP16's range on the arrays given"
_NO_RANGE_NEEDED: Final = "BF16 reaches as far as FP32: nothing can overflow that did not before"
_NO_GPU: Final = "parity was measured on a CPU; nothing was run on a GPU"


@dataclass(frozen=True)
class CastOptions:
    """How to cast.

    Attributes:
        precision: `fp16` or `bf16`.
        samples: images to calibrate on, a seeded subset; all where there are fewer.
        float_nodes: names of nodes that stay in FP32 in any case.
        gates: limits; None means those of the precision.
    """

    precision: str
    samples: int = 512
    float_nodes: tuple[str, ...] = ()
    gates: tuple[Gate, ...] | None = None

    def __post_init__(self) -> None:
        require_choice("precision", self.precision, PRECISIONS)
        require_range("samples", self.samples, 1, 1_000_000)


@dataclass(frozen=True)
class Casting:
    """A 16-bit model that passed its gates and has no file yet.

    Attributes:
        half: the graph and the nodes that stayed in FP32, with reasons.
        data: the bytes of its file; `manifest` is in them, if there is one.
        parities: by how it was measured: `file`, `rounded`.
        notes: what was found and what was not looked at.
    """

    half: ReducedModel
    data: bytes
    manifest: Manifest | None
    parities: Mapping[str, Parity]
    notes: tuple[str, ...]

    @property
    def parity(self) -> Parity:
        """That of the file where it could be run."""
        return next(iter(self.parities.values()))


@dataclass(frozen=True)
class CastReport:
    """The file written, its parity with the float file, and the nodes that stayed in FP32 with the reason for each."""

    onnx: Path
    precision: str
    parities: Mapping[str, Parity]
    float_nodes: Mapping[str, str]
    bytes: int
    stages: Mapping[str, float]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types; `parity` is that of the file where it could be run."""
        return {
            "onnx": str(self.onnx),
            "precision": self.precision,
            "parity": next(iter(self.parities.values())).to_json(),
            "parity_rounded": self.parities["rounded"].to_json(),
            "parity_measured": {name: self._how(name) for name in self.parities},
            "float_nodes": dict(self.float_nodes),
            "bytes": self.bytes,
            "seconds": sum(self.stages.values()),
            "stages": dict(self.stages),
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return lines for people."""
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.stages.items())
        return "\n".join(
            [
                f"wrote       {printable(self.onnx)}",
                f"precision   {self.precision}, {self.bytes / 1e6:.1f} MB, {len(self.float_nodes)} nodes in FP32",
                *(f"  {name}: {reason}" for name, reason in self.float_nodes.items()),
                *(f"parity      {parity}\n            {self._how(name)}" for name, parity in self.parities.items()),
                f"seconds     {sum(self.stages.values()):.1f} ({stages})",
            ]
        )

    def _how(self, name: str) -> str:
        return _MEASURED[name].format(self.precision.upper())


def cast(
    model: Path,
    options: CastOptions,
    calibration: Path | None = None,
    out: str | None = None,
    *,
    force: bool = False,
    cache: CalibrationCache | None = None,
    listener: Listener = ignore,
) -> CastReport:
    """Write the FP16 or BF16 form of a float32 ONNX file; by default beside it, as `NAME.fp16.onnx`.

    Raises:
        OutputExistsError: if something else stands where the result should go.
        GateError, InputError, MissingPackageError: see `cast_model`; then nothing is written.
    """
    require_packages("export", "onnx", "onnxscript")
    artifact, name = Artifact.open(model), f"{model.stem}.{options.precision}.onnx"
    path = model.with_name(name) if out is None else output_path(out, name)
    manifest = half_manifest(artifact.manifest, options.precision)
    prepare_output(path, manifest, force=force, size_bytes=model.stat().st_size // 2)
    stages = Stages(listener)
    made = cast_model(model, options, calibration, cache=cache, stages=stages)
    write_file(path, made.data)
    return CastReport(
        path, options.precision, made.parities, made.half.reasons, len(made.data), stages.seconds, made.notes
    )


def cast_model(
    model: Path,
    options: CastOptions,
    calibration: Path | Iterable[Array] | None = None,
    *,
    cache: CalibrationCache | None = None,
    stages: Stages | None = None,
) -> Casting:
    """Return the FP16 or BF16 form of a float32 ONNX file, measured against it. Inputs and outputs stay float32.

    Args:
        model: the file; the exact passes are run on a copy.
        options: the precision, and what stays in FP32.
        calibration: images, an array file, or arrays (1, 3, S, S): what overflows FP16 there stays in FP32. Without
            it only weights are looked at. BF16 reaches as far as FP32 and needs none.
        cache: of ranges.
        stages: are told and timed.

    Raises:
        ModelFileError: if the file is no float32 image model, or an operator has no 16-bit form.
        UnknownNameError: if there is no node of a name in `float_nodes`.
        DataError: if the calibration data are too few, all alike, or not normalized.
        GateError: if it computes something else than the file.
        MissingPackageError: if a package is missing.
    """
    require_packages("export", "onnx", "onnxscript")
    require_packages(_BACKEND, _BACKEND)
    stages = stages or Stages()
    artifact = Artifact.open(model)
    with stages("load"):
        proto = load_float(artifact)
        preprocessing = preprocessing_of(artifact, proto)
        data = _open(calibration, preprocessing, options.samples) if calibration is not None else None
    with stages("passes"):
        graph = with_exact_passes(proto)
    ranges, remark = None, _UNCHECKED if options.precision == "fp16" else _NO_RANGE_NEEDED
    if data is not None and options.precision == "fp16":
        with stages("calibrate") as step:
            ranges, found = _ranges(graph, data, preprocessing, cache, step)
            remark = found if isinstance(calibration, Path) else _ON_ARRAYS
    with stages("cast"):
        half = _converted(graph, options, ranges or {})
        manifest = half_manifest(artifact.manifest, options.precision)
        serialized = _serialized(half.model, manifest)
    with stages("parity"):
        samples = list(itertools.islice(data or seeded_samples(PARITY_SAMPLES, preprocessing), PARITY_SAMPLES))
        parities = _measured(model, serialized, half, options.precision, samples)
    _require_parity(model, parities, options)
    notes = (*untrained_note(artifact.manifest), *half.notes, remark, _NO_GPU)
    return Casting(half, serialized, manifest, parities, notes)


def _open(calibration: Path | Iterable[Array], preprocessing: Preprocessing, samples: int) -> CalibrationData:
    from densenet_deploy.quantize.calibration_data import open_calibration_data

    return open_calibration_data(calibration, preprocessing, samples)


def half_manifest(manifest: Manifest | None, precision: str) -> Manifest | None:
    """Return the facts of the 16-bit file; BF16 lifts older operator sets."""
    from densenet_deploy.graph.reduced_precision import BF16_OPSET

    if manifest is None:
        return None
    lifted = manifest.opset is not None and precision == "bf16"
    opset = max(manifest.opset or 0, BF16_OPSET) if lifted else manifest.opset
    return dataclasses.replace(manifest, precision=precision, opset=opset)


def _ranges(
    graph: ir.Model, data: CalibrationData, preprocessing: Preprocessing, cache: CalibrationCache | None, step: Step
) -> tuple[dict[str, float], str]:
    """The largest absolute value of every float tensor, by name, and where the numbers came from."""
    import numpy as np
    import onnx_ir

    made = [value for node in graph.graph for value in node.outputs if value.dtype == onnx_ir.DataType.FLOAT]
    names = tuple(str(value.name) for value in made if value.shape is None or len(value.shape) >= 2)
    observed = observe(Observation(onnx_ir.to_proto(graph), names), data, preprocessing, cache, step)
    largest = {name: float(np.abs([found.low, found.high]).max()) for name, found in observed.ranges.items()}
    return largest | {str(graph.graph.inputs[0].name): max(map(abs, preprocessing.value_range))}, observed.note


def _converted(graph: ir.Model, options: CastOptions, ranges: Mapping[str, float]) -> ReducedModel:
    import onnx_ir

    from densenet_deploy.graph.reduced_precision import reduce_precision

    return reduce_precision(onnx_ir.to_proto(graph), options.precision, ranges, float_nodes=options.float_nodes)


def _serialized(proto: onnx.ModelProto, manifest: Manifest | None) -> bytes:
    facts = manifest.to_strings() if manifest is not None else {}
    kept = [entry for entry in proto.metadata_props if entry.key not in facts]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    return append_metadata(proto.SerializeToString(), facts)


def _measured(
    model: Path, data: bytes, half: ReducedModel, precision: str, samples: Iterable[Array]
) -> dict[str, Parity]:
    from densenet_deploy.graph.reduced_precision import rounded

    candidates = {"file": data} if precision == "fp16" else {}
    candidates["rounded"] = rounded(half.model).SerializeToString()
    return {name: _compare(model, candidate, samples) for name, candidate in candidates.items()}


def _compare(model: Path, candidate: bytes, samples: Iterable[Array]) -> Parity:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "half.onnx"
        write_file(path, candidate)
        with open_runner(model, _BACKEND, "cpu") as ours, open_runner(path, _BACKEND, "cpu") as theirs:
            output = ours.outputs[0].name
            meter = ParityMeter(class_scores=output != "features")
            for sample in samples:
                meter.update(run_batched(ours, sample)[output], run_batched(theirs, sample)[output])
    return meter.result()


def _require_parity(model: Path, parities: Mapping[str, Parity], options: CastOptions) -> None:
    gates = DEFAULT_GATES[options.precision] if options.gates is None else options.gates
    for name, parity in parities.items():
        failures = failed_gates(parity, gates)
        if failures:
            how = _MEASURED[name].format(options.precision.upper())
            fix = "nothing was written; give --calibration, use --bf16, or set another --gate"
            raise GateError(model, f"{options.precision.upper()} misses its gates ({how}): {'; '.join(failures)}", fix)
