"""Commands that make model files: `export`, `simplify`, `cast`, `build-trt`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from densenet_deploy.artifacts import is_checkpoint_name
from densenet_deploy.cli.app import Work, command, made
from densenet_deploy.cli.options import FLOAT_HELP, GATES, VARIANT, VARIANT_HELP, Output, model_argument
from densenet_deploy.cli.parameters import Arguments, Options, Reads, Writes, argument, flag, option
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
    source: str | None = model_argument(
        "[SOURCE]",
        "A variant, public weights, a checkpoint or an ONNX file; see also --variant and --weights.",
        default=None,
        reads=Reads("graph", "simplifier", "session"),
    ),
    variant: str | None = option("NAME", f"{VARIANT_HELP} (default: the checkpoint's, otherwise 121).", **VARIANT),
    weights: str = option(
        "SOURCE",
        "none (untrained), imagenet, a torchvision name, or a checkpoint file.",
        "none imagenet",
        default="none",
        reads=Reads("graph", "simplifier", "session", names=("none",)),
    ),
    num_classes: int | None = option("N", "Number of classes (default: the checkpoint's, otherwise 1000)."),
    head: str | None = option(
        "NAME", "classifier, features or multiscale (default: the checkpoint's).", "classifier features multiscale"
    ),
    batch: str = option("dynamic|N", "Batch size of the input.", default="dynamic"),
    opset: int = option("N", "ONNX operator set, 16 to 23.", default=20),
    allow_nonfinite: bool = flag("--allow-nonfinite", "Accept weights with NaN or Inf."),
    key: str | None = option("NAME", "Which network of a checkpoint that holds several (default: the only one)."),
    exporter: str = option(
        "NAME",
        "direct writes a known DenseNet from its weights, torch traces the module; auto takes direct if it can.",
        "auto direct torch",
        default="auto",
    ),
    check: str | None = option(
        "FILE.npz",
        "Inputs x and the original's outputs y, which the result must reproduce (default: not checked).",
        reads=Reads(),
    ),
    input_type: str | None = option(
        "float32|uint8",
        "Normalized (N, C, H, W), or pixels (N, H, W, C), which the graph normalizes (default: float32).",
        "float32 uint8",
        spelled="--input",
    ),
    *,
    facts: ModelFacts,
    architecture: Architecture,
    output: Annotated[Output, Writes("FILE|DIR", "beside a SOURCE file, otherwise artifacts/")],
) -> Work:
    """Load or build a DenseNet and write a verified ONNX file."""
    from densenet_deploy.variants.spec import HEADS
    from densenet_deploy.workflows.export import ExportOptions, export
    from densenet_deploy.workflows.load import check_names

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
    if start is None or not Path(start).suffix or is_checkpoint_name(Path(start)):
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
    model: str = argument("A.onnx", "An ONNX file.", reads=Reads("graph", "simplifier", "session")),
    *,
    facts: ModelFacts,
    output: Annotated[Output, Writes("FILE|DIR", "A.simplified.onnx beside A.onnx")],
) -> Work:
    """Simplify an ONNX file with onnxsim and exact passes."""
    from densenet_deploy.workflows.simplify import simplify

    return lambda _listener: made(simplify(model, **output.beside(model), **facts.given()))


@command(
    "cast",
    examples=(
        "densenet-deploy cast model.onnx --fp16",
        "densenet-deploy cast model.onnx --fp16 --calibration images/ --gate cosine=0.9999",
    ),
)
def cast_command(
    model: str = model_argument("MODEL", FLOAT_HELP, reads=Reads("graph", "session")),
    fp16: bool = flag("--fp16", "Convert to FP16."),
    bf16: bool = flag("--bf16", "Convert to BF16."),
    calibration: Path | None = option(
        "DIR|FILE",
        "Images, or a .npy or .npz file: nodes that overflow FP16 on them stay FP32 (default: none).",
        reads=Reads(),
    ),
    samples: int = option("N", "Calibration images to use at most.", default=512),
    gate: list[str] | None = GATES,
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


class Building(Options):
    """How to build: fields of `BuildOptions`."""

    tf32: bool = flag("--tf32/--no-tf32", "--fp32: allow TF32 in layers.")
    optimization_level: int | None = option("N", "Effort of the search for kernels, 0 to 5 (default: TensorRT's).")
    timing_cache: str | None = option("FILE", "TensorRT: file of measured kernel times (default: none).")
    version_compatible: bool = flag("--version-compatible", "TensorRT: allow later versions to load the engine.")
    refit: bool = flag("--refit", "Allow weights to be replaced later.")
    strip_weights: bool = flag("--strip-weights", "Leave the weights out; they are refitted later.")
    dla: int | None = option("CORE", "Run on this DLA core, the rest on the GPU (default: GPU only).")
    aux_streams: int | None = option("N", "Auxiliary CUDA streams per inference (default: TensorRT's).")
    verbosity: str = option(
        "NAME",
        "Layer information kept in the engine: detailed, names or none.",
        "detailed names none",
        default="detailed",
    )


@command(
    "build-trt",
    examples=(
        "densenet-deploy build-trt model.onnx --fp16 --max-batch 8",
        "densenet-deploy build-trt model.onnx --int8 --calibration images/ --flavour rtx --target 8.6",
        "densenet-deploy build-trt model.onnx --fp16 --dry-run",
    ),
)
def build_trt_command(
    model: str | None = model_argument(
        "[SOURCE]",
        "An ONNX file, or whatever export takes, which is exported first (default: 121).",
        default=None,
        reads=Reads("graph", more=lambda a: ("session",) if a.calibration else (), when=_is_parsed),
    ),
    fp32: bool = flag("--fp32", "Compute in FP32."),
    fp16: bool = flag("--fp16", "Compute in FP16."),
    bf16: bool = flag("--bf16", "Compute in BF16."),
    int8: bool = flag("--int8", "Compute in INT8; needs --calibration."),
    calibration: Path | None = option(
        "DIR|FILE", "Calibration images, or a .npy or .npz file (default: none).", reads=Reads()
    ),
    samples: int | None = option("N", "Calibration images to use at most (default: 512)."),
    weights: str | None = option(
        "NAME",
        "--int8: scales of the weights, per-channel or per-tensor (default: per-channel).",
        "per-channel per-tensor",
    ),
    quantize_bus: bool = flag("--quantize-bus", "--int8: concatenated features of dense blocks in INT8 too."),
    variant: str | None = option("NAME", f"{VARIANT_HELP} (default: 121).", **VARIANT),
    *,
    flavour: str = option("NAME", "tensorrt, rtx or auto.", "tensorrt rtx auto", default="auto"),
    target: list[str] | None = option(
        "X.Y", "RTX: compute capability to build for; repeatable (default: all except 7.5)."
    ),
    min_batch: list[int] | None = option("N", "Smallest batch of a profile; repeat it for more profiles (default: 1)."),
    opt_batch: list[int] | None = option(
        "N", "Batch that a profile is tuned for; repeat it for more profiles (default: the largest)."
    ),
    max_batch: list[int] | None = option("N", "Largest batch of a profile; repeat it for more profiles (default: 1)."),
    workspace: int | None = option("MIB", "Memory that a layer may use, in MiB (default: TensorRT's)."),
    hardware_compatibility: str = option(
        "NAME",
        "TensorRT: none, ampere-plus or same-compute-capability.",
        "none ampere-plus same-compute-capability",
        default="none",
    ),
    how: Building,
    dry_run: bool = flag("--dry-run", "Print the equivalent trtexec or tensorrt_rtx command and stop."),
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
        workspace_bytes=None if workspace is None else workspace * 2**20,
        hardware=hardware_compatibility,
        **vars(how),
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
