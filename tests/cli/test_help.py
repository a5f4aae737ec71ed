"""The help: complete at 80 columns, with units, defaults and examples; and the completion of shells."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from densenet_deploy.cli import main
from densenet_deploy.cli.app import COMMANDS, declaration
from densenet_deploy.cli.options import BACKEND_HELP, DEVICE_HELP, VARIANT_HELP
from densenet_deploy.quantization.recipes.recipe import recipes
from densenet_deploy.runtime.runner import backends
from densenet_deploy.variants import variant_names

PROGRAM = [sys.executable, "-m", "densenet_deploy"]
ROOT = Path(__file__).parents[2]
NARROW = 80


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(NARROW))


def test_the_bare_program_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys) == printed(capsys, "--help") == printed(capsys, "-h")


@pytest.mark.usefixtures("narrow")
def test_help_lists_every_command_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "--help").partition("Commands:")[2].partition("\n\n")[0].splitlines()
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.startswith("  ")}
    assert listed == {name: declaration(name).summary for name in COMMANDS}
    assert max(map(len, lines)) <= NARROW


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_ends_with_examples_that_are_its_own(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    text = printed(capsys, name, "-h")
    assert text == printed(capsys, name, "--help")
    help_lines, _, examples = text.partition("\nExamples:\n")
    assert max(map(len, help_lines.splitlines())) <= NARROW
    assert "…" not in text
    assert not any(leak in text for leak in ("<int>", "<str>", "<float>", "<path>", "<list", "{"))
    for example in examples.strip().splitlines():
        program, command, *words = shlex.split(example)
        assert (program, command) == ("densenet-deploy", name)
        declaration(name).click_command().make_context(name, words)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_gives_its_default(name: str) -> None:
    command = declaration(name).click_command()
    context = command.make_context(name, [], resilient_parsing=True)
    for parameter in command.params:
        if parameter.param_type_name == "option" and not parameter.is_flag:
            record = parameter.get_help_record(context)
            assert "default" in record[1] or "required" in record[1], parameter.name


def test_the_words_that_help_lists_are_those_there_are() -> None:
    assert set(backends.names()) < set(BACKEND_HELP.replace(",", "").split())
    assert {name for name in variant_names() if name.isdigit()} < set(VARIANT_HELP.replace(",", "").split())
    assert set(option_names("quantize", "--recipe")) == {*recipes.names(), "auto"}
    devices = {word for backend in backends.items().values() for word in backend.devices}
    assert devices < set(DEVICE_HELP.replace(",", "").replace(";", "").split())


def option_names(command: str, option: str) -> list[str]:
    """The values that shells offer for an option."""
    found = declaration(command).click_command()
    (parameter,) = (parameter for parameter in found.params if option in parameter.opts)
    context = found.make_context(command, [], resilient_parsing=True)
    return [item.value for item in parameter.shell_complete(context, "")]


def completed(line: str) -> list[str]:
    """What bash offers for the last word of a line."""
    words = line.split(" ")
    environment = {
        **os.environ,
        "_DENSENET_DEPLOY_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(PROGRAM, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("densenet-deploy ex", ["export"]),
        ("densenet-deploy export --vari", ["--variant"]),
        ("densenet-deploy export --variant 1", ["121", "161", "169"]),
        ("densenet-deploy run a.onnx --backend o", ["onnxruntime", "openvino"]),
        ("densenet-deploy benchmark --backend torch,o", ["torch,onnxruntime", "torch,openvino"]),
        ("densenet-deploy run a.onnx --device c", ["cpu", "cuda"]),
        ("densenet-deploy quantize a.onnx --recipe t", ["tensorrt"]),
        ("densenet-deploy quantize a.onnx --observer m", ["minmax", "mse"]),
        ("densenet-deploy tune --precision fp", ["fp16", "fp32"]),
        ("densenet-deploy plot r", ["reuse"]),
    ],
)
def test_shells_complete_commands_options_and_values(line: str, offered: list[str]) -> None:
    assert sorted(completed(line)) == offered


def test_the_completion_script_is_for_this_program() -> None:
    done = subprocess.run(
        [*PROGRAM, "--show-completion", "bash"],
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "_DENSENET_DEPLOY_COMPLETE=complete_bash" in done.stdout
    assert "densenet-deploy" in done.stdout
