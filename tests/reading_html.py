"""A page as a test reads it: its text, tables, headings, and everything that could make a browser fetch something."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

_LOADING = {"src", "href", "xlink:href", "srcset", "action", "data"}
_VOID = {"meta", "link", "wbr", "br", "img", "input"}


@dataclass
class ReadTable:
    caption: str = ""
    rows: list[list[str]] = field(default_factory=list)


class Reading(HTMLParser):
    """`text` is what is seen, scripts and styles aside; `references` are the values of attributes that can load."""

    def __init__(self, page: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.tables: list[ReadTable] = []
        self.headings: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(page.decode())
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in _LOADING]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag in _VOID:
            return
        self._open.append(tag)
        if tag == "table":
            self.tables.append(ReadTable())
        elif tag == "tr":
            self.tables[-1].rows.append([])
        elif tag in ("td", "th"):
            self.tables[-1].rows[-1].append("")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"script", "style"} & set(self._open):
            return
        self.text += data
        if "caption" in self._open:
            self.tables[-1].caption += data
        elif {"td", "th"} & set(self._open):
            self.tables[-1].rows[-1][-1] += data
        elif self._open and {"h1", "h2", "h3"} & set(self._open):
            self.headings[-1] += data

    def table(self, caption: str) -> list[list[str]]:
        """The rows, the headings first, of the one table whose caption begins so."""
        (found,) = [table for table in self.tables if table.caption.startswith(caption)]
        return [[cell.strip() for cell in row] for row in found.rows]
