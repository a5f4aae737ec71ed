"""A page as bytes: everything from files is escaped and cut, nothing is fetched, equal pages are equal."""

from __future__ import annotations

import dataclasses
import re
import sys
from xml.etree import ElementTree as ET

import pytest

from densenet_deploy.analysis.cost import model_cost
from densenet_deploy.analysis.plots.cost import CostData
from densenet_deploy.analysis.plots.plot import draw, rendered
from densenet_deploy.errors import MissingPackageError
from densenet_deploy.reports import Cell, Table, text_cell
from densenet_deploy.variants.spec import DenseNetSpec
from densenet_deploy.workflows.html_report.page import (
    MOST_ROWS,
    Commands,
    Facts,
    Figure,
    Headline,
    Page,
    Remarks,
    Section,
    render,
)
from tests.reading_html import Reading

EVIL = "<script>alert(1)</script>\x1b[2J\n\u202e\"'&"


def cost_figure(name: str = "figure1") -> Figure:
    spec = DenseNetSpec(growth_rate=4, blocks=(2, 2), init_features=8)
    return Figure(name, rendered(draw("cost", CostData(EVIL, model_cost(spec, 32))), "svg", "cost"), EVIL)


def page_with(*blocks: object) -> Page:
    section = Section("one", EVIL, EVIL, blocks)  # type: ignore[arg-type]
    headline = Headline(EVIL, EVIL, EVIL, [EVIL], [(EVIL, EVIL, EVIL)], (), [EVIL], [EVIL])
    return Page(EVIL, EVIL, headline, (section,), EVIL)


def evil_everywhere() -> Page:
    return page_with(
        Table(EVIL, [EVIL, EVIL], [[Cell(EVIL, EVIL), Cell(EVIL, 1.0)]], EVIL),
        Facts([(EVIL, EVIL)], EVIL),
        cost_figure(),
        Commands([EVIL], EVIL),
        Remarks([EVIL]),
    )


def test_nothing_from_files_becomes_markup() -> None:
    page = render(evil_everywhere())
    reading = Reading(page)
    assert reading.tags.count("script") == 1, "the page's own"
    assert "<script>alert" in reading.text, "it is shown, as text"
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]|\xe2\x80\xae", page), "control characters are escaped"
    assert r"\x1b[2J\n\u202e" in reading.text


def test_megabytes_are_cut() -> None:
    huge = "y" * 5_000_000
    page = render(page_with(Facts([(huge, huge)]), Commands([huge]), Table(huge, [huge], [[Cell(huge)]])))
    assert len(page) < 50_000


def test_a_table_of_thousands_is_cut_and_says_so() -> None:
    rows = [[Cell(f"row {number}")] for number in range(MOST_ROWS + 7)]
    reading = Reading(render(page_with(Table("long", ["name"], rows))))
    assert len(reading.table("long")) == MOST_ROWS + 1
    assert "7 more rows are not shown" in reading.text
    assert "not shown" not in Reading(render(page_with(Table("short", ["name"], rows[:MOST_ROWS])))).text


def test_the_page_refers_to_nothing_but_itself() -> None:
    page = render(evil_everywhere())
    reading = Reading(page)
    assert reading.references
    assert all(reference.startswith(("#", "data:")) for reference in reading.references)
    assert {reference[1:] for reference in reading.references if reference.startswith("#")} <= set(reading.ids)
    assert b"http://" not in page
    assert b"https://" not in page
    assert b"@import" not in page


def test_two_figures_share_no_name() -> None:
    reading = Reading(render(page_with(cost_figure("figure1"), cost_figure("figure2"))))
    assert {name.split("-")[0] for name in reading.ids if name.startswith("figure")} == {"figure1", "figure2"}
    drawn = [name for name in reading.ids if name.startswith("figure1-")]
    assert {name.replace("figure1", "figure2", 1) for name in drawn} <= set(reading.ids)


def test_an_inline_figure_is_one_element_with_a_label_for_screen_readers() -> None:
    page = render(page_with(dataclasses.replace(cost_figure(), caption="a caption"))).decode()
    root = ET.fromstring(page[page.index('<svg viewBox="0 0 5') : page.index("</svg>") + len("</svg>")])
    assert (root.tag, root.get("role"), root.get("aria-label")) == ("svg", "img", "a caption")
    assert root.get("viewBox")
    assert root.get("width") is None, "the page says how wide"


def test_a_caption_that_repeats_the_heading_is_for_screen_readers_alone() -> None:
    def caption(title: str) -> str:
        page = page_with(Table("Precision", ["a"], [[text_cell("b")]]))
        section = dataclasses.replace(page.sections[0], title=title)
        return render(dataclasses.replace(page, sections=[section])).decode()

    assert '<caption class="repeated">Precision</caption>' in caption("Precision of each layer")
    assert "<caption>Precision</caption>" in caption("Of each layer")


def test_equal_pages_are_equal_bytes_and_another_is_not() -> None:
    page = evil_everywhere()
    assert render(page) == render(evil_everywhere())
    assert render(dataclasses.replace(page, title="another")) != render(page)


def test_cells_carry_what_they_are_sorted_by() -> None:
    row = [Cell("1.50 [1, 2]", 1.5, (0.1, 0.5, 9.0)), Cell("–")]
    page = render(page_with(Table("t", ["ms", "ms"], [row]))).decode()
    assert 'class="number" data-key="1.5"' in page
    assert "M10.00 6H100.00" in page, "what lies beyond the axis ends with it"
    assert re.search(r'<td class="number">–</td>', page), "an unknown value has no key"


def test_without_jinja_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingPackageError) as caught:
        render(page_with())
    assert caught.value.subject == "jinja2"


def test_options_are_broken_at_spaces_alone() -> None:
    line = "densenet-deploy run 'a b<i>.onnx' --backend openvino"
    page = render(page_with(Commands([line], "give it with --max-drop 1"), Remarks(["a well-known word"]))).decode()
    assert '<span class="whole">--backend</span> openvino' in page
    assert 'with <span class="whole">--max-drop</span> 1' in page
    assert "well-known word" in page, "words of prose may be broken behind a hyphen"
    assert line in Reading(page.encode()).text
