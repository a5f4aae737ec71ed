"""Commands that make model files: `export`, `simplify`, `quantize`, `cast`, `build-trt`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from densenet_deploy.cli.app import Work, command, made
from densenet_deploy.cli.options import (
    OBSERVER,
    RECIPE,
    VARIANT,
    VARIANT_HELP,
    Arguments,
    Calibration,
    Gates,
    MaxDrop,
    MinSqnr,
    Output,
    Reads,
    Samples,
    Writes,
    model_argument,
    option,
    words,
)
from densenet_deploy.errors import UsageError
from densenet_deploy.facts import Architecture, ModelFacts
from densenet_deploy.options import require_choice

if TYPE_CHECKING:
    from densenet_deploy.quantization.cache import CalibrationCache
    from densenet_deploy.workflows.load import LoadOptions
    from densenet_deploy.workflows.quantize.options import QuantizeOptions


@command(
    "export",
    examples=(
        "densenet-deploy export 121",
        "densenet-deploy export chest.pth --labels labels.txt -o chest.onnx",
        "densenet-deploy export other.onnx --mean 0.5 --std 0.5",
        "densenet-deploy export chest.pth --check inputs_and_outputs.npz",
        "densenet-deploy export --growth-rate 12 --blocks 16,16,16 --stem cifar --image-size 32",
    ),
)
def export_command(
    source: Annotated[
        str | None,
        model_argument(
            "[SOURCE]", "A variant, public weights, a checkpoint or an ONNX file; see also --variant and --weights."
        ),
        Reads("graph", "simplifier", "session"),
    ] = None,
    variant: Annotated[
        str | None, option("NAME", f"{VARIANT_HELP} (default: the checkpoint's, otherwise 121).", **VARIANT)
    ] = None,
    weights: Annotated[
        str,
        option("SOURCE", "none (untrained), imagenet, a torchvision name, or a checkpoint file.", "none imagenet"),
        Reads("graph", "simplifier", "session", names=("none",)),
    ] = "none",
    num_classes: Annotated[
        int | None, typer.Option(help="Number of classes (default: the checkpoint's, otherwise 1000).")
    ] = None,
    head: Annotated[
        str | None,
        option(
            "NAME", "classifier, features or multiscale (default: the checkpoint's).", "classifier features multiscale"
        ),
    ] = None,
    batch: Annotated[str, option("dynamic|N", "Batch size of the input.")] = "dynamic",
    opset: Annotated[int, typer.Option(help="ONNX operator set, 16 to 23.")] = 20,
    allow_nonfinite: Annotated[bool, typer.Option("--allow-nonfinite", help="Accept weights with NaN or Inf.")] = False,
    key: Annotated[
        str | None, option("NAME", "Which network of a checkpoint that holds several (default: the only one).")
    ] = None,
    exporter: Annotated[
        str,
        option(
            "NAME",
            "direct writes a known DenseNet from its weights, torch traces the module; auto takes direct if it can.",
            "auto direct torch",
        ),
    ] = "auto",
    check: Annotated[
        str | None,
        option(
            "FILE.npz",
            "Inputs x and the original's outputs y, which the result must reproduce (default: not checked).",
        ),
        Reads(),
    ] = None,
    input_type: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="float32|uint8",
            help="Normalized (N, C, H, W), or pixels (N, H, W, C), which the graph normalizes (default: float32).",
            **words("float32 uint8"),
        ),
    ] = None,
    *,
    facts: ModelFacts,
    architecture: Architecture,
    output: Annotated[Output, Writes("FILE|DIR", "beside a SOURCE file, otherwise artifacts/")],
) -> Work:
    """Load or build a DenseNet and write a verified ONNX file."""
    from densenet_deploy.variants.spec import HEADS
    from densenet_deploy.workflows.export import ExportOptions, export
    from densenet_deploy.workflows.load import check_names, is_checkpoint

    if source is not None and weights != "none":
        raise UsageError("export", f"was given both SOURCE {source} and --weights {weights}", "give one of them")
    if head is not None:
        require_choice("head", head, HEADS)
    start = source if weights == "none" else weights
    network = {"variant": variant, "num_classes": num_classes, "head": head, "key": key}
    given = {name: value for name, value in network.items() if value is not None}
    custom = {"architecture": architecture} if architecture.changes() else {}
    accepted = {"allow_nonfinite": True} if allow_nonfinite else {}
    stated = cast("LoadOptions", {**facts.given(), **given, **custom, **accepted})
    if start is None or not Path(start).suffix or is_checkpoint(Path(start)):
        check_names(start, stated)
    if start is not None and Path(start).suffix.lower() == ".onnx" and (given or custom):
        named = (*(f"--{name.replace('_', '-')}" for name in given), *architecture.options())
        raise UsageError(named[0], "does not apply to an ONNX file, which has its own architecture", "remove it")
    options = ExportOptions(_batch_size(batch), opset, check, exporter, input_type)
    return lambda listener: made(export(start, options, progress=listener, **output.beside(start), **stated))


def _batch_size(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not (text.isascii() and text.isdecimal()):
        raise UsageError(f"--batch={text}", "is not dynamic or a number", "write --batch dynamic or --batch 8")
    return int(text)


@command(
    "simplify",
    examples=("densenet-deploy simplify other.onnx", "densenet-deploy simplify other.onnx -o small.onnx --json"),
)
def simplify_command(
    model: Annotated[
        str, typer.Argument(metavar="A.onnx", help="An ONNX file."), Reads("graph", "simplifier", "session")
    ],
    *,
    facts: ModelFacts,
    output: Annotated[Output, Writes("FILE|DIR", "A.simplified.onnx beside A.onnx")],
) -> Work:
    """Simplify an ONNX file with onnxsim and exact passes."""
    from densenet_deploy.workflows.simplify import simplify

    return lambda _listener: made(simplify(model, **output.beside(model), **facts.given()))


def _recipe_backends(arguments: Arguments) -> tuple[str | None, ...]:
    from densenet_deploy.workflows.quantize.options import options_of, recipe_here

    return None, recipe_here(options_of(arguments.recipe, {}).recipe)


FLOAT_HELP: Final = "An FP32 ONNX file, or whatever export takes, which is exported first."
FloatModel = Annotated[str, model_argument("MODEL", FLOAT_HELP), Reads("graph", "session", backends=_recipe_backends)]
Recipe = Annotated[str, option("NAME|FILE.toml", "auto, onnxruntime, openvino, tensorrt, or a recipe file.", **RECIPE)]


@command(
    "quantize",
    examples=(
        "densenet-deploy quantize model.onnx --calibration images/",
        "densenet-deploy quantize model.onnx --calibration images/ --recipe tensorrt -o model.int8.onnx",
        "densenet-deploy quantize model.onnx --calibration images/ --min-sqnr 30 --explain",
    ),
)
def quantize_command(
    model: FloatModel,
    calibration: Calibration,
    recipe: Recipe = "auto",
    observer: Annotated[
        str | None,
        option("NAME", "How ranges are chosen: minmax, percentile, entropy or mse (default: minmax).", **OBSERVER),
    ] = None,
    observer_option: Annotated[
        list[str] | None,
        option(
            "NAME=NUMBER",
            "An option of the observer, such as percentile=99.9 or bins=2048; repeatable (default: its own).",
            "percentile= bins=",
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Calibration images to use at most (default: 512).")] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Share of the ranges moved into the weights, 0 to 1 (default: 0.5).")
    ] = None,
    weights: Annotated[
        str | None,
        option(
            "NAME", "Scales of the weights: per-channel or per-tensor (default: per-channel).", "per-channel per-tensor"
        ),
    ] = None,
    max_drop: MaxDrop = None,
    min_sqnr: MinSqnr = None,
    never_slower: Annotated[
        bool | None,
        typer.Option(
            "--never-slower/--no-never-slower",
            help="Keep INT8 only in layers that it makes faster here (default: yes).",
        ),
    ] = None,
    speed_seconds: Annotated[
        float | None,
        option("SECONDS", "Longest time to measure that; what is undecided then stays INT8 (default: 20)."),
    ] = None,
    finetune: Annotated[
        bool | None,
        typer.Option(
            "--finetune/--no-finetune",
            help="Fine-tune the quantized values on the calibration images, without labels (default: no).",
        ),
    ] = None,
    finetune_seconds: Annotated[
        float | None, option("SECONDS", "Longest time to fine-tune; it takes fewer steps then (default: 300).")
    ] = None,
    finetune_seed: Annotated[
        int | None, typer.Option(help="Of what fine-tuning draws; the same seed gives the same file (default: 0).")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Give the reason for each layer's precision.")] = False,
    *,
    facts: ModelFacts,
    output: Annotated[Output, Writes("FILE|DIR", "MODEL.int8.RECIPE.onnx beside a MODEL file")],
) -> Work:
    """Quantize an ONNX file to INT8 for one backend."""
    from densenet_deploy.quantization.cache import CalibrationCache
    from densenet_deploy.workflows.quantize.options import options_of
    from densenet_deploy.workflows.quantize.quantize import quantize

    named = {
        "observer": observer,
        "samples": samples,
        "alpha": alpha,
        "weights": weights,
        "max_drop": max_drop,
        "min_sqnr": min_sqnr,
        "never_slower": never_slower,
        "speed_seconds": speed_seconds,
        "finetune": finetune,
        "finetune_seconds": finetune_seconds,
        "finetune_seed": finetune_seed,
    }
    given = {name: value for name, value in named.items() if value is not None}
    options = options_of(recipe, given, observer_option or ())
    return lambda listener: made(
        quantize(
            model,
            calibration,
            options,
            explain=explain,
            cache=CalibrationCache(),
            progress=listener,
            **output.beside(model),
            **facts.given(),
        )
    )


@command(
    "cast",
    examples=(
        "densenet-deploy cast model.onnx --fp16",
        "densenet-deploy cast model.onnx --fp16 --calibration images/ --gate cosine=0.9999",
    ),
)
def cast_command(
    model: Annotated[str, model_argument("MODEL", FLOAT_HELP), Reads("graph", "session")],
    fp16: Annotated[bool, typer.Option("--fp16", help="Convert to FP16.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Convert to BF16.")] = False,
    calibration: Annotated[
        Path | None,
        option(
            "DIR|FILE", "Images, or a .npy or .npz file: nodes that overflow FP16 on them stay FP32 (default: none)."
        ),
        Reads(),
    ] = None,
    samples: Samples = 512,
    gate: Gates = None,
    *,
    facts: ModelFacts,
    output: Annotated[Output, Writes("FILE|DIR", "MODEL.fp16.onnx or MODEL.bf16.onnx beside a MODEL file")],
) -> Work:
    """Convert an ONNX file to FP16 or BF16."""
    from densenet_deploy.parity.gates import parse_gate
    from densenet_deploy.quantization.cache import CalibrationCache
    from densenet_deploy.workflows.cast import CastOptions, cast

    precision = _one_of("cast", fp16=fp16, bf16=bf16)
    options = CastOptions(precision, samples, gates=tuple(map(parse_gate, gate)) if gate else None)
    return lambda listener: made(
        cast(
            model,
            options,
            calibration=calibration,
            cache=CalibrationCache(),
            progress=listener,
            **output.beside(model),
            **facts.given(),
        )
    )


def _one_of(subject: str, **asked: bool) -> str:
    """Return the one precision that was asked for."""
    given = [name for name, is_given in asked.items() if is_given]
    if len(given) == 1:
        return given[0]
    known = ", ".join(f"--{name}" for name in asked)
    why = f"was given {' and '.join(f'--{name}' for name in given)}" if given else "was given no precision"
    raise UsageError(subject, why, f"give one of {known}")


def _is_parsed(arguments: Arguments) -> bool:
    """Whether this process parses the file; one that holds its precision already goes to the build process."""
    from densenet_deploy.workflows.build_request import is_parsed

    precision = _one_of("build-trt", **{name: getattr(arguments, name) for name in ("fp32", "fp16", "bf16", "int8")})
    return bool(arguments.facts.given()) or is_parsed(arguments.model, precision)


@command(
    "build-trt",
    examples=(
        "densenet-deploy build-trt model.onnx --fp16 --max-batch 8",
        "densenet-deploy build-trt model.onnx --int8 --calibration images/ --flavour rtx --target 8.6",
        "densenet-deploy build-trt model.onnx --fp16 --dry-run",
    ),
)
def build_trt_command(
    model: Annotated[
        str | None,
        model_argument("[SOURCE]", "An ONNX file, or whatever export takes, which is exported first (default: 121)."),
        Reads("graph", more=lambda a: ("session",) if a.calibration else (), when=_is_parsed),
    ] = None,
    fp32: Annotated[bool, typer.Option("--fp32", help="Compute in FP32.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Compute in FP16.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in BF16.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Compute in INT8; needs --calibration.")] = False,
    calibration: Annotated[
        Path | None, option("DIR|FILE", "Calibration images, or a .npy or .npz file (default: none)."), Reads()
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Calibration images to use at most (default: 512).")] = None,
    weights: Annotated[
        str | None,
        option(
            "NAME",
            "--int8: scales of the weights, per-channel or per-tensor (default: per-channel).",
            "per-channel per-tensor",
        ),
    ] = None,
    quantize_bus: Annotated[
        bool, typer.Option("--quantize-bus", help="--int8: concatenated features of dense blocks in INT8 too.")
    ] = False,
    variant: Annotated[str | None, option("NAME", f"{VARIANT_HELP} (default: 121).", **VARIANT)] = None,
    flavour: Annotated[str, option("NAME", "tensorrt, rtx or auto.", "tensorrt rtx auto")] = "auto",
    target: Annotated[
        list[str] | None, option("X.Y", "RTX: compute capability to build for; repeatable (default: all except 7.5).")
    ] = None,
    min_batch: Annotated[
        list[int] | None, typer.Option(help="Smallest batch of a profile; repeat it for more profiles (default: 1).")
    ] = None,
    opt_batch: Annotated[
        list[int] | None,
        typer.Option(help="Batch that a profile is tuned for; repeat it for more profiles (default: the largest)."),
    ] = None,
    max_batch: Annotated[
        list[int] | None, typer.Option(help="Largest batch of a profile; repeat it for more profiles (default: 1).")
    ] = None,
    tf32: Annotated[bool, typer.Option("--tf32/--no-tf32", help="--fp32: allow TF32 in layers.")] = False,
    workspace: Annotated[
        int | None, option("MIB", "Memory that a layer may use, in MiB (default: TensorRT's).")
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(help="Effort of the search for kernels, 0 to 5 (default: TensorRT's).")
    ] = None,
    timing_cache: Annotated[
        str | None, option("FILE", "TensorRT: file of measured kernel times (default: none).")
    ] = None,
    hardware_compatibility: Annotated[
        str,
        option(
            "NAME",
            "TensorRT: none, ampere-plus or same-compute-capability.",
            "none ampere-plus same-compute-capability",
        ),
    ] = "none",
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="TensorRT: allow later versions to load the engine.")
    ] = False,
    refit: Annotated[bool, typer.Option("--refit", help="Allow weights to be replaced later.")] = False,
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="Leave the weights out; they are refitted later.")
    ] = False,
    dla: Annotated[int | None, option("CORE", "Run on this DLA core, the rest on the GPU (default: GPU only).")] = None,
    aux_streams: Annotated[
        int | None, typer.Option(help="Auxiliary CUDA streams per inference (default: TensorRT's).")
    ] = None,
    verbosity: Annotated[
        str,
        option("NAME", "Layer information kept in the engine: detailed, names or none.", "detailed names none"),
    ] = "detailed",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the equivalent trtexec or tensorrt_rtx command and stop.")
    ] = False,
    *,
    facts: ModelFacts,
    output: Annotated[
        Output,
        Writes("FILE|DIR", "SOURCE.PRECISION.engine beside a SOURCE file, otherwise in artifacts/", (".engine",)),
    ],
) -> Work:
    """Build a TensorRT engine."""
    precision = _one_of("build-trt", fp32=fp32, fp16=fp16, bf16=bf16, int8=int8)
    from densenet_deploy.engines.options import BuildOptions, batch_profiles
    from densenet_deploy.workflows.build_request import BuildRequest

    if model is not None and variant is not None:
        raise UsageError("build-trt", f"was given both SOURCE {model} and --variant {variant}", "give one of them")
    options = BuildOptions(
        flavour=flavour,
        precision=precision,
        profiles=batch_profiles(min_batch or [], opt_batch or [], max_batch or []),
        targets=tuple(target or ()),
        tf32=tf32,
        workspace_bytes=None if workspace is None else workspace * 2**20,
        optimization_level=optimization_level,
        timing_cache=timing_cache,
        hardware=hardware_compatibility,
        version_compatible=version_compatible,
        refit=refit,
        strip_weights=strip_weights,
        dla=dla,
        aux_streams=aux_streams,
        verbosity=verbosity,
    )
    request = BuildRequest.of(
        variant if model is None else model,
        options,
        _quantization(precision, weights, samples, quantize_bus=quantize_bus),
        cast("LoadOptions", facts.given()),
        calibration=calibration,
        out=output.out,
        force=output.force,
    )
    from densenet_deploy.workflows import build_engine as workflow

    if dry_run:
        return lambda _listener: workflow.dry_run(request)
    return lambda listener: made(workflow.build(request, cache=_cache(calibration), progress=listener))


def _cache(calibration: Path | None) -> CalibrationCache | None:
    """Return the cache of calibrations; numpy, which it imports, is loaded only where there is one."""
    if calibration is None:
        return None
    from densenet_deploy.quantization.cache import CalibrationCache

    return CalibrationCache()


def _quantization(
    precision: str, weights: str | None, samples: int | None, *, quantize_bus: bool
) -> QuantizeOptions | None:
    """Return how INT8 is written, and how many images are used; None where neither is given."""
    if precision != "int8" and (weights is not None or quantize_bus):
        option = "--weights" if weights is not None else "--quantize-bus"
        raise UsageError(option, f"applies to --int8, not to --{precision}", "remove it, or give --int8")
    named: dict[str, Any] = {"weights": weights, "samples": samples, "quantize_bus": quantize_bus or None}
    given = {name: value for name, value in named.items() if value is not None}
    if not given:
        return None
    from densenet_deploy.workflows.quantize.options import QuantizeOptions  # numpy

    return QuantizeOptions(**given)
