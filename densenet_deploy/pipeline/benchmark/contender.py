"""A contender that may be a checkpoint, whose module is built first.

A process runs it: `python -m densenet_deploy.pipeline.benchmark.contender`.
"""

from __future__ import annotations

from densenet_deploy.bench.contender import main
from densenet_deploy.pipeline.load import open_model

if __name__ == "__main__":
    main(open_model)
