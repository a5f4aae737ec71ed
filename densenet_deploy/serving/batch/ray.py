"""Classify shards with the actors of a Ray cluster (extra `scale`).

Each actor has a worker process of its own (`shards.ShardProcess`): an image that kills it costs its row, as on one
machine, and the actor lives on. Actors return rows; the driver alone writes. Where an actor or its node is lost, its
shard, of which nothing was written, goes to another one.

Images must be where every node finds them: URLs, or a file system that all of them mount.
"""

from __future__ import annotations

import collections
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from densenet_deploy.errors import BackendError
from densenet_deploy.packages import require_packages
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.serving.batch.engine import Done, Step
from densenet_deploy.serving.batch.plan import Shard
from densenet_deploy.serving.batch.rows import Row
from densenet_deploy.serving.batch.shard_worker import JobFacts
from densenet_deploy.serving.batch.shards import RETRIES, ShardProcess
from densenet_deploy.worker import WorkerProgram

_SECONDS_TO_START: Final = 300.0


@dataclass(frozen=True)
class ClusterShare:
    """What a job takes of a cluster.

    Attributes:
        address: of the cluster; None starts one on this machine.
        workers: how many; None as many as fit.
        cpus, gpus: of each.
        model: a file that is sent to the nodes; None if they find it under the path that the job names.
    """

    address: str | None = None
    workers: int | None = None
    cpus: int = 1
    gpus: int = 0
    model: Path | None = None


class ShardActor:
    """An actor: a worker process, and the model's file beside it if it was sent."""

    def __init__(self, program: WorkerProgram, model: bytes | None, name: str) -> None:
        if model is not None:
            self._folder = tempfile.TemporaryDirectory(prefix="densenet-deploy-")
            path = Path(self._folder.name) / name
            path.write_bytes(model)
            told = {**program.settings["model"], "source": str(path)}
            program = program._replace(settings={**program.settings, "model": told})
        self._process = ShardProcess(program)

    def facts(self) -> JobFacts:
        """Open the model; return what its process says. An error of a constructor would be one of Ray."""
        return self._process.open()

    def classified(self, files: Sequence[str]) -> list[Row]:
        """Return a row for each file; see `ShardProcess`."""
        return self._process.classified(files)


class RayEngine:
    """An `Engine` of Ray actors.

    Raises:
        MissingPackageError: if Ray is not installed.
        BackendError: if the cluster does not answer, or has too few CPUs or GPUs for the workers.
        DensenetDeployError: if the model cannot be opened.
    """

    def __init__(self, program: WorkerProgram, share: ClusterShare) -> None:
        require_packages("scale", "ray")
        self._program, self._share = program, share
        self._is_ours = _connected(share.address)
        try:
            self.workers = fitting_workers(share, _nodes())
            self._model = _sent(share.model)
            self._pending: dict[Any, tuple[Any, Shard | None]] = {}
            for _ in range(self.workers):
                self._start()
            self.facts = self._first_facts()
        except BaseException:
            self.close()
            raise

    def run(self, files: Sequence[str], shards: Sequence[Shard], done: Done, step: Step) -> None:
        """Classify `shards` of `files`; see `Engine`."""
        left = collections.deque(shards)
        losses = 0
        while left or any(shard is not None for _, shard in self._pending.values()):
            actor, shard, rows = self._next()
            if rows is None:
                losses += 1
                if losses > RETRIES + self.workers:
                    why = f"lost {losses} actors in a row"
                    raise BackendError("ray", why, "look at the cluster's log, and go on with --resume")
                if shard is not None:
                    left.appendleft(shard)
                self._start()
                continue
            if shard is not None:
                losses = 0
                step(shard.count)
                done(shard, rows)
            if left:
                shard = left.popleft()
                part = list(files[shard.start : shard.start + shard.count])
                self._pending[actor.classified.remote(part)] = actor, shard

    def close(self) -> None:
        """End the actors, and the cluster if it is ours."""
        import ray

        for actor, _ in getattr(self, "_pending", {}).values():
            ray.kill(actor)
        if self._is_ours:
            ray.shutdown()

    def _start(self) -> None:
        import ray

        options = {"num_cpus": self._share.cpus, "num_gpus": self._share.gpus, "max_restarts": 0}
        name = "" if self._share.model is None else self._share.model.name
        actor = ray.remote(ShardActor).options(**options).remote(self._program, self._model, name)
        self._pending[actor.facts.remote()] = actor, None

    def _first_facts(self) -> JobFacts:
        actor, _, facts = self._next()
        if facts is None:
            raise BackendError("ray", "lost an actor while it opened the model", "look at the cluster's log")
        self._pending[actor.facts.remote()] = actor, None  # it is free for a shard
        assert isinstance(facts, JobFacts)
        return facts

    def _next(self) -> tuple[Any, Shard | None, Any]:
        """Wait for an actor; return it, its shard if it had one, and what it answers, None if it was lost."""
        import ray

        while True:
            ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=_SECONDS_TO_START)
            if ready:
                break
            if all(shard is None for _, shard in self._pending.values()):
                free = ray.available_resources().get("CPU", 0)
                why = (
                    f"started no worker of {self._share.cpus} CPUs in {_SECONDS_TO_START:.0f} s; {free:g} CPUs are free"
                )
                raise BackendError("ray", why, "wait for other jobs, or ask for less with --threads")
        actor, shard = self._pending.pop(ready[0])
        try:
            return actor, shard, ray.get(ready[0])
        except ray.exceptions.RayTaskError as exc:
            raise exc.cause from exc
        except ray.exceptions.RayError:
            return actor, shard, None


def fitting_workers(share: ClusterShare, nodes: Sequence[tuple[float, float]]) -> int:
    """Return how many workers to start on `nodes`, the CPUs and GPUs of each.

    >>> fitting_workers(ClusterShare(cpus=2), [(4, 0), (3, 0)])
    3

    Raises:
        BackendError: if they do not fit.
    """
    fit = sum(_fitting(share, cpus, gpus) for cpus, gpus in nodes)
    wanted = share.workers or max(fit, 1)
    if wanted <= fit:
        return wanted
    each = f"{share.cpus} CPUs" + (f" and {share.gpus} GPUs" if share.gpus else "")
    there = ", ".join(f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if share.gpus else "") for cpus, gpus in nodes)
    why = f"{wanted} workers with {each} each do not fit: the nodes have {there}, which is room for {fit}"
    raise BackendError("ray", why, "ask for fewer with --workers, or less for each with --threads")


def _fitting(share: ClusterShare, cpus: float, gpus: float) -> int:
    fit = int(cpus // share.cpus)
    return min(fit, int(gpus // share.gpus)) if share.gpus else fit


def _nodes() -> list[tuple[float, float]]:
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in found]


def _connected(address: str | None) -> bool:
    """Connect to a cluster, unless this process is connected; return whether it is one of our own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report how it is used
    import ray

    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init("local", num_cpus=usable_cpus(), include_dashboard=False, **quiet)
        else:
            ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as exc:
        fix = "check --address, or leave it out to use this machine alone"
        raise BackendError(f"address={address}", f"no Ray cluster answers there ({exc})", fix) from exc
    return True


def _sent(model: Path | None) -> Any:
    """Put the file into the object store, from which each node fetches it once."""
    import ray

    return None if model is None else ray.put(model.read_bytes())
