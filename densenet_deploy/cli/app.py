"""What a command is: one function and one decorator.

::

    @command("simplify", examples=("densenet-deploy simplify model.onnx",))
    def simplify_command(
        model: str = argument("A.onnx", "An ONNX file.", reads=Reads("graph", "simplifier", "session")),
        *,
        facts: ModelFacts,
        output: Annotated[Output, Writes("FILE|DIR", "A.simplified.onnx beside A.onnx")],
    ) -> Work:
        '''Simplify an ONNX file.'''
        from densenet_deploy.workflows.simplify import simplify

        return lambda listener: simplify(model, ...)

The function reads its arguments, which may raise UsageError, and returns the work. Between the two the decorator does
what no command may forget: it refuses missing files, loads untrusted ones in the sandbox, and starts the progress that
the work is given. It also adds `--json`, `-v`, `-q` and `-h`, and the options of groups such as `ModelFacts`. Commands
import the workflow they start when they run, so that `--help` loads nothing heavy.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import importlib
import inspect
import logging
import os
import re
import sys
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from densenet_deploy.cli.options import join_channels, printing
from densenet_deploy.cli.outcome import PROGRAM, Answer, FailedGate, Printing, print_answer, replace_closed_streams
from densenet_deploy.cli.parameters import (
    Arguments,
    Reads,
    Writes,
    arguments_of,
    metadata_of,
    options_of,
    parameters_of,
    type_of,
)
from densenet_deploy.errors import UnknownNameError, UsageError, is_valid_argument
from densenet_deploy.reports import COMMAND_LINE, Report

if TYPE_CHECKING:
    from densenet_deploy.facts import ModelFacts
    from densenet_deploy.model import Model
    from densenet_deploy.workflows.stages import Listener

Work = Callable[["Listener"], "Report | FailedGate"]
"""What a command does once its files were checked; it is given the listener of its progress."""

COMMANDS: Final = {
    "export": "making",
    "simplify": "making",
    "validate": "measuring",
    "prune": "compressing",
    "quantize": "compressing",
    "sensitivity": "compressing",
    "cast": "making",
    "build-trt": "making",
    "train": "training",
    "serve": "serving",
    "triton": "serving",
    "web": "serving",
    "run": "serving",
    "evaluate": "measuring",
    "benchmark": "measuring",
    "inspect": "looking",
    "tune": "measuring",
    "plot": "looking",
    "report": "looking",
    "doctor": "looking",
}
"""The module of each command, in the order of the help."""

_COMMON_PANEL: Final = "Common options"
_LEADING: Final = re.compile(r"--json|--verbose|--quiet|-[qv]+")
_METAVARS: Final[Mapping[Any, str]] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
_COMPLETION: Final = "_DENSENET_DEPLOY_COMPLETE"


def run(line: Sequence[str]) -> int:
    """Run the command line `line` (without the program's name) and return its exit code.

    Raises:
        BaseException: whatever ended the command.
    """
    replace_closed_streams()
    for item in line:
        if not is_valid_argument(item):  # only a caller of `main` can pass one
            raise UsageError(item, "holds a character that no path or name can hold", "remove it")
    group = typer.main.get_command(app)
    for parameter in group.params:
        _read_plainly(parameter, bool)
    token = COMMAND_LINE.set((PROGRAM, *line))
    try:
        outcome = group.main(_in_order(line) or ["--help"], PROGRAM, _COMPLETION, standalone_mode=False)
    except SystemExit as exc:  # how Typer ends completion, and where stdout is closed while it prints help
        is_closed = isinstance(exc.__context__, BrokenPipeError)
        return 0 if is_closed else exc.code if isinstance(exc.code, int) else 1
    finally:
        COMMAND_LINE.reset(token)
    return print_answer(outcome, line) if isinstance(outcome, Answer) else 0


def _in_order(line: Sequence[str]) -> list[str]:
    """Move `--json`, `-v` and `-q` from before the command's name to behind it, and join what belongs together."""
    rest = list(line)
    leading: list[str] = []
    while len(rest) > 1 and _LEADING.fullmatch(rest[0]):
        leading.append(rest.pop(0))
    return join_channels([*rest[:1], *leading, *rest[1:]])


class PlainHelp:
    """What a command and the group share: `--help` without Typer's reading of words (see `PlainCommand`)."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)  # type: ignore[misc]
        if not isinstance(option.process_value, functools.partial):  # Typer keeps it and returns it again
            _read_plainly(option, bool)
        return option


class Commands(PlainHelp, TyperGroup):
    """The commands by name; the module of one is imported when it is used."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        return declaration(cmd_name).click_command() if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise UnknownNameError.among("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, declaration(name).summary) for name in COMMANDS])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        with formatter.section("Examples"):
            for name in ("export", "quantize", "run"):
                formatter.write(f"  {declaration(name).examples[0]}\n")
        formatter.write(f'\nRun "{PROGRAM} COMMAND --help" for the options of a command.\n')


app: Final = typer.Typer(
    name=PROGRAM,
    cls=Commands,
    context_settings={"max_content_width": 120, "help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # rich would double the start-up time
    pretty_exceptions_enable=False,
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from densenet_deploy import __version__

        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take a DenseNet from weights to a running edge application."""


@dataclass(frozen=True)
class Declaration:
    """A command: its name, its function, and lines that show how it is used."""

    name: str
    function: Callable[..., Work]
    examples: tuple[str, ...]

    @property
    def summary(self) -> str:
        return str(inspect.getdoc(self.function)).partition("\n")[0]

    def click_command(self) -> TyperCommand:
        """Return the command as Typer runs it."""
        alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        alone.command(self.name, cls=PlainCommand, short_help=self.summary, epilog="\n".join(self.examples))(
            self._wrapper()
        )
        command = typer.main.get_command(alone)
        assert isinstance(command, TyperCommand)
        return command

    def _wrapper(self) -> Callable[..., Answer]:
        @functools.wraps(self.function)
        def wrapper(*, as_json: bool, verbose: bool, quiet: bool, **values: Any) -> Answer:
            return self.answer(values, Printing(as_json, verbose, quiet))

        parameters = [*parameters_of(self.function), *options_of(printing)]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapper

    def answer(self, values: Mapping[str, Any], printing: Printing) -> Answer:
        """Run the command with the values of its options."""
        _set_up_logging(printing)
        arguments = arguments_of(self.function, values)
        work = self._work_on_checked_files(values, arguments)
        with progress(printing) as listener:
            result = work(listener)
        if isinstance(result, FailedGate):
            return Answer(result.report, printing, result.failure)
        return Answer(result, printing)

    def _check_output(self, arguments: Mapping[str, Any]) -> None:
        for parameter in inspect.signature(self.function, eval_str=True).parameters.values():
            for item in metadata_of(parameter.annotation):
                if isinstance(item, Writes) and arguments[parameter.name].out is not None:
                    item.check(arguments[parameter.name].out)

    def _work_on_checked_files(self, values: Mapping[str, Any], arguments: Mapping[str, Any]) -> Work:
        """Return the work; refuse files that do not exist, and load untrusted ones in the sandbox.

        Its process starts before the function is called, which imports as much as that process does.
        """
        from densenet_deploy.workflows.sandbox import preflight

        given = [(reads, source) for reads, name in self.files() for source in _sources(values[name])]
        work: list[Work] = []

        def read_arguments() -> None:
            work.append(self.function(**arguments))
            self._check_output(arguments)
            for reads, source in given:
                _require_existing(reads, source)

        known = Arguments(**arguments)
        untrusted = (file for reads, source in given for file in _untrusted(reads, Path(source), known))
        preflight(*untrusted, meanwhile=read_arguments)
        return work[0]

    def files(self) -> Iterator[tuple[Reads, str]]:
        """Yield the parameters that name files, and what reads them."""
        for parameter in parameters_of(self.function):
            found = [item for item in metadata_of(parameter.annotation) if isinstance(item, Reads)]
            if _is_path(parameter.annotation) and not found:
                raise TypeError(f"{self.name}: the parameter {parameter.name} names a file: say what Reads it")
            yield from ((reads, parameter.name) for reads in found)


def made(model: Model) -> Report:
    """Return the report of the workflow that made `model`."""
    assert model.report is not None
    return model.report


def with_facts(source: str, facts: ModelFacts) -> str | Model:
    """Return `source` itself, or, where facts were stated, the model that it is or names, with these facts."""
    if not facts.given():
        return source
    from densenet_deploy.workflows.load import load

    return load(source, **facts.given())


_declared: Final[dict[str, Declaration]] = {}


def command(name: str, *, examples: Sequence[str]) -> Callable[[Callable[..., Work]], Callable[..., Work]]:
    """Declare a function as the command `name`."""

    def declare(function: Callable[..., Work]) -> Callable[..., Work]:
        _declared[name] = Declaration(name, function, tuple(examples))
        return function

    return declare


def declaration(name: str) -> Declaration:
    """Return the command `name`, importing its module."""
    if name not in _declared:
        importlib.import_module(f"densenet_deploy.cli.{COMMANDS[name]}")
    return _declared[name]


def _is_path(annotation: Any) -> bool:
    kind = type_of(annotation)
    return kind is Path or (typing.get_origin(kind) is list and typing.get_args(kind) == (Path,))


def _sources(value: Any) -> Iterable[str]:
    return map(os.fspath, [value] if isinstance(value, (str, Path)) else value or ())


def _require_existing(reads: Reads, source: str) -> None:
    from densenet_deploy.artifacts import FILE_SUFFIXES, is_checkpoint_name, is_url, os_errors_about

    path = Path(source)
    is_named_as_file = is_checkpoint_name(path) or path.suffix.lower() in FILE_SUFFIXES
    if reads.loaders and not is_named_as_file and not path.exists():
        if source not in reads.names:
            from densenet_deploy.workflows.load import check_names

            check_names(source, {})
    elif reads.loaders or not (glob.has_magic(source) or is_url(source)):  # images that the workflow finds
        with os_errors_about(path):
            path.stat()


def _untrusted(reads: Reads, path: Path, arguments: Arguments) -> Iterator[Any]:
    from densenet_deploy.workflows.sandbox import Loader, UntrustedFile

    if not reads.loaders or not reads.when(arguments):
        return
    loaders = tuple(Loader[name.upper()] for name in (*reads.loaders, *reads.more(arguments)))
    for backend in dict.fromkeys(reads.backends(arguments)):
        yield UntrustedFile(path, loaders, backend)
        loaders = (Loader.SESSION,)  # only a session has a backend


def _set_up_logging(printing: Printing) -> None:
    """With -v our log lines go to stderr; otherwise nothing but our own one-line messages does."""
    if printing.verbose:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("densenet_deploy").setLevel(logging.INFO)
        return
    logging.getLogger().addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")


@contextlib.contextmanager
def progress(printing: Printing) -> Iterator[Listener]:
    """Show the current stage, and how much of it is left if it counts its steps, where stderr is a terminal."""
    if not sys.stderr.isatty() or printing.quiet or printing.as_json:
        yield lambda _stage, _done=0, _total=None: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}")
    left = TextColumn("left"), TimeRemainingColumn(), TextColumn("elapsed"), TimeElapsedColumn()
    with Progress(*columns, *left, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None, count="")

        def show(stage: str, done: int = 0, total: int | None = None) -> None:
            count = f"{done}/{total}" if total is not None else ""
            bar.update(task, description=stage, completed=done, count=count)
            bar.tasks[0].total = total  # update() cannot take a total away again

        yield show


class PlainCommand(PlainHelp, TyperCommand):
    """A command that reads ordinary words itself, and prints its options by group and its examples in the help.

    Typer loads pydantic to turn words into numbers and paths, which takes a command 0.15 s and 15 MiB. Whatever is not
    ordinary (a missing argument, a number in some other notation) is left to Typer, which words the error.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        assert self.callback is not None
        annotations = inspect.signature(self.callback).parameters
        for parameter in self.params:
            kind = type_of(annotations[str(parameter.name)].annotation)
            _read_plainly(parameter, kind)
            item = typing.get_args(kind)[0] if typing.get_args(kind) else kind
            parameter.metavar = parameter.metavar or _METAVARS.get(item)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [p for p in self.get_params(ctx) if p.param_type_name == "argument"]
        return [str(self.options_metavar), *(str(argument.metavar) for argument in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            heading, record = _help_of(parameter, ctx)
            panels.setdefault(heading, []).append(record)
        for heading, records in panels.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        with formatter.section("Examples"):
            for example in str(self.epilog).splitlines():
                formatter.write(f"  {example}\n")


def _help_of(parameter: Any, ctx: Any) -> tuple[str, tuple[str, str]]:
    """Return the heading under which the help shows a parameter, how it is written, and what it does."""
    if parameter.param_type_name == "argument":
        return "Arguments", (parameter.metavar, parameter.help)
    panel = _COMMON_PANEL if parameter.name == "help" else parameter.rich_help_panel
    return panel or "Options", parameter.get_help_record(ctx)


def _read_plainly(parameter: Any, kind: Any) -> None:
    """Let a parameter read ordinary words without Typer, which reads the others as before."""
    parameter.process_value = functools.partial(_value, parameter, kind, parameter.process_value)


def _value(parameter: Any, kind: Any, as_typer_reads: Callable[..., Any], ctx: Any, value: Any) -> Any:
    """Return the value of a parameter for what was written, or for its default."""
    if parameter.required and parameter.value_is_missing(value):
        return as_typer_reads(ctx, value)
    try:
        plain = _plain(kind, value)
    except ValueError:
        return as_typer_reads(ctx, value)
    return plain if parameter.callback is None else parameter.callback(ctx, parameter, plain)


def _plain(kind: Any, value: Any) -> Any:
    """Return `value` as `kind`."""
    if value is None:
        return () if typing.get_origin(kind) is list else None
    if typing.get_origin(kind) is list:
        return [_plain(typing.get_args(kind)[0], item) for item in value]
    if isinstance(value, kind):
        if value == "":
            raise ValueError(value)
        return value
    if kind not in _READERS:
        raise ValueError(value)
    return _READERS[kind](value)


def _number(form: str, kind: Callable[[str], float], text: str) -> float:
    if re.fullmatch(form, text) is None:
        raise ValueError(text)
    return kind(text)


_READERS: Final[Mapping[Any, Callable[[Any], Any]]] = {
    Path: lambda text: Path(text) if text else _number("never", int, text),
    int: lambda text: _number(r"-?[0-9]{1,18}", int, text),
    float: lambda text: _number(r"-?[0-9]{1,18}(\.[0-9]{0,18})?(e-?[0-9]{1,2})?", float, text),
}
