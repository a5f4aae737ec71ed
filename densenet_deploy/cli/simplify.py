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
    from densenet_deploy.workflows.examination import Given, Reader, examine
    from densenet_deploy.workflows.simplify import simplify

    examine(Given(model, (Reader.GRAPH, Reader.SIMPLIFIER, Reader.SESSION)))
    return simplify(model, out, force=force)
