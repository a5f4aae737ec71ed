"""`benchmark`: latency, throughput and memory of any models, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densenet_deploy.cli import arguments as args
from densenet_deploy.cli.app import Report, command
from densenet_deploy.errors import UsageError


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
    seconds: Annotated[
        float | None, typer.Option(help="How long each contender is timed; by default 5, with --trtexec 10.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Turns that those seconds are divided into; by default 10.")
    ] = None,
    compare: Annotated[Path | None, typer.Option(metavar="OLD.json", help="Compare with an earlier run.")] = None,
    trtexec: Annotated[
        bool, typer.Option("--trtexec", help="Time TensorRT plans by events on the GPU, as trtexec does.")
    ] = False,
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="FILE.json|FILE.csv", help="Where to write.")
    ] = None,
    force: args.Force = False,
) -> Report:
    """Time models against each other, each alone in a process, in turns."""
    if trtexec:
        given = {"--backend": backend, "--threads": threads, "--fps": fps, "--streams": streams, "--compare": compare}
        given |= {"--rounds": rounds}
        _refuse([name for name, value in given.items() if value is not None])
        _refuse([] if scenario == "single-stream" else ["--scenario"])
        return _like_trtexec(models, args.listed([device]), args.whole_numbers("--batch", batch), seconds, out, force)
    from densenet_deploy.workflows.benchmark.benchmark import BenchmarkOptions, benchmark
    from densenet_deploy.workflows.examination import Given, Reader, examine

    options = BenchmarkOptions(
        backends=args.listed(backend or []),
        devices=args.listed([device]),
        batches=args.whole_numbers("--batch", batch),
        threads=() if threads is None else args.whole_numbers("--threads", threads),
        scenario=scenario,
        fps=fps,
        streams=streams,
        seconds=5.0 if seconds is None else seconds,
        rounds=10 if rounds is None else rounds,
        compare=compare,
    )
    examine(*(Given(path, (Reader.SESSION,), name) for path in models for name in options.backends or (None,)))
    with args.progress() as listener:
        return benchmark(models, options, out, force=force, listener=listener)


def _refuse(names: list[str]) -> None:
    if names:
        raise UsageError(names[0], "means nothing with --trtexec", "leave one of them out")


def _like_trtexec(
    models: list[Path],
    devices: tuple[str, ...],
    batches: tuple[int, ...],
    seconds: float | None,
    out: str | None,
    force: bool,
) -> Report:
    from densenet_deploy.workflows.benchmark.trtexec import TrtexecOptions, benchmark_like_trtexec

    if len(devices) > 1:
        raise UsageError(", ".join(devices), "are several devices", "give --trtexec one at a time")
    options = TrtexecOptions(batches, 10.0 if seconds is None else seconds, device=next(iter(devices), None))
    with args.progress() as listener:
        return benchmark_like_trtexec(models, options, out, force=force, listener=listener)
