"""The figures of a report: those of `plot`, as SVG without a background, or a remark on why one cannot be drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Final

from densenet_deploy.analysis.pareto import ParetoPoint
from densenet_deploy.analysis.plots.cost import CostData
from densenet_deploy.analysis.plots.pareto import ParetoData
from densenet_deploy.analysis.plots.plot import draw, rendered
from densenet_deploy.analysis.report.page import Block, Column, Figure, Remarks, Table
from densenet_deploy.analysis.sensitivity import Cost, Sensitivity
from densenet_deploy.errors import DensenetDeployError, printable
from densenet_deploy.workflows.html_report import cells
from densenet_deploy.workflows.html_report.decision import entries_of
from densenet_deploy.workflows.html_report.material import Material
from densenet_deploy.workflows.html_report.models import ModelFacts
from densenet_deploy.workflows.plot.data import PlotRequest, gather
from densenet_deploy.workflows.plot.sensitivity_data import sensitivity_data

_PARETO_CAPTION: Final = (
    "What was measured of the models here, at the smallest batch. Blue, the front of this figure, is about two goals "
    "alone: the latency of a call and top-1."
)
_TUNED_CAPTION: Final = (
    " The table of what tune found counts throughput, memory and the size of the file as well, so a model that is grey "
    "here, because another is as accurate and faster, may be on that front for being smaller."
)
_CAPTIONS: Final = {
    "growth": "Channels and memory behind every layer: each appends, a transition drops and halves.",
    "connections": "Which layers read which: every one reads all before it in its block.",
    "reuse": "How much each layer uses what those before it made: the mean size of its weights, by source.",
}


class Figures:
    """Draws what the material allows; every figure has a name of its own on the page."""

    def __init__(self, material: Material) -> None:
        self._material = material
        self._drawn = 0

    def pareto(self) -> list[Block]:
        """Latency against accuracy, or nothing where no model has both."""
        tuned, measured = [*_tuned_points(self._material)], [*_measured_points(self._material)]
        if not tuned and not measured:
            return []
        if tuned and measured:
            tuned = [dataclasses.replace(point, label=f"{point.label} (tune)") for point in tuned]
        caption = _PARETO_CAPTION + (_TUNED_CAPTION if tuned else "")
        return [self._figure("pareto", ParetoData("what was measured", [*tuned, *measured]), caption)]

    def sensitivity(self) -> list[Block]:
        """A figure and a table for every report of `sensitivity`."""
        blocks: list[Block] = []
        for path in self._material.sources.sensitivities:
            data = sensitivity_data(path)
            caption = f"What each layer or block costs in INT8: {data.title}."
            blocks += [self._figure("sqnr", data, caption), _sensitivity_table(data.title, data.rows, data.whole)]
        return blocks

    def of_network(self) -> list[Block]:
        """Cost, growth, connections and reuse of the first model that each can be drawn of."""
        described = [model for model in self._material.models if model.architecture is not None]
        if not described:
            return [Remarks(["No model here says which DenseNet it is, so its structure cannot be drawn."])]
        return [self._cost(described[0]), *(self._of_first(name, described) for name in _CAPTIONS)]

    def _cost(self, model: ModelFacts) -> Figure:
        report = model.architecture
        assert report is not None
        data = CostData(model.name, report.cost, report.memory, report.batch)
        return self._figure("cost", data, "Parameters, multiply-accumulates and memory, block by block.")

    def _of_first(self, name: str, models: list[ModelFacts]) -> Block:
        why = ""
        for model in models:
            try:
                gathered = gather(name, PlotRequest((model.path,)))
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


def _tuned_points(material: Material) -> Iterator[ParetoPoint]:
    for tuning in material.tunings:
        for trial in tuning.pareto:
            if trial.latency_ms and trial.top1 is not None:
                label = _label(trial.model, trial.backend, trial.threads, trial.batch)
                yield ParetoPoint(label, trial.latency_ms, trial.top1, trial.interval)


def _measured_points(material: Material) -> Iterator[ParetoPoint]:
    for entry in entries_of(material):
        measured = entry.measured
        if entry.accuracy is not None:
            label = _label(measured.model, measured.backend, measured.threads, measured.batch)
            yield ParetoPoint(label, measured.median, entry.accuracy.top1, measured.interval)


def _label(model: str, backend: str, threads: int | None, batch: int) -> str:
    words = [printable(model.rpartition("/")[2].removesuffix(".onnx"), 40), printable(backend, 20)]
    words += [] if not threads else ["1 thread" if threads == 1 else f"{threads} threads"]
    return ", ".join([*filter(None, words), *([f"batch {batch}"] if batch != 1 else [])])


def _sensitivity_table(title: str, rows: Sequence[Sensitivity], whole: Cost) -> Table:
    columns = (
        Column("layer or block"),
        Column("SQNR dB, only it INT8", numeric=True),
        Column("SQNR dB, only it float", numeric=True),
        Column("gain dB", numeric=True),
        Column("top-1, only it INT8", numeric=True),
    )
    lines = [
        (
            cells.text(row.name, code=True),
            cells.number(row.only_int8.sqnr_db, cells.fixed(1)),
            cells.number(row.only_float.sqnr_db, cells.fixed(1)),
            cells.number(row.only_float.sqnr_db - whole.sqnr_db, cells.fixed(1)),
            cells.number(row.only_int8.top1, cells.percent),
        )
        for row in rows
    ]
    return Table(f"{title}; all of it in INT8: {whole.sqnr_db:.1f} dB", columns, lines, "The same in numbers")
