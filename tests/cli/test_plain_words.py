"""Plain words are read as Typer reads them; all others are left to it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperCommand, TyperGroup

from densenet_deploy.cli.app import app
from densenet_deploy.cli.dispatch import COMMANDS
from densenet_deploy.cli.plain_words import plain_values

PLAIN = [
    "export",
    "export --variant 169 -o models/ --force",
    "export --compression 0.5 --growth-rate 12 --opset 21 --allow-nonfinite --weights=none -q",
    "export --drop-rate 1e-1 --batch 4",
    "quantize a.onnx --calibration images --no-never-slower --alpha 0.25",
    "quantize --calibration images a.onnx --never-slower --json",
    "build-trt",
    "build-trt a.onnx --fp16 --max-batch 1 --max-batch 8 --target 8.6 --target 12.0 --no-tf32",
    "build-trt --fp32 --tf32 --workspace 64 -v -- a.onnx",
    "run a.onnx b.png c.png --top-k 3",
    "benchmark a.onnx b.onnx --batch 1,8",
    "plot reuse",
    "plot pareto a.json b.json --image-size 32",
    "inspect --variant 121",
    "doctor",
]
ODD = [
    "build-trt --help",
    "build-trt --fp17",
    "build-trt a.onnx b.onnx --fp16",
    "build-trt a.onnx --fp16 --max-batch 2x",
    "build-trt a.onnx --fp16 --max-batch 2.0",
    "build-trt a.onnx --fp16 --max-batch",
    "quantize a.onnx",
    "plot",
    "export --compression .5",
    "export --compression nan",
    "export --variant=",
]


def command_of(line: str) -> tuple[TyperCommand, typer.Context, list[str]]:
    name, *words = line.split(" ")
    importlib.import_module(f"densenet_deploy.cli.{COMMANDS[name]}")
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    command = group.commands[name]
    assert isinstance(command, TyperCommand)
    return command, typer.Context(command, info_name=name), words


def as_typer_reads(line: str) -> dict[str, Any]:
    """The values that Typer's own reading hands to the command, lists made of its tuples."""
    command, context, words = command_of(line)
    TyperCommand.parse_args(command, context, words)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in context.params.items()}


@pytest.mark.parametrize("line", PLAIN)
def test_plain_words_are_read_as_typer_reads_them(line: str) -> None:
    values = plain_values(*command_of(line))
    assert values is not None
    expected = as_typer_reads(line)
    assert {name: value or [] if expected[name] == [] else value for name, value in values.items()} == expected
    assert {name: type(value) for name, value in values.items() if value} == {
        name: type(value) for name, value in expected.items() if value
    }


@pytest.mark.parametrize("line", ODD)
def test_all_others_are_left_to_typer(line: str) -> None:
    assert plain_values(*command_of(line)) is None


def test_every_command_reads_its_options_itself() -> None:
    """A parameter of a kind that is not known here would cost every call of its command the time of pydantic."""
    for name in COMMANDS:
        command, context, _ = command_of(name)
        required = [word for parameter in command.params if parameter.required for word in _words(parameter)]
        assert plain_values(command, context, required) is not None, name


def _words(parameter: Any) -> list[str]:
    return [parameter.opts[0], "a"] if parameter.param_type_name == "option" else ["a"]


def test_a_plain_command_loads_no_pydantic() -> None:
    script = (
        "import json, sys\n"
        "from densenet_deploy.cli import main\n"
        "code = main(['inspect', '--variant', '121', '--json'])\n"
        "print(json.dumps([code, 'pydantic' in sys.modules, 'densenet_deploy.cli.export' in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, False, False]


def test_help_lists_every_command(capfd: pytest.CaptureFixture[str]) -> None:
    script = [sys.executable, "-m", "densenet_deploy", "--help"]
    text = subprocess.run(script, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout
    listed = [line.split()[0] for line in text.partition("Commands:")[2].splitlines() if line.strip()]
    assert [word for word in listed if word in COMMANDS] == list(COMMANDS)
