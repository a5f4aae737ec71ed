"""`validate`: the parity of any two models on any backends."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densenet_deploy.cli.app import FailedGate, Report, command
from densenet_deploy.errors import GateError


@command("validate")
def validate_command(
    reference: Annotated[Path, typer.Argument(metavar="REF", help="The model that is right.")],
    candidate: Annotated[Path, typer.Argument(metavar="CAND", help="The model to judge.")],
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Images to run on.")] = None,
    samples: Annotated[int, typer.Option(help="How many inputs.")] = 16,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Compare inner tensors too, worst first.")] = False,
    gate: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A limit such as cosine=0.9999; repeatable.")
    ] = None,
    reference_backend: Annotated[str | None, typer.Option(help="Backend of REF.")] = None,
    candidate_backend: Annotated[str | None, typer.Option(help="Backend of CAND.")] = None,
) -> Report | FailedGate:
    """Measure how far one model's outputs are from another's."""
    from densenet_deploy.parity.gates import parse_gate
    from densenet_deploy.workflows.compare import CompareOptions, compare
    from densenet_deploy.workflows.sandbox import Loader, UntrustedFile, preflight

    options = CompareOptions(
        samples=samples,
        per_layer=per_layer,
        gates=tuple(map(parse_gate, gate)) if gate else None,
        reference_backend=reference_backend,
        candidate_backend=candidate_backend,
    )
    loaders = (Loader.SESSION, Loader.GRAPH) if per_layer else (Loader.SESSION,)
    files = ((reference, reference_backend), (candidate, candidate_backend))
    preflight(*(UntrustedFile(path, loaders, backend) for path, backend in files))
    report = compare(reference, candidate, data, options)
    if not report.failed:
        return report
    fix = "see --per-layer for where they part, or set another --gate"
    return FailedGate(report, GateError(candidate, "; ".join(report.failed), fix))
