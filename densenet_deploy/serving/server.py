"""A server of one model: its options, the ports, and what runs until it is asked to end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from densenet_deploy.errors import ResourceError, UsageError
from densenet_deploy.options import require_range
from densenet_deploy.serving.dynamic_batching import QueueOptions

if TYPE_CHECKING:
    from densenet_deploy.serving.grpc_server import GrpcServer
    from densenet_deploy.serving.service import Service

_DRAIN_S: Final = 1.0
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_MIB: Final = 2**20


@dataclass(frozen=True)
class ServeOptions:
    """How to serve.

    >>> ServeOptions(port=0, grpc_port=8081, max_batch=32).max_delay_ms
    0.0

    Attributes:
        host: the address to listen on; `0.0.0.0` is every interface.
        port: of HTTP; 0 takes a free one.
        grpc_port: of gRPC; None: no gRPC.
        max_batch: the most images that run together, and that one request may hold.
        max_delay_ms: how long the oldest request waits for others; with 0, those that came during a run run together.
        max_queue: the most images that wait; further requests get 503.
        instances: batches that run at the same time, on the same model.
        workers: processes that listen on the same ports, each with its own model and queue; more than 1 need Linux.
        max_body_mib: of a request.
        receive_s: seconds in which a request must have arrived, and its answer be taken.
        grace_s: seconds that requests under way have after a signal.
        stuck_s: seconds after which a process that gives no sign, or whose model gives no answer, counts as stuck: one
            of several is replaced, a single one is neither live nor ready. A model that is slow from the start has ten
            times as long as its slowest run so far.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = None
    max_batch: int = 16
    max_delay_ms: float = 0.0
    max_queue: int = 256
    instances: int = 1
    workers: int = 1
    max_body_mib: int = 64
    receive_s: float = 30.0
    grace_s: float = 30.0
    stuck_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.host.strip():  # asyncio would listen on every interface
            raise UsageError(
                "host", "is empty", "give 127.0.0.1 for this machine alone, or 0.0.0.0 for every interface"
            )
        require_range("port", self.port, 0, 65535)
        if self.grpc_port is not None:
            require_range("grpc-port", self.grpc_port, 0, 65535)
            if self.grpc_port == self.port != 0:
                raise UsageError(f"grpc-port={self.grpc_port}", "is the port of HTTP too", "give two ports")
        require_range("workers", self.workers, 1, 4096)
        require_range("max-body-mib", self.max_body_mib, 1, 1024)
        require_range("receive-s", self.receive_s, 0.01, 3600.0)
        require_range("grace-s", self.grace_s, 0.0, 3600.0)
        self.queue()

    @property
    def max_body_bytes(self) -> int:
        """The largest request, in bytes."""
        return self.max_body_mib * _MIB

    def queue(self) -> QueueOptions:
        """Return the options of the queue, checked."""
        return QueueOptions(self.max_batch, self.max_delay_ms / 1000, self.max_queue, self.instances, self.stuck_s)


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


@dataclass(frozen=True, eq=False)
class RunningServer:
    """A server that answers requests for `service`."""

    service: Service
    address: Address
    grace_s: float
    http: Any
    serving: asyncio.Task[None]
    grpc: GrpcServer | None

    @classmethod
    async def start(
        cls,
        service: Service,
        listening: socket.socket,
        options: ServeOptions,
        notes: tuple[str, ...] = (),
        *,
        is_shared: bool = False,
    ) -> RunningServer:
        """Begin to answer on a socket that listens; `is_shared`: beside other processes on the same ports."""
        from densenet_deploy.serving.http_server import http_server

        http = http_server(service, options)
        grpc = None
        if options.grpc_port is not None:
            from densenet_deploy.serving.grpc_server import GrpcServer

            address = _joined(options.host, options.grpc_port)
            grpc = GrpcServer(service, address, options.max_body_bytes, shares_port=is_shared)
            await grpc.start()
        serving = asyncio.create_task(http.serve(sockets=[listening]))
        service.metrics.serves(True)
        port, grpc_port = listening.getsockname()[1], None if grpc is None else grpc.port
        found = address_of(service.name, options.host, port, grpc_port, notes)
        return cls(service, found, options.grace_s, http, serving, grpc)

    async def until(self, stop: StopRequest) -> None:
        """Answer until asked to stop; then end, as `serve` says."""
        stop.attach()
        await stop.drained(self._unready)
        self.http.should_exit = True
        await asyncio.gather(self.serving, *([] if self.grpc is None else [self.grpc.stop(self.grace_s)]))

    def _unready(self) -> None:
        self.service.is_open = False
        self.service.metrics.serves(False)


async def run_server(
    service: Service,
    listening: socket.socket,
    options: ServeOptions,
    on_ready: Callable[[Address], object],
    stop: StopRequest,
    notes: tuple[str, ...] = (),
) -> None:
    """Answer requests for `service` on a socket that listens, until it is asked to stop; see `serve`."""
    stop.attach()
    with on_signal(stop):
        server = await RunningServer.start(service, listening, options, notes)
        on_ready(server.address)
        await server.until(stop)


def listen(host: str, port: int, *, is_shared: bool = False) -> socket.socket:
    """Return a socket that listens, so that nobody else takes the port while the model is loaded.

    Args:
        host: the address.
        port: 0 takes a free one.
        is_shared: whether other processes of this server listen there too.

    Raises:
        ResourceError: if the port is taken.
    """
    with _refused_as(host, port):
        listening = socket.create_server((host, port), family=_family(host), backlog=2048, reuse_port=is_shared)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it: no 40 ms for an answer
    return listening


def reserve(host: str, port: int) -> socket.socket:
    """Return a socket that holds a port (0: a free one) for the processes of this server, which listen beside it.

    It is bound without SO_REUSEPORT, so that a port that others use is refused, even by such a server; afterwards it
    gets the option. It does not listen, so that no connection waits for it.

    Raises:
        ResourceError: if the port is taken.
    """
    held = socket.socket(_family(host))
    try:
        with _refused_as(host, port):
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier server may linger
            held.bind((host, port))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except BaseException:
        held.close()
        raise
    return held


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@contextlib.contextmanager
def _refused_as(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        why = f"cannot be listened on: {(exc.strerror or str(exc)).lower()}"
        fix = "stop the program that uses it, or choose another --host, --port or --grpc-port"
        raise ResourceError(_joined(host, port), why, fix) from exc


def address_of(name: str, host: str, port: int, grpc_port: int | None, notes: tuple[str, ...]) -> Address:
    """Return where the model `name` is served."""
    grpc = None if grpc_port is None else _joined(host, grpc_port)
    return Address(name, f"http://{_joined(host, port)}", grpc, notes)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextlib.contextmanager
def on_signal(stop: StopRequest) -> Iterator[None]:
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
