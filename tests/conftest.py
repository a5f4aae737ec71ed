"""What tests share: small real models, each made once a test run.

The process that only hands out tests to others reads this file, too: it imports nothing large.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from densenet_deploy.facts import Architecture
from densenet_deploy.workflows.sandbox import DEFAULT
from tests.made_once import FOLDER, made_once

DIGITS = Path(__file__).parents[1] / "examples" / "digits"

TINY = Architecture(growth_rate=4, blocks=(2, 2), init_features=8, bn_size=2, stem="cifar")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--times", type=int, default=1, help="how many times as many inputs, drawn anew, slow tests take")


@pytest.fixture(scope="session")
def times(request: pytest.FixtureRequest) -> int:
    """How many times as many inputs, or as long, as in an ordinary run of the slow tests; above 1 they are new ones."""
    return int(request.config.getoption("--times"))


def pytest_configure(config: pytest.Config) -> None:
    """Choose the folder of `made_once`, unless the process that started this one did; give each worker one CPU.

    Libraries start a thread for every CPU they may use, and the threads of several workers disturb one another. Graphs
    are many small objects: with its usual thresholds, the garbage collector takes a twentieth of the time.
    """
    gc.set_threshold(50_000, 20, 20)
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpus[int(worker.removeprefix("gw")) % len(cpus)]})
    if FOLDER not in os.environ:
        os.environ[FOLDER] = folder = tempfile.mkdtemp(prefix="made-once-")
        config.add_cleanup(lambda: (os.environ.pop(FOLDER), shutil.rmtree(folder)))


@pytest.fixture
def all_cpus() -> Iterator[None]:
    """Let this process, and those that it starts, use every CPU, also where tests run side by side."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    yield
    os.sched_setaffinity(0, before)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from visiting modules and tests, which stay until the end, again and again."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Libraries report what is never released as leaked."""
    gc.unfreeze()


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets commands load untrusted files in a child process first, as they do outside of these tests."""
    monkeypatch.setattr(DEFAULT, "is_enabled", True)
    monkeypatch.setenv("DENSENET_DEPLOY_SANDBOX", "on")


@pytest.fixture(scope="session")
def tiny_onnx() -> Path:
    """An untrained DenseNet for 32x32 images and 10 classes, exported by the product."""
    from densenet_deploy.workflows.export import export

    return (
        made_once("tiny", lambda folder: export(architecture=TINY, num_classes=10, out=folder / "tiny.onnx"))
        / "tiny.onnx"
    )


@pytest.fixture(scope="session")
def digits_onnx() -> Path:
    """The trained digits model, exported by the product."""
    from densenet_deploy.workflows.export import export

    weights = DIGITS / "densenet_digits.safetensors"
    return made_once("digits", lambda folder: export(weights, out=folder / "digits.onnx")) / "digits.onnx"


@pytest.fixture(scope="session")
def web_runtime() -> Path:
    """The folder that holds the pinned onnxruntime-web; skips, with the reason, where npm cannot fetch it."""
    from densenet_deploy.artifacts import cache_folder
    from densenet_deploy.errors import BackendError, ResourceError
    from densenet_deploy.serving.web.runtime_files import NAME, VERSION, runtime_files

    try:
        runtime_files()
    except (BackendError, ResourceError) as error:
        pytest.skip(str(error))
    return cache_folder(NAME, VERSION)
