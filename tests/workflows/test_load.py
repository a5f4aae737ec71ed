"""Getting hold of a model: from a variant, from a checkpoint, with everything that travels with it."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch

from densenet_deploy.errors import InputError, ModelFileError, UnknownNameError, UsageError
from densenet_deploy.facts import Architecture
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.model import UntrainedWeightsWarning, untrained_note
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.workflows.load import is_checkpoint, load, open_model
from tests.conftest import TINY

TEN = tuple("abcdefghij")


def _logits(module: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return module(torch.ones(1, 3, 32, 32)).numpy()


def test_a_variant_is_built_by_name():
    model = load("cifar-bc-40-12", num_classes=7)
    assert model.spec.num_classes == 7
    assert not model.module.training
    assert model.manifest.variant == "cifar-bc-40-12"


def test_a_checkpoint_says_its_architecture_and_classes(checkpoint):
    expected = load(architecture=TINY, num_classes=10, seed=5).module
    np.testing.assert_array_equal(_logits(load(checkpoint).module), _logits(expected))
    assert load(checkpoint).manifest.weights.source == "tiny.pth"


def test_a_module_runs_with_its_facts(checkpoint):
    with open_model(checkpoint) as from_file, open_runner(load(checkpoint)) as from_module:
        assert from_file.manifest == from_module.manifest
        assert from_file.placement.backend == "torch"


def test_a_seed_makes_the_weights():
    one, same, other = (load(architecture=TINY, seed=seed) for seed in (1, 1, 2))
    assert one.manifest.weights == same.manifest.weights
    assert one.manifest.weights.sha256 != other.manifest.weights.sha256


def test_untrained_models_say_so_and_trained_ones_do_not(checkpoint):
    with pytest.warns(UntrainedWeightsWarning):
        untrained = load(architecture=TINY, seed=3)
    assert untrained_note(untrained.manifest) == ("untrained weights (random, seed 3): predictions are meaningless",)
    assert untrained_note(load(checkpoint).manifest) == ()
    assert untrained_note(None) == ()


def test_an_unknown_variant_names_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        load("122")
    assert "'121'" in caught.value.fix


def test_a_missing_checkpoint_is_an_input_error(tmp_path):
    with pytest.raises(InputError) as caught:
        load(tmp_path / "gone.pth")
    assert caught.value.subject == str(tmp_path / "gone.pth")


def test_only_numbers_that_were_given_change_the_architecture():
    assert Architecture().changes() == {}
    assert Architecture(growth_rate=4, compression=0.7).changes() == {"growth_rate": 4, "compression": 0.7}


def test_labels_say_how_many_classes_an_untrained_model_has():
    model = load("121", architecture=TINY, labels=TEN)
    assert model.spec.num_classes == 10
    assert model.manifest.labels == TEN


def test_labels_must_be_as_many_as_the_classes(checkpoint):
    with pytest.raises(UsageError) as caught:
        load(checkpoint, labels=("a", "b", "c"))
    assert caught.value.subject == "labels"


def test_labels_are_read_from_a_file(tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    assert load("121", architecture=TINY, labels=tmp_path / "labels.txt").manifest.labels == ("cat", "dog")


def _preprocessing(**numbers: object) -> Preprocessing:
    return load(architecture=TINY, **numbers).manifest.preprocessing


def test_preprocessing_is_the_variants_unless_stated():
    own = _preprocessing()
    assert own.image_size == 32
    stated = _preprocessing(image_size=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert stated == Preprocessing(image_size=64, resize=64 * 256 // 224, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert _preprocessing(image_size=64, resize=64).resize == 64


def test_an_image_too_small_for_the_blocks_is_refused():
    with pytest.raises(UsageError) as caught:
        _preprocessing(image_size=1)
    assert caught.value.subject == "image-size=1"


def test_facts_that_nobody_stated_are_assumed(checkpoint):
    assert load(checkpoint).manifest.assumed == ("image_size", "resize", "interpolation", "mean", "std")
    stated = load(checkpoint, image_size=32, mean=0.5)
    assert stated.manifest.assumed == ("resize", "interpolation", "std")


def test_facts_can_be_stated_of_a_graph_without_any(torchvision_onnx):
    plain, stated = load(torchvision_onnx), load(torchvision_onnx, labels=TEN, task="multilabel", std=0.5)
    assert plain.manifest is None
    assert (stated.manifest.labels, stated.manifest.task, stated.manifest.assumed) == (
        TEN, "multilabel", ("resize", "interpolation", "mean"),
    )  # fmt: skip
    with stated.runner() as runner:
        assert runner.manifest == stated.manifest


def test_stated_facts_are_saved_with_the_graph(torchvision_onnx, tiny_onnx, tmp_path):
    for source in (torchvision_onnx, tiny_onnx):
        stated = load(source, labels=TEN, task="multilabel")
        again = load(stated.save(tmp_path / f"{source.stem}.saved.onnx"))
        assert again.manifest == stated.manifest
        onnx.checker.check_model(onnx.load(again.path))


def test_a_graph_of_another_size_than_stated_is_refused(torchvision_onnx):
    with pytest.raises(UsageError) as caught:
        load(torchvision_onnx, image_size=64)
    assert caught.value.subject == "image-size=64"


def test_whatever_holds_a_graph_loads(tiny_onnx):
    data = tiny_onnx.read_bytes()
    for source in (str(tiny_onnx), tiny_onnx, data, onnx.load(tiny_onnx), load(tiny_onnx)):
        assert load(source).manifest.spec["growth_rate"] == 4
        assert load(source).onnx.graph.node


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"image_size": 0}, "image-size=0"),
        ({"resize": 8193}, "resize=8193"),
        ({"num_classes": 0}, "num-classes=0"),
        ({"mean": (0.5, math.nan, 0.5)}, "mean=nan"),
        ({"mean": (0.5, 0.5, math.inf)}, "mean=inf"),
        ({"std": (1.0, 0.0, 1.0)}, "std=0.0"),
        ({"std": (1.0, math.nan, 1.0)}, "std=nan"),
        ({"std": (1.0, 1.0, math.inf)}, "std=inf"),
    ],
)
def test_numbers_out_of_range_are_usage_errors(wrong, named):
    with pytest.raises(UsageError) as caught:
        load("121", **wrong)
    assert caught.value.subject == named


@pytest.mark.parametrize(
    ("name", "expected"), [("a.pth", True), ("a.PT", True), ("a.safetensors", True), ("a.onnx", False), ("121", False)]
)
def test_checkpoints_go_by_suffix(tmp_path, name, expected):
    assert is_checkpoint(tmp_path / name) == expected


@pytest.mark.parametrize(("stated", "subject"), [({"lables": TEN}, "lables"), ({"num_classes": 5}, "num_classes=5")])
def test_what_cannot_be_stated_of_a_loaded_model_is_refused(torchvision_onnx, stated, subject):
    with pytest.raises(UsageError) as caught:
        load(load(torchvision_onnx), **stated)
    assert caught.value.subject == subject


def test_labels_and_thresholds_are_as_many_as_the_outputs_of_a_graph(torchvision_onnx):
    with pytest.raises(UsageError) as caught:
        load(torchvision_onnx, labels=("a", "b"))
    assert caught.value.subject == "labels"
    for stated in ({"task": "multilabel", "thresholds": (0.1, 0.2)}, {"thresholds": 0.5}):
        with pytest.raises(UsageError) as wrong:
            load(torchvision_onnx, **stated)
        assert wrong.value.subject == "thresholds"


def test_a_module_that_is_not_a_densenet_cannot_be_saved_as_weights(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with pytest.raises(ModelFileError) as caught:
        load(module).save(tmp_path / "weights.safetensors")
    assert caught.value.subject == "sequential"
