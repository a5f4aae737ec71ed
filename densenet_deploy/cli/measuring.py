"""Commands that measure models: `validate`, `evaluate`, `benchmark`, `tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from densenet_deploy.cli.app import Work, command, with_facts
from densenet_deploy.cli.options import (
    BACKEND,
    BACKEND_HELP,
    CLUSTER,
    DEVICE,
    DEVICE_HELP,
    ENGINE,
    FAST_DECODE,
    GATES,
    MODEL,
    RECIPE,
    VARIANT,
    VARIANT_HELP,
    Output,
    RunnerChoice,
    model_argument,
    numbers,
    whole_numbers,
)
from densenet_deploy.cli.outcome import FailedGate
from densenet_deploy.cli.parameters import REQUIRED, Arguments, Options, Reads, Writes, flag, listed, option
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
    reference: str = model_argument(
        "REF", "The reference model.", reads=Reads("session", more=_layers, backends=lambda a: (a.reference_backend,))
    ),
    candidate: str = model_argument(
        "CAND", "The candidate model.", reads=Reads("session", more=_layers, backends=lambda a: (a.candidate_backend,))
    ),
    data: Path | None = option("DIR", "Images to run on (default: seeded noise and synthetic images).", reads=Reads()),
    samples: int = option("N", "Number of inputs.", default=16),
    per_layer: bool = flag("--per-layer", "Compare inner tensors too, worst first."),
    gate: list[str] | None = GATES,
    reference_backend: str | None = option("NAME", "Backend of REF (default: by file type).", **BACKEND),
    candidate_backend: str | None = option("NAME", "Backend of CAND (default: by file type).", **BACKEND),
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


class Evaluating(Options):
    """How to evaluate: the fields of `EvaluateOptions`."""

    ground_truth: Path | None = option(
        "FILE", "Classes of a flat folder: one `FILE CLASS`, or `CLASS`, per line (default: none).", reads=Reads()
    )
    against: str | None = option(
        "OTHER",
        "Another model of the same task to compare with (default: none).",
        reads=Reads("session", backends=lambda a: (a.how.against_backend,)),
    )
    against_backend: str | None = option("NAME", "Backend of OTHER (default: the file's).", **BACKEND)
    batch: int = option("N", "Images per inference.", default=16)
    max_bad: int = option("N", "Unreadable images to tolerate.", default=0)
    decode_threads: int | None = option("N", "Threads that decode images (default: one per CPU).")
    fast_decode: bool = FAST_DECODE
    engine: str = ENGINE
    address: str | None = CLUSTER
    workers: int | None = option("N", "--engine ray: processes that run the model (default: as many as fit).")


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
    model: str = MODEL,
    data: Path = option(
        "DIR|FILE.csv",
        "Labelled images: a folder per class, a flat folder with --ground-truth, or a CSV (file,label).",
        default=REQUIRED,
        reads=Reads(),
    ),
    *,
    how: Evaluating,
    facts: ModelFacts,
    running: RunnerChoice,
) -> Work:
    """Measure how good a model is at its task on labelled images."""
    from densenet_deploy.workflows.evaluate import EvaluateOptions, evaluate

    options, runner_options = EvaluateOptions(**vars(how)), running.options()
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


class Timing(Options):
    """What to time, and for how long: fields of `BenchmarkOptions`."""

    scenario: str = option(
        "NAME", "single-stream, offline or camera.", "single-stream offline camera", default="single-stream"
    )
    fps: float | None = option("X", "camera: frames per second (default: none; required).")
    streams: int | None = option("N", "offline: concurrent inferences (default: one per CPU).")
    seconds: float = option("S", "Measuring time per candidate, in seconds.", default=5.0)
    rounds: int = option("N", "Rounds that this time is divided into.", default=10)
    compare: Path | None = option(
        "OLD.json", "Results of an earlier run to compare with (default: none).", reads=Reads()
    )


@command(
    "benchmark",
    examples=(
        "densenet-deploy benchmark model.onnx model.int8.onnx",
        "densenet-deploy benchmark model.onnx --backend onnxruntime,openvino --batch 1,8 -o results.json",
    ),
)
def benchmark_command(
    models: list[str] | None = model_argument(
        "[MODEL...]",
        "Models, each measured in its own process.",
        default=None,
        reads=Reads("session", backends=lambda a: listed(a.backend or ()) or (None,)),
    ),
    variant: list[str] | None = option(
        "NAME", "An untrained network to measure too; repeatable (default: none).", **VARIANT
    ),
    backend: list[str] | None = option(
        "NAME,...", f"{BACKEND_HELP}; separated by commas or repeated (default: each file's).", **BACKEND
    ),
    device: str = option("NAME,...", f"{DEVICE_HELP}; separated by commas.", default="auto", **DEVICE),
    batch: str = option("N,N,...", "Images per inference.", default="1"),
    threads: str | None = option("N,N,...", "CPU threads per inference (default: all that are available)."),
    *,
    how: Timing,
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
        **vars(how),
    )
    return lambda listener: benchmark(
        [with_facts(model, facts) for model in models or ()],
        options,
        out=output.out,
        force=output.force,
        progress=listener,
    )


class Tuning(Options):
    """What is tried, and with which images: fields of `TuneOptions`."""

    calibration: Path | None = option(
        "DIR|FILE", "Calibration images, or a .npy or .npz file (default: none, so no INT8).", reads=Reads()
    )
    data: Path | None = option(
        "DIR|FILE.csv", "Labelled images to measure the accuracy on, as for `evaluate` (default: none).", reads=Reads()
    )
    max_drop: float | None = option(
        "POINTS",
        "Largest loss of top-1, or of a multilabel model's mean AUROC, in percentage points; without --data, of "
        "unchanged classes (default: none).",
    )
    goal: str = option(
        "NAME", "latency (of the smallest batch) or throughput.", "latency throughput", default="latency"
    )
    finetune: bool = flag("--finetune/--no-finetune", "Fine-tune INT8 and pruned files: up to 5 minutes for each.")
    samples: int = option("N", "Calibration images to use at most.", default=512)


@command(
    "tune",
    examples=(
        "densenet-deploy tune model.onnx --calibration images/ --data val/ --max-drop 1",
        "densenet-deploy tune chest.pth --calibration images/ --data val/ --ratios 0.25,0.5 --finetune --max-drop 0.5",
        "densenet-deploy tune --variant 121 --max-latency 50 --dry-run",
    ),
)
def tune_command(
    models: list[str] | None = model_argument(
        "[MODEL...]", "FP32 ONNX files, checkpoints and names.", default=None, reads=Reads("graph", "session")
    ),
    variant: list[str] | None = option(
        "NAME", f"Untrained variants too: {VARIANT_HELP}; repeatable (default: none).", **VARIANT
    ),
    *,
    how: Tuning,
    max_latency: float | None = option("MS", "Longest median latency in ms (default: no limit)."),
    max_memory: float | None = option("MIB", "Most memory of the process in MiB (default: no limit)."),
    precision: str = option(
        "NAME,...", "fp32, fp16, bf16, int8 or auto for all.", "fp32 fp16 bf16 int8 auto", default="auto"
    ),
    recipe: str = option(
        "NAME|FILE.toml,...",
        "INT8: onnxruntime, openvino, tensorrt, recipe files, or auto for all that run here.",
        default="auto",
        **RECIPE,
    ),
    backend: str = option(
        "NAME,...", "Backends to try, or auto for all that are installed.", default="auto", **BACKEND
    ),
    device: str = option("NAME", f"{DEVICE_HELP}.", default="auto", **DEVICE),
    threads: str | None = option("N,N,...", "CPU threads per inference (default: 1, 2, 4, ... up to all)."),
    batch: str | None = option("N,N,...", "Images per inference (default: 1; 1,8,32 for throughput)."),
    ratios: str | None = option(
        "F,F,...", "Also pruned: shares of bottleneck channels to remove; needs --max-drop (default: none)."
    ),
    dry_run: bool = flag("--dry-run", "List the candidates and the work to do."),
    measure_again: bool = flag("--measure-again", "Ignore cached measurements and accuracies."),
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
        ratios=numbers("--ratios", ratios) or (),
        max_latency_ms=max_latency,
        max_memory_mib=max_memory,
        **vars(how),
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
