"""export --check: the owner's inputs and outputs, and what is said if the result computes something else."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from densenet_deploy.errors import DataError, FeedError, GateError, InputError
from densenet_deploy.models.build import build_model, loaded_model
from densenet_deploy.variants.spec import DenseNetSpec
from densenet_deploy.workflows.check import GATES, Recording, require_recorded, sized_for
from densenet_deploy.workflows.export import ExportOptions, export
from densenet_deploy.workflows.load import load

SPEC = DenseNetSpec(growth_rate=4, blocks=(2, 2), init_features=8, num_classes=5, stem="3x3-pool")
IMAGES = np.random.default_rng(0).standard_normal((40, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def network():
    net = build_model(SPEC, seed=1)
    generator = torch.Generator().manual_seed(4)
    for buffer in net.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5, generator=generator)
    return net


def outputs_of(module, images=IMAGES):
    with torch.inference_mode():
        return module(torch.from_numpy(images)).numpy()


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def graph(weights):
    return export(weights, image_size=16)


def recorded(tmp_path, **arrays):
    np.savez(tmp_path / "recorded.npz", **arrays)
    return Recording.read(tmp_path / "recorded.npz")


@pytest.mark.parametrize(("x", "y"), [("x", "y"), ("inputs", "outputs"), ("input", "output"), ("x", "y0")])
def test_arrays_have_their_usual_names(tmp_path, network, graph, x, y):
    parity, notes = require_recorded(graph, recorded(tmp_path, **{x: IMAGES, y: outputs_of(network)}))
    assert list(parity) == ["logits"]
    assert (parity["logits"].sqnr_db > 90, notes) == (True, ())


def test_one_image_is_enough(tmp_path, network, graph):
    parity, _ = require_recorded(graph, recorded(tmp_path, x=IMAGES[:1], y=outputs_of(network, IMAGES[:1])))
    assert parity["logits"].sqnr_db > 90


def test_one_number_an_image_may_be_a_column(tmp_path):
    read = recorded(tmp_path, x=IMAGES.astype(np.float64), y=np.arange(40))
    assert (read.inputs.dtype, read.outputs[0].shape, read.outputs[0].dtype) == (np.float32, (40, 1), np.float32)
    assert (read.image_size, [len(batch) for batch in read.batches()]) == ((16, 16), [32, 8])


def test_several_outputs_are_read_in_order(tmp_path):
    read = recorded(tmp_path, x=IMAGES, y1=np.ones((40, 2)), y0=np.zeros((40, 3)))
    assert [output.shape for output in read.outputs] == [(40, 3), (40, 2)]


@pytest.mark.parametrize(
    "arrays",
    [
        {"a": IMAGES, "y": np.ones(40)},
        {"x": IMAGES},
        {"x": IMAGES[0], "y": np.ones(3)},
        {"x": IMAGES, "y": np.ones(39)},
        {"x": IMAGES[:0], "y": np.ones(0)},
    ],
    ids=["no x", "no y", "one image", "39", "none"],
)
def test_other_arrays_are_refused(tmp_path, arrays):
    with pytest.raises(DataError) as caught:
        recorded(tmp_path, **arrays)
    assert caught.value.subject == str(tmp_path / "recorded.npz")
    assert "np.savez" in caught.value.fix


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("nothing")
    np.save(tmp_path / "array.npy", IMAGES)
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    for name in ("text.npz", "array.npy", "objects.npz"):
        with pytest.raises(DataError):
            Recording.read(tmp_path / name)
    with pytest.raises(InputError):
        Recording.read(tmp_path / "gone.npz")


def miss(graph, recording):
    with pytest.raises(GateError) as caught:
        require_recorded(graph, recording)
    assert caught.value.exit_code == 4
    return caught.value


def test_a_stem_with_which_they_agree_is_named(tmp_path, network, graph):
    other = loaded_model(dataclasses.replace(SPEC, stem="3x3-nopool"), network.state_dict())
    error = miss(graph, recorded(tmp_path, x=IMAGES, y=outputs_of(other)))
    assert "--stem 3x3-nopool" in error.fix
    assert "dB" in error.why


def test_another_network_is_told_to_be_loaded_itself(tmp_path, graph):
    error = miss(graph, recorded(tmp_path, x=IMAGES, y=np.ones((40, 5))))
    assert "densenet_deploy.load(module)" in error.fix


@pytest.mark.parametrize("factor", [1.5, -1.0])
def test_a_factor_is_a_difference(tmp_path, network, graph, factor):
    miss(graph, recorded(tmp_path, x=IMAGES, y=factor * outputs_of(network)))


@pytest.mark.parametrize(("decibels", "agrees"), [(44, False), (48.5, True)])
def test_the_limit_is_that_of_fp32(tmp_path, network, graph, decibels, agrees):
    outputs = outputs_of(network)
    noise = np.random.default_rng(1).standard_normal(outputs.shape)
    noise *= np.linalg.norm(outputs) / np.linalg.norm(noise) * 10 ** (-decibels / 20)
    recording = recorded(tmp_path, x=IMAGES, y=outputs + noise)
    if agrees:
        require_recorded(graph, recording)
    else:
        miss(graph, recording)
    assert [gate.metric for gate in GATES] == ["cosine", "sqnr_db"]


@pytest.mark.parametrize(
    ("activation", "task", "agrees"),
    [
        (nn.Sigmoid(), "multilabel", True),
        (nn.Sigmoid(), None, False),
        (nn.Softmax(1), None, True),
        (nn.Softmax(1), "multiclass", True),
        (nn.Softmax(1), "multilabel", False),
    ],
)
def test_activations_are_those_of_the_task(tmp_path, network, graph, activation, task, agrees):
    recording = recorded(tmp_path, x=IMAGES, y=outputs_of(nn.Sequential(network, activation)))
    stated = graph if task is None else load(graph, task=task)
    if agrees:
        parity, notes = require_recorded(stated, recording)
        assert (parity["logits"].sqnr_db > 90, len(notes)) == (True, 1)
        return
    assert "--task" in miss(stated, recording).fix


def test_other_shapes_say_which(tmp_path, network, graph):
    small = IMAGES[..., :8, :8]
    with pytest.raises(FeedError):
        require_recorded(graph, recorded(tmp_path, x=small, y=outputs_of(network, small)))
    for wrong in ({"y": np.ones((40, 4))}, {"y0": np.ones((40, 5)), "y1": np.ones((40, 5))}):
        with pytest.raises(DataError):
            require_recorded(graph, recorded(tmp_path, x=IMAGES, **wrong))


def test_the_size_of_the_images_is_the_recorded_one_where_none_was_stated(tmp_path, weights):
    recording = recorded(tmp_path, x=IMAGES, y=np.ones((40, 5)))
    assert sized_for(load(weights), recording).manifest.preprocessing.image_size == 16
    assert sized_for(load(weights, image_size=32), recording).manifest.preprocessing.image_size == 32


def test_export_reports_what_it_checked_and_writes_nothing_that_differs(tmp_path, network, weights):
    np.savez(tmp_path / "good.npz", x=IMAGES, y=outputs_of(network))
    np.savez(tmp_path / "bad.npz", x=IMAGES, y=-outputs_of(network))
    model = export(weights, ExportOptions(check=tmp_path / "good.npz"), out=tmp_path / "good.onnx")
    assert model.report.check["logits"].sqnr_db > 90
    assert model.report.to_json()["check"]["logits"]["sqnr_db"] > 90
    assert "check" in model.report.to_text()
    assert any(note.endswith("confirmed by --check") for note in model.report.notes)
    with pytest.raises(GateError):
        export(weights, ExportOptions(check=tmp_path / "bad.npz"), out=tmp_path / "bad.onnx")
    assert not (tmp_path / "bad.onnx").exists()
    with pytest.raises(GateError):
        export(tmp_path / "good.onnx", ExportOptions(check=tmp_path / "bad.npz"))
