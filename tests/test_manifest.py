"""What travels with an artifact comes back as it was, or is refused by the name of the fact that is wrong."""

from __future__ import annotations

import dataclasses
import io
import json
import os

import pytest

from densenet_deploy.errors import ManifestError, UsageError
from densenet_deploy.manifest import IMAGENET_MEAN, Manifest, Preprocessing, WeightsOrigin, check_schema
from densenet_deploy.onnx_envelope import append_metadata, read_metadata

PREFIX = "densenet_deploy."
EMPTY_GRAPH = b"\x3a\x00"  # field 7 of ModelProto, of length 0

MANIFEST = Manifest(
    variant="121",
    spec={"growth_rate": 32, "blocks": (6, 12), "compression": 0.5, "stem": "imagenet", "bias": None, "wide": False},
    weights=WeightsOrigin("none", "ab" * 32, seed=7),
    preprocessing=Preprocessing(image_size=32, resize=36),
    labels=("cat", "dog"),
    tools={"torch": "2.11"},
)

TEXTS = [
    "",
    " ",
    'quotes " and \\ backslashes',
    "control \x00\x01\x1f\x7f\n\r\t",
    "Katze 🐈 naïve",
    "\u2028\u2029\u202e",
    os.fsdecode(b"odd \xff\xfe bytes"),
    "x" * 100_000,
    '{"schema": 2}',
]


def refused(strings: dict[str, str]) -> str:
    """The fact that is named when `strings` are refused."""
    with pytest.raises(ManifestError) as caught:
        Manifest.from_strings(strings)
    assert caught.value.subject.startswith(PREFIX)
    return caught.value.subject.removeprefix(PREFIX)


def _through_a_file(manifest: Manifest) -> Manifest | None:
    return Manifest.from_strings(read_metadata(io.BytesIO(append_metadata(EMPTY_GRAPH, manifest.to_strings()))))


def _changed(key: str, text: str) -> dict[str, str]:
    return {**MANIFEST.to_strings(), PREFIX + key: text}


def test_facts_come_back_through_a_file():
    assert _through_a_file(MANIFEST) == MANIFEST


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_any_text_comes_back_through_a_file(text):
    manifest = dataclasses.replace(
        MANIFEST,
        variant=text,
        weights=WeightsOrigin(text, text),
        labels=(text, "cat", text),
        recipe=text,
        tools={text: text},
    )
    assert _through_a_file(manifest) == manifest


def test_the_strings_in_a_file_are_these():
    """Files of today must be read tomorrow: the keys, the schema and the form of every value."""
    assert MANIFEST.to_strings() == {
        "densenet_deploy.schema": "1",
        "densenet_deploy.variant": '"121"',
        "densenet_deploy.spec": (
            '{"growth_rate": 32, "blocks": [6, 12], "compression": 0.5, "stem": "imagenet", "bias": null,'
            ' "wide": false}'
        ),
        "densenet_deploy.weights": f'{{"source": "none", "sha256": "{"ab" * 32}", "seed": 7}}',
        "densenet_deploy.preprocessing": (
            '{"image_size": 32, "resize": 36, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],'
            ' "interpolation": "bilinear", "dtype": "float32"}'
        ),
        "densenet_deploy.labels": '["cat", "dog"]',
        "densenet_deploy.precision": '"fp32"',
        "densenet_deploy.recipe": "null",
        "densenet_deploy.batch": "null",
        "densenet_deploy.opset": "null",
        "densenet_deploy.tools": '{"torch": "2.11"}',
        "densenet_deploy.task": "null",
        "densenet_deploy.thresholds": "[]",
        "densenet_deploy.activations": "{}",
        "densenet_deploy.assumed": "[]",
    }


def test_files_from_before_there_were_graphs_of_pixels_take_float32():
    strings = MANIFEST.to_strings()
    key = PREFIX + "preprocessing"
    strings[key] = strings[key].replace(', "dtype": "float32"', "")
    assert Manifest.from_strings(strings) == MANIFEST


def test_pixels_are_stated_with_their_layout():
    pixels = Preprocessing((256, 128), "none", (0.5,), (0.25,), dtype="uint8")
    assert (pixels.shape, pixels.input_shape, pixels.layout) == ((1, 256, 128), (256, 128, 1), "NHWC")
    assert str(pixels) == "256x128x1 uint8, no resize, mean 0.5, std 0.25 in the graph"
    assert _through_a_file(dataclasses.replace(MANIFEST, preprocessing=pixels)).preprocessing == pixels
    plain = dataclasses.replace(pixels, dtype="float32")
    assert (plain.input_shape, plain.layout, plain.takes_pixels) == ((1, 256, 128), "NCHW", False)
    strings = dataclasses.replace(MANIFEST, preprocessing=pixels).to_strings()
    wrong = {key: text.replace("uint8", "int8") for key, text in strings.items()}
    with pytest.raises(ManifestError):
        Manifest.from_strings(wrong)


def test_a_rectangle_of_one_channel_is_written_as_lists():
    preprocessing = Preprocessing((256, 128), "none", (0.5,), (0.25,))
    strings = dataclasses.replace(MANIFEST, preprocessing=preprocessing).to_strings()
    assert json.loads(strings[PREFIX + "preprocessing"]) == {
        "image_size": [256, 128], "resize": "none", "mean": [0.5], "std": [0.25], "interpolation": "bilinear",
        "dtype": "float32",
    }  # fmt: skip


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing((256, 128), (300, 150)),
        Preprocessing((1, 65536), (65536, 1)),
        Preprocessing(32, (32, 32)),
        Preprocessing(32, "none", (0.5,), (0.25,)),
        Preprocessing(32, 36, (0.5,) * 4, (0.25,) * 4),
        Preprocessing(32, 36, (0.5,) * 14, (0.25,) * 14),
    ],
    ids=str,
)
def test_any_channels_sides_and_resizes_come_back_through_a_file(preprocessing):
    manifest = dataclasses.replace(MANIFEST, preprocessing=preprocessing)
    assert _through_a_file(manifest) == manifest


def test_activations_come_back_through_a_file():
    manifest = dataclasses.replace(MANIFEST, activations={"out": "sigmoid", "aux": "softmax"})
    assert _through_a_file(manifest) == manifest


def test_what_nobody_states_is_the_preprocessing_of_imagenet():
    assert Preprocessing() == Preprocessing(224, 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")


def test_tools_are_none_by_default():
    assert Manifest("121", {}, WeightsOrigin("none", "00"), Preprocessing()).tools == {}


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression", "features", None])
def test_tasks_are_these(task):
    manifest = dataclasses.replace(MANIFEST, task=task)
    assert Manifest.from_strings(manifest.to_strings()) == manifest


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_interpolations_are_these(interpolation):
    manifest = dataclasses.replace(MANIFEST, preprocessing=Preprocessing(interpolation=interpolation))
    assert Manifest.from_strings(manifest.to_strings()) == manifest


@pytest.mark.parametrize("size", [1, 65536])
def test_sizes_from_1_to_65536_are_good(size):
    manifest = dataclasses.replace(MANIFEST, preprocessing=Preprocessing(size, size, std=(5e-324, 1, 1)))
    assert Manifest.from_strings(manifest.to_strings()) == manifest


def test_readable_text_stays_readable_in_the_file():
    strings = dataclasses.replace(MANIFEST, labels=("Katze 🐈",)).to_strings()
    assert strings[PREFIX + "labels"] == '["Katze 🐈"]'


def test_strings_of_others_hold_no_manifest():
    assert Manifest.from_strings({}) is None
    assert Manifest.from_strings({"author": "somebody", "schema": "9"}) is None


def test_strings_of_others_beside_ours_do_no_harm():
    assert Manifest.from_strings({"author": "somebody", **MANIFEST.to_strings()}) == MANIFEST


def test_unknown_facts_of_the_same_schema_are_ignored():
    strings = _changed("colour", '"blue"')
    preprocessing = json.loads(strings[PREFIX + "preprocessing"])
    strings[PREFIX + "preprocessing"] = json.dumps({**preprocessing, "gamma": 2.2})
    assert Manifest.from_strings(strings) == MANIFEST


def test_a_newer_schema_is_refused_with_the_fix():
    assert refused(_changed("schema", "2")) == "schema"
    check_schema("it", 3, 3, "fix")
    with pytest.raises(ManifestError) as caught:
        check_schema("it", 4, 3, "fix")
    assert (caught.value.subject, caught.value.fix) == ("it", "upgrade densenet-deploy")


@pytest.mark.parametrize("text", ["0", "-1", "true", '"1"', "1.0", "null", "[]", "1e999", "[" * 500 + "]" * 500])
def test_an_invalid_schema_is_refused(text):
    assert refused(_changed("schema", text)) == "schema"
    with pytest.raises(ManifestError) as caught:
        check_schema("it", json.loads(text), 10**9, "fix")
    assert (caught.value.subject, caught.value.fix) == ("it", "fix")


def test_a_missing_schema_is_named():
    strings = MANIFEST.to_strings()
    del strings[PREFIX + "schema"]
    assert refused(strings) == "schema"


@pytest.mark.parametrize("key", ["variant", "spec", "weights", "preprocessing"])
def test_a_missing_fact_is_named(key):
    strings = MANIFEST.to_strings()
    del strings[PREFIX + key]
    assert refused(strings) == key


@pytest.mark.parametrize("key", ["labels", "precision", "recipe", "tools"])
def test_facts_with_a_default_may_be_missing(key):
    strings = MANIFEST.to_strings()
    del strings[PREFIX + key]
    assert Manifest.from_strings(strings) is not None


@pytest.mark.parametrize(
    "text",
    ["", "{", "cat", "'cat'", "NaN", "Infinity", "-Infinity", "[NaN]", "__import__('os')", "1" * 5000, "[" * 100_000],
    ids=lambda text: text[:12],
)
@pytest.mark.parametrize("key", ["schema", "variant", "labels", "recipe"])  # the last may be null
def test_a_fact_that_is_not_json_is_refused(key, text):
    assert refused(_changed(key, text)) == key


NO_TEXT = ["1", "null", "[]", "{}", "true"]
NO_OBJECT = ["1", "null", "[]", '"text"', "true"]
NO_PIXELS = [
    *("0", "-1", "65537", "224.0", "true", '"224"', "null", "1e999", "[]", "[224]", "[1, 2, 3]"),
    *("[0, 224]", "[224, 0]", "[224, 65537]", "[224, true]", "[224, null]", '"None"', '["none"]', "{}"),
]
NO_NUMBERS = ["1", "null", "{}", '"none"', '["1", "2", "3"]', "[1, true, 3]", "[1, 1e999, 3]"]
HUGE = f"[1, {10**400}, 3]"
DEEP = "[" * 500 + "]" * 500


@pytest.mark.parametrize(
    ("key", "texts"),
    [
        ("variant", NO_TEXT),
        ("precision", NO_TEXT),
        ("recipe", ["1", "[]", "{}", "true"]),
        ("labels", ["1", "null", '"cat"', "{}", "[1]", '["cat", null]', '[["cat"]]']),
        ("task", ["1", "[]", "{}", "true", '"detection"']),
        ("tools", NO_OBJECT),
        ("activations", NO_OBJECT),
        ("thresholds", ["1", "null", "{}", '["1"]', "[true]", "[1e999]"]),
        ("assumed", ["1", "null", "{}", "[1]", '"mean"']),
        ("spec", NO_OBJECT),
        ("weights", NO_OBJECT),
        ("preprocessing", NO_OBJECT),
    ],
)
def test_a_fact_of_another_type_is_named(key, texts):
    for text in [*texts, DEEP]:
        assert refused(_changed(key, text)).partition("[")[0] == key


@pytest.mark.parametrize(
    ("key", "inner", "texts"),
    [
        ("preprocessing", "image_size", [*NO_PIXELS, '"none"', DEEP]),
        ("preprocessing", "resize", [*NO_PIXELS, DEEP]),
        ("preprocessing", "mean", [*NO_NUMBERS, HUGE, DEEP]),
        ("preprocessing", "std", [*NO_NUMBERS, HUGE, DEEP, "[1, 0, 1]", "[1, 1, -0.5]"]),
        ("preprocessing", "interpolation", [*NO_TEXT, '"lanczos"', DEEP]),
        ("weights", "source", [*NO_TEXT, DEEP]),
        ("weights", "sha256", [*NO_TEXT, DEEP]),
        ("weights", "seed", ["0.5", '"0"', "[]", "true", "1e999", DEEP]),
        ("spec", "growth_rate", ["{}", "[0.5]", '["a"]', "[true]", "[[1]]", "1e999", str(10**400), DEEP]),
        ("tools", "torch", [*NO_TEXT, DEEP]),
    ],
)
def test_an_inner_fact_of_another_type_is_named(key, inner, texts):
    facts = json.loads(MANIFEST.to_strings()[PREFIX + key])
    for text in texts:
        others = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items() if name != inner]
        strings = _changed(key, f"{{{', '.join([*others, f'{json.dumps(inner)}: {text}'])}}}")
        assert refused(strings).partition("[")[0] == f"{key}.{inner}"


@pytest.mark.parametrize(
    ("inner", "text"),
    [
        ("mean", "[]"),
        ("mean", "[1, 2]"),
        ("mean", "[1, 2, 3, 4]"),
        ("std", "[]"),
        ("std", "[1, 2]"),
        ("std", "[1, 2, 3, 4]"),
    ],
)
def test_means_and_deviations_of_different_numbers_are_refused_with_the_path(inner, text):
    facts = json.loads(MANIFEST.to_strings()[PREFIX + "preprocessing"])
    with pytest.raises(ManifestError) as caught:
        Manifest.from_strings(_changed("preprocessing", json.dumps({**facts, inner: json.loads(text)})))
    assert caught.value.subject == PREFIX + "preprocessing.std"
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("inner", ["source", "sha256"])
def test_a_missing_inner_fact_is_named(inner):
    facts = {name: value for name, value in (("source", "none"), ("sha256", "00")) if name != inner}
    assert refused(_changed("weights", json.dumps(facts))) == f"weights.{inner}"


def test_tool_versions_do_not_make_another_artifact():
    assert MANIFEST.same_artifact(dataclasses.replace(MANIFEST, tools={"torch": "3.0"}))


@pytest.mark.parametrize(
    "change",
    [
        {"variant": "169"},
        {"labels": ()},
        {"precision": "fp16"},
        {"recipe": "openvino"},
        {"weights": WeightsOrigin("none", "ab" * 32, seed=8)},
        {"preprocessing": Preprocessing()},
    ],
)
def test_any_other_fact_makes_another_artifact(change):
    assert not MANIFEST.same_artifact(dataclasses.replace(MANIFEST, **change))


def test_weights_are_trained_unless_their_source_is_none():
    assert WeightsOrigin("imagenet", "00").is_trained
    assert not WeightsOrigin("none", "00", 0).is_trained


def test_the_value_range_is_that_of_black_and_white():
    low, high = Preprocessing(mean=(0.5, 0.25, 0.0), std=(0.5, 0.5, 0.25)).value_range
    assert (low, high) == (-1.0, 4.0)


def test_another_network_is_third_party():
    assert dataclasses.replace(MANIFEST, variant="third-party").is_third_party
    assert not MANIFEST.is_third_party


@pytest.mark.parametrize(
    ("assumed", "states"), [((), True), (("resize",), True), (("mean",), False), (("std",), False)]
)
def test_a_normalization_is_stated_if_neither_of_its_numbers_was_assumed(assumed, states):
    assert dataclasses.replace(MANIFEST, assumed=assumed).states_normalization == states


@pytest.mark.parametrize(
    ("preprocessing", "text"),
    [
        (Preprocessing(), "3x224x224, resize 256 bilinear, ImageNet mean/std"),
        (
            Preprocessing(32, 36, (0.5, 0.25, 0), (1, 0.33333, 2), "nearest"),
            "3x32x32, resize 36 nearest, mean 0.5 0.25 0, std 1 0.3333 2",
        ),
        (
            Preprocessing((256, 128), (300, 150), interpolation="bicubic"),
            "3x256x128, resize 300x150 bicubic, ImageNet mean/std",
        ),
        (Preprocessing((256, 128), "none"), "3x256x128, no resize, ImageNet mean/std"),
        (Preprocessing(32, 32, (0.5,) * 3, (0.25,) * 3), "3x32x32, resize 32 bilinear, mean 0.5, std 0.25"),
        (Preprocessing(32, 32, (0.5,), (0.25,)), "1x32x32, resize 32 bilinear, mean 0.5, std 0.25"),
        (
            Preprocessing(32, 32, IMAGENET_MEAN, (0.25,) * 3),
            "3x32x32, resize 32 bilinear, mean 0.485 0.456 0.406, std 0.25",
        ),
        (Preprocessing(32, 32, (0.0,) * 14, (1.0,) * 14), "14x32x32, resize 32 bilinear, mean 0, std 1"),
    ],
)
def test_a_preprocessing_is_printed_on_one_line(preprocessing, text):
    assert str(preprocessing) == text


@pytest.mark.parametrize(("means", "stds"), [(3, 2), (2, 3), (0, 1), (1, 0), (0, 0), (1, 3)])
def test_there_is_a_mean_and_a_deviation_per_channel(means, stds):
    with pytest.raises(UsageError) as caught:
        Preprocessing(mean=(0.5,) * means, std=(0.5,) * stds)
    assert caught.value.subject == "std"
    assert caught.value.why == f"holds {stds} numbers for {means} means"


@pytest.mark.parametrize(
    ("size", "kept", "shape"),
    [
        (32, 32, (3, 32, 32)),
        ((32, 32), 32, (3, 32, 32)),
        ((32, 16), (32, 16), (3, 32, 16)),
        ((16, 32), (16, 32), (3, 16, 32)),
    ],
)
def test_the_shape_is_channels_height_and_width_and_a_square_is_one_number(size, kept, shape):
    assert (Preprocessing(size).image_size, Preprocessing(size).shape) == (kept, shape)
    assert Preprocessing(size) == Preprocessing(kept)


def test_a_resize_to_a_square_is_not_one_of_the_shorter_side():
    assert Preprocessing(32, (36, 36)) != Preprocessing(32, 36)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), Preprocessing()),
        ((299,), Preprocessing(299, 341)),  # 341.7, cut
        ((7,), Preprocessing(7, 8)),
        (((64, 64),), Preprocessing(64, 73)),
        (((64, 32),), Preprocessing((64, 32), (64, 32))),
        ((32, 1), Preprocessing(32, 36, (0.0,), (1.0,))),
        (((64, 32), 4), Preprocessing((64, 32), (64, 32), (0.0,) * 4, (1.0,) * 4)),
        ((224, 3), Preprocessing()),
    ],
)
def test_the_default_is_imagenets_way_for_square_images_of_three_channels(arguments, expected):
    assert Preprocessing.default(*arguments) == expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 32, 32), Preprocessing(32, 36)),
        ((1, 64, 32), Preprocessing((64, 32), (64, 32), (0.0,), (1.0,))),
        ((None, None, None), Preprocessing()),
        ((None, 32, None), Preprocessing(32, 36)),
        ((None, None, 32), Preprocessing(32, 36)),
        ((4, None, None), Preprocessing(224, 256, (0.0,) * 4, (1.0,) * 4)),
    ],
)
def test_an_unknown_side_is_that_of_the_other_or_imagenets(shape, expected):
    assert Preprocessing.for_shape(shape) == expected


def test_the_value_range_is_that_of_the_widest_channel():
    assert Preprocessing(mean=(0.5,), std=(0.5,)).value_range == (-1.0, 1.0)
    assert Preprocessing(mean=(0.5, 0.0), std=(0.25, 1.0)).value_range == (-2.0, 2.0)
