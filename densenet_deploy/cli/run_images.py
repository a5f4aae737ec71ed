"""`run`: classify images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densenet_deploy.cli import arguments as args
from densenet_deploy.cli.app import FailedGate, Report, command


@command("run")
def run_command(
    model: args.Model,
    images: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Images, folders and glob patterns.")],
    backend: args.Backend = "auto",
    device: args.Device = "auto",
    top_k: Annotated[int, typer.Option(help="Classes to name.")] = 5,
    max_bad: Annotated[int, typer.Option(help="How many images may be unreadable (default 0).")] = 0,
    threads: args.Threads = None,
    trust_engine: args.TrustEngine = False,
) -> Report | FailedGate:
    """Classify images with any model."""
    from densenet_deploy.runtime.runner import RunnerOptions
    from densenet_deploy.workflows.predict import predict
    from densenet_deploy.workflows.sandbox import Loader, UntrustedFile, preflight

    options = RunnerOptions(threads=threads, trust_engine=trust_engine)
    preflight(UntrustedFile(model, (Loader.SESSION,), backend))
    report = predict(model, images, top_k=top_k, backend=backend, device=device, options=options)
    failure = report.failure
    return report if failure is None or report.bad <= max_bad else FailedGate(report, failure)
