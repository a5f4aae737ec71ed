"""Export: build or load → ONNX → onnxsim → exact passes → parity → artifact.

Nothing is left under the final name unless the file has been proved against the PyTorch module it came from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from densenet_deploy.artifacts import output_path, prepare_output, write_file
from densenet_deploy.errors import GateError, printable
from densenet_deploy.manifest import Manifest
from densenet_deploy.onnx_envelope import append_metadata
from densenet_deploy.options import require_range
from densenet_deploy.packages import require_packages
from densenet_deploy.parity.compare import Parity, ParityMeter
from densenet_deploy.parity.gates import DEFAULT_GATES, failed_gates
from densenet_deploy.runtime.batching import run_batched
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.runner import RunnerOptions, backends_reading, first_installed, open_runner
from densenet_deploy.workflows.load import DescribedModel, ModelRequest, build, requested_variant
from densenet_deploy.workflows.samples import seeded_samples
from densenet_deploy.workflows.stages import Listener, Stages, ignore

if TYPE_CHECKING:
    import onnx

PARITY_SAMPLES: Final = 8
# Threads wait for each other spinning. Where others use the cores too, two threads took 36 s for what one does in 1 s.
_ALONE: Final = RunnerOptions(threads=1)
_NONFINITE_NOTE: Final = "NaN and Inf weights were let in: outputs that they reach were not compared"
_TOOLS: Final = ("densenet-deploy", "torch", "onnx", "onnxscript", "onnxsim")


@dataclass(frozen=True)
class ExportTarget:
    """What file to write: `batch` None keeps it dynamic; `out` is a file or folder (None: `artifacts/`)."""

    batch: int | None = None
    opset: int = 20
    out: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        require_range("opset", self.opset, 16, 23)
        if self.batch is not None:
            require_range("batch", self.batch, 1, 4096)


@dataclass(frozen=True)
class ExportReport:
    """A verified ONNX file: where it is, whose weights it holds, and how close it is to the module."""

    onnx: Path
    manifest: Manifest
    parameters: int
    parity: Parity
    stages: Mapping[str, float]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types."""
        return {
            "onnx": str(self.onnx),
            "variant": self.manifest.variant,
            "weights": self.manifest.weights.source,
            "weights_sha256": self.manifest.weights.sha256,
            "parameters": self.parameters,
            "parity": self.parity.to_json(),
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
                f"model       densenet {self.manifest.variant}, {self.parameters:,} parameters",
                f"weights     {self.manifest.weights.source}",
                f"parity      {self.parity}",
                f"seconds     {sum(self.stages.values()):.1f} ({stages})",
            ]
        )


def export_onnx(request: ModelRequest, target: ExportTarget | None = None, listener: Listener = ignore) -> ExportReport:
    """Export a DenseNet to a verified ONNX file.

    >>> export_onnx(ModelRequest(variant="121")).onnx                              # doctest: +SKIP
    PosixPath('artifacts/densenet121.onnx')

    Raises:
        UsageError: if an option cannot be meant.
        CheckpointError: if the weights cannot be used.
        OutputExistsError: if another artifact stands where this one should go.
        GateError: if the file does not compute what the module computes; then nothing is left behind.
        MissingPackageError: if a package is missing.
    """
    target = target or ExportTarget()
    requested_variant(request)  # before anything that takes seconds
    require_packages("export", "torch", "onnx", "onnxscript", "onnxsim")
    first_installed(backends_reading(".onnx"))  # to prove the file with
    stages = Stages(listener)
    with stages("import"):
        import onnx_ir  # noqa: F401 - timed here, so that the later stages show their own work
        import torch  # noqa: F401
    with stages("build"):
        model = build(request)
    manifest = dataclasses.replace(model.manifest, batch=target.batch, opset=target.opset, tools=_tool_versions())
    path = output_path(target.out, f"{model.variant.artifact_name}.onnx")
    prepare_output(path, manifest, force=target.force, size_bytes=4 * _count_parameters(model))

    proto = _translate(model, target, stages)
    with stages("serialize"):
        data = append_metadata(proto.SerializeToString(), manifest.to_strings())
    with stages("parity"):
        parity = _prove(model, data, path, allow_nonfinite=request.allow_nonfinite)
    with stages("write"):
        write_file(path, data)
    notes = (*model.notes, _NONFINITE_NOTE) if request.allow_nonfinite else model.notes
    return ExportReport(path, manifest, _count_parameters(model), parity, stages.seconds, notes)


def _count_parameters(model: DescribedModel) -> int:
    return sum(parameter.numel() for parameter in model.module.parameters())


def _translate(model: DescribedModel, target: ExportTarget, stages: Stages) -> onnx.ModelProto:
    """Module → ONNX → onnxsim → exact passes → checked."""
    with stages("torch export"):
        from densenet_deploy.models.to_onnx import OnnxOptions, onnx_from_module

        size = model.manifest.preprocessing.image_size
        options = OnnxOptions(size, batch=target.batch, opset=target.opset)
        raw = onnx_from_module(model.module, model.variant.spec.output_name, options)
    with stages("simplify"):
        from densenet_deploy.workflows.simplify import simplified

        return simplified(raw, model.variant.artifact_name).model


def _prove(model: DescribedModel, data: bytes, path: Path, *, allow_nonfinite: bool) -> Parity:
    """Run module and file on the same samples; `allow_nonfinite` leaves out where the module gives NaN or Inf.

    Raises:
        GateError: if they differ by more than FP32 rounding explains.
    """
    meter = ParityMeter(class_scores=model.variant.spec.head != "features")
    output = model.variant.spec.output_name
    with tempfile.TemporaryDirectory() as folder, _torch_threads_restored():
        unproved = Path(folder) / "unproved.onnx"
        write_file(unproved, data)
        with (
            open_runner(model.module, None, "cpu", _ALONE) as ours,
            open_runner(unproved, None, "cpu", _ALONE) as theirs,
        ):
            for sample in seeded_samples(PARITY_SAMPLES, model.manifest.preprocessing):
                pair = run_batched(ours, sample)[output], run_batched(theirs, sample)[output]
                meter.update(*(_where_finite(*pair) if allow_nonfinite else pair))
    parity = meter.result()
    failures = failed_gates(parity, DEFAULT_GATES["fp32"])
    if failures:
        raise GateError(path, f"the file does not match the module: {'; '.join(failures)}", "nothing was written")
    return parity


def _where_finite(ours: Array, theirs: Array) -> tuple[Array, Array]:
    """Both with zeros where `ours` is NaN or Inf: backends differ in whether a ReLU lets NaN through."""
    finite = np.isfinite(ours)
    return np.where(finite, ours, 0), np.where(finite, theirs, 0)


@contextlib.contextmanager
def _torch_threads_restored() -> Iterator[None]:
    """PyTorch has one thread count for the whole process, and its runner sets it: give the caller's back."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _tool_versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in _TOOLS}
