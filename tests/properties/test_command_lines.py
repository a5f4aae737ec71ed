"""Every command line, however odd, ends in a documented exit code with one line that names what it did not like."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from warnings import catch_warnings

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.cli import main
from densenet_deploy.errors import printable
from tests.faults.harness import LINE, Ended
from tests.faults.mutations import DOCUMENTED
from tests.properties.command_lines import WORKING, InvalidLine, invalid_lines, random_lines, spellings_of
from tests.properties.holds import holds_for


@pytest.fixture(scope="module")
def place(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a few images, and files that are not what their names say."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "tiny.onnx").write_bytes(tiny_onnx.read_bytes())
    for name in ("image.png", "few/a.png", "classes/cat/a.png", "classes/dog/b.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    for number in range(2, 10):
        (folder / f"classes/class{number}").mkdir()
        Image.fromarray(pixels).save(folder / f"classes/class{number}/a.png")
    (folder / "broken.onnx").write_bytes(b"no model")
    (folder / "broken.toml").write_text("base = ")
    (folder / "text.json").write_text("{}")
    return folder


def _ended(words: tuple[str, ...], place: Path) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(place), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), catch_warnings():
        code = main(list(words))
    return Ended(code, out.getvalue(), err.getvalue(), 0)


def _message(ended: Ended, words: tuple[str, ...]) -> str:
    """Check how a command ended and return its error, "" where there is none."""
    assert ended.code in DOCUMENTED, ended.err
    if ended.code == 0:
        return ""
    if ended.code != 4:
        assert ended.out == ""
    lines = [line for line in ended.err.removesuffix("\n").split("\n") if not line.startswith("note: ")]
    if not {"-v", "--verbose"} & set(words):
        assert len(lines) == 1, lines
    last = lines[-1]
    assert last.isprintable(), last
    if last.startswith("{"):
        last = "error: " + json.loads(last)["error"]["message"]
    assert LINE.fullmatch(last), last
    return last


def _names(message: str, word: str) -> bool:
    """Whether `message` quotes `word`, escaped or cut as it may be."""
    shown = printable(word) or "''"
    if not word:
        return any(empty in message for empty in ("''", "=:", "'.'", " .: "))  # a path of no words is the folder itself
    return shown[:40] in message or word in message or repr(word)[1:-1][:40] in message


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKING)
def test_the_lines_that_others_are_made_from_end_well(place: Path, name: str) -> None:
    ended = _ended((name, *WORKING[name]), place)
    if name in ("quantize", "sensitivity"):
        assert "at least 32" in _message(ended, ()), ended.err
        return
    assert ended.code == 0, ended.err


@holds_for(few=15, many=100, shrink=False, line=invalid_lines())
def test_an_option_that_does_not_fit_is_named(place: Path, line: InvalidLine) -> None:
    ended = _ended(line.words, place)
    message = _message(ended, line.words)
    if not message or (line.words[0] in ("quantize", "sensitivity") and "at least 32" in message):
        return
    assert line.option.lstrip("-") in message or _names(message, line.value), message


@holds_for(few=40, many=150, shrink=False, words=random_lines())
def test_a_random_line_ends_in_a_documented_way(place: Path, words: tuple[str, ...]) -> None:
    message = _message(_ended(words, place), words)
    options = [option for option in spellings_of(words[0]) if option.startswith("--")]  # one that is missing, too
    assert not message or any(_names(message, word.lstrip("-") or word) for word in (*words, *options)), message
