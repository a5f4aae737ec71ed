"""Serve: the whole command, from a model to the report; its end after a signal; ports; what cannot be served."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

import densenet_deploy as dd
from densenet_deploy import packages
from densenet_deploy.cli import main
from densenet_deploy.errors import MissingPackageError, ModelFileError, ResourceError, UsageError
from densenet_deploy.runtime.runner import RunnerOptions
from densenet_deploy.serving.dynamic_batching import QueueOptions
from densenet_deploy.serving.metrics import total
from densenet_deploy.serving.server import ServeOptions, StopRequest
from densenet_deploy.serving.service import Service
from densenet_deploy.workflows import serve as serve_module
from densenet_deploy.workflows.serve import serve, shared_cpus
from tests.conftest import DIGITS
from tests.serving.servers import WAIT_S, call, infer, rows_runner, serving

ROWS = np.array([[1, 2]], np.float32)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="several processes on one port need Linux")


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
    assert "3 in 1 run" in str(report)


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


def test_batches_at_the_same_time_share_the_cpus_and_threads_sleep_between_runs(monkeypatch) -> None:
    monkeypatch.setattr(serve_module, "usable_cpus", lambda: 8)
    for given, instances, workers, threads in (
        (None, 1, 1, None),
        (None, 2, 1, 4),
        (None, 16, 1, 1),
        (None, 1, 8, 1),
        (None, 2, 3, 1),
        (None, 1, 3, 2),
        (3, 2, 1, 3),
        (4, 1, 2, 4),
    ):
        options = ServeOptions(instances=instances, workers=workers)
        shared, notes = shared_cpus(None if given is None else RunnerOptions(threads=given), options)
        assert (shared.threads, shared.spin, notes) == (threads, False, ())


def test_more_workers_than_cpus_are_refused_and_more_threads_are_said(monkeypatch) -> None:
    monkeypatch.setattr(serve_module, "usable_cpus", lambda: 4)
    shared_cpus(None, ServeOptions(workers=4))
    with pytest.raises(UsageError, match="workers=5: are more than the 4 usable CPUs"):
        shared_cpus(None, ServeOptions(workers=5))
    _, (note,) = shared_cpus(RunnerOptions(threads=2), ServeOptions(workers=3))
    assert note == "3 workers x 1 instance x 2 threads are 6 threads on 4 CPUs"
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(UsageError, match="Linux"):
        shared_cpus(None, ServeOptions(workers=2))
    shared_cpus(None, ServeOptions())


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
        status, headers, answer = pending.result(WAIT_S)
        assert (status, headers["Connection"]) == (503, "close")
        assert json.loads(answer) == {"error": "server: ended before the answer; ask another one"}
        assert total(service.metrics.counts, "errors_total") == 1


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
        self.host, _, port = self.ready.split()[3].removeprefix("http://").rpartition(":")
        self.port = int(port)

    def workers(self):
        """The numbers of its child processes."""
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def gauge(self, name):
        text = call(self, "GET", "/metrics")[2].decode()
        return next((float(line.split()[1]) for line in text.splitlines() if line.startswith(f"densenet_{name} ")), 0.0)

    def wait_until(self, **gauges):
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(ConnectionError):  # a worker that ends resets what waits for it
                if gauges == {name: self.gauge(name) for name in gauges}:
                    return
            time.sleep(0.05)
        raise AssertionError(gauges)

    def end(self, number):
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def process():
    """Starts the command; whatever happens, it does not outlive the test."""
    with contextlib.ExitStack() as stack:

        def made(*words):
            found = Process(*words)
            stack.enter_context(found.process)  # waits for its end, and closes its streams
            stack.callback(found.process.kill)
            return found

        yield made


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_with_its_report_and_exit_0(process, digits_onnx, number) -> None:
    server = process(digits_onnx, "--json")
    images = np.zeros((2, 3, 32, 32), np.float32)
    assert infer(server, images, "digits")[0] == 200
    code, out, err = server.end(number)
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["model"], report["requests"], report["images"], report["errors"]) == ("digits", 1, 2, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("all_cpus")
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=on_linux)])
def test_sigterm_under_load_loses_nothing(process, digits_onnx, workers) -> None:
    server = process(digits_onnx, "--json", "--workers", workers)
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


def sockets(pid):
    """How many sockets a process has open."""
    count = 0
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            count += str(one.readlink()).startswith("socket:")
    return count


def outcome(ask):
    """Whether a request was answered, or lost with its connection; anything else is an error of the test."""
    try:
        return ask()
    except (ConnectionError, http.client.BadStatusLine):
        return "lost"
    except InferenceServerException as exc:
        return "lost" if exc.status() == "StatusCode.UNAVAILABLE" else str(exc)


@pytest.mark.slow
@on_linux
@pytest.mark.usefixtures("all_cpus")
def test_a_worker_that_is_killed_loses_its_requests_alone_and_is_replaced(process, digits_onnx) -> None:
    """Every request waits five seconds for others; one process is killed while both hold some."""
    words = ["--workers", 2, "--grpc-port", 0, "--max-batch", 100, "--max-delay-ms", 5000, "--json"]
    server = process(digits_onnx, *words)
    images = np.random.default_rng(0).standard_normal((100, 3, 32, 32), np.float32)
    with dd.open_runner(digits_onnx) as runner:
        expected = runner.run(images)["logits"]

    def judged(found):  # in a batch of another size sums have another order
        return "answered" if np.allclose(found, expected[: len(found)], atol=1e-4) else found

    def over_http(count=1):
        status, found = infer(server, images[:count], "digits")
        assert status == 200
        return judged(found)

    def over_grpc(count=1):
        own_connection = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.InferenceServerClient(server.ready.split()[5], channel_args=own_connection) as client:
            tensor = grpc.InferInput("input", images[:count].shape, "FP32")
            tensor.set_data_from_numpy(images[:count])
            return judged(client.infer("digits", [tensor]).as_numpy("logits"))

    first, second = server.workers()
    idle = sockets(first), sockets(second)
    with ThreadPoolExecutor(40) as pool:
        pending = [pool.submit(outcome, ask) for ask in (over_http,) * 20 + (over_grpc,) * 20]
        while sockets(first) + sockets(second) < sum(idle) + 40:
            assert not any(one.done() for one in pending)
            time.sleep(0.02)
        held = sockets(first) - idle[0]
        os.kill(first, signal.SIGKILL)
        found = [one.result(WAIT_S) for one in pending]
    assert (found.count("lost"), found.count("answered")) == (held, 40 - held)
    for answers in (found[:20], found[20:]):  # that one process has all or none of 20: once in 2 ** 19
        assert {*answers} == {"answered", "lost"}
    server.wait_until(workers=2.0, worker_starts_total=3.0)
    assert second in server.workers()
    assert first not in server.workers()
    for ask in (over_http, over_grpc):  # a full batch does not wait
        assert ask(100) == "answered"
    code, out, err = server.end(signal.SIGTERM)
    report = json.loads(out)
    answered = 40 - held + 2
    assert (code, report["requests"], report["errors"], report["workers"], report["losses"]) == (0, answered, 0, 2, 1)
    assert err.startswith(f"note: worker {first}: ")
    assert err.count("\n") == 1


def losses_of(server):
    """How many processes ended and hung, as any process tells."""
    text = call(server, "GET", "/metrics", timeout=2)[2].decode()
    found = dict(re.findall(r'^densenet_worker_losses_total\{reason="(\w+)"\} (\S+)$', text, re.MULTILINE))
    return float(found["ended"]), float(found["hung"])


@pytest.mark.slow
@on_linux
@pytest.mark.usefixtures("all_cpus")
def test_a_worker_that_is_stopped_is_replaced_while_the_other_answers(process, digits_onnx) -> None:
    server = process(digits_onnx, "--workers", 2, "--stuck-s", 2, "--json")
    first, second = server.workers()
    os.kill(first, signal.SIGSTOP)
    answered = 0
    while {first, second} <= {*server.workers()}:
        with contextlib.suppress(TimeoutError, ConnectionError, http.client.BadStatusLine):  # of the one that hangs
            answered += call(server, "GET", "/v2/health/ready", timeout=0.1)[0] == 200
    assert answered > 0
    server.wait_until(workers=2.0, worker_starts_total=3.0)
    assert losses_of(server) == (0, 1)
    assert second in server.workers()
    code, out, err = server.end(signal.SIGTERM)
    assert (code, json.loads(out)["losses"]) == (0, 1)
    assert err == f"note: worker {first}: gave no sign for 2 s; another one starts in 0.1 s\n"


@pytest.mark.slow
@on_linux
@pytest.mark.usefixtures("all_cpus")
def test_a_folder_of_counts_that_is_removed_is_made_again_and_said(process, digits_onnx) -> None:
    server = process(digits_onnx, "--workers", 2, "--json")
    first, _ = server.workers()
    variables = Path(f"/proc/{first}/environ").read_text().split("\0")
    (folder,) = (Path(one.partition("=")[2]) for one in variables if one.startswith("PROMETHEUS_MULTIPROC_DIR="))
    shutil.rmtree(folder)
    assert call(server, "GET", "/metrics")[0] == 200
    os.kill(first, signal.SIGKILL)
    while first in server.workers():
        time.sleep(0.02)
    server.wait_until(workers=1.0, worker_starts_total=1.0)  # the one that replaces it
    code, out, _ = server.end(signal.SIGTERM)
    assert code == 0
    (note,) = json.loads(out)["notes"]
    assert note.startswith(f"{folder} was removed")
    assert not folder.exists()


def counting(path):
    """Write a model that counts to the largest number of a batch of rows, (N, 2), and returns the rows."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["held"], ["kept"])],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held", TensorProto.FLOAT, ["N", 2]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("kept", TensorProto.FLOAT, ["N", 2]),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["input"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["count"], to=TensorProto.INT64),
        helper.make_node("Loop", ["count", "", "input"], ["output"], body=body),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("input", "output")]
    graph = helper.make_graph(nodes, "counting", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.slow
@on_linux
@pytest.mark.usefixtures("all_cpus")
def test_a_worker_whose_model_does_not_end_is_replaced_and_its_request_is_lost(process, tmp_path) -> None:
    server = process(counting(tmp_path / "m.onnx"), "--workers", 2, "--stuck-s", 1, "--json")
    workers = server.workers()
    assert outcome(lambda: infer(server, np.array([[1, 1e18]], np.float32))) == "lost"
    server.wait_until(workers=2.0, worker_starts_total=3.0)
    assert losses_of(server) == (0, 1)
    assert len({*workers} & {*server.workers()}) == 1
    assert infer(server, ROWS)[0] == 200
    code, _, err = server.end(signal.SIGTERM)
    assert (code, err.count("a run of its model did not end; another one starts in 0.1 s")) == (0, 1)


@pytest.mark.slow
@on_linux
@pytest.mark.usefixtures("all_cpus")
def test_one_process_whose_model_does_not_end_can_be_ended(process, tmp_path) -> None:
    server = process(counting(tmp_path / "m.onnx"), "--stuck-s", 1, "--grace-s", 0.5, "--json")
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(outcome, lambda: infer(server, np.array([[1, 1e18]], np.float32)))
        deadline = time.monotonic() + WAIT_S
        while call(server, "GET", "/v2/health/ready")[0] == 200:
            assert time.monotonic() < deadline
        code, out, err = server.end(signal.SIGTERM)
        assert pending.result(WAIT_S)[0] == 503
    report = json.loads(out)
    assert (code, report["stuck"], report["requests"], report["errors"]) == (5, True, 0, 1)
    assert json.loads(err.splitlines()[-1])["error"]["message"].startswith("backend: m: a run of the model did not end")


@on_linux
@pytest.mark.usefixtures("all_cpus")
def test_what_keeps_the_workers_from_starting_is_that_of_one_process(digits_onnx, tmp_path) -> None:
    options = ServeOptions(port=0, workers=2)
    (tmp_path / "m.onnx").write_bytes(b"text")
    with pytest.raises(ModelFileError):  # of this process
        serve(tmp_path / "m.onnx", options)
    with pytest.raises(UsageError, match="labels"):  # of the workers
        serve(digits_onnx, options, labels=("a", "b"))
    taken, port = taken_port()
    with taken:
        for ports in ({"port": port}, {"port": 0, "grpc_port": port}):
            with pytest.raises(ResourceError, match=f"127.0.0.1:{port}"):
                serve(digits_onnx, ServeOptions(workers=2, **ports))


@pytest.mark.slow
@on_linux
@pytest.mark.usefixtures("all_cpus")
def test_several_workers_serve_a_model_in_memory_and_tell_what_was_assumed(digits_onnx) -> None:
    labels = tuple("abcdefghij")
    model = dd.load(digits_onnx, labels=labels, mean=0.3, std=0.3)
    image = (DIGITS / "held_out/7/0031.png").read_bytes()
    with started(model, ServeOptions(port=0, workers=2), running=RunnerOptions(threads=2)) as server:
        for _ in range(8):
            assert json.loads(call(server, "POST", "/classify", image)[2])["top"][0]["label"] == "h"
        assert any("threads on" in note for note in server.address.notes)
    report = server.report
    assert (report.requests, report.images, report.workers, report.losses) == (8, 8, 2, 0)
    assert report.notes == server.address.notes
    assert "2, 0 of them replaced" in str(report)
