"""The commands that made a model and its measurements, as far as files record what was asked for."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from densenet_deploy.errors import DensenetDeployError
from densenet_deploy.manifest import Manifest, Preprocessing
from densenet_deploy.variants import find_variant
from densenet_deploy.variants.spec import DenseNetSpec
from densenet_deploy.workflows.html_report.inputs import Benchmark, file_of
from densenet_deploy.workflows.html_report.material import Material, ReportSources
from densenet_deploy.workflows.html_report.models import ModelFacts
from densenet_deploy.workflows.html_report.tuning import Tuning
from densenet_deploy.workflows.load import is_checkpoint
from densenet_deploy.workflows.plot.pareto_points import read_report

_PROGRAM: Final = "densenet-deploy"
_FIGURES: Final = "CALIBRATION_FIGURES"
_LABELLED: Final = "LABELLED_FIGURES"
_FLOAT: Final = "FLOAT_MODEL.onnx"
_LABELS: Final = "LABELS.txt"
_SECONDS: Final = "SECONDS"
_FOLDER: Final = "PATH"
_TUNE_FOLDER: Final = Path("artifacts/tune")
_MIB: Final = 2**20


def commands_for(material: Material) -> Iterator[tuple[str, list[str]]]:
    """Yield groups of command lines with a sentence on each group."""
    made = [line for model in material.models for line in _making(model, material.models)]
    if made:
        yield "The models.", list(dict.fromkeys(made))
    measured = [
        *_tunings(material),
        *map(_benchmark, material.benchmarks),
        *_validations(material),
        *_evaluations(material),
    ]
    measured += [*_sensitivities(material.sources)]
    if measured:
        yield "The measurements.", list(dict.fromkeys(measured))


def report_command(sources: ReportSources, out: Path) -> str:
    """Return the line that makes this page."""
    words = ["report", *map(str, sources.models), "-o", str(out)]
    for option, paths in sources.by_option().items():
        words += [word for path in paths for word in (option, str(path))]
    if sources.max_drop != ReportSources(sources.models).max_drop:
        words += ["--max-drop", f"{sources.max_drop:g}"]
    return _line(words)


def _line(words: Iterable[str]) -> str:
    return shlex.join([_PROGRAM, *words])


def _making(model: ModelFacts, models: Sequence[ModelFacts]) -> list[str]:
    manifest = model.manifest
    if manifest is None or model.kind == "checkpoint":
        return []
    if model.kind == "onnx" and manifest.precision == "fp32":
        return [_line(_export(manifest, model.path, _checkpoint(manifest, models)))]
    source = _float_model(model, models)
    if model.kind == "engine":
        calibrated = ["--calibration", _FIGURES] if model.precision == "int8" else []
        return [_line(["build-trt", source, f"--{model.precision}", *calibrated, "-o", str(model.path)])]
    if manifest.precision == "int8":
        recipe = ["--recipe", manifest.recipe] if manifest.recipe is not None else []
        return [_line(["quantize", source, "--calibration", _FIGURES, *recipe, "-o", str(model.path)])]
    return [_line(["cast", source, f"--{manifest.precision}", "-o", str(model.path)])]


def _float_model(model: ModelFacts, models: Sequence[ModelFacts]) -> str:
    """The float file with the same weights, if it is one of the models."""
    assert model.manifest is not None
    for other in models:
        facts = other.manifest
        same = facts is not None and facts.weights == model.manifest.weights and facts.precision == "fp32"
        if other is not model and other.kind == "onnx" and same:
            return str(other.path)
    return _FLOAT


def _checkpoint(manifest: Manifest, models: Sequence[ModelFacts]) -> ModelFacts | None:
    """The checkpoint with these weights, if it is one of the models."""
    checkpoints = [model for model in models if model.kind == "checkpoint" and model.manifest is not None]
    same = (model for model in checkpoints if model.manifest and model.manifest.weights == manifest.weights)
    return next(same, None)


def _export(manifest: Manifest, path: Path, checkpoint: ModelFacts | None) -> list[str]:
    words = ["export", *_network(manifest), "--weights", _weights(manifest, checkpoint)]
    words += _prepared(manifest.preprocessing) + _labelled(manifest, checkpoint)
    words += ["--batch", "dynamic" if manifest.batch is None else str(manifest.batch)]
    words += [] if manifest.opset is None else ["--opset", str(manifest.opset)]
    return [*words, "-o", str(path)]


def _weights(manifest: Manifest, checkpoint: ModelFacts | None) -> str:
    """Where the weights are. A file is recorded by its name alone, so where it lies is for the reader to say."""
    source = manifest.weights.source
    if checkpoint is not None:
        return str(checkpoint.path)
    return f"{_FOLDER}/{source}" if is_checkpoint(Path(source)) else source


def _labelled(manifest: Manifest, checkpoint: ModelFacts | None) -> list[str]:
    """The option for labels, unless public weights or the checkpoint bring them."""
    brought = checkpoint.manifest.labels if checkpoint is not None and checkpoint.manifest is not None else ()
    source = manifest.weights.source
    is_public = source != "none" and not is_checkpoint(Path(source))
    if not manifest.labels or manifest.labels == brought or is_public:
        return []
    return ["--labels", _LABELS]


def _network(manifest: Manifest) -> list[str]:
    """The variant, or the numbers of a custom network; classes and head."""
    try:
        spec = DenseNetSpec.from_facts(manifest.spec)
    except DensenetDeployError:
        return []
    words = ["--num-classes", str(spec.num_classes), "--head", spec.head]
    try:
        known = find_variant(manifest.variant).spec
    except DensenetDeployError:
        known = None
    if known is not None and known.same_architecture(spec):
        return ["--variant", manifest.variant, *words]
    numbers = dataclasses.asdict(spec)
    for name in ("growth_rate", "blocks", "init_features", "compression", "bn_size", "drop_rate", "stem"):
        value = ",".join(map(str, spec.blocks)) if name == "blocks" else str(numbers[name])
        words += [f"--{name.replace('_', '-')}", value]
    return words


def _prepared(prepared: Preprocessing) -> list[str]:
    mean, deviation = (",".join(map(repr, triple)) for triple in (prepared.mean, prepared.std))
    sizes = ["--image-size", str(prepared.image_size), "--resize", str(prepared.resize)]
    return [*sizes, "--mean", mean, "--std", deviation]


def _tunings(material: Material) -> Iterator[str]:
    """How each was tuned, as far as its candidates and limits tell, and how its choice is timed again."""
    for one in material.tunings:
        yield f"{_line([*_tune(one, material.models), '--json'])} > {shlex.quote(str(one.path))}"
        if one.chosen is not None and one.chosen.command:
            yield one.chosen.command


def _tune(tuning: Tuning, models: Sequence[ModelFacts]) -> list[str]:
    tried, limits = tuning.tried, tuning.limits
    floats = [one.model for one in tried if one.precision == "fp32"] or [*map(str, float_models(models))] or [_FLOAT]
    words = ["tune", *dict.fromkeys(floats)]
    words += ["--calibration", _FIGURES] if any(one.precision == "int8" for one in tried) else []
    words += ["--data", _LABELLED] if any(one.top1 is not None for one in tried) else []
    words += [] if limits.max_drop is None else ["--max-drop", f"{limits.max_drop:g}"]
    words += [] if limits.max_latency_ms is None else ["--max-latency", f"{limits.max_latency_ms:g}"]
    words += [] if limits.max_memory_bytes is None else ["--max-memory", f"{limits.max_memory_bytes / _MIB:g}"]
    words += ["--goal", tuning.goal] if tuning.goal not in ("", "latency") else []
    for option, values in (
        ("--backend", [one.backend for one in tried]),
        ("--threads", [str(one.threads) for one in tried if one.threads is not None]),
        ("--batch", [str(one.batch) for one in tried]),
    ):
        words += [option, ",".join(dict.fromkeys(values))] if values else []
    is_elsewhere = tuning.folder is not None and tuning.folder != _TUNE_FOLDER
    return [*words, *(["-o", str(tuning.folder)] if is_elsewhere else [])]


def float_models(models: Sequence[ModelFacts]) -> list[Path]:
    """The float32 ONNX files among the models."""
    return [model.path for model in models if model.kind == "onnx" and model.precision == "fp32"]


def _benchmark(benchmark: Benchmark) -> str:
    results = benchmark.results
    words = ["benchmark", *dict.fromkeys(result.model for result in results)]
    words += [word for name in dict.fromkeys(result.backend for result in results) for word in ("--backend", name)]
    words += ["--batch", ",".join(dict.fromkeys(str(result.batch) for result in results))]
    threads = dict.fromkeys(str(result.threads) for result in results if result.threads is not None)
    words += ["--threads", ",".join(threads)] if threads else []
    if results:
        first = results[0]
        words += ["--scenario", first.scenario] if first.scenario != "single-stream" else []
        words += ["--fps", f"{first.fps:g}"] if first.fps is not None else []
        words += ["--streams", str(first.streams)] if first.streams != 1 else []
        seconds = benchmark.seconds_each
        words += ["--seconds", _SECONDS if seconds is None else f"{seconds:g}"]
        words += ["--rounds", str(first.rounds)] if first.rounds else []
    return f"{_line([*words, '--json'])} > {shlex.quote(str(benchmark.path))}"


def _validations(material: Material) -> Iterator[str]:
    for one in material.validations:
        per_layer = ["--per-layer"] if one.layers else []
        words = ["validate", file_of(one.reference), one.model, *per_layer, "--json"]
        yield f"{_line(words)} > {shlex.quote(str(one.path))}"


def _evaluations(material: Material) -> Iterator[str]:
    for one in material.accuracies:
        against = ["--against", one.against] if one.against else []
        backend = ["--backend", one.backend] if one.backend else []
        words = ["evaluate", one.model, "--data", _LABELLED, *backend, *against, "--json"]
        yield f"{_line(words)} > {shlex.quote(str(one.path))}"


def _sensitivities(sources: ReportSources) -> Iterator[str]:
    for path in sources.sensitivities:
        facts = read_report(path)
        words = ["sensitivity", str(facts.get("model")), "--calibration", _FIGURES]
        words += ["--recipe", str(facts.get("recipe")), "--per", str(facts.get("per", "block")), "--json"]
        yield f"{_line(words)} > {shlex.quote(str(path))}"
