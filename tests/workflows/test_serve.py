"""Serve: the whole command, from a model to the report; its end after a signal; ports; what cannot be served."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

import densenet_deploy as dd
from densenet_deploy import packages
from densenet_deploy.cli import main
from densenet_deploy.errors import MissingPackageError, ModelFileError, ResourceError, UsageError
from densenet_deploy.runtime.runner import RunnerOptions
from densenet_deploy.serving.dynamic_batching import QueueOptions
from densenet_deploy.serving.service import Service
from densenet_deploy.workflows import serve as serve_module
from densenet_deploy.workflows.serve import ServeOptions, StopRequest, listen, serve
from tests.conftest import DIGITS
from tests.serving.servers import WAIT_S, call, infer, rows_runner, serving

ROWS = np.array([[1, 2]], np.float32)


@contextlib.contextmanager
def started(source, options, **more):
    """Run `serve` in a thread; yields its address, and has its report when the block has ended."""
    ready, stop, found = threading.Event(), StopRequest(), SimpleNamespace()

    def tell(address):
        found.address = address
        host, _, port = address.http.removeprefix("http://").rpartition(":")
        found.host, found.port = host, int(port)
        ready.set()

    def run():
        found.report = serve(source, options, on_ready=tell, stop=stop, **more)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(WAIT_S)
        yield found
    finally:
        stop()
        stop()
        thread.join(WAIT_S)


def test_a_model_is_served_and_what_was_done_is_reported(digits_onnx) -> None:
    images = np.zeros((3, 3, 32, 32), np.float32)
    with started(digits_onnx, ServeOptions(port=0, max_batch=4)) as server:
        assert server.address.model == "digits"
        assert str(server.address) == f"ready: digits on {server.address.http}"
        assert call(server, "GET", "/v2/health/ready")[0] == 200
        assert infer(server, images, "digits")[0] == 200
        assert infer(server, images[:, :, :16], "digits")[0] == 400
    report = server.report
    assert (report.model, report.requests, report.errors, report.images, report.runs) == ("digits", 1, 1, 3, 1)
    assert type(report).from_json(report.to_json()) == report
    assert "1 answered, 1 refused or failed" in str(report)
    assert "3 in 1 runs" in str(report)


def test_an_untrained_model_and_what_was_assumed_are_said_when_the_server_starts(tiny_onnx) -> None:
    with started(tiny_onnx, ServeOptions(port=0)) as server:
        assert any("untrained" in note for note in server.address.notes)
    assert server.report.notes == server.address.notes


def test_facts_that_are_stated_are_those_of_the_answers(digits_onnx) -> None:
    labels = tuple("abcdefghij")
    image = next(iter(sorted(DIGITS.glob("held_out/7/*.png")))).read_bytes()
    with started(digits_onnx, ServeOptions(port=0), labels=labels) as server:
        (best, *_) = json.loads(call(server, "POST", "/classify", image)[2])["top"]
    assert (best["index"], best["label"]) == (7, "h")


def test_a_model_with_a_fixed_batch_takes_any_number_of_images(tmp_path) -> None:
    model = dd.export(
        DIGITS / "densenet_digits.safetensors", options=dd.ExportOptions(batch=4), out=tmp_path / "four.onnx"
    )
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32)
    with started(model, ServeOptions(port=0)) as server:
        status, found = infer(server, images, "four")
        metadata = json.loads(call(server, "GET", "/v2/models/four")[2])
    assert metadata["inputs"][0]["shape"] == [-1, 3, 32, 32]
    assert status == 200
    with model.runner() as runner:
        expected = runner.run(np.concatenate([images, images[-1:]]))["logits"][:3]
    assert np.array_equal(found, expected)


def test_a_model_is_not_ready_before_it_has_run() -> None:
    runner = rows_runner()
    service = Service("m", runner, "no images", QueueOptions(max_batch=4))
    assert not service.is_ready
    service.warm_up()
    assert service.is_ready
    assert runner.sizes == [1, 4]
    service.close()


def test_instances_share_the_cpus_and_threads_sleep_between_runs(monkeypatch) -> None:
    monkeypatch.setattr(serve_module, "usable_cpus", lambda: 8)
    for running, instances, threads in (
        (None, 1, None),
        (None, 2, 4),
        (None, 16, 1),
        (RunnerOptions(threads=3), 2, 3),
    ):
        shared = serve_module._shared(running, instances)
        assert (shared.threads, shared.spin) == (threads, False)


def taken_port():
    taken = socket.create_server(("127.0.0.1", 0))
    return taken, taken.getsockname()[1]


def test_a_port_that_is_taken_is_exit_6_in_one_line(digits_onnx, capsys) -> None:
    taken, port = taken_port()
    with taken:
        assert main(["serve", str(digits_onnx), "--port", str(port)]) == 6
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert f"resource: 127.0.0.1:{port}: cannot be listened on" in captured.err
        with pytest.raises(ResourceError, match="--grpc-port"):
            serve(digits_onnx, ServeOptions(port=0, grpc_port=port))


def test_answers_are_sent_at_once() -> None:
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_of_another_machine_is_an_error(digits_onnx) -> None:
    for host in ("192.0.2.1", "no-such-host.invalid"):
        with pytest.raises(ResourceError, match="cannot be listened on"):
            serve(digits_onnx, ServeOptions(host=host, port=0))


def test_a_missing_package_names_the_extra(digits_onnx, monkeypatch) -> None:
    found = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    with pytest.raises(MissingPackageError, match="serve"):
        serve(digits_onnx, ServeOptions(port=0))


def test_a_package_inside_a_missing_one_is_missing() -> None:
    assert not packages.is_installed("no_such_package.inner")


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
        {"max_body_mib": 0},
        {"receive_s": 0.0},
        {"grace_s": -1.0},
        {"grace_s": float("nan")},
    ],
)
def test_options_out_of_range_are_refused(options) -> None:
    with pytest.raises(UsageError):
        ServeOptions(**options)
    ServeOptions(port=0, grpc_port=0, max_delay_ms=0.0, max_queue=16, grace_s=0.0)


def test_a_model_of_other_types_than_the_protocol_has_is_refused() -> None:
    runner = rows_runner()
    runner.inputs = (type(runner.inputs[0])("input", (None, 2), np.dtype("complex64")),)
    with pytest.raises(ModelFileError, match="does not name"):
        Service("m", runner, "no images")


def slowly(feeds):
    time.sleep(0.05)
    return {"output": feeds["input"] * 2}


def clients_until_told(server, pool, count):
    """Clients that ask again and again until an answer says that the server ends; they return what went wrong."""

    def client(number):
        body = json.dumps(
            {"inputs": [{"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [number, 1]}]}
        ).encode()
        answers = 0
        while True:
            status, headers, answer = call(server, "POST", "/v2/models/m/infer", body)
            if status != 200 or json.loads(answer)["outputs"][0]["data"] != [2 * number, 2]:
                return f"{status}: {answer!r}"
            answers += 1
            if headers["Connection"] == "close":
                return answers

    return [pool.submit(client, number) for number in range(count)]


def test_a_server_that_ends_answers_every_request_and_says_that_it_ends() -> None:
    service = Service("m", rows_runner(slowly), "no images", QueueOptions(max_batch=4, max_delay_s=0))
    with serving(service, grpc_port=0) as server, ThreadPoolExecutor(16) as pool:
        clients = clients_until_told(server, pool, 16)
        time.sleep(0.3)
        server.stop()
        found = [client.result(WAIT_S) for client in clients]
        assert all(isinstance(answers, int) and answers > 0 for answers in found), found
        server.thread.join(WAIT_S)
        assert not server.thread.is_alive()
        with pytest.raises(ConnectionRefusedError):
            call(server, "GET", "/v2/health/live")


def test_a_request_that_takes_longer_than_the_grace_time_is_abandoned() -> None:
    began, end = threading.Event(), threading.Event()

    def stuck(feeds):
        began.set()
        end.wait(WAIT_S)
        return {"output": feeds["input"]}

    service = Service("m", rows_runner(stuck), "no images", QueueOptions(max_delay_s=0))
    with serving(service, grace_s=0.3) as server, ThreadPoolExecutor(1) as pool:
        pending = pool.submit(
            call,
            server,
            "POST",
            "/v2/models/m/infer",
            json.dumps({"inputs": [{"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [1, 1]}]}),
        )
        assert began.wait(WAIT_S)
        start = time.monotonic()
        server.stop()
        server.stop()
        server.thread.join(WAIT_S)
        assert not server.thread.is_alive()
        assert 0.25 <= time.monotonic() - start < 5
        end.set()
        with contextlib.suppress(Exception):
            assert pending.result(WAIT_S)[0] != 200
        assert service.metrics.total("errors_total") == 1


class Process:
    """The command in a process of its own."""

    def __init__(self, *words):
        command = [sys.executable, "-m", "densenet_deploy", "serve", *map(str, words), "--port", "0"]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        lines = iter(self.process.stderr.readline, "")
        self.ready = next(line for line in lines if line.startswith("ready: "))
        self.host, _, port = self.ready.split()[-1].removeprefix("http://").rpartition(":")
        self.port = int(port)

    def end(self, number):
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_with_its_report_and_exit_0(digits_onnx, number) -> None:
    server = Process(digits_onnx, "--json")
    images = np.zeros((2, 3, 32, 32), np.float32)
    assert infer(server, images, "digits")[0] == 200
    code, out, err = server.end(number)
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["model"], report["requests"], report["images"], report["errors"]) == ("digits", 1, 2, 0)


@pytest.mark.slow
def test_sigterm_under_load_loses_nothing(digits_onnx) -> None:
    server = Process(digits_onnx, "--json")
    images = np.zeros((1, 3, 32, 32), np.float32)
    body = json.dumps(
        {"inputs": [{"name": "input", "shape": [1, 3, 32, 32], "datatype": "FP32", "data": images.ravel().tolist()}]}
    ).encode()

    def client(_number):
        answers = 0
        while True:
            status, headers, _ = call(server, "POST", "/v2/models/digits/infer", body)
            assert status == 200
            answers += 1
            if headers["Connection"] == "close":
                return answers

    with ThreadPoolExecutor(16) as pool:
        clients = [pool.submit(client, number) for number in range(16)]
        time.sleep(2)
        code, out, err = server.end(signal.SIGTERM)
        total = sum(client.result(WAIT_S) for client in clients)
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["requests"], report["errors"]) == (total, 0)
