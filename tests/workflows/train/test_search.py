"""`train --search`: the candidates, the rungs and what they cost, what goes on, and the files and figures it leaves."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import densenet_deploy as dd
from densenet_deploy.errors import OutputExistsError, UnknownNameError, UsageError
from densenet_deploy.facts import Architecture
from densenet_deploy.training.options import TrainOptions
from densenet_deploy.workflows.train.report import SearchTrial
from densenet_deploy.workflows.train.search import (
    SearchOptions,
    candidates_of,
    epochs_of,
    promoted,
    rungs_of,
)

SMALL = Architecture(growth_rate=4, blocks=(1, 1), init_features=8, stem="cifar")
OPTIONS = TrainOptions(epochs=2, batch_size=4, lr=0.01, flip=False, check=False)
FACTS = {"architecture": SMALL, "image_size": 16, "resize": 16}


def trial(name: str, top1: float, macs: int) -> SearchTrial:
    return SearchTrial(
        candidate=name, variant="", parameters=1, macs=macs, epochs=1, top1=top1, best_epoch=1, checkpoint=None
    )


@pytest.mark.parametrize(
    ("candidates", "epochs", "budget", "expected"),
    [
        (1, 5, None, [(1, 5)]),
        (3, 9, None, [(3, 9)]),
        (4, 9, None, [(4, 3), (3, 9)]),
        (9, 9, None, [(9, 3), (3, 9)]),
        (10, 9, None, [(10, 1), (4, 3), (3, 9)]),
        (27, 30, None, [(27, 3), (9, 10), (3, 30)]),
        (10, 2, None, [(10, 1), (3, 2)]),  # two rungs of one epoch would train the same networks twice
        (4, 1, None, [(4, 1)]),
        (4, 90, 39, [(4, 3), (3, 9)]),
        (4, 90, 38, [(4, 2), (3, 8)]),
        (4, 90, 4, [(4, 1)]),
        (3, 90, 8, [(3, 2)]),
    ],
)
def test_rungs_grow_threefold_within_the_budget(candidates, epochs, budget, expected) -> None:
    rungs = rungs_of(candidates, epochs, budget)
    assert [(rung.candidates, rung.epochs) for rung in rungs] == expected
    assert epochs_of(rungs) == sum(count * length for count, length in expected)
    assert budget is None or epochs_of(rungs) <= budget


def test_a_budget_below_one_epoch_of_each_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        rungs_of(4, 90, 3)
    assert caught.value.subject == "budget=3"


def test_whole_fronts_go_on_first_and_the_last_one_is_thinned_by_distance() -> None:
    best, cheap = trial("best", 0.9, 1000), trial("cheap", 0.5, 10)
    near, middle = trial("near", 0.89, 950), trial("middle", 0.7, 100)
    worse = trial("worse", 0.4, 2000)
    trials = [worse, near, cheap, middle, best]
    assert [one.candidate for one in promoted(trials, 4)] == ["near", "cheap", "middle", "best"]
    assert [one.candidate for one in promoted(trials, 3)] == ["cheap", "middle", "best"]
    assert [one.candidate for one in promoted(trials, 2)] == ["cheap", "best"]
    assert [one.candidate for one in promoted(trials, 1)] == ["best"]
    assert promoted(trials, 5) == trials


def test_the_second_front_passes_after_the_first() -> None:
    trials = [trial("second", 0.8, 20), trial("first", 0.9, 10), trial("third", 0.7, 30)]
    assert [one.candidate for one in promoted(trials, 2)] == ["second", "first"]


def test_candidates_are_every_combination_on_top_of_what_is_stated() -> None:
    found = candidates_of(SearchOptions(["growth-rate=4,8", "bn-size=0,2"]), {"architecture": SMALL, "channels": 1})
    assert [one.name for one in found] == [
        "growth-rate=4,bn-size=0",
        "growth-rate=4,bn-size=2",
        "growth-rate=8,bn-size=0",
        "growth-rate=8,bn-size=2",
    ]
    assert found[3].architecture == dataclasses.replace(SMALL, growth_rate=8, bn_size=2)
    assert (found[3].spec.growth_rate, found[3].spec.bn_size, found[3].spec.in_channels) == (8, 2, 1)


def test_a_searched_variant_is_the_base_of_the_other_numbers() -> None:
    found = candidates_of(SearchOptions(["variant=121,169", "depth=0.5"]), {})
    assert [(one.variant, one.spec.blocks) for one in found] == [
        ("121", (3, 6, 12, 8)),
        ("169", (3, 6, 16, 16)),
    ]


@pytest.mark.parametrize(
    ("sweeps", "subject"),
    [
        ([], "search"),
        (["growth-rate=4", "growth-rate=8"], "search growth-rate"),
        (["growth-rate="], "--search growth-rate="),
        (["growth-rate=x"], "--search growth-rate=x"),
        (["growth-rate=4,4"], "search growth-rate=4"),
        (
            ["growth-rate=" + ",".join(map(str, range(1, 11))), "init-features=" + ",".join(map(str, range(2, 22, 2)))],
            "search",
        ),
    ],
)
def test_what_cannot_be_searched_is_a_usage_error(sweeps, subject) -> None:
    with pytest.raises(UsageError) as caught:
        candidates_of(SearchOptions(sweeps), {"architecture": SMALL})
    assert caught.value.subject == subject


def test_an_unknown_number_is_named() -> None:
    with pytest.raises(UnknownNameError) as caught:
        SearchOptions(["widths=4"])
    assert caught.value.subject == "widths"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two classes that differ in brightness, of 20 images each."""
    folder, rng = tmp_path_factory.mktemp("search"), np.random.default_rng(0)
    for label, grey in (("dark", 60), ("light", 190)):
        (folder / label).mkdir()
        for number in range(20):
            image = np.clip(grey + rng.normal(0, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / label / f"{number}.png")
    return folder


@pytest.mark.slow
def test_two_candidates_in_memory_are_trained_to_the_end_and_timed(data) -> None:
    model = dd.train(data, OPTIONS, search=SearchOptions(["growth-rate=2,4"]), **FACTS)
    report = model.report.search
    assert [(rung.candidates, rung.epochs) for rung in report.rungs] == [(2, 2)]
    assert all(one.latency_ms > 0 and one.checkpoint is None for one in report.trials)
    assert report.figure is None
    assert f"growth-rate={model.manifest.spec['growth_rate']}" == report.chosen


@pytest.fixture(scope="module")
def searched(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched") / "out"
    search = SearchOptions(["growth-rate=2,4,6,8"])
    return folder, dd.train(data, OPTIONS, search=search, out=folder, **FACTS)


@pytest.mark.slow
def test_a_search_leaves_the_best_network_and_says_what_it_tried(searched) -> None:
    folder, model = searched
    report = model.report.search
    assert [(rung.candidates, rung.epochs) for rung in report.rungs] == [(4, 1), (3, 2)]
    assert report.epochs == 10
    assert [one.epochs for one in report.trials] == [2, 2, 2, 1]
    last = report.trials[:3]
    assert all(one.latency_ms > 0 and one.latency_interval_ms[0] <= one.latency_ms for one in last)
    assert any(one.on_front for one in last)
    assert report.trials[3].latency_ms is None
    assert not report.trials[3].on_front
    assert [one.macs for one in last] == sorted(one.macs for one in last)
    best = max(last, key=lambda one: (one.top1, -one.macs))
    assert report.chosen == best.candidate
    assert model.report.top1 == best.top1
    assert model.report.epochs == 2
    growth = int(best.candidate.removeprefix("growth-rate="))
    assert dd.load(model.report.checkpoint).manifest.spec["growth_rate"] == growth
    assert model.report.checkpoint == folder / "best.safetensors"
    assert model.report.checkpoint.read_bytes() == best.checkpoint.read_bytes()
    assert report.figure == folder / "search.png"
    assert json.loads((folder / "search.json").read_text())["chosen"] == report.chosen
    assert f"kept {report.chosen}" in model.report.to_text()
    assert any("chosen on the images" in note for note in model.report.notes)


@pytest.mark.slow
def test_another_search_does_not_replace_it_and_a_resumed_one_repeats_it(searched, data) -> None:
    folder, model = searched
    search = SearchOptions(["growth-rate=2,4,6,8"])
    with pytest.raises(OutputExistsError):
        dd.train(data, OPTIONS, search=search, out=folder, **FACTS)
    again = dd.train(data, OPTIONS, search=search, out=folder, resume=True, **FACTS)
    assert again.report.weights_sha256 == model.report.weights_sha256
    assert [one.top1 for one in again.report.search.trials] == [one.top1 for one in model.report.search.trials]


def test_weights_and_several_processes_are_refused(data, monkeypatch) -> None:
    search = SearchOptions(["growth-rate=2,4"])
    with pytest.raises(UsageError) as caught:
        dd.train(data, OPTIONS, search=search, weights="imagenet")
    assert caught.value.subject == "search"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError) as caught:
        dd.train(data, OPTIONS, search=search, **FACTS)
    assert "torchrun" in caught.value.fix
