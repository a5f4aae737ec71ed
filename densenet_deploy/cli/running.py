"""The command that runs a model: `run`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from densenet_deploy.cli.app import Work, command
from densenet_deploy.cli.options import FastDecode, JobChoice, Model, Output, Reads, RunnerChoice, Writes
from densenet_deploy.cli.outcome import FailedGate
from densenet_deploy.facts import ModelFacts
from densenet_deploy.options import require_range


@command(
    "run",
    examples=(
        "densenet-deploy run chest.onnx photo.jpg",
        "densenet-deploy run chest.onnx images/ 'more/*.png' --top-k 3 --json",
        "densenet-deploy run chest.fp16.engine photo.jpg --device cuda:0",
        "densenet-deploy run chest.onnx list.csv -o rows.csv",
        "densenet-deploy run chest.onnx 'archive/**/*.jpg' -o rows/ --workers 4 --resume",
    ),
)
def run_command(
    model: Model,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="Images, folders, glob patterns, URLs, CSV or Parquet files with a column file."
        ),
        Reads(),
    ],
    top_k: Annotated[int, typer.Option(help="Classes to list per image.")] = 5,
    max_bad: Annotated[
        int | None, typer.Option(help="Unreadable images to tolerate (default: 0, with -o any number).")
    ] = None,
    fast_decode: FastDecode = False,
    *,
    output: Annotated[
        Output, Writes("DIR|FILE", "none, results are printed", (".parquet", ".csv", ".jsonl"), is_strict=True)
    ],
    job: JobChoice,
    facts: ModelFacts,
    running: RunnerChoice,
) -> Work:
    """Classify images."""
    from densenet_deploy.workflows.predict import predict

    require_range("top-k", top_k, 1, 1_000_000)
    if max_bad is not None:
        require_range("max-bad", max_bad, 0, 10**9)
    choice: dict[str, Any] = {
        "top_k": top_k,
        "fast_decode": fast_decode,
        "backend": running.backend,
        "device": running.device,
        "options": running.options(),
        **facts.given(),
    }
    if output.out is None:
        job.require_none()
    job_options = job.options(force=output.force)

    def classify(_listener: Any) -> Any:
        report = predict(model, images, **choice)
        if report.failure is None or report.bad <= (max_bad or 0):
            return report
        if report.bad == len(report.predictions):  # there is nothing to print
            raise report.failure
        return FailedGate(report, report.failure)

    def write_rows(listener: Any) -> Any:
        assert output.out is not None
        report = predict(model, images, out=output.out, job=job_options, progress=listener, **choice)
        failure = None if max_bad is None else report.failure(max_bad)
        return report if failure is None else FailedGate(report, failure)

    return classify if output.out is None else write_rows
