"""What the convolutions of an engine on disk run in: from an RTX plan's text, else as its build recorded it."""

from __future__ import annotations

from densenet_deploy.engines.precision import EngineConvolution, EnginePrecision, from_rtx_plan
from densenet_deploy.runtime.engine_files import Plan


def proof_of(plan: Plan) -> EnginePrecision:
    """Return what is known; nothing is loaded or run for it."""
    if plan.header.flavour == "rtx":
        return from_rtx_plan(plan.data)
    if plan.sidecar is None or not plan.sidecar.convolutions:
        return EnginePrecision()
    recorded = (EngineConvolution(name, word) for name, word in plan.sidecar.convolutions.items())
    return EnginePrecision(tuple(recorded), "the inspector when it was built")
