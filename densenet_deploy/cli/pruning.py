"""The command that makes a network smaller: `prune`."""

from __future__ import annotations

from typing import Annotated

import typer

from densenet_deploy.cli.app import Work, command, made
from densenet_deploy.cli.options import (
    Calibration,
    MaxDrop,
    MinSqnr,
    Output,
    Reads,
    Samples,
    Writes,
    model_argument,
    option,
)
from densenet_deploy.facts import ModelFacts


@command(
    "prune",
    examples=(
        "densenet-deploy prune chest.pth --calibration images/ --ratio 0.25",
        "densenet-deploy prune chest.pth --calibration images/ --min-sqnr 30 -o chest.small.safetensors",
        "densenet-deploy prune model.onnx --calibration val/ --max-drop 0.5",
    ),
)
def prune_command(
    model: Annotated[
        str,
        model_argument("MODEL", "An FP32 ONNX file, or whatever export takes, which is exported first."),
        Reads("graph", "session"),
    ],
    calibration: Calibration,
    ratio: Annotated[
        float | None, typer.Option(help="Share of the channels of every bottleneck to remove (default: not given).")
    ] = None,
    widths: Annotated[
        str | None,
        option(
            "NAME",
            "With --ratio: uniform, or per-layer, which removes as many multiply-accumulates where they cost least "
            "(default: uniform).",
            "uniform per-layer",
        ),
    ] = None,
    max_drop: MaxDrop = None,
    min_sqnr: MinSqnr = None,
    samples: Samples = 256,
    finetune: Annotated[
        bool,
        typer.Option(
            "--finetune/--no-finetune",
            help="Train the result for the original's outputs on the same images, without labels.",
        ),
    ] = False,
    finetune_seconds: Annotated[
        float, option("SECONDS", "Longest time to fine-tune; it takes fewer steps then.")
    ] = 300.0,
    finetune_seed: Annotated[int, typer.Option(help="Of what fine-tuning draws.")] = 0,
    *,
    facts: ModelFacts,
    output: Annotated[
        Output, Writes("FILE|DIR", "MODEL.pruned.onnx beside a MODEL file", suffixes=(".onnx", ".safetensors"))
    ],
) -> Work:
    """Remove bottleneck channels of a DenseNet and refit the rest."""
    from densenet_deploy.workflows.prune.options import PruneOptions
    from densenet_deploy.workflows.prune.prune import prune

    options = PruneOptions(ratio, max_drop, min_sqnr, widths, samples, finetune, finetune_seconds, finetune_seed)
    return lambda listener: made(
        prune(model, calibration, options, progress=listener, **output.beside(model), **facts.given())
    )
