"""Classify shards in processes of this machine; a thread for each takes the next shard that is left."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Sequence

from densenet_deploy.serving.batch.engine import Done, Step
from densenet_deploy.serving.batch.plan import Shard
from densenet_deploy.serving.batch.shards import Job, ShardProcess


class LocalEngine:
    """An `Engine` of processes.

    Raises:
        DensenetDeployError: if the model cannot be opened.
    """

    def __init__(self, job: Job, workers: int) -> None:
        self.workers = workers
        self._processes = [ShardProcess(job) for _ in range(workers)]
        self._threads: list[threading.Thread] = []
        self.facts = self._processes[0].open()

    def run(self, files: Sequence[str], shards: Sequence[Shard], done: Done, step: Step) -> None:
        """Classify `shards` of `files`; see `Engine`."""
        left: queue.SimpleQueue[Shard] = queue.SimpleQueue()
        for shard in shards:
            left.put(shard)
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=_work, args=(process, files, left, done, step, ended))
            for process in self._processes[: len(shards)]
        ]
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            if (problem := ended.get()) is not None:
                raise problem

    def close(self) -> None:
        """End the processes, and wait until a shard that is being written is whole."""
        for process in self._processes:
            process.kill()
        for thread in self._threads:
            thread.join()
        for process in self._processes:
            process.close()


def _work(
    process: ShardProcess,
    files: Sequence[str],
    left: queue.SimpleQueue[Shard],
    done: Done,
    step: Step,
    ended: queue.SimpleQueue[BaseException | None],
) -> None:
    """Be a thread: classify what is `left` in `process`, and say how that ended."""
    try:
        process.open()
        with contextlib.suppress(queue.Empty):
            while shard := left.get_nowait():
                done(shard, process.classified(files[shard.start : shard.start + shard.count], step))
    except BaseException as exc:  # noqa: BLE001 - the main thread raises it
        ended.put(exc)
    else:
        ended.put(None)
