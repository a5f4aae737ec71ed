"""Serve: one model behind HTTP and gRPC, in one process or several, until a signal asks for the end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Unpack

from densenet_deploy.errors import BackendError, FeedError, ModelFileError, UsageError, counted
from densenet_deploy.model import Model, untrained_note
from densenet_deploy.options import or_default
from densenet_deploy.packages import require_packages
from densenet_deploy.records import from_plain, to_plain
from densenet_deploy.reports import Report, line
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.runner import Runner, RunnerOptions
from densenet_deploy.serving.processes import (
    ALIVE,
    LISTEN,
    LISTENING,
    SIGNS,
    STUCK,
    Loss,
    ServerProcesses,
)
from densenet_deploy.serving.server import (
    Address,
    RunningServer,
    ServeOptions,
    StopRequest,
    address_of,
    listen,
    on_signal,
    reserve,
    run_server,
)
from densenet_deploy.worker import WorkerProgram
from densenet_deploy.workflows.load import LoadOptions, load
from densenet_deploy.workflows.stages import Listener, ignore
from densenet_deploy.workflows.worker_model import WorkerModel, model_file

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from densenet_deploy.serving.metrics import Metrics
    from densenet_deploy.serving.service import Service

PROGRAM: Final = __name__
"""The module whose `main` is one of several processes."""

PACKAGES: Final = ("starlette", "uvicorn", "httptools", "python_multipart", "prometheus_client")
GRPC_PACKAGES: Final = ("grpc", "google.protobuf")


@dataclass(frozen=True, kw_only=True)
class ServeReport(Report):
    """What a server did: requests answered, requests refused or failed, and images in how many runs of the model.

    Attributes:
        workers: how many processes served.
        losses: how many of them ended without being asked, or hung, and were replaced; what they were doing is not
            counted.
        stuck: whether the only process ended while a run of its model did not.
    """

    kind: ClassVar[str] = "serve"

    model: str
    requests: int
    errors: int
    images: int
    runs: int
    workers: int = 1
    losses: int = 0
    stuck: bool = False

    def failure(self) -> BackendError | None:
        """The error to end a command with, if the model hung."""
        fix = "look at what it runs on; --workers 2 replaces a process that hangs"
        return BackendError(self.model, "a run of the model did not end", fix) if self.stuck else None

    def to_text(self) -> str:
        """Return lines for people."""
        images = f"{self.images} in {counted(self.runs, 'run')}"
        answered = f"{self.requests} answered, {self.errors} refused or failed"
        lines = [line("model", self.model), line("requests", answered), line("images", images)]
        if self.workers > 1:
            lines.append(line("workers", f"{self.workers}, {self.losses} of them replaced"))
        return "\n".join(lines)


def serve(
    source: Any,
    options: ServeOptions | None = None,
    *,
    backend: str | None = None,
    device: str | None = None,
    running: RunnerOptions | None = None,
    on_ready: Callable[[Address], object] = lambda _: None,
    on_loss: Callable[[Loss], object] = lambda _: None,
    stop: StopRequest | None = None,
    progress: Listener = ignore,
    **stated: Unpack[LoadOptions],
) -> ServeReport:
    """Serve a model until SIGTERM or SIGINT (or `stop`), and return what was done.

    After the signal the server is not ready, closes its connections with their answers, and still takes requests for a
    second; then it ends when those under way are answered, or after `grace_s`.

    >>> from densenet_deploy.serving.server import StopRequest
    >>> stop = StopRequest()
    >>> serve("digits.onnx", ServeOptions(port=0), stop=stop, on_ready=lambda address: (stop(), stop())).requests
    0

    Args:
        source: whatever `load` takes.
        options: see `ServeOptions`.
        backend: see `open_runner`.
        device: see `open_runner`.
        running: see `RunnerOptions`. Where it does not say how many threads, workers and their instances share the
            CPUs, and the backend's threads sleep between two runs.
        on_ready: called when the first request can come.
        on_loss: called, from any thread, when one of several workers has ended without being asked, or hung; another
            one replaces it.
        stop: to end it from another thread; signals reach the main thread alone.
        progress: is told the stage.
        **stated: facts about the model; see `load`.

    Raises:
        MissingPackageError: if the extra `serve` is not installed.
        ResourceError: if a port is taken.
        UsageError: if an option or a name is invalid, or the system cannot share a port among so many workers.
        InputError: if the model cannot be read or served.
        BackendError: if the backend or the device cannot run it.
    """
    options = or_default(options, ServeOptions)
    require_packages("serve", *PACKAGES, *(GRPC_PACKAGES if options.grpc_port is not None else ()))
    running, shared = shared_cpus(running, options)
    stop = stop or StopRequest()
    if options.workers > 1:
        told = WorkerModel(backend=backend, device=device, options=running)
        return _in_processes(source, stated, told, options, stop, shared, on_ready, on_loss, progress)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(contextlib.closing(listen(options.host, options.port)))
        progress("loading")
        model = load(source, **stated)
        runner = stack.enter_context(model.runner(backend, device, running))
        service, notes = _service(model, runner, options)
        stack.callback(service.close)
        progress("warming up")
        service.warm_up()
        progress("serving")
        asyncio.run(run_server(service, listening, options, on_ready, stop, (*notes, *shared)))
    report = _report(service.name, service.metrics.counts, (*notes, *shared))
    return dataclasses.replace(report, stuck=service.is_stuck)


def _in_processes(
    source: Any,
    stated: LoadOptions,
    told: WorkerModel,
    options: ServeOptions,
    stop: StopRequest,
    notes: tuple[str, ...],
    on_ready: Callable[[Address], object],
    on_loss: Callable[[Loss], object],
    progress: Listener,
) -> ServeReport:
    """Serve a model in several processes; see `serve`."""
    from densenet_deploy.serving.metrics import SharedCounts, environment, forget

    with contextlib.ExitStack() as stack:
        options = _with_ports_held(stack, options)
        model = stack.enter_context(model_file(source, stated))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="densenet-deploy-")))
        mark = folder / "counts"
        mark.touch()
        told = dataclasses.replace(told, source=model.source, stated=model.stated)
        settings = to_plain(_ProcessSettings(told, options))

        def lost(loss: Loss) -> None:
            forget(loss.pid, folder)
            on_loss(loss)

        program = WorkerProgram(PROGRAM, settings, model.name, environment(folder))
        processes = ServerProcesses(program, options.workers, options.stuck_s, lost)
        stack.callback(processes.close)
        progress(f"loading in {options.workers} processes")
        address = from_plain(Address, processes.open())
        address = dataclasses.replace(address, notes=(*address.notes, *notes))
        progress("serving")
        asyncio.run(_until_stopped(processes, stop, lambda: on_ready(address)))
        lost_counts = () if mark.exists() else (f"{folder} was removed meanwhile: what was counted before is missing",)
        report = _report(address.model, SharedCounts(folder), (*address.notes, *lost_counts))
    return dataclasses.replace(report, workers=options.workers, losses=processes.losses)


@dataclass(frozen=True)
class _ProcessSettings:
    """The first message to a process: its model, how to serve it on ports that are known, and what it replaces."""

    model: WorkerModel
    options: ServeOptions
    replaces: str | None = None


def main(requests: Iterator[Any]) -> Iterator[Any]:
    """Be one of several processes; `serving.processes` has the messages."""
    from densenet_deploy.serving.metrics import Metrics

    settings = from_plain(_ProcessSettings, next(requests))
    options, stop = settings.options, StopRequest()
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_signal(stop))
        model, runner = stack.enter_context(settings.model.opened())
        service, notes = _service(model, runner, options, Metrics(options.max_batch, is_shared=True))
        stack.callback(service.close)
        service.warm_up()
        yield to_plain(address_of(service.name, options.host, options.port, options.grpc_port, notes))
        if next(requests, None) != LISTEN:
            return
        loop = stack.enter_context(asyncio.Runner())
        listening = stack.enter_context(contextlib.closing(listen(options.host, options.port, is_shared=True)))
        server = loop.run(RunningServer.start(service, listening, options, is_shared=True))
        if settings.replaces is not None:
            service.metrics.replaces(settings.replaces)
        yield LISTENING
        threading.Thread(target=_stop_when_told, args=(requests, stop), daemon=True).start()
        serving = loop.get_loop().create_task(server.until(stop))
        while not serving.done():
            yield STUCK if service.is_stuck else ALIVE
            loop.run(asyncio.wait((serving,), timeout=options.stuck_s / SIGNS))
        serving.result()


def _stop_when_told(requests: Iterator[Any], stop: StopRequest) -> None:
    """Be a thread: every message asks for the end, and so does a parent that is gone."""
    for _ in requests:
        stop()
    stop()
    stop()


def _with_ports_held(stack: contextlib.ExitStack, options: ServeOptions) -> ServeOptions:
    """Hold the ports until `stack` ends, and return the options with those that were free."""
    ports = (port for port in (options.port, options.grpc_port) if port is not None)
    held = [stack.enter_context(contextlib.closing(reserve(options.host, port))) for port in ports]
    http, grpc = [*(one.getsockname()[1] for one in held), None][:2]
    return dataclasses.replace(options, port=http, grpc_port=grpc)


async def _until_stopped(processes: ServerProcesses, stop: StopRequest, on_ready: Callable[[], object]) -> None:
    stop.attach()
    with on_signal(stop):
        on_ready()
        await stop.drained(processes.stop)
        processes.stop()
        await asyncio.to_thread(processes.join)


def _report(name: str, counts: Collector, notes: tuple[str, ...]) -> ServeReport:
    from densenet_deploy.serving.metrics import total

    return ServeReport(
        model=name,
        requests=total(counts, "requests_total"),
        errors=total(counts, "errors_total"),
        images=total(counts, "batch_images_sum"),
        runs=total(counts, "batch_images_count"),
        notes=notes,
    )


def shared_cpus(running: RunnerOptions | None, options: ServeOptions) -> tuple[RunnerOptions, tuple[str, ...]]:
    """Return how each process runs the model, and a note if that takes more threads than there are CPUs.

    Threads sleep between two batches, and batches at the same time share the CPUs.

    Raises:
        UsageError: if there are more processes than CPUs, or the system cannot share a port among them.
    """
    cpus, batches = usable_cpus(), options.workers * options.instances
    if options.workers > cpus:
        fix = f"ask for at most {cpus}; --instances runs more batches at a time in each"
        raise UsageError(f"workers={options.workers}", f"are more than the {cpus} usable CPUs", fix)
    if options.workers > 1 and sys.platform not in ("linux",):
        raise UsageError(f"workers={options.workers}", "need Linux, which shares a port fairly", "leave it out")
    chosen = dataclasses.replace(running or RunnerOptions(), spin=False)
    if chosen.threads is None:
        return (chosen if batches == 1 else dataclasses.replace(chosen, threads=max(1, cpus // batches))), ()
    wanted = chosen.threads * batches
    if batches == 1 or wanted <= cpus:
        return chosen, ()
    factors = (options.workers, "worker"), (options.instances, "instance"), (chosen.threads, "thread")
    each = " x ".join(counted(count, noun) for count, noun in factors)
    return chosen, (f"{each} are {wanted} threads on {counted(cpus, 'CPU')}",)


def _service(
    model: Model, runner: Runner, options: ServeOptions, metrics: Metrics | None = None
) -> tuple[Service, tuple[str, ...]]:
    """Return the model as a service, and remarks on what was assumed."""
    from densenet_deploy.serving.service import Service

    classifier: Classifier | str
    try:
        classifier = Classifier(runner)
        remarks = classifier.assumptions
    except (ModelFileError, FeedError) as exc:
        classifier = str(exc)
        remarks = (f"/classify is not served: {exc}",)
    name = model.path.stem if model.path is not None else model.name
    service = Service(name, runner, classifier, options.queue(), metrics)
    return service, (*model.notes, *untrained_note(runner.manifest), *remarks)
