"""A model in a process of its own: its answers, its errors, its end."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import pytest

from densenet_deploy.bench.contender import BatchRefusedError, Contender, Process
from densenet_deploy.bench.scenarios import Turn
from densenet_deploy.errors import BackendError, InputError, ModelFileError, UnknownNameError, UsageError
from densenet_deploy.processes import start
from densenet_deploy.workflows.export import ExportTarget, export_onnx
from densenet_deploy.workflows.load import ModelRequest, build
from tests.conftest import TINY

NOISY = """
import os, sys
sys.addaudithook(lambda event, args: event == "open" and str(args[0]).endswith(".onnx") and os.write(1, b"noise\\n"))
"""


@pytest.fixture(scope="module")
def pair_onnx(tmp_path_factory):
    """A model that takes two images at once, no more and no fewer."""
    target = ExportTarget(batch=2, out=str(tmp_path_factory.mktemp("pair") / "pair.onnx"))
    return export_onnx(ModelRequest(architecture=TINY, num_classes=10), target).onnx


@pytest.fixture(scope="module")
def checkpoint_file(tmp_path_factory):
    """Weights of the tiny architecture, as torch saves them."""
    import torch

    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    torch.save(build(ModelRequest(architecture=TINY, num_classes=10)).module.state_dict(), path)
    return path


def _load(contender):
    with Process(contender) as process:
        return process.placement


def test_the_median_of_a_turn_is_that_of_its_calls():
    assert Turn((0.1, 0.2, 0.9), 1).median == 0.2


def test_a_turn_times_some_calls_and_knows_the_memory(tiny_onnx):
    with Process(Contender(tiny_onnx, "onnxruntime", batch=2)) as process:
        assert process.placement.startswith("onnxruntime")
        turn = process.turn(0)
        longer = process.turn(0.05)
    assert len(turn.seconds) >= 3
    assert min(turn.seconds) > 0
    assert longer.wall_seconds >= 0.05
    assert 0 < longer.inside_seconds < sum(longer.seconds), "the backend's own calls are a part of ours"
    assert 10e6 < turn.peak_memory_bytes <= longer.peak_memory_bytes < 2e9


def test_the_memory_of_the_parent_is_not_the_childs(tiny_onnx):
    """A child inherits the parent's peak from getrusage(2); 600 MB are more than a tiny model needs."""
    held = np.ones(600_000_000, np.uint8)
    with Process(Contender(tiny_onnx, "onnxruntime")) as process:
        assert process.turn(0).peak_memory_bytes < held.nbytes


def test_options_reach_the_runner(tiny_onnx):
    with Process(Contender(tiny_onnx, "onnxruntime", device="cpu", precision="fp32", threads=1)) as process:
        assert process.placement.endswith("cpu, fp32, 1 threads")


def test_a_fixed_batch_is_taken_and_another_refused(pair_onnx):
    with Process(Contender(pair_onnx, "onnxruntime", batch=2)) as process:
        assert len(process.turn(0).seconds) >= 3
    with pytest.raises(BackendError, match=r"no batch of 3; time it with batch 2"):
        _load(Contender(pair_onnx, "onnxruntime", batch=3))


def test_a_batch_that_is_refused_has_a_type_of_its_own(pair_onnx, tmp_path):
    with Process(Contender(pair_onnx, "onnxruntime", batch=3)) as process, pytest.raises(BatchRefusedError):
        _ = process.opening
    with Process(Contender(tmp_path / "none.onnx")) as process, pytest.raises(InputError):
        _ = process.opening


def test_load_and_first_call_are_told_apart(tiny_onnx):
    with Process(Contender(tiny_onnx, "onnxruntime", device="cpu")) as process:
        opening = process.opening
    assert opening.placement.backend == "onnxruntime"
    assert opening.load_seconds > 0
    assert opening.first_seconds > 0
    assert opening.device_memory_bytes is None


def test_a_checkpoint_needs_the_program_that_builds_it(checkpoint_file):
    """Its module takes images of any size: it gets those that its facts name."""
    with Process(Contender(checkpoint_file, program="densenet_deploy.workflows.benchmark.contender")) as process:
        assert process.opening.placement.backend == "torch"
        assert len(process.turn(0).seconds) >= 3
    with pytest.raises(ModelFileError, match="is a checkpoint"):
        _load(Contender(checkpoint_file))


def test_streams_run_at_the_same_time_and_a_camera_gives_frames(tiny_onnx):
    with Process(Contender(tiny_onnx, "onnxruntime", threads=1, streams=2)) as process:
        turn = process.turn(0.05)
    assert len(turn.seconds) >= 6
    assert turn.frames == 0
    with Process(Contender(tiny_onnx, "onnxruntime", threads=1, fps=100.0)) as process:
        turn = process.turn(0.1)
    assert turn.frames == 10 == len(turn.seconds) + turn.dropped
    assert turn.wall_seconds >= 0.09


@pytest.mark.parametrize("facts", [{"streams": 0}, {"fps": 0.0}, {"fps": float("nan")}])
def test_a_scenario_that_cannot_be_meant_is_refused_before_any_process(tiny_onnx, facts):
    with pytest.raises(UsageError):
        Contender(tiny_onnx, **facts)


def test_a_child_whose_parent_ended_first_says_nothing():
    process = start("densenet_deploy.bench.contender", verbose=True)
    assert process.communicate() == (b"", None)
    assert process.returncode == 0


def test_an_error_ends_the_process_in_the_middle_of_a_turn(tiny_onnx):
    process, start = Process(Contender(tiny_onnx, "onnxruntime")), time.monotonic()
    assert process.placement
    process._tell(600)
    process.__exit__(ValueError, ValueError(), None)
    assert process._process.returncode == -9
    assert time.monotonic() - start < 300


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no such file") as caught:
        _load(Contender(tmp_path / "none.onnx"))
    assert caught.value.subject == str(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("facts", "kind", "why"),
    [
        ({"backend": "onnxruntim"}, UnknownNameError, "did you mean 'onnxruntime'"),
        ({"device": "npuu"}, UnknownNameError, "did you mean 'npu'"),
        ({"precision": "fp31"}, UnknownNameError, "unknown precision"),
        ({"threads": 0}, UsageError, "threads=0"),
    ],
)
def test_what_open_runner_refuses_has_the_same_type_here(tiny_onnx, facts, kind, why):
    with pytest.raises(kind, match=why):
        _load(Contender(tiny_onnx, **facts))


def test_a_batch_that_cannot_be_meant_is_refused_before_any_process(tiny_onnx):
    with pytest.raises(UsageError, match="batch"):
        Contender(tiny_onnx, batch=0)


def test_a_process_that_dies_is_a_backend_error(tiny_onnx):
    with Process(Contender(tiny_onnx, "onnxruntime")) as process:
        assert process.placement
        process._process.kill()
        with pytest.raises(BackendError, match="ended with -9"):
            process.turn(0)


def test_a_model_that_cannot_be_opened_is_said_by_its_first_turn_too(tmp_path):
    with Process(Contender(tmp_path / "none.onnx")) as process, pytest.raises(InputError, match="no such file"):
        process.turn(0)


def test_a_process_ends_with_its_context(tiny_onnx):
    with Process(Contender(tiny_onnx, "onnxruntime")) as process:
        assert process.placement
        assert process._process.poll() is None
    assert process._process.returncode == 0
    process.close()


@pytest.mark.parametrize("level", [logging.WARNING, logging.INFO], ids=["quiet", "verbose"])
def test_what_else_is_printed_does_not_garble_the_answers(tiny_onnx, tmp_path, monkeypatch, caplog, capfd, level):
    (tmp_path / "sitecustomize.py").write_text(NOISY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with caplog.at_level(level), Process(Contender(tiny_onnx, "onnxruntime")) as process:
        assert process.placement.startswith("onnxruntime")
    assert ("noise" in capfd.readouterr().err) == (level == logging.INFO)


def test_modules_in_the_working_directory_are_not_imported(tiny_onnx, tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit('not numpy')")
    monkeypatch.chdir(tmp_path)
    with Process(Contender(Path(tiny_onnx), "onnxruntime")) as process:
        assert process.placement.startswith("onnxruntime")
