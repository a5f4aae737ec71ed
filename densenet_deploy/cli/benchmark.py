"""`benchmark`: latency, throughput and memory of any models, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densenet_deploy.cli import arguments as args
from densenet_deploy.cli.app import Report, command


@command("benchmark")
def benchmark_command(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Artifacts and checkpoints.")],
    backend: Annotated[
        list[str] | None, typer.Option(help="onnxruntime, openvino, torch, ...; repeatable, or separated by commas.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, gpu, npu or auto; several separated by commas.")] = (
        "auto"
    ),
    batch: Annotated[str, typer.Option(metavar="N,N,...", help="Images a call.")] = "1",
    threads: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="CPU threads of a call; by default all it may use.")
    ] = None,
    scenario: Annotated[str, typer.Option(help="single-stream, offline or camera.")] = "single-stream",
    fps: Annotated[float | None, typer.Option(help="Frames a second that the camera gives.")] = None,
    streams: Annotated[
        int | None, typer.Option(help="Callers at the same time, offline; by default one for each CPU.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long each candidate is timed.")] = 5.0,
    rounds: Annotated[int, typer.Option(help="Rounds that those seconds are divided into.")] = 10,
    compare: Annotated[Path | None, typer.Option(metavar="OLD.json", help="Compare with an earlier run.")] = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="FILE.json|FILE.csv", help="Where to write.")
    ] = None,
    force: args.Force = False,
) -> Report:
    """Time models against each other, each in its own process, in alternating rounds."""
    from densenet_deploy.workflows.benchmark import BenchmarkOptions, benchmark
    from densenet_deploy.workflows.sandbox import Loader, UntrustedFile, preflight

    options = BenchmarkOptions(
        backends=args.listed(backend or []),
        devices=args.listed([device]),
        batches=args.whole_numbers("--batch", batch),
        threads=() if threads is None else args.whole_numbers("--threads", threads),
        scenario=scenario,
        fps=fps,
        streams=streams,
        seconds=seconds,
        rounds=rounds,
        compare=compare,
    )
    preflight(
        *(UntrustedFile(path, (Loader.SESSION,), name) for path in models for name in options.backends or (None,))
    )
    with args.progress() as listener:
        return benchmark(models, options, out=out, force=force, progress=listener)
