"""Facts of a model: taken in the forms that people hold them, and checked at once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.facts import Architecture, ModelFacts


def test_nothing_is_given_unless_it_is_stated():
    assert ModelFacts().given() == {}
    assert Architecture().changes() == {}


def test_lists_arrays_and_single_values_become_tuples():
    facts = ModelFacts(mean=0.5, std=[0.1, 0.2, 0.3], labels=iter(["a", "b"]), thresholds=np.array([0.25, 0.5]))
    assert facts.given() == {
        "mean": (0.5,),
        "std": (0.1, 0.2, 0.3),
        "labels": ("a", "b"),
        "thresholds": (0.25, 0.5),
    }


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        (224, 224),
        ([224], 224),
        ((224, 224), 224),
        ([256, 128], (256, 128)),
        ([128, 256], (128, 256)),
        (np.int64(32), 32),
        ((np.int64(32), 16), (32, 16)),
    ],
)
def test_an_image_size_is_one_number_or_height_and_width(size, kept):
    assert ModelFacts(image_size=size).image_size == kept
    assert type(ModelFacts(image_size=size).image_size) is type(kept)


def test_a_square_resize_is_not_a_shorter_side():
    assert ModelFacts(resize=(256, 256)).resize == (256, 256)
    assert ModelFacts(resize=256).resize == 256
    assert ModelFacts(resize="none").resize == "none"


@pytest.mark.parametrize(
    ("facts", "subject"),
    [
        ({"image_size": 0}, "image-size=0"),
        ({"image_size": (224, 8193)}, "image-size=8193"),
        ({"image_size": (1, 2, 3)}, "image-size=(1, 2, 3)"),
        ({"image_size": 22.5}, "image-size=22.5"),
        ({"image_size": True}, "image-size=True"),
        ({"channels": 0}, "channels=0"),
        ({"channels": 4097}, "channels=4097"),
        ({"channels": 3.0}, "channels=3.0"),
        ({"resize": 0}, "resize=0"),
        ({"resize": (1, 8193)}, "resize=8193"),
        ({"resize": "all"}, "resize=all"),
        ({"mean": ()}, "mean"),
        ({"mean": math.nan}, "mean=nan"),
        ({"mean": "half"}, "mean=half"),
        ({"mean": [None]}, "mean=None"),
        ({"mean": 2.001}, "mean=2.001"),
        ({"mean": -2.001}, "mean=-2.001"),
        ({"std": (0.5, 0.0)}, "std=0.0"),
        ({"std": 9.9e-7}, "std=9.9e-07"),
        ({"std": 4.001}, "std=4.001"),
        ({"labels": "cat"}, "labels=cat"),
        ({"labels": ()}, "labels=()"),
        ({"labels": 7}, "labels=7"),
        ({"labels": ("cat", 7)}, "labels=('cat', 7)"),
        ({"thresholds": 1.001}, "thresholds=1.001"),
        ({"thresholds": -0.001}, "thresholds=-0.001"),
    ],
    ids=str,
)
def test_a_value_that_no_model_has_is_refused_by_name(facts, subject):
    with pytest.raises(UsageError) as caught:
        ModelFacts(**facts)
    assert caught.value.subject == subject


@pytest.mark.parametrize(
    "facts",
    [
        {"image_size": 1},
        {"image_size": (8192, 1)},
        {"channels": 1},
        {"channels": 4096},
        {"resize": 1},
        {"resize": (1, 8192)},
        {"mean": (-2.0, 0.0, 2.0)},
        {"std": (1e-6, 4.0)},
        {"thresholds": (0.0, 1.0)},
        {"interpolation": "nearest"},
        {"interpolation": "bilinear"},
        {"interpolation": "bicubic"},
        {"task": "auto"},
        {"task": "multilabel"},
        {"labels": ("cat",)},
    ],
    ids=str,
)
def test_a_value_at_the_end_of_its_range_is_kept(facts):
    assert ModelFacts(**facts).given() == facts


@pytest.mark.parametrize("facts", [{"task": "multi-label"}, {"interpolation": "lanczos"}], ids=str)
def test_an_unknown_word_names_the_known_ones(facts):
    with pytest.raises(UnknownNameError) as caught:
        ModelFacts(**facts)
    assert caught.value.subject in facts.values()


def test_the_numbers_of_an_architecture_name_their_options():
    architecture = Architecture(growth_rate=4, blocks=(2, 2))
    assert architecture.changes() == {"growth_rate": 4, "blocks": (2, 2)}
    assert architecture.options() == ("--growth-rate", "--blocks")


@pytest.mark.parametrize(
    ("facts", "hint"),
    [
        ({"mean": 123.675}, "0.485"),
        ({"mean": (0.5, 255, 0.5)}, "1"),
        ({"mean": -2.55}, "-0.01"),
        ({"std": 58.395}, "0.229"),
        ({"std": (0.229, 57.12, 0.225)}, "0.224"),
    ],
    ids=str,
)
def test_numbers_of_pixels_are_refused_with_what_to_give_instead(facts, hint):
    with pytest.raises(UsageError) as caught:
        ModelFacts(**facts)
    assert caught.value.fix.endswith(f"divide mean and std by 255: {hint}")
    with pytest.raises(UsageError) as caught:
        ModelFacts(mean=255.1)
    assert "255: " not in caught.value.fix
    assert ModelFacts(mean=2.0).mean == (2.0,)
