"""The plan of a batch job: its shards cover the images once, in order; it reads itself back, and says what differs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from densenet_deploy.errors import DataError
from densenet_deploy.serving.batch.plan import Plan, digest_of
from densenet_deploy.serving.batch.rows import RowLayout

PLAN = Plan(
    images=10,
    images_sha256=digest_of([f"{number}.png" for number in range(10)]),
    shard_size=4,
    format="csv",
    layout=RowLayout("multiclass", ("cat", "dog"), 2),
    batch=3,
    model={"sha256": "ab", "backend": "onnxruntime", "version": "1.29.0"},
    input={"shape": [3, 32, 32]},
)


def test_shards_cover_the_images_once_in_order():
    shards = list(PLAN.shards(".csv"))
    assert [(shard.number, shard.start, shard.count) for shard in shards] == [(0, 0, 4), (1, 4, 4), (2, 8, 2)]
    assert [shard.name for shard in shards] == ["part-00000.csv", "part-00001.csv", "part-00002.csv"]
    assert len(list(dataclasses.replace(PLAN, images=8).shards(".csv"))) == 2


@pytest.mark.parametrize(("count", "digits"), [(100_000, 5), (100_001, 6)])
def test_the_order_of_the_names_is_that_of_the_shards(count, digits):
    names = [shard.name for shard in dataclasses.replace(PLAN, images=count, shard_size=1).shards(".csv")]
    assert names == sorted(names)
    assert names[0] == f"part-{'0' * digits}.csv"


def test_a_plan_reads_itself_back(tmp_path: Path):
    PLAN.write(tmp_path)
    begun = Plan.read(tmp_path)
    PLAN.require_same(begun, tmp_path)
    assert begun == PLAN


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": 11}, "other images: 10 then, 11 now"),
        ({"images_sha256": digest_of(["0.png"])}, "other images"),
        ({"shard_size": 5}, "was begun with --shard-size 4, now 5"),
        ({"batch": 4}, "was begun with --batch 3, now 4"),
        ({"format": "jsonl"}, "was begun with --format csv, now jsonl"),
        ({"layout": RowLayout("multiclass", ("cat", "dog"), 1)}, "other rows: top_k 2 then, 1 now"),
        ({"model": {**PLAN.model, "version": "1.30.0"}}, "other model: version 1.29.0 then, 1.30.0 now"),
        ({"input": {"shape": [3, 64, 64]}}, "other preparation"),
    ],
)
def test_what_differs_from_the_plan_that_was_begun_is_named(change, words, tmp_path):
    with pytest.raises(DataError) as caught:
        dataclasses.replace(PLAN, **change).require_same(PLAN, tmp_path)
    assert caught.value.subject == str(tmp_path / "_plan.json")
    assert words in caught.value.why


def test_the_fix_is_the_option_that_the_job_was_begun_with(tmp_path):
    with pytest.raises(DataError) as caught:
        dataclasses.replace(PLAN, batch=4).require_same(PLAN, tmp_path)
    assert caught.value.fix == "repeat it with --batch 3, or choose another -o"


def test_a_digest_depends_on_names_and_their_order():
    assert digest_of(["ab", "c"]) != digest_of(["a", "bc"])
    assert digest_of(["a", "b"]) != digest_of(["b", "a"])
    assert digest_of(["\udc80"]) != digest_of(["\udc81"])
