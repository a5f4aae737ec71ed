"""Commands that let models answer: `run` here, `serve` on the network, `triton` and `web` elsewhere."""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from densenet_deploy.cli.app import Work, command
from densenet_deploy.cli.options import FAST_DECODE, MODEL, JobChoice, Output, RunnerChoice, model_argument
from densenet_deploy.cli.outcome import FailedGate
from densenet_deploy.cli.parameters import Arguments, Options, Reads, Writes, argument, flag, listed, option, words
from densenet_deploy.errors import printable
from densenet_deploy.facts import ModelFacts
from densenet_deploy.options import require_range

if TYPE_CHECKING:
    from densenet_deploy.serving.processes import Loss
    from densenet_deploy.serving.server import Address

DEFAULT_REPOSITORY = "artifacts/triton"
DEFAULT_SITE = "artifacts/web"


def _graph_with_facts(arguments: Arguments) -> tuple[str, ...]:
    """Return what else loads the model: facts that are stated are written into its graph."""
    return ("graph",) if arguments.facts.given() else ()


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
    model: str = MODEL,
    images: list[str] = argument(
        "SOURCE...", "Images, folders, glob patterns, URLs, CSV or Parquet files with a column file.", reads=Reads()
    ),
    top_k: int = option("N", "Classes to list per image.", default=5),
    max_bad: int | None = option("N", "Unreadable images to tolerate (default: 0, with -o all but one)."),
    fast_decode: bool = FAST_DECODE,
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
        failure = report.failure(max_bad)
        return report if failure is None else FailedGate(report, failure)

    return classify if output.out is None else write_rows


class Serving(Options):
    """How to serve: the fields of `ServeOptions`."""

    host: str = option("ADDRESS", "Where to listen; 0.0.0.0 is every interface.", default="127.0.0.1")
    port: int = option("N", "Of HTTP; 0 takes a free one.", default=8080)
    grpc_port: int | None = option("N", "Of gRPC; 0 takes a free one (default: no gRPC).")
    max_batch: int = option("N", "The most images that run together.", default=16)
    max_delay_ms: float = option("X", "How long a request waits for others, in milliseconds.", default=0.0)
    max_queue: int = option("N", "The most images that wait; further requests get 503.", default=256)
    instances: int = option("N", "Batches that run at the same time.", default=1)
    workers: int = option("N", "Processes that listen on the same ports, each with its own model.", default=1)
    max_body_mib: int = option("N", "The largest request, in MiB.", default=64)
    receive_s: float = option("X", "Seconds for a client to send a request, or to take its answer.", default=30.0)
    grace_s: float = option("X", "Seconds that requests have to end after SIGTERM.", default=30.0)
    stuck_s: float = option(
        "X", "Seconds without progress after which a worker is replaced, a single process not ready.", default=30.0
    )


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
    model: str = MODEL,
    *,
    how: Serving,
    facts: ModelFacts,
    running: RunnerChoice,
) -> Work:
    """Serve a model over HTTP and gRPC."""
    from densenet_deploy.serving.server import ServeOptions
    from densenet_deploy.workflows.serve import serve

    options, runner_options = ServeOptions(**vars(how)), running.options()

    def work(listener: Any) -> Any:
        report = serve(
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
        failure = report.failure()
        if failure is None:
            return report
        atexit.register(os._exit, failure.exit_code)  # the interpreter would crash as it ends below the model
        return FailedGate(report, failure)

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
    models: list[str] = model_argument(
        "MODEL...",
        "ONNX and OpenVINO files, engines with their sidecar, checkpoints and names.",
        reads=Reads("session", more=_graph_with_facts),
    ),
    backend: list[str] | None = option(
        "NAME,...",
        "Triton's backends, separated by commas or repeated: onnxruntime, openvino, tensorrt, python (default: the "
        "one that each file is for).",
        **words("onnxruntime openvino tensorrt python"),
    ),
    name: str | None = option("NAME", "Of the served model (default: the file's, without its suffix)."),
    max_batch: int = option("N", "The most images that the server puts together.", default=16),
    max_delay_ms: float = option("X", "How long a request waits for others, in milliseconds.", default=1.0),
    instances: int = option("N", "Copies that answer at the same time, on each device.", default=1),
    device: str | None = option("NAME", "cpu or gpu (default: gpu for engines, otherwise cpu).", "cpu gpu"),
    ensemble: bool = flag("--ensemble", "A model from uint8 images of any size to scores, too."),
    *,
    facts: ModelFacts,
    output: Annotated[Output, Writes("DIR", DEFAULT_REPOSITORY, ())],
) -> Work:
    """Write a model repository for the Triton Inference Server."""
    from densenet_deploy.workflows.triton import TritonOptions, triton

    options = TritonOptions(tuple(listed(backend or ())), max_batch, max_delay_ms, instances, device, ensemble)

    out = output.out or DEFAULT_REPOSITORY
    return lambda listener: triton(
        models, out, options, name=name, force=output.force, progress=listener, **facts.given()
    )


@command(
    "web",
    examples=(
        "densenet-deploy web chest.int8.onnx -o site/",
        'densenet-deploy web chest.onnx -o site/ --title "Chest X-ray" --runtime onnxruntime-web-1.30.0.tgz --force',
    ),
)
def web_command(
    model: str = model_argument(
        "MODEL",
        "An ONNX file, a checkpoint or a name.",
        reads=Reads("session", more=_graph_with_facts, backends=lambda _: ("onnxruntime",)),
    ),
    title: str | None = option("TEXT", "Of the page (default: the name of the model)."),
    runtime: Path | None = option(
        "DIR|TGZ",
        "A folder or an archive with onnxruntime-web 1.30.0 (default: the one in the cache, or fetched with npm).",
        reads=Reads(),
    ),
    *,
    facts: ModelFacts,
    output: Annotated[Output, Writes("DIR", DEFAULT_SITE, ())],
) -> Work:
    """Write a static page that runs a model in a browser."""
    from densenet_deploy.workflows.web import WebOptions, web

    options = WebOptions(title, runtime)

    out = output.out or DEFAULT_SITE
    return lambda listener: web(model, out, options, force=output.force, progress=listener, **facts.given())
