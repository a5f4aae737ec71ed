"""Report: one HTML page that says which model to ship and why, and shows what that rests on.

The page asks nothing of any network, and holds no time but that of the measurements: equal inputs give equal bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from densenet_deploy.artifacts import os_errors_about, output_path, write_file
from densenet_deploy.errors import OutputExistsError, printable
from densenet_deploy.packages import require_packages
from densenet_deploy.workflows.html_report.decision import decide
from densenet_deploy.workflows.html_report.material import ReportSources, gather_material
from densenet_deploy.workflows.stages import Listener, ignore


@dataclass(frozen=True)
class ReportReport:
    """The page was written to `file`; `chosen` is the file that it says to ship, None where it recommends none."""

    file: Path
    chosen: str | None
    bytes: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types."""
        return {"file": str(self.file), "chosen": self.chosen, "bytes": self.bytes, "notes": list(self.notes)}

    def to_text(self) -> str:
        """Return lines for people."""
        chosen = "no model" if self.chosen is None else printable(self.chosen)
        return f"wrote {printable(self.file)}\nto ship: {chosen}"


def report(
    sources: ReportSources, out: str | None = None, *, force: bool = False, listener: Listener = ignore
) -> ReportReport:
    """Write the page about `sources` to `out`, by default `artifacts/MODEL.report.html`.

    A page about the same models is replaced, and anything else only with `force`.

    Raises:
        UsageError: if an option cannot be meant, or two models have one name.
        InputError: if a model or a report cannot be used, or something else stands where the page should go.
        MissingPackageError: if Jinja2 or matplotlib is not installed.
        ResourceError: if the file cannot be written.
    """
    require_packages("report", "jinja2", "matplotlib")
    from densenet_deploy.analysis.report.render import render
    from densenet_deploy.workflows.html_report.page_of import page_of

    path = output_path(out, f"{sources.models[0].stem}.report.html")
    description = f"densenet-deploy report: {printable(', '.join(model.name for model in sources.models))}"
    _refuse_stranger(path, description, force=force)
    material = gather_material(sources, listener)
    choice = decide(material)
    listener("drawing")
    made_by = f"Made by densenet-deploy {metadata.version('densenet-deploy')} from the files named under Provenance."
    data = render(page_of(material, choice, path, description, made_by))
    write_file(path, data)
    return ReportReport(path, choice.model or None, len(data), choice.cautions)


def _refuse_stranger(path: Path, description: str, *, force: bool) -> None:
    from markupsafe import escape

    with os_errors_about(path):
        if path.is_dir():
            raise OutputExistsError(path, "is a folder", "name a file with -o")
        mark = f'<meta name="generator" content="{escape(description)}">'
        if force or not path.exists() or mark.encode("utf-8", "backslashreplace") in path.read_bytes():
            return
    raise OutputExistsError(path, "exists and is no report on these models", "choose another -o, or use --force")
