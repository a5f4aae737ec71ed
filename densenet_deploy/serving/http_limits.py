"""Connections that end when a client is too slow to send a request or to take its answer, or sends an endless header.

uvicorn limits only how long a connection may be idle between two requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_LARGEST_HEADER: Final = 65536
_TIMEOUT: Final = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_NO_HTTP: Final = b'{"error": "request: is not HTTP/1.1; send a valid one"}\n'
_NOT_HTTP: Final = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(_NO_HTTP), _NO_HTTP)
)
_TOO_MANY: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def limited_to(seconds: float, on_slow: Callable[[], object]) -> type[HttpToolsProtocol]:
    """Return the protocol for clients that may take `seconds` to send a request, and as long to take its answer.

    `on_slow` is called for each that is disconnected before the application saw its request.
    """
    return type("LimitedProtocol", (LimitedProtocol,), {"seconds": seconds, "on_slow": staticmethod(on_slow)})


class LimitedProtocol(HttpToolsProtocol):
    """One connection; a subclass has `seconds` and `on_slow` (see `limited_to`)."""

    seconds: ClassVar[float]

    @staticmethod
    def on_slow() -> object:
        """Do nothing; the subclass of `limited_to` counts."""
        return None

    _receiving: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None
    _header_bytes: int | None = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # whatever the client does not take at once starts the timer
        self._receiving = self.loop.call_later(self.seconds, self._end, _TIMEOUT)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._header_bytes is not None:
            self._header_bytes += len(data)
            if self._header_bytes > _LARGEST_HEADER:
                self._end(_TOO_MANY)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        _cancel(self._receiving)
        self._receiving = self.loop.call_later(self.seconds, self._end, _TIMEOUT)
        self._header_bytes = 0

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > _LARGEST_HEADER:
            self._header_bytes = size
            self._end(_TOO_MANY)
            raise ValueError("the header is too large")  # ends the parser
        self._header_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        _cancel(self._receiving)
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's, in plain text
        """Answer what is not HTTP."""
        if not self.transport.is_closing():
            self.on_slow()
            self.transport.write(_NOT_HTTP)
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._sending = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        _cancel(self._sending)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._receiving)
        _cancel(self._sending)
        super().connection_lost(exc)

    def _end(self, answer: bytes) -> None:
        """Disconnect, with `answer` where none is on its way and the client has sent something."""
        is_in_header, cycle = self._header_bytes is not None, self.cycle
        is_idle = cycle is None or cycle.response_complete
        if not self.transport.is_closing():
            if is_in_header and self._header_bytes:
                self.on_slow()
            if (is_idle and self._header_bytes) if is_in_header else not cycle.response_started:
                self.transport.write(answer)
            self.transport.close()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
