"""The reference of the Python API, from signatures and docstrings."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import densenet_deploy
from densenet_deploy import errors as error_types
from docs.docstrings import Docstring

GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "Load and save": ("load", "Model", "ModelFacts", "Architecture", "DenseNetSpec", "Manifest", "Preprocessing"),
    "Convert": (
        *("export", "ExportOptions", "simplify", "cast", "CastOptions", "prune", "PruneOptions"),
        *("quantize", "QuantizeOptions", "build_engine", "BuildOptions"),
    ),
    "Train": ("train", "TrainOptions", "SearchOptions"),
    "Run": ("open_runner", "Runner", "RunnerOptions", "Classifier", "Prediction", "predict", "BatchJobOptions"),
    "Serve": ("serve", "ServeOptions", "triton", "TritonOptions", "web", "WebOptions"),
    "Measure": (
        *("compare", "CompareOptions", "Parity", "Gate", "evaluate", "EvaluateOptions", "benchmark"),
        *("BenchmarkOptions", "tune", "TuneOptions", "inspect", "InspectOptions"),
        *("sensitivity", "SensitivityOptions", "report"),
    ),
    "Errors and warnings": ("DensenetDeployError", "UntrainedWeightsWarning"),
}
"""The public names, in the order of the page."""

_WIDTH: Final = 100
_PROPERTIES: Final = (property, functools.cached_property)
_METHODS: Final = (*_PROPERTIES, classmethod, staticmethod, types.FunctionType)
_REPR: Final = re.compile(r"<(?:class|function|factory)[^>]*>")


def markdown() -> str:
    """Return a section for every public name."""
    lines: list[str] = []
    for heading, names in GROUPS.items():
        lines += [f"## {heading}", ""]
        lines += [line for name in names for line in _entry(name, getattr(densenet_deploy, name))]
    return "\n".join(lines)


def errors() -> str:
    """Return the tree of errors, as their module draws it."""
    return Docstring.of(error_types).markdown()


def methods(kind: type) -> dict[str, Any]:
    """Return the documented public methods and properties of a class, the call among them; not those of Python."""
    names = [name for cls in reversed(kind.__mro__[:-1]) for name in vars(cls)]
    listed = [name for name in dict.fromkeys(names) if name == "__call__" or not name.startswith("_")]
    found = {name: inspect.getattr_static(kind, name) for name in listed}
    ours = {name: getattr(value, "__func__", value) for name, value in found.items() if isinstance(value, _METHODS)}
    return {name: value for name, value in ours.items() if inspect.getdoc(value)}


def _entry(name: str, value: Any) -> Iterator[str]:
    yield from (f"### {name}", "")
    if not (isinstance(value, type) and issubclass(value, Exception)):
        yield from ("```text", _signature(name, value), "```", "")
    yield from _described(value)
    if isinstance(value, type) and not issubclass(value, Exception):
        described: dict[str, str] = {}
        for method, function in methods(value).items():
            first = described.setdefault(str(inspect.getdoc(function)), method)
            yield from _method(name, method, function, "" if first == method else first)


def _method(owner: str, name: str, function: Any, same: str) -> Iterator[str]:
    """Yield what is said of a method; one that does the `same` as another refers to it."""
    if isinstance(function, _PROPERTIES):
        yield from (f"**`.{name}`**: {Docstring.of(function).summary}", "")
        return
    shown = "" if name == "__call__" else f".{name}"
    yield from ("```text", _signature(f"{owner.lower() if not shown else ''}{shown}", function), "```", "")
    yield from (f"The same as `.{same}`.", "") if same else _described(function)


def _described(value: Any) -> Iterator[str]:
    """Yield the text of a docstring, its arguments as a table, and its errors."""
    doc = Docstring.of(value)
    yield from (doc.markdown(), "")
    defaults = _defaults(value)
    for section, heading in (("Args", "argument"), ("Attributes", "field" if defaults else "attribute")):
        if rows := doc.items(section):
            yield from _table(heading, rows, defaults)
    for section in ("Returns", "Yields"):
        if section in doc.sections:
            yield from (f"**{section}:** {' '.join(doc.sections[section].split())}", "")
    if raised := doc.items("Raises"):
        yield from ("**Raises:** " + "; ".join(f"`{name}` {text}" for name, text in raised) + ".", "")


def _table(heading: str, rows: Iterable[tuple[str, str]], defaults: Mapping[str, str]) -> Iterator[str]:
    yield from (f"| {heading} | {'default | ' if defaults else ''}meaning |", f"|---|{'---|' if defaults else ''}---|")
    for names, text in rows:
        each = names.split(", ")
        default = ", ".join(dict.fromkeys(defaults.get(name, "") for name in each)) if defaults else ""
        column = f"{_cell(default)} | " if defaults else ""
        yield f"| {', '.join(f'`{name}`' for name in each)} | {column}{_cell(text)} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _defaults(value: Any) -> dict[str, str]:
    """Return the defaults of a dataclass's fields that can be given; nothing for anything else."""
    if not (isinstance(value, type) and dataclasses.is_dataclass(value)):
        return {}
    parameters = inspect.signature(value).parameters.values()
    empty = inspect.Parameter.empty
    return {one.name: "required" if one.default is empty else f"`{_default(one.default)}`" for one in parameters}


def _signature(name: str, function: Any) -> str:
    """Return a signature, one parameter per line where it is longer than a line."""
    signature = inspect.signature(function)
    parameters = [one for one in signature.parameters.values() if one.name not in ("self", "cls")]
    words = [_parameter(one) for one in parameters]
    stars = [one.kind is inspect.Parameter.KEYWORD_ONLY for one in parameters]
    if True in stars and not any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters):
        words.insert(stars.index(True), "*")
    returned = "" if isinstance(function, type) else f" -> {_plain(signature.return_annotation)}"
    line = f"{name}({', '.join(words)}){returned}"
    inner = "".join(f"    {word},\n" for word in words)
    return line if len(line) <= _WIDTH else f"{name}(\n{inner}){returned}"


def _parameter(one: inspect.Parameter) -> str:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(one.kind, "")
    annotation = "" if one.annotation is one.empty else f": {_plain(one.annotation)}"
    default = "" if one.default is one.empty else f" = {_default(one.default)}"
    return f"{stars}{one.name}{annotation}{default}"


def _plain(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return re.sub(r"Unpack\[(\w+)\]", r"\1", text)


def _default(value: Any) -> str:
    if inspect.isfunction(value):
        return value.__name__
    if dataclasses.is_dataclass(value):
        return f"{type(value).__name__}()"
    return _REPR.sub("...", repr(value))
