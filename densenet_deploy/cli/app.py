"""The Typer application, and what every command has in common: --json, -v, -q, and returning a report.

A command returns its report instead of printing it; `dispatch` prints it as text or JSON once it has succeeded.
Commands import the road they start when they run, so that `--help` loads neither numpy nor anything heavier.
"""

from __future__ import annotations

import functools
import inspect
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Protocol

import typer

from densenet_deploy.cli.plain_words import PlainCommand
from densenet_deploy.errors import DensenetDeployError

app: Final = typer.Typer(
    name="densenet-deploy",
    context_settings={"max_content_width": 120},
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich help would double the start-up time
    pretty_exceptions_enable=False,
)


class Report(Protocol):
    """What a road returns: facts for programs, lines for people, remarks for stderr."""

    @property
    def notes(self) -> tuple[str, ...]: ...
    def to_json(self) -> dict[str, object]: ...
    def to_text(self) -> str: ...


@dataclass(frozen=True)
class Output:
    """How the user wants to be told."""

    as_json: bool
    verbose: bool
    quiet: bool


@dataclass(frozen=True)
class Answer:
    """The report of a command; `failure` is set where the report is worth reading although a gate failed."""

    report: Report
    output: Output
    failure: DensenetDeployError | None = None


@dataclass(frozen=True)
class FailedGate:
    """What a command returns to have its report printed and still fail."""

    report: Report
    failure: DensenetDeployError


_OUTPUT_OPTIONS: Final = {
    "as_json": Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")],
    "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr; tracebacks for errors.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but results and errors.")],
}


def _print_version(wanted: bool) -> None:
    if wanted:
        from densenet_deploy import __version__

        typer.echo(f"densenet-deploy {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take a DenseNet from weights to a running edge application."""


def command(name: str) -> Callable[[Callable[..., Report | FailedGate]], Callable[..., Answer]]:
    """Register a function as the command `name`, with the output options added to its own."""

    def register(function: Callable[..., Report | FailedGate]) -> Callable[..., Answer]:
        @functools.wraps(function)
        def wrapper(*, as_json: bool, verbose: bool, quiet: bool, **arguments: Any) -> Answer:
            output = Output(as_json, verbose, quiet)
            _set_up_logging(output)
            result = function(**arguments)
            if isinstance(result, FailedGate):
                return Answer(result.report, output, result.failure)
            return Answer(result, output)

        own = inspect.signature(function, eval_str=True)
        wrapper.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[*own.parameters.values(), *_output_parameters()], return_annotation=Answer
        )
        app.command(name, cls=PlainCommand)(wrapper)
        return wrapper

    return register


def _output_parameters() -> list[inspect.Parameter]:
    kind = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(n, kind, default=False, annotation=a) for n, a in _OUTPUT_OPTIONS.items()]


def _set_up_logging(output: Output) -> None:
    """With -v our log lines go to stderr; otherwise nothing but our own one-line messages does."""
    if output.verbose:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("densenet_deploy").setLevel(logging.INFO)
        return
    logging.getLogger().addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")
