"""Export: build or load → ONNX → verification → artifact.

A known DenseNet is written straight from its numbers and weights (`models.lower`); any other module goes through
`torch.export`, onnxsim and the exact passes. Nothing is left under the final name unless the file was run and agrees
with the PyTorch module it came from or, where PyTorch is not installed, with the same network computed by NumPy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Unpack

import numpy as np

from densenet_deploy.artifacts import StrPath
from densenet_deploy.errors import ModelFileError, UsageError
from densenet_deploy.manifest import INPUT_TYPES, THIRD_PARTY, Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.model import InputDescription, Model, untrained_note
from densenet_deploy.options import or_default, require_choice, require_range
from densenet_deploy.packages import installed_versions, is_installed, require_packages
from densenet_deploy.parity.compare import Parity, worst
from densenet_deploy.reports import TimedReport, line, wrote
from densenet_deploy.runtime.runner import backends_reading, first_installed
from densenet_deploy.sources.source import UNVERIFIED
from densenet_deploy.workflows.check import Recording, require_recorded, sized_for
from densenet_deploy.workflows.compare import ParityOfOutputs, numpy_parity, require_parity, seeded_parity
from densenet_deploy.workflows.float_model import input_manifest, normalized_form, pixel_form
from densenet_deploy.workflows.load import LoadOptions, check_names, check_outputs, input_of, load, preprocessing_of
from densenet_deploy.workflows.outputs import Destination
from densenet_deploy.workflows.simplify import PARITY_SAMPLES as ADOPTED_SAMPLES
from densenet_deploy.workflows.simplify import finished, simplified, simplify_graph
from densenet_deploy.workflows.stages import Listener, Stages, in_notebook

if TYPE_CHECKING:
    import onnx

    from densenet_deploy.models.lower import OnnxOptions

EXPORTERS: Final = ("auto", "direct", "torch")
PARITY_SAMPLES: Final = 8
NUMPY_SAMPLES: Final = 2
"""For NumPy, which takes several times as long as PyTorch: one of noise, and one like a natural image."""

_NONFINITE_NOTE: Final = "NaN and Inf weights were accepted: outputs that they reach were not compared"
_TOOLS: Final = ("densenet-deploy", "onnx")
_TOOLS_OF_TORCH: Final = ("torch", "onnxscript", "onnxsim")


@dataclass(frozen=True)
class ExportOptions:
    """How the ONNX file is written.

    >>> ExportOptions(batch=1, input="uint8").opset
    20

    Attributes:
        batch: a fixed batch size; None keeps it dynamic.
        opset: the ONNX operator set.
        check: an `.npz` file with inputs `x` and the original's outputs `y` (or `y0`, `y1`, ...), which the result must
            reproduce.
        exporter: `direct` writes a known DenseNet from its weights, `torch` traces the module; `auto` takes `direct`
            where it can. Of our own modules both write the same graph; of another library's, `torch` keeps the names.
        input: what the graph takes: `float32`, normalized (N, C, H, W), or `uint8`, pixels (N, H, W, C), which its
            first nodes normalize. None: float32, or what an ONNX file takes already.
    """

    batch: int | None = None
    opset: int = 20
    check: StrPath | None = None
    exporter: str = "auto"
    input: str | None = None

    def __post_init__(self) -> None:
        require_range("opset", self.opset, 16, 23)
        require_choice("exporter", self.exporter, EXPORTERS)
        if self.batch is not None:
            require_range("batch", self.batch, 1, 4096)
        if self.input is not None:
            require_choice("input", self.input, INPUT_TYPES)


@dataclass(frozen=True, kw_only=True)
class ExportReport(TimedReport, ParityOfOutputs):
    """A verified ONNX graph: where it is, which weights it holds, and how close it is to the module.

    Attributes:
        onnx: the file; None while the graph is only in memory.
        variant, parameters: the network.
        weights, weights_sha256: their source, and the SHA-256 of their bytes.
        outputs: the parity of each output with that of `reference`.
        reference: what computed the outputs that those of the file were compared with, and on which inputs: the module
            with PyTorch, the same network with NumPy where PyTorch is not installed, the original file of one that was
            adopted.
        input: what the network takes, and which facts were assumed.
        check: the parity of each output with those recorded in the file `check`; None without one.
    """

    kind: ClassVar[str] = "export"
    derived: ClassVar[tuple[str, ...]] = ("parity", "seconds")

    onnx: Path | None
    variant: str
    weights: str
    weights_sha256: str
    parameters: int
    outputs: Mapping[str, Parity]
    reference: str
    input: InputDescription
    check: Mapping[str, Parity] | None = None

    def to_text(self) -> str:
        network = "not a DenseNet of ours" if self.variant == THIRD_PARTY else f"densenet {self.variant}"
        return "\n".join(
            [
                *wrote(self.onnx),
                line("model", f"{network}, {self.parameters:,} parameters"),
                line("weights", self.weights),
                line("input", self.input),
                line("reference", self.reference),
                line("parity", self.parity),
                *((line("check", worst(self.check)[1]),) if self.check else ()),
                *self.stage_lines(),
            ]
        )


def export(
    source: Any = None,
    options: ExportOptions | None = None,
    *,
    out: StrPath | None = None,
    force: bool = False,
    progress: Listener = in_notebook,
    **stated: Unpack[LoadOptions],
) -> Model:
    """Return a network as a verified ONNX model, which is written to `out` if that is given.

    >>> export("densenet_digits.safetensors", out="digits.dynamic.onnx", force=True).path
    PosixPath('digits.dynamic.onnx')

    An ONNX graph is adopted: simplified, given the facts that are stated, and compared with the original.

    Args:
        source: whatever `load` takes.
        options: see `ExportOptions`.
        out: a file, or a folder for `NAME.onnx`; None writes nothing.
        force: replace whatever stands at `out`.
        progress: is called when a stage begins, and after each of its steps.
        **stated: facts about the source; see `load`.

    Raises:
        UsageError: if an option or a name is invalid.
        CheckpointError: if the weights cannot be used.
        OutputExistsError: if another artifact stands where this one should go.
        GateError: if the file does not compute what the module computes; then nothing is written.
        MissingPackageError: if a package is missing.
    """
    options = or_default(options, ExportOptions)
    check_names(source, stated)  # before anything that takes seconds
    recording = Recording.read(options.check) if options.check is not None else None
    require_packages("export", "onnx", *(_TOOLS_OF_TORCH if options.exporter == "torch" else ()))
    first_installed(backends_reading(".onnx"))  # to verify the file with
    stages = Stages(progress)
    with stages("import"):
        import onnx  # noqa: F401 - timed here, so that the later stages show their own work

        if is_installed("torch"):
            import torch  # noqa: F401
    with stages("build"):
        model = load(source, **stated)
    if recording is not None:
        model = sized_for(model, recording)
    task = _Task(stages, options, out, force, recording, stated.get("allow_nonfinite", False))
    if model.is_onnx:
        for name, usual in (("batch", None), ("opset", ExportOptions.opset), ("exporter", "auto")):
            if getattr(options, name) != usual:
                raise UsageError(f"{name}={getattr(options, name)}", "an ONNX file keeps its own", "omit it")
        return _adopted(model, task)
    if model.manifest is None or (model.module is None and model.weights is None):
        raise ModelFileError(model.name, "holds no network that can be exported", "give its weights or its ONNX file")
    return _exported(model, task)


@dataclass(frozen=True)
class _Task:
    """What one call of `export` is asked for."""

    stages: Stages
    options: ExportOptions = field(default_factory=ExportOptions)
    out: StrPath | None = None
    force: bool = False
    recording: Recording | None = None
    allow_nonfinite: bool = False


def as_onnx(source: Any, stages: Stages, **stated: Unpack[LoadOptions]) -> Model:
    """Return the ONNX model that `source` is, or the one that its weights are exported to in memory.

    Raises:
        ModelFileError: if it is an engine or another file without a graph.
        DensenetDeployError: as `load` and `export`.
    """
    with stages("load"):
        model = load(source, **stated)
    if model.is_onnx or (model.module is None and model.weights is None):
        return model
    return _exported(model, _Task(stages))


def _exported(model: Model, task: _Task) -> Model:
    assert model.manifest is not None
    options, stages = task.options, task.stages
    is_direct = _is_direct(model, options)
    tools = installed_versions((*_TOOLS, *(() if is_direct else _TOOLS_OF_TORCH)))
    dtype = options.input or "float32"
    plain = dataclasses.replace(model.manifest, batch=options.batch, opset=options.opset, tools=tools)
    manifest = input_manifest(plain, dtype)
    assert manifest is not None
    parameters = _parameters_of(model)
    destination = Destination.of(task.out, f"{model.name}.onnx", manifest, force=task.force, size_bytes=4 * parameters)
    proto = _lowered(model, options, stages) if is_direct else _traced(model, options, stages)
    with stages("serialize"):
        normalized = Model.from_onnx(model.name, proto, plain, model.module)
        result = pixel_form(normalized) if manifest.preprocessing.takes_pixels else normalized
    check_outputs(result, manifest)
    with stages("parity"):
        outputs, reference = _verified(model, result, allow_nonfinite=task.allow_nonfinite)
        check, remarks = require_recorded(normalized, task.recording) if task.recording is not None else (None, ())
    with stages("write"):
        result = destination.write(result).replaced(weights=model.weights)
    known = (note.replace(UNVERIFIED, "confirmed by --check") if check else note for note in model.notes)
    notes = (*known, *remarks, *untrained_note(manifest), *((_NONFINITE_NOTE,) if task.allow_nonfinite else ()))
    return _reported(result, task, parameters, outputs, reference, check, notes)


def _is_direct(model: Model, options: ExportOptions) -> bool:
    """Whether the file is written from the weights; if PyTorch's exporter writes it, that is installed."""
    is_possible = model.weights is not None and model.spec is not None
    if options.exporter == "direct" and not is_possible:
        why = f"{model.name} is not known to compute what a DenseNet of ours with its weights does"
        raise UsageError("exporter=direct", why, "use torch, or auto")
    if is_possible and options.exporter != "torch":
        return True
    require_packages("export", *_TOOLS_OF_TORCH)
    return False


def _parameters_of(model: Model) -> int:
    """How many numbers training changes: running statistics are not among them."""
    if model.module is not None:
        return sum(parameter.numel() for parameter in model.module.parameters())
    from densenet_deploy.models.operations import parameter_shapes

    assert model.spec is not None
    shapes = parameter_shapes(model.spec).items()
    return sum(math.prod(shape) for name, shape in shapes if name.endswith((".weight", ".bias")))


def _adopted(model: Model, task: _Task) -> Model:
    """Return somebody's ONNX graph simplified, with a manifest that states what is known of it."""
    assert model.artifact is not None
    manifest = model.manifest
    if manifest is None:
        origin = WeightsOrigin(model.artifact.path.name, model.artifact.sha256())
        assumed = input_of(model).assumed
        manifest = Manifest(
            THIRD_PARTY, {}, origin, preprocessing_of(model), precision=model.precision, assumed=assumed
        )
    is_file = (model.artifact.original or model.artifact).data is None
    name = f"{model.name}.exported" if is_file else model.name
    wanted = task.options.input
    if wanted is not None and wanted != manifest.preprocessing.dtype:
        model = model.replaced(manifest=manifest)
        model = normalized_form(model) if wanted == "float32" else pixel_form(model)
        assert model.manifest is not None
        manifest = model.manifest
    size = len(model.to_bytes())
    destination = Destination.of(task.out, f"{name}.onnx", manifest, force=task.force, size_bytes=size)
    with task.stages("simplify and compare"):
        result, report = simplified(model.replaced(manifest=manifest), name)
        check, remarks = None, tuple[str, ...]()
        if task.recording is not None:
            check, remarks = require_recorded(normalized_form(result), task.recording)
    with task.stages("write"):
        result = destination.write(result)
    parameters = sum(int(np.prod(tensor.dims)) for tensor in result.onnx.graph.initializer)
    notes = (*report.notes, *remarks, *untrained_note(manifest))
    reference = f"the original file on {_inputs(ADOPTED_SAMPLES, preprocessing_of(model))}"
    return _reported(result, task, parameters, report.outputs, reference, check, notes)


def _reported(
    model: Model,
    task: _Task,
    parameters: int,
    outputs: Mapping[str, Parity],
    reference: str,
    check: Mapping[str, Parity] | None,
    notes: tuple[str, ...],
) -> Model:
    """Return `model` with its report."""
    assert model.manifest is not None
    report = ExportReport(
        onnx=model.path,
        variant=model.manifest.variant,
        weights=model.manifest.weights.source,
        weights_sha256=model.manifest.weights.sha256,
        parameters=parameters,
        outputs=outputs,
        reference=reference,
        input=input_of(model),
        check=check,
        stages=task.stages.seconds,
        notes=notes,
    )
    return model.replaced(report=report, notes=notes)


def _lowered(model: Model, options: ExportOptions, stages: Stages) -> onnx.ModelProto:
    """Numbers and weights → ONNX → checked."""
    assert model.spec is not None
    assert model.weights is not None
    with stages("lower"):
        from densenet_deploy.models.lower import lowered

        return finished(lowered(model.spec, model.weights, _onnx_options(model, options)), model.name)


def _traced(model: Model, options: ExportOptions, stages: Stages) -> onnx.ModelProto:
    """Module → ONNX → onnxsim → exact passes → checked."""
    assert model.module is not None
    with stages("torch export"):
        from densenet_deploy.models.to_onnx import onnx_from_module

        raw = onnx_from_module(model.module, model.output_names, _onnx_options(model, options))
    with stages("simplify"):
        return simplify_graph(raw, model.name).proto


def _onnx_options(model: Model, options: ExportOptions) -> OnnxOptions:
    from densenet_deploy.models.lower import OnnxOptions

    assert model.manifest is not None
    channels, height, width = model.manifest.preprocessing.shape
    return OnnxOptions((height, width), channels, options.batch, options.opset)


def _verified(model: Model, result: Model, *, allow_nonfinite: bool) -> tuple[dict[str, Parity], str]:
    """Run both, compare every output, and say what the reference was."""
    assert result.manifest is not None
    preprocessing = result.manifest.preprocessing
    if model.module is not None:
        outputs = seeded_parity(model, result, preprocessing, PARITY_SAMPLES, finite_only=allow_nonfinite)
        reference = f"PyTorch on {_inputs(PARITY_SAMPLES, preprocessing)}"
    else:
        outputs = numpy_parity(model, result, preprocessing, NUMPY_SAMPLES, finite_only=allow_nonfinite)
        reference = f"NumPy on {_inputs(NUMPY_SAMPLES, preprocessing)}"
    require_parity(outputs, "fp32", result.name, "the file does not match the module", "nothing was written")
    return outputs, reference


def _inputs(samples: int, preprocessing: Preprocessing) -> str:
    return "x".join(map(str, (samples, *preprocessing.shape)))
