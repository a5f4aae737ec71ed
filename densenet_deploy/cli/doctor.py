"""`doctor`: what works on this machine."""

from __future__ import annotations

from densenet_deploy.cli.app import Report, command


@command("doctor")
def doctor_command() -> Report:
    """Say which backends and devices work here, and what would mend the others."""
    from densenet_deploy.workflows.doctor import examine

    return examine()
