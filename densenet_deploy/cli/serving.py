"""The commands that serve models, and prepare them for a server or a browser: `serve`, `triton` and `web`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from densenet_deploy.cli.app import Work, command
from densenet_deploy.cli.options import (
    Model,
    Output,
    Reads,
    RunnerChoice,
    Writes,
    listed,
    model_argument,
    option,
    words,
)
from densenet_deploy.errors import printable
from densenet_deploy.facts import ModelFacts

if TYPE_CHECKING:
    from densenet_deploy.serving.processes import Loss
    from densenet_deploy.serving.server import Address

DEFAULT_REPOSITORY = "artifacts/triton"
DEFAULT_SITE = "artifacts/web"


@command(
    "serve",
    examples=(
        "densenet-deploy serve chest.onnx",
        "densenet-deploy serve chest.int8.onnx --host 0.0.0.0 --grpc-port 8081 --max-batch 32 --max-delay-ms 5",
        "densenet-deploy serve chest.onnx --workers 4 --max-batch 8",
        "densenet-deploy serve chest.fp16.engine --device cuda:0 --instances 2",
    ),
)
def serve_command(
    model: Model,
    host: Annotated[str, option("ADDRESS", "Where to listen; 0.0.0.0 is every interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Of HTTP; 0 takes a free one.")] = 8080,
    grpc_port: Annotated[int | None, typer.Option(help="Of gRPC; 0 takes a free one (default: no gRPC).")] = None,
    max_batch: Annotated[int, typer.Option(help="The most images that run together.")] = 16,
    max_delay_ms: Annotated[float, option("X", "How long a request waits for others, in milliseconds.")] = 2.0,
    max_queue: Annotated[int, typer.Option(help="The most images that wait; further requests get 503.")] = 256,
    instances: Annotated[int, typer.Option(help="Batches that run at the same time.")] = 1,
    workers: Annotated[int, typer.Option(help="Processes that listen on the same ports, each with its own model.")] = 1,
    max_body_mib: Annotated[int, typer.Option(help="The largest request, in MiB.")] = 64,
    receive_s: Annotated[float, option("X", "Seconds for a client to send a request, or to take its answer.")] = 30.0,
    grace_s: Annotated[float, option("X", "Seconds that requests have to end after SIGTERM.")] = 30.0,
    *,
    facts: ModelFacts,
    running: RunnerChoice,
) -> Work:
    """Serve a model over HTTP and gRPC."""
    from densenet_deploy.serving.server import ServeOptions
    from densenet_deploy.workflows.serve import serve

    options = ServeOptions(
        host, port, grpc_port, max_batch, max_delay_ms, max_queue, instances, workers, max_body_mib, receive_s, grace_s
    )
    runner_options = running.options()

    def work(listener: Any) -> Any:
        return serve(
            model,
            options,
            backend=running.backend,
            device=running.device,
            running=runner_options,
            on_ready=_announce,
            on_loss=_tell_loss,
            progress=listener,
            **facts.given(),
        )

    return work


def _announce(address: Address) -> None:
    """Say on stderr that requests can come: stdout is for the report at the end."""
    for note in address.notes:
        print(f"note: {printable(note, 10_000)}", file=sys.stderr)
    print(printable(address, 10_000), file=sys.stderr, flush=True)


def _tell_loss(loss: Loss) -> None:
    print(f"note: {printable(loss, 10_000)}", file=sys.stderr, flush=True)


@command(
    "triton",
    examples=(
        "densenet-deploy triton chest.int8.onnx -o repository",
        "densenet-deploy triton chest.onnx -o repository --backend onnxruntime,python --ensemble",
        "densenet-deploy triton chest.fp16.engine --name chest -o repository --max-batch 32 --max-delay-ms 2",
    ),
)
def triton_command(
    models: Annotated[
        list[str],
        model_argument("MODEL...", "ONNX and OpenVINO files, engines with their sidecar, checkpoints and names."),
        Reads("graph", "simplifier"),
    ],
    backend: Annotated[
        list[str] | None,
        option(
            "NAME,...",
            "Triton's backends, separated by commas or repeated: onnxruntime, openvino, tensorrt, python (default: the "
            "one that each file is for).",
            **words("onnxruntime openvino tensorrt python"),
        ),
    ] = None,
    name: Annotated[
        str | None, option("NAME", "Of the served model (default: the file's, without its suffix).")
    ] = None,
    max_batch: Annotated[int, typer.Option(help="The most images that the server puts together.")] = 16,
    max_delay_ms: Annotated[float, option("X", "How long a request waits for others, in milliseconds.")] = 1.0,
    instances: Annotated[int, typer.Option(help="Copies that answer at the same time, on each device.")] = 1,
    device: Annotated[
        str | None, option("NAME", "cpu or gpu (default: gpu for engines, otherwise cpu).", "cpu gpu")
    ] = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="A model from uint8 images of any size to scores, too.")
    ] = False,
    *,
    facts: ModelFacts,
    output: Annotated[Output, Writes("DIR", DEFAULT_REPOSITORY, ())],
) -> Work:
    """Write a model repository for the Triton Inference Server."""
    from densenet_deploy.workflows.triton import TritonOptions, triton

    options = TritonOptions(tuple(listed(backend or ())), max_batch, max_delay_ms, instances, device, ensemble)

    def work(listener: Any) -> Any:
        out = output.out or DEFAULT_REPOSITORY
        return triton(models, out, options, name=name, force=output.force, progress=listener, **facts.given())

    return work


@command(
    "web",
    examples=(
        "densenet-deploy web chest.int8.onnx -o site/",
        'densenet-deploy web chest.onnx -o site/ --title "Chest X-ray" --runtime onnxruntime-web-1.30.0.tgz --force',
    ),
)
def web_command(
    model: Annotated[
        str,
        model_argument("MODEL", "An ONNX file, a checkpoint or a name."),
        Reads("graph", "simplifier", "session", backends=lambda _: ("onnxruntime",)),
    ],
    title: Annotated[str | None, option("TEXT", "Of the page (default: the name of the model).")] = None,
    runtime: Annotated[
        Path | None,
        option(
            "DIR|TGZ",
            "A folder or an archive with onnxruntime-web 1.30.0 (default: the one in the cache, or fetched with npm).",
        ),
        Reads(),
    ] = None,
    *,
    facts: ModelFacts,
    output: Annotated[Output, Writes("DIR", DEFAULT_SITE, ())],
) -> Work:
    """Write a static page that runs a model in a browser."""
    from densenet_deploy.workflows.web import WebOptions, web

    options = WebOptions(title, runtime)

    def work(listener: Any) -> Any:
        out = output.out or DEFAULT_SITE
        return web(model, out, options, force=output.force, progress=listener, **facts.given())

    return work
