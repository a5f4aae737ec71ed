"""Docstrings in Google's style as Markdown."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any, Final, Self

_SECTION: Final = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):\n((?:    .*\n|\n)+)", re.MULTILINE)
_ITEM: Final = re.compile(r"^    (\S[^:]*): ((?:.*\n)(?:     .*\n|\n)*)", re.MULTILINE)
_LITERAL: Final = re.compile(r"^(.*)::\n\n((?:    .*\n|\n)+)", re.MULTILINE)
_EXAMPLE: Final = re.compile(r"^((?:>>> .*\n)(?:.+\n)*)", re.MULTILINE)
_DIRECTIVE: Final = re.compile(r" *# doctest: .*")


@dataclass(frozen=True)
class Docstring:
    """A docstring: its text without sections, and the sections by name."""

    text: str
    sections: dict[str, str]

    @classmethod
    def of(cls, value: Any) -> Self:
        """Read the docstring of `value`."""
        whole = (inspect.getdoc(value) or "") + "\n"
        return cls(_SECTION.sub("", whole).strip(), dict(_SECTION.findall(whole)))

    @property
    def summary(self) -> str:
        """The first paragraph, in one line."""
        return " ".join(self.text.split("\n\n")[0].split())

    def items(self, section: str) -> list[tuple[str, str]]:
        r"""Return the names in a section and what is said of them, in one line; none without that section.

        >>> Docstring("", {"Args": "    side: pixels,\n        at least 32.\n"}).items("Args")
        [('side', 'pixels, at least 32')]
        """
        found = _ITEM.findall(self.sections.get(section, ""))
        return [(name.replace("*", ""), " ".join(text.split()).rstrip(".")) for name, text in found]

    def markdown(self) -> str:
        """Return the text with its examples and literal blocks as code."""
        text = _LITERAL.sub(_fenced_literal, self.text + "\n")
        return _EXAMPLE.sub(lambda found: f"```pycon\n{_DIRECTIVE.sub('', found[1])}```\n", text).strip()


def _fenced_literal(found: re.Match[str]) -> str:
    lead = f"{found[1]}:\n\n" if found[1] else ""
    return f"{lead}```text\n{inspect.cleandoc(found[2])}\n```\n\n"
