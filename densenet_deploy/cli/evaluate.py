"""`evaluate`: accuracy on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densenet_deploy.cli import arguments as args
from densenet_deploy.cli.app import Report, command


@command("evaluate")
def evaluate_command(
    model: args.Model,
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="One folder of images a class, or images and --ground-truth.")
    ],
    ground_truth: Annotated[
        Path | None, typer.Option(metavar="FILE", help="FILE CLASS, or CLASS, a line: the classes of a flat folder.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="OTHER", help="List the images that this model takes for something else.")
    ] = None,
    against_backend: Annotated[str | None, typer.Option(help="Backend of OTHER.")] = None,
    backend: args.Backend = "auto",
    device: args.Device = "auto",
    batch: Annotated[int, typer.Option(help="Images run at once.")] = 16,
    max_bad: Annotated[int, typer.Option(help="Unreadable images to tolerate.")] = 0,
    threads: args.Threads = None,
    decode_threads: Annotated[
        int | None, typer.Option(help="Threads that decode images; by default one for each CPU.")
    ] = None,
    trust_engine: args.TrustEngine = False,
) -> Report:
    """Measure top-1, top-5, accuracy by class and calibration on labelled images."""
    from densenet_deploy.runtime.runner import RunnerOptions
    from densenet_deploy.workflows.evaluate import EvaluateOptions, evaluate
    from densenet_deploy.workflows.sandbox import Loader, UntrustedFile, preflight

    options = EvaluateOptions(batch, max_bad, ground_truth, decode_threads, against, against_backend)
    runner_options = RunnerOptions(threads=threads, trust_engine=trust_engine)
    others = [] if against is None else [UntrustedFile(against, (Loader.SESSION,), against_backend)]
    preflight(UntrustedFile(model, (Loader.SESSION,), backend), *others)
    return evaluate(model, data, options, backend=backend, device=device, runner_options=runner_options)
