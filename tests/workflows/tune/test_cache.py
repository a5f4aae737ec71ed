"""The cached results of `tune`: steps by their keys, in one file that is whole after every step."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from densenet_deploy.errors import DataError
from densenet_deploy.workflows.tune.cache import ResultCache

SPEED = {"step": "speed", "trials": [{"model": "abc", "threads": 1}]}
FORM = {"step": "form", "model": "abc"}


@dataclass(frozen=True)
class Timed:
    ms: float


def _no_work():
    raise AssertionError("this step was done before")


def test_a_step_is_done_once_by_whatever_run(tmp_path):
    path = tmp_path / "state.json"
    first = ResultCache(path)
    assert not path.exists()
    assert first.get(Timed, SPEED, lambda: Timed(1.5)) == Timed(1.5)
    second = ResultCache(path)
    assert second.get(Timed, SPEED, _no_work) == Timed(1.5)
    assert (first.done, first.reused, second.done, second.reused) == (1, 0, 0, 1)


def test_another_key_is_another_step(tmp_path):
    results = ResultCache(tmp_path / "state.json")
    results.get(Timed, SPEED, lambda: Timed(1.5))
    assert results.get(Timed, SPEED | {"rounds": 3}, lambda: Timed(2.5)) == Timed(2.5)


def test_a_result_that_is_no_longer_valid_is_replaced(tmp_path):
    results = ResultCache(tmp_path / "state.json")
    results.get(Timed, FORM, lambda: Timed(1.5))
    assert results.get(Timed, FORM, lambda: Timed(2.5), lambda found: found.ms > 2) == Timed(2.5)
    assert results.recall(Timed, FORM) == Timed(2.5)


def test_an_interrupted_step_changes_nothing(tmp_path):
    path = tmp_path / "state.json"
    ResultCache(path).get(Timed, SPEED, lambda: Timed(1.5))
    before = path.read_bytes()

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ResultCache(path).get(Timed, FORM, interrupted)
    assert path.read_bytes() == before


def test_measuring_again_forgets_timings_and_keeps_files(tmp_path):
    path = tmp_path / "state.json"
    results = ResultCache(path)
    results.get(Timed, SPEED, lambda: Timed(1.5))
    results.get(Timed, FORM, lambda: Timed(2.5))
    again = ResultCache(path, measure_again=True)
    assert again.recall(Timed, SPEED) is None
    assert again.recall(Timed, FORM) == Timed(2.5)


@pytest.mark.parametrize("edit", [lambda value: value.pop("ms"), lambda value: value.update(ms="fast")])
def test_a_result_that_was_edited_by_hand_is_measured_again(edit, tmp_path):
    path = tmp_path / "state.json"
    ResultCache(path).get(Timed, SPEED, lambda: Timed(1.5))
    content = json.loads(path.read_text())
    for entry in content["entries"].values():
        edit(entry["value"])
    path.write_text(json.dumps(content))
    assert ResultCache(path).get(Timed, SPEED, lambda: Timed(3.5)) == Timed(3.5)


def test_an_older_format_is_forgotten(tmp_path):
    path = tmp_path / "state.json"
    ResultCache(path).get(Timed, SPEED, lambda: Timed(1.5))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    assert ResultCache(path).recall(Timed, SPEED) is None


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"kind": "another"}', "[" * 100_000, '{"kind": 1}'])
def test_another_file_is_refused_and_unchanged(text, tmp_path):
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        ResultCache(path)
    assert caught.value.subject == str(path)
    assert path.read_text() == text
