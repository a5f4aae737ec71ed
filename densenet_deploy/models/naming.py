"""Name nodes and values after the modules they come from.

The exporter records, for each node, the chain of modules it was traced in. The last node of an innermost module gets
the module's path (`features.denseblock1.denselayer1.conv1`), so that the tensor of that name is what the module
returned; every other node adds its operator (`features.denseblock1.denselayer2.concat`).
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterable, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

_SCOPES = "pkg.torch.onnx.name_scopes"


def name_by_module(model: ir.Model) -> None:
    """Rename the nodes and inner values of `model` in place and drop the exporter's notes on them.

    The notes hold stack traces, that is paths of the exporting machine. Constants become initializers, which keep their
    names where other tools fold them.
    """
    graph = model.graph
    paths = {node: _module_path(node) for node in graph}
    taken = {str(value.name) for value in (*graph.inputs, *graph.outputs, *graph.initializers.values())}
    for node, name in _unique(_names(paths), taken):
        node.name = name
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = name if index == 0 else f"{name}:{index}"
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _drop_notes(model)


def _names(paths: dict[ir.Node, str]) -> Iterable[tuple[ir.Node, str]]:
    last_node = {path: node for node, path in paths.items()}
    parents = {path[:end] for path in paths.values() for end in _ends(path)} | {""}
    for node, path in paths.items():
        is_result = path not in parents and last_node[path] is node
        yield node, path if is_result else f"{path}.{node.op_type.lower()}".lstrip(".")


def _unique(named: Iterable[tuple[ir.Node, str]], taken: set[str]) -> Iterable[tuple[ir.Node, str]]:
    """Number the names that are `taken`, by an earlier node or a value with a fixed name, from 2 on."""
    for node, name in named:
        candidates = itertools.chain((name,), (f"{name}_{number}" for number in itertools.count(2)))
        unique = next(candidate for candidate in candidates if candidate not in taken)
        taken.add(unique)
        yield node, unique


def _ends(path: str) -> Sequence[int]:
    """Where the proper prefixes of a dotted path end."""
    return [index for index, letter in enumerate(path) if letter == "."]


def _module_path(node: ir.Node) -> str:
    """Return the innermost module: the scopes end with it and the traced operation."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return str(scopes[-2]) if len(scopes) > 1 else ""


def _drop_notes(model: ir.Model) -> None:
    graph = model.graph
    values = [value for node in graph for value in node.outputs]
    for thing in (model, graph, *graph, *values, *graph.inputs, *graph.initializers.values()):
        thing.metadata_props.clear()
        thing.doc_string = None
