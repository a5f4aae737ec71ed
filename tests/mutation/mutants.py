"""The small changes that are made to a module, one at a time.

Each is a plausible slip: a limit that is off by one or ten times looser, a comparison with or without equality, a sign,
a rounding, a forgotten `abs` or `sorted`, a condition or a call that is left out, an exception that is not raised, a
lock that is not held. Text for people is not changed: docstrings, f-strings, strings with a space, arguments of
exceptions. Neither are annotations, imports, decorators, and keywords without an effect on a correct program.
"""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass
from typing import Final

COMPARISONS: Final[dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
ARITHMETIC: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.BitXor: ast.BitAnd,
}
RELATED: Final = {
    "all": "any",
    "any": "all",
    "argmax": "argmin",
    "argmin": "argmax",
    "ceil": "floor",
    "endswith": "startswith",
    "floor": "ceil",
    "max": "min",
    "maximum": "minimum",
    "min": "max",
    "minimum": "maximum",
    "rint": "floor",
    "round": "int",
    "startswith": "endswith",
}
"""Functions and methods that are mistaken for one another."""

OMITTED: Final = {"abs", "clip", "copy", "fabs", "log2", "log10", "reversed", "sorted", "sqrt", "square"}
"""Functions that are forgotten: f(x, ...) becomes x, and x.f(...) becomes x."""

WITHOUT_EFFECT: Final = {"encoding", "stacklevel", "strict"}
TYPES: Final = {"Literal", "Annotated", "Final", "TypeVar"}


@dataclass(frozen=True)
class Mutant:
    """One change: the bytes from `start` to `end` of the source become `text`."""

    line: int
    start: int
    end: int
    before: str
    text: str

    def of(self, source: bytes) -> bytes:
        """Return the changed source."""
        return source[: self.start] + self.text.encode() + source[self.end :]

    @property
    def change(self) -> str:
        """What is changed, on one line."""
        return " ".join(f"{self.before} -> {self.text}".split())


def mutants(source: bytes) -> list[Mutant]:
    """Return every mutant of a module, in the order of its lines.

    >>> [mutant.change for mutant in mutants(b"def f(x):\\n    return x < 3\\n")]
    ['return x < 3 -> return None', 'x < 3 -> (x <= 3)', 'x < 3 -> (x >= 3)', '3 -> 4']
    """
    offsets = [0]
    for line in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    changes = _Changes()
    changes.visit(ast.parse(source))
    found = {}
    for node, text in changes.found:
        start = offsets[node.lineno - 1] + node.col_offset
        end = offsets[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        if isinstance(node, ast.With):  # only up to the colon
            last = node.items[-1].context_expr
            end = source.index(b":", offsets[(last.end_lineno or 0) - 1] + (last.end_col_offset or 0)) + 1
        found[start, end, text] = Mutant(node.lineno, start, end, source[start:end].decode(), text)
    return sorted(found.values(), key=lambda mutant: (mutant.start, -mutant.end))


class _Changes(ast.NodeVisitor):
    """Collects nodes, each with the text that replaces it."""

    def __init__(self) -> None:
        self.found: list[tuple[ast.expr | ast.stmt, str]] = []

    def _replace(self, node: ast.expr, other: ast.expr) -> None:
        self.found.append((node, f"({ast.unparse(other)})"))

    def _remove(self, node: ast.stmt, text: str = "pass") -> None:
        self.found.append((node, text))

    # -- what is left alone

    def visit_Import(self, node: ast.Import) -> None:
        """Skip."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Skip."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Skip: text for people, and Python 3.11 does not know where its parts are."""

    def visit_arg(self, node: ast.arg) -> None:
        """Skip the annotation."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.visit(node.args)
        self._visit_all(node.body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_all(node.body)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        if "__all__" not in names:
            self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if _name(node.value) not in TYPES:
            self.generic_visit(node)

    def _visit_all(self, nodes: list[ast.stmt]) -> None:
        for node in nodes:
            self.visit(node)

    # -- statements

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return
        if isinstance(node.value, ast.Call):
            self._remove(node)
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._remove(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self._remove(node, "return None")
            self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._remove(node)
        self.generic_visit(node)

    def visit_Break(self, node: ast.Break) -> None:
        self._remove(node)

    def visit_Continue(self, node: ast.Continue) -> None:
        self._remove(node)
        self._remove(node, "break")

    def visit_With(self, node: ast.With) -> None:
        if all(item.optional_vars is None for item in node.items):
            self._remove(node, "if True:")
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if _name(node.test) != "TYPE_CHECKING":
            self._negate(node.test)
            self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for condition in node.ifs:
            self._negate(condition)
        self.generic_visit(node)

    def _negate(self, condition: ast.expr) -> None:
        """Comparisons, `and`, `or` and `not` have changes of their own."""
        if not isinstance(condition, ast.Compare | ast.BoolOp | ast.UnaryOp):
            self._replace(condition, ast.UnaryOp(ast.Not(), condition))

    # -- expressions

    def visit_Compare(self, node: ast.Compare) -> None:
        for index, operator in enumerate(node.ops):
            for other in COMPARISONS[type(operator)]:
                changed = copy.deepcopy(node)
                changed.ops[index] = other()
                self._replace(node, changed)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if other := ARITHMETIC.get(type(node.op)):
            self._replace(node, ast.BinOp(node.left, other(), node.right))
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self._replace(node, ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values))
        for index in range(len(node.values)):
            rest = [*node.values[:index], *node.values[index + 1 :]]
            self._replace(node, rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub | ast.Invert):
            self._replace(node, node.operand)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        match node.value:
            case bool():
                self.found.append((node, str(not node.value)))
            case int():
                self.found.append((node, str(node.value + 1)))
            case float():
                self.found.append((node, repr(node.value * 10 or 1.0)))
            case str() if node.value and " " not in node.value:
                self.found.append((node, repr(node.value + "_")))

    def visit_Call(self, node: ast.Call) -> None:
        name = _name(node.func)
        if name.endswith(("Error", "Warning")) or name in TYPES:
            return
        if name in RELATED:
            self._replace(node, ast.Call(_renamed(node.func, RELATED[name]), node.args, node.keywords))
        if name in OMITTED:
            self._replace(node, _subject(node))
        keywords = [keyword for keyword in node.keywords if keyword.arg not in WITHOUT_EFFECT]
        for keyword in keywords:
            if keyword.arg:
                rest = [other for other in node.keywords if other is not keyword]
                self._replace(node, ast.Call(node.func, node.args, rest))
        for child in (node.func, *node.args[name == "cast" :], *keywords):
            self.visit(child)


def _renamed(function: ast.expr, name: str) -> ast.expr:
    return ast.Attribute(function.value, name) if isinstance(function, ast.Attribute) else ast.Name(name)


def _subject(call: ast.Call) -> ast.expr:
    """What a function is applied to: the first argument, or the object of a method."""
    function = call.func
    is_method = isinstance(function, ast.Attribute) and _name(function.value) not in ("np", "math", "torch")
    return function.value if is_method or not call.args else call.args[0]  # type: ignore[attr-defined]


def _name(node: ast.expr) -> str:
    """The last part of a dotted name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
