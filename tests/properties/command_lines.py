"""Random command lines: of every command one that works, its options as Typer knows them, words that do not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from densenet_deploy.cli.app import declaration
from tests.properties.texts import TEXTS

_ARCHITECTURE = ("--blocks", "1", "--growth-rate", "2", "--init-features", "4", "--stem", "cifar")
_SMALL = (*_ARCHITECTURE, "--image-size", "8", "--num-classes", "3", "--force")
WORKING: dict[str, tuple[str, ...]] = {
    "export": (*_SMALL, "-o", "new.onnx"),
    "simplify": ("tiny.onnx", "-o", "new.onnx", "--force"),
    "validate": ("tiny.onnx", "tiny.onnx", "--samples", "1"),
    "quantize": ("tiny.onnx", "--calibration", "few"),
    "sensitivity": ("tiny.onnx", "--calibration", "few"),
    "cast": ("tiny.onnx", "--fp16", "-o", "new.onnx", "--force"),
    "build-trt": ("tiny.onnx", "--fp16", "--dry-run"),
    "run": ("tiny.onnx", "image.png"),
    "evaluate": ("tiny.onnx", "--data", "classes"),
    "benchmark": ("tiny.onnx", "--seconds", "0", "--rounds", "3"),
    "inspect": ("tiny.onnx",),
    "tune": ("tiny.onnx", "--dry-run"),
    "plot": ("cost", "tiny.onnx", "-o", "new.svg", "--force"),
    "report": ("tiny.onnx", "-o", "new.html", "--force"),
    "doctor": (),
}
"""Lines that end well, and quickly, except those that calibrate: the images are too few."""

STOPPED: dict[str, tuple[str, ...]] = {
    "export": ("--weights", "missing.pth"),
    "build-trt": ("missing.onnx",),
    "tune": ("missing.onnx",),
    "benchmark": ("missing.onnx",),
}
"""What keeps a random line from a long work that nobody asked for."""

FILES = ("tiny.onnx", "image.png", "few", "classes", "broken.onnx", "missing.onnx", "broken.toml", "text.json", ".")
_NO_NUMBERS = (
    "",
    "abc",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "-5",
    "-1e-3",
    "9" * 25,
    "0x10",
    "١",
    "1,2",
    "1;",
    "\x1b[2J",
    "--",
)
_NO_WORDS = (
    "",
    "no-such-word",
    "\x1b[2J",
    "\udc80",
    "121x",
    "cifar-bc-9999999-12",
    "a=b",
    "x" * 5000,
    "1,,2",
    ",",
    "é\n",
)
_NO_PATHS = ("", "missing/file", "\udc80", "x" * 300, "\x1b[2J.onnx", "broken.onnx", "a\0b", "few", "/proc/self/mem/x")

_NO_PAGES = ("x" * 300, "\x1b[2J.onnx", "broken.onnx", "a\0b", "/proc/self/mem/x")
"""What `report -o` refuses: for almost any other word it draws a page, which takes seconds and tells nothing here."""


@dataclass(frozen=True)
class InvalidLine:
    """A working line with one more option that does not fit."""

    words: tuple[str, ...]
    option: str
    value: str


def options_of(name: str) -> list[Any]:
    """The options of a command, as Click has them."""
    found = declaration(name).click_command().params
    return [parameter for parameter in found if parameter.param_type_name == "option" and not parameter.is_flag]


def spellings_of(name: str) -> list[str]:
    """How the options of a command are written, flags too."""
    found = declaration(name).click_command().params
    return [word for parameter in found if parameter.param_type_name == "option" for word in parameter.opts]


def _unfit(option: Any) -> st.SearchStrategy[str]:
    kind = str(option.bare_type)
    words = (
        _NO_NUMBERS if "int" in kind or "float" in kind else _NO_PATHS if "Path" in kind else _NO_WORDS + _NO_NUMBERS
    )
    return st.sampled_from(words) | TEXTS


@st.composite
def invalid_lines(draw: st.DrawFn) -> InvalidLine:
    """A working line with an option that it does not know, or a value that the option does not take."""
    name = draw(st.sampled_from([name for name in WORKING if options_of(name)]))
    option = draw(st.sampled_from(options_of(name)))
    is_page = name == "report" and "--out" in option.opts
    value = draw(st.sampled_from(_NO_PAGES) if is_page else _unfit(option))
    word = draw(st.sampled_from(option.opts))
    written = [f"{word}={value}"] if word.startswith("--") and draw(st.booleans()) else [word, value]
    return InvalidLine((name, *WORKING[name], *written), word, value)


@st.composite
def random_lines(draw: st.DrawFn) -> tuple[str, ...]:
    """A command with any of its options, files and words, in any order."""
    name = draw(st.sampled_from(sorted(WORKING)))
    spelt = spellings_of(name)
    words = st.sampled_from([*spelt, *spelt, "--json", "--no-such-option", "-x"]) | st.sampled_from(FILES) | TEXTS
    words |= st.sampled_from(_NO_NUMBERS + _NO_WORDS + ("1", "2", "8", "0.5", "fp16", "openvino", "torch", "cpu"))
    return name, *STOPPED.get(name, ()), *draw(st.lists(words, max_size=6))
