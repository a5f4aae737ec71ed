"""The reference of the commands, from their declarations and from the reports that they print."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import densenet_deploy.workflows
from densenet_deploy.cli.app import COMMANDS, declaration
from densenet_deploy.reports import Report
from docs.docstrings import Docstring

SHARED: Final = ("Facts of the model", "Custom architecture", "Backend", "Common options")
"""Groups of options that are described once; a command that has only some of one is said to."""

_DEFAULT: Final = re.compile(r" *[(\[](?:default: (?P<value>.+?)|(?P<required>required))[)\]]\.?$")
COMMON: Final[Mapping[str, str]] = {
    "onnx": "the ONNX file that was written; null where the result stayed in memory",
    "outputs": "for each output by name, how far it is from that of the reference: a [`Parity`](api.md#parity)",
    "parity": "the worst of `outputs`",
    "input": "how images are prepared; `assumed` lists the facts that nobody stated",
    "model": "the model, as it was named",
    "backend": "of `onnxruntime`, `openvino`, `tensorrt`, `rtx` and `torch`",
    "version": "of the backend",
    "device": "that ran it",
    "provider": "the part of the backend that ran it",
    "precision": "that it computed in, or that was asked for",
    "threads": "CPU threads of one call",
    "task": "`multiclass`, `multilabel`, `regression` or `features`",
    "machine": "CPU, quota, clocks, GPUs and versions",
    "bad": "images that could not be read, each with `file` and `reason`, or their number",
    "file": "that was written; null if none was",
    "bytes": "size of that file",
    "variant": "the network, `custom` for one without a name",
    "parameters": "numbers that were trained",
    "batch": "images per call",
    "image_size": "pixels, or [height, width]",
    "seconds": "the sum of `stages`",
    "stages": "seconds of each stage",
    "notes": "remarks: what was assumed, skipped or not measured",
    "argv": "the command line; absent where Python called",
}
"""Keys that many reports have. A report that means something else says so itself."""

_ELSEWHERE: Final = {"Parity", "InputDescription", "Machine", "Manifest", "Preprocessing"}
_DEEPEST: Final = 2
Row = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class Command:
    """A command as its help shows it."""

    name: str
    usage: str
    summary: str
    examples: tuple[str, ...]
    groups: Mapping[str, tuple[Row, ...]]


def markdown() -> str:
    """Return the list of commands, the shared options, and a section for each command."""
    found = [command(name) for name in COMMANDS]
    lines = ["| command | does |", "|---|---|"]
    lines += [f"| [`{one.name}`](#{one.name}) | {one.summary.rstrip('.')} |" for one in found]
    for group in SHARED:
        lines += ["", f"## {group}", "", *_table(shared()[group])]
    lines += ["", "## Keys of many results", "", *(f"* `{name}`: {text}" for name, text in COMMON.items())]
    for one in found:
        lines += ["", *_section(one)]
    return "\n".join(lines)


@functools.cache
def command(name: str) -> Command:
    """Return a command with its options, by group."""
    declared = declaration(name)
    built = declared.click_command()
    context = built.make_context(name, [], resilient_parsing=True)
    groups: dict[str, list[Row]] = {}
    for parameter in built.get_params(context):
        is_argument = parameter.param_type_name == "argument"
        record = (parameter.metavar, parameter.help) if is_argument else parameter.get_help_record(context)
        is_switch = not is_argument and parameter.is_flag and parameter.name != "help"
        group = "Arguments" if is_argument else parameter.rich_help_panel or "Options"
        group = "Common options" if parameter.name == "help" else group
        groups.setdefault(group, []).append(_row(*record, otherwise="off" if is_switch else ""))
    usage = " ".join(["densenet-deploy", name, *built.collect_usage_pieces(context)[1:], "[OPTIONS]"])
    return Command(name, usage, declared.summary, declared.examples, {k: tuple(v) for k, v in groups.items()})


@functools.cache
def shared() -> Mapping[str, tuple[Row, ...]]:
    """Return the groups of options that are described once, each as the command with most of its options has it."""
    every = [command(name).groups for name in COMMANDS]
    return {group: max((groups.get(group, ()) for groups in every), key=len) for group in SHARED}


@functools.cache
def reports() -> Mapping[str, tuple[type[Report], ...]]:
    """Return what each command prints with `--json`, by the command."""
    for module in pkgutil.walk_packages(densenet_deploy.workflows.__path__, "densenet_deploy.workflows."):
        importlib.import_module(module.name)
    found: dict[str, list[type[Report]]] = {}
    for report in _subclasses(Report):
        name = getattr(report, "kind", "").split(" --")[0]
        if name in COMMANDS:
            found.setdefault(name, []).append(report)
    return {name: tuple(kinds) for name, kinds in found.items()}


def _subclasses(kind: type[Report]) -> Iterator[type[Report]]:
    for below in kind.__subclasses__():
        yield below
        yield from _subclasses(below)


def _section(one: Command) -> Iterator[str]:
    yield from (f"## {one.name}", "", one.summary, "", "```bash", *one.examples, "```", "")
    rows = [row for group, rows in one.groups.items() if group not in SHARED for row in rows]
    yield from _table(rows)
    if others := [_reference(group, one.groups[group]) for group in SHARED[:-1] if group in one.groups]:
        yield from ("", f"Also: {'; '.join(others)}.")
    for report in reports().get(one.name, ()):
        yield from _results(report)


def _reference(group: str, rows: tuple[Row, ...]) -> str:
    link = f"[{group[0].lower()}{group[1:]}](#{group.lower().replace(' ', '-')})"
    missing = len(shared()[group]) - len(rows)
    return link if not missing else f"of the {link} {', '.join(spelled for spelled, _, _ in rows)}"


def _row(spelled: str, text: str, otherwise: str) -> Row:
    """Return how an option is written, its default (`otherwise` where the text does not say), and what it does."""
    text = " ".join(text.split())
    found = _DEFAULT.search(text)
    default = otherwise if found is None else "required" if found["required"] else str(found["value"])
    meaning = text if found is None else text[: found.start()]
    names = [f"`{name.strip()}`" for name in re.split(r", (?=-)| / ", spelled)]
    return ", ".join(names).replace("|", "\\|"), default.replace("|", "\\|"), meaning.rstrip(".").replace("|", "\\|")


def _table(rows: Iterable[Row]) -> list[str]:
    return ["| option | default | meaning |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]


def _results(report: type[Report]) -> Iterator[str]:
    """Yield the keys of a report, and those of the objects in it; what many reports have is described once."""
    option = f" with `--{report.kind.partition(' --')[2]}`" if " --" in report.kind else ""
    yield from ("", f"JSON{option}: {Docstring.of(report).summary}", "")
    yield from _keys(report)
    own = {name for names, _ in descriptions(report) for name in names}
    shared = [f"`{key}`" for key in keys_of(report) if key not in own]
    yield f"* {', '.join(shared)}: [as in other results](#keys-of-many-results)"


def _keys(kind: type, depth: int = 0) -> Iterator[str]:
    """Yield a line for each description of keys, and below it those of the objects that they hold."""
    types = typing.get_type_hints(kind, include_extras=False)
    for names, text in descriptions(kind):
        below = dict.fromkeys(one for name in names for one in _objects(types.get(name)))
        plain = [held for held in below if not any(said for _, said in descriptions(held))]
        inline = "".join(f" {{{', '.join(f'`{key}`' for key in keys_of(held))}}}" for held in plain)
        yield f"{'  ' * depth}* {', '.join(f'`{name}`' for name in names)}{inline}" + (f": {text}" if text else "")
        for held in below:
            yield from _keys(held, depth + 1) if held not in plain and depth < _DEEPEST else ()


def keys_of(kind: type) -> list[str]:
    """Return the keys of the JSON of a dataclass."""
    hidden = {name for name, text in _described(kind).items() if text.endswith("; not in the JSON")}
    fields = [field.name for field in dataclasses.fields(kind)] + list(getattr(kind, "derived", ()))
    return [name for name in fields if name not in hidden]


def descriptions(kind: type) -> list[tuple[tuple[str, ...], str]]:
    """Return the keys of the JSON of a dataclass that are its own, grouped as its docstring describes them."""
    grouped: dict[str, list[str]] = {}
    described = _described(kind)
    for name in keys_of(kind):
        if name in described or name not in COMMON:
            grouped.setdefault(described.get(name, ""), []).append(name)
    return [(tuple(names), text.replace("None", "null")) for text, names in grouped.items()]


def _described(kind: type) -> dict[str, str]:
    classes = reversed([cls for cls in kind.__mro__ if dataclasses.is_dataclass(cls) and cls is not Report])
    items = [item for cls in classes for item in Docstring.of(cls).items("Attributes") if cls.__doc__]
    return {name: text for names, text in items for name in names.split(", ")}


def _objects(annotation: Any) -> Iterator[type]:
    """Yield the dataclasses in a type whose keys are not described elsewhere."""
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        if annotation.__name__ not in _ELSEWHERE:
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _objects(argument)
