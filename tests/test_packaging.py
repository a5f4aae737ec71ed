"""The wheel in bare environments, one for each extra; pinned versions; and what a type checker sees."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conftest import DIGITS
from tests.runtime.dicoms import dicom

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
CONSTRAINTS = ROOT / "docs" / "constraints.txt"
UV = os.environ.get("UV") or shutil.which("uv")
needs_uv = pytest.mark.skipif(UV is None, reason="uv, which makes the environments, is not on the path")


def _pins() -> dict[str, list[Version]]:
    pins: dict[str, list[Version]] = {}
    for line in CONSTRAINTS.read_text().splitlines():
        if not line.startswith("#"):
            pin = Requirement(line)
            (exact,) = pin.specifier
            assert exact.operator == "=="
            pins.setdefault(canonicalize_name(pin.name), []).append(Version(exact.version))
    return pins


def _requirements() -> Iterator[Requirement]:
    """Yield what the project asks for, except itself and the libraries that are not in the ordinary index."""
    groups = [entry for group in PROJECT["dependency-groups"].values() for entry in group if isinstance(entry, str)]
    extras = [entry for name, entries in EXTRAS.items() if name != "tensorrt" for entry in entries]
    for entry in [*PROJECT["project"]["dependencies"], *extras, *groups]:
        if not entry.startswith("densenet-deploy"):
            yield Requirement(entry)


def test_the_pinned_versions_are_allowed_and_complete():
    """`docs/pin.sh` writes them anew after a change of a bound."""
    pins = _pins()
    for requirement in _requirements():
        versions = pins.get(canonicalize_name(requirement.name))
        assert versions, f"{requirement.name} is not pinned"
        assert all(version in requirement.specifier for version in versions), str(requirement)


def test_no_host_is_named():
    assert re.findall(r"https?://|--index|--extra-index", CONSTRAINTS.read_text()) == []


def test_the_systems_tensorrt_is_not_brought_a_second_time():
    assert EXTRAS["tensorrt-system"] == [entry for entry in EXTRAS["tensorrt"] if not entry.startswith("tensorrt")]


def test_every_extra_is_described_and_smoke_tested():
    table = (ROOT / "docs" / "install.md").read_text().partition("## Extras")[2].partition("\n## ")[0]
    rows = "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    assert set(re.findall(r"`(.+?)`", rows)) == set(EXTRAS)
    assert set(SMOKE) | {"tensorrt"} == set(EXTRAS)


def test_what_pip_is_told_to_install_is_there_to_be_installed():
    """The package is in no public index: a command names a clone, a wheel, or another package."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")]
    words = [line.split() for page in pages for line in re.findall(r"pip install ([^\n`&]+)", page.read_text())]
    named = [
        word for line in words for before, word in itertools.pairwise(["", *line]) if before not in ("-c", "--group")
    ]
    packages = [word.strip("'") for word in named if not word.startswith("-")]
    assert len(packages) > 8
    allowed = re.compile(r"uv|\.\[[\w,-]+\]|(\./|dist/)?densenet_deploy-[\d.]+-py3-none-any\.whl\[[\w,-]+\]")
    assert [package for package in packages if not allowed.fullmatch(package)] == []


def test_the_file_names_on_the_page_are_those_of_this_version():
    page = (ROOT / "docs" / "install.md").read_text()
    assert set(re.findall(r"densenet_deploy-(.+?)-py3", page)) == {PROJECT["project"]["version"]}


# -- the wheel

SERVE = (
    "import densenet_deploy as dd; from densenet_deploy.workflows.serve import StopRequest; stop = StopRequest(); "
    "print(dd.serve('digits.onnx', dd.ServeOptions(port=0), stop=stop, on_ready=lambda _: (stop(), stop())))"
)
HUB = "from densenet_deploy.cli import main; raise SystemExit(main(['export', 'hf://nobody/nothing']) == 5)"
SMOKE = {
    "onnxruntime": ("onnxruntime", ["densenet-deploy", "run", "digits.onnx", "7.png"]),
    "onnxruntime-gpu": ("onnxruntime-gpu", ["densenet-deploy", "run", "digits.onnx", "7.png", "--device", "cpu"]),
    "openvino": ("openvino", ["densenet-deploy", "run", "digits.onnx", "7.png"]),
    "onnx": ("onnx,onnxruntime", ["densenet-deploy", "export", "digits.safetensors", "-o", "new.onnx"]),
    "export": ("export,onnxruntime", ["densenet-deploy", "simplify", "digits.onnx", "-o", "simple.onnx"]),
    "dicom": ("dicom,onnxruntime", ["densenet-deploy", "run", "digits.onnx", "7.dcm"]),
    "hub": ("hub,onnx,onnxruntime", ["python", "-c", HUB]),
    "plot": ("plot", ["densenet-deploy", "plot", "connections", "--variant", "121", "-o", "figure.png"]),
    "report": ("report,onnx,onnxruntime", ["densenet-deploy", "report", "digits.onnx", "-o", "report.html"]),
    "scale": ("scale,onnxruntime", ["densenet-deploy", "run", "digits.onnx", "7.png", "-o", "rows.parquet"]),
    "serve": ("serve,onnxruntime", ["python", "-c", SERVE]),
    "tensorrt-rtx": (
        "tensorrt-rtx,onnx,onnxruntime",
        ["densenet-deploy", "build-trt", "digits.onnx", "--fp32", "--flavour", "rtx", "-o", "digits.engine"],
    ),
    "tensorrt-system": ("tensorrt-system,onnxruntime", ["densenet-deploy", "doctor"]),
}
"""What is installed for each extra, and a command that needs it."""


def _do(*words: object, folder: Path | None = None) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, which is built from the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    _do(UV, "build", "--out-dir", folder, ROOT)
    assert len(list(folder.glob("*.tar.gz"))) == 1
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture
def folder(tmp_path: Path, digits_onnx: Path) -> Path:
    """A folder with what the commands read."""
    from PIL import Image

    shutil.copy(digits_onnx, tmp_path / "digits.onnx")
    shutil.copy(DIGITS / "densenet_digits.safetensors", tmp_path / "digits.safetensors")
    shutil.copy(DIGITS / "held_out" / "7" / "0031.png", tmp_path / "7.png")
    with Image.open(tmp_path / "7.png") as image:
        (tmp_path / "7.dcm").write_bytes(dicom(np.asarray(image.convert("RGB"))))
    return tmp_path


@needs_uv
@pytest.mark.slow
@pytest.mark.parametrize("extra", SMOKE)
def test_the_wheel_works_with_an_extra_in_a_bare_environment(extra: str, wheel: Path, folder: Path) -> None:
    extras, (program, *words) = SMOKE[extra]
    python = folder / "env" / "bin" / "python"
    _do(UV, "venv", "--python", sys.executable, folder / "env")
    _do(UV, "pip", "install", "--python", python, "-c", CONSTRAINTS, f"{wheel}[{extras}]")
    _do(python.with_name(program), *words, folder=folder)
    assert json.loads(_do(python.with_name("densenet-deploy"), "doctor", "--json", folder=folder))["schema"] == 1


CONSUMER = """
import densenet_deploy as dd
import numpy as np

model: dd.Model = dd.load("digits.onnx", labels=("a", "b"))
int8 = dd.quantize(model, "images/", dd.QuantizeOptions(recipe="openvino"))
answer = dd.Classifier.open(int8)("7.png").top[0]
label: str | None = answer.label
with dd.open_runner("digits.onnx") as run:
    logits = run(np.zeros((1, 3, 32, 32), np.float32))["logits"]
share: float = float(logits.max()) + answer.score
"""
WRONG = """
import densenet_deploy as dd

dd.load("digits.onnx", image_sice=32)
dd.QuantizeOptions(alpha="much")
count: int = dd.load("digits.onnx").manifest
"""


@needs_uv
@pytest.mark.slow
def test_a_consumer_is_type_checked_against_the_installed_package(wheel: Path, tmp_path: Path) -> None:
    """`py.typed` is in the wheel: correct use passes, and each wrong line is an error."""
    python = tmp_path / "env" / "bin" / "python"
    _do(UV, "venv", "--python", sys.executable, tmp_path / "env")
    _do(UV, "pip", "install", "--python", python, "-c", CONSTRAINTS, f"{wheel}[onnxruntime]")
    (tmp_path / "right.py").write_text(CONSUMER)
    (tmp_path / "wrong.py").write_text(WRONG)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python]
    assert "Success" in _do(*mypy, "right.py", folder=tmp_path)
    done = subprocess.run([*map(str, [*mypy, "wrong.py"])], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert [int(line) for line in re.findall(r"wrong\.py:(\d+): error", done.stdout)] == [4, 5, 6]


@needs_uv
@pytest.mark.slow
def test_completion_is_installed_for_the_shell(wheel: Path, tmp_path: Path) -> None:
    python = tmp_path / "env" / "bin" / "python"
    _do(UV, "venv", "--python", sys.executable, tmp_path / "env")
    _do(UV, "pip", "install", "--python", python, "-c", CONSTRAINTS, wheel)
    program = python.with_name("densenet-deploy")
    asking = {
        **os.environ,
        "_DENSENET_DEPLOY_COMPLETE": "complete_bash",
        "COMP_WORDS": "densenet-deploy qua",
        "COMP_CWORD": "1",
    }
    done = subprocess.run([program], env=asking, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["quantize"]
    home = {**os.environ, "HOME": str(tmp_path)}
    install = f"{program} --install-completion"
    subprocess.run(["bash", "-c", f"{install}; true"], env=home, check=True, capture_output=True)
    assert "densenet-deploy" in (tmp_path / ".bashrc").read_text()
