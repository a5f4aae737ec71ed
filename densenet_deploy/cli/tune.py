"""`tune`: which file to ship, on which backend, with how many threads, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densenet_deploy.cli import arguments as args
from densenet_deploy.cli.app import FailedGate, Report, command


@command("tune")
def tune_command(
    models: Annotated[
        list[Path] | None, typer.Argument(metavar="[MODEL...]", help="Float32 ONNX files and checkpoints.")
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="Untrained networks too: 121, cifar-bc-L-k, ...; repeatable.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="DIR|FILE", help="Images or an array file; without it no INT8.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="One folder a class: measure top-1 on these.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Percentage points of top-1 that may be lost; without --data, of answers changed."),
    ] = None,
    max_latency: Annotated[float | None, typer.Option(metavar="MS", help="Longest median call.")] = None,
    max_memory: Annotated[float | None, typer.Option(metavar="MIB", help="Most memory of the process.")] = None,
    goal: Annotated[str, typer.Option(help="latency (of the smallest batch) or throughput.")] = "latency",
    precision: Annotated[str, typer.Option(metavar="WORD,...", help="fp32, fp16, bf16, int8 or auto.")] = "auto",
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE.toml,...", help="How INT8 is written; by default every way that runs.")
    ] = "auto",
    backend: Annotated[str, typer.Option(metavar="NAME,...", help="By default all that are installed.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, gpu, npu or auto.")] = "auto",
    threads: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="CPU threads of a call; by default 1, 2, 4, ... up to all.")
    ] = None,
    batch: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Images a call; by default 1, for throughput 1,8,32.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Images to calibrate on, at most.")] = 512,
    plan_only: Annotated[
        bool, typer.Option("--dry-run", help="List what would be tried, and measure nothing.")
    ] = False,
    measure_again: Annotated[
        bool, typer.Option("--measure-again", help="Forget remembered timings and accuracies.")
    ] = False,
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="DIR", help="For files and state; artifacts/tune.")
    ] = None,
    force: args.Force = False,
) -> Report | FailedGate:
    """Search precision, recipe, backend, threads and batch, and say which file to ship."""
    from densenet_deploy.workflows.sandbox import Loader, UntrustedFile, preflight
    from densenet_deploy.workflows.tune.candidates import TuneOptions
    from densenet_deploy.workflows.tune.tune import dry_run, tune

    options = TuneOptions(
        variants=tuple(variant or ()),
        precisions=args.listed([precision]),
        recipes=args.listed([recipe]),
        backends=args.listed([backend]),
        threads=() if threads is None else args.whole_numbers("--threads", threads),
        batches=() if batch is None else args.whole_numbers("--batch", batch),
        device=None if device == "auto" else device,
        goal=goal,
        calibration=calibration,
        samples=samples,
        data=data,
        max_drop=max_drop,
        max_latency_ms=max_latency,
        max_memory_mib=max_memory,
    )
    preflight(*(UntrustedFile(path, (Loader.GRAPH, Loader.SESSION)) for path in models or ()))
    if plan_only:
        return dry_run(models or (), options, out=out, measure_again=measure_again)
    from densenet_deploy.quantize.cache import CalibrationCache

    with args.progress() as progress:
        report = tune(
            models or (),
            options,
            out=out,
            force=force,
            measure_again=measure_again,
            cache=CalibrationCache(),
            progress=progress,
        )
    return report if report.failure is None else FailedGate(report, report.failure)
