"""Ranges are found again only for the same key, and a miss says what changed. A damaged entry is never used."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest

from densenet_deploy.errors import InputError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.quantization.cache import CalibrationCache, CalibrationKey
from densenet_deploy.quantization.observers.observer import CalibrationConfig, ChannelRanges
from densenet_deploy.quantization.observers.percentile import PercentileOptions

PLAN = CalibrationConfig("percentile", PercentileOptions(percentile=99.9), ("features/relu0", "bus"))
DATA = {f"cat/{index}.jpg": f"{index:064x}" for index in range(40)}
KEY = CalibrationKey("a" * 64, DATA, Preprocessing(), PLAN)
RANGES = {
    "features/relu0": ChannelRanges(np.float32([0, 0]), np.float32([6.5, 1e-30])),
    "bus": ChannelRanges(np.float32([-1, -2, -3]), np.float32([1, 2, 3])),
}


@pytest.fixture
def cache(tmp_path):
    cache = CalibrationCache(tmp_path / "cache")
    cache.store(KEY, RANGES)
    return cache


def files(cache):
    payload, facts = sorted(cache.folder.iterdir(), key=lambda path: path.suffix, reverse=True)
    return payload, facts


def test_the_same_key_finds_the_same_bits(cache):
    same_key = CalibrationKey("a" * 64, dict(reversed(DATA.items())), Preprocessing(), PLAN)
    found = CalibrationCache(cache.folder).lookup(same_key)
    assert list(found) == list(RANGES)
    for name, ranges in RANGES.items():
        np.testing.assert_array_equal(found[name].low, ranges.low)
        np.testing.assert_array_equal(found[name].high, ranges.high)
        assert found[name].high.dtype == np.float32


def test_defaults_spelled_out_are_the_same_key():
    default = CalibrationConfig("percentile")
    assert (
        dataclasses.replace(KEY, config=default).digest
        == dataclasses.replace(KEY, config=CalibrationConfig("percentile", PercentileOptions())).digest
    )


CHANGES = {
    "model": ({"model": "b" * 64}, ["model changed (aaaaaaaaaaa… → bbbbbbbbbbb…)"]),
    "a file added": ({"data": DATA | {"cat/x.jpg": "f" * 64}}, ["data changed (files: 1 added)"]),
    "files modified": ({"data": DATA | {"cat/1.jpg": "f" * 64}}, ["data changed (files: 1 modified)"]),
    "a file renamed": (
        {"data": {name.replace("/7.", "/seven."): digest for name, digest in DATA.items()}},
        ["data changed (files: 1 added, 1 removed)"],
    ),
    "preprocessing": (
        {"preprocessing": Preprocessing(resize=240)},
        ["preprocessing changed (resize 256 → 240)"],
    ),
    "options": (
        {"config": dataclasses.replace(PLAN, options=PercentileOptions(percentile=99.99))},
        ["options changed (percentile 99.9 → 99.99)"],
    ),
    "observer": (
        {"config": CalibrationConfig("minmax", tensors=PLAN.tensors)},
        ["observer changed (percentile → minmax)", "options changed (bins 1024 → None"],
    ),
    "tensors": (
        {"config": dataclasses.replace(PLAN, tensors=("bus", "logits", "pool"))},
        ["tensors changed (2 added, 1 removed)"],
    ),
    "order of tensors": (
        {"config": dataclasses.replace(PLAN, tensors=("bus", "features/relu0"))},
        ["tensors changed (another order)"],
    ),
    "all tensors": ({"config": dataclasses.replace(PLAN, tensors=None)}, ["tensors changed ([", "→ None)"]),
    "two parts": (
        {"model": "b" * 64, "preprocessing": Preprocessing(image_size=192)},
        ["model changed", "; preprocessing changed (image_size 224 → 192)"],
    ),
}


@pytest.mark.parametrize(("change", "phrases"), CHANGES.values(), ids=CHANGES)
def test_any_change_is_a_miss_that_names_it(change, phrases, cache):
    miss = cache.lookup(dataclasses.replace(KEY, **change))
    assert isinstance(miss, str)
    assert miss.startswith("since the nearest cached run: ")
    assert all(phrase in miss for phrase in phrases)
    assert miss.count(" changed (") == len([phrase for phrase in phrases if "changed" in phrase])


def test_the_nearest_entry_explains_the_miss(cache):
    cache.store(CalibrationKey("b" * 64, {}, Preprocessing(resize=300), CalibrationConfig("mse")), RANGES)
    miss = cache.lookup(dataclasses.replace(KEY, preprocessing=Preprocessing(resize=240)))
    assert miss == "since the nearest cached run: preprocessing changed (resize 256 → 240)"


def test_a_model_and_data_of_others_explain_nothing(cache):
    other = dataclasses.replace(KEY, model="b" * 64, data={"other.png": "c" * 64})
    assert cache.lookup(other) == "neither this model nor these data are cached yet"


def test_an_entry_in_another_format_of_the_cache_is_a_miss(cache):
    _, facts = files(cache)
    entry = json.loads(facts.read_text())
    entry["key"]["format"] = 0
    facts.unlink()
    facts.with_stem("0" * 64).write_text(json.dumps(entry))
    assert cache.lookup(KEY) == "since the nearest cached run: format changed (0 → 1)"


def test_an_empty_cache_says_so(tmp_path):
    assert CalibrationCache(tmp_path / "none").lookup(KEY) == "nothing is cached yet"


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def change_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def nest_deeply(path):
    path.write_text("[" * 100_000)


@pytest.mark.parametrize("damage", [cut, change_a_byte, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_a_damaged_payload_is_a_miss_and_replaced(damage, cache):
    payload, _ = files(cache)
    damage(payload)
    miss = cache.lookup(KEY)
    assert isinstance(miss, str)
    assert "damaged" in miss
    cache.store(KEY, RANGES)
    assert list(cache.lookup(KEY)) == list(RANGES)


@pytest.mark.parametrize(
    "damage", [cut, nest_deeply, lambda path: path.write_text("{}"), lambda path: path.write_text("")]
)
def test_damaged_facts_are_a_miss_and_explain_nothing(damage, cache):
    _, facts = files(cache)
    damage(facts)
    assert "damaged" in cache.lookup(KEY)
    assert cache.lookup(dataclasses.replace(KEY, model="b" * 64)) == "nothing is cached yet"


def test_an_entry_copied_to_another_key_is_not_used(cache):
    other = dataclasses.replace(KEY, model="b" * 64)
    for path in files(cache):
        shutil.copy(path, path.with_name(other.digest + path.suffix))
    assert "another key" in cache.lookup(other)


def test_a_pickle_with_the_right_hash_is_not_loaded(cache):
    payload, facts = files(cache)
    payload.write_bytes(b"\x80\x04K\x01.")
    entry = json.loads(facts.read_text()) | {"sha256": hashlib.sha256(payload.read_bytes()).hexdigest()}
    facts.write_text(json.dumps(entry))
    assert "damaged" in cache.lookup(KEY)


def test_without_its_facts_a_payload_is_not_an_entry(cache):
    _, facts = files(cache)
    facts.unlink()
    assert cache.lookup(KEY) == "nothing is cached yet"


def test_the_default_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert CalibrationCache().folder == tmp_path / "densenet-deploy" / "calibration"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert CalibrationCache().folder == tmp_path / "home" / ".cache" / "densenet-deploy" / "calibration"


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError):
        CalibrationCache(tmp_path / "file").store(KEY, RANGES)


def test_file_names_of_any_bytes_are_kept(tmp_path):
    cache = CalibrationCache(tmp_path)
    key = dataclasses.replace(KEY, data={"caf\udce9 \U0001f431\n.jpg": "0" * 64})
    cache.store(key, RANGES)
    assert list(cache.lookup(key)) == list(RANGES)
