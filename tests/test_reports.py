"""Reports as JSON, as files, as text and in a notebook; the tables and lines of their text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from densenet_deploy.errors import DataError, InputError
from densenet_deploy.reports import (
    COMMAND_LINE,
    Report,
    Table,
    TimedReport,
    line,
    mib,
    number_cell,
    read_json,
    table,
    table_of,
    text_cell,
    wrote,
)


@dataclass(frozen=True, kw_only=True)
class Weighed(TimedReport):
    kind: ClassVar[str] = "weigh"

    grams: int
    path: Path | None = None

    def to_text(self) -> str:
        return f"weighs <{self.grams}>"


WEIGHED = Weighed(
    grams=3, path=Path("a/b"), stages={"lift": 1.5, "read": 0.25}, notes=("a < b", "rough"), argv=("weigh", "b")
)


def test_the_json_has_the_facts_first_and_ends_with_stages_notes_and_command_line():
    facts = WEIGHED.to_json()
    assert facts == {
        "grams": 3,
        "path": "a/b",
        "seconds": 1.75,
        "stages": {"lift": 1.5, "read": 0.25},
        "notes": ["a < b", "rough"],
        "argv": ["weigh", "b"],
    }
    assert list(facts) == ["grams", "path", "seconds", "stages", "notes", "argv"]


def test_without_a_command_line_the_json_names_none():
    assert Weighed(grams=3).to_json() == {"grams": 3, "path": None, "seconds": 0, "stages": {}, "notes": []}


def test_what_was_written_is_read_back(tmp_path):
    assert Weighed.from_json(WEIGHED.to_json()) == WEIGHED
    (tmp_path / "r.json").write_bytes(WEIGHED.to_file())
    assert Weighed.read(tmp_path / "r.json") == WEIGHED
    assert Weighed.from_json({"grams": 3}).stages == {}


def test_a_file_has_a_header_the_json_and_the_command_line_that_is_being_run():
    assert Weighed(grams=3).to_file().decode() == (
        '{\n  "grams": 3,\n  "path": null,\n  "seconds": 0,\n  "stages": {},\n  "notes": []\n}\n'
    )
    token = COMMAND_LINE.set(("weigh", "c"))
    try:
        text = Weighed(grams=3).to_file({"schema": 1}).decode()
    finally:
        COMMAND_LINE.reset(token)
    assert text.startswith('{\n  "schema": 1,\n  "grams": 3,\n')
    assert text.endswith('  "notes": [],\n  "argv": [\n    "weigh",\n    "c"\n  ]\n}\n')


def test_another_report_is_refused_by_its_origin(tmp_path):
    with pytest.raises(DataError) as caught:
        Weighed.from_json({"grams": "many"})
    assert caught.value.subject == "report"
    assert caught.value.why.startswith("is not a report of weigh: grams is 'many'")
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(DataError) as caught:
        Weighed.read(tmp_path / "r.json")
    assert caught.value.subject == str(tmp_path / "r.json")


@pytest.mark.parametrize("content", ["cat", "[1]", "NaN", "3"])
def test_what_is_not_a_json_object_is_refused(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(DataError) as caught:
        read_json(tmp_path / "r.json")
    assert caught.value.subject == str(tmp_path / "r.json")


def test_a_file_that_is_missing_empty_or_a_folder_is_refused(tmp_path):
    (tmp_path / "empty.json").touch()
    for path in (tmp_path / "gone.json", tmp_path / "empty.json", tmp_path):
        with pytest.raises(InputError) as caught:
            read_json(path)
        assert (type(caught.value), caught.value.subject) == (InputError, str(path))


def test_the_text_is_that_of_the_report_and_a_notebook_shows_it_with_the_notes():
    assert str(WEIGHED) == "weighs <3>"
    assert WEIGHED._repr_html_() == (
        '<pre style="white-space:pre;overflow-x:auto">weighs &lt;3&gt;</pre>'
        "<div><em>note: a &lt; b</em></div><div><em>note: rough</em></div>"
    )
    with pytest.raises(NotImplementedError):
        Report().to_text()


@dataclass(frozen=True, kw_only=True)
class Listed(Report):
    kind: ClassVar[str] = "list"

    def tables(self) -> list[Table]:
        return [LIST]

    def to_text(self) -> str:
        return "\n".join(["before", "", *LIST.lines(), "", "after \x1b[2J"])


LIST = table_of(
    "Fruits",
    [("<apple>", 10.0), ("fig", None)],
    {"name": lambda row: text_cell(row[0]), "g": lambda row: number_cell(row[1])},
)


def test_a_notebook_shows_tables_as_tables_and_obeys_no_character():
    shown = Listed(notes=("<b>\x1b",))._repr_html_()
    assert shown.startswith('<pre style="white-space:pre;overflow-x:auto">before\n\nafter \\x1b[2J</pre><table>')
    assert '<td style="text-align:left">&lt;apple&gt;</td><td style="text-align:right">10</td>' in shown
    assert shown.endswith("<div><em>note: &lt;b&gt;\\x1b</em></div>")
    assert "<script" not in shown


def test_ipython_shows_the_text():
    class Printer:
        shown = ""

        def text(self, words: str) -> None:
            self.shown += words

    printer = Printer()
    vars(Weighed)["_repr_pretty_"](WEIGHED, printer, cycle=False)
    assert printer.shown == "weighs <3>"


def test_a_table_has_lines_and_leaves_out_columns_without_values():
    assert LIST.lines() == ["name      g", "<apple>  10", "fig       –"]
    assert LIST.numeric == [False, True]
    empty = table_of("", [1.0], {"a": lambda one: number_cell(one), "b": lambda _one: number_cell(None)})
    assert empty.headings == ["a", "b"]
    assert empty.without_empty_columns().headings == ["a"]


def test_stages_are_one_line_if_there_are_any():
    assert WEIGHED.stage_lines() == ["seconds     1.8 (lift 1.5, read 0.2)"]
    assert Weighed(grams=3).stage_lines() == []


def test_the_file_that_was_written_is_one_line():
    assert wrote(None) == []
    assert wrote(Path("a\nb")) == ["wrote       a\\nb"]


def test_a_label_has_twelve_columns():
    assert line("recipe", 3) == "recipe      3"


def test_the_columns_of_a_table_are_as_wide_as_their_widest_cell():
    assert table(("name", "n"), [("a", "10"), ("longer", "5")], right=(1,)) == [
        "name     n",
        "a       10",
        "longer   5",
    ]
    assert table(("name", "n"), []) == ["name  n"]


def test_sizes_are_given_in_mebibytes():
    assert [mib(size) for size in (0, 2**20, 1.5 * 2**20, 2**30)] == ["0.0 MiB", "1.0 MiB", "1.5 MiB", "1,024.0 MiB"]
