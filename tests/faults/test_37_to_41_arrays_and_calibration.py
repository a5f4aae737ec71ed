"""Cases 37 to 41: arrays given to runners and as calibration data; calibration that is poor, stopped or stale.

Every backend's own answers to bad feeds are in `tests/runtime/test_contract_of_backends.py`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.errors import FeedError
from densenet_deploy.graph.onnx_file import load_onnx
from densenet_deploy.runtime.runner import open_runner
from tests.faults.harness import Commands, arguments, run_process, start_process
from tests.runtime.simulated_tensorrt import RTX, simulated_gpu, write_simulated_engine

FAST = ("--recipe", "onnxruntime", "--no-never-slower")
Array = np.ndarray


def normalized(count: int = 32) -> Array:
    return np.random.default_rng(0).standard_normal((count, 3, 32, 32), np.float32)


ARRAYS: dict[str, tuple[Callable[[Array], Array], str]] = {
    "dtype": (lambda x: x.astype(np.float64), "float64"),
    "rank": (lambda x: x[0], "(3, 32, 32)"),
    "layout": (lambda x: x.transpose(0, 2, 3, 1), "(32, 32, 32, 3)"),
    "NaN": (lambda x: np.where(x > 2, np.float32(np.nan), x), "NaN"),
    "0-255": (lambda x: np.abs(x) * 100, ""),
}


@pytest.mark.parametrize("fault", ARRAYS)
def test_37_arrays_that_do_not_fit_the_input(commands: Commands, tiny_onnx: Path, fault: str) -> None:
    spoil, why = ARRAYS[fault]
    bad = spoil(normalized())
    np.save("bad.npy", bad)
    commands.refused("quantize", tiny_onnx, "--calibration", "bad.npy", *FAST, "-o", "new/out.onnx", says=why)
    with open_runner(tiny_onnx, "onnxruntime", "cpu") as runner, pytest.raises(FeedError):
        runner.run({"input": bad})


def test_38_a_batch_of_nothing_is_refused_and_one_over_the_profile_runs_in_portions(
    tmp_path: Path, tiny_onnx: Path
) -> None:
    with simulated_gpu(RTX), open_runner(write_simulated_engine(tmp_path, tiny_onnx, RTX)) as runner:
        with pytest.raises(FeedError, match="shape"):
            runner.run({"input": normalized(0)})
        assert runner.run({"input": normalized(17)})["logits"].shape == (17, 10)


def test_38_a_batch_that_a_fixed_engine_does_not_take_is_refused(tmp_path: Path, tiny_onnx: Path) -> None:
    with simulated_gpu(RTX), open_runner(write_simulated_engine(tmp_path, tiny_onnx, RTX)) as runner:
        runner.inputs = tuple(spec.of_batch(2) for spec in runner.inputs)
        with pytest.raises(FeedError, match="shape"):
            runner.run({"input": normalized(3)})


def test_38_a_negative_batch_is_a_usage_error(commands: Commands, tiny_onnx: Path) -> None:
    commands.refused("benchmark", tiny_onnx, "--batch", "-1", code=2)


def test_38_an_array_that_is_not_contiguous_is_copied(tiny_onnx: Path) -> None:
    whole = normalized(8)
    with open_runner(tiny_onnx, "onnxruntime", "cpu") as runner:
        expected = runner.run({"input": whole[::2].copy()})["logits"]
        np.testing.assert_array_equal(runner.run({"input": whole[::2]})["logits"], expected)


def images(folder: Path, images: Iterator[Array]) -> Path:
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03}.png")
    return folder


def noise(count: int) -> Iterator[Array]:
    rng = np.random.default_rng(1)
    return (rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(count))


POOR = {
    "empty": (lambda: iter(()), "holds no image"),
    "under 32": (lambda: noise(31), "31"),
    "black": (lambda: (np.zeros((32, 32, 3), np.uint8) for _ in range(40)), ""),
    "identical": (lambda: (next(noise(1)) for _ in range(40)), ""),
}


@pytest.mark.parametrize("kind", POOR)
def test_39_poor_calibration_images(
    commands: Commands, tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch, kind: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    make, why = POOR[kind]
    folder = images(commands.folder / "images", make())
    commands.refused("quantize", tiny_onnx, "--calibration", folder, *FAST, "-o", "new/out.onnx", says=why)


@pytest.mark.slow
def test_40_a_killed_calibration_resumes_to_the_same_bytes(tiny_onnx: Path, tmp_path: Path) -> None:
    """The killed run leaves its checkpoint in the cache; the next one goes on from there."""
    np.save(tmp_path / "samples.npy", normalized(2000))
    words = arguments("quantize", tiny_onnx, "--calibration", "samples.npy", "--samples", "2000", *FAST)
    whole, resumed = ({"XDG_CACHE_HOME": str(tmp_path / name)} for name in ("whole", "resumed"))
    assert run_process([*words, "-o", "whole.onnx"], tmp_path, **whole).code == 0
    process = start_process([*words, "-o", "resumed.onnx"], tmp_path, **resumed)
    while not (found := list((tmp_path / "resumed").rglob("*.partial.npz"))) and process.poll() is None:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert found
    assert not (tmp_path / "resumed.onnx").exists()
    assert run_process([*words, "-o", "resumed.onnx"], tmp_path, **resumed).code == 0
    assert (tmp_path / "resumed.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


@pytest.mark.slow
def test_41_a_stale_cache_is_never_used(
    commands: Commands, tiny_onnx: Path, digits_onnx: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    folder = images(commands.folder / "images", noise(32))

    def note(model: Path, *more: str) -> str:
        words = ("quantize", model, "--calibration", folder, *FAST, "-o", "out.onnx", "--force", *more)
        (found,) = [note for note in commands.answer(*words)["notes"] if note.startswith("calibration")]
        return found

    assert "nothing is cached yet" in note(tiny_onnx)
    assert "from the cache" in note(tiny_onnx)
    assert "observer changed" in note(tiny_onnx, "--observer", "mse")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "005.png")
    assert "1 modified" in note(tiny_onnx)
    assert "model changed" in note(digits_onnx)
    assert load_onnx(commands.folder / "out.onnx").graph.node
