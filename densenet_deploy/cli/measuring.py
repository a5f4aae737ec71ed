"""Commands that measure models: `validate`, `evaluate`, `benchmark`, `tune`, `sensitivity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from densenet_deploy.cli.app import Work, command, with_facts
from densenet_deploy.cli.making import FloatModel, Recipe
from densenet_deploy.cli.options import (
    BACKEND,
    BACKEND_HELP,
    DEVICE,
    DEVICE_HELP,
    RECIPE,
    VARIANT,
    VARIANT_HELP,
    Arguments,
    Calibration,
    ClusterAddress,
    EngineName,
    FastDecode,
    Gates,
    Model,
    Output,
    Reads,
    RunnerChoice,
    Samples,
    Writes,
    listed,
    model_argument,
    numbers,
    option,
    whole_numbers,
)
from densenet_deploy.cli.outcome import FailedGate
from densenet_deploy.errors import GateError
from densenet_deploy.facts import ModelFacts


def _layers(arguments: Arguments) -> tuple[str, ...]:
    return ("graph",) if arguments.per_layer else ()


@command(
    "validate",
    examples=(
        "densenet-deploy validate model.onnx model.fp16.onnx",
        "densenet-deploy validate model.onnx model.int8.onnx --data images/ --gate sqnr_db=30 --per-layer",
    ),
)
def validate_command(
    reference: Annotated[
        str,
        model_argument("REF", "The reference model."),
        Reads("session", more=_layers, backends=lambda a: (a.reference_backend,)),
    ],
    candidate: Annotated[
        str,
        model_argument("CAND", "The candidate model."),
        Reads("session", more=_layers, backends=lambda a: (a.candidate_backend,)),
    ],
    data: Annotated[
        Path | None, option("DIR", "Images to run on (default: seeded noise and synthetic images)."), Reads()
    ] = None,
    samples: Annotated[int, typer.Option(help="Number of inputs.")] = 16,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Compare inner tensors too, worst first.")] = False,
    gate: Gates = None,
    reference_backend: Annotated[
        str | None, option("NAME", "Backend of REF (default: by file type).", **BACKEND)
    ] = None,
    candidate_backend: Annotated[
        str | None, option("NAME", "Backend of CAND (default: by file type).", **BACKEND)
    ] = None,
    *,
    facts: ModelFacts,
) -> Work:
    """Compare the outputs of two models."""
    from densenet_deploy.parity.gates import parse_gate
    from densenet_deploy.workflows.compare import CompareOptions, compare

    options = CompareOptions(
        samples=samples,
        per_layer=per_layer,
        gates=tuple(map(parse_gate, gate)) if gate else None,
        reference_backend=reference_backend,
        candidate_backend=candidate_backend,
    )

    def work(_listener: Any) -> Any:
        report = compare(reference, candidate, data, options, **facts.given())
        if not report.failed:
            return report
        fix = "see --per-layer for where they diverge, or set another --gate"
        return FailedGate(report, GateError(candidate, "; ".join(report.failed), fix))

    return work


@command(
    "evaluate",
    examples=(
        "densenet-deploy evaluate model.onnx --data val/",
        "densenet-deploy evaluate model.int8.onnx --data val/ --against model.onnx --backend openvino",
        "densenet-deploy evaluate chest.onnx --data chest/val.csv --task multilabel --labels labels.txt",
        "densenet-deploy evaluate model.onnx --data val/ --engine ray --address ray://head:10001",
    ),
)
def evaluate_command(
    model: Model,
    data: Annotated[
        Path,
        option(
            "DIR|FILE.csv",
            "Labelled images: a folder per class, a flat folder with --ground-truth, or a CSV (file,label).",
        ),
        Reads(),
    ],
    ground_truth: Annotated[
        Path | None,
        option("FILE", "Classes of a flat folder: one `FILE CLASS`, or `CLASS`, per line (default: none)."),
        Reads(),
    ] = None,
    against: Annotated[
        str | None,
        option("OTHER", "Another model of the same task to compare with (default: none)."),
        Reads("session", backends=lambda a: (a.against_backend,)),
    ] = None,
    against_backend: Annotated[str | None, option("NAME", "Backend of OTHER (default: the file's).", **BACKEND)] = None,
    batch: Annotated[int, typer.Option(help="Images per inference.")] = 16,
    max_bad: Annotated[int, typer.Option(help="Unreadable images to tolerate.")] = 0,
    decode_threads: Annotated[
        int | None, typer.Option(help="Threads that decode images (default: one per CPU).")
    ] = None,
    fast_decode: FastDecode = False,
    engine: EngineName = "local",
    address: ClusterAddress = None,
    workers: Annotated[
        int | None, typer.Option(help="--engine ray: processes that run the model (default: as many as fit).")
    ] = None,
    *,
    facts: ModelFacts,
    running: RunnerChoice,
) -> Work:
    """Measure how good a model is at its task on labelled images."""
    from densenet_deploy.workflows.evaluate import EvaluateOptions, evaluate

    options = EvaluateOptions(
        batch,
        max_bad,
        ground_truth,
        decode_threads,
        against,
        against_backend,
        fast_decode,
        engine,
        address,
        workers,
    )
    runner_options = running.options()
    return lambda listener: evaluate(
        model,
        data,
        options,
        backend=running.backend,
        device=running.device,
        runner_options=runner_options,
        progress=listener,
        **facts.given(),
    )


@command(
    "benchmark",
    examples=(
        "densenet-deploy benchmark model.onnx model.int8.onnx",
        "densenet-deploy benchmark model.onnx --backend onnxruntime,openvino --batch 1,8 -o results.json",
    ),
)
def benchmark_command(
    models: Annotated[
        list[str] | None,
        model_argument("[MODEL...]", "Models, each measured in its own process."),
        Reads("session", backends=lambda a: listed(a.backend or ()) or (None,)),
    ] = None,
    variant: Annotated[
        list[str] | None, option("NAME", "An untrained network to measure too; repeatable (default: none).", **VARIANT)
    ] = None,
    backend: Annotated[
        list[str] | None,
        option("NAME,...", f"{BACKEND_HELP}; separated by commas or repeated (default: each file's).", **BACKEND),
    ] = None,
    device: Annotated[str, option("NAME,...", f"{DEVICE_HELP}; separated by commas.", **DEVICE)] = "auto",
    batch: Annotated[str, option("N,N,...", "Images per inference.")] = "1",
    threads: Annotated[
        str | None, option("N,N,...", "CPU threads per inference (default: all that are available).")
    ] = None,
    scenario: Annotated[
        str, option("NAME", "single-stream, offline or camera.", "single-stream offline camera")
    ] = "single-stream",
    fps: Annotated[float | None, typer.Option(help="camera: frames per second (default: none; required).")] = None,
    streams: Annotated[int | None, typer.Option(help="offline: concurrent inferences (default: one per CPU).")] = None,
    seconds: Annotated[float, option("S", "Measuring time per candidate, in seconds.")] = 5.0,
    rounds: Annotated[int, typer.Option(help="Rounds that this time is divided into.")] = 10,
    compare: Annotated[
        Path | None, option("OLD.json", "Results of an earlier run to compare with (default: none)."), Reads()
    ] = None,
    *,
    facts: ModelFacts,
    output: Annotated[Output, Writes("FILE.json|FILE.csv", "no file", (".json", ".csv"))],
) -> Work:
    """Measure latency, throughput and memory of models side by side."""
    from densenet_deploy.workflows.benchmark import BenchmarkOptions, benchmark

    options = BenchmarkOptions(
        backends=listed(backend or ()),
        devices=listed([device]),
        batches=whole_numbers("--batch", batch),
        threads=() if threads is None else whole_numbers("--threads", threads),
        variants=listed(variant or ()),
        scenario=scenario,
        fps=fps,
        streams=streams,
        seconds=seconds,
        rounds=rounds,
        compare=compare,
    )
    return lambda listener: benchmark(
        [with_facts(model, facts) for model in models or ()],
        options,
        out=output.out,
        force=output.force,
        progress=listener,
    )


@command(
    "tune",
    examples=(
        "densenet-deploy tune model.onnx --calibration images/ --data val/ --max-drop 1",
        "densenet-deploy tune chest.pth --calibration images/ --data val/ --ratios 0.25,0.5 --finetune --max-drop 0.5",
        "densenet-deploy tune --variant 121 --max-latency 50 --dry-run",
    ),
)
def tune_command(
    models: Annotated[
        list[str] | None,
        model_argument("[MODEL...]", "FP32 ONNX files, checkpoints and names."),
        Reads("graph", "session"),
    ] = None,
    variant: Annotated[
        list[str] | None,
        option("NAME", f"Untrained variants too: {VARIANT_HELP}; repeatable (default: none).", **VARIANT),
    ] = None,
    calibration: Annotated[
        Path | None,
        option("DIR|FILE", "Calibration images, or a .npy or .npz file (default: none, so no INT8)."),
        Reads(),
    ] = None,
    data: Annotated[
        Path | None,
        option("DIR|FILE.csv", "Labelled images to measure the accuracy on, as for `evaluate` (default: none)."),
        Reads(),
    ] = None,
    max_drop: Annotated[
        float | None,
        option(
            "POINTS",
            "Largest loss of top-1, or of a multilabel model's mean AUROC, in percentage points; without --data, of "
            "unchanged classes (default: none).",
        ),
    ] = None,
    max_latency: Annotated[float | None, option("MS", "Longest median latency in ms (default: no limit).")] = None,
    max_memory: Annotated[float | None, option("MIB", "Most memory of the process in MiB (default: no limit).")] = None,
    goal: Annotated[
        str, option("NAME", "latency (of the smallest batch) or throughput.", "latency throughput")
    ] = "latency",
    precision: Annotated[
        str, option("NAME,...", "fp32, fp16, bf16, int8 or auto for all.", "fp32 fp16 bf16 int8 auto")
    ] = "auto",
    recipe: Annotated[
        str,
        option(
            "NAME|FILE.toml,...",
            "INT8: onnxruntime, openvino, tensorrt, recipe files, or auto for all that run here.",
            **RECIPE,
        ),
    ] = "auto",
    backend: Annotated[
        str, option("NAME,...", "Backends to try, or auto for all that are installed.", **BACKEND)
    ] = "auto",
    device: Annotated[str, option("NAME", f"{DEVICE_HELP}.", **DEVICE)] = "auto",
    threads: Annotated[
        str | None, option("N,N,...", "CPU threads per inference (default: 1, 2, 4, ... up to all).")
    ] = None,
    batch: Annotated[str | None, option("N,N,...", "Images per inference (default: 1; 1,8,32 for throughput).")] = None,
    ratios: Annotated[
        str | None,
        option("F,F,...", "Also pruned: shares of bottleneck channels to remove; needs --max-drop (default: none)."),
    ] = None,
    finetune: Annotated[
        bool,
        typer.Option("--finetune/--no-finetune", help="Fine-tune INT8 and pruned files: up to 5 minutes for each."),
    ] = False,
    samples: Samples = 512,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the candidates and the work to do.")] = False,
    measure_again: Annotated[
        bool, typer.Option("--measure-again", help="Ignore cached measurements and accuracies.")
    ] = False,
    *,
    facts: ModelFacts,
    output: Annotated[Output, Writes("DIR", "artifacts/tune", ())],
) -> Work:
    """Search precision, backend, threads and batch size."""
    from densenet_deploy.workflows.tune import tune as workflow
    from densenet_deploy.workflows.tune.candidates import TuneOptions

    options = TuneOptions(
        variants=tuple(variant or ()),
        precisions=listed([precision]),
        recipes=listed([recipe]),
        backends=listed([backend]),
        threads=() if threads is None else whole_numbers("--threads", threads),
        batches=() if batch is None else whole_numbers("--batch", batch),
        device=None if device == "auto" else device,
        goal=goal,
        calibration=calibration,
        samples=samples,
        data=data,
        ratios=numbers("--ratios", ratios) or (),
        finetune=finetune,
        max_drop=max_drop,
        max_latency_ms=max_latency,
        max_memory_mib=max_memory,
    )

    def work(listener: Any) -> Any:
        sources = [with_facts(model, facts) for model in models or ()]
        if dry_run:
            return workflow.dry_run(sources, options, out=output.out, measure_again=measure_again)
        from densenet_deploy.quantization.cache import CalibrationCache

        report = workflow.tune(
            sources,
            options,
            out=output.out,
            force=output.force,
            measure_again=measure_again,
            cache=CalibrationCache(),
            progress=listener,
        )
        return report if report.failure is None else FailedGate(report, report.failure)

    return work


@command(
    "sensitivity",
    examples=(
        "densenet-deploy sensitivity model.onnx --calibration images/",
        "densenet-deploy sensitivity model.onnx --calibration images/ --per layer -o sensitivity.svg",
    ),
)
def sensitivity_command(
    model: FloatModel,
    calibration: Calibration,
    recipe: Recipe = "auto",
    per: Annotated[str, option("NAME", "Unit to measure: layer or block.", "layer block")] = "block",
    data: Annotated[
        Path | None,
        option("DIR|FILE.csv", "Labelled images to measure top-1 on too, as for `evaluate` (default: none)."),
        Reads(),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Calibration images to use at most (default: 512).")] = None,
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
