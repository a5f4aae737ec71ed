"""Sensitivity: what each layer or block of a quantized model costs, by files that were written and run.

Two files for each: one in which only it is INT8, and one in which only it is float. They answer different questions.
Noise of a block's bus is no single layer's: it comes with the first layer that reads the bus in INT8 and goes with the
last. So a layer may be harmless alone and still gain nothing when it is spared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from densenet_deploy.analysis.plots.plot import SUFFIXES as IMAGE_SUFFIXES
from densenet_deploy.analysis.plots.plot import draw, rendered, require_matplotlib
from densenet_deploy.analysis.plots.sqnr import SensitivityData
from densenet_deploy.analysis.sensitivity import Fidelity, Sensitivity, most_sensitive_first
from densenet_deploy.artifacts import Artifact, output_path, prepare_output, write_file
from densenet_deploy.errors import printable
from densenet_deploy.options import require_choice
from densenet_deploy.packages import require_packages
from densenet_deploy.workflows.evaluate.evaluate import evaluate
from densenet_deploy.workflows.notes import untrained_note
from densenet_deploy.workflows.quantize.layer_choice import Trials, block_of
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.preparation import Int8Ready, chosen_recipe, prepare_int8
from densenet_deploy.workflows.stages import Listener, Stages, Step, ignore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from densenet_deploy.quantize.cache import CalibrationCache

UNITS: Final = ("layer", "block")


@dataclass(frozen=True)
class SensitivityOptions:
    """What to measure.

    Attributes:
        per: `layer` or `block`.
        data: a labelled folder, one folder a class, to measure top-1 on as well; None measures SQNR alone.
        quantization: how INT8 is written; its demands on accuracy and speed, and its `float_layers`, have no say here.
        out: a `.json`, `.png` or `.svg` file, or a folder for the JSON; None writes no file.
        force: replace whatever stands there.
    """

    per: str = "block"
    data: Path | None = None
    quantization: QuantizeOptions = field(default_factory=QuantizeOptions)
    out: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        require_choice("per", self.per, UNITS)


@dataclass(frozen=True)
class SensitivityReport:
    """What every layer or block costs, in execution order, beside the whole network in INT8 and in float.

    Attributes:
        model: the float file.
        recipe: how INT8 was written.
        per: `layer` or `block`.
        float_top1: top-1 of the float model, a fraction; None where it was not measured.
        whole: everything in INT8.
        found: one for each layer or block that the recipe writes in INT8.
        file: what was written, if anything.
    """

    model: Path
    recipe: str
    per: str
    float_top1: float | None
    whole: Fidelity
    found: tuple[Sensitivity, ...]
    stages: Mapping[str, float]
    notes: tuple[str, ...]
    file: Path | None = None

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types; in execution order, null where infinite or not measured."""
        return {
            "model": str(self.model),
            "recipe": self.recipe,
            "per": self.per,
            "float_top1": self.float_top1,
            "int8": self.whole.to_json(),
            "sensitivity": [
                {
                    "name": one.name,
                    "layers": list(one.layers),
                    "only_int8": one.only_int8.to_json(),
                    "only_float": one.only_float.to_json(),
                    "gain_db": _finite(one.only_float.sqnr_db - self.whole.sqnr_db),
                }
                for one in self.found
            ],
            "file": str(self.file) if self.file is not None else None,
            "seconds": sum(self.stages.values()),
            "stages": dict(self.stages),
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return lines for people, the most sensitive first."""
        width = max([len(one.name) for one in self.found], default=0)
        top1 = f", top-1 {self.whole.top1:.2%} (float {self.float_top1:.2%})" if self.whole.top1 is not None else ""
        head = f"{'':{width}}  only this INT8  only this float   gain"
        return "\n".join(
            [
                *([f"wrote       {printable(self.file)}"] if self.file is not None else []),
                f"model       {printable(self.model)}, recipe {self.recipe}",
                f"INT8        {self.whole.sqnr_db:.1f} dB with everything in INT8{top1}",
                f"seconds     {sum(self.stages.values()):.1f}",
                "",
                head,
                *(self._row(one, width) for one in most_sensitive_first(self.found)),
            ]
        )

    def _row(self, one: Sensitivity, width: int) -> str:
        alone, spared = (f"{cost.sqnr_db:.1f} dB{_percent(cost.top1)}" for cost in (one.only_int8, one.only_float))
        return f"{one.name:{width}}  {alone:>14}  {spared:>15}  {one.only_float.sqnr_db - self.whole.sqnr_db:+5.1f}"

    def figure(self) -> Figure:
        """Draw the report.

        Raises:
            MissingPackageError: if matplotlib is not installed.
        """
        return draw("sqnr", SensitivityData.of(self.model, self.recipe, self.found, self.whole))

    def content(self, suffix: str) -> bytes:
        """Return the report as a file with `suffix`: `.json`, `.png` or `.svg`.

        Raises:
            MissingPackageError: if an image is asked for and matplotlib is not installed.
        """
        if suffix in IMAGE_SUFFIXES:
            return rendered(self.figure(), suffix[1:], "densenet-deploy plot sqnr")
        return (json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n").encode()


def sensitivity(
    model: Path,
    calibration: Path,
    options: SensitivityOptions | None = None,
    *,
    cache: CalibrationCache | None = None,
    listener: Listener = ignore,
) -> SensitivityReport:
    """Measure what each layer or block of `model` costs in INT8, on the first 32 calibration images.

    Raises:
        UsageError: if an option cannot be meant.
        ModelFileError: if the file is no float32 image model.
        DataError: if the calibration data are too few, all alike, or not normalized, or `data` is no tree of classes.
        OutputExistsError: if something else stands where the result should go.
        MissingPackageError: if a package is missing: matplotlib for an image.
    """
    require_packages("export", "onnx", "onnxscript")
    options = options or SensitivityOptions()
    path = _output(options, model)
    artifact, stages = Artifact.open(model), Stages(listener)
    ready = prepare_int8(artifact, calibration, options.quantization, stages, cache)
    with stages("float"):
        bench = _Bench(Trials(ready.writer, ready.manifest, model, ready.data), options.data)
        float_top1 = evaluate(model, options.data).top1 if options.data is not None else None
    groups, notes = _groups(ready, options.per)
    with stages("trials") as step:
        whole, found = bench.measure(groups, step)
    recipe = chosen_recipe(options.quantization.recipe)
    said = (*untrained_note(artifact.manifest), ready.note, *notes, f"SQNR on {bench.count} calibration images")
    report = SensitivityReport(model, recipe, options.per, float_top1, whole, found, stages.seconds, said, path)
    if path is not None:
        write_file(path, report.content(path.suffix.lower()))
    return report


class _Bench:
    """Tries files in which other layers are float."""

    def __init__(self, trials: Trials, data: Path | None) -> None:
        self._trials, self._data = trials, data
        self._layers = frozenset(layer.name for layer in trials.layers)

    @property
    def count(self) -> int:
        return self._trials.count

    def measure(self, groups: Mapping[str, tuple[str, ...]], step: Step) -> tuple[Fidelity, tuple[Sensitivity, ...]]:
        """Return the cost of everything in INT8, and that of each group."""
        whole, found = self._cost(()), []
        for done, (name, layers) in enumerate(groups.items(), start=1):
            alone, spared = self._cost(self._layers - set(layers)), self._cost(layers)
            found.append(Sensitivity(name, layers, alone, spared))
            step(done, len(groups))
        return whole, tuple(found)

    def _cost(self, float_layers: Collection[str]) -> Fidelity:
        top1 = self._trials.top1(float_layers, self._data) if self._data is not None else None
        return Fidelity(self._trials.sqnr_db(float_layers), top1)


def _groups(ready: Int8Ready, per: str) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Layers by group, in execution order, and a note about those that the recipe keeps float anyway."""
    written = ready.writer.write(ready.manifest)
    groups: dict[str, tuple[str, ...]] = {}
    for name in written.layers_int8:
        group = name if per == "layer" else block_of(name)
        groups[group] = (*groups.get(group, ()), name)
    kept = written.layers_float
    return groups, (f"the recipe keeps float, and they were not tried: {', '.join(kept)}",) if kept else ()


def _output(options: SensitivityOptions, model: Path) -> Path | None:
    if options.out is None:
        return None
    suffix = Path(options.out).suffix.lower()
    if suffix in IMAGE_SUFFIXES and not Path(options.out).is_dir():
        require_matplotlib()
        path = Path(options.out)
    else:
        path = output_path(options.out, f"{model.stem}.sensitivity.json")
    prepare_output(path, None, force=options.force)
    return path


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _percent(top1: float | None) -> str:
    return f" {top1:.2%}" if top1 is not None else ""
