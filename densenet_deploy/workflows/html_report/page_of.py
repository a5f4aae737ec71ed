"""The whole page, from the material and the choice: the decision, then the sections in the order they are asked for."""

from __future__ import annotations

import shlex
from pathlib import Path

from densenet_deploy.analysis.report.page import Decision, Page
from densenet_deploy.workflows.html_report import cells
from densenet_deploy.workflows.html_report.commands import report_command
from densenet_deploy.workflows.html_report.decision import Choice
from densenet_deploy.workflows.html_report.figures import Figures
from densenet_deploy.workflows.html_report.file_sections import (
    commands_section,
    figures_section,
    precision_section,
    provenance_section,
)
from densenet_deploy.workflows.html_report.material import Material
from densenet_deploy.workflows.html_report.measured_sections import (
    accuracy_section,
    latency_section,
    pareto_section,
)
from densenet_deploy.workflows.html_report.parity_sections import calibration_section, parity_section


def page_of(material: Material, choice: Choice, out: Path, description: str, made_by: str) -> Page:
    """Return the page; `out` is where it will be, which its own command says."""
    figures = Figures(material)
    names = ", ".join(model.name for model in material.models)
    sections = (
        pareto_section(material, figures),
        latency_section(material),
        accuracy_section(material),
        parity_section(material, figures),
        calibration_section(material),
        precision_section(material),
        figures_section(material, figures),
        provenance_section(material),
        commands_section(material, report_command(material.sources, out)),
    )
    return Page(f"Report on {names}", description, _decision(choice), sections, made_by)


def _decision(choice: Choice) -> Decision:
    if not choice.model:
        return Decision("No model to recommend yet", "", choice.reasons, (), choice.cautions)
    path = str(choice.facts.path) if choice.facts is not None else choice.model
    backend = choice.runs_on.partition(",")[0]
    command = shlex.join(["densenet-deploy", "run", path, *(["--backend", backend] if backend else [])])
    return Decision("Ship", choice.model, choice.reasons, _figures(choice), choice.cautions, [f"{command} FIGURE"])


def _figures(choice: Choice) -> list[tuple[str, str, str]]:
    """The few numbers that matter, those that are known."""
    figures = []
    if choice.latency_ms is not None:
        interval = choice.interval and " to ".join(map(cells.milliseconds, choice.interval))
        said = f"95 %: {interval}" if interval else ""
        figures.append(("a call", f"{cells.milliseconds(choice.latency_ms)} ms", said))
    if choice.top1 is not None:
        figures.append(("top-1", cells.percent(choice.top1), ""))
    if choice.memory_bytes is not None:
        figures.append(("memory at its peak", f"{cells.mib(choice.memory_bytes)} MiB", "of the process"))
    if choice.facts is not None:
        figures.append(("on disk", f"{cells.mib(choice.facts.bytes)} MiB", choice.facts.precision))
    return figures
