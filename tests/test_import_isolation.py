"""What importing loads: little for the package; numpy, Pillow and one backend for the edge core; nothing acts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
HEAVY = {
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "onnx_ir",
    "onnxsim",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "typer",
    "PIL",
    "matplotlib",
    "jinja2",
    "rich",
}

# Only the standard library and the packages in `allowed` can be imported after this.
ALLOW = """
import sys
class OnlyAllowed:
    def find_spec(self, name, path=None, target=None):
        top = name.partition('.')[0]
        if top not in allowed and top not in sys.stdlib_module_names:
            raise ImportError(f'{name} is not there on the edge')
sys.meta_path.insert(0, OnlyAllowed())
"""


def _python(code: str, *arguments: str, cwd: Path | None = None) -> str:
    """Run `code` in a fresh interpreter with warnings as errors and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_importing_the_package_loads_nothing_heavy():
    loaded = json.loads(_python("import densenet_deploy, sys, json; print(json.dumps(list(sys.modules)))"))
    assert "densenet_deploy" in loaded
    assert HEAVY.isdisjoint(loaded)
    assert "numpy" not in loaded


@pytest.mark.parametrize("name", ["open_runner", "Classifier", "RunnerOptions", "DenseNetSpec", "export", "compare"])
def test_a_public_name_loads_no_framework(name):
    loaded = json.loads(
        _python(f"from densenet_deploy import {name}; import sys, json; print(json.dumps(list(sys.modules)))")
    )
    assert (HEAVY - {"PIL"}).isdisjoint(loaded)


def test_the_edge_core_needs_only_numpy_and_pillow():
    code = f"""
allowed = {{'densenet_deploy', 'numpy', 'PIL'}}
{ALLOW}
import importlib, pkgutil
import densenet_deploy.runtime
packages = [densenet_deploy.runtime]
for package in packages:
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):
        module = importlib.import_module(found.name)
        print(found.name)
        if found.ispkg: packages.append(module)
from densenet_deploy.runtime.runner import backends, open_runner
from densenet_deploy.errors import MissingPackageError
print(backends.names())
"""
    printed = _python(code)
    assert "densenet_deploy.runtime.backends.openvino" in printed
    assert "('onnxruntime', 'openvino', 'rtx', 'tensorrt', 'torch')" in printed


def test_the_edge_core_classifies_with_one_backend_and_no_other_package(tiny_onnx, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    code = f"""
allowed = {{'densenet_deploy', 'numpy', 'PIL', 'onnxruntime'}}
{ALLOW}
import json
from densenet_deploy import Classifier, open_runner
with open_runner(sys.argv[1], device='cpu') as runner:
    assert runner.placement.backend == 'onnxruntime', runner
with Classifier.open(sys.argv[1], 'onnxruntime', 'cpu') as classify:
    prediction = classify(sys.argv[2], top_k=10)
print(json.dumps([score.score for score in prediction.top]))
assert not {{'torch', 'onnx', 'typer', 'rich', 'openvino'}} & set(sys.modules)
"""
    scores = json.loads(_python(code, str(tiny_onnx), str(tmp_path / "image.png")))
    assert len(scores) == 10
    assert sum(scores) == pytest.approx(1.0)


@pytest.mark.slow
def test_every_file_is_imported_without_side_effects(tmp_path):
    code = """
import os, importlib, signal, sys, threading
def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return os.getcwd(), list(sys.path), handlers, threading.active_count(), sys.argv
before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
assert state() == before, (state(), before)
"""
    files = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "densenet_deploy").rglob("*.py")]
    names = [".".join(path.parts) for path in files if path.name != "__main__"]  # which is there to run
    assert _python(code, *names, cwd=tmp_path) == ""
    assert list(tmp_path.iterdir()) == []
