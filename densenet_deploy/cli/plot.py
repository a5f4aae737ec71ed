"""`plot`: figures of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densenet_deploy.cli import arguments as args
from densenet_deploy.cli.app import Report, command


@command("plot")
def plot_command(
    name: Annotated[str, typer.Argument(metavar="PLOT", help="reuse, connections, growth, cost, sqnr or pareto.")],
    models: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[MODEL...]", help="A model; JSON reports for pareto and sqnr."),
    ] = None,
    variant: args.Variant = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width of the input in pixels.")] = None,
    batch: Annotated[int, typer.Option(help="Figures at once, for memory.")] = 1,
    growth_rate: args.GrowthRate = None,
    blocks: args.Blocks = None,
    init_features: args.InitFeatures = None,
    compression: args.Compression = None,
    bn_size: args.BnSize = None,
    drop_rate: args.DropRate = None,
    stem: args.Stem = None,
    out: args.Out = None,
    force: args.Force = False,
) -> Report:
    """Draw a figure of a model as PNG or SVG."""
    from densenet_deploy.workflows.plot.data import PlotRequest
    from densenet_deploy.workflows.plot.plot import plot
    from densenet_deploy.workflows.sandbox import Loader, UntrustedFile, preflight

    changes = args.architecture(growth_rate, blocks, init_features, compression, bn_size, drop_rate, stem)
    preflight(*(UntrustedFile(path, (Loader.GRAPH, Loader.SESSION)) for path in models or ()))
    return plot(name, PlotRequest(tuple(models or ()), variant, changes, image_size, batch), out, force=force)
