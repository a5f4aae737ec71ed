"""Commands that look at models and machines: `inspect`, `plot`, `report`, `doctor`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from densenet_deploy.cli.app import Work, command, with_facts
from densenet_deploy.cli.options import PLOT, VARIANT, VARIANT_HELP, Output, RunnerChoice, model_argument
from densenet_deploy.cli.parameters import Only, Reads, Writes, argument, flag, option
from densenet_deploy.errors import UsageError
from densenet_deploy.facts import Architecture, ModelFacts

if TYPE_CHECKING:
    from densenet_deploy.variants.spec import DenseNetSpec
    from densenet_deploy.workflows.inspect.inspect import InspectOptions

_VARIANT = option("NAME", f"{VARIANT_HELP} (default: none).", **VARIANT)
FIGURES = (".png", ".jpg", ".jpeg", ".svg")


@command(
    "inspect",
    examples=(
        "densenet-deploy inspect model.onnx --profile",
        "densenet-deploy inspect --variant 121 --image-size 320 --training --batch 32",
        "densenet-deploy inspect --variant 121 --sweep growth-rate=12,24,32",
    ),
)
def inspect_command(
    model: str | None = model_argument(
        "[MODEL]",
        "A model file or name; or give --variant.",
        default=None,
        reads=Reads("graph", more=lambda a: ("session",) if a.profile else (), backends=lambda a: (a.running.backend,)),
    ),
    variant: str | None = _VARIANT,
    batch: int = option("N", "Images per inference, for memory, profile and latency.", default=1),
    precision: str | None = option(
        "NAME", "Activations: fp32, fp16, bf16 or int8 (default: the model's).", "fp32 fp16 bf16 int8"
    ),
    training: bool = flag("--training", "Peak memory of a training step, forward and backward."),
    profile: bool = flag("--profile", "Run the model and report the time by operator and block."),
    sweep: str | None = option(
        "NAME=A,B,...",
        "Vary growth-rate, compression, bn-size, init-features, depth (a factor) or variant (default: none).",
        "growth-rate= compression= bn-size= init-features= depth= variant=",
    ),
    measure: bool = flag("--measure/--no-measure", "--sweep: measure latency.", default=True),
    *,
    facts: ModelFacts,
    architecture: Architecture,
    running: Annotated[RunnerChoice, Only("backend", "device", "threads")],
) -> Work:
    """Count parameters, MACs and memory; profile operators."""
    from densenet_deploy.variants import variant_with
    from densenet_deploy.workflows.inspect.inspect import InspectOptions, inspect, inspect_variant
    from densenet_deploy.workflows.inspect.operator_profile import ProfileOptions

    profiling = ProfileOptions(running.backend, running.device, running.threads) if profile else None
    options = InspectOptions(facts.image_size, batch, precision, training, profiling)
    others = dataclasses.replace(facts, image_size=None)
    named = (*(() if variant is None else ("--variant",)), *architecture.options())
    if model is not None and named:
        raise UsageError("inspect", f"was given both a MODEL and {named[0]}", "give one of them")
    if model is None and (about_model := dataclasses.replace(others, channels=None)).given():
        raise UsageError(_first_option(about_model), "applies to a MODEL", "remove it, or give a MODEL")
    if sweep is not None:
        if model is not None:
            raise UsageError("--sweep", "changes an architecture, not a file", "give --variant in place of the MODEL")
        base = variant_with(variant, architecture.changes(), facts.channels).spec
        return _sweep(sweep, base, options, running.threads, measure=measure)
    if model is not None:
        if Path(model).suffix.lower() == ".engine":
            return _engine(model, options, others)
        return lambda _listener: inspect(with_facts(model, others), options)
    if variant is None and not architecture.changes():
        raise UsageError("inspect", "has nothing to inspect", "give a MODEL or --variant")
    return lambda _listener: inspect_variant(variant, architecture, options, facts.channels)


def _first_option(facts: ModelFacts) -> str:
    return f"--{next(iter(facts.given())).replace('_', '-')}"


def _engine(model: str, options: InspectOptions, facts: ModelFacts) -> Work:
    from densenet_deploy.workflows.inspect.engine import inspect_engine

    if facts.given():
        raise UsageError(_first_option(facts), "an engine has its own facts", "remove it")
    if options.image_size is not None:
        raise UsageError(f"image-size={options.image_size}", "an engine takes images of one size", "remove it")
    if options.precision is not None:
        raise UsageError(f"precision={options.precision}", "an engine has its own precision", "remove it")
    if options.training or options.profile is not None:
        fix = "use them on the ONNX file that it was built from"
        raise UsageError(model, "--training and --profile do not apply to an engine", fix)
    return lambda _listener: inspect_engine(Path(model), options.batch)


def _sweep(text: str, base: DenseNetSpec, options: InspectOptions, threads: int | None, *, measure: bool) -> Work:
    from densenet_deploy.variants.sweep import Sweep
    from densenet_deploy.workflows.inspect.sweep import SweepOptions, run_sweep

    if options.training or options.profile is not None:
        fix = "use them on one network"
        raise UsageError("--sweep", "can't be combined with --training or --profile", fix)
    sweep = Sweep.parse(text)
    sweep_options = SweepOptions(options.image_size, options.batch, measure, threads=threads)
    return lambda _listener: run_sweep(sweep, base, sweep_options)


@command(
    "plot",
    examples=(
        "densenet-deploy plot cost --variant 121",
        "densenet-deploy plot reuse model.onnx -o reuse.svg",
        "densenet-deploy plot pareto benchmark.json",
    ),
)
def plot_command(
    name: str = argument("PLOT", "reuse, connections, growth, cost, sqnr, pareto or training.", **PLOT),
    models: list[Path] | None = argument(
        "[MODEL...]",
        "A model, JSON reports for pareto and sqnr, metrics.jsonl for training.",
        default=None,
        reads=Reads("graph", "session"),
    ),
    variant: str | None = _VARIANT,
    batch: int = option("N", "Images per inference, for memory.", default=1),
    *,
    facts: Annotated[ModelFacts, Only("image_size")],
    architecture: Architecture,
    output: Annotated[
        Output, Writes("FILE.png|FILE.jpg|FILE.svg|DIR", "artifacts/MODEL.PLOT.png", FIGURES, is_strict=True)
    ],
) -> Work:
    """Draw a figure of a model as PNG, JPEG or SVG."""
    from densenet_deploy.workflows.plot import PlotRequest, plot

    request = PlotRequest(tuple(models or ()), variant, architecture, facts.image_size, batch)
    return lambda _listener: plot(name, request, output.out, force=output.force)


def _json_of(name: str) -> Any:
    return option("FILE.json", f"JSON output of {name}; repeatable (default: none).", reads=Reads())


@command(
    "report",
    examples=(
        "densenet-deploy report model.onnx model.int8.onnx --benchmark benchmark.json --evaluate evaluate.json",
        "densenet-deploy report model.onnx --tune tune.json -o report.html",
        "densenet-deploy report model.onnx --tune today.json --against last-week.html -o today.html",
    ),
)
def report_command(
    models: list[Path] = argument("MODEL...", "Model files and checkpoints.", reads=Reads("graph", "session")),
    tune: list[Path] | None = _json_of("tune"),
    benchmark: list[Path] | None = _json_of("benchmark"),
    evaluate: list[Path] | None = _json_of("evaluate"),
    validate: list[Path] | None = _json_of("validate"),
    sensitivity: list[Path] | None = _json_of("sensitivity"),
    quantize: list[Path] | None = _json_of("quantize"),
    max_drop: float = option(
        "POINTS",
        "Largest loss of top-1 or AUROC of the chosen model, in percentage points, without --tune.",
        default=1.0,
    ),
    against: Path | None = option(
        "FILE.html|FILE.json",
        "An earlier page, or JSON output of tune, to compare side by side (default: none).",
        reads=Reads(),
    ),
    *,
    output: Annotated[Output, Writes("FILE.html|DIR", "artifacts/MODEL.report.html", (".html",))],
) -> Work:
    """Write an HTML page: which model to ship, and why."""
    from densenet_deploy.workflows.report import report

    return lambda listener: report(
        models,
        tune=tune or (),
        benchmark=benchmark or (),
        evaluate=evaluate or (),
        validate=validate or (),
        sensitivity=sensitivity or (),
        quantize=quantize or (),
        max_drop=max_drop,
        against=against,
        out=output.out,
        force=output.force,
        progress=listener,
    )


@command("doctor", examples=("densenet-deploy doctor",))
def doctor_command() -> Work:
    """List the backends and devices that work here."""
    from densenet_deploy.workflows.doctor import diagnose

    return lambda _listener: diagnose()
