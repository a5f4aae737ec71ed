"""Report: one HTML page that says which model to ship and why, and shows what that rests on.

The page loads nothing from any network, and holds no time but that of the measurements: equal inputs give equal bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from densenet_deploy.artifacts import StrPath, os_errors_about, output_path, write_file
from densenet_deploy.errors import OutputExistsError, printable
from densenet_deploy.packages import require_packages
from densenet_deploy.reports import Report
from densenet_deploy.workflows.html_report.decide import decide
from densenet_deploy.workflows.html_report.load import ReportSources, load_material
from densenet_deploy.workflows.stages import Listener, ignore

__all__ = ["PageReport", "ReportSources", "report"]


@dataclass(frozen=True, kw_only=True)
class PageReport(Report):
    """The page was written to `file`; `chosen` is the model that it says to ship, None where it recommends none."""

    kind: ClassVar[str] = "report"

    file: Path
    chosen: str | None
    bytes: int

    def to_text(self) -> str:
        """Return lines for people."""
        chosen = "none" if self.chosen is None else printable(self.chosen)
        return f"wrote {printable(self.file)}\nmodel to ship: {chosen}"


def report(
    sources: ReportSources, out: StrPath | None = None, *, force: bool = False, listener: Listener = ignore
) -> PageReport:
    """Write the page about `sources` to `out`, by default `artifacts/MODEL.report.html`.

    A page about the same models is replaced, and anything else only with `force`.

    >>> report(ReportSources(["a.onnx", "a.int8.onnx"], benchmarks=["benchmark.json"])).chosen   # doctest: +SKIP
    'a.int8.onnx'

    Raises:
        UsageError: if an option is invalid, or two models have the same file name.
        InputError: if a model or a report cannot be used, or another file exists where the page should go.
        MissingPackageError: if Jinja2 or matplotlib is not installed.
        ResourceError: if the file cannot be written.
    """
    require_packages("report", "jinja2", "matplotlib")
    from densenet_deploy.workflows.html_report.page import render
    from densenet_deploy.workflows.html_report.view import page_of

    models = [Path(model) for model in sources.models]
    path = output_path(None if out is None else str(out), f"{models[0].stem}.report.html")
    description = f"densenet-deploy report: {printable(', '.join(model.name for model in models))}"
    _refuse_other_file(path, description, force=force)
    material = load_material(sources, listener)
    decision = decide(material)
    listener("drawing")
    made_by = f"Made by densenet-deploy {metadata.version('densenet-deploy')} from the files under Provenance."
    data = render(page_of(material, decision, path, description, made_by))
    write_file(path, data)
    return PageReport(file=path, chosen=decision.model or None, bytes=len(data), notes=decision.cautions)


def _refuse_other_file(path: Path, description: str, *, force: bool) -> None:
    from markupsafe import escape

    with os_errors_about(path):
        if path.is_dir():
            raise OutputExistsError(path, "is a folder", "name a file with -o")
        mark = f'<meta name="generator" content="{escape(description)}">'
        if force or not path.exists() or mark.encode("utf-8", "backslashreplace") in path.read_bytes():
            return
    raise OutputExistsError(path, "exists and is not a report on these models", "choose another -o, or use --force")
