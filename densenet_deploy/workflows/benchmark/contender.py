"""A contender that may be a checkpoint, whose module is built first."""

from __future__ import annotations

from densenet_deploy.bench.candidate import serve_candidate
from densenet_deploy.workflows.load import open_model


def main() -> None:
    """Be a contender's process."""
    serve_candidate(open_model)
