"""What the convolutions of an engine on disk run in: from an RTX plan's text, else as its build recorded it."""

from __future__ import annotations

from densenet_deploy.engines.precision import PrecisionProof, RunningConvolution
from densenet_deploy.engines.rtx_plan import read_rtx_plan
from densenet_deploy.runtime.engine_files import Plan


def proof_of(plan: Plan) -> PrecisionProof:
    """Return what is known; nothing is loaded or run for it."""
    if plan.header.flavour == "rtx":
        return read_rtx_plan(plan.data)
    if plan.sidecar is None or not plan.sidecar.convolutions:
        return PrecisionProof(())
    recorded = (RunningConvolution(name, word) for name, word in plan.sidecar.convolutions.items())
    return PrecisionProof(tuple(recorded), "the inspector when it was built")
