"""`quantize`: INT8 for ONNX Runtime or OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densenet_deploy.cli import arguments as args
from densenet_deploy.cli.app import Report, command


@command("quantize")
def quantize_command(
    model: Annotated[Path, typer.Argument(metavar="A.onnx", help="A float32 ONNX file.")],
    calibration: Annotated[
        Path, typer.Option(metavar="DIR|FILE.npy|FILE.npz", help="Pictures, or normalized float32 (N, 3, S, S).")
    ],
    recipe: Annotated[str, typer.Option(help="auto, onnxruntime or openvino.")] = "auto",
    observer: Annotated[str, typer.Option(help="minmax, percentile, entropy or mse.")] = "minmax",
    samples: Annotated[int, typer.Option(help="Pictures to calibrate on, at most.")] = 512,
    alpha: Annotated[float, typer.Option(help="How much of the ranges moves into the weights, 0 to 1.")] = 0.5,
    weights: Annotated[str, typer.Option(help="per-channel or per-tensor scales.")] = "per-channel",
    out: args.Out = None,
    force: args.Force = False,
) -> Report:
    """Calibrate, equalize and write INT8 for one backend."""
    from densenet_deploy.pipeline.quantize import QuantizeOptions, quantize
    from densenet_deploy.quantize.cache import CalibrationCache

    options = QuantizeOptions(recipe=recipe, observer=observer, samples=samples, alpha=alpha, weights=weights)
    with args.progress() as listener:
        return quantize(model, calibration, options, out, force=force, cache=CalibrationCache(), listener=listener)
