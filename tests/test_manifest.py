"""What travels with an artifact comes back as it was, or is refused by the name of the fact that is wrong."""

from __future__ import annotations

import dataclasses
import io
import json
import os

import pytest

from densenet_deploy.errors import ManifestError
from densenet_deploy.manifest import PREFIX, SCHEMA, Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.onnx_envelope import append_metadata, read_metadata

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
    with pytest.raises(ManifestError, match=rf"schema: is {SCHEMA + 1}, newer than {SCHEMA}.*upgrade"):
        Manifest.from_strings(_changed("schema", str(SCHEMA + 1)))


@pytest.mark.parametrize("text", ["0", "-1", "true", '"1"', "1.0", "null", "[]", "1e999", "[" * 500 + "]" * 500])
def test_an_invalid_schema_is_refused(text):
    with pytest.raises(ManifestError, match=r"densenet_deploy\.schema: is .*, not a schema number"):
        Manifest.from_strings(_changed("schema", text))


def test_a_missing_schema_is_named():
    strings = MANIFEST.to_strings()
    del strings[PREFIX + "schema"]
    with pytest.raises(ManifestError, match=r"densenet_deploy\.schema: is None"):
        Manifest.from_strings(strings)


@pytest.mark.parametrize("key", ["variant", "spec", "weights", "preprocessing"])
def test_a_missing_fact_is_named(key):
    strings = MANIFEST.to_strings()
    del strings[PREFIX + key]
    with pytest.raises(ManifestError, match=rf"densenet_deploy\.{key}: is missing"):
        Manifest.from_strings(strings)


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
@pytest.mark.parametrize("key", ["schema", "variant", "labels"])
def test_a_fact_that_is_not_json_is_refused(key, text):
    with pytest.raises(ManifestError, match=rf"densenet_deploy\.{key}: is not JSON"):
        Manifest.from_strings(_changed(key, text))


NO_TEXT = ["1", "null", "[]", "{}", "true"]
NO_OBJECT = ["1", "null", "[]", '"text"', "true"]
NO_PIXELS = ["0", "-1", "65537", "224.0", "true", '"224"', "null", "1e999", "[224]"]
NO_TRIPLE = ["1", "null", "[]", "[1, 2]", "[1, 2, 3, 4]", '["1", "2", "3"]', "[1, true, 3]", "[1, 1e999, 3]"]
HUGE = f"[1, {10**400}, 3]"
DEEP = "[" * 500 + "]" * 500


@pytest.mark.parametrize(
    ("key", "texts"),
    [
        ("variant", NO_TEXT),
        ("precision", NO_TEXT),
        ("recipe", ["1", "[]", "{}", "true"]),
        ("labels", ["1", "null", '"cat"', "{}", "[1]", '["cat", null]', '[["cat"]]']),
        ("tools", NO_OBJECT),
        ("spec", NO_OBJECT),
        ("weights", NO_OBJECT),
        ("preprocessing", NO_OBJECT),
    ],
)
def test_a_fact_of_another_type_is_named(key, texts):
    for text in [*texts, DEEP]:
        with pytest.raises(ManifestError, match=rf"densenet_deploy\.{key}(\[\d+\])?: is .*, not "):
            Manifest.from_strings(_changed(key, text))


@pytest.mark.parametrize(
    ("key", "inner", "texts"),
    [
        ("preprocessing", "image_size", [*NO_PIXELS, DEEP]),
        ("preprocessing", "resize", [*NO_PIXELS, DEEP]),
        ("preprocessing", "mean", [*NO_TRIPLE, HUGE, DEEP]),
        ("preprocessing", "std", [*NO_TRIPLE, HUGE, DEEP, "[1, 0, 1]", "[1, 1, -0.5]"]),
        ("preprocessing", "interpolation", [*NO_TEXT, DEEP]),
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
        with pytest.raises(ManifestError, match=rf"densenet_deploy\.{key}\.{inner}(\[\d+\])?: is .*, not "):
            Manifest.from_strings(_changed(key, f"{{{', '.join([*others, f'{json.dumps(inner)}: {text}'])}}}"))


@pytest.mark.parametrize("inner", ["source", "sha256"])
def test_a_missing_inner_fact_is_named(inner):
    facts = {name: value for name, value in (("source", "none"), ("sha256", "00")) if name != inner}
    with pytest.raises(ManifestError, match=rf"densenet_deploy\.weights\.{inner}: is missing"):
        Manifest.from_strings(_changed("weights", json.dumps(facts)))


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
