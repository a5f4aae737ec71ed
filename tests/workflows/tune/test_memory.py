"""What `tune` remembers: steps by their keys, in one file that is whole after every step."""

from __future__ import annotations

import json

import pytest

from densenet_deploy.errors import DataError
from densenet_deploy.workflows.tune.memory import Memory

HEAT = {"step": "heat", "field": [{"model": "abc", "threads": 1}]}
FORM = {"step": "form", "model": "abc"}


def _read(facts):
    return facts["ms"]


def _work(value):
    return lambda: (value, {"ms": value})


def _unwanted():
    raise AssertionError("this step was done before")


def test_a_step_is_done_once_whoever_reads_the_file(tmp_path):
    path = tmp_path / "state.json"
    first = Memory(path)
    assert not path.exists()
    assert first.step(HEAT, _read, _work(1.5)) == 1.5
    second = Memory(path)
    assert second.step(HEAT, _read, _unwanted) == 1.5
    assert (first.done, first.reused, second.done, second.reused) == (1, 0, 0, 1)


def test_another_key_is_another_step(tmp_path):
    memory = Memory(tmp_path / "state.json")
    memory.step(HEAT, _read, _work(1.5))
    assert memory.step(HEAT | {"rounds": 3}, _read, _work(2.5)) == 2.5


def test_an_interrupted_step_leaves_what_was_there(tmp_path):
    path = tmp_path / "state.json"
    Memory(path).step(HEAT, _read, _work(1.5))
    before = path.read_bytes()

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Memory(path).step(FORM, _read, interrupted)
    assert path.read_bytes() == before


def test_measuring_again_forgets_timings_and_keeps_files(tmp_path):
    path = tmp_path / "state.json"
    memory = Memory(path)
    memory.step(HEAT, _read, _work(1.5))
    memory.step(FORM, _read, _work(2.5))
    again = Memory(path, measure_again=True)
    assert again.recall(HEAT, _read) is None
    assert again.recall(FORM, _read) == 2.5


def test_what_was_edited_by_hand_is_done_again(tmp_path):
    path = tmp_path / "state.json"
    Memory(path).step(HEAT, _read, _work(1.5))
    content = json.loads(path.read_text())
    for entry in content["entries"].values():
        del entry["value"]["ms"]
    path.write_text(json.dumps(content))
    assert Memory(path).step(HEAT, _read, _work(3.5)) == 3.5


def test_an_older_format_is_forgotten(tmp_path):
    path = tmp_path / "state.json"
    Memory(path).step(HEAT, _read, _work(1.5))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 0}))
    assert Memory(path).recall(HEAT, _read) is None


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"kind": "another"}', "[" * 100_000, '{"kind": 1}'])
def test_another_file_is_refused_and_left_alone(text, tmp_path):
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(DataError, match="state of a tuning"):
        Memory(path)
    assert path.read_text() == text
