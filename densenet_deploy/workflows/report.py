"""Report: one HTML page that says which model to ship and why, and shows what that rests on.

The page loads nothing from any network, and holds no time but that of the measurements: equal inputs give equal bytes.
"""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from densenet_deploy.artifacts import StrPath, output_path, write_file
from densenet_deploy.errors import printable
from densenet_deploy.model import Model
from densenet_deploy.packages import require_packages
from densenet_deploy.reports import Report
from densenet_deploy.workflows.benchmark import BenchmarkReport
from densenet_deploy.workflows.compare import ComparisonReport
from densenet_deploy.workflows.evaluation.report import EvaluateReport
from densenet_deploy.workflows.html_report.decide import decide
from densenet_deploy.workflows.html_report.load import ReportSources, load_material
from densenet_deploy.workflows.load import several
from densenet_deploy.workflows.outputs import refuse_other_file
from densenet_deploy.workflows.quantize.quantize import QuantizeReport
from densenet_deploy.workflows.sensitivity import SensitivityReport
from densenet_deploy.workflows.stages import Listener, in_notebook
from densenet_deploy.workflows.tune.report import TuneReport

__all__ = ["HtmlReport", "ReportSources", "report", "write_page"]


@dataclass(frozen=True, kw_only=True)
class HtmlReport(Report):
    """The page was written to `file`; `chosen` is the model that it says to ship, None where it recommends none."""

    kind: ClassVar[str] = "report"

    file: Path
    chosen: str | None
    bytes: int

    def to_text(self) -> str:
        """Return lines for people."""
        chosen = "none" if self.chosen is None else printable(self.chosen)
        return f"wrote {printable(self.file)}\nmodel to ship: {chosen}"

    def _repr_html_(self) -> str:
        """Return the text for a notebook, with a link to the page."""
        address = html.escape(quote(os.fsencode(self.file)))
        return f'{super()._repr_html_()}<div><a href="{address}" target="_blank">open the page</a></div>'


def report(
    sources: StrPath | Model | Sequence[StrPath | Model],
    *,
    tune: StrPath | TuneReport | Sequence[StrPath | TuneReport] = (),
    benchmark: StrPath | BenchmarkReport | Sequence[StrPath | BenchmarkReport] = (),
    evaluate: StrPath | EvaluateReport | Sequence[StrPath | EvaluateReport] = (),
    validate: StrPath | ComparisonReport | Sequence[StrPath | ComparisonReport] = (),
    sensitivity: StrPath | SensitivityReport | Sequence[StrPath | SensitivityReport] = (),
    quantize: StrPath | QuantizeReport | Sequence[StrPath | QuantizeReport] = (),
    max_drop: float = 1.0,
    against: StrPath | None = None,
    out: StrPath | None = None,
    force: bool = False,
    progress: Listener = in_notebook,
) -> HtmlReport:
    """Write one HTML page about models: which one to ship, and why.

    >>> report(["digits.onnx"], out="report.html", force=True).file
    PosixPath('report.html')

    Args:
        sources: model files, or models in memory that have an ONNX graph.
        tune: one or several reports of `tune`, or files with their JSON; the other reports likewise.
        benchmark: of `benchmark`.
        evaluate: of `evaluate`.
        validate: of `compare`.
        sensitivity: of `sensitivity`.
        quantize: of `quantize`.
        max_drop: percentage points of top-1 or AUROC that the choice may lose, where `tune` did not choose.
        against: an earlier page, or the JSON of an earlier `tune`, shown side by side with this one.
        out: an `.html` file or a folder, by default `artifacts/MODEL.report.html`.
        force: replace whatever exists there; a page about the same models is always replaced.
        progress: called with the name of each stage.

    Raises:
        UsageError: if an option is invalid, or two models have the same file name.
        InputError: if a model or a report cannot be used, or another file exists where the page should go.
        MissingPackageError: if Jinja2 or matplotlib is not installed.
        ResourceError: if the file cannot be written.
    """
    given = ReportSources(
        several(sources),
        several(benchmark),
        several(evaluate),
        several(validate),
        several(sensitivity),
        several(quantize),
        several(tune),
        max_drop,
        against,
    )
    return write_page(given, out, force=force, progress=progress)


def write_page(
    sources: ReportSources, out: StrPath | None = None, *, force: bool = False, progress: Listener = in_notebook
) -> HtmlReport:
    """Write the page about `sources`; see `report`."""
    require_packages("report", "jinja2", "matplotlib")
    from markupsafe import escape

    from densenet_deploy.workflows.html_report.page import render
    from densenet_deploy.workflows.html_report.view import page_of

    names = sources.names
    path = output_path(None if out is None else str(out), f"{Path(names[0]).stem}.report.html")
    description = f"densenet-deploy report: {printable(', '.join(names))}"
    mark = f'<meta name="generator" content="{escape(description)}">'
    refuse_other_file(path, mark.encode("utf-8", "backslashreplace"), "a report on these models", force=force)
    with tempfile.TemporaryDirectory() as folder:
        material = load_material(sources, Path(folder), progress)
        advice = decide(material)
        progress("drawing")
        made_by = f"Made by densenet-deploy {metadata.version('densenet-deploy')} from the files under Provenance."
        data = render(page_of(material, advice, path, description, made_by))
    write_file(path, data)
    return HtmlReport(file=path, chosen=advice.model or None, bytes=len(data), notes=advice.cautions)
