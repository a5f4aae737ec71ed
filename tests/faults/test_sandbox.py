"""A file that harms the library that loads it is exit 3 and one line; the command itself is unharmed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.faults.harness import Commands
from tests.faults.hostile import without_end, without_measure

pytestmark = [
    pytest.mark.usefixtures("sandbox"),
    pytest.mark.skipif(sys.platform != "linux", reason="does not enforce a limit of address space"),
]


def test_a_file_that_needs_all_memory(commands: Commands, image: Path) -> None:
    model = without_measure(commands.folder / "hostile.onnx")
    words = ("run", model, image, "--backend", "openvino")
    commands.refused(*words, says=("hostile.onnx", "do not use it"))


@pytest.mark.slow
@pytest.mark.parametrize("words", [("inspect",), ("run", "--backend", "onnxruntime"), ("run", "--backend", "openvino")])
def test_a_file_that_never_ends(commands: Commands, image: Path, words: tuple[str, ...]) -> None:
    model = without_end(commands.folder / "hostile.onnx")
    words = (words[0], model, *((image,) if words[0] == "run" else ()), *words[1:])
    commands.refused(*words, says=("hostile.onnx", "do not use it"))
