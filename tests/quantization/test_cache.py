"""Ranges are found again only for the same key, and a miss says what changed. A damaged entry is never used."""

import dataclasses
import hashlib
import json
import logging
import os
import shutil

import numpy as np
import pytest

from densenet_deploy.errors import DensenetDeployError, InputError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.quantization.cache import CalibrationCache, CalibrationKey
from densenet_deploy.quantization.observers.observer import CalibrationConfig, ChannelRanges
from densenet_deploy.quantization.observers.percentile import PercentileOptions

PLAN = CalibrationConfig("percentile", PercentileOptions(percentile=99.9), ("features/relu0", "bus"))
DATA = {f"cat/{index}.jpg": f"{index:064x}" for index in range(40)}
KEY = CalibrationKey("a" * 64, DATA, Preprocessing(), PLAN)
RANGES = {
    "one": ChannelRanges(np.float32([-0.5]), np.float32([0.25])),
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


def test_the_key_is_the_digest_of_its_parts_as_text():
    """Entries that earlier versions made are found again: another text would need another format."""
    key = CalibrationKey(
        "ab",
        {"b.png": "02", "a.png": "01"},
        Preprocessing(8, 9, (0.0, 0.0, 0.0), (1.0, 1.0, 0.5), "bicubic"),
        CalibrationConfig(tensors=("relu",)),
    )
    text = (
        '{"data":{"a.png":"01","b.png":"02"},"format":1,"model":"ab","observer":"minmax","options":{"headroom":0.1},'
        '"preprocessing":{"image_size":8,"interpolation":"bicubic","mean":[0.0,0.0,0.0],"resize":9,'
        '"std":[1.0,1.0,0.5]},"tensors":["relu"]}'
    )
    assert key.parts() == json.loads(text)
    assert key.digest == hashlib.sha256(text.encode()).hexdigest()


def test_a_key_with_nan_has_no_digest():
    key = dataclasses.replace(KEY, preprocessing=Preprocessing(mean=(float("nan"), 0.0, 0.0)))
    with pytest.raises(ValueError, match="JSON"):
        _ = key.digest


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
    "mean": (
        {"preprocessing": Preprocessing(mean=(0.5, 0.25, 0.75))},
        ["preprocessing changed (mean [0.485, 0.456, 0.406] → [0.5, 0.25, 0.75])"],
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
    "all tensors": (
        {"config": dataclasses.replace(PLAN, tensors=None)},
        ["tensors changed (['features/relu0', 'bus'] → None)"],
    ),
    "two parts": (
        {"model": "b" * 64, "preprocessing": Preprocessing(image_size=192)},
        ["model changed", "; preprocessing changed (image_size 224 → 192)"],
    ),
}


@pytest.mark.parametrize(("change", "phrases"), CHANGES.values(), ids=CHANGES)
def test_any_change_is_a_miss_that_names_it(change, phrases, cache):
    miss = cache.lookup(dataclasses.replace(KEY, **change))
    assert isinstance(miss, str)
    assert miss.startswith("not in the cache; unlike the closest run there: ")
    assert all(phrase in miss for phrase in phrases)
    assert miss.count(" changed (") == len([phrase for phrase in phrases if "changed" in phrase])


def with_parts(cache, **parts):
    """Change the parts of the only key in a cache, as an older version might have written them; None removes one."""
    _, facts = files(cache)
    entry = json.loads(facts.read_text())
    entry["key"] = {name: value for name, value in (entry["key"] | parts).items() if value is not None}
    facts.unlink()
    facts.with_stem("0" * 64).write_text(json.dumps(entry))


OLDER = {
    "format": ({"format": 0}, "format changed (0 → 1)"),
    "without data": ({"data": None}, "data changed (files: 40 added)"),
    "all tensors": ({"tensors": None}, "tensors changed (None → ['features/relu0', 'bus'])"),
    "a long name": ({"observer": "one of another version"}, "observer changed (one of another version → percentile)"),
    "an object": ({"observer": {"a": 1}}, "observer changed ({'a': 1} → percentile)"),
    "many numbers": ({"tensors": list(range(99))}, f"tensors changed ({str(list(range(99)))[:59]}… → ['featur"),
}


@pytest.mark.parametrize(("parts", "phrase"), OLDER.values(), ids=OLDER)
def test_an_entry_of_an_older_version_is_a_miss_that_says_so(parts, phrase, cache):
    with_parts(cache, **parts)
    assert cache.lookup(KEY).startswith(f"not in the cache; unlike the closest run there: {phrase}")


def test_an_entry_without_preprocessing_is_a_miss_that_says_so(cache):
    with_parts(cache, preprocessing=None)
    assert cache.lookup(KEY).startswith(
        "not in the cache; unlike the closest run there: preprocessing changed (None → {'image_size"
    )


def test_the_nearest_entry_explains_the_miss(cache):
    """It differs in one part, the other in three, of which `data` comes first in every order."""
    cache.store(dataclasses.replace(KEY, data={"x.png": "0" * 64}, config=CalibrationConfig("mse")), RANGES)
    miss = cache.lookup(dataclasses.replace(KEY, preprocessing=Preprocessing(resize=240)))
    assert miss == "not in the cache; unlike the closest run there: preprocessing changed (resize 256 → 240)"


@pytest.mark.parametrize("newest", [200, 300])
def test_of_equally_near_entries_the_newest_explains_the_miss(newest, tmp_path):
    cache = CalibrationCache(tmp_path)
    for resize in (200, 300):
        key = dataclasses.replace(KEY, preprocessing=Preprocessing(resize=resize))
        cache.store(key, RANGES)
        os.utime(tmp_path / f"{key.digest}.json", (1000, 2000 if resize == newest else 1000))
    assert (
        cache.lookup(KEY)
        == f"not in the cache; unlike the closest run there: preprocessing changed (resize {newest} → 256)"
    )


def test_an_entry_of_the_same_data_or_of_the_same_model_is_related(cache):
    for change in ({"model": "b" * 64}, {"data": {}}):
        assert "unlike the closest" in cache.lookup(dataclasses.replace(KEY, **change))


def test_a_model_and_data_of_others_explain_nothing(cache):
    other = dataclasses.replace(KEY, model="b" * 64, data={"other.png": "c" * 64})
    assert cache.lookup(other) == "neither this model nor these data are cached yet"


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


OTHER_JSON = (
    *("", "{}", "[]", "1", '{"key": {}}', '{"sha256": ""}', '{"key": [], "sha256": ""}'),
    '{"key": {}, "sha256": "", "more": 1}',
)


@pytest.mark.parametrize("damage", [cut, nest_deeply, *OTHER_JSON], ids=range(2 + len(OTHER_JSON)))
def test_damaged_facts_are_a_miss_and_explain_nothing(damage, cache, caplog):
    _, facts = files(cache)
    facts.write_text(damage) if isinstance(damage, str) else damage(facts)
    assert "damaged" in cache.lookup(KEY)
    with caplog.at_level(logging.WARNING):
        assert cache.lookup(dataclasses.replace(KEY, model="b" * 64)) == "nothing is cached yet"
    (record,) = caplog.records
    assert str(facts) in record.getMessage()


@pytest.mark.parametrize("data", [[], ["a", []], "text", 3, None, {"a": []}])
@pytest.mark.parametrize("tensors", [["a", []], [[]], "text", None])
def test_parts_of_another_type_are_a_miss_too(data, tensors, cache):
    _, facts = files(cache)
    entry = json.loads(facts.read_text())
    entry["key"] |= {"data": data, "plan": tensors, "tensors": tensors}
    facts.write_text(json.dumps(entry))
    found = cache.lookup(dataclasses.replace(KEY, data={"other.png": "c"}))
    assert found.startswith("not in the cache; unlike the closest run there: data changed (")


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


def test_an_entry_becomes_valid_last(tmp_path):
    """What was interrupted before the facts were written is no entry."""
    (tmp_path / f"{KEY.digest}.npz").mkdir()
    with pytest.raises(InputError):
        CalibrationCache(tmp_path).store(KEY, RANGES)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_an_entry_is_on_the_disk_before_it_is_valid(monkeypatch, tmp_path):
    """Numbers, then their name in the folder, then the facts: a loss of power leaves no entry without its numbers."""
    synced, sync = [], os.fsync

    def recording(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", recording)
    CalibrationCache(tmp_path).store(KEY, RANGES)
    payload, facts = (tmp_path / f"{KEY.digest}{suffix}" for suffix in (".npz", ".json"))
    assert synced == [path.stat().st_ino for path in (payload, tmp_path, facts, tmp_path)]


def test_what_the_system_refuses_to_read_is_an_error_of_its_path(cache):
    payload, _ = files(cache)
    payload.unlink()
    payload.mkdir()
    with pytest.raises(InputError) as caught:
        cache.lookup(KEY)
    assert caught.value.subject == str(payload)


def test_a_folder_that_cannot_be_listed_is_an_error_of_its_path(tmp_path):
    (tmp_path / "loop.json").symlink_to("loop.json")
    with pytest.raises(DensenetDeployError) as caught:
        CalibrationCache(tmp_path).lookup(KEY)
    assert caught.value.subject == str(tmp_path)


def test_file_names_of_any_bytes_are_kept(tmp_path):
    cache = CalibrationCache(tmp_path)
    key = dataclasses.replace(KEY, data={"caf\udce9 \U0001f431\n.jpg": "0" * 64})
    cache.store(key, RANGES)
    assert list(cache.lookup(key)) == list(RANGES)
