"""An edge device has the wheel, its three base dependencies and ONNX Runtime: checked in real environments."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from densenet_deploy.errors import install_command
from tests.conftest import DIGITS

ROOT = Path(__file__).parents[1]
EXTRAS = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
UV = os.environ.get("UV") or shutil.which("uv")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(UV is None, reason="uv, which makes the environments, is not on the path"),
]


def _do(*words: object) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment with the wheel and onnxruntime."""
    folder = tmp_path_factory.mktemp("edge")
    _do(UV, "build", "--wheel", "--out-dir", folder / "wheel", ROOT)
    (wheel,) = (folder / "wheel").glob("*.whl")
    _do(UV, "venv", folder / "venv")
    _do(UV, "pip", "install", "--python", folder / "venv/bin/python", f"{wheel}[onnxruntime]")
    return folder / "venv" / "bin"


def test_nothing_heavy_is_installed(edge: Path) -> None:
    listed = json.loads(_do(UV, "pip", "list", "--python", edge / "python", "--format", "json"))
    names = {package["name"] for package in listed}
    assert names >= {"densenet-deploy", "numpy", "pillow", "typer", "onnxruntime"}
    assert names.isdisjoint({"torch", "torchvision", "onnx", "onnxscript", "onnxsim", "scipy", "openvino"})


def test_run_classifies(edge: Path, digits_onnx: Path) -> None:
    image = next((DIGITS / "held_out" / "7").iterdir())
    answer = json.loads(_do(edge / "densenet-deploy", "run", digits_onnx, image, "--json"))
    assert answer["predictions"][0]["top"][0]["label"] == "7"


def test_the_page_for_browsers_is_in_the_wheel(edge: Path, digits_onnx: Path, tmp_path: Path) -> None:
    """Everything but onnxruntime-web, which a page needs and an empty folder does not hold."""
    code = "from densenet_deploy.serving.web.site import Site; print(*sorted(Site.of('t', {}).files))"
    files = {name.rpartition("/")[2] for name in _do(edge / "python", "-c", code).split()}
    page = ROOT / "densenet_deploy" / "serving" / "web" / "page"
    assert files == {path.name for path in page.iterdir()} | {"files.json"}
    words = ["web", digits_onnx, "-o", tmp_path / "site", "--runtime", tmp_path, "--json"]
    done = subprocess.run([edge / "densenet-deploy", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "onnxruntime-web" in json.loads(done.stderr)["error"]["fix"]


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["export", "--variant", "121"], "export"),
        (["simplify", "MODEL"], "export"),
        (["inspect", "MODEL"], "export"),
        (["run", "MODEL", "IMAGE", "--backend", "openvino"], "openvino"),
        (["run", str(DIGITS / "densenet_digits.safetensors"), "IMAGE"], "export"),
    ],
    ids=lambda value: " ".join(value[:1]) if isinstance(value, list) else value,
)
def test_what_is_missing_is_named_with_the_command(edge: Path, digits_onnx: Path, words: list[str], extra: str) -> None:
    real = {"MODEL": str(digits_onnx), "IMAGE": str(next((DIGITS / "held_out" / "7").iterdir()))}
    command = [str(edge / "densenet-deploy"), *(real.get(word, word) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.count("\n") == 1
    assert f"pip install 'densenet-deploy[{extra}]'" in done.stderr


@pytest.mark.parametrize("extra", ["onnxruntime", "openvino"])
def test_the_command_for_an_installed_wheel_works(edge: Path, extra: str) -> None:
    """`pip install` in place of `uv pip install`, which needs no pip in the environment."""
    words = ["--dry-run", "--python", edge / "python", f"densenet-deploy[{extra}]"]
    _do(UV, "pip", "install", *words)


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_command_for_a_clone_resolves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: str) -> None:
    """Every extra, also the one that excludes the development group."""
    monkeypatch.setenv("UV_PROJECT_ENVIRONMENT", str(tmp_path / "venv"))
    monkeypatch.chdir(ROOT)
    program, *words = install_command(extra).split()
    assert program == "uv"
    _do(UV, *words, "--dry-run")
