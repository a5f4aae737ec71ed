"""`cast`: FP16 or BF16 in the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densenet_deploy.cli import arguments as args
from densenet_deploy.cli.app import Report, command
from densenet_deploy.errors import UsageError


@command("cast")
def cast_command(
    model: Annotated[Path, typer.Argument(metavar="A.onnx", help="A float32 ONNX file.")],
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16.")] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="DIR|FILE.npy|FILE.npz", help="Images: what overflows FP16 on them stays FP32."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Images to calibrate on, at most.")] = 512,
    gate: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A limit such as cosine=0.9999; repeatable.")
    ] = None,
    out: args.Out = None,
    force: args.Force = False,
) -> Report:
    """Write FP16 or BF16 into the graph; what does not fit stays FP32."""
    from densenet_deploy.parity.gates import parse_gate
    from densenet_deploy.quantize.cache import CalibrationCache
    from densenet_deploy.workflows.cast import CastOptions, cast
    from densenet_deploy.workflows.outputs import default_folder
    from densenet_deploy.workflows.sandbox import Loader, UntrustedFile, preflight

    if fp16 == bf16:
        why = "were given both" if fp16 else "were not given"
        raise UsageError("--fp16 and --bf16", why, "give one of them")
    gates = tuple(map(parse_gate, gate)) if gate else None
    options = CastOptions("fp16" if fp16 else "bf16", samples, gates=gates)
    preflight(UntrustedFile(model, (Loader.GRAPH, Loader.SESSION)))
    with args.progress() as listener:
        made = cast(
            model,
            options,
            calibration=calibration,
            out=out or default_folder(model),
            force=force,
            cache=CalibrationCache(),
            progress=listener,
        )
    assert made.report is not None
    return made.report
