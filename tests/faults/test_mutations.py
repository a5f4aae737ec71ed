"""Every file format, corrupted at random: whatever the bytes, a documented exit code and at most one line of error."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densenet_deploy.models.build import DenseNet
from densenet_deploy.sources.file import save_weights
from densenet_deploy.workflows.load import load
from tests.conftest import TINY
from tests.faults.harness import ROOT, run_process
from tests.faults.mutations import FORMATS, _is_documented, share
from tests.runtime.simulated_tensorrt import RTX, write_simulated_engine


@pytest.fixture(scope="module")
def files(tiny_onnx: Path, network: DenseNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole file of every format."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "tiny.onnx").write_bytes(tiny_onnx.read_bytes())
    write_simulated_engine(folder, folder / "tiny.onnx", RTX)
    torch.save(network.state_dict(), folder / "weights.pth")
    torch.save(network.state_dict(), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    model = load(architecture=TINY, num_classes=10)
    save_weights(folder / "weights.safetensors", model.module, model.manifest)
    rng = np.random.default_rng(0)
    for suffix in ("png", "jpg"):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"image.{suffix}")
    np.save(folder / "samples.npy", rng.standard_normal((8, 3, 32, 32), np.float32))  # too few to calibrate for long
    (folder / "mine.toml").write_text(
        'base = "onnxruntime"\nobserver = "minmax"\nalpha = 0.5\nweights = "per-tensor"\n'
    )
    return folder


def _mutations(form: str, folder: Path, cases: int, processes: int) -> str:
    words = [sys.executable, "-m", "tests.faults.mutations", form, str(folder), str(cases), str(processes)]
    ended = run_process(words, ROOT, timeout=None)
    assert ended.code == 0, ended.err
    return ended.out


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("form", FORMATS)
def test_500_mutated_files_end_in_documented_exit_codes(form: str, files: Path, times: int) -> None:
    assert _mutations(form, files, share(500, form) * times, share(30, form)) == ""


def test_an_undocumented_end_is_a_fault() -> None:
    line = "error: model: a.onnx: is not an ONNX file; download it again\n"
    assert _is_documented(3, line)
    assert _is_documented(0, "note: untrained\n")
    for code, output in ((1, line), (3, ""), (3, line + "Traceback"), (3, line * 2), (0, line), (-11, "")):
        assert not _is_documented(code, output), (code, output)
