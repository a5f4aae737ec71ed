"""Where a DenseNet lies in a checkpoint: the dictionary, and the prefix of its names."""

import numpy as np
import pytest

from densenet_deploy.sources.networks import FoundNetwork, dictionaries_in, networks_in

TENSOR = np.zeros(1)


def named(root, *more):
    return {f"{root}conv0.weight": TENSOR, f"{root}denseblock1.denselayer1.conv1.weight": TENSOR} | dict.fromkeys(
        more, TENSOR
    )


def only(content):
    (found,) = networks_in(content)
    return found


@pytest.mark.parametrize(
    ("root", "prefix", "is_bare"),
    [
        ("features.", "", False),
        ("", "", True),
        ("module.densenet121.features.", "module.densenet121.", False),
        ("0.0.", "0.0.", True),
        ("encoder.", "encoder.", True),
        ("myfeatures.", "myfeatures.", True),
        ("a.myfeatures.", "a.myfeatures.", True),
    ],
)
def test_the_prefix_ends_before_the_features(root, prefix, is_bare):
    found = only(named(root))
    assert (found.keys, found.prefix, found.is_bare, found.root) == ((), prefix, is_bare, root)
    assert found.short_name(f"{root}conv0.weight") == "features.conv0.weight"
    assert found.name == (prefix.strip(".") or "(top level)")


def test_a_stem_needs_a_dense_block_beside_it():
    assert networks_in({"features.conv0.weight": TENSOR, "other.denseblock1.x": TENSOR}) == ()
    assert networks_in({"features.conv0.weight": TENSOR, "features.denseblock10.x": TENSOR}) == ()


@pytest.mark.parametrize(
    ("prefix", "is_bare", "name", "short"),
    [
        ("module.cnn.", False, "module.cnn.features.norm0.bias", "features.norm0.bias"),
        ("module.cnn.", False, "module.cnn.classifier.bias", "classifier.bias"),
        ("module.cnn.", False, "module.fc.weight", "fc.weight"),
        ("module.cnn.", False, "fc.weight", "fc.weight"),
        ("module.cnn.", False, "module2.fc.weight", "module2.fc.weight"),
        ("", False, "module.fc.weight", "module.fc.weight"),
        ("0.0.", True, "0.0.norm5.bias", "features.norm5.bias"),
        ("0.0.", True, "0.0.transition2.conv.weight", "features.transition2.conv.weight"),
        ("0.0.", True, "1.4.weight", "1.4.weight"),
        ("", True, "fc.weight", "fc.weight"),
        ("", True, "norm_final.weight", "features.norm_final.weight"),
        ("", True, "norm.weight", "features.norm.weight"),
        ("", True, "final_bn.weight", "features.final_bn.weight"),
        ("", True, "bottleneck.weight", "bottleneck.weight"),
        ("net.", False, "_orig_mod.net.features.norm0.bias", "features.norm0.bias"),
        (
            "",
            True,
            "denseblock1._checkpoint_wrapped_module.denselayer1.norm1.bias",
            "features.denseblock1.denselayer1.norm1.bias",
        ),
        ("", False, "my_orig_mod.fc.weight", "my_orig_mod.fc.weight"),
    ],
)
def test_short_names(prefix, is_bare, name, short):
    assert FoundNetwork((), {}, prefix, is_bare).short_name(name) == short


@pytest.mark.parametrize(
    ("keys", "prefix", "expected"),
    [
        (("state_dict",), "module.", False),
        (("model_ema",), "", True),
        (("EMA",), "", True),
        (("state_dict",), "ema_model.module.", True),
        ((), "teacher.", True),
        (("averaged-model",), "", True),
        (("schema",), "cinema.", False),
    ],
)
def test_copies_say_so_in_their_names(keys, prefix, expected):
    assert FoundNetwork(keys, {}, prefix).is_copy == expected


def test_networks_come_in_the_order_of_the_file_each_with_its_dictionaries():
    content = {"a": {"b": named("features.")}, "c": named("net.features."), "epoch": 3}
    assert [(found.keys, found.prefix) for found in networks_in(content)] == [(("c",), "net."), (("a", "b"), "")]


def test_dictionaries_are_found_once_and_six_levels_deep():
    inner = {"x": TENSOR}
    assert [keys for keys, _ in dictionaries_in({"a": inner, "b": inner})] == [("a",)]
    for _ in range(6):
        inner = {"in": inner}
    assert [keys for keys, _ in dictionaries_in(inner)] == [("in",) * 6]
    assert list(dictionaries_in({"in": inner})) == []


def test_lists_and_tuples_hold_networks_under_their_numbers():
    assert [keys for keys, _ in dictionaries_in([{"x": TENSOR}, 3, ({"y": TENSOR},)])] == [("0",), ("2", "0")]
    assert only((named("features."), 12)).keys == ("0",)
    assert [found.name for found in networks_in({"folds": [named("features."), named("net.features.")]})] == [
        "folds.0",
        "folds.1.net",
    ]
    assert list(dictionaries_in([TENSOR, "text"])) == []


def test_names_need_not_be_text():
    assert networks_in({3: TENSOR}) == ()
    assert only({7: named("features.")}).keys == ("7",)


@pytest.mark.parametrize("word", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_around_inner_modules_are_no_part_of_a_name(word):
    inside = {f"net.features.{word}.conv0.weight": TENSOR, f"net.features.denseblock1.{word}.denselayer1.x": TENSOR}
    found = only(inside)
    assert (found.prefix, found.is_bare, list(found.tensors)) == ("net.", False, list(inside))
    assert [found.short_name(name) for name in inside] == [
        "features.conv0.weight",
        "features.denseblock1.denselayer1.x",
    ]
