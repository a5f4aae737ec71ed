"""The command that prepares models for a server: `triton`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from densenet_deploy.cli.app import Work, command
from densenet_deploy.cli.options import Output, Reads, Writes, listed, model_argument, option, words
from densenet_deploy.facts import ModelFacts

DEFAULT_REPOSITORY = "artifacts/triton"


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
            **words("onnxruntime", "openvino", "tensorrt", "python"),
        ),
    ] = None,
    name: Annotated[
        str | None, option("NAME", "Of the served model (default: the file's, without its suffix).")
    ] = None,
    max_batch: Annotated[int, typer.Option(help="The most images that the server puts together.")] = 16,
    max_delay_ms: Annotated[float, option("X", "How long a request waits for others, in milliseconds.")] = 1.0,
    instances: Annotated[int, typer.Option(help="Copies that answer at the same time, on each device.")] = 1,
    device: Annotated[
        str | None, option("NAME", "cpu or gpu (default: gpu for engines, otherwise cpu).", "cpu", "gpu")
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
