"""Getting hold of a model: from a variant, from a checkpoint, with everything that travels with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from densenet_deploy.errors import DataError, InputError, UnknownNameError, UsageError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.workflows.load import (
    Architecture,
    ModelRequest,
    build,
    is_checkpoint,
    labels_from,
    load,
    load_model,
    open_model,
)
from densenet_deploy.workflows.notes import untrained_note
from tests.conftest import TINY

TEN = tuple("abcdefghij")


def _logits(module: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return module(torch.ones(1, 3, 32, 32)).numpy()


def test_a_variant_is_built_by_name():
    model = load("cifar-bc-40-12", num_classes=7)
    assert model.module.output_width == 7
    assert not model.module.training
    assert model.manifest.variant == "cifar-bc-40-12"


def test_a_checkpoint_says_its_architecture_and_classes(checkpoint):
    expected = build(ModelRequest(architecture=TINY, num_classes=10, seed=5)).module
    np.testing.assert_array_equal(_logits(load_model(checkpoint)), _logits(expected))
    assert load(checkpoint).manifest.weights.source == "tiny.pth"


def test_a_module_runs_with_its_facts(checkpoint):
    with open_model(checkpoint) as from_file, open_runner(load(checkpoint)) as from_module:
        assert from_file.manifest == from_module.manifest
        assert from_file.placement.backend == "torch"


def test_a_seed_makes_the_weights():
    one, same, other = (build(ModelRequest(architecture=TINY, seed=seed)) for seed in (1, 1, 2))
    assert one.manifest.weights == same.manifest.weights
    assert one.manifest.weights.sha256 != other.manifest.weights.sha256


def test_untrained_models_say_so_and_trained_ones_do_not(checkpoint):
    untrained = build(ModelRequest(architecture=TINY, seed=3))
    assert untrained.notes == ("untrained weights (random, seed 3): predictions mean nothing",)
    assert untrained_note(build(ModelRequest(weights=str(checkpoint))).manifest) == ()
    assert untrained_note(None) == ()


def test_an_unknown_variant_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"did you mean '121'\?"):
        load_model("122")


def test_a_missing_checkpoint_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"gone\.pth"):
        load_model(tmp_path / "gone.pth")


def test_only_numbers_that_were_given_change_the_architecture():
    assert Architecture().changes() == {}
    assert Architecture(growth_rate=4, compression=0.7).changes() == {"growth_rate": 4, "compression": 0.7}


def test_labels_say_how_many_classes_an_untrained_model_has():
    model = build(ModelRequest(architecture=TINY, labels=TEN))
    assert model.module.output_width == 10
    assert model.manifest.labels == TEN


def test_labels_must_be_as_many_as_the_classes(checkpoint):
    with pytest.raises(DataError, match="3 labels for 10 classes"):
        build(ModelRequest(weights=str(checkpoint), labels=("a", "b", "c")))


def test_labels_are_read_from_a_file(tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    assert labels_from(tmp_path / "labels.txt") == ("cat", "dog")
    assert labels_from(None) is None


def _preprocessing(**numbers: object) -> Preprocessing:
    return build(ModelRequest(architecture=TINY, **numbers)).manifest.preprocessing


def test_preprocessing_is_the_variants_unless_told_otherwise():
    own = _preprocessing()
    assert own.image_size == 32
    told = _preprocessing(image_size=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert told == Preprocessing(image_size=64, resize=64 * 256 // 224, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert _preprocessing(image_size=64, resize=64).resize == 64


def test_a_image_too_small_for_the_blocks_is_refused():
    with pytest.raises(UsageError, match="image-size=1: is too small for 2 blocks"):
        _preprocessing(image_size=1)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"image_size": 0}, "image-size=0"),
        ({"resize": 8193}, "resize=8193"),
        ({"num_classes": 0}, "num-classes=0"),
        ({"mean": (0.5, math.nan, 0.5)}, "mean=nan"),
        ({"mean": (0.5, 0.5, math.inf)}, "mean=inf"),
        ({"std": (1.0, 0.0, 1.0)}, "std=0"),
        ({"std": (1.0, math.nan, 1.0)}, "std=nan"),
        ({"std": (1.0, 1.0, math.inf)}, "std=inf"),
    ],
)
def test_numbers_out_of_range_are_usage_errors(wrong, named):
    with pytest.raises(UsageError, match=named):
        ModelRequest(**wrong)


@pytest.mark.parametrize(
    ("name", "expected"), [("a.pth", True), ("a.PT", True), ("a.safetensors", True), ("a.onnx", False), ("121", False)]
)
def test_checkpoints_go_by_suffix(tmp_path, name, expected):
    assert is_checkpoint(tmp_path / name) == expected
