"""Ray Serve in front of a model: the example, run for real."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import densenet_deploy as dd
from tests.conftest import DIGITS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_serve.py"
IMAGE = DIGITS / "held_out" / "7" / "0031.png"


def posted(port: int, body: bytes) -> tuple[int, dict]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", body)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def until_ready(port: int, process: subprocess.Popen) -> tuple[int, dict]:
    while True:
        assert process.poll() is None
        try:
            status, answer = posted(port, IMAGE.read_bytes())
        except (OSError, ValueError):  # it does not listen yet, or has no route yet
            status, answer = 0, {}
        if status == 200:
            return status, answer
        time.sleep(0.5)


def test_replicas_answer_as_the_classifier_does(digits_onnx, tmp_path) -> None:
    pytest.importorskip("ray.serve")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(EXAMPLE), str(digits_onnx), str(port)]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_ENABLE_TASK_EVENTS": "0"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        _, answer = until_ready(port, process)
        with dd.Classifier.open(digits_onnx, options=dd.RunnerOptions(threads=1)) as classify:
            assert answer == json.loads(json.dumps(classify(IMAGE.read_bytes()).to_json()))
        with ThreadPoolExecutor(8) as pool:
            found = [*pool.map(lambda _: posted(port, IMAGE.read_bytes()), range(32))]
        assert found == [(200, answer)] * 32
        status, error = posted(port, b"text")
        assert (status, "error" in error) == (400, True)
    finally:
        os.killpg(process.pid, signal.SIGINT)  # it ends its cluster
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
