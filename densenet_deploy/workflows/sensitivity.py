"""Sensitivity: what each layer or block of a quantized model costs, by files that were written and run.

Two files for each: one in which only it is INT8, and one in which only it is float. They answer different questions.
Noise of a block's bus does not belong to one layer: it appears with the first layer that reads the bus in INT8 and
disappears with the last. So a layer may be harmless alone, and leaving it float may still gain nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Unpack

from densenet_deploy.analysis.plots.plot import SUFFIXES as FIGURE_SUFFIXES
from densenet_deploy.analysis.plots.plot import draw, rendered
from densenet_deploy.analysis.plots.sqnr import SensitivityData
from densenet_deploy.analysis.sensitivity import Cost, Sensitivity, most_sensitive_first
from densenet_deploy.artifacts import StrPath, output_path, prepare_output, write_file
from densenet_deploy.errors import UsageError, printable
from densenet_deploy.model import untrained_note
from densenet_deploy.options import or_default, require_choice
from densenet_deploy.packages import require_packages
from densenet_deploy.reports import TimedReport, line, table, wrote
from densenet_deploy.workflows.evaluate import evaluate
from densenet_deploy.workflows.evaluation.report import EvaluateReport
from densenet_deploy.workflows.export import as_onnx
from densenet_deploy.workflows.float_model import float32_form, normalized_form, sized_by
from densenet_deploy.workflows.load import LoadOptions, preprocessing_of
from densenet_deploy.workflows.quantize.layer_choice import Trials, stage_of
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.preparation import Int8Preparation, chosen_recipe, prepare_int8
from densenet_deploy.workflows.stages import Listener, Stages, Step, in_notebook

if TYPE_CHECKING:
    from densenet_deploy.quantization.cache import CalibrationCache

UNITS: Final = ("layer", "block")


@dataclass(frozen=True)
class SensitivityOptions:
    """What to measure.

    >>> SensitivityOptions(per="layer").per
    'layer'

    Attributes:
        per: `layer` or `block`.
        data: labelled images, as for `evaluate`, to measure the top-1 of a multiclass model on as well; None measures
            SQNR alone.
        quantization: how INT8 is written; its limits on accuracy and speed, and its `float_layers`, are ignored here.
    """

    per: str = "block"
    data: Path | None = None
    quantization: QuantizeOptions = field(default_factory=QuantizeOptions)

    def __post_init__(self) -> None:
        require_choice("per", self.per, UNITS)


@dataclass(frozen=True, kw_only=True)
class SensitivityReport(TimedReport):
    """What every layer or block costs, in execution order, beside the whole network in INT8 and in float.

    Attributes:
        model: the float model.
        recipe: how INT8 was written.
        per: `layer` or `block`.
        float_top1: top-1 of the float model, a fraction; None where it was not measured.
        int8: everything in INT8.
        sensitivity: one for each layer or block that the recipe writes in INT8.
        file: what was written, if anything.
    """

    kind: ClassVar[str] = "sensitivity"

    model: str
    recipe: str
    per: str
    float_top1: float | None
    int8: Cost
    sensitivity: tuple[Sensitivity, ...]
    file: Path | None = None

    def to_text(self) -> str:
        top1 = "" if self.int8.top1 is None else f", top-1 {self.int8.top1:.2%} (float {self.float_top1:.2%})"
        return "\n".join(
            [
                *wrote(self.file),
                line("model", f"{printable(self.model)}, recipe {self.recipe}"),
                line("INT8", f"{self.int8.sqnr_db:.1f} dB with everything in INT8{top1}"),
                *self.stage_lines(),
                "",
                *table(
                    ("", "only this INT8", "only this float", "gain"),
                    map(self._row, most_sensitive_first(self.sensitivity)),
                    (1, 2, 3),
                ),
            ]
        )

    def _row(self, one: Sensitivity) -> tuple[str, ...]:
        gain = one.only_float.sqnr_db - self.int8.sqnr_db
        return one.name, str(one.only_int8), str(one.only_float), f"{gain:+5.1f}"

    @property
    def plot_data(self) -> SensitivityData:
        """What the figure is drawn from."""
        return SensitivityData(f"{Path(self.model).name}, recipe {self.recipe}", self.sensitivity, self.int8)

    def content(self, suffix: str) -> bytes:
        """Return the report as a file with `suffix`: `.json`, or that of a figure.

        Raises:
            MissingPackageError: if a figure is asked for and matplotlib is not installed.
        """
        if suffix in FIGURE_SUFFIXES:
            return rendered(draw("sqnr", self.plot_data), suffix[1:], "densenet-deploy plot sqnr")
        return self.to_file()


def sensitivity(
    source: Any,
    calibration: Any,
    options: SensitivityOptions | None = None,
    *,
    out: StrPath | None = None,
    force: bool = False,
    cache: CalibrationCache | None = None,
    progress: Listener = in_notebook,
    **stated: Unpack[LoadOptions],
) -> SensitivityReport:
    """Measure what each layer or block of a model costs in INT8, on the first 32 calibration images.

    >>> parts = sensitivity("digits.onnx", "calibration/samples").sensitivity
    >>> [part.name.removeprefix("features.") for part in parts]
    ['conv0', 'denseblock1', 'transition1', 'denseblock2', 'transition2', 'denseblock3']

    Args:
        source: whatever `load` takes that holds or exports to a float32 ONNX graph.
        calibration: as for `quantize`.
        options: see `SensitivityOptions`.
        out: a `.json`, `.png` or `.svg` file, or a folder for the JSON; None writes nothing.
        force: replace whatever stands at `out`.
        cache: of calibrated ranges.
        progress: is called when a stage begins, and after each of its steps.
        **stated: facts about the source; see `load`.

    Raises:
        UsageError: if an option is invalid, or `data` is given for a model that has no top-1.
        ModelFileError: if the source is not a float32 image model.
        DataError: if the calibration data are too few, all alike, or not normalized, or `data` holds no class folders.
        OutputExistsError: if something else stands where the result should go.
        MissingPackageError: if a package is missing: matplotlib for a figure.
    """
    require_packages("export", "onnx", "onnxscript")
    options, stages = or_default(options, SensitivityOptions), Stages(progress)
    recipe = chosen_recipe(options.quantization.recipe)
    given = sized_by(float32_form(as_onnx(source, stages, **stated)), calibration)
    model, from_pixels = normalized_form(given), preprocessing_of(given).takes_pixels
    path = _output(out, model.name, force=force)
    ready = prepare_int8(model, calibration, options.quantization, stages, cache, from_pixels=from_pixels)
    with stages("float"):
        trials = Trials(ready, model)
        float_top1 = None if options.data is None else _top1(evaluate(model, options.data))
    groups, notes = _groups(ready, options.per)
    with stages("trials") as step:
        whole, found = _measured(trials, options.data, groups, step)
    remark = f"SQNR on {trials.count} calibration images"
    notes = (*model.notes, *untrained_note(model.manifest), ready.note, *notes, remark)
    report = SensitivityReport(
        model=str(given.path or given.name),
        recipe=recipe,
        per=options.per,
        float_top1=float_top1,
        int8=whole,
        sensitivity=found,
        file=path,
        stages=stages.seconds,
        notes=tuple(dict.fromkeys(notes)),
    )
    if path is not None:
        write_file(path, report.content(path.suffix.lower()))
    return report


def _measured(
    trials: Trials, data: Path | None, groups: Mapping[str, tuple[str, ...]], step: Step
) -> tuple[Cost, tuple[Sensitivity, ...]]:
    """Return the cost of everything in INT8, and that of each group."""

    def cost(float_layers: Collection[str]) -> Cost:
        top1 = None if data is None else _top1(trials.evaluated(float_layers, data))
        return Cost(trials.sqnr_db(float_layers), top1)

    whole, found, every = cost(()), list[Sensitivity](), frozenset(layer.name for layer in trials.layers)
    for done, (name, layers) in enumerate(groups.items(), start=1):
        only_int8, only_float = cost(every - set(layers)), cost(layers)
        gain = only_float.sqnr_db - whole.sqnr_db
        found.append(Sensitivity(name, layers, only_int8, only_float, gain if math.isfinite(gain) else None))
        step(done, len(groups))
    return whole, tuple(found)


def _top1(report: EvaluateReport) -> float:
    if report.top1 is None:
        why = f"measures top-1, and {report.model} is a {report.task} model"
        raise UsageError("--data", why, "omit it: SQNR is measured without labels")
    return report.top1


def _groups(ready: Int8Preparation, per: str) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Layers by group, in execution order, and a note about those that the recipe keeps float anyway."""
    written = ready.writer.write()
    groups: dict[str, tuple[str, ...]] = {}
    for name in written.layers_int8:
        group = name if per == "layer" else stage_of(name)
        groups[group] = (*groups.get(group, ()), name)
    kept = written.layers_float
    return groups, (f"the recipe keeps these float, so they were not tried: {', '.join(kept)}",) if kept else ()


def _output(out: StrPath | None, name: str, *, force: bool) -> Path | None:
    if out is None:
        return None
    if Path(out).suffix.lower() in FIGURE_SUFFIXES and not Path(out).is_dir():
        require_packages("plot", "matplotlib")
        path = Path(out)
    else:
        path = output_path(os.fspath(out), f"{name}.sensitivity.json")
    prepare_output(path, None, force=force)
    return path
