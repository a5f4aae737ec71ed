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
    data: Annotated[Path, typer.Option(metavar="DIR", help="One folder of pictures a class.")],
    backend: args.Backend = "auto",
    device: args.Device = "auto",
    batch: Annotated[int, typer.Option(help="Pictures run at once.")] = 16,
    max_bad: Annotated[int, typer.Option(help="Unreadable pictures to tolerate.")] = 0,
    threads: args.Threads = None,
    trust_engine: args.TrustEngine = False,
) -> Report:
    """Measure top-1 and top-5 accuracy on a tree of labelled images."""
    from densenet_deploy.pipeline.evaluate import EvaluateOptions, evaluate
    from densenet_deploy.runtime.runner import RunnerOptions

    options = EvaluateOptions(batch, max_bad)
    runner_options = RunnerOptions(threads=threads, trust_engine=trust_engine)
    return evaluate(model, data, options, backend=backend, device=device, runner_options=runner_options)
