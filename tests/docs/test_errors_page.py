"""Every error on the page of errors is printed by the command above it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.cli import main
from tests.conftest import DIGITS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "errors.md").read_text()
SHOWN = re.findall(r"```console\n\$ densenet-deploy (.+)\n(error: .+)\n```", PAGE)


@pytest.fixture(scope="module")
def folder(digits_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the faulty files that the page names."""
    import onnx
    import torch
    from safetensors.numpy import load_file, save_file

    place = tmp_path_factory.mktemp("errors")
    for name, target in {"held_out": DIGITS / "held_out", "calibration": ROOT / "calibration"}.items():
        (place / name).symlink_to(target)
    weights = DIGITS / "densenet_digits.safetensors"
    shutil.copy(weights, place)
    for name in ("digits.onnx", "taken.onnx"):
        shutil.copy(digits_onnx, place / name)
    whole = digits_onnx.read_bytes()
    (place / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    half = onnx.load(digits_onnx)
    for tensor in half.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype("f2"), tensor.name))
    onnx.save(half, place / "digits.fp16.onnx")
    shutil.copy(DIGITS / "held_out" / "7" / "0031.png", place / "7.png")
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(place / "whole.jpg")
    cut = (place / "whole.jpg").read_bytes()
    (place / "cut.jpg").write_bytes(cut[: len(cut) // 2])
    np.save(place / "pixels.npy", np.random.default_rng(0).uniform(0, 255, (64, 3, 32, 32)).astype(np.float32))
    (place / "few").mkdir()
    for index, image in enumerate(sorted((DIGITS / "held_out" / "7").iterdir())[:5]):
        shutil.copy(image, place / "few" / f"{index}.png")
    for name in ("cat", "dog"):
        (place / "other" / name).mkdir(parents=True)
        shutil.copy(place / "7.png", place / "other" / name)
    (place / "three.txt").write_text("a\nb\nc\n")
    (place / "table.csv").write_text("file,label\nmissing.png,7\n")
    (place / "recipe.toml").write_text('base = "openvino"\nobserverr = "mse"\n')
    (place / "rows").mkdir()
    (place / "rows" / "_plan.json").write_text("{}")
    tensors = load_file(weights)
    missing = "features.denseblock1.denselayer1.norm1.bias"
    save_file({name: value for name, value in tensors.items() if name != missing}, place / "incomplete.safetensors")
    broken = tensors["classifier.bias"].copy()
    broken[0] = np.nan
    save_file(tensors | {"classifier.bias": broken}, place / "nan.safetensors")
    torch.save({"conv1.weight": torch.zeros(4, 3, 3, 3), "fc.weight": torch.zeros(2, 4)}, place / "resnet.pth")
    torch.save(torch.nn.Linear(2, 2), place / "module.pth")
    return place


def _without_measurements(text: str) -> str:
    return re.sub(r"\d+\.\d+", "#", text)


@pytest.mark.parametrize(("command", "error"), SHOWN, ids=[command[:40] for command, _ in SHOWN])
def test_a_command_of_the_page_prints_the_error_below_it(command, error, folder, monkeypatch, capsys):
    if "cuda" in command and shutil.which("nvidia-smi"):
        pytest.skip("an NVIDIA GPU is here")
    monkeypatch.chdir(folder)
    assert main(command.split()) > 1
    printed = _without_measurements(capsys.readouterr().err.strip())
    shown, is_shortened, _ = _without_measurements(error).partition("…")
    assert printed.startswith(shown) if is_shortened else printed == shown


def test_the_page_shows_the_25_most_frequent_errors():
    assert len(SHOWN) == PAGE.count("```console") == 25
