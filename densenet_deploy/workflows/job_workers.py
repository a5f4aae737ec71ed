"""The workers of a job over many images: what each of them runs, and the engine that starts them.

`run -o` and `evaluate --engine ray` are such jobs. Each has a program, a module whose `main` is the process of a
worker: `serve_job` with what it makes of the outputs for an image.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from densenet_deploy.errors import UsageError
from densenet_deploy.options import require_choice, require_range
from densenet_deploy.records import from_plain, to_plain
from densenet_deploy.runtime.batching import fixed_batch
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.serving.batch.described_runner import RunnerFacts
from densenet_deploy.serving.batch.engine import Engine, LocalEngine
from densenet_deploy.serving.batch.rows import RowLayout
from densenet_deploy.serving.batch.shard_worker import (
    DEFAULT_BATCH,
    Answers,
    JobFacts,
    JobSettings,
    ShardRequest,
    Shards,
)
from densenet_deploy.worker import WorkerProgram
from densenet_deploy.workflows.image_report import described_input, remarks
from densenet_deploy.workflows.load import LoadOptions
from densenet_deploy.workflows.worker_model import ModelFile, WorkerModel, model_file

ENGINES: Final = ("local", "ray")


@dataclass(frozen=True)
class EngineOptions:
    """What runs the workers.

    Attributes:
        engine: `local`, processes of this machine, or `ray`, actors of a Ray cluster.
        address: of the Ray cluster; None starts one on this machine.
        workers: processes that run the model; None means 1 with the engine `local`, and with `ray` as many as fit the
            cluster. Each uses its share of the CPUs, unless `RunnerOptions.threads` says otherwise.

    Raises:
        UsageError: if a value is out of range or unknown, or two do not go together.
    """

    engine: str = "local"
    address: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        require_choice("engine", self.engine, ENGINES)
        if self.workers is not None:
            require_range("workers", self.workers, 1, 4096)
        if self.address is not None and self.engine != "ray":
            raise UsageError(f"address={self.address}", "applies only to the engine ray", "add --engine ray")


@dataclass(frozen=True)
class JobModel:
    """The first message to a worker: its model, and how it classifies."""

    model: WorkerModel
    job: JobSettings
    fast_decode: bool


def serve_job(requests: Iterator[Any], answers: Callable[[Classifier, RowLayout], Answers]) -> Iterator[Any]:
    """Be the process of a worker: open the model that the first message names, and answer shards."""
    for message in requests:
        settings = from_plain(JobModel, message)
        with settings.model.opened() as (model, runner):
            classifier = Classifier(runner, fast=settings.fast_decode)
            facts = JobFacts(
                RowLayout.of(classifier, classifier.classes, settings.job.top_k),
                settings.job.batch or fixed_batch(runner) or DEFAULT_BATCH,
                runner.placement,
                to_plain(described_input(classifier, runner.manifest)),
                RunnerFacts.of(runner, classifier),
                remarks(classifier, runner.manifest, model.notes),
            )
            yield to_plain(facts)
            rows = answers(classifier, facts.layout)
            shards = Shards(classifier, rows, facts.batch, settings.job.decode_threads)
            for request in requests:
                yield from shards.messages(from_plain(ShardRequest, request))


@contextlib.contextmanager
def started_engine(
    program: str,
    choice: EngineOptions,
    source: Any,
    stated: LoadOptions,
    running: WorkerModel,
    settings: JobSettings,
    *,
    fast_decode: bool,
) -> Iterator[tuple[Engine, ModelFile]]:
    """Yield workers that run `program` with an open model, each with its share of the CPUs, and the model's file.

    Args:
        program: the module of a worker.
        choice: what runs them.
        source: whatever `load` takes.
        stated: facts about it.
        running: the backend, device and options; its source is taken from `source`.
        settings: how they classify; the number of threads that decode is the share of each.
        fast_decode: see `Classifier`.
    """
    with model_file(source, stated) as model, contextlib.ExitStack() as stack:
        workers, options = choice.workers or 1, running.options
        share = max(1, usable_cpus() // workers) if choice.engine == "local" else options.threads or 1
        options = dataclasses.replace(options, threads=options.threads or share, spin=False)
        opened = dataclasses.replace(running, source=model.source, stated=model.stated, options=options)
        settings = dataclasses.replace(settings, decode_threads=share)
        told = WorkerProgram(program, to_plain(JobModel(opened, settings, fast_decode)), model.name)
        is_local = choice.engine == "local"
        engine = LocalEngine(told, workers) if is_local else _ray(told, choice, model, share, running.device)
        stack.callback(engine.close)
        yield engine, model


def _ray(program: WorkerProgram, choice: EngineOptions, model: ModelFile, cpus: int, device: str | None) -> Engine:
    from densenet_deploy.serving.batch.ray import ClusterShare, RayEngine

    gpus = int((device or "").startswith(("cuda", "gpu")))
    sent = model.whole_file() if choice.address is not None else None
    return RayEngine(program, ClusterShare(choice.address, choice.workers, cpus, gpus, sent))
