"""Write the generated parts of the pages: `python -m docs.generate`. A test holds the pages to what this writes.

A part stands between two comments of a page, which is otherwise written by hand::

    <!-- generated: commands -->
    ...
    <!-- end of commands -->

Its content comes from the code (`docs/commands.py`, `docs/python_api.py`), or from recorded measurements
(`docs/measurements.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from docs import commands, measurements, python_api

FOLDER: Final = Path(__file__).parent
PARTS: Final[Mapping[str, Callable[[], str]]] = {
    "commands": commands.markdown,
    "api": python_api.markdown,
    "errors": python_api.errors,
    **measurements.PARTS,
}
_PART: Final = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


def pages() -> dict[Path, str]:
    """Return the pages that have generated parts, with the content that they should have."""
    found = {page: page.read_text() for page in [FOLDER.parent / "README.md", *sorted(FOLDER.glob("**/*.md"))]}
    return {page: written(text) for page, text in found.items() if _PART.search(text)}


def written(text: str) -> str:
    """Return a page with its generated parts written anew.

    Raises:
        KeyError: if a part is unknown.
    """
    return _PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]().strip()}\n\n{part[3]}", text)


if __name__ == "__main__":
    for page, content in pages().items():
        page.write_text(content)
