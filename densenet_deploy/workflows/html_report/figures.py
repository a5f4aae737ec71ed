"""The figures of the page: those of `plot`, as SVG without a background, or a remark on why one cannot be drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final

from densenet_deploy.analysis.choice import METRICS, Metric, ParetoPoint
from densenet_deploy.analysis.plots.cost import CostData
from densenet_deploy.analysis.plots.pareto import ParetoData
from densenet_deploy.analysis.plots.plot import draw, rendered
from densenet_deploy.analysis.plots.sqnr import SensitivityData
from densenet_deploy.errors import DensenetDeployError
from densenet_deploy.workflows.html_report.decide import entries_of
from densenet_deploy.workflows.html_report.load import Material, ModelSummary, is_same_trial
from densenet_deploy.workflows.html_report.page import Block, Figure, Remarks
from densenet_deploy.workflows.plot.plot import PlotRequest, gather
from densenet_deploy.workflows.plot.points import point_label

_PARETO_CAPTION: Final = (
    "Latency per call and accuracy of the models measured here. Blue: no other is at least as good in both and better "
    "in one. Points of benchmark are those at its smallest batch."
)
_TUNED_CAPTION: Final = (
    " The table of tune's results also counts throughput, memory and file size, so a model that is grey in the figure "
    "can be on that front for being smaller."
)
_ACCURACIES: Final = {"top-1": METRICS["top1"], "AUROC": METRICS["auroc"]}
_CAPTIONS: Final = {
    "growth": "Channels and memory after every layer: a layer appends channels, a transition halves size and channels.",
    "connections": "Which layers read which: in its block, every layer reads all layers before it.",
    "reuse": "How much each layer uses what the layers before it made: the mean magnitude of its weights, by source.",
}


class Figures:
    """Draws what the material allows; every figure has a unique name on the page."""

    def __init__(self, material: Material) -> None:
        self._material = material
        self._drawn = 0

    def pareto(self) -> list[Block]:
        """Latency against each kind of accuracy, or nothing where no model has both."""
        return [block for name, metric in _ACCURACIES.items() for block in self._pareto_by(name, metric)]

    def _pareto_by(self, name: str, metric: Metric) -> list[Block]:
        tuned, measured = [*_tuned_points(self._material, name)], [*_measured_points(self._material, name)]
        if not tuned and not measured:
            return []
        if tuned and measured:
            tuned = [dataclasses.replace(point, label=f"{point.label}, by tune") for point in tuned]
        caption = _PARETO_CAPTION + (_TUNED_CAPTION if tuned else "")
        return [self._figure("pareto", ParetoData("the models measured", [*tuned, *measured], metric), caption)]

    def sensitivity(self, data: SensitivityData) -> Figure:
        """What each layer or block costs in INT8."""
        return self._figure("sqnr", data, f"What each layer or block costs in INT8: {data.title}.")

    def of_network(self) -> list[Block]:
        """Cost, growth, connections and reuse of the first model that each can be drawn from."""
        described = [model for model in self._material.models if model.architecture is not None]
        if not described:
            return [Remarks(["No model here says which DenseNet it is, so its structure cannot be drawn."])]
        return [self._cost(described[0]), *(self._of_first(name, described) for name in _CAPTIONS)]

    def _cost(self, model: ModelSummary) -> Figure:
        report = model.architecture
        assert report is not None
        data = CostData(model.name, report.cost, report.activation_memory, report.batch)
        return self._figure("cost", data, "Parameters, multiply-accumulates and memory, block by block.")

    def _of_first(self, name: str, models: list[ModelSummary]) -> Block:
        why = ""
        for model in models:
            try:
                gathered = gather(name, PlotRequest((model.temporary or model.path,)))
            except DensenetDeployError as exc:
                why = why or f"{name}: {exc}"
                continue
            notes = "".join(f" Note: {note}." for note in gathered.notes)
            return self._figure(name, gathered.data, f"{_CAPTIONS[name]} Drawn from {model.name}.{notes}")
        return Remarks([why])

    def _figure(self, name: str, data: object, caption: str) -> Figure:
        figure = draw(name, data)
        for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
            patch.set_visible(False)  # the page's own colour shows, dark or light
        self._drawn += 1
        return Figure(f"figure{self._drawn}", rendered(figure, "svg", name), caption)


def _tuned_points(material: Material, name: str) -> Iterator[ParetoPoint]:
    for tuning in material.tunings:
        for trial in tuning.report.pareto:
            found = trial.accuracy
            if trial.latency_ms and found is not None and found.name == name:
                label = point_label(str(trial.model), trial.backend, trial.threads, trial.batch)
                is_chosen = is_same_trial(trial, tuning.report.chosen)
                yield ParetoPoint(label, trial.latency_ms, found.value, trial.interval_ms, chosen=is_chosen)


def _measured_points(material: Material, name: str) -> Iterator[ParetoPoint]:
    for entry in entries_of(material):
        measured, found = entry.measured, entry.accuracy
        if found is not None and found.name == name:
            label = point_label(measured.model, measured.backend, measured.threads, measured.batch)
            yield ParetoPoint(label, measured.median_ms, found.value, measured.interval_ms)
