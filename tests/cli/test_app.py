"""What every command shares: how its words are read, that its files are checked, and how its progress is shown."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import pytest

import densenet_deploy
from densenet_deploy.cli.app import COMMANDS, Declaration, declaration, progress, with_facts
from densenet_deploy.cli.compressing import Pruning
from densenet_deploy.cli.making import Building
from densenet_deploy.cli.measuring import Evaluating, Timing, Tuning
from densenet_deploy.cli.options import JobChoice, Output, RunnerChoice, complete_source
from densenet_deploy.cli.outcome import Printing
from densenet_deploy.cli.parameters import (
    REQUIRED,
    Declared,
    Only,
    Options,
    Reads,
    Writes,
    arguments_of,
    option,
    parameters_of,
)
from densenet_deploy.cli.serving import Serving
from densenet_deploy.cli.training import Training
from densenet_deploy.errors import InputError, is_valid_argument
from densenet_deploy.facts import ModelFacts
from tests.properties.command_lines import random_lines
from tests.properties.holds import holds_for

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
    "benchmark a.onnx b.onnx --batch 1,8 --backend onnxruntime --backend torch,openvino",
    "plot reuse",
    "plot pareto a.json b.json --image-size 32",
    "inspect --variant 121",
    "doctor",
]
INVALID = [
    "build-trt --fp17",
    "build-trt a.onnx b.onnx --fp16",
    "build-trt a.onnx --fp16 --max-batch 2x",
    "build-trt a.onnx --fp16 --max-batch",
    "quantize a.onnx",
    "plot",
    "plot reus",
    "export --compression high",
    "export --variant 122",
]


def values_of(line: list[str], *, as_typer_reads: bool) -> dict[str, Any] | str:
    """The values that a command gets for a line, or the error."""
    command = declaration(line[0]).click_command()
    if as_typer_reads:
        for parameter in command.params:
            del parameter.process_value  # the method of Typer's class is left
    try:
        context = command.make_context(line[0], line[1:])
    except BaseException as exc:  # Typer's errors have no public class
        return f"{type(exc).__name__}: {exc}"
    return {name: list(value) if isinstance(value, tuple) else value for name, value in context.params.items()}


@pytest.mark.parametrize("line", [*PLAIN, *INVALID])
def test_a_line_is_read_as_typer_reads_it(line: str) -> None:
    words = line.split(" ")
    values = values_of(words, as_typer_reads=False)
    assert values == values_of(words, as_typer_reads=True)
    assert isinstance(values, str) == (line in INVALID)
    if isinstance(values, dict):
        expected = values_of(words, as_typer_reads=True)
        assert isinstance(expected, dict)
        assert {name: type(value) for name, value in values.items()} == {
            name: type(value) for name, value in expected.items()
        }


@holds_for(few=50, many=150, words=random_lines())
def test_any_line_is_read_as_typer_reads_it(words: tuple[str, ...]) -> None:
    line = [word for word in words if is_valid_argument(word) and word not in ("-h", "--help")]
    assert values_of(line, as_typer_reads=False) == values_of(line, as_typer_reads=True)


def test_a_plain_command_loads_neither_pydantic_nor_another_workflow() -> None:
    script = (
        "import json, sys\n"
        "from densenet_deploy.cli import main\n"
        "code = main(['inspect', '--variant', '121', '--json'])\n"
        "found = [name in sys.modules for name in ('pydantic', 'densenet_deploy.cli.making', 'torch')]\n"
        "print(json.dumps([code, *found]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, False, False, False]


@pytest.mark.parametrize("name", COMMANDS)
def test_whatever_a_command_calls_a_model_is_loaded_in_the_sandbox_first(name: str) -> None:
    loaded = {parameter for reads, parameter in declaration(name).files() if reads.loaders}
    models = {"model", "models", "reference", "candidate", "against", "weights", "source"}
    models -= {"against"} if name == "report" else set()  # there an earlier page
    named = {parameter.name for parameter in parameters_of(declaration(name).function)} & models
    assert named - {"weights"} <= loaded, "a parameter that names a model says what Reads it"


def test_a_parameter_that_names_a_file_says_what_reads_it() -> None:
    def function(data: Path = option("DIR", "Images.", default=REQUIRED)) -> Any: ...

    with pytest.raises(TypeError, match="data"):
        list(Declaration("new", function, ()).files())


def test_a_group_becomes_its_options_and_comes_back_as_one_value() -> None:
    def function(
        facts: Annotated[ModelFacts, Only("image_size", "mean")],
        running: RunnerChoice,
        output: Annotated[Output, Writes("FILE", "here")],
    ) -> Any: ...

    names = [parameter.name for parameter in parameters_of(function)]
    assert names == ["image_size", "mean", "backend", "device", "threads", "trust_engine", "out", "force"]
    given = dict.fromkeys(names) | {"image_size": "256x128", "backend": "torch", "force": True}
    found = arguments_of(function, given)
    assert found["facts"] == ModelFacts(image_size=(256, 128))
    assert vars(found["running"]) == {"backend": "torch", "device": None, "threads": None, "trust_engine": None}
    assert vars(found["output"]) == {"out": None, "force": True}


def test_of_a_part_of_a_group_the_rest_has_its_defaults() -> None:
    def function(running: Annotated[RunnerChoice, Only("device")], threads: int = option("N", "Mine.")) -> Any: ...

    found = arguments_of(function, {"device": "cpu", "threads": 3})
    assert vars(found["running"]) == {"backend": "auto", "device": "cpu", "threads": None, "trust_engine": False}
    assert found["threads"] == 3


ELSEWHERE: Final[Mapping[type[Options], Mapping[str, Any]]] = {
    Training: {"device": "auto", "temperature": None, "alpha": None},
    Pruning: {"finetune_seconds": None, "finetune_seed": None},
}
"""Defaults that the command line has instead: None where an option is refused without the one that it belongs to."""


@pytest.mark.parametrize(
    ("options", "record"),
    [
        (Training, densenet_deploy.TrainOptions),
        (Pruning, densenet_deploy.PruneOptions),
        (Building, densenet_deploy.BuildOptions),
        (Evaluating, densenet_deploy.EvaluateOptions),
        (Timing, densenet_deploy.BenchmarkOptions),
        (Tuning, densenet_deploy.TuneOptions),
        (Serving, densenet_deploy.ServeOptions),
        (JobChoice, densenet_deploy.BatchJobOptions),
    ],
)
def test_options_have_the_names_and_defaults_of_the_library(options: type[Options], record: type) -> None:
    declared = {name: value.default for name, value in vars(options).items() if isinstance(value, Declared)}
    expected = {field.name: field.default for field in dataclasses.fields(record) if field.name in declared}
    assert declared == expected | ELSEWHERE.get(options, {})


def test_stated_facts_make_a_model_of_a_name_or_a_path(tiny_onnx: Path) -> None:
    source = str(tiny_onnx)
    assert with_facts(source, ModelFacts()) is source
    model = with_facts(source, ModelFacts(task="multilabel", resize=40))
    assert not isinstance(model, str)
    assert model.manifest is not None
    assert (model.path, model.manifest.task, model.manifest.preprocessing.resize) == (tiny_onnx, "multilabel", 40)


@pytest.mark.parametrize(("incomplete", "found"), [("16", ["161", "169"]), ("ima", ["imagenet"]), ("x", [])])
def test_names_of_networks_are_completed(incomplete: str, found: list[str]) -> None:
    assert complete_source(incomplete) == found


def test_work_begins_after_the_files_were_checked(tmp_path: Path) -> None:
    begun = []

    def function(data: Path = option("DIR", "Images.", default=REQUIRED, reads=Reads())) -> Any:
        return lambda _listener: begun.append(data)

    declared = Declaration("new", function, ())
    with pytest.raises(InputError) as caught:
        declared.answer({"data": tmp_path / "missing"}, Printing())
    assert caught.value.subject == str(tmp_path / "missing")
    assert begun == []
    declared.answer({"data": tmp_path}, Printing())
    assert begun == [tmp_path]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def enter(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """A function that puts a terminal in the place of stderr, once the test is running: pytest sets its own before."""

    def enter() -> Terminal:
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "120")
        return stream

    return enter


def test_a_terminal_shows_the_stage_and_the_count(enter: Callable[[], Terminal]) -> None:
    terminal = enter()
    with progress(Printing()) as listener:
        listener("calibrate")
        listener("calibrate", 96, 512)
    assert "calibrate" in terminal.getvalue()
    assert "96/512" in terminal.getvalue()


def test_a_stage_that_does_not_count_shows_none(enter: Callable[[], Terminal]) -> None:
    terminal = enter()
    with progress(Printing()) as listener:
        listener("calibrate", 96, 512)
        listener("write INT8")
    last = terminal.getvalue().rpartition("write INT8")[2]
    assert "write INT8" in terminal.getvalue()
    assert "/512" not in last


@pytest.mark.parametrize("printing", [Printing(quiet=True), Printing(as_json=True)], ids=str)
def test_no_progress_where_only_results_are_asked_for(enter: Callable[[], Terminal], printing: Printing) -> None:
    terminal = enter()
    with progress(printing) as listener:
        listener("calibrate", 96, 512)
    assert terminal.getvalue() == ""


def test_no_progress_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress(Printing()) as listener:
        listener("calibrate", 96, 512)
    assert stream.getvalue() == ""
