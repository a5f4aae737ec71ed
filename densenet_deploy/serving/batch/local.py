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
        self._job = job
        self._lock = threading.Lock()
        self._is_closed = False
        first = ShardProcess(job)
        self.facts = first.facts
        self._processes = [first]
        self._threads: list[threading.Thread] = []

    def run(self, files: Sequence[str], shards: Sequence[Shard], done: Done, step: Step) -> None:
        """Classify `shards` of `files`; see `Engine`."""
        left: queue.SimpleQueue[Shard] = queue.SimpleQueue()
        for shard in shards:
            left.put(shard)
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        processes = [*self._processes, *[None] * self.workers][: min(self.workers, len(shards))]
        self._threads = [
            threading.Thread(target=self._work, args=(process, files, left, done, step, ended)) for process in processes
        ]
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            if (problem := ended.get()) is not None:
                raise problem

    def close(self) -> None:
        """End the processes, and wait until a shard that is being written is whole."""
        with self._lock:
            self._is_closed = True
            for process in self._processes:
                process.kill()
        for thread in self._threads:
            thread.join()
        for process in self._processes:
            process.close()

    def _work(
        self,
        process: ShardProcess | None,
        files: Sequence[str],
        left: queue.SimpleQueue[Shard],
        done: Done,
        step: Step,
        ended: queue.SimpleQueue[BaseException | None],
    ) -> None:
        """Be a thread: classify what is `left`, in `process` or another one, and say how that ended."""
        try:
            process = process or self._another()
            with contextlib.suppress(queue.Empty):
                while shard := left.get_nowait():
                    done(shard, process.classified(files[shard.start : shard.start + shard.count], step))
        except BaseException as exc:  # noqa: BLE001 - the main thread raises it
            ended.put(exc)
        else:
            ended.put(None)

    def _another(self) -> ShardProcess:
        process = ShardProcess(self._job)
        with self._lock:
            self._processes.append(process)
            if self._is_closed:
                process.kill()
        return process
