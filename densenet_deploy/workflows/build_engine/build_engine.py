"""Build an engine: (export →) precision in the graph → plan → what runs, read back → plan and sidecar.

The process that builds is started first and imports TensorRT while the graph is made. Nothing is written as an engine
that was not read back; the ONNX file with the precision inside stays beside it, also where the build fails.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from densenet_deploy.artifacts import Artifact, os_errors_about, require_room, sha256_of, written_beside
from densenet_deploy.engines.builder import Builder, BuildResult, Toolchain
from densenet_deploy.engines.options import BuildOptions, equivalent_command
from densenet_deploy.engines.precision import EnginePrecision, require_precision
from densenet_deploy.errors import DensenetDeployError, OutputExistsError, printable
from densenet_deploy.manifest import Manifest, Scalar
from densenet_deploy.records import to_plain
from densenet_deploy.runtime.engine_files import Plan, place_engine, read_plan
from densenet_deploy.runtime.sidecar import Sidecar, platform_word, read_records, sidecar_path
from densenet_deploy.workflows.build_engine.graph import (
    Graph,
    Places,
    Wanted,
    calibration_data,
    export_source,
    graph_of,
    source_of,
)
from densenet_deploy.workflows.build_engine.proof import proof_of
from densenet_deploy.workflows.notes import untrained_note
from densenet_deploy.workflows.stages import Listener, Stages, ignore

if TYPE_CHECKING:
    from densenet_deploy.parity.compare import Parity
    from densenet_deploy.quantize.cache import CalibrationCache


@dataclass(frozen=True)
class EngineReport:
    """An engine: where it and its sidecar are, what it was built from and for, and what runs in which precision.

    `parity` is the graph's with the float file; None where the file was built as it is. `stages` is empty of an engine
    that was up to date.
    """

    engine: Path
    onnx: Path | None
    sidecar: Sidecar
    proof: EnginePrecision
    parity: Parity | None
    stages: Mapping[str, float]
    notes: tuple[str, ...]
    up_to_date: bool = False

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types."""
        facts = self.sidecar
        return {
            "engine": str(self.engine),
            "sidecar": str(sidecar_path(self.engine)),
            "onnx": None if self.onnx is None else str(self.onnx),
            "flavour": facts.flavour,
            "version": facts.version,
            "precision": facts.precision,
            "runs": to_plain(self.proof.summary()),
            "parity": None if self.parity is None else self.parity.to_json(),
            "profiles": [[batches.min, batches.opt, batches.max] for batches in facts.profiles],
            "targets": list(facts.targets),
            "bytes": facts.size,
            "sha256": facts.sha256,
            "up_to_date": self.up_to_date,
            "seconds": sum(self.stages.values()),
            "stages": dict(self.stages),
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return lines for people."""
        facts = self.sidecar
        batches = ", ".join(f"{b.min}-{b.max}" if b.min < b.max else str(b.max) for b in facts.profiles)
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.stages.items())
        lines = [
            f"{'up to date' if self.up_to_date else 'wrote':11} {printable(self.engine)}, {facts.size / 2**20:.1f} MiB",
            f"sidecar     {printable(sidecar_path(self.engine))}",
            f"flavour     {facts.flavour} {facts.version}, for {', '.join(facts.targets)}, batch {batches}",
            f"asked       {facts.precision}",
            f"runs        convolutions: {self.proof.summary()}",
        ]
        if self.onnx is not None:
            lines.append(f"built from  {printable(self.onnx)}")
        if self.parity is not None:
            lines.append(f"parity      {self.parity}")
        return "\n".join([*lines, f"seconds     {sum(self.stages.values()):.1f} ({stages})"] if stages else lines)


@dataclass(frozen=True)
class DryRunReport:
    """What would be built, and the line of NVIDIA's tool that builds the same from the ONNX file."""

    engine: Path
    onnx: Path
    options: BuildOptions
    command: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types."""
        return {
            "engine": str(self.engine),
            "sidecar": str(sidecar_path(self.engine)),
            "onnx": str(self.onnx),
            "flavour": self.options.flavour,
            "precision": self.options.precision,
            "command": self.command,
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return the command."""
        return self.command


def build_engine(
    wanted: Wanted,
    options: BuildOptions,
    *,
    builder: Builder | None = None,
    cache: CalibrationCache | None = None,
    listener: Listener = ignore,
) -> EngineReport:
    """Build an engine, or find that the one that is there was built from the same.

    Args:
        wanted: what to build an engine of.
        options: how.
        builder: one that was started with `options` before; None starts one.
        cache: of calibrations.
        listener: told of every stage.

    Raises:
        UsageError: if an option cannot be meant, or is not for this graph.
        InputError: if a file cannot be used, or something else stands where one should go.
        GateError: if the graph computes something else, or the engine runs in another precision than was asked for.
        BackendError: if this TensorRT, or this machine, cannot do what was asked.
        ResourceError: if memory or disk are too small; the ONNX file is kept.
    """
    places, stages = Places.of(wanted), Stages(listener)
    notes: tuple[str, ...] = ()
    with builder or Builder(options) as builder:
        with stages("start"):
            source = source_of(wanted, places)  # while TensorRT is imported
            digest = None if source is None else sha256_of(source.path)
            toolchain = builder.toolchain()
        if source is None or digest is None:
            with stages("export"):
                source, notes = export_source(wanted, places)
                digest = sha256_of(source.path)
        key = _build_key(source, digest, wanted, options, toolchain)
        known = None if wanted.force else _up_to_date(places.engine, key)
        if known is not None:
            return _found_report(known, source)
        _refuse_stranger(places.engine, source.manifest, force=wanted.force)
        require_room(places.engine, source.path.stat().st_size)
        with stages("graph"):
            graph = graph_of(source, wanted, places, cache)
        with written_beside(places.engine) as temporary:
            with stages("build"):
                result = builder.build(graph.path, temporary)
            said = require_precision(places.engine, options.precision, result.asked, result.precision)
            with stages("write"):
                made_from = digest if graph.path == source.path else sha256_of(graph.path)
                sidecar = _sidecar(graph, made_from, result, options, toolchain, key)
                place_engine(temporary, places.engine, sidecar)
    notes = (*notes, *graph.notes, *result.notes, *said, *_option_notes(options), *untrained_note(graph.manifest))
    return EngineReport(
        places.engine, graph.path, sidecar, result.precision, graph.parity, stages.seconds, tuple(dict.fromkeys(notes))
    )


def dry_run(wanted: Wanted, options: BuildOptions) -> DryRunReport:
    """Say what `build_engine` would build, and how NVIDIA's own tool would. Nothing is written or started.

    Raises:
        UsageError: if an option cannot be meant.
        InputError: if the file cannot be used.
    """
    places = Places.of(wanted)
    source = source_of(wanted, places)
    ready = source is not None and source.precision == wanted.precision
    onnx = source.path if source is not None and ready else places.onnx
    name, sizes, batch = _input_of(source, wanted)
    command = equivalent_command(options, onnx, places.engine, name, sizes, batch)
    note = f"{printable(onnx)} is what build-trt writes first; without --dry-run it does"
    return DryRunReport(places.engine, onnx, options, command, () if ready else (note,))


def _input_of(source: Artifact | None, wanted: Wanted) -> tuple[str, tuple[int, ...], int | None]:
    """Name, sizes without the batch, and fixed batch of the input."""
    from densenet_deploy.variants import find_variant

    if source is None and wanted.model is None:
        size = find_variant(wanted.variant or "121").preprocessing.image_size
        return "input", (3, size, size), None
    if source is None:
        from densenet_deploy.workflows.load import load, preprocessing_of

        size = preprocessing_of(load(wanted.model)).image_size
        return "input", (3, size, size), None
    if source.manifest is not None:
        size = source.manifest.preprocessing.image_size
        return "input", (3, size, size), source.manifest.batch
    from densenet_deploy.graph.onnx_file import image_size_of, load_onnx

    model = load_onnx(source.path)
    size, given = image_size_of(model, source.path), model.graph.input[0]
    return given.name, (3, size, size), given.type.tensor_type.shape.dim[0].dim_value or None


def _build_key(source: Artifact, digest: str, wanted: Wanted, options: BuildOptions, toolchain: Toolchain) -> str:
    """Return a hash over everything that decides what the engine is."""
    data = calibration_data(source, wanted)
    facts = {
        "source": digest,
        "options": to_plain(options),
        "version": toolchain.version,
        "gpu": [toolchain.gpu, toolchain.compute_capability],
        "calibration": None if data is None else data.digests(),
        "quantization": None if wanted.precision != "int8" else repr(wanted.quantization),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _up_to_date(engine: Path, key: str) -> Plan | None:
    """The engine that is there, if it is whole and was built from the same."""
    try:
        plan = read_plan(engine)
    except DensenetDeployError:
        return None
    return plan if plan.sidecar is not None and plan.sidecar.build_key == key else None


def _found_report(plan: Plan, source: Artifact) -> EngineReport:
    assert plan.sidecar is not None
    found = "up to date: built from the same inputs before; --force builds it again"
    notes = (found, *untrained_note(source.manifest))
    return EngineReport(plan.path, None, plan.sidecar, proof_of(plan), None, {}, notes, up_to_date=True)


def _refuse_stranger(engine: Path, manifest: Manifest | None, *, force: bool) -> None:
    """Check that the engine's place is free, or holds an engine of the same model, or may be replaced.

    Raises:
        OutputExistsError: if something else stands there.
    """
    with os_errors_about(engine):
        if engine.is_dir():
            raise OutputExistsError(engine, "is a folder", "name a file with -o")
        if force or not engine.exists():
            return
    try:
        records = read_records(engine) or {}
    except DensenetDeployError:
        records = {}  # a sidecar that cannot be read says nothing
    if manifest is not None and any(_same_model(record.manifest, manifest) for record in records.values()):
        return
    raise OutputExistsError(
        engine, "exists and is no engine of this model", "choose another -o, or replace it with --force"
    )


def _same_model(there: Manifest | None, ours: Manifest) -> bool:
    """Whether both are of one model, in whatever precision and batch."""
    return there is not None and (there.variant, there.weights, there.labels) == (
        ours.variant,
        ours.weights,
        ours.labels,
    )


def _sidecar(
    graph: Graph, made_from: str, result: BuildResult, options: BuildOptions, toolchain: Toolchain, key: str
) -> Sidecar:
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
        options=_choices(options),
        manifest=graph.manifest,
        build_key=key,
        convolutions={conv.name: conv.precision for conv in result.precision.convolutions},
    )


def _choices(options: BuildOptions) -> dict[str, Scalar]:
    """The options that the sidecar has no field for."""
    facts = to_plain(options)
    return {name: value for name, value in facts.items() if value is None or isinstance(value, (str, int, bool))}


def _option_notes(options: BuildOptions) -> tuple[str, ...]:
    ignored = {"--optimization-level": options.optimization_level, "--aux-streams": options.aux_streams}
    if options.flavour != "rtx":
        return ()
    return tuple(
        f"{name}: TensorRT-RTX takes it, and no effect was seen" for name, v in ignored.items() if v is not None
    )
