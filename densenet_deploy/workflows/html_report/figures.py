"""The figures of the page: those of `plot`, as SVG without a background, or a remark on why one cannot be drawn."""

from __future__ import annotations

from typing import Final

from densenet_deploy.analysis.choice import METRICS, ParetoPoint
from densenet_deploy.analysis.plots.cost import CostData
from densenet_deploy.analysis.plots.pareto import ParetoData
from densenet_deploy.analysis.plots.plot import draw, rendered
from densenet_deploy.analysis.plots.sqnr import SensitivityData
from densenet_deploy.errors import DensenetDeployError
from densenet_deploy.workflows.decision import Decision
from densenet_deploy.workflows.html_report.load import Material, ModelSummary
from densenet_deploy.workflows.html_report.page import Block, Figure, Remarks
from densenet_deploy.workflows.plot import PlotRequest, gather

_PARETO_CAPTION: Final = "The numbers are those of the table of candidates."
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

    def pareto(self, decision: Decision) -> list[Figure]:
        """Latency against accuracy of the candidates in the table, or nothing where none has an accuracy."""
        points: dict[str, list[ParetoPoint]] = {}
        for key, point in decision.points():
            points.setdefault(key, []).append(point)
        return [
            self._figure("pareto", ParetoData("the candidates", found, METRICS[key], "this page"), _PARETO_CAPTION)
            for key, found in points.items()
        ]

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
