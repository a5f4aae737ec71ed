"""A server over HTTP: the answers of the runner, batches, images, and every refusal, while it goes on serving."""

import contextlib
import http.client
import json
import re
import socket
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import densenet_deploy as dd
from densenet_deploy.errors import ModelFileError
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.serving import http_server
from densenet_deploy.serving.dynamic_batching import QueueOptions
from densenet_deploy.serving.http_limits import LimitedProtocol
from densenet_deploy.serving.service import Service
from tests.conftest import DIGITS
from tests.serving.servers import WAIT_S, Gate, call, infer, rows_runner, serving

HELD_OUT = sorted(DIGITS.glob("held_out/*/*.png"))[::36][:10]
ROWS = np.array([[1, 2]], np.float32)


@pytest.fixture(scope="module")
def digits(digits_onnx):
    """The digits model, served under the name `digits`."""
    runner = open_runner(digits_onnx)
    options = QueueOptions(max_batch=16, max_delay_s=0.002)
    with serving(Service("digits", runner, Classifier(runner), options)) as server:
        server.path = digits_onnx
        yield server


@contextlib.contextmanager
def small(function=None, queue=None, **options):
    runner = rows_runner() if function is None else rows_runner(function)
    queue = QueueOptions(**{"max_delay_s": 0, **(queue or {})})
    with serving(Service("m", runner, "model: takes no images", queue), **options) as server:
        server.runner = runner
        yield server


@pytest.fixture(scope="module")
def plain():
    with small() as server:
        yield server


def images(count=1, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3, 32, 32), np.float32)


def error_of(answer):
    status, headers, body = answer
    assert headers["Content-Type"] == "application/json"
    assert b"Traceback" not in body
    return status, json.loads(body)["error"]


def metric(server, name):
    status, headers, body = call(server, "GET", "/metrics")
    assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/plain")
    found = re.search(rf"^{re.escape(name)} (\S+)$", body.decode(), re.MULTILINE)
    return 0.0 if found is None else float(found[1])


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_answers_have_the_bits_of_the_runner(digits, binary, count) -> None:
    with open_runner(digits.path) as runner:
        expected = runner.run(images(count))["logits"]
    status, found = infer(digits, images(count), "digits", binary=binary)
    assert status == 200
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)


def test_ten_images_are_classified_as_by_predict(digits) -> None:
    expected = dd.predict(digits.path, HELD_OUT).to_json()["predictions"]
    for path, prediction in zip(HELD_OUT, expected, strict=True):
        status, _, body = call(digits, "POST", "/classify", path.read_bytes())
        assert status == 200
        assert json.loads(body)["top"] == prediction["top"]
    assert len(HELD_OUT) == 10


def form(name, data, boundary="frontier"):
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"{name}\r\n\r\n'.encode()
    body = head + data + f"\r\n--{boundary}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def test_an_image_in_a_form_is_classified_too(digits) -> None:
    data = HELD_OUT[0].read_bytes()
    status, _, body = call(digits, "POST", "/classify?top_k=2", *form('; filename="a.png"', data))
    plain = json.loads(call(digits, "POST", "/classify", data)[2])
    assert status == 200
    assert json.loads(body)["top"] == plain["top"][:2]
    assert len(plain["top"]) == 5


@pytest.mark.parametrize(
    ("path", "body", "headers", "why"),
    [
        ("/classify", b"", {}, "is empty"),
        ("/classify", b"not an image", {}, "is text"),
        ("/classify", HELD_OUT[0].read_bytes()[:100], {}, "image: "),
        ("/classify?top_k=0", HELD_OUT[0].read_bytes(), {}, "top_k=0"),
        ("/classify?top_k=-1", b"", {}, "top_k"),
        ("/classify?top_k=" + "9" * 5000, b"", {}, "top_k"),
        ("/classify", *form("", b"text"), "holds no file"),
        ("/classify", b"xx", {"Content-Type": "multipart/form-data"}, "form"),
        ("/classify", b"xx", {"Content-Type": "multipart/form-data; boundary=b"}, "form"),
    ],
)
def test_what_is_not_an_image_is_refused(digits, path, body, headers, why) -> None:
    status, error = error_of(call(digits, "POST", path, body, headers))
    assert status == 400
    assert why in error


def test_a_model_that_takes_no_images_says_so(plain) -> None:
    assert error_of(call(plain, "POST", "/classify", b"x")) == (404, "model: takes no images")


def test_health_and_metadata(digits) -> None:
    def get(path):
        status, _, body = call(digits, "GET", path)
        return status, json.loads(body)

    assert get("/v2/health/live") == (200, {"live": True})
    assert get("/v2/health/ready") == (200, {"ready": True})
    assert get("/v2/models/digits/ready") == (200, {"name": "digits", "ready": True})
    status, server = get("/v2")
    assert (status, server["name"], server["extensions"]) == (200, "densenet-deploy", ["binary_tensor_data"])
    status, model = get("/v2/models/digits")
    assert get("/v2/models/digits/versions/1") == (status, model)
    assert model["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 32, 32]}]
    assert model["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]
    assert (model["name"], model["versions"]) == ("digits", ["1"])


def test_a_server_that_is_not_ready_says_so(plain) -> None:
    plain.service.is_open = False
    try:
        for path in ("/v2/health/ready", "/v2/models/m/ready"):
            status, headers, _ = call(plain, "GET", path)
            assert (status, headers["Connection"]) == (503, "close")
        assert call(plain, "GET", "/v2/health/live")[0] == 200
    finally:
        plain.service.is_open = True


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/other",
        "/v2/models/M",
        "/v2/models/m.onnx",
        "/v2/models/m/versions/2",
        "/v2/models/m/versions/01",
        "/v2/models/..%2Fm",
        "/v2/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/v2/models/../../etc/passwd",
        "/v2/models/m%00",
        "/v2/models/" + "m" * 5000,
        "/v2/models/",
        "/etc/passwd",
    ],
)
def test_other_models_versions_and_paths_are_not_found(plain, path) -> None:
    assert error_of(call(plain, "GET", path))[0] == 404
    assert error_of(call(plain, "POST", f"{path}/infer", b"{}"))[0] == 404


def test_a_wrong_method_is_refused(plain) -> None:
    assert error_of(call(plain, "GET", "/v2/models/m/infer"))[0] == 405
    assert error_of(call(plain, "POST", "/v2"))[0] == 405


@pytest.mark.parametrize(
    ("array", "more", "why"),
    [
        (np.array([[1, np.nan]], np.float32), {}, "feed: input: holds NaN or Inf; feed finite values"),
        (np.array([[1, np.inf]], np.float32), {}, "holds NaN or Inf"),
        (np.ones((1, 3), np.float32), {}, "has shape (1, 3), the model takes input (N, 2) float32"),
        (np.ones((0, 2), np.float32), {}, "has shape (0, 2)"),
        (np.ones((17, 2), np.float32), {}, "holds 17 images, one request may hold 16"),
        (ROWS, {"input": "other"}, "other: is not an input"),
        (ROWS, {"datatype": "FP64"}, "has datatype FP64"),
    ],
)
def test_tensors_that_the_model_does_not_take_are_refused(plain, array, more, why) -> None:
    status, answer = infer(plain, array, **more)
    assert status == 400
    assert why in answer["error"]
    assert np.array_equal(infer(plain, ROWS)[1], 2 * ROWS)


def test_what_is_not_json_is_refused(plain) -> None:
    for body, headers in ((b"{", {}), (b"{}", {"Inference-Header-Content-Length": "3"})):
        assert error_of(call(plain, "POST", "/v2/models/m/infer", body, headers))[0] == 400


def test_what_is_not_http_is_refused_and_closed(plain) -> None:
    with socket.create_connection((plain.host, plain.port), WAIT_S) as client:
        client.sendall(b"\x16\x03\x01 not http\r\n\r\n")
        assert client.makefile("rb").read().startswith(b"HTTP/1.1 400 ")


def test_clients_at_the_same_time_run_in_few_batches() -> None:
    def slowly(feeds):
        time.sleep(0.02)
        return {"output": feeds["input"] * 2}

    with small(slowly, {"max_delay_s": 0.02}) as server:

        def client(number):
            array = np.full((1, 2), number, np.float32)
            return all(np.array_equal(infer(server, array)[1], 2 * array) for _ in range(5))

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(client, range(16)))
        sizes = server.runner.sizes
        assert sum(sizes) == 80
        assert len(sizes) <= 30
        assert max(sizes) <= 16
        assert metric(server, "densenet_batch_images_count") == len(sizes)
        assert metric(server, "densenet_batch_images_sum") == 80
        assert metric(server, 'densenet_requests_total{endpoint="infer"}') == 80
        assert metric(server, 'densenet_request_seconds_count{endpoint="infer"}') == 80


def test_a_full_queue_is_503_with_retry_after() -> None:
    gate = Gate()
    with small(gate, {"max_batch": 1, "max_queue": 1}) as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(infer, server, ROWS)
        assert gate.began.wait(WAIT_S)
        second = pool.submit(infer, server, ROWS)
        while metric(server, "densenet_queue_images") < 1:
            time.sleep(0.01)
        body = json.dumps({"inputs": [{"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}).encode()
        status, headers, answer = call(server, "POST", "/v2/models/m/infer", body)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "are waiting already" in json.loads(answer)["error"]
        gate.open.set()
        assert first.result(WAIT_S)[0] == second.result(WAIT_S)[0] == 200
        assert metric(server, 'densenet_errors_total{kind="queue_full"}') == 1
        assert infer(server, ROWS)[0] == 200


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (ModelFileError("m", "is broken", "export it again"), "model: m: is broken; export it again"),
        (RuntimeError("native\ncode"), "internal error: RuntimeError: native\\ncode"),
        (MemoryError(), "internal error: MemoryError: "),
    ],
)
def test_a_model_that_fails_is_500_in_one_sentence_and_the_server_goes_on(failure, sentence, capfd) -> None:
    failures = [failure]

    def fail_once(feeds):
        if failures:
            raise failures.pop()
        return {"output": feeds["input"] * 2}

    with small(fail_once) as server:
        assert infer(server, ROWS) == (500, {"error": sentence})
        assert np.array_equal(infer(server, ROWS)[1], 2 * ROWS)
        assert metric(server, 'densenet_errors_total{kind="model"}') == 1


MIB = 2**20


def test_a_declared_body_over_the_limit_is_413_before_it_is_sent() -> None:
    with small(max_body_mib=1) as server:
        with socket.create_connection((server.host, server.port), WAIT_S) as client:
            client.sendall(f"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: {MIB + 1}\r\n\r\n".encode())
            assert client.recv(100).startswith(b"HTTP/1.1 413 ")
        status, error = error_of(call(server, "POST", "/v2/models/m/infer", bytes(MIB + 1)))
        assert (status, "larger than 1048576 bytes" in error) == (413, True)
        assert error_of(call(server, "POST", "/v2/models/m/infer", bytes(MIB)))[0] == 400  # just inside
        assert metric(server, 'densenet_errors_total{kind="too_large"}') == 2


def test_a_body_that_does_not_say_its_length_is_413_when_it_reaches_the_limit() -> None:
    with small(max_body_mib=1) as server, socket.create_connection((server.host, server.port), WAIT_S) as client:
        client.sendall(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        for _ in range(17):  # one more than the limit, and never the end
            client.sendall(chunk)
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")
        assert infer(server, ROWS)[0] == 200


def answer_to_a_head(server, head):
    """What comes within a moment for a header without its body."""
    with socket.create_connection((server.host, server.port), WAIT_S) as client:
        client.sendall(head)
        client.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            return client.recv(1000)
    return b""


def test_bodies_that_are_held_at_the_same_time_are_limited() -> None:
    with small(max_body_mib=1) as server, contextlib.ExitStack() as stack:
        head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {MIB}\r\n\r\n".encode()
        for _ in range(16):
            client = stack.enter_context(socket.create_connection((server.host, server.port), WAIT_S))
            client.sendall(head + bytes(MIB - 1))
        deadline = time.monotonic() + WAIT_S
        while not (answer := answer_to_a_head(server, head)):
            assert time.monotonic() < deadline
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer.lower()
        stack.close()
        while infer(server, ROWS)[0] != 200:
            assert time.monotonic() < deadline
        assert metric(server, 'densenet_errors_total{kind="disconnected"}') >= 16


SLOW = (
    b"",  # connects and says nothing
    b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nX-Sl",  # a header that does not end
    b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{",  # a body that does not end
    b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\nGET /v2",  # a second request that does not end
)


@pytest.mark.parametrize(("sent", "answer"), list(zip(SLOW, (b"", b"408", b"408", b"200"), strict=True)))
def test_a_slow_client_is_disconnected_after_the_time_limit(sent, answer) -> None:
    with small(receive_s=0.3) as server, socket.create_connection((server.host, server.port), WAIT_S) as client:
        start = time.monotonic()
        client.sendall(sent)
        found = client.makefile("rb").read()
        assert 0.25 <= time.monotonic() - start < 10
        assert found[9:12] == answer
        assert (b"408" in found) is bool(sent)
        assert metric(server, 'densenet_errors_total{kind="disconnected"}') == bool(sent)
        assert infer(server, ROWS)[0] == 200


def test_a_client_that_sends_byte_by_byte_has_no_more_time() -> None:
    with small(receive_s=0.3) as server, socket.create_connection((server.host, server.port), WAIT_S) as client:
        start = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - start < WAIT_S:
                client.sendall(b"X")
                time.sleep(0.02)
        assert time.monotonic() - start < 10


def test_a_client_that_does_not_take_its_answer_is_disconnected() -> None:
    def wide(feeds):
        return {"output": np.ones((len(feeds["input"]), 2 * MIB), np.float32)}

    with small(wide, receive_s=0.5) as server, socket.create_connection((server.host, server.port), WAIT_S) as client:
        entry = {"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
        body = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
        head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        time.sleep(1.5)
        total = 0
        with contextlib.suppress(ConnectionError):
            while data := client.recv(65536):
                total += len(data)
        assert total < 8 * MIB
        assert call(server, "GET", "/v2/health/live")[0] == 200


def test_the_least_that_a_client_does_not_take_starts_its_time(monkeypatch) -> None:
    made, found = LimitedProtocol.connection_made, []

    def observed(self, transport):
        made(self, transport)
        found.append(transport.get_write_buffer_limits())

    monkeypatch.setattr(LimitedProtocol, "connection_made", observed)
    with small() as server:
        assert infer(server, ROWS)[0] == 200
    assert set(found) == {(0, 0)}


@pytest.mark.parametrize("extra", [b"", b"GET /v2 HTTP/1.1\r\n\r\n"], ids=["alone", "before another"])
def test_a_large_header_that_comes_at_once_is_refused(plain, extra) -> None:
    for size, status in ((65000, 200), (66000, 431)):
        with socket.create_connection((plain.host, plain.port), timeout=WAIT_S) as client:
            client.sendall(
                b"GET /v2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: %s\r\n\r\n%s" % (b"x" * size, extra)
            )
            found = client.makefile("rb").read()
        assert found.startswith(b"HTTP/1.1 %d " % status)
        assert found.count(b"HTTP/1.1") == 1


def test_what_is_not_http_is_answered_with_json_and_counted(plain) -> None:
    before = metric(plain, 'densenet_errors_total{kind="disconnected"}')
    with socket.create_connection((plain.host, plain.port), timeout=WAIT_S) as client:
        client.sendall(b"\x16\x03\x01\x02\x00")
        head, _, body = client.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-length: %d\r\n" % len(body) in head
    assert json.loads(body)["error"].startswith("request: ")
    assert body.endswith(b"}\n")
    assert metric(plain, 'densenet_errors_total{kind="disconnected"}') == before + 1


def test_an_endless_header_is_refused() -> None:
    with small() as server, socket.create_connection((server.host, server.port), WAIT_S) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(b"GET /v2 HTTP/1.1\r\n" + b"X-A: " + b"a" * 300_000)
            assert client.recv(100).startswith(b"HTTP/1.1 431 ")
        assert infer(server, ROWS)[0] == 200


@pytest.mark.parametrize("clients", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_others_are_served_beside_many_slow_clients(clients) -> None:
    with small(receive_s=2) as server, contextlib.ExitStack() as stack:
        slow = []
        for number in range(clients):
            slow.append(stack.enter_context(socket.create_connection((server.host, server.port), WAIT_S)))
            slow[-1].sendall(SLOW[number % 3])
        start = time.monotonic()
        for number in range(20):
            array = np.full((1, 2), number, np.float32)
            assert np.array_equal(infer(server, array)[1], 2 * array)
        assert time.monotonic() - start < 2
        for client in slow:
            client.settimeout(WAIT_S)
            while client.recv(4096):
                pass


def test_one_connection_serves_many_requests(plain) -> None:
    connection = http.client.HTTPConnection(plain.host, plain.port, timeout=WAIT_S)
    for _ in range(3):
        connection.request("GET", "/v2/models/m")
        assert json.loads(connection.getresponse().read())["name"] == "m"
    connection.close()


def test_a_name_is_that_of_the_url() -> None:
    name = "two words é"
    with serving(Service(name, rows_runner(), "no images", QueueOptions(max_delay_s=0))) as server:
        status, _, body = call(server, "GET", f"/v2/models/{urllib.parse.quote(name)}")
        assert (status, json.loads(body)["name"]) == (200, name)
        assert infer(server, ROWS, urllib.parse.quote(name))[0] == 200


def test_metrics_are_read_by_prometheus_own_parser(plain) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    assert infer(plain, ROWS)[0] == 200
    text = call(plain, "GET", "/metrics")[2].decode()
    found = {family.name: family.type for family in text_string_to_metric_families(text)}
    kinds = {name: kind for name, kind in found.items() if not name.endswith("_created")}
    assert kinds == {
        "densenet_requests": "counter",
        "densenet_errors": "counter",
        "densenet_request_seconds": "histogram",
        "densenet_batch_images": "histogram",
        "densenet_run_seconds": "histogram",
        "densenet_queue_images": "gauge",
        "densenet_workers": "gauge",
        "densenet_worker_starts": "counter",
        "densenet_worker_losses": "counter",
    }


def test_while_a_run_does_not_end_the_server_is_neither_live_nor_ready() -> None:
    began, end = threading.Event(), threading.Event()

    def stuck(feeds):
        began.set()
        assert end.wait(WAIT_S)
        return {"output": feeds["input"]}

    paths = "/v2/health/live", "/v2/health/ready", "/v2/models/m/ready"
    with small(stuck, {"stuck_s": 1.0}) as server, ThreadPoolExecutor(1) as pool:
        pending = pool.submit(infer, server, ROWS)
        assert began.wait(WAIT_S)
        assert [call(server, "GET", path)[0] for path in paths] == [200, 200, 200]
        deadline = time.monotonic() + WAIT_S
        while (found := [call(server, "GET", path)[0] for path in paths]) != [503, 503, 503]:
            assert time.monotonic() < deadline, found
        assert json.loads(call(server, "GET", paths[0])[2]) == {"live": False}
        end.set()
        assert pending.result(WAIT_S)[0] == 200
        assert [call(server, "GET", path)[0] for path in paths] == [200, 200, 200]


def test_the_largest_batch_of_a_slow_model_tells_how_long_a_run_may_take() -> None:
    def slow(feeds):
        time.sleep(0.3 if len(feeds["input"]) == 1 else 1.2)
        return {"output": feeds["input"]}

    service = Service("m", rows_runner(slow), "no images", QueueOptions(max_batch=2, max_delay_s=0, stuck_s=1.0))
    service.warm_up()
    with serving(service) as server, ThreadPoolExecutor(1) as pool:
        pending = pool.submit(infer, server, np.concatenate([ROWS, ROWS]))
        while not pending.done():
            assert call(server, "GET", "/v2/health/ready")[0] == 200
        assert pending.result()[0] == 200


def test_every_text_ends_with_a_newline(digits) -> None:
    image = HELD_OUT[0].read_bytes()
    inputs = [{"name": "input", "shape": [1, 3, 32, 32], "datatype": "FP32", "data": images().ravel().tolist()}]
    asked = [
        ("GET", "/v2", None),
        ("GET", "/v2/health/live", None),
        ("GET", "/v2/health/ready", None),
        ("GET", "/v2/models/digits", None),
        ("GET", "/v2/models/digits/ready", None),
        ("GET", "/metrics", None),
        ("GET", "/nowhere", None),
        ("POST", "/classify", image),
        ("POST", "/classify", b"no image"),
        ("POST", "/v2/models/digits/infer", json.dumps({"inputs": inputs}).encode()),
    ]
    for one in asked:
        body = call(digits, *one)[2]
        assert (body[-1:], body[-2:-1] == b"\n") == (b"\n", False), one


def padded(values, size):
    """A request for `values`, (N, 2), as JSON of exactly `size` bytes."""
    entry = {"name": "input", "shape": [len(values) // 2, 2], "datatype": "FP32", "data": values}
    return json.dumps({"inputs": [entry]}).encode().ljust(size)


def threads_of(monkeypatch, function):
    """Return a list that gets the thread of every call of a function by the HTTP side."""
    threads, whole = [], getattr(http_server, function)
    monkeypatch.setattr(http_server, function, lambda *to: threads.append(threading.current_thread()) or whole(*to))
    return threads


@pytest.mark.parametrize(("size", "is_here"), [(65536, True), (65537, False)])
def test_short_json_is_read_on_the_loop_and_longer_one_in_a_thread(plain, monkeypatch, size, is_here) -> None:
    threads = threads_of(monkeypatch, "read_request")
    status, _, body = call(plain, "POST", "/v2/models/m/infer", padded([1.0, 2.0], size))
    assert status == 200
    assert json.loads(body)["outputs"][0]["data"] == [2, 4]
    assert [thread is plain.thread for thread in threads] == [is_here]


def test_the_bytes_of_tensors_do_not_count_as_json(monkeypatch) -> None:
    threads = threads_of(monkeypatch, "read_request")
    with small(queue={"max_batch": 10000, "max_queue": 10000}) as server:
        assert infer(server, np.ones((10000, 2), np.float32))[0] == 200
        assert threads == [server.thread]


@pytest.mark.parametrize(("rows", "is_here"), [(2048, True), (2049, False)])
def test_a_short_answer_is_written_on_the_loop_and_a_longer_one_in_a_thread(monkeypatch, rows, is_here) -> None:
    threads = threads_of(monkeypatch, "write_answer")
    with small(queue={"max_batch": 4096, "max_queue": 4096}) as server:
        status, values = infer(server, np.ones((rows, 2), np.float32))
        assert (status, values.shape) == (200, (rows, 2))
        assert [thread is server.thread for thread in threads] == [is_here]


def test_inference_of_another_version_or_method_is_refused_as_ever(plain) -> None:
    body = padded([1.0, 2.0], 0)
    assert call(plain, "POST", "/v2/models/m/versions/1/infer", body)[0] == 200
    assert call(plain, "POST", "/v2/models/m/versions/2/infer", body)[0] == 404
    assert call(plain, "POST", "/v2/models/n/infer", body)[0] == 404
    assert call(plain, "PUT", "/v2/models/m/infer", body)[0] == 405
