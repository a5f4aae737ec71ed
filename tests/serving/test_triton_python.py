"""The models of the `python` backend, on a simulated server that marks capsules as the real one does."""

import ctypes
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from densenet_deploy.errors import DataError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.serving.triton_python import FACTS_FILE, ImageFacts, ImagesModel, NetworkModel, ScoresModel

_NAME = b"used_dlpack"


class Tensor:
    """A tensor of the server: read once through DLPack, and marked as the server marks it."""

    def __init__(self, name, array):
        self.name, self.array = name, array

    @classmethod
    def from_dlpack(cls, name, lent):
        device = lent.__dlpack_device__()
        assert device == (1, 0)
        capsule = lent.__dlpack__()
        copied = lent._array.copy()
        ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), _NAME)
        return cls(name, copied)

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Response:
    def __init__(self, output_tensors=(), error=None):
        self.outputs = {tensor.name: tensor.array for tensor in output_tensors}
        self.error = error


@pytest.fixture
def server(monkeypatch):
    module = SimpleNamespace(
        Tensor=Tensor,
        InferenceResponse=Response,
        TritonError=str,
        get_input_tensor_by_name=lambda request, name: Tensor(name, request[name]),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)


def started(cls, folder, config):
    model = cls()
    args = {"model_config": json.dumps(config), "model_repository": str(folder), "model_version": "1"}
    model.initialize({**args, "model_instance_kind": "CPU", "model_instance_device_id": "0"})
    return model


@pytest.fixture
def network(server, digits_onnx, tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").write_bytes(digits_onnx.read_bytes())
    config = {
        "input": [{"name": "input"}],
        "output": [{"name": "logits"}],
        "max_batch_size": 8,
        "parameters": {"file": {"string_value": "model.onnx"}, "threads": {"string_value": "1"}},
    }
    model = started(NetworkModel, tmp_path, config)
    yield model
    model.finalize()


def images(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3, 32, 32), np.float32)


def test_requests_that_come_together_run_as_one_batch_and_are_answered_apart(network, digits_onnx, monkeypatch) -> None:
    calls = []
    run = network._runner.run
    monkeypatch.setattr(network._runner, "run", lambda feeds: calls.append(len(feeds["input"])) or run(feeds))
    requests = [{"input": images(count, seed=count)} for count in (1, 3, 2)]
    responses = network.execute(requests)
    assert calls == [6]
    with open_runner(digits_onnx) as runner:
        for request, response in zip(requests, responses, strict=True):
            assert response.error is None
            expected = runner.run(request)["logits"]
            assert response.outputs["logits"].shape == expected.shape
            assert np.allclose(response.outputs["logits"], expected, atol=1e-5)


def test_a_request_at_fault_leaves_the_others_their_answers(network) -> None:
    bad = images(1)
    bad[0, 0, 0, 0] = np.nan
    good, refused, also_good = network.execute([{"input": images(1)}, {"input": bad}, {"input": images(2)}])
    assert good.error is None
    assert also_good.outputs["logits"].shape == (2, 10)
    assert "NaN" in refused.error
    assert not refused.outputs


def test_an_answer_prints_nothing_when_its_capsule_is_gone(network, capfd) -> None:
    network.execute([{"input": images(1)}])
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def facts():
    return ImageFacts(Preprocessing(image_size=32, resize=32), "multiclass", "none", (0.5,))


def test_images_of_any_size_become_inputs(server, facts, tmp_path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / FACTS_FILE).write_bytes(facts.to_bytes())
    model = started(ImagesModel, tmp_path, {"input": [{"name": "image"}], "output": [{"name": "input"}]})
    pixels = np.random.default_rng(0).integers(0, 256, (2, 50, 40, 3), np.uint8)
    one, other = model.execute([{"image": pixels}, {"image": pixels[:1, :32, :32]}])
    assert one.outputs["input"].shape == (2, 3, 32, 32)
    assert other.outputs["input"].shape == (1, 3, 32, 32)
    prepared = facts.preprocessing
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (prepared.mean, prepared.std))
    expected = (pixels[0, :32, :32].transpose(2, 0, 1) / 255 - mean) / std
    assert np.allclose(other.outputs["input"][0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "activation", "expected"),
    [
        ("multiclass", "none", {"scores": [[0.25, 0.75]], "best": [[1]]}),
        ("multiclass", "softmax", {"scores": [[0.0, np.log(3)]], "best": [[1]]}),
        ("multilabel", "none", {"scores": [[0.5, 0.75]], "positive": [[1, 1]]}),
        ("regression", "none", {"scores": [[0.0, np.log(3)]]}),
    ],
)
def test_outputs_become_scores_by_task(server, tmp_path, task, activation, expected) -> None:
    facts = ImageFacts(Preprocessing(image_size=32), task, activation, (0.5, 0.75))
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / FACTS_FILE).write_bytes(facts.to_bytes())
    model = started(ScoresModel, tmp_path, {"input": [{"name": "logits"}]})
    (response,) = model.execute([{"logits": np.array([[0, np.log(3)]], np.float32)}])
    assert list(response.outputs) == list(expected)
    for name, values in expected.items():
        assert np.allclose(response.outputs[name], values)
    assert response.outputs["scores"].dtype == np.float32


def test_scores_are_those_of_the_classifier(server, digits_onnx, tmp_path) -> None:
    with Classifier.open(digits_onnx) as classifier:
        logits = classifier.logits(images(3))
        meaning = classifier.meaning
        expected = np.stack([classifier.scores(row) for row in logits])
    facts = ImageFacts(Preprocessing(image_size=32), meaning.task, meaning.activation, meaning.thresholds)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / FACTS_FILE).write_bytes(facts.to_bytes())
    (response,) = started(ScoresModel, tmp_path, {"input": [{"name": "logits"}]}).execute([{"logits": logits}])
    assert np.array_equal(response.outputs["scores"], expected.astype(np.float32))
    assert np.array_equal(response.outputs["best"][:, 0], logits.argmax(1))


def test_facts_that_are_none_are_refused(facts, tmp_path) -> None:
    path = tmp_path / FACTS_FILE
    path.write_bytes(facts.to_bytes())
    assert ImageFacts.read(path) == facts
    path.write_text('{"task": 3}')
    with pytest.raises(DataError) as caught:
        ImageFacts.read(path)
    assert caught.value.subject == str(path)
