"""The HTTP side of a server: the open inference protocol, images, metrics; limits on bodies, time and connections.

Bodies are refused by their declared length before they are read, and by their real length while they are. Clients that
take too long are disconnected (`http_limits.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final, TypeVar, TypeVarTuple

import uvicorn
from python_multipart.exceptions import FormParserError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from densenet_deploy.records import write_json
from densenet_deploy.serving.http_limits import limited_to
from densenet_deploy.serving.metrics import CONTENT_TYPE
from densenet_deploy.serving.open_inference import (
    HEADER_LENGTH,
    VERSION,
    RequestError,
    json_length,
    read_request,
    refused,
    write_answer,
)
from densenet_deploy.serving.server import ServeOptions
from densenet_deploy.serving.service import Service

_BODIES_HELD: Final = 16
_KEEP_ALIVE_S: Final = 30
_LONGEST_DIGITS: Final = 18

_SHORT_JSON: Final = 2**16
_SHORT_ANSWER: Final = 2**14
"""Bytes of JSON that are read, and of tensors that are written, within 3 ms.

Python lets a thread run for 5 ms before another one gets its turn: work that ends sooner delays others as much in a
thread of its own, which costs more than reading a small request.
"""
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def _app(service: Service, options: ServeOptions) -> ASGIApp:
    answers, model = _Answers(service, options), "/v2/models/{name}"
    infer, ready = answers.guarded("infer", answers.infer), answers.guarded("ready", answers.model_ready)
    metadata, classify = (
        answers.guarded("metadata", answers.model_metadata),
        answers.guarded("classify", answers.classify),
    )
    routes = [
        Route("/v2", answers.server_metadata),
        Route("/v2/health/live", answers.live),
        Route("/v2/health/ready", answers.ready),
        *(
            route
            for path in (model, f"{model}/versions/{{version}}")
            for route in (
                Route(path, metadata),
                Route(f"{path}/ready", ready),
                Route(f"{path}/infer", infer, methods=["POST"]),
            )
        ),
        Route("/classify", classify, methods=["POST"]),
        Route("/metrics", answers.metrics),
    ]
    return _quickly(infer, service.name, Starlette(routes=routes, exception_handlers={HTTPException: _http_error}))


def _quickly(infer: Callable[[Request], Awaitable[Response]], model: str, otherwise: ASGIApp) -> ASGIApp:
    """Return an application that finds the path of inference in a set, and leaves every other one to `otherwise`.

    Starlette tries one route after the other, and wraps the answer of each in handlers of errors that `infer` does not
    raise: as much work as all the rest of an HTTP request.
    """
    paths = {f"/v2/models/{model}{version}/infer" for version in ("", f"/versions/{VERSION}")}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in paths and scope["method"] == "POST":
            response = await infer(Request(scope, receive))
            await response(scope, receive, send)
        else:
            await otherwise(scope, receive, send)

    return app


def http_server(service: Service, options: ServeOptions) -> uvicorn.Server:
    """Return the server of `service`, which leaves signals to its caller."""
    config = uvicorn.Config(
        _app(service, options),
        http=limited_to(options.receive_s, lambda: service.metrics.failed("disconnected")),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=options.grace_s,  # type: ignore[arg-type]  # any number of seconds
    )
    return _Server(config)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Answers:
    """One method per endpoint."""

    def __init__(self, service: Service, options: ServeOptions) -> None:
        self._service = service
        self._bodies = _Bodies(options.max_body_bytes)

    async def server_metadata(self, _request: Request) -> Response:
        return self._json(self._service.server_metadata())

    async def live(self, _request: Request) -> Response:
        is_live = not self._service.is_stuck
        return self._json({"live": is_live}, 200 if is_live else 503)

    async def ready(self, _request: Request) -> Response:
        is_ready = self._service.is_ready
        return self._json({"ready": is_ready}, 200 if is_ready else 503)

    async def model_ready(self, _request: Request) -> Response:
        is_ready = self._service.is_ready
        return self._json({"name": self._service.name, "ready": is_ready}, 200 if is_ready else 503)

    async def model_metadata(self, _request: Request) -> Response:
        return self._json(self._service.model_metadata())

    async def infer(self, request: Request) -> Response:
        service, length = self._service, request.headers.get(HEADER_LENGTH)
        async with self._bodies.read(request) as body:
            is_short = json_length(length, len(body)) <= _SHORT_JSON
            asked = await _called(is_short, read_request, body, length, service.inputs, service.outputs)
            answer = await service.infer(asked.feeds)
        is_short = sum(array.nbytes for array in answer.values()) <= _SHORT_ANSWER
        content, header_length = await _called(is_short, write_answer, service.name, asked, answer)
        if header_length is None:
            return self._answer(content, "application/json")
        return self._answer(content, "application/octet-stream", {HEADER_LENGTH: str(header_length)})

    async def classify(self, request: Request) -> Response:
        top_k = request.query_params.get("top_k", "5")
        if not (top_k.isascii() and top_k.isdigit() and len(top_k) <= _LONGEST_DIGITS):
            raise refused("top_k", "is not a whole number")
        async with self._bodies.read(request) as body:
            image = await _image_in(request, body)
            return self._json(await self._service.classify(image, int(top_k)))

    async def metrics(self, _request: Request) -> Response:
        return self._answer(await asyncio.to_thread(self._service.metrics.to_text), CONTENT_TYPE)

    def guarded(
        self, endpoint: str, answer: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return the function of an endpoint that counts, checks which model is asked, and answers errors as JSON."""

        async def guarded(request: Request) -> Response:
            try:
                with self._service.counted(endpoint):
                    name = request.path_params.get("name", self._service.name)
                    self._service.require_model(name, request.path_params.get("version", ""))
                    return await answer(request)
            except RequestError as exc:
                error = exc
            except asyncio.CancelledError:  # by uvicorn, which would answer with plain text
                error = RequestError(503, "server: ended before the answer; ask another one")
            headers = {"Retry-After": "1"} if error.status == 503 else {}
            return self._json({"error": str(error)}, error.status, headers)

        return guarded

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        return self._answer(_json_line(value), "application/json", headers, status)

    def _answer(
        self, content: bytes, media_type: str, headers: dict[str, str] | None = None, status: int = 200
    ) -> Response:
        """Return a response; a server that is stopping closes its connections with their answers."""
        closing = {} if self._service.is_ready else {"Connection": "close"}
        return Response(content, status, {**(headers or {}), **closing}, media_type)


class _Bodies:
    """Reads the bodies of requests, and counts the bytes that are held."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the body, which counts until the block ends.

        Raises:
            RequestError: status 413 if it is too large, 503 if too many are held, 400 if the client went away.
        """
        size = 0
        declared = request.headers.get("Content-Length", "0")
        self._require(int(declared) if declared.isdigit() else 0, 0)
        chunks: list[bytes] = []
        try:
            async for chunk in request.stream():
                size += len(chunk)
                self._held += len(chunk)
                self._require(size, size)
                chunks.append(chunk)
            yield b"".join(chunks)
        except ClientDisconnect as exc:
            raise RequestError(400, "request: body: is not complete", "disconnected") from exc
        finally:
            self._held -= size

    def _require(self, size: int, counted: int) -> None:
        if size > self._limit:
            raise RequestError(413, f"request: body: is larger than {self._limit} bytes; send less", "too_large")
        if self._held - counted + size > _BODIES_HELD * self._limit:
            raise RequestError(503, "server: is receiving too much; try again later", "queue_full")


async def _called(is_short: bool, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """Call a function: here if that `is_short`, otherwise in a thread, so that other requests go on."""
    return function(*arguments) if is_short else await asyncio.to_thread(function, *arguments)


async def _image_in(request: Request, body: bytes) -> bytes:
    """Return the image file that a body is, or that is the one file of a form."""
    if not request.headers.get("Content-Type", "").lower().startswith("multipart/form-data"):
        return body

    async def whole() -> Any:
        yield body

    parser = MultiPartParser(request.headers, whole(), max_files=1, max_fields=16)
    parser.spool_max_size = len(body) + 1  # stays in memory
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as exc:
        raise refused("form", f"cannot be read: {exc}") from exc
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(form.close)
        files = [value for _, value in form.multi_items() if not isinstance(value, str)]
        if not files:
            raise refused("form", "holds no file")
        return await files[0].read()


async def _http_error(_request: Request, exc: Exception) -> Response:
    """Answer a path or method that does not exist."""
    assert isinstance(exc, HTTPException)
    content = _json_line({"error": f"request: {exc.detail}"})
    return Response(content, exc.status_code, exc.headers, "application/json")


def _json_line(value: object) -> bytes:
    return f"{write_json(value)}\n".encode()
