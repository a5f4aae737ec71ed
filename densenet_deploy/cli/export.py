"""`export`: build or load a DenseNet and write a verified ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densenet_deploy.cli import arguments as args
from densenet_deploy.cli.app import Report, command
from densenet_deploy.errors import UsageError


@command("export")
def export_command(
    variant: args.Variant = None,
    weights: Annotated[
        str, typer.Option(metavar="none|imagenet|NAME|FILE", help="Where the weights come from.")
    ] = "none",
    num_classes: Annotated[int | None, typer.Option(help="Classes; by default the checkpoint's, else 1000.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width of the input in pixels.")] = None,
    resize: Annotated[int | None, typer.Option(help="Shorter side before the crop; image size x 256 / 224.")] = None,
    mean: Annotated[str | None, typer.Option(metavar="R G B", help="Subtracted from values in 0..1.")] = None,
    std: Annotated[str | None, typer.Option(metavar="R G B", help="Divided by, after the mean.")] = None,
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="Class names, one a line.")] = None,
    head: Annotated[
        str | None, typer.Option(metavar="classifier|features|multiscale", help="By default the checkpoint's.")
    ] = None,
    growth_rate: args.GrowthRate = None,
    blocks: args.Blocks = None,
    init_features: args.InitFeatures = None,
    compression: args.Compression = None,
    bn_size: args.BnSize = None,
    drop_rate: args.DropRate = None,
    stem: args.Stem = None,
    batch: Annotated[str, typer.Option(metavar="dynamic|N", help="Batch size of the input.")] = "dynamic",
    opset: Annotated[int, typer.Option(help="ONNX operator set, 18 to 23.")] = 20,
    allow_nonfinite: Annotated[bool, typer.Option("--allow-nonfinite", help="Accept NaN and Inf weights.")] = False,
    out: args.Out = None,
    force: args.Force = False,
) -> Report:
    """Build or load a DenseNet and write a verified ONNX file."""
    from densenet_deploy.workflows.export import ExportTarget, export_onnx
    from densenet_deploy.workflows.load import ModelRequest, labels_from
    from densenet_deploy.workflows.sandbox import UntrustedFile, preflight

    request = ModelRequest(
        variant=variant,
        weights=weights,
        num_classes=num_classes,
        head=head,
        architecture=args.architecture(growth_rate, blocks, init_features, compression, bn_size, drop_rate, stem),
        image_size=image_size,
        resize=resize,
        mean=args.triple("--mean", mean),
        std=args.triple("--std", std),
        labels=labels_from(labels),
        allow_nonfinite=allow_nonfinite,
    )
    preflight(UntrustedFile(Path(weights), ()))
    with args.progress() as listener:
        return export_onnx(request, ExportTarget(_batch(batch), opset, out, force), listener)


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not (text.isascii() and text.isdecimal()):
        raise UsageError(f"--batch={text}", "is neither dynamic nor a number", "write --batch dynamic or --batch 8")
    return int(text)
