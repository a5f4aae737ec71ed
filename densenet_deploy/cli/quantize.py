"""`quantize`: INT8 for ONNX Runtime, OpenVINO or TensorRT."""

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
        Path, typer.Option(metavar="DIR|FILE.npy|FILE.npz", help="Images, or normalized float32 (N, 3, S, S).")
    ],
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE.toml", help="auto, onnxruntime, openvino, tensorrt, or a recipe file.")
    ] = "auto",
    observer: Annotated[str | None, typer.Option(help="minmax (default), percentile, entropy or mse.")] = None,
    samples: Annotated[int | None, typer.Option(help="Images to calibrate on, at most (default 512).")] = None,
    alpha: Annotated[
        float | None, typer.Option(help="How much of the ranges moves into the weights, 0 to 1 (default 0.5).")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="per-channel (default) or per-tensor scales.")] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Percentage points of top-1 that may be lost on the calibration images.")
    ] = None,
    min_sqnr: Annotated[float | None, typer.Option(metavar="DB", help="SQNR that the logits must reach.")] = None,
    never_slower: Annotated[
        bool | None,
        typer.Option("--never-slower/--no-never-slower", help="Keep INT8 only where it is faster here (default)."),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say why each layer is what it is.")] = False,
    out: args.Out = None,
    force: args.Force = False,
) -> Report:
    """Calibrate, equalize and write INT8 for one backend."""
    from densenet_deploy.quantize.cache import CalibrationCache
    from densenet_deploy.workflows.outputs import default_folder
    from densenet_deploy.workflows.quantize.preparation import chosen_recipe
    from densenet_deploy.workflows.quantize.quantize import quantize
    from densenet_deploy.workflows.quantize.recipe_file import options_of
    from densenet_deploy.workflows.sandbox import Loader, UntrustedFile, preflight

    named = {
        "observer": observer,
        "samples": samples,
        "alpha": alpha,
        "weights": weights,
        "max_drop": max_drop,
        "min_sqnr": min_sqnr,
        "never_slower": never_slower,
    }
    given = {name: value for name, value in named.items() if value is not None}
    options = options_of(recipe, given)
    graph = UntrustedFile(model, (Loader.GRAPH, Loader.SESSION))
    preflight(graph, UntrustedFile(model, (Loader.SESSION,), chosen_recipe(options.recipe)))
    with args.progress() as listener:
        made = quantize(
            model,
            calibration,
            options,
            out=out or default_folder(model),
            force=force,
            explain=explain,
            cache=CalibrationCache(),
            progress=listener,
        )
    assert made.report is not None
    return made.report
