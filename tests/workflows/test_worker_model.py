"""The model that worker processes load: what tells it from others, and what they are told about it."""

import json
from pathlib import Path

import numpy as np
import pytest

import densenet_deploy as dd
from densenet_deploy.errors import ModelFileError
from densenet_deploy.records import from_plain, to_plain
from densenet_deploy.runtime.runner import RunnerOptions
from densenet_deploy.workflows.worker_model import WorkerModel, model_file

OPTIONS = RunnerOptions(threads=1, spin=False)


def test_a_model_with_other_weights_in_another_file_is_another_model(tmp_path):
    onnx = pytest.importorskip("onnx")
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [3], b"0" * 12, raw=True)
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor]))
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=1)
    with model_file(path, {}) as before:
        assert before.whole_file() is None
    (tmp_path / "w.bin").write_bytes(b"1" * 12)
    with model_file(path, {}) as after:
        assert after.identity != before.identity
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelFileError), model_file(path, {}):
        pass


def test_a_file_with_nothing_beside_it_is_whole(digits_onnx, tmp_path):
    with model_file(digits_onnx, {}) as file:
        assert (file.name, file.whole_file()) == ("digits.onnx", digits_onnx)
        assert file.identity == {"sha256": file.sha256}
    with model_file("121", {"seed": 3}) as named:
        assert (named.sha256, named.whole_file()) == (None, None)
        assert named.identity == {"name": "121", "stated": {"seed": 3}}


def test_a_model_in_memory_lies_in_a_file_while_the_workers_need_it(digits_onnx):
    with model_file(dd.load(digits_onnx, labels=tuple("abcdefghij")), {}) as file:
        path = Path(file.source)
        told = WorkerModel(file.source, file.stated, None, None, OPTIONS)
        with told.opened() as (model, runner):
            assert model.manifest.labels == tuple("abcdefghij")
            assert runner.run(np.zeros((1, 3, 32, 32), np.float32))["logits"].shape == (1, 10)
    assert not path.exists()


def test_what_is_stated_reaches_the_worker(tmp_path):
    stated = {"architecture": dd.Architecture(blocks=(1, 1, 1)), "num_classes": 3, "image_size": (32, 32)}
    with model_file("cifar-bc-40-12", stated) as file:
        told = WorkerModel(file.source, file.stated, "torch", "cpu", OPTIONS)
    read = from_plain(WorkerModel, json.loads(json.dumps(to_plain(told))))
    with read.opened() as (model, _):
        assert model.spec.blocks == (1, 1, 1)
        assert model.spec.num_classes == 3
