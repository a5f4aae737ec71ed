"""`inspect`: what a model holds, costs and computes in, where its time goes, and what its numbers do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densenet_deploy.cli import arguments as args
from densenet_deploy.cli.app import Report, command
from densenet_deploy.errors import UsageError

if TYPE_CHECKING:
    from densenet_deploy.facts import Architecture
    from densenet_deploy.workflows.inspect.inspect import InspectOptions


@command("inspect")
def inspect_command(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="[MODEL]", help="An .onnx, .engine, .pth or .safetensors file, or --variant."),
    ] = None,
    variant: args.Variant = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width of the input in pixels.")] = None,
    batch: Annotated[int, typer.Option(help="Images at once, for memory, profile and latency.")] = 1,
    precision: Annotated[str | None, typer.Option(help="Of the activations: fp32, fp16, bf16 or int8.")] = None,
    growth_rate: args.GrowthRate = None,
    blocks: args.Blocks = None,
    init_features: args.InitFeatures = None,
    compression: args.Compression = None,
    bn_size: args.BnSize = None,
    drop_rate: args.DropRate = None,
    stem: args.Stem = None,
    training: Annotated[
        bool, typer.Option("--training", help="Peak memory of a training step, forward and backward.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Run it and say where the time goes, by operator and block.")
    ] = False,
    backend: args.Backend = "auto",
    device: args.Device = "auto",
    threads: args.Threads = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=A,B,...", help="growth-rate, compression, bn-size, init-features, depth (factor) or variant."
        ),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure/--no-measure", help="Measure latency in a sweep.")] = True,
) -> Report:
    """Count parameters, MACs and memory by block; profile operators; sweep a number of the architecture."""
    from densenet_deploy.workflows.inspect.inspect import InspectOptions, inspect_file, inspect_variant
    from densenet_deploy.workflows.inspect.operator_profile import ProfileOptions
    from densenet_deploy.workflows.sandbox import Loader, UntrustedFile, preflight

    changes = args.architecture(growth_rate, blocks, init_features, compression, bn_size, drop_rate, stem)
    profile_options = ProfileOptions(backend, device, threads) if profile else None
    options = InspectOptions(image_size, batch, precision, training, profile_options)
    named = (*(() if variant is None else ("--variant",)), *changes.options())
    if model is not None and named:
        raise UsageError("inspect", f"was given both a MODEL and {named[0]}", "give one of them")
    if sweep is not None:
        if model is not None:
            raise UsageError("--sweep", "changes an architecture, not a file", "give --variant in place of the MODEL")
        return _sweep(sweep, variant, changes, options, threads, measure=measure)
    if model is not None:
        preflight(UntrustedFile(model, (Loader.GRAPH, Loader.SESSION) if profile else (Loader.GRAPH,), backend))
        return _engine(model, options) if model.suffix.lower() == ".engine" else inspect_file(model, options)
    if variant is None and not changes.changes():
        raise UsageError("inspect", "has nothing to inspect", "give a MODEL or --variant")
    return inspect_variant(variant, changes, options)


def _engine(model: Path, options: InspectOptions) -> Report:
    from densenet_deploy.workflows.inspect.engine import inspect_engine

    if options.image_size is not None:
        raise UsageError(f"image-size={options.image_size}", "an engine takes images of one size", "leave it out")
    if options.precision is not None:
        raise UsageError(f"precision={options.precision}", "an engine has its precision inside", "leave it out")
    if options.training or options.profile is not None:
        fix = "inspect the ONNX file it was built from with those"
        raise UsageError(model, "an engine goes with neither --training nor --profile", fix)
    return inspect_engine(model, options.batch)


def _sweep(
    text: str,
    variant: str | None,
    changes: Architecture,
    options: InspectOptions,
    threads: int | None,
    *,
    measure: bool,
) -> Report:
    from densenet_deploy.variants import variant_with
    from densenet_deploy.workflows.inspect.sweep import Sweep, SweepOptions, run_sweep

    if options.training or options.profile is not None:
        raise UsageError("--sweep", "goes with neither --training nor --profile", "inspect one network with those")
    base = variant_with(variant, changes.changes()).spec
    sweep_options = SweepOptions(options.image_size, options.batch, measure, threads=threads)
    return run_sweep(Sweep.parse(text), base, sweep_options)
