"""config.json beside weights, of timm and of Transformers: what it says, what fits, and what is wrong with it."""

import json

import pytest

from densenet_deploy.errors import InputError
from densenet_deploy.facts import ModelFacts
from densenet_deploy.sources.config_file import config_beside, config_of, facts_of_config, fitting
from densenet_deploy.variants.spec import DenseNetSpec

TIMM = {
    "architecture": "densenet121",
    "num_classes": 2,
    "label_names": ["benign", "malign"],
    "pretrained_cfg": {
        "input_size": [3, 288, 288],
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.1, 0.2, 0.3],
    },
}
FACTS = ModelFacts(
    image_size=288,
    channels=3,
    resize=303,  # 288 / 0.95 = 303.2
    interpolation="bicubic",
    mean=(0.5, 0.4, 0.3),
    std=(0.1, 0.2, 0.3),
    labels=("benign", "malign"),
)


def write(folder, content, name="config.json"):
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / "model.safetensors"


def test_timms_config(tmp_path):
    found = config_beside(write(tmp_path, TIMM))
    assert (found.facts, found.architecture) == (FACTS, "densenet121")
    assert set(found.notes[0].removeprefix("config.json: ").split(", ")) == set(FACTS.given())


def test_older_configs_of_timm_have_its_keys_at_the_top():
    flat = TIMM["pretrained_cfg"] | {"label_names": ["benign", "malign"]}
    assert facts_of_config(flat) == FACTS


@pytest.mark.parametrize(
    ("config", "resize"),
    [
        ({"input_size": [3, 224, 224]}, 256),
        ({"input_size": [3, 224, 224], "crop_pct": 1.0}, 224),
        ({"input_size": [3, 224, 224], "crop_pct": 0.9}, 248),
        ({"input_size": [1, 256, 128], "crop_pct": 1.0}, (256, 128)),
        ({"input_size": [3, 224, 224], "crop_pct": 0.875, "crop_mode": "squash"}, (256, 256)),
        ({"input_size": [3, 224, 224], "crop_pct": 0}, 256),
        ({"input_size": [224, 224]}, None),
    ],
)
def test_the_crop_is_a_share_of_what_is_resized_rounded_down(config, resize):
    assert facts_of_config({"pretrained_cfg": config}).resize == resize


def test_labels_may_stand_in_either_place_and_the_outer_ones_win():
    inner = {"pretrained_cfg": {"label_names": ["a", "b"]}}
    assert facts_of_config(inner).labels == ("a", "b")
    assert facts_of_config(inner | {"label_names": ["c", "d"]}).labels == ("c", "d")


TRANSFORMERS = {
    "architectures": ["SomeModel"],
    "id2label": {"1": "dog", "0": "cat", "10": "x", **{str(n): str(n) for n in range(2, 10)}},
    "problem_type": "multi_label_classification",
    "num_channels": 1,
}
IMAGES = {
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "image_mean": [0.5],
    "image_std": [0.25],
}


def test_the_files_of_transformers():
    found = config_of(TRANSFORMERS, IMAGES)
    labels = ("cat", "dog", *map(str, range(2, 10)), "x")
    assert found.facts == ModelFacts(224, 1, 256, "bicubic", (0.5,), (0.25,), labels, "multilabel")
    assert found.architecture is None


@pytest.mark.parametrize(
    ("changes", "size", "resize", "mean"),
    [
        ({"do_center_crop": False, "size": {"height": 256, "width": 128}}, (256, 128), (256, 128), (0.5,)),
        ({"do_center_crop": False, "size": 96}, 96, 96, (0.5,)),
        ({"do_resize": False}, 224, "none", (0.5,)),
        ({"do_normalize": False}, 224, 256, None),
        ({"size": {"longest_edge": 256}}, None, None, (0.5,)),
    ],
)
def test_steps_of_an_image_processor(changes, size, resize, mean):
    facts = config_of({}, IMAGES | changes).facts
    assert (facts.image_size, facts.resize, facts.mean) == (size, resize, mean)


@pytest.mark.parametrize(
    ("problem", "task"),
    [("single_label_classification", "multiclass"), ("regression", "regression"), ("segmentation", None)],
)
def test_problem_types_are_tasks(problem, task):
    assert facts_of_config({"problem_type": problem}).task == task


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"learning_rate": 0.1},
        {"id2label": {"0": "cat", "2": "dog"}},
        {"label_names": "cat"},
        {"label_names": [1, 2]},
        {"mean": []},
        {"mean": ["a"]},
        {"interpolation": "lanczos"},
    ],
    ids=str,
)
def test_what_says_nothing_of_use_is_nothing(config):
    assert config_of(config, {}) is None


def test_an_interpolation_that_is_not_supported_is_named():
    found = config_of({"architecture": "densenet121", "interpolation": "lanczos"}, {})
    assert found.notes == (
        "config.json: nothing about images or labels",
        "config.json: interpolation lanczos is not supported",
    )


def test_without_a_config_nothing_is_known(tmp_path):
    assert config_beside(tmp_path / "model.safetensors") is None


@pytest.mark.parametrize(
    "content",
    ["{", "[1, 2]", {"mean": [123.7, 116.3, 103.5]}, {"input_size": [3, 0, 0]}],
    ids=["half", "list", "255", "0"],
)
def test_a_config_that_cannot_be_true_is_refused(tmp_path, content):
    with pytest.raises(InputError) as caught:
        config_beside(write(tmp_path, content))
    assert caught.value.subject == str(tmp_path / "config.json")


def test_facts_that_do_not_fit_the_weights_are_left_out_and_named():
    spec = DenseNetSpec(in_channels=1, num_classes=3)
    kept, notes = fitting(FACTS, spec)
    assert kept == ModelFacts(image_size=288, resize=303, interpolation="bicubic")
    assert notes == (
        "left out, since they do not fit the weights (1 channels, 3 classes): mean, std, labels, channels",
    )
    assert fitting(FACTS, DenseNetSpec(num_classes=2)) == (FACTS, ())
    single = ModelFacts(mean=(0.5,), std=(0.5,), thresholds=(0.5,))
    assert fitting(single, DenseNetSpec(num_classes=2)) == (single, ())
    assert fitting(ModelFacts(labels=("a",)), DenseNetSpec(head="features"))[0] == ModelFacts()
