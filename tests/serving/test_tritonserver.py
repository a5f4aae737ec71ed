"""A repository served by a real Triton server: the one inside `nvidia-pytriton`, in an environment of its own.

    uv run pytest -m triton -n0

That server has the `python` backend alone, so the repositories for its other backends are parsed and compared with the
graphs (`tests/workflows/test_triton.py`), not served.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

import densenet_deploy as dd

pytestmark = [pytest.mark.triton, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits"
REQUESTS, CLIENTS = 10_000, 16
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> Path:
    """A virtual environment with the server and what `model.py` needs."""
    uv = shutil.which("uv")
    if uv is None or sys.platform != "linux":
        pytest.skip("uv, which installs the server, is not on the path")
    folder = tmp_path_factory.mktemp("triton")
    environment = folder / "environment"
    python = environment / "bin" / "python"

    def run(*words: str) -> None:
        done = subprocess.run([uv, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"the server cannot be installed: {done.stderr.strip().splitlines()[-1]}")

    run("venv", "-q", "--python", VERSION, str(environment))
    run("pip", "install", "-q", "--python", str(python), "numpy>=2", "onnxruntime>=1.29", "Pillow>=12.3")
    run("pip", "install", "-q", "--python", str(python), "--no-deps", "nvidia-pytriton==0.7.0")
    packages = environment / "lib" / f"python{VERSION}" / "site-packages"
    (packages / "densenet_deploy.pth").write_text(f"{ROOT}\n")
    server = packages / "pytriton" / "tritonserver"
    stub = server / "python_backend_stubs" / VERSION / "triton_python_backend_stub"
    shutil.copy(stub, server / "backends" / "python")
    return environment


@pytest.fixture(scope="session")
def repository(digits_onnx, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("repository") / "models"
    dd.triton([digits_onnx], folder, dd.TritonOptions(("python",), max_batch=16, max_delay_ms=5, ensemble=True))
    return folder


class Server:
    """A running server and its ports."""

    def __init__(self, environment: Path, repository: Path, log: Path) -> None:
        self.http, self.grpc, self.metrics = (_free_port() for _ in range(3))
        packages = environment / "lib" / f"python{VERSION}" / "site-packages"
        server = packages / "pytriton" / "tritonserver"
        libraries = [sysconfig.get_config_var("LIBDIR"), str(packages / "nvidia_pytriton.libs")]
        variables = {
            **os.environ,
            "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": ":".join(libraries),
        }
        options = {
            "model-repository": repository,
            "backend-directory": server / "backends",
            "http-port": self.http,
            "grpc-port": self.grpc,
            "metrics-port": self.metrics,
        }
        command = [str(server / "bin" / "tritonserver"), *(f"--{name}={value}" for name, value in options.items())]
        self.log = log
        with log.open("w") as file:
            self._process = subprocess.Popen(command, env=variables, stdout=file, stderr=subprocess.STDOUT)

    def wait(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://localhost:{self.http}/v2/health/ready", timeout=1):
                    return
            except OSError:
                threading.Event().wait(0.2)
        pytest.fail(self.log.read_text()[-4000:])

    def count(self, metric: str, model: str) -> int:
        """Return a counter of a model."""
        with urllib.request.urlopen(f"http://localhost:{self.metrics}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(int(float(value)) for value in re.findall(rf'{metric}{{[^}}]*model="{model}"[^}}]*}} (\S+)', text))

    def memory_mib(self) -> float:
        """Return the resident memory of the server and its children."""
        found = subprocess.run(["ps", "-eo", "pid,ppid,rss"], capture_output=True, text=True, check=True).stdout
        rows = [list(map(int, row.split())) for row in found.splitlines()[1:]]
        own = {self._process.pid}
        for _ in range(3):
            own |= {pid for pid, parent, _ in rows if parent in own}
        return sum(rss for pid, _, rss in rows if pid in own) / 1024

    def stop(self) -> int:
        self._process.terminate()
        return self._process.wait(60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def server(environment, repository, tmp_path_factory):
    running = Server(environment, repository, tmp_path_factory.mktemp("log") / "server.log")
    try:
        running.wait()
        yield running
    finally:
        running.stop()


def asked(client, model: str, name: str, array: np.ndarray, kind: str, *outputs) -> grpc.InferResult:
    given = grpc.InferInput(name, array.shape, kind)
    given.set_data_from_numpy(array)
    return client.infer(model, [given], outputs=list(outputs) or None)


@pytest.fixture
def client(server):
    with grpc.InferenceServerClient(f"localhost:{server.grpc}") as found:
        yield found


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 32, 32), np.float32)


def test_answers_are_those_of_the_runner_to_the_bit(client, digits_onnx) -> None:
    with dd.open_runner(digits_onnx) as runner:
        for count in (1, 2, 16):
            array = images(count)
            found = asked(client, "digits", "input", array, "FP32").as_numpy("logits")
            assert np.array_equal(found, runner.run(array)["logits"])


def test_http_gives_the_same(server, digits_onnx) -> None:
    import json

    array = images(2)
    given = {"name": "input", "shape": list(array.shape), "datatype": "FP32", "data": array.ravel().tolist()}
    request = urllib.request.Request(
        f"http://localhost:{server.http}/v2/models/digits/infer", json.dumps({"inputs": [given]}).encode()
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        (found,) = json.load(answer)["outputs"]
    with dd.open_runner(digits_onnx) as runner:
        expected = runner.run(array)["logits"]
    assert found["shape"] == list(expected.shape)
    assert np.array_equal(np.array(found["data"], np.float32), expected.ravel())


def test_an_image_of_any_size_is_classified_as_by_the_classifier(client, digits_onnx) -> None:
    with dd.Classifier.open(digits_onnx) as classify:
        for path in sorted((DIGITS / "held_out").rglob("*.png"))[::40]:
            small = Image.open(path).convert("RGB")
            for image in (small, small.resize((47, 53))):
                pixels, top = np.asarray(image), classify(image).top[0]
                answer = asked(client, "digits_classify", "image", pixels[None], "UINT8")
                assert answer.as_numpy("best").tolist() == [[top.index]]
                assert answer.as_numpy("scores")[0, top.index] == np.float32(top.score)
                named = grpc.InferRequestedOutput("scores", class_count=1)
                (text,) = asked(client, "digits_classify", "image", pixels[None], "UINT8", named).as_numpy("scores")[0]
                assert text.decode().split(":")[1:] == [str(top.index), top.label]


def test_a_wrong_shape_and_a_wrong_value_are_refused_with_the_reason(client) -> None:
    with pytest.raises(InferenceServerException) as caught:
        asked(client, "digits", "input", images(1)[:, :, :16, :16].copy(), "FP32")
    assert "Expected [-1,3,32,32]" in str(caught.value)
    with pytest.raises(InferenceServerException) as caught:
        asked(client, "digits", "input", images(1) * np.nan, "FP32")
    assert "holds NaN or Inf" in str(caught.value)


def test_ten_thousand_requests_are_put_together_and_leave_nothing_behind(server, client, digits_onnx) -> None:
    with dd.open_runner(digits_onnx) as runner:
        inputs = [images(1, seed) for seed in range(32)]
        expected = [runner.run(array)["logits"] for array in inputs]
    counters = ("nv_inference_request_success", "nv_inference_exec_count")
    before, memory = [server.count(name, "digits") for name in counters], []

    def ask(place: int) -> float:
        found = asked(client, "digits", "input", inputs[place % 32], "FP32").as_numpy("logits")
        return float(np.abs(found - expected[place % 32]).max())

    with ThreadPoolExecutor(CLIENTS) as pool:
        for part in range(5):
            worst = max(pool.map(ask, range(part * REQUESTS // 5, (part + 1) * REQUESTS // 5)))
            assert worst < 1e-4  # batches of other sizes add in another order
            memory.append(server.memory_mib())
    requests, executions = (server.count(name, "digits") - old for name, old in zip(counters, before, strict=True))
    assert requests == REQUESTS
    assert executions < REQUESTS / 2
    assert memory[-1] < memory[0] + 32


def test_the_log_holds_no_error_and_the_server_stops(environment, repository, tmp_path) -> None:
    running = Server(environment, repository, tmp_path / "server.log")
    running.wait()
    with grpc.InferenceServerClient(f"localhost:{running.grpc}") as client:
        asked(client, "digits", "input", images(3), "FP32")
    assert running.stop() == 0
    text = running.log.read_text()
    assert "Traceback" not in text
    assert "Exception ignored" not in text
