"""Build an engine: (export →) precision in the graph → engine → what runs, read back → engine and sidecar.

The process that builds is started first and imports TensorRT while the graph is made. An engine is written only after
it was read back. The ONNX file with the precision inside stays beside it, also where the build fails.

A file that already holds the precision is built as it is, and takes no more than a look at its envelope: whatever is
heavy is imported where a graph has to be made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Unpack

from densenet_deploy.artifacts import Artifact, StrPath, os_errors_about, require_room, written_beside
from densenet_deploy.engines.builder import Builder, BuildResult, Toolchain
from densenet_deploy.engines.options import BuildOptions, equivalent_command
from densenet_deploy.engines.precision import PrecisionSummary, precision_of, require_precision
from densenet_deploy.errors import DensenetDeployError, OutputExistsError, printable
from densenet_deploy.manifest import Manifest
from densenet_deploy.model import Model, untrained_note
from densenet_deploy.packages import require_packages
from densenet_deploy.parity.metrics import Parity, worst
from densenet_deploy.records import to_plain
from densenet_deploy.reports import Report, TimedReport, line, mib
from densenet_deploy.runtime.engine_files import Plan, place_engine, read_plan
from densenet_deploy.runtime.sidecar import Sidecar, platform_word, read_records, sidecar_path
from densenet_deploy.workflows.build_request import BuildRequest, graph_source
from densenet_deploy.workflows.stages import Listener, Stages, in_notebook

if TYPE_CHECKING:
    from densenet_deploy.quantization.cache import CalibrationCache
    from densenet_deploy.quantization.calibration_data import CalibrationData
    from densenet_deploy.workflows.load import LoadOptions
    from densenet_deploy.workflows.quantize.options import QuantizeOptions

_SEEDED_SAMPLES: Final = 32
_SEEDED_RANGES: Final = "the ranges are those of seeded inputs: give --calibration for those of images"
_UP_TO_DATE: Final = "up to date: built from the same inputs before; --force builds it again"
_MOST_REASONS: Final = 2


@dataclass(frozen=True, kw_only=True)
class EngineReport(TimedReport):
    """An engine: where it and its sidecar are, what it was built from and for, and what runs in which precision.

    Attributes:
        engine: the engine file.
        sidecar: its sidecar.
        onnx: the file it was built from; None of an engine that was up to date.
        flavour, version: the TensorRT that built it.
        precision: that was asked for.
        runs: what its convolutions run in, read back from the engine.
        outputs: the parity of each output of the graph with the FP32 graph's; empty where the file was built as it is.
        profiles: least, optimal and largest batch of each profile.
        targets: compute capabilities it runs on.
        bytes: size of the engine.
        sha256: of the engine.
        up_to_date: whether it was there, built from the same inputs; `stages` is empty then.
    """

    kind: ClassVar[str] = "build-trt"
    derived: ClassVar[tuple[str, ...]] = ("parity", "seconds")

    engine: Path
    sidecar: Path
    onnx: Path | None
    flavour: str
    version: str
    precision: str
    runs: PrecisionSummary
    outputs: Mapping[str, Parity] = field(default_factory=dict)
    profiles: tuple[tuple[int, int, int], ...]
    targets: tuple[str, ...]
    bytes: int
    sha256: str
    up_to_date: bool = False

    @property
    def parity(self) -> Parity | None:
        """That of the worst output."""
        return worst(self.outputs)[1] if self.outputs else None

    def to_text(self) -> str:
        batches = ", ".join(f"{low}-{high}" if low < high else str(high) for low, _, high in self.profiles)
        lines = [
            line("up to date" if self.up_to_date else "wrote", f"{printable(self.engine)}, {mib(self.bytes)}"),
            line("sidecar", printable(self.sidecar)),
            line("flavour", f"{self.flavour} {self.version}, for {', '.join(self.targets)}, batch {batches}"),
            line("asked", self.precision),
            line("runs", f"convolutions: {self.runs}"),
        ]
        if self.onnx is not None:
            lines.append(line("built from", printable(self.onnx)))
        if self.parity is not None:
            lines.append(line("parity", self.parity))
        return "\n".join([*lines, *self.stage_lines()])


@dataclass(frozen=True, kw_only=True)
class DryRunReport(Report):
    """What would be built, and the command of NVIDIA's tool that builds the same from the ONNX file."""

    kind: ClassVar[str] = "build-trt --dry-run"

    engine: Path
    sidecar: Path
    onnx: Path
    flavour: str
    precision: str
    command: str

    def to_text(self) -> str:
        return self.command


def build_engine(
    source: Any = None,
    options: BuildOptions | None = None,
    *,
    calibration: Any = None,
    quantization: QuantizeOptions | None = None,
    out: StrPath | None = None,
    force: bool = False,
    cache: CalibrationCache | None = None,
    progress: Listener = in_notebook,
    **stated: Unpack[LoadOptions],
) -> Model:
    """Build an engine, or find that the one that is there was built from the same inputs.

    >>> build_engine("digits.onnx", BuildOptions("rtx", "fp16"), force=True).report.runs.convolutions
    {'fp16': 39}

    Args:
        source: whatever `load` takes; a graph that already holds the precision is built as it is. None is DenseNet-121.
        options: see `BuildOptions`; None is FP16 for the best flavour here.
        calibration: for `int8` of an FP32 graph, and for the ranges of `fp16`: a folder of images, an `.npy` or `.npz`
            file, an array, or any iterable of images or batches.
        quantization: how `int8` is written; its recipe is `tensorrt` whatever it says.
        out: an engine file or a folder; None is beside the model file, else `artifacts/`.
        force: replace whatever stands where files go, and build again what is up to date.
        cache: of calibrated ranges.
        progress: is called when a stage begins, and after each of its steps.
        **stated: facts about the source; see `load`.

    Returns:
        The engine, with an `EngineReport`.

    Raises:
        UsageError: if an option is invalid, or not for this graph.
        InputError: if a file cannot be used, or another artifact stands where one should go.
        GateError: if the graph computes something else, or the engine runs in another precision than was asked for.
        BackendError: if this TensorRT, or this machine, cannot do what was asked.
        ResourceError: if memory or disk are too small; the ONNX file is kept.
    """
    others = {"calibration": calibration, "out": out, "force": force}
    request = BuildRequest.of(source, options, quantization, stated, **others)
    return build(request, cache=cache, progress=progress)


def build(request: BuildRequest, *, cache: CalibrationCache | None = None, progress: Listener = in_notebook) -> Model:
    """Do what `build_engine` does, for a request that was checked."""
    stages = Stages(progress)
    with Builder(request.options) as builder:
        with stages("start"):
            model = graph_source(request)  # while TensorRT is imported
            toolchain = builder.toolchain()
        if model is None:
            from densenet_deploy.workflows.export import export

            with stages("export"):
                request = request.named()
                model = export(request.source, out=request.exported, force=request.force, **request.stated)
        digest = _artifact(model).sha256()
        key = _build_key(model, digest, request, toolchain)
        known = None if request.force else _up_to_date(request.engine, key)
        if known is not None:
            return _found(known, model)
        _refuse_foreign(request.engine, model.manifest, force=request.force)
        require_room(request.engine, len(model.to_bytes()) if model.path is None else model.path.stat().st_size)
        with stages("graph"):
            graph = _with_precision(model, request, cache)
        with written_beside(request.engine) as temporary:
            with stages("build"):
                result = builder.build(_artifact(graph).path, temporary)
            remarks = require_precision(request.engine, request.precision, result.asked, result.precision)
            with stages("write"):
                made_from = digest if graph is model else _artifact(graph).sha256()
                sidecar = _sidecar(graph.manifest, made_from, result, request, toolchain, key)
                place_engine(temporary, request.engine, sidecar)
    made = () if graph is model else graph.notes
    notes = (*model.notes, *made, *result.notes, *remarks, *_option_notes(request.options))
    report = EngineReport(
        **_facts(request.engine, sidecar),
        onnx=graph.path,
        runs=result.precision.summary(),
        outputs={} if graph is model else getattr(graph.report, "outputs", {}),
        stages=stages.seconds,
        notes=tuple(dict.fromkeys((*notes, *untrained_note(graph.manifest)))),
    )
    return _engine_model(graph, report)


def dry_run(request: BuildRequest) -> DryRunReport:
    """Return what `build` would build, and the command of NVIDIA's own tool for it. Nothing is written.

    Raises:
        InputError: if the file cannot be used.
        UsageError: if it is FP32, INT8 was asked for, and there is nothing to calibrate with.
    """
    request = request.named()
    model = graph_source(request)
    is_ready = model is not None and model.path is not None and model.precision == request.precision
    written = request.exported if model is None and request.precision == "fp32" else request.onnx
    onnx = model.path if model is not None and model.path is not None and is_ready else written
    name, sizes, batch = _input_of(model, request)
    command = equivalent_command(request.options, onnx, request.engine, name, sizes, batch)
    note = f"{printable(onnx)} is what build-trt writes first; without --dry-run it does"
    return DryRunReport(
        engine=request.engine,
        sidecar=sidecar_path(request.engine),
        onnx=onnx,
        flavour=request.options.flavour,
        precision=request.precision,
        command=command,
        notes=() if is_ready else (note,),
    )


def _input_of(model: Model | None, request: BuildRequest) -> tuple[str, tuple[int, ...], int | None]:
    """Return name, sizes without the batch, and fixed batch of the input."""
    from densenet_deploy.workflows.load import load, preprocessing_of

    if model is None:
        source = request.source
        described = preprocessing_of(source if isinstance(source, Model) else load(source, **request.stated))
        return "input", described.input_shape, None
    if model.manifest is not None:
        return "input", model.manifest.preprocessing.input_shape, model.manifest.batch
    given = model.onnx.graph.input[0]
    return given.name, preprocessing_of(model).input_shape, given.type.tensor_type.shape.dim[0].dim_value or None


def _with_precision(model: Model, request: BuildRequest, cache: CalibrationCache | None) -> Model:
    """Return a model on the disk that holds the precision: `model` itself, or one that is written now."""
    if model.precision == request.precision:
        return model if model.path is not None else _written(model, request)
    require_packages("export", "onnx", "onnxscript")
    if request.precision != "int8":
        return _cast(model, request, cache)
    from densenet_deploy.workflows.quantize.quantize import quantize

    how, calibration = request.quantization, request.require_calibration()
    return quantize(model, calibration, how, out=request.onnx, force=request.force, cache=cache)


def _written(model: Model, request: BuildRequest) -> Model:
    """Write a graph that was in memory."""
    from densenet_deploy.workflows.outputs import Destination

    where = Destination.of(request.onnx, request.onnx.name, model.manifest, force=request.force)
    return where.write(model).replaced(report=None, notes=())


def _cast(model: Model, request: BuildRequest, cache: CalibrationCache | None) -> Model:
    """Write the FP16 or BF16 form; without images, the ranges are those of seeded inputs."""
    from densenet_deploy.workflows.cast import CastOptions, CastReport, cast
    from densenet_deploy.workflows.load import preprocessing_of
    from densenet_deploy.workflows.samples import seeded_samples

    is_seeded = request.calibration is None and request.precision == "fp16"
    plain = dataclasses.replace(preprocessing_of(model), dtype="float32")
    samples = list(seeded_samples(_SEEDED_SAMPLES, plain)) if is_seeded else request.calibration
    options = CastOptions(request.precision, request.samples)
    cache = None if is_seeded else cache
    made = cast(model, options, calibration=samples, out=request.onnx, force=request.force, cache=cache)
    assert isinstance(made.report, CastReport)
    kept = made.report.float_nodes
    reasons = ", ".join(f"{name} ({why})" for name, why in itertools.islice(kept.items(), _MOST_REASONS))
    remarks = (f"{len(kept)} nodes stay in FP32: {reasons}",) if kept else ()
    return made.replaced(notes=(*made.notes, *remarks, *((_SEEDED_RANGES,) if is_seeded else ())))


def _build_key(model: Model, digest: str, request: BuildRequest, toolchain: Toolchain) -> str:
    """Return a hash over everything that decides what the engine is; empty if the calibration data have none."""
    data = _calibration_data(model, request)
    digests = None if data is None else data.digests()
    if data is not None and digests is None:
        return ""
    facts = {
        "source": digest,
        "options": to_plain(request.options),
        "version": toolchain.version,
        "gpu": [toolchain.gpu, toolchain.compute_capability],
        "calibration": digests,
        "quantization": None if request.precision != "int8" else repr(request.quantization),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _calibration_data(model: Model, request: BuildRequest) -> CalibrationData | None:
    if request.calibration is None:
        return None
    from densenet_deploy.quantization.calibration_data import open_calibration_data
    from densenet_deploy.workflows.load import preprocessing_of

    calibration = request.calibration
    source = Path(calibration) if isinstance(calibration, str) else calibration
    return open_calibration_data(source, preprocessing_of(model), request.samples)


def _up_to_date(engine: Path, key: str) -> Plan | None:
    """The engine that is there, if it is whole and was built from the same inputs."""
    try:
        plan = read_plan(engine)
    except DensenetDeployError:
        return None
    return plan if key and plan.sidecar is not None and plan.sidecar.build_key == key else None


def _found(plan: Plan, model: Model) -> Model:
    assert plan.sidecar is not None
    report = EngineReport(
        **_facts(plan.path, plan.sidecar),
        onnx=None,
        runs=precision_of(plan).summary(),
        up_to_date=True,
        notes=(_UP_TO_DATE, *untrained_note(model.manifest)),
    )
    return _engine_model(model.replaced(manifest=plan.sidecar.manifest), report)


def _facts(engine: Path, sidecar: Sidecar) -> dict[str, Any]:
    """What an `EngineReport` repeats from the sidecar."""
    return {
        "engine": engine,
        "sidecar": sidecar_path(engine),
        "flavour": sidecar.flavour,
        "version": sidecar.version,
        "precision": sidecar.precision,
        "profiles": tuple((batches.min, batches.opt, batches.max) for batches in sidecar.profiles),
        "targets": sidecar.targets,
        "bytes": sidecar.size,
        "sha256": sidecar.sha256,
    }


def _engine_model(graph: Model, report: EngineReport) -> Model:
    artifact = Artifact(report.engine, "engine", graph.manifest, report.precision)
    return Model(report.engine.stem, graph.manifest, artifact=artifact, report=report, notes=report.notes)


def _artifact(model: Model) -> Artifact:
    assert model.artifact is not None
    return model.artifact


def _refuse_foreign(engine: Path, manifest: Manifest | None, *, force: bool) -> None:
    """Check that the engine's place is free, or holds an engine of the same model, or may be replaced."""
    with os_errors_about(engine):
        if engine.is_dir():
            raise OutputExistsError(engine, "is a folder", "name a file with -o")
        if force or not engine.exists():
            return
    try:
        records = read_records(engine) or {}
    except DensenetDeployError:
        records = {}  # a sidecar that cannot be read says nothing
    there = [record.manifest for record in records.values() if record.manifest is not None]
    if manifest is not None and any(  # in whatever precision and batch
        (one.variant, one.weights, one.labels) == (manifest.variant, manifest.weights, manifest.labels) for one in there
    ):
        return
    fix = "choose another -o, or replace it with --force"
    raise OutputExistsError(engine, "exists and is not an engine of this model", fix)


def _sidecar(
    manifest: Manifest | None,
    made_from: str,
    result: BuildResult,
    request: BuildRequest,
    toolchain: Toolchain,
    key: str,
) -> Sidecar:
    options = request.options
    on_gpu = () if toolchain.compute_capability is None else (toolchain.compute_capability,)
    return Sidecar(
        sha256=result.sha256,
        size=result.size,
        flavour=options.flavour,
        version=toolchain.version,
        targets=result.targets or on_gpu,
        precision=options.precision,
        onnx_sha256=made_from,
        inputs=result.inputs,
        outputs=result.outputs,
        profiles=result.profiles,
        hardware=options.hardware,
        version_compatible=options.version_compatible,
        gpu=toolchain.gpu,
        platform=platform_word(),
        options={name: value for name, value in to_plain(options).items() if not isinstance(value, (list, dict))},
        manifest=manifest,
        build_key=key,
        convolutions={conv.name: conv.precision for conv in result.precision.convolutions},
    )


def _option_notes(options: BuildOptions) -> tuple[str, ...]:
    if options.flavour != "rtx":
        return ()
    ignored = {"--optimization-level": options.optimization_level, "--aux-streams": options.aux_streams}
    return tuple(
        f"{name}: TensorRT-RTX accepts it, and no effect was seen"
        for name, value in ignored.items()
        if value is not None
    )
