"""Checkpoints of the kinds that people report: what `load` makes of each, as facts of the model.

Each is built here with a small network, in the wrapping and with the names of its kind. The outputs are those of the
module that it was made from.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from densenet_deploy.errors import CheckpointError, GateError
from densenet_deploy.model import Model
from densenet_deploy.workflows.check import Recording
from densenet_deploy.workflows.export import ExportOptions, export
from densenet_deploy.workflows.load import load
from tests.sources.torch_networks import CHANNELS, agree, decibels, features, images, network

State = dict[str, Any]
Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(content: Any, name: str = "mine.pth") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def notes_of(model: Model) -> str:
    return "; ".join(model.notes)


def test_01_chexnet(save: Save) -> None:
    net = network(nn.Sequential(nn.Linear(CHANNELS, 14), nn.Sigmoid()))
    state = prefixed(net.state_dict(), "module.densenet121.")
    old = {name.replace("norm1.", "norm.1.").replace("conv1.", "conv.1."): tensor for name, tensor in state.items()}
    model = load(save({"epoch": 7, "state_dict": old, "best_loss": 0.2, "optimizer": {}}, "model.pth.tar"))
    assert (model.name, model.manifest.task, model.spec.num_classes) == ("model", "multilabel", 14)
    with torch.inference_mode():
        assert decibels(net(images()), torch.sigmoid(model.module(images()))) > 90
    assert "a sigmoid is applied to each logit" in notes_of(model)


def test_03_dropout_head(save: Save) -> None:
    net = network(nn.Sequential(nn.Dropout(0.2), nn.Linear(CHANNELS, 14)))
    model = load(save(net.state_dict()))
    assert (model.manifest.task, agree(net, model.module)) == (None, True)


def test_05_udacity_two_layer_head(save: Save) -> None:
    layers = OrderedDict(fc1=nn.Linear(CHANNELS, 50), relu=nn.ReLU(), fc2=nn.Linear(50, 6), output=nn.LogSoftmax(dim=1))
    net = network(nn.Sequential(layers))
    classes = {name: index for index, name in enumerate("fcabed")}
    checkpoint = {"arch": "densenet121", "class_to_idx": classes, "state_dict": net.state_dict(), "hidden_units": 50}
    model = load(save(checkpoint, "checkpoint.pth"))
    assert (model.spec.hidden, model.manifest.labels) == ("linear:50 relu", tuple("fcabed"))
    with torch.inference_mode():
        assert decibels(net(images()), model.module(images()).log_softmax(1)) > 90
    assert "ReLU after classifier.fc1" in notes_of(model)


def test_06_torchxrayvision(save: Save) -> None:
    net = network(channels=1, classes=18)
    path = save(net.state_dict() | {"op_threshs": torch.linspace(0.1, 0.9, 18)}, "nih-densenet121.pt")
    assert load(path, task="regression").manifest.thresholds == ()
    assert load(path, thresholds=0.3, task="multilabel").manifest.thresholds == (0.3,)
    model = load(path)
    preprocessing = model.manifest.preprocessing
    assert (preprocessing.mean, preprocessing.std, preprocessing.shape) == ((0.5,), (1 / 2048,), (1, 224, 224))
    assert preprocessing.value_range == (-1024, 1024)
    assert (model.manifest.task, model.manifest.thresholds[0]) == ("multilabel", pytest.approx(0.1))
    assert model.manifest.labels[0] == "Atelectasis"
    assert agree(net, model.module, 1)


@pytest.mark.parametrize("prefix", ["model.", "encoder."])
def test_09_lightning(save: Save, prefix: str) -> None:
    net = network()
    state = prefixed(net.state_dict(), prefix)
    state |= {"criterion.pos_weight": torch.ones(5), "val_acc.tp": torch.zeros(5, dtype=torch.int64)}
    content = {
        "state_dict": state,
        "callbacks": {"EarlyStopping{'monitor': 'val_loss'}": {"best": torch.tensor(0.5)}},
        "optimizer_states": [],
        "hyper_parameters": {"lr": 1e-3, "num_classes": 5},
    }
    model = load(save(content, "epoch=3-step=100.ckpt"))
    assert (model.name, agree(net, model.module)) == ("epoch=3-step=100", True)
    assert "criterion.pos_weight" in notes_of(model)
    assert "val_acc.tp" in notes_of(model)


def test_12_hugging_face_folder(tmp_path: Path) -> None:
    net = network()
    safetensors.torch.save_file(net.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "densenet121",
        "num_classes": 5,
        "label_names": ["akiec", "bcc", "bkl", "df", "mel"],
        "pretrained_cfg": {
            "input_size": [3, 288, 288],
            "crop_pct": 0.95,
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "interpolation": "bicubic",
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    for source in (tmp_path, tmp_path / "model.safetensors"):
        model = load(source)
        made = model.manifest.preprocessing
        assert (made.image_size, made.resize, made.interpolation, made.mean) == (288, 303, "bicubic", (0.5,) * 3)
        assert (model.manifest.assumed, model.manifest.labels[4]) == ((), "mel")
        assert load(source, mean=0.25, image_size=64).manifest.preprocessing.mean == (0.25,) * 3
        assert agree(net, model.module)


def test_13_one_output(save: Save) -> None:
    net = network(classes=1)
    model = load(save(net.state_dict(), "age.pth"))
    assert (model.spec.num_classes, agree(net, model.module)) == (1, True)


def test_15_four_channels(save: Save) -> None:
    net = network(channels=4)
    model = load(save(net.state_dict(), "rgbn.pth"))
    assert model.manifest.preprocessing.shape == (4, 224, 224)
    assert {"mean", "std"} <= set(model.manifest.assumed)
    assert agree(net, model.module, 4)
    with pytest.raises(CheckpointError):
        load(save(net.state_dict()), channels=3)


def test_20_features_as_root(save: Save) -> None:
    net = network()
    state = {name.removeprefix("features.").replace("classifier", "fc"): t for name, t in net.state_dict().items()}
    assert agree(net, load(save(state, "dens.pth")).module)


def small_stem(*, pool: bool) -> nn.Module:
    net = network()
    net.features.conv0 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
    if not pool:
        net.features.pool0 = nn.Identity()
    return net


def test_23_a_small_first_convolution_whose_pool_is_kept(save: Save, tmp_path: Path) -> None:
    net = small_stem(pool=True)
    path = save(net.state_dict(), "cifar.pth")
    batch = images(size=32)
    with torch.inference_mode():
        np.savez(tmp_path / "expected.npz", x=batch.numpy(), y=net(batch).numpy())
    model = export(path, ExportOptions(check=tmp_path / "expected.npz"))
    assert model.spec.stem == "3x3-pool"
    assert model.report.check["logits"].sqnr_db > 90
    assert "conv0 stride 1, max pool 3x3/2" in notes_of(model)


def test_67_a_pool_that_was_removed_is_found_by_the_check(save: Save, tmp_path: Path) -> None:
    net = network()
    net.features.pool0 = nn.Identity()
    path = save(net.state_dict(), "pool0_removed.pth")
    batch = images()
    with torch.inference_mode():
        np.savez(tmp_path / "pool0_removed.npz", x=batch.numpy(), y0=net(batch).numpy())
    assert Recording.read(tmp_path / "pool0_removed.npz").outputs[0].shape == (4, 5)
    with pytest.raises(GateError) as caught:
        export(path, ExportOptions(check=tmp_path / "pool0_removed.npz"), out=tmp_path)
    assert "--stem imagenet-nopool" in caught.value.fix
    assert not (tmp_path / "pool0_removed.onnx").exists()


@pytest.mark.parametrize("content", ["prefix", "wrapper"])
def test_68_other_prefixes_and_wrappers(save: Save, content: str) -> None:
    net = network(classes=14)
    state = net.state_dict()
    model = load(save(prefixed(state, "cnn.") if content == "prefix" else {"model_state": state}))
    assert agree(net, model.module)


def test_69_a_mean_that_nothing_uses_is_named(save: Save) -> None:
    net = network()
    model = load(save(net.state_dict() | {"mean": torch.zeros(1, 3, 1, 1)}))
    assert "ignored as not part of the network: mean" in notes_of(model)
    assert agree(net, model.module)


def test_69_gem_pooling_is_refused_by_name(save: Save) -> None:
    path = save(network().state_dict() | {"global_pool.p": torch.full((1,), 3.0)})
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert "global_pool.p is the exponent of GeM pooling" in caught.value.why
    assert "densenet_deploy.load(module)" in caught.value.fix
    assert "torch.onnx.export" in caught.value.fix


def test_features_are_what_the_last_layer_reads(save: Save) -> None:
    net = network(nn.Sequential(nn.Dropout(), nn.Linear(CHANNELS, 3)))
    model = load(save(net.state_dict()), head="features")
    with torch.inference_mode():
        assert decibels(features(net, images()), model.module(images())) > 90
