"""A float32 file in FP16 or BF16: exact passes → ranges → cast → parity.

FP16 ends at 65504, and a CPU does not show where a GPU would overflow: most of ONNX Runtime's half kernels compute in
float32 there. So the float graph is run first, every tensor's reach is noted, and nodes near the end stay in float32.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from densenet_deploy.artifacts import Artifact, write_file
from densenet_deploy.errors import GateError
from densenet_deploy.manifest import PREFIX, Manifest, Preprocessing
from densenet_deploy.onnx_envelope import append_metadata
from densenet_deploy.parity.compare import Parity, ParityMeter
from densenet_deploy.parity.gates import DEFAULT_GATES, failed_gates
from densenet_deploy.pipeline.samples import seeded_samples
from densenet_deploy.runtime.batching import run_batched
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.preprocess import default_preprocessing
from densenet_deploy.runtime.runner import RunnerOptions, open_runner

if TYPE_CHECKING:
    import onnx

RANGE_SAMPLES: Final = 32
_SEEDED_SAMPLES: Final = 4
_MOST_REASONS: Final = 2
_BF16_NOTE: Final = "parity was not measured: no CPU backend here runs BF16 convolutions"


@dataclass(frozen=True)
class HalfFile:
    """A serialized model in FP16 or BF16, its parity with the float file (None where nothing here runs it), remarks."""

    data: bytes
    manifest: Manifest | None
    parity: Parity | None
    notes: tuple[str, ...]


def half_file(source: Artifact, precision: str, calibration: Iterable[Array] | None = None) -> HalfFile:
    """Return the float32 file `source` in `precision` (`fp16` or `bf16`).

    Args:
        source: an ONNX file with float32 weights.
        precision: what to write.
        calibration: normalized pictures (1, 3, S, S) whose reach decides what FP16 holds, the first 32; None takes
            seeded noise and images with the spectrum of nature.

    Raises:
        ModelFileError: if the file is no float image model, or an operator has no such form.
        GateError: if the result computes something else.
    """
    from densenet_deploy.graph.bf16 import to_bf16
    from densenet_deploy.graph.fp16 import to_fp16
    from densenet_deploy.graph.onnx_file import image_size_of, load_onnx

    proto = load_onnx(source.path)
    size = image_size_of(proto, source.path)
    preprocessing = source.manifest.preprocessing if source.manifest else default_preprocessing(size)
    samples = _samples(calibration, preprocessing)
    proto = _with_exact_passes(proto)
    half = to_bf16(proto) if precision == "bf16" else to_fp16(proto, _reach(proto, samples))
    manifest = _manifest(source.manifest, precision, half.model)
    data = _serialized(half.model, manifest)
    kept = (f"{len(half.float_nodes)} nodes stay in float32: {_reasons(half.reasons)}",) if half.float_nodes else ()
    if precision == "bf16":
        return HalfFile(data, manifest, None, (*half.notes, *kept, _BF16_NOTE))
    return HalfFile(data, manifest, _proved(source.path, data, samples), (*half.notes, *kept))


def _samples(calibration: Iterable[Array] | None, preprocessing: Preprocessing) -> Sequence[Array]:
    if calibration is None:
        return list(seeded_samples(_SEEDED_SAMPLES, preprocessing))
    return list(itertools.islice(calibration, RANGE_SAMPLES))


def _with_exact_passes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Fold norms and pool first, as every exported file does already; a stranger's may not."""
    import onnx
    import onnx_ir

    from densenet_deploy.graph.graph_pass import apply_passes
    from densenet_deploy.graph.presets import EXACT

    graph = onnx_ir.from_proto(proto)
    apply_passes(graph, EXACT)
    return onnx.shape_inference.infer_shapes(onnx_ir.to_proto(graph))


def _reach(proto: onnx.ModelProto, samples: Sequence[Array]) -> dict[str, float]:
    """The largest absolute value of every tensor in the graph, on `samples`."""
    from densenet_deploy.graph.expose_values import expose_values

    reach: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exposed.onnx"
        write_file(path, expose_values(proto).SerializeToString())
        with open_runner(path, "onnxruntime", "cpu", RunnerOptions(check_values=False)) as runner:
            for sample in samples:
                for name, array in run_batched(runner, sample).items():
                    reach[name] = max(reach.get(name, 0.0), float(np.abs(array).max()))
    return reach


def _manifest(manifest: Manifest | None, precision: str, model: onnx.ModelProto) -> Manifest | None:
    if manifest is None:
        return None
    opset = next((entry.version for entry in model.opset_import if entry.domain == ""), manifest.opset)
    return dataclasses.replace(manifest, precision=precision, opset=opset)


def _serialized(model: onnx.ModelProto, manifest: Manifest | None) -> bytes:
    strangers = [pair for pair in model.metadata_props if not pair.key.startswith(PREFIX)]
    del model.metadata_props[:]
    model.metadata_props.extend(strangers)
    data: bytes = model.SerializeToString()
    return data if manifest is None else append_metadata(data, manifest.to_strings())


def _proved(reference: Path, candidate: bytes, samples: Sequence[Array]) -> Parity:
    """Run both files on `samples`.

    Raises:
        GateError: if they differ by more than FP16 rounding explains.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "half.onnx"
        write_file(path, candidate)
        with (
            open_runner(reference, "onnxruntime", "cpu") as ours,
            open_runner(path, "onnxruntime", "cpu") as theirs,
        ):
            output = ours.outputs[0].name
            meter = ParityMeter(class_scores=output != "features")
            for sample in samples:
                meter.update(run_batched(ours, sample)[output], run_batched(theirs, sample)[output])
    parity = meter.result()
    failures = failed_gates(parity, DEFAULT_GATES["fp16"])
    if failures:
        fix = "give --calibration, so that ranges are those of pictures, or build --fp32"
        raise GateError(reference, f"in FP16 it computes something else: {'; '.join(failures)}", fix)
    return parity


def _reasons(reasons: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({why})" for name, why in itertools.islice(reasons.items(), _MOST_REASONS))
