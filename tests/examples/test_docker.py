"""The Dockerfiles of the examples: their steps are read and, for the server on CPUs, run without Docker."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

from densenet_deploy.cli import main
from tests.examples.dockerfiles import FOLDER, Stage, stages, with_arguments, words
from tests.extras import require_index, resolved

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
FILES = sorted(path.name for path in FOLDER.iterdir())
NOBODY = 10001


def test_there_is_one_file_for_cpus_and_one_for_jetsons() -> None:
    assert FILES == ["Dockerfile.jetson", "Dockerfile.serve"]


@pytest.mark.parametrize("name", FILES)
def test_a_wheel_is_built_in_a_stage_of_its_own(name) -> None:
    build, last = stages(name)
    copied = [item for text in build.all("COPY") for item in text.split()[:-1]]
    assert all((ROOT / item).exists() for item in copied)
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"pyproject.toml", "densenet_deploy", needed["readme"], *needed["license-files"]} == {*copied}
    assert last.all("COPY") == [f"--from={build.name} /wheels /wheels"]


@pytest.mark.parametrize("name", FILES)
def test_the_extras_exist_and_bring_a_server(name) -> None:
    extras = stages(name)[1].arguments["EXTRAS"].split(",")
    assert {*extras} <= {*EXTRAS}
    assert "serve" in extras
    if name == "Dockerfile.jetson":  # the TensorRT of the system, and none beside it
        assert "tensorrt-system" in extras
        assert not {"tensorrt", "tensorrt-rtx", "onnxruntime-gpu"} & {*extras}


@pytest.mark.parametrize("name", FILES)
def test_the_server_runs_as_a_user_without_rights(name) -> None:
    last = stages(name)[1]
    (made,) = [text for text in last.all("RUN") if text.startswith("useradd ")]
    assert re.search(r"--uid (\d+)", made)[1] == last.only("USER") == str(NOBODY)
    places = [place for place, (word, _) in enumerate(last.steps) if word in ("RUN", "COPY", "USER")]
    assert last.steps[places[-1]][0] == "USER"  # nothing is installed by it


@pytest.mark.parametrize("name", FILES)
def test_the_command_is_one_that_serve_takes(name, tmp_path, capsys) -> None:
    last = stages(name)[1]
    program, *arguments = [*words(last.only("ENTRYPOINT")), *words(last.only("CMD"))]
    assert program == "densenet-deploy"
    assert main([*arguments[:-1], str(tmp_path / "none.onnx")]) == 3  # it reads the options, and misses the file
    assert "none.onnx" in capsys.readouterr().err
    ports = [arguments[arguments.index(option) + 1] for option in ("--port", "--grpc-port")]
    assert last.only("EXPOSE").split() == ports
    assert f"http://127.0.0.1:{ports[0]}/v2/health/ready" in last.only("HEALTHCHECK")


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_the_packages_of_a_jetson_are_there_as_wheels(python) -> None:
    require_index()
    found = resolved(stages("Dockerfile.jetson")[1].arguments["EXTRAS"].split(","), python)
    assert {"cuda-bindings", "onnxruntime", "grpcio", "uvicorn"} <= found.keys()
    assert not [name for name in found if name.startswith("tensorrt")]


@pytest.fixture
def image():
    """A folder that stands for the root of an image; others may read it."""
    folder = Path(tempfile.mkdtemp(prefix="image-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


class Container:
    """The steps of stages, run on this machine: paths of the image lie in a folder, and `useradd` is left out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bin").mkdir()
        (root / "bin" / "python").symlink_to(interpreter()[0])
        self.environment = {"PATH": f"{root}/bin:/usr/bin:/bin", "HOME": "/nonexistent"}

    def inside(self, text: str) -> str:
        return re.sub(r"(?<![\w.:/])/(source|wheels|opt|models)\b", rf"{self.root}/\1", text)

    def build(self, stage: Stage) -> None:
        folder = self.root
        for word, text in stage.steps:
            if word == "WORKDIR":
                folder = Path(self.inside(text))
                folder.mkdir(parents=True)
            elif word == "COPY" and not text.startswith("--from="):  # stages share the folder
                *sources, target = text.split()
                for source in sources:
                    self._copy(ROOT / source, folder / target)
            elif word == "RUN" and not text.startswith("useradd "):
                command = self.inside(with_arguments(stage, text))
                kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
                subprocess.run(["sh", "-ec", command], cwd=folder, env=kept | self.environment, check=True)
            elif word == "ENV":
                for pair in text.split():
                    key, _, value = pair.partition("=")
                    self.environment[key] = self.inside(value).replace("$PATH", self.environment["PATH"])

    def _copy(self, source: Path, target: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)

    def started(self, command: list[str], **options) -> subprocess.Popen:
        user = USER if interpreter()[1] else {}
        return subprocess.Popen(command, env=self.environment, cwd="/", **user, **options)


USER: dict[str, object] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}


@functools.cache
def interpreter() -> tuple[str, bool]:
    """A Python 3.11 with pip and venv, and whether this process can become a user without rights that may run it."""
    own = f"{sys.base_prefix}/bin/python3"
    for path in (own, "/usr/bin/python3.11"):
        with contextlib.suppress(PermissionError, FileNotFoundError):
            if subprocess.run([path, "-c", "import ensurepip, pip, venv"], cwd="/", **USER).returncode == 0:
                return path, True
    return own, False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the image is one of Linux")
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the image has Python 3.11")
def test_the_steps_of_the_server_give_one_that_answers(image, digits_onnx) -> None:
    require_index()
    build, last = stages("Dockerfile.serve")
    container = Container(image)
    container.build(build)
    container.build(last)
    model = image / "models" / "digits.onnx"
    model.parent.mkdir()
    shutil.copy(digits_onnx, model)
    model.chmod(0o644)
    with contextlib.ExitStack() as stack:
        free = [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(2)]

    def with_free_ports(text: str) -> str:
        return text.replace("8080", str(free[0])).replace("8081", str(free[1]))

    check = words(with_free_ports(last.only("HEALTHCHECK").partition("CMD ")[2]))
    assert container.started(check, stderr=subprocess.DEVNULL).wait(60) == 1  # nothing listens yet
    command = [*words(with_free_ports(last.only("ENTRYPOINT"))), str(model), "--workers", "1"]
    assert shutil.which(command[0], path=container.environment["PATH"]).startswith(str(image))
    server = container.started(command, stderr=subprocess.PIPE, text=True)
    try:
        assert any(line.startswith("ready: digits on ") for line in iter(server.stderr.readline, ""))
        if interpreter()[1]:
            assert Path(f"/proc/{server.pid}").stat().st_uid == NOBODY
        assert container.started(check).wait(60) == 0
        server.terminate()
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.communicate()
