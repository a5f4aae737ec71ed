"""`sensitivity`: what each layer or block costs in INT8."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densenet_deploy.cli import arguments as args
from densenet_deploy.cli.app import Report, command


@command("sensitivity")
def sensitivity_command(
    model: Annotated[Path, typer.Argument(metavar="A.onnx", help="A float32 ONNX file.")],
    calibration: Annotated[
        Path, typer.Option(metavar="DIR|FILE.npy|FILE.npz", help="Images, or normalized float32 (N, 3, S, S).")
    ],
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE.toml", help="auto, onnxruntime, openvino, tensorrt, or a recipe file.")
    ] = "auto",
    per: Annotated[str, typer.Option(help="layer or block.")] = "block",
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="One folder a class: measure top-1 on it as well.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Images to calibrate on, at most (default 512).")] = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="FILE.json|FILE.png|FILE.svg", help="Where to write.")
    ] = None,
    force: args.Force = False,
) -> Report:
    """Measure what each layer or block costs when only it is INT8, and when only it is float."""
    from densenet_deploy.quantize.cache import CalibrationCache
    from densenet_deploy.workflows.quantize.preparation import chosen_recipe
    from densenet_deploy.workflows.quantize.recipe_file import options_of
    from densenet_deploy.workflows.sandbox import Loader, UntrustedFile, preflight
    from densenet_deploy.workflows.sensitivity import SensitivityOptions, sensitivity

    given = {"samples": samples} if samples is not None else {}
    options = SensitivityOptions(per, data, options_of(recipe, given))
    graph = UntrustedFile(model, (Loader.GRAPH, Loader.SESSION))
    preflight(graph, UntrustedFile(model, (Loader.SESSION,), chosen_recipe(options.quantization.recipe)))
    with args.progress() as listener:
        return sensitivity(
            model, calibration, options, out=out, force=force, cache=CalibrationCache(), progress=listener
        )
