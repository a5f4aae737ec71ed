"""`report`: one HTML page about models, the decision first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densenet_deploy.cli import arguments as args
from densenet_deploy.cli.app import Report, command

_Reports = list[Path] | None


def _given_by(name: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        f"--{name}", metavar="FILE.json", help=f"What {name} printed with --json; repeatable."
    )
    return option


@command("report")
def report_command(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Artifacts and checkpoints.")],
    tune: Annotated[_Reports, _given_by("tune")] = None,
    benchmark: Annotated[_Reports, _given_by("benchmark")] = None,
    evaluate: Annotated[_Reports, _given_by("evaluate")] = None,
    validate: Annotated[_Reports, _given_by("validate")] = None,
    sensitivity: Annotated[_Reports, _given_by("sensitivity")] = None,
    quantize: Annotated[_Reports, _given_by("quantize")] = None,
    max_drop: Annotated[
        float, typer.Option(metavar="POINTS", help="Top-1 that the choice may lose, where tune did not choose.")
    ] = 1.0,
    out: Annotated[str | None, typer.Option("-o", "--out", metavar="FILE.html|DIR", help="Where to write.")] = None,
    force: args.Force = False,
) -> Report:
    """Write one HTML page: which model to ship and why, with all that it rests on."""
    from densenet_deploy.workflows.report import ReportSources, report
    from densenet_deploy.workflows.sandbox import Loader, UntrustedFile, preflight

    sources = ReportSources(
        models=tuple(models),
        benchmarks=tuple(benchmark or ()),
        evaluations=tuple(evaluate or ()),
        validations=tuple(validate or ()),
        sensitivities=tuple(sensitivity or ()),
        quantizations=tuple(quantize or ()),
        tunings=tuple(tune or ()),
        max_drop=max_drop,
    )
    preflight(*(UntrustedFile(path, (Loader.GRAPH, Loader.SESSION)) for path in models))
    with args.progress() as listener:
        return report(sources, out, force=force, listener=listener)
