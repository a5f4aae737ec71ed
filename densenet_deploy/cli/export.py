"""`export`: build or load a DenseNet and write a verified ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from densenet_deploy.cli import arguments as args
from densenet_deploy.cli.app import Report, command
from densenet_deploy.errors import UsageError
from densenet_deploy.variants import DEFAULT_VARIANT


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
    opset: Annotated[int, typer.Option(help="ONNX operator set, 16 to 23.")] = 20,
    allow_nonfinite: Annotated[bool, typer.Option("--allow-nonfinite", help="Accept NaN and Inf weights.")] = False,
    out: args.Out = None,
    force: args.Force = False,
) -> Report:
    """Build or load a DenseNet and write a verified ONNX file."""
    from densenet_deploy.facts import ModelFacts
    from densenet_deploy.runtime.classifier import read_labels
    from densenet_deploy.workflows.export import ExportOptions, export
    from densenet_deploy.workflows.outputs import default_folder
    from densenet_deploy.workflows.sandbox import UntrustedFile, preflight

    facts = ModelFacts(
        image_size=image_size,
        resize=resize,
        mean=args.triple("--mean", mean),
        std=args.triple("--std", std),
        labels=None if labels is None else read_labels(labels),
    )
    network: dict[str, Any] = {"variant": variant, "num_classes": num_classes, "head": head}
    source = (variant or DEFAULT_VARIANT) if weights == "none" else weights
    preflight(UntrustedFile(Path(source), ()))
    with args.progress() as listener:
        made = export(
            source,
            ExportOptions(_batch(batch), opset),
            out=out or default_folder(source),
            force=force,
            progress=listener,
            architecture=args.architecture(growth_rate, blocks, init_features, compression, bn_size, drop_rate, stem),
            allow_nonfinite=allow_nonfinite,
            **facts.given(),
            **{name: value for name, value in network.items() if value is not None},
        )
    assert made.report is not None
    return made.report


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not (text.isascii() and text.isdecimal()):
        raise UsageError(f"--batch={text}", "is neither dynamic nor a number", "write --batch dynamic or --batch 8")
    return int(text)
