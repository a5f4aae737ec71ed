"""`doctor`: the backends and devices of this machine."""

from __future__ import annotations

from densenet_deploy.cli.app import Report, command


@command("doctor")
def doctor_command() -> Report:
    """List the available backends and devices, and how to fix the ones that are unavailable."""
    from densenet_deploy.workflows.doctor import diagnose

    return diagnose()
