"""Serve: one model behind HTTP and gRPC, until a signal asks for the end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Unpack

from densenet_deploy.errors import FeedError, ModelFileError, ResourceError, UsageError
from densenet_deploy.model import Model, untrained_note
from densenet_deploy.options import require_range
from densenet_deploy.packages import require_packages
from densenet_deploy.reports import Report, line
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.runner import Runner, RunnerOptions
from densenet_deploy.serving.dynamic_batching import QueueOptions
from densenet_deploy.workflows.load import LoadOptions, load
from densenet_deploy.workflows.stages import Listener, ignore

if TYPE_CHECKING:
    from densenet_deploy.serving.service import Service

PACKAGES: Final = ("starlette", "uvicorn", "httptools", "python_multipart", "prometheus_client")
GRPC_PACKAGES: Final = ("grpc", "google.protobuf")

_DRAIN_S: Final = 1.0
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_MIB: Final = 2**20


@dataclass(frozen=True)
class ServeOptions:
    """How to serve.

    >>> ServeOptions(port=0, grpc_port=8081, max_batch=32).max_delay_ms
    2.0

    Attributes:
        host: the address to listen on; `0.0.0.0` is every interface.
        port: of HTTP; 0 takes a free one.
        grpc_port: of gRPC; None: no gRPC.
        max_batch: the most images that run together, and that one request may hold.
        max_delay_ms: how long the oldest request waits for others.
        max_queue: the most images that wait; further requests get 503.
        instances: batches that run at the same time, on the same model.
        max_body_mib: of a request.
        receive_s: seconds in which a request must have arrived, and its answer be taken.
        grace_s: seconds that requests under way have after a signal.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = None
    max_batch: int = 16
    max_delay_ms: float = 2.0
    max_queue: int = 256
    instances: int = 1
    max_body_mib: int = 64
    receive_s: float = 30.0
    grace_s: float = 30.0

    def __post_init__(self) -> None:
        require_range("port", self.port, 0, 65535)
        if self.grpc_port is not None:
            require_range("grpc-port", self.grpc_port, 0, 65535)
            if self.grpc_port == self.port != 0:
                raise UsageError(f"grpc-port={self.grpc_port}", "is the port of HTTP too", "give two ports")
        require_range("max-body-mib", self.max_body_mib, 1, 1024)
        require_range("receive-s", self.receive_s, 0.01, 3600.0)
        require_range("grace-s", self.grace_s, 0.0, 3600.0)
        self.queue()

    def queue(self) -> QueueOptions:
        """Return the options of the queue, checked."""
        return QueueOptions(self.max_batch, self.max_delay_ms / 1000, self.max_queue, self.instances)


@dataclass(frozen=True)
class Address:
    """The name of a model, where its server listens, and remarks on what was assumed."""

    model: str
    http: str
    grpc: str | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        also = f" and {self.grpc} (gRPC)" if self.grpc else ""
        return f"ready: {self.model} on {self.http}{also}"


@dataclass(frozen=True, kw_only=True)
class ServeReport(Report):
    """What a server did: requests answered, requests refused or failed, and images in how many runs of the model."""

    kind: ClassVar[str] = "serve"

    model: str
    requests: int
    errors: int
    images: int
    runs: int

    def to_text(self) -> str:
        """Return lines for people."""
        images = f"{self.images} in {self.runs} runs"
        answered = f"{self.requests} answered, {self.errors} refused or failed"
        return "\n".join([line("model", self.model), line("requests", answered), line("images", images)])


class StopRequest:
    """Asks a server to end, from any thread; twice: without waiting for clients that do not know yet."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked, self._hurried = asyncio.Event(), asyncio.Event()

    def __call__(self, *_: object) -> None:
        """Ask."""
        if self._loop is None:
            self._set()
            return
        with contextlib.suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._set)

    def attach(self) -> None:
        """Bind it to the running event loop."""
        self._loop = asyncio.get_running_loop()

    async def drained(self, on_ask: Callable[[], object]) -> None:
        """Wait for the request, call `on_ask`, and wait until clients had time to go elsewhere."""
        await self._asked.wait()
        on_ask()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurried.wait(), _DRAIN_S)

    def _set(self) -> None:
        (self._hurried if self._asked.is_set() else self._asked).set()


def serve(
    source: Any,
    options: ServeOptions | None = None,
    *,
    backend: str | None = None,
    device: str | None = None,
    running: RunnerOptions | None = None,
    on_ready: Callable[[Address], object] = lambda _: None,
    stop: StopRequest | None = None,
    progress: Listener = ignore,
    **stated: Unpack[LoadOptions],
) -> ServeReport:
    """Serve a model until SIGTERM or SIGINT (or `stop`), and return what was done.

    After the signal the server is not ready, closes its connections with their answers, and still takes requests for a
    second; then it ends when those under way are answered, or after `grace_s`.

    >>> from densenet_deploy.workflows.serve import StopRequest
    >>> stop = StopRequest()
    >>> serve("digits.onnx", ServeOptions(port=0), stop=stop, on_ready=lambda address: (stop(), stop())).requests
    0

    Args:
        source: whatever `load` takes.
        options: see `ServeOptions`.
        backend: see `open_runner`.
        device: see `open_runner`.
        running: see `RunnerOptions`. Where it does not say how many threads, instances share the CPUs, and the
            backend's threads sleep between two runs.
        on_ready: called when the first request can come.
        stop: to end it from another thread; signals reach the main thread alone.
        progress: is told the stage.
        **stated: facts about the model; see `load`.

    Raises:
        MissingPackageError: if the extra `serve` is not installed.
        ResourceError: if a port is taken.
        UsageError: if an option or a name is invalid.
        InputError: if the model cannot be read or served.
        BackendError: if the backend or the device cannot run it.
    """
    options = options or ServeOptions()
    require_packages("serve", *PACKAGES, *(GRPC_PACKAGES if options.grpc_port is not None else ()))
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(contextlib.closing(listen(options.host, options.port)))
        progress("loading")
        model = load(source, **stated)
        runner = stack.enter_context(model.runner(backend, device, _shared(running, options.instances)))
        service, notes = _service(model, runner, options)
        stack.callback(service.close)
        progress("warming up")
        service.warm_up()
        progress("serving")
        asyncio.run(run_server(service, listening, options, on_ready, stop or StopRequest(), notes))
    total = service.metrics.total
    return ServeReport(
        model=service.name,
        requests=total("requests_total"),
        errors=total("errors_total"),
        images=total("batch_images_sum"),
        runs=total("batch_images_count"),
        notes=notes,
    )


async def run_server(
    service: Service,
    listening: socket.socket,
    options: ServeOptions,
    on_ready: Callable[[Address], object],
    stop: StopRequest,
    notes: tuple[str, ...] = (),
) -> None:
    """Answer requests for `service` on a socket that listens, until it is asked to stop; see `serve`."""
    from densenet_deploy.serving.http_server import HttpOptions, http_server

    stop.attach()
    limits = HttpOptions(options.max_body_mib * _MIB, options.receive_s)
    http = http_server(service, limits, options.grace_s)
    grpc = None
    if options.grpc_port is not None:
        from densenet_deploy.serving.grpc_server import GrpcServer

        grpc = GrpcServer(service, _joined(options.host, options.grpc_port), limits.max_body_bytes)
        await grpc.start()
    with _on_signal(stop):
        serving = asyncio.create_task(http.serve(sockets=[listening]))
        url = f"http://{_joined(options.host, listening.getsockname()[1])}"
        grpc_address = None if grpc is None else _joined(options.host, grpc.port)
        on_ready(Address(service.name, url, grpc_address, notes))
        await stop.drained(lambda: setattr(service, "is_ready", False))
        http.should_exit = True
        await asyncio.gather(serving, *([] if grpc is None else [grpc.stop(options.grace_s)]))


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, so that nobody else takes the port while the model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as exc:
        why = f"cannot be listened on: {(exc.strerror or str(exc)).lower()}"
        fix = "stop the program that uses it, or choose another --host or --port"
        raise ResourceError(_joined(host, port), why, fix) from exc
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it: no 40 ms for an answer
    return listening


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _shared(running: RunnerOptions | None, instances: int) -> RunnerOptions:
    """Return how to run: threads sleep between two batches, and batches at the same time share the CPUs."""
    chosen = dataclasses.replace(running or RunnerOptions(), spin=False)
    if chosen.threads is not None or instances == 1:
        return chosen
    return dataclasses.replace(chosen, threads=max(1, usable_cpus() // instances))


def _service(model: Model, runner: Runner, options: ServeOptions) -> tuple[Service, tuple[str, ...]]:
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
    service = Service(name, runner, classifier, options.queue())
    return service, (*model.notes, *untrained_note(runner.manifest), *remarks)


@contextlib.contextmanager
def _on_signal(stop: StopRequest) -> Iterator[None]:
    """Let signals ask for the end, inside the block and in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, stop) for number in _STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
