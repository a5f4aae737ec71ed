"""Every sentence of an error, pinned in one file, so that wording can be improved in one place and is seen in review.

`tests/messages.txt` holds the source of each `why` and `fix` that the package raises, by file. After a change of
wording run `python -m tests.test_messages`, and read the difference.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import densenet_deploy
from densenet_deploy import errors

PACKAGE = Path(densenet_deploy.__file__).parent
SNAPSHOT = Path(__file__).with_name("messages.txt")
KINDS = {name for name in vars(errors) if name.endswith("Error")}


def _messages(path: Path) -> Iterator[str]:
    """Yield `Kind: subject | why | fix` for each error that a module builds, in order, as written in the source."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS and node.args:
            yield f"{node.func.id}: {' | '.join(map(_text, node.args))}"


def _text(node: ast.expr) -> str:
    """Return the text of a literal, and of anything else its source."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    return "{" + ast.unparse(node.value) + "}" if isinstance(node, ast.FormattedValue) else f"<{ast.unparse(node)}>"


def snapshot() -> str:
    """Return the content of the snapshot as the source is now."""
    found = {path: dict.fromkeys(_messages(path)) for path in sorted(PACKAGE.rglob("*.py"))}
    parts = (
        "\n".join([f"## {path.relative_to(PACKAGE).as_posix()}", *lines]) for path, lines in found.items() if lines
    )
    return "\n\n".join(parts) + "\n"


def test_the_wording_is_the_one_in_the_snapshot():
    assert snapshot() == SNAPSHOT.read_text(), "run python -m tests.test_messages and read the difference"


if __name__ == "__main__":
    SNAPSHOT.write_text(snapshot())
