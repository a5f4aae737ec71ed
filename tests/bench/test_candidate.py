"""A model in a process of its own: its answers, its errors, its end."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from densenet_deploy.bench.candidate import BatchRefusedError, Candidate, CandidateWorker
from densenet_deploy.bench.scenarios import RoundTiming
from densenet_deploy.errors import InputError, ModelFileError, UnknownNameError, UsageError
from densenet_deploy.worker import WorkerDiedError
from densenet_deploy.workflows.export import ExportOptions, export
from densenet_deploy.workflows.load import load
from tests.conftest import TINY

NOISY = """
import os, sys
sys.addaudithook(lambda event, args: event == "open" and str(args[0]).endswith(".onnx") and os.write(1, b"noise\\n"))
"""


@pytest.fixture(scope="module")
def pair_onnx(tmp_path_factory):
    """A model that takes two images at once, no more and no fewer."""
    path = tmp_path_factory.mktemp("pair") / "pair.onnx"
    return export(options=ExportOptions(batch=2), architecture=TINY, num_classes=10, out=path).path


@pytest.fixture(scope="module")
def checkpoint_file(tmp_path_factory):
    """Weights of the tiny architecture, as torch saves them."""
    import torch

    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    torch.save(load(architecture=TINY, num_classes=10).module.state_dict(), path)
    return path


def _load(candidate):
    with CandidateWorker(candidate) as worker:
        return worker.opening.placement


def test_the_median_of_a_round_is_that_of_its_calls():
    assert RoundTiming((0.1, 0.2, 0.9)).median == 0.2


def test_a_round_times_some_calls_and_reports_the_memory(tiny_onnx):
    with CandidateWorker(Candidate(tiny_onnx, "onnxruntime", batch=2)) as worker:
        assert str(worker.opening.placement).startswith("onnxruntime")
        timing = worker.measure(0)
        longer = worker.measure(0.05)
    assert len(timing.seconds) >= 3
    assert min(timing.seconds) > 0
    assert longer.wall_seconds >= 0.05
    assert 0 < longer.inside_seconds < sum(longer.seconds), "the backend's own calls are a part of ours"
    assert 10e6 < timing.peak_memory_bytes <= longer.peak_memory_bytes < 2e9


@pytest.mark.slow
def test_the_memory_of_the_parent_is_not_the_childs(tiny_onnx):
    """A child inherits the parent's peak from getrusage(2); 600 MB are more than a tiny model needs."""
    held = np.ones(600_000_000, np.uint8)
    with CandidateWorker(Candidate(tiny_onnx, "onnxruntime")) as worker:
        assert worker.measure(0).peak_memory_bytes < held.nbytes


def test_options_reach_the_runner(tiny_onnx):
    with CandidateWorker(Candidate(tiny_onnx, "onnxruntime", device="cpu", precision="fp32", threads=1)) as worker:
        assert str(worker.opening.placement).endswith("cpu, fp32, 1 thread")


def test_a_fixed_batch_is_accepted_and_another_refused(pair_onnx):
    with CandidateWorker(Candidate(pair_onnx, "onnxruntime", batch=2)) as worker:
        assert len(worker.measure(0).seconds) >= 3
    with pytest.raises(BatchRefusedError) as caught:
        _load(Candidate(pair_onnx, "onnxruntime", batch=3))
    assert caught.value.subject == str(pair_onnx)
    assert "batch 2" in caught.value.fix


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ("f = Reshape(x, one)  y = MatMul(f, w)", "cannot run together"),
        ("m = GlobalAveragePool(x)  y = Reshape(m, one)", "its outputs have 1 rows"),  # 4 images, as fast as one row
    ],
)
def test_a_graph_of_a_dynamic_batch_that_answers_one_image_is_refused(tmp_path, nodes, why):
    text = (
        '<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,8,8] x) => (float[M,K] y)'
        f"<int64[2] one = {{1, -1}}, float[192,1] w = {{{', '.join(['1'] * 192)}}}> {{ {nodes} }}"
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "one.onnx")
    stated = load(tmp_path / "one.onnx").save(tmp_path / "stated.onnx")
    with CandidateWorker(Candidate(stated, "onnxruntime")) as worker:
        assert len(worker.measure(0).seconds) >= 3
    with pytest.raises(BatchRefusedError, match=why):
        _load(Candidate(stated, "onnxruntime", batch=4))


@pytest.mark.parametrize("shape", [("N", 1, "H", "W"), ("N", 4, 24, 40), (2, 3, 40, 24)])
def test_a_model_of_any_channels_and_sides_is_fed_images_of_its_own(tmp_path, shape):
    image = "float[" + ",".join(map(str, shape)) + "]"
    text = (
        f'<ir_version: 8, opset_import: ["" : 18]> g ({image} x) => (float[N,C] y)'
        "{ a = GlobalAveragePool(x)  y = Flatten(a) }"
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "mean.onnx")
    model = load(tmp_path / "mean.onnx", channels=shape[1]).save(tmp_path / "stated.onnx")
    batch = 2 if shape[0] == 2 else 1
    with CandidateWorker(Candidate(model, "onnxruntime", device="cpu", batch=batch)) as worker:
        assert len(worker.measure(0).seconds) >= 3


def test_loading_and_the_first_call_are_timed_separately(tiny_onnx):
    with CandidateWorker(Candidate(tiny_onnx, "onnxruntime", device="cpu")) as worker:
        opening = worker.opening
    assert opening.placement.backend == "onnxruntime"
    assert opening.load_seconds > 0
    assert opening.first_seconds > 0
    assert opening.device_memory_bytes is None


@pytest.mark.slow
def test_a_checkpoint_needs_the_program_that_builds_it(checkpoint_file):
    """Its module takes images of any size; it gets the size in its manifest."""
    with CandidateWorker(Candidate(checkpoint_file, program="densenet_deploy.workflows.benchmark")) as worker:
        assert worker.opening.placement.backend == "torch"
        assert len(worker.measure(0).seconds) >= 3
    with pytest.raises(ModelFileError) as caught:
        _load(Candidate(checkpoint_file))
    assert caught.value.subject == str(checkpoint_file)


def test_streams_run_at_the_same_time_and_a_camera_gives_frames(tiny_onnx):
    with CandidateWorker(Candidate(tiny_onnx, "onnxruntime", threads=1, streams=2)) as worker:
        timing = worker.measure(0.05)
    assert len(timing.seconds) >= 6
    assert timing.frames == 0
    with CandidateWorker(Candidate(tiny_onnx, "onnxruntime", threads=1, fps=100.0)) as worker:
        timing = worker.measure(0.1)
    assert timing.frames == 10 == len(timing.seconds) + timing.dropped
    assert timing.wall_seconds >= 0.09


@pytest.mark.parametrize("facts", [{"streams": 0}, {"fps": 0.0}, {"fps": float("nan")}])
def test_an_invalid_scenario_is_refused_before_any_process_starts(tiny_onnx, facts):
    with pytest.raises(UsageError):
        Candidate(tiny_onnx, **facts)


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError) as caught:
        _load(Candidate(tmp_path / "none.onnx"))
    assert caught.value.subject == str(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("facts", "kind", "subject"),
    [
        ({"backend": "onnxruntim"}, UnknownNameError, "onnxruntim"),
        ({"device": "npuu"}, UnknownNameError, "npuu"),
        ({"precision": "fp31"}, UnknownNameError, "fp31"),
        ({"threads": 0}, UsageError, "threads=0"),
    ],
)
def test_what_open_runner_refuses_is_refused_here_too(tiny_onnx, facts, kind, subject):
    with pytest.raises(kind) as caught:
        _load(Candidate(tiny_onnx, **facts))
    assert caught.value.subject == subject


def test_an_invalid_batch_is_refused_before_any_process_starts(tiny_onnx):
    with pytest.raises(UsageError) as caught:
        Candidate(tiny_onnx, batch=0)
    assert caught.value.subject == "batch=0"


def test_a_process_that_dies_is_a_backend_error(tiny_onnx):
    with CandidateWorker(Candidate(tiny_onnx, "onnxruntime")) as worker:
        assert worker.opening.placement
        worker.kill()
        with pytest.raises(WorkerDiedError) as caught:
            worker.measure(0)
    assert caught.value.subject == str(tiny_onnx)
    assert caught.value.signal == 9


def test_a_model_that_cannot_be_opened_fails_its_first_round_too(tmp_path):
    with CandidateWorker(Candidate(tmp_path / "none.onnx")) as worker, pytest.raises(InputError):
        worker.measure(0)


def test_other_output_does_not_garble_the_answers(tiny_onnx, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(NOISY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with CandidateWorker(Candidate(tiny_onnx, "onnxruntime")) as worker:
        assert worker.opening.placement.backend == "onnxruntime"
