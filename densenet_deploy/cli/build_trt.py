"""`build-trt`: an engine for TensorRT or TensorRT-RTX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densenet_deploy.cli import arguments as args
from densenet_deploy.cli.app import Report, command
from densenet_deploy.errors import UsageError

if TYPE_CHECKING:
    from densenet_deploy.quantize.cache import CalibrationCache
    from densenet_deploy.workflows.quantize.options import QuantizeOptions

Batches = Annotated[list[int] | None, typer.Option(help="Give it again for each further profile.")]


@command("build-trt")
def build_trt_command(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="[A.onnx]", help="An ONNX file or a checkpoint; without one the variant is exported."),
    ] = None,
    fp32: Annotated[bool, typer.Option("--fp32", help="Compute in float32.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Compute in float16.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Compute on 8-bit integers, with --calibration.")] = False,
    calibration: Annotated[
        Path | None, typer.Option(metavar="DIR|FILE", help="Images to calibrate on, or a .npy or .npz file.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Images to calibrate on, at most (default 512).")] = None,
    weights: Annotated[str | None, typer.Option(help="per-channel (default) or per-tensor scales of --int8.")] = None,
    quantize_bus: Annotated[
        bool, typer.Option("--quantize-bus", help="With --int8: dense blocks' concatenated features in INT8 too.")
    ] = False,
    variant: args.Variant = None,
    flavour: Annotated[str, typer.Option(help="auto, tensorrt or rtx.")] = "auto",
    target: Annotated[
        list[str] | None, typer.Option(metavar="8.6", help="RTX: build for this compute capability; repeatable.")
    ] = None,
    min_batch: Batches = None,
    opt_batch: Batches = None,
    max_batch: Batches = None,
    tf32: Annotated[bool, typer.Option("--tf32/--no-tf32", help="With --fp32: let layers compute in TF32.")] = False,
    workspace: Annotated[int | None, typer.Option(metavar="MIB", help="Memory a layer may use while it runs.")] = None,
    optimization_level: Annotated[int | None, typer.Option(help="0 to 5: how long to search for kernels.")] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TensorRT: remember how fast kernels were.")
    ] = None,
    hardware_compatibility: Annotated[
        str, typer.Option(help="TensorRT: none, ampere-plus or same-compute-capability.")
    ] = "none",
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="TensorRT: let later versions load it.")
    ] = False,
    refit: Annotated[bool, typer.Option("--refit", help="Let weights be replaced later.")] = False,
    strip_weights: Annotated[bool, typer.Option("--strip-weights", help="Leave weights out, to be refitted.")] = False,
    dla: Annotated[int | None, typer.Option(metavar="CORE", help="Run on this DLA, the rest on the GPU.")] = None,
    aux_streams: Annotated[int | None, typer.Option(help="Streams that layers may be spread over.")] = None,
    verbosity: Annotated[str, typer.Option(help="What the plan tells inspectors: detailed, names or none.")] = (
        "detailed"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the trtexec or tensorrt_rtx line instead.")] = False,
    out: args.Out = None,
    force: args.Force = False,
) -> Report:
    """Build a TensorRT engine: (export,) put the precision in the graph, build, read back what runs."""
    precision = _precision(fp32=fp32, fp16=fp16, bf16=bf16, int8=int8)
    from densenet_deploy.engines.options import BuildOptions, batch_profiles
    from densenet_deploy.workflows.sandbox import Loader, UntrustedFile, preflight

    if model is not None and variant is not None:
        raise UsageError("build-trt", "was given both a file and --variant", "give one of them")
    quantization = _quantization(precision, weights, samples, quantize_bus=quantize_bus)
    options = BuildOptions(
        flavour=flavour,
        precision=precision,
        profiles=batch_profiles(min_batch or [], opt_batch or [], max_batch or []),
        targets=tuple(target or ()),
        tf32=tf32,
        workspace_bytes=None if workspace is None else workspace * 2**20,
        optimization_level=optimization_level,
        timing_cache=None if timing_cache is None else str(timing_cache),
        hardware=hardware_compatibility,
        version_compatible=version_compatible,
        refit=refit,
        strip_weights=strip_weights,
        dla=dla,
        aux_streams=aux_streams,
        verbosity=verbosity,
    )
    from densenet_deploy.workflows.build_engine import build
    from densenet_deploy.workflows.build_engine import dry_run as dry_run_of
    from densenet_deploy.workflows.build_request import BuildRequest, is_parsed

    others = {"calibration": calibration, "out": out, "force": force}
    request = BuildRequest.of(variant if model is None else model, options, quantization, {}, **others)
    if model is not None and is_parsed(model, precision):
        preflight(UntrustedFile(model, (Loader.GRAPH,) if calibration is None else (Loader.GRAPH, Loader.SESSION)))
    if dry_run:
        return dry_run_of(request)
    cache = _calibration_cache(calibration)
    with args.progress() as listener:
        report = build(request, cache=cache, progress=listener).report
    assert report is not None
    return report


def _calibration_cache(calibration: Path | None) -> CalibrationCache | None:
    """The cache, which only calibration needs; numpy, which it needs, is not worth the time elsewhere."""
    if calibration is None:
        return None
    from densenet_deploy.quantize.cache import CalibrationCache

    return CalibrationCache()


def _precision(**asked: bool) -> str:
    """The one precision that was asked for.

    Raises:
        UsageError: if there is not exactly one.
    """
    words = [word for word, given in asked.items() if given]
    if len(words) != 1:
        what = " and ".join(f"--{word}" for word in words) or "no precision"
        raise UsageError("build-trt", f"was given {what}", "give one of --fp32, --fp16, --bf16, --int8")
    return words[0]


def _quantization(precision: str, weights: str | None, samples: int | None, *, quantize_bus: bool) -> QuantizeOptions:
    """How INT8 is to be written.

    Raises:
        UsageError: if that is said of another precision.
    """
    import dataclasses

    from densenet_deploy.workflows.build_request import QUANTIZATION

    if precision != "int8" and (weights is not None or quantize_bus):
        option = "--weights" if weights is not None else "--quantize-bus"
        raise UsageError(option, f"is about INT8, and this is {precision}", "leave it out, or give --int8")
    named = {"weights": weights, "samples": samples, "quantize_bus": quantize_bus}
    given = {name: value for name, value in named.items() if value is not None}
    return dataclasses.replace(QUANTIZATION, **given)  # type: ignore[arg-type]
