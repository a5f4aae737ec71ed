"""Commands that make models smaller, and measure what that costs: `quantize`, `prune`, `sensitivity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from densenet_deploy.cli.app import Work, command, made
from densenet_deploy.cli.options import (
    CALIBRATION,
    FLOAT_HELP,
    MAX_DROP,
    MIN_SQNR,
    OBSERVER,
    RECIPE,
    Output,
    model_argument,
    require_use,
)
from densenet_deploy.cli.parameters import Arguments, Options, Reads, Writes, flag, option
from densenet_deploy.facts import ModelFacts


def _recipe_backends(arguments: Arguments) -> tuple[str | None, ...]:
    from densenet_deploy.workflows.quantize.options import options_of, recipe_here

    return None, recipe_here(options_of(arguments.recipe, {}).recipe)


FLOAT_MODEL: Final = model_argument("MODEL", FLOAT_HELP, reads=Reads("graph", "session", backends=_recipe_backends))
RECIPE_OR_FILE: Final = option(
    "NAME|FILE.toml", "auto, onnxruntime, openvino, tensorrt, or a recipe file.", default="auto", **RECIPE
)


class Quantizing(Options):
    """How to quantize: fields of `QuantizeOptions`; None is what a recipe file says, else the default."""

    observer: str | None = option(
        "NAME", "How ranges are chosen: minmax, percentile, entropy or mse (default: minmax).", **OBSERVER
    )
    samples: int | None = option("N", "Calibration images to use at most (default: 512).")
    alpha: float | None = option("X", "Share of the ranges moved into the weights, 0 to 1 (default: 0.5).")
    weights: str | None = option(
        "NAME", "Scales of the weights: per-channel or per-tensor (default: per-channel).", "per-channel per-tensor"
    )
    max_drop: float | None = MAX_DROP
    min_sqnr: float | None = MIN_SQNR
    never_slower: bool | None = flag(
        "--never-slower/--no-never-slower",
        "Keep INT8 only in layers that it makes faster here (default: yes).",
        default=None,
    )
    speed_seconds: float | None = option(
        "SECONDS", "Longest time to measure that; what is undecided then stays INT8 (default: 20)."
    )
    finetune: bool | None = flag(
        "--finetune/--no-finetune",
        "Fine-tune the quantized values on the calibration images, without labels (default: no).",
        default=None,
    )
    finetune_seconds: float | None = option(
        "SECONDS", "Longest time to fine-tune; it takes fewer steps then (default: 300)."
    )
    finetune_seed: int | None = option(
        "N", "Of what fine-tuning draws; the same seed gives the same file (default: 0)."
    )


@command(
    "quantize",
    examples=(
        "densenet-deploy quantize model.onnx --calibration images/",
        "densenet-deploy quantize model.onnx --calibration images/ --recipe tensorrt -o model.int8.onnx",
        "densenet-deploy quantize model.onnx --calibration images/ --min-sqnr 30 --explain",
    ),
)
def quantize_command(
    model: str = FLOAT_MODEL,
    calibration: Path = CALIBRATION,
    recipe: str = RECIPE_OR_FILE,
    *,
    how: Quantizing,
    observer_option: list[str] | None = option(
        "NAME=NUMBER",
        "An option of the observer, such as percentile=99.9 or bins=2048; repeatable (default: its own).",
        "percentile= bins=",
    ),
    explain: bool = flag("--explain", "Give the reason for each layer's precision."),
    facts: ModelFacts,
    output: Annotated[Output, Writes("FILE|DIR", "MODEL.int8.RECIPE.onnx beside a MODEL file")],
) -> Work:
    """Quantize an ONNX file to INT8 for one backend."""
    from densenet_deploy.quantization.cache import CalibrationCache
    from densenet_deploy.workflows.quantize.options import options_of
    from densenet_deploy.workflows.quantize.quantize import quantize

    given = {name: value for name, value in vars(how).items() if value is not None}
    options = options_of(recipe, given, observer_option or ())
    require_use(given, "--never-slower", options.never_slower, "speed_seconds")
    require_use(given, "--finetune", options.finetune, "finetune_seconds", "finetune_seed")
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


class Pruning(Options):
    """How much to prune, and how: the fields of `PruneOptions`."""

    ratio: float | None = option("X", "Share of the channels of every bottleneck to remove (default: not given).")
    widths: str | None = option(
        "NAME",
        "With --ratio: uniform, or per-layer, which removes as many multiply-accumulates where they cost least "
        "(default: uniform).",
        "uniform per-layer",
    )
    max_drop: float | None = MAX_DROP
    min_sqnr: float | None = MIN_SQNR
    samples: int = option("N", "Calibration images to use at most.", default=256)
    finetune: bool = flag(
        "--finetune/--no-finetune", "Train the result for the original's outputs on the same images, without labels."
    )
    finetune_seconds: float | None = option(
        "SECONDS", "Longest time to fine-tune; it takes fewer steps then (default: 300)."
    )
    finetune_seed: int | None = option("N", "Of what fine-tuning draws (default: 0).")


@command(
    "prune",
    examples=(
        "densenet-deploy prune chest.pth --calibration images/ --ratio 0.25",
        "densenet-deploy prune chest.pth --calibration images/ --min-sqnr 30 -o chest.small.safetensors",
        "densenet-deploy prune model.onnx --calibration val/ --max-drop 0.5",
    ),
)
def prune_command(
    model: str = model_argument(
        "MODEL",
        "An FP32 ONNX file, or whatever export takes, which is exported first.",
        reads=Reads("graph", "session"),
    ),
    calibration: Path = CALIBRATION,
    *,
    how: Pruning,
    facts: ModelFacts,
    output: Annotated[
        Output, Writes("FILE|DIR", "MODEL.pruned.onnx beside a MODEL file", suffixes=(".onnx", ".safetensors"))
    ],
) -> Work:
    """Remove bottleneck channels of a DenseNet and refit the rest."""
    from densenet_deploy.workflows.prune.options import PruneOptions
    from densenet_deploy.workflows.prune.prune import prune

    given = {name: value for name, value in vars(how).items() if value is not None}
    options = PruneOptions(**given)
    require_use(given, "--finetune", options.finetune, "finetune_seconds", "finetune_seed")
    return lambda listener: made(
        prune(model, calibration, options, progress=listener, **output.beside(model), **facts.given())
    )


@command(
    "sensitivity",
    examples=(
        "densenet-deploy sensitivity model.onnx --calibration images/",
        "densenet-deploy sensitivity model.onnx --calibration images/ --per layer -o sensitivity.svg",
    ),
)
def sensitivity_command(
    model: str = FLOAT_MODEL,
    calibration: Path = CALIBRATION,
    recipe: str = RECIPE_OR_FILE,
    per: str = option("NAME", "Unit to measure: layer or block.", "layer block", default="block"),
    data: Path | None = option(
        "DIR|FILE.csv", "Labelled images to measure top-1 on too, as for `evaluate` (default: none).", reads=Reads()
    ),
    samples: int | None = option("N", "Calibration images to use at most (default: 512)."),
    *,
    facts: ModelFacts,
    output: Annotated[
        Output, Writes("FILE.json|FILE.png|FILE.svg", "no file", (".json", ".png", ".jpg", ".jpeg", ".svg"))
    ],
) -> Work:
    """Measure what each layer or block loses to INT8."""
    from densenet_deploy.quantization.cache import CalibrationCache
    from densenet_deploy.workflows.quantize.options import options_of
    from densenet_deploy.workflows.sensitivity import SensitivityOptions, sensitivity

    quantization = options_of(recipe, {} if samples is None else {"samples": samples})
    options = SensitivityOptions(per, data, quantization)
    return lambda listener: sensitivity(
        model,
        calibration,
        options,
        out=output.out,
        force=output.force,
        cache=CalibrationCache(),
        progress=listener,
        **facts.given(),
    )
