"""A server: its options, and the ports that it takes, alone or for several processes."""

import contextlib
import socket

import pytest

from densenet_deploy.errors import ResourceError, UsageError
from densenet_deploy.serving.server import ServeOptions, address_of, listen, reserve

HOST = "127.0.0.1"


@pytest.mark.parametrize(
    "options",
    [
        {"port": -1},
        {"port": 65536},
        {"grpc_port": 65536},
        {"port": 8080, "grpc_port": 8080},
        {"max_batch": 0},
        {"max_delay_ms": -1.0},
        {"max_queue": 15},
        {"instances": 0},
        {"workers": 0},
        {"workers": 4097},
        {"max_body_mib": 0},
        {"receive_s": 0.0},
        {"grace_s": -1.0},
        {"grace_s": float("nan")},
    ],
)
def test_options_out_of_range_are_refused(options) -> None:
    with pytest.raises(UsageError):
        ServeOptions(**options)
    ServeOptions(port=0, grpc_port=0, max_delay_ms=0.0, max_queue=16, workers=4096, grace_s=0.0)


def test_answers_are_sent_at_once() -> None:
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_addresses_are_written_as_urls_have_them() -> None:
    assert str(address_of("m", HOST, 80, None, ())) == "ready: m on http://127.0.0.1:80"
    assert str(address_of("m", "::1", 80, 81, ())) == "ready: m on http://[::1]:80 and [::1]:81 (gRPC)"


def test_a_port_that_is_held_takes_the_processes_of_the_server_and_nobody_else() -> None:
    with contextlib.closing(reserve(HOST, 0)) as held:
        port = held.getsockname()[1]
        for refused in (reserve, listen):
            with pytest.raises(ResourceError, match="cannot be listened on"):
                refused(HOST, port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port))
        with listen(HOST, port, is_shared=True) as one, listen(HOST, port, is_shared=True) as other:
            for one_that_listens in (one, other):
                one_that_listens.setblocking(False)
            with contextlib.ExitStack() as stack:
                for _ in range(40):
                    stack.enter_context(socket.create_connection((HOST, port)))
                counts = [accepted(one), accepted(other)]
            assert sum(counts) == 40
            assert min(counts) > 0  # by chance, once in 2 ** 39
            for refused in (reserve, listen):
                with pytest.raises(ResourceError):
                    refused(HOST, port)
    reserve(HOST, port).close()


def accepted(listening):
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listening.accept()[0].close()
            count += 1
    return count


def test_a_port_that_is_taken_is_not_held() -> None:
    with listen(HOST, 0) as taken, pytest.raises(ResourceError, match="cannot be listened on"):
        reserve(HOST, taken.getsockname()[1])
