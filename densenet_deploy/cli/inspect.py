"""`inspect`: parameters, MACs and activation memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densenet_deploy.cli import arguments as args
from densenet_deploy.cli.app import Report, command
from densenet_deploy.errors import UsageError


@command("inspect")
def inspect_command(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="[MODEL]", help="An .onnx, .engine, .pth or .safetensors file, or --variant."),
    ] = None,
    variant: args.Variant = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width of the input in pixels.")] = None,
    batch: Annotated[int, typer.Option(help="Pictures at once, for the activation memory.")] = 1,
    growth_rate: args.GrowthRate = None,
    blocks: args.Blocks = None,
    init_features: args.InitFeatures = None,
    compression: args.Compression = None,
    bn_size: args.BnSize = None,
    drop_rate: args.DropRate = None,
    stem: args.Stem = None,
) -> Report:
    """Count parameters, multiply-accumulates and activation memory by block."""
    from densenet_deploy.pipeline.inspect import inspect_file, inspect_variant

    changes = args.architecture(growth_rate, blocks, init_features, compression, bn_size, drop_rate, stem)
    if model is None:
        if variant is None and not changes.changes():
            raise UsageError("inspect", "has nothing to inspect", "give a MODEL or --variant")
        return inspect_variant(variant, changes, image_size, batch)
    if variant is not None or changes.changes():
        raise UsageError("inspect", "was given both a MODEL and a variant", "give one of them")
    if model.suffix.lower() == ".engine":
        from densenet_deploy.pipeline.inspect_engine import inspect_engine

        if image_size is not None:
            raise UsageError(f"image-size={image_size}", "an engine takes pictures of one size", "leave it out")
        return inspect_engine(model, batch)
    return inspect_file(model, image_size, batch)
