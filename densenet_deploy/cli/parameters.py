"""What the parameters of a command say: their options and arguments, the groups they come in, the files they name.

A command is a function whose parameters have their options as defaults (see `app.py`). A whole group of options is one
parameter: a subclass of `Options`, whose attributes they are, or another type with a function that makes it (`group`).
`facts: ModelFacts` adds `--image-size`, `--mean` and so on, and the function receives the `ModelFacts`;
`Annotated[ModelFacts, Only(...)]` takes a part of it.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Final, get_args, get_origin

import typer

from densenet_deploy.errors import InputError, UsageError
from densenet_deploy.facts import AUTO

Arguments = SimpleNamespace
"""The values of a command's parameters, as attributes."""

REQUIRED: Final = inspect.Parameter.empty
"""The default of a parameter that has none."""

GROUPS: Final[dict[type, Callable[..., Any]]] = {}
"""Type → the function that makes it: its parameters are the options, its docstring their heading in the help."""


class Reads:
    """What reads the files that a parameter names; they must exist before the work begins.

    Args:
        loaders: of model files, which are untrusted: `graph`, `simplifier`, `session` (see `workflows.sandbox.Loader`).
            A model may also be a name; only a word that looks like a file must exist.
        backends: those of the session, from the command's arguments; by default the file's own.
        more: further loaders, from the command's arguments.
        when: whether the file is loaded at all, from the command's arguments.
        names: words that are not files.
    """

    def __init__(
        self,
        *loaders: str,
        backends: Callable[[Arguments], Iterable[str | None]] = lambda _: (None,),
        more: Callable[[Arguments], Iterable[str]] = lambda _: (),
        when: Callable[[Arguments], bool] = lambda _: True,
        names: tuple[str, ...] = (),
    ) -> None:
        self.loaders = loaders
        self.backends = backends
        self.more = more
        self.when = when
        self.names = names


class Only:
    """The fields of a group that a command takes."""

    def __init__(self, *names: str) -> None:
        self.names = names


@dataclass(frozen=True)
class Writes:
    """What `-o` of a command names.

    Attributes:
        metavar: how the help shows it.
        default: where the result goes without it.
        suffixes: those of the files that the command writes; none if it writes a folder.
        is_strict: whether any other suffix is an error. Otherwise a suffix that is not of ours names a folder.
    """

    metavar: str
    default: str
    suffixes: tuple[str, ...] = (".onnx",)
    is_strict: bool = False

    def check(self, out: str) -> None:
        """Refuse an output that can't be, before the work.

        Raises:
            UsageError: if it has the suffix of another kind of file.
            InputError: if a file stands where its folder should be.
        """
        from densenet_deploy.artifacts import FILE_SUFFIXES

        path, suffix = Path(out), Path(out).suffix.lower()
        is_folder = out.endswith("/") or path.is_dir() or not suffix
        if not is_folder and suffix not in self.suffixes and (self.is_strict or suffix in FILE_SUFFIXES):
            kinds = " or ".join(self.suffixes) or "folder"
            raise UsageError(out, f"is not a {kinds} name", f"name a {kinds} with -o")
        existing = next((parent for parent in path.absolute().parents if parent.exists()), path)
        if not existing.is_dir():
            raise InputError(out, f"{existing} is not a folder", "choose another place with -o")


def word(names: Callable[[], Iterable[str]], check: Callable[[str], object] | None = None) -> dict[str, Any]:
    """Return the settings of an option with a value, or a list of values, among `names`.

    Shells complete it; `check`, which raises, sees each value but `auto` as soon as the line is read.
    """

    def complete(incomplete: str) -> list[str]:
        before, comma, begun = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in names() if name.startswith(begun)]

    def checked(value: Any) -> Any:
        for name in listed([value] if isinstance(value, str) else value or ()):
            if check is not None:
                check(name)
        return value

    return {"autocompletion": complete, "callback": checked}


def words(names: str) -> dict[str, Any]:
    """Return the settings of an option that shells complete with `names`, by spaces; its dataclass checks it."""
    return word(names.split)


def registered(module: str, registry: str, *more: str) -> dict[str, Any]:
    """Return the settings of an option among the names in a registry and `more`; the module is imported when needed."""

    def names() -> Any:
        return getattr(importlib.import_module(f"densenet_deploy.{module}"), registry)

    return word(lambda: (*names().names(), *more), lambda name: names().get(name))


@dataclass(frozen=True)
class Declared:
    """A parameter as Typer reads it, its default, and what reads the files that it names."""

    info: Any
    default: Any
    reads: Reads | None

    def parameter(self, written: inspect.Parameter) -> inspect.Parameter:
        """Return the parameter that was `written` with this as its default, as Typer takes it."""
        kind = (written.annotation, self.info, *(() if self.reads is None else (self.reads,)))
        return written.replace(annotation=Annotated[kind], default=self.default)


def option(
    metavar: str,
    description: str,
    names: str = "",
    *,
    default: Any = None,
    reads: Reads | None = None,
    spelled: str | None = None,
    **settings: Any,
) -> Any:
    """Declare an option with a value, which shells complete with `names`.

    Args:
        metavar: how the help shows the value.
        description: for the help.
        names: of values, by spaces.
        default: REQUIRED where there is none.
        reads: what reads the file that it names.
        spelled: the option, or several by spaces, where that is not the name of the parameter.
        **settings: those of `typer.Option`.
    """
    settings |= words(names) if names else {}
    info = typer.Option(*(spelled or "").split(), metavar=metavar, help=description, **settings)
    return Declared(info, default, reads)


def flag(spelled: str, description: str, *, default: bool | None = False) -> Any:
    """Declare an option without a value: `--flip/--no-flip`, or several spellings by spaces."""
    return Declared(typer.Option(*spelled.split(), help=description), default, None)


def argument(
    metavar: str, description: str, *, default: Any = REQUIRED, reads: Reads | None = None, **settings: Any
) -> Any:
    """Declare a positional argument; `settings` are those of `typer.Argument`."""
    return Declared(typer.Argument(metavar=metavar, help=description, **settings), default, reads)


class Options:
    """A group of options: the attributes of a subclass, declared by `option` and `flag`; an instance has their values.

    Its `vars` are the arguments of the dataclass that a workflow takes, where that has fields of the same names.
    """

    heading: ClassVar[str] = "Options"
    """In the help."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


def group(kind: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a function that makes a `kind` as the group of options that its parameters are."""

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        GROUPS[kind] = function
        return function

    return declare


def parameters_of(function: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    """Yield the parameters of a command's function, each group replaced by its options."""
    for parameter in _signature(function):
        group = _group_of(parameter)
        if group is None:
            yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        else:
            yield from options_of(group, metadata_of(parameter.annotation))


def arguments_of(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a command's function for the `values` of the parameters that `parameters_of` yields.

    Raises:
        UsageError, InputError: if a value of a group is invalid.
    """
    arguments = {}
    for parameter in _signature(function):
        group = _group_of(parameter)
        if group is None:
            arguments[parameter.name] = values[parameter.name]
        else:
            taken = {one.name: values[one.name] for one in options_of(group, metadata_of(parameter.annotation))}
            arguments[parameter.name] = group(**{one.name: one.default for one in _signature(group)} | taken)
    return arguments


def _group_of(parameter: inspect.Parameter) -> Callable[..., Any] | None:
    kind = type_of(parameter.annotation)
    return kind if isinstance(kind, type) and issubclass(kind, Options) else GROUPS.get(kind)


def _signature(function: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    if isinstance(function, type):
        for name, kind in typing.get_type_hints(function).items():
            if isinstance(declared := getattr(function, name), Declared):
                yield declared.parameter(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind))
        return
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        declared = parameter.default
        yield declared.parameter(parameter) if isinstance(declared, Declared) else parameter


def options_of(group: Callable[..., Any], metadata: Sequence[object] = ()) -> Iterator[inspect.Parameter]:
    """Yield the options of a group, or those that the metadata of its parameter leave."""
    chosen = next((item.names for item in metadata if isinstance(item, Only)), None)
    written = next((item for item in metadata if isinstance(item, Writes)), None)
    if isinstance(group, type) and issubclass(group, Options):
        heading = group.heading
    else:
        heading = str(group.__doc__).rstrip(".")
    for parameter in _signature(group):
        if chosen is None or parameter.name in chosen:
            yield _in_panel(parameter, heading, written)


def _in_panel(parameter: inspect.Parameter, panel: str, written: Writes | None) -> inspect.Parameter:
    kind, *metadata = get_args(parameter.annotation)
    info = copy.copy(metadata[0])
    info.rich_help_panel = panel
    if parameter.name == "out":
        assert written is not None, "a command with an Output says what it writes"
        info.metavar, info.help = written.metavar, f"Where to write (default: {written.default})."
    annotation = Annotated[(kind, info, *metadata[1:])]  # type: ignore[valid-type]
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=annotation)


def type_of(annotation: Any) -> Any:
    """Return the type of a value: `int` of `Annotated[int | None, ...]`."""
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    choices = [choice for choice in get_args(kind) if choice is not type(None)]
    return choices[0] if typing.get_origin(kind) is not list and len(choices) == 1 else kind


def metadata_of(annotation: Any) -> tuple[object, ...]:
    """Return what follows the type in an annotation."""
    return tuple(get_args(annotation)[1:]) if get_origin(annotation) is Annotated else ()


def listed(values: Iterable[str]) -> tuple[str, ...]:
    """Return the values of a repeatable option, each of which may be a list separated by commas; `auto` adds none.

    >>> listed(["onnxruntime,openvino", "torch", "auto"])
    ('onnxruntime', 'openvino', 'torch')
    """
    parts = [part.strip(" ") for value in values for part in value.split(",")]
    return tuple(dict.fromkeys(part for part in parts if part not in ("", AUTO)))
