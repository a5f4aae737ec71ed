"""What runs the shards of a plan: processes of this machine, or actors of a Ray cluster (`ray.py`)."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Protocol

from densenet_deploy.serving.batch.plan import Shard
from densenet_deploy.serving.batch.rows import Row
from densenet_deploy.serving.batch.shard_worker import JobFacts
from densenet_deploy.serving.batch.shards import ShardProcess
from densenet_deploy.worker import WorkerProgram

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


class LocalEngine:
    """An `Engine` of processes, with a thread for each, which takes the next shard that is left.

    Raises:
        DensenetDeployError: if the model cannot be opened.
    """

    def __init__(self, program: WorkerProgram, workers: int) -> None:
        self.workers = workers
        self._processes = [ShardProcess(program) for _ in range(workers)]
        self._threads = ThreadPoolExecutor(workers)
        self.facts = self._processes[0].open()

    def run(self, files: Sequence[str], shards: Sequence[Shard], done: Done, step: Step) -> None:
        """Classify `shards` of `files`; see `Engine`."""
        left: queue.SimpleQueue[Shard] = queue.SimpleQueue()
        for shard in shards:
            left.put(shard)

        def work(process: ShardProcess) -> None:
            process.open()
            with contextlib.suppress(queue.Empty):
                while shard := left.get_nowait():
                    done(shard, process.classified(files[shard.start : shard.start + shard.count], step))

        for future in as_completed([self._threads.submit(work, one) for one in self._processes[: len(shards)]]):
            future.result()

    def close(self) -> None:
        """End the processes, and wait until a shard that is being written is whole."""
        for process in self._processes:
            process.kill()
        self._threads.shutdown()
        for process in self._processes:
            process.close()
