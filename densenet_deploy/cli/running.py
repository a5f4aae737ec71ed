"""The command that runs a model: `run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densenet_deploy.cli.app import Work, command
from densenet_deploy.cli.options import Reads, RunnerChoice
from densenet_deploy.options import require_range


@command(
    "run",
    examples=(
        "densenet-deploy run model.onnx cat.jpg dog.jpg",
        "densenet-deploy run model.int8.onnx cat.jpg --backend openvino --top-k 1 --json",
    ),
)
def run_command(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="An .onnx, .xml, .engine, .pth or .safetensors file."),
        Reads("session", backends=lambda a: (a.running.backend,)),
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files."), Reads()],
    top_k: Annotated[int, typer.Option(help="Classes to print per image.")] = 5,
    *,
    running: RunnerChoice,
) -> Work:
    """Classify images with any model."""
    from densenet_deploy.workflows.classify import classify_files

    require_range("top-k", top_k, 1, 1_000_000)
    options = running.options()
    return lambda _listener: classify_files(
        model, images, top_k=top_k, backend=running.backend, device=running.device, options=options
    )
