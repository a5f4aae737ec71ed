"""`simplify`: onnxsim and the exact passes on an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densenet_deploy.cli import arguments as args
from densenet_deploy.cli.app import Report, command


@command("simplify")
def simplify_command(
    model: Annotated[Path, typer.Argument(metavar="A.onnx", help="An ONNX file.")],
    out: args.Out = None,
    force: args.Force = False,
) -> Report:
    """Simplify an ONNX file with onnxsim and exact passes, and say what changed."""
    from densenet_deploy.workflows.outputs import default_folder
    from densenet_deploy.workflows.sandbox import Loader, UntrustedFile, preflight
    from densenet_deploy.workflows.simplify import simplify

    preflight(UntrustedFile(model, (Loader.GRAPH, Loader.SIMPLIFIER, Loader.SESSION)))
    made = simplify(model, out=out or default_folder(model), force=force)
    assert made.report is not None
    return made.report
