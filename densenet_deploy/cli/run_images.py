"""`run`: classify images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densenet_deploy.cli import arguments as args
from densenet_deploy.cli.app import Report, command


@command("run")
def run_command(
    model: args.Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    backend: args.Backend = "auto",
    device: args.Device = "auto",
    top_k: Annotated[int, typer.Option(help="Classes to name.")] = 5,
    threads: args.Threads = None,
    trust_engine: args.TrustEngine = False,
) -> Report:
    """Classify images with any model."""
    from densenet_deploy.runtime.runner import RunnerOptions
    from densenet_deploy.workflows.classify import classify_files
    from densenet_deploy.workflows.sandbox import Loader, UntrustedFile, preflight

    options = RunnerOptions(threads=threads, trust_engine=trust_engine)
    preflight(UntrustedFile(model, (Loader.SESSION,), backend))
    return classify_files(model, images, top_k=top_k, backend=backend, device=device, options=options)
