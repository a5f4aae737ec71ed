"""The command that runs a model: `run`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from densenet_deploy.cli.app import Work, command
from densenet_deploy.cli.options import FastDecode, Model, Reads, RunnerChoice
from densenet_deploy.cli.outcome import FailedGate
from densenet_deploy.facts import ModelFacts
from densenet_deploy.options import require_range


@command(
    "run",
    examples=(
        "densenet-deploy run chest.onnx photo.jpg",
        "densenet-deploy run chest.onnx images/ 'more/*.png' --top-k 3 --json",
        "densenet-deploy run chest.fp16.engine photo.jpg --device cuda:0",
    ),
)
def run_command(
    model: Model,
    images: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Images, folders and glob patterns."), Reads()
    ],
    top_k: Annotated[int, typer.Option(help="Classes to list per image.")] = 5,
    max_bad: Annotated[int, typer.Option(help="Unreadable images to tolerate.")] = 0,
    fast_decode: FastDecode = False,
    *,
    facts: ModelFacts,
    running: RunnerChoice,
) -> Work:
    """Classify images."""
    from densenet_deploy.workflows.predict import predict

    require_range("top-k", top_k, 1, 1_000_000)
    require_range("max-bad", max_bad, 0, 10**9)
    options = running.options()

    def work(_listener: Any) -> Any:
        report = predict(
            model,
            images,
            top_k=top_k,
            fast_decode=fast_decode,
            backend=running.backend,
            device=running.device,
            options=options,
            **facts.given(),
        )
        if report.failure is None or report.bad <= max_bad:
            return report
        if report.bad == len(report.predictions):  # there is nothing to print
            raise report.failure
        return FailedGate(report, report.failure)

    return work
