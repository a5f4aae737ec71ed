"""What runs the shards of a plan: processes of this machine (`local.py`), or actors of a Ray cluster (`ray.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from densenet_deploy.serving.batch.plan import Shard
from densenet_deploy.serving.batch.rows import Row
from densenet_deploy.serving.batch.shard_worker import JobFacts

Done = Callable[[Shard, list[Row]], None]
"""Called with every shard that was classified, and its rows; from any thread, one shard at a time in each."""

Step = Callable[[int], None]
"""Called with the number of rows that were added, from any thread."""

Progress = Callable[..., None]
"""Called with the name of a stage, and with how many of how many images are done."""


class Engine(Protocol):
    """Workers with an open model.

    Attributes:
        facts: what the first of them says about it.
        workers: how many there are.
    """

    facts: JobFacts
    workers: int

    def run(self, files: Sequence[str], shards: Sequence[Shard], done: Done, step: Step) -> None:
        """Classify `shards` of `files`, in any order.

        Raises:
            DensenetDeployError: whatever ends the job; shards that are done stay so.
        """

    def close(self) -> None:
        """End the workers, in the middle of their work if need be."""
