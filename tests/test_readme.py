"""The README is correct: its commands run and print what it shows, its Python runs, and links in documents resolve."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densenet_deploy.models.build import build_model
from densenet_deploy.variants.spec import DenseNetSpec

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONSOLE = re.findall(r"```console\n\$ (densenet-deploy [^\n]+)\n(.*?)```", README, re.DOTALL)
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("calibration/*.md")])


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder that looks like a clone of the repository."""
    for name in ("examples", "calibration"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def _run(words: list[str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "densenet_deploy", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _shape(text: str) -> list[str]:
    """The lines with every number replaced, since measurements and numbers of threads differ between machines."""
    numbers = re.sub(r"[\d.,]+(e[+-]\d+)?(\+\w+)?", "#", text.strip()).replace("# thread)", "# threads)")
    return [re.sub(r"\s+", " ", line) for line in numbers.splitlines()]


def test_the_readme_shows_the_workflow_in_order() -> None:
    shown = [command.split()[1] for command, _ in CONSOLE]
    assert shown == ["export", "quantize", "run", "evaluate", "build-trt"]


@pytest.mark.slow
def test_its_commands_in_their_order_and_then_its_python(clone: Path) -> None:
    for command, shown in CONSOLE:
        printed = _run(shlex.split(command)[1:], clone)
        assert _shape(printed) == _shape(shown), command
        for accuracy in re.findall(r"top-1 [\d.]+%", shown if " evaluate " in command else ""):
            assert accuracy in printed
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "%  7\n" in done.stdout


@pytest.mark.slow
def test_its_commands_for_a_checkpoint_of_ones_own(tmp_path: Path) -> None:
    """On a network of three findings, and drawn images."""
    (block,) = re.findall(r"```bash\n(densenet-deploy export chest.pth.*?)```", README, re.DOTALL)
    spec = DenseNetSpec(growth_rate=4, blocks=(2, 2), init_features=8, num_classes=3)
    torch.save({"state_dict": build_model(spec, seed=1).state_dict()}, tmp_path / "chest.pth")
    (tmp_path / "labels.txt").write_text("Nodule\nEffusion\nMass\n")
    (tmp_path / "images").mkdir()
    rng, rows = np.random.default_rng(0), ["file,Nodule,Effusion,Mass"]
    for place in range(32):
        name = f"images/{place}.png"
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / name)
        rows.append(f"{name},{place % 2},{place // 2 % 2},{place // 4 % 2}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    Image.open(tmp_path / "images/0.png").save(tmp_path / "patient.png")
    printed = {command.split()[1]: _run(shlex.split(command)[1:], tmp_path) for command in block.splitlines()}
    assert list(printed) == ["export", "quantize", "evaluate", "run", "build-trt"]
    assert "Effusion" in printed["run"]
    assert "AUROC" in printed["evaluate"]


@pytest.mark.slow
def test_the_first_command_writes_a_verified_densenet121(clone: Path) -> None:
    """The only full-size export in this file."""
    assert "uv run densenet-deploy export --variant 121" in README
    printed = _run(["export", "--variant", "121"], clone)
    assert "7,978,856 parameters" in printed
    assert (clone / "artifacts" / "densenet121.onnx").stat().st_size > 30e6


def test_ci_runs_the_test_command_of_the_readme() -> None:
    (command,) = re.findall(r"```bash\n(.*pytest.*)\n```", README)
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_resolve(document: Path) -> None:
    """Files, and headings in them."""
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = link.partition("#")
        target = document.parent / path if path else document
        if "://" not in link and not (target.exists() and (not heading or heading in _headings(target))):
            broken.append(link)
    assert broken == []


def _headings(page: Path) -> set[str]:
    """The names by which GitHub and the site link to the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE))
    return {title.replace(" ", "-") for title in plain}
