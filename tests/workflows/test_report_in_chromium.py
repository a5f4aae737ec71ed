"""The report in a browser: phone and desktop, light and dark; no requests, no console messages, sorting by keyboard."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from densenet_deploy.workflows.evaluation.report import (
    ChangedImage,
    ChangedOutput,
    Disagreement,
    EvaluateReport,
    ModelComparison,
)
from densenet_deploy.workflows.report import write_page
from tests.chromium import Tab, chromium_tab, find_chromium
from tests.workflows.evaluation.test_report import MULTILABEL, REGRESSION
from tests.workflows.html_report.conftest import ReportFolder, result, validation

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]

WAYS = [(width, dark) for width in (390, 1280) for dark in (False, True)]


@pytest.fixture(scope="module")
def address(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    reports = ReportFolder(folder, folder / "a_name_as_long_as_those_of_real_models.int8.onnx", folder / "b.onnx")
    for path in (reports.slow, reports.fast):
        shutil.copy(tiny_onnx, path)
    third = folder / "c.onnx"
    shutil.copy(tiny_onnx, third)
    rows = [
        result(path, ms, reports.hash(path)) for path, ms in ((reports.slow, 10.0), (reports.fast, 9.0), (third, 100.0))
    ]
    image = folder / "image.png"
    Image.new("RGB", (16, 8), (200, 30, 30)).save(image)
    against = ModelComparison(
        model="b.onnx", count=200, images_per_second=9.0, backend="openvino", precision="int8", shared=200, top1=0.9,
        disagreements=(Disagreement(image, 0, 0, 0.9, 1, 0.8),), only_first_right=1, only_second_right=0,
    )  # fmt: skip
    slow, fast = reports.evaluated(0.9, 0.92)
    facts = EvaluateReport.from_json(json.loads(slow.read_text()))
    slow.write_text(json.dumps(dataclasses.replace(facts, against=against).to_json()))
    flipped = ChangedOutput(index=0, truth=1.0, first=0.6, second=0.4, only_first=True)
    others = [
        dataclasses.replace(one, model=name, against=dataclasses.replace(one.against, changed=found))
        for one, name, found in (
            (MULTILABEL, "labels.onnx", (ChangedImage(image, (flipped,) * 3),) * 3),
            (REGRESSION, "numbers.onnx", (ChangedImage(image, (dataclasses.replace(flipped, only_first=None),)),)),
        )
    ]
    more = [reports.write(f"{one.task}.json", one.to_json()) for one in others]
    sources = reports.sources(
        benchmarks=(reports.benchmark(*rows, notes=("other programs were at work",)),),
        evaluations=(slow, fast, *more),
        validations=(reports.write("validate.json", validation(reports.slow, reports.fast)),),
    )
    return write_page(sources, str(folder / "page.html")).file.as_uri()


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    assert CHROMIUM is not None
    with chromium_tab(CHROMIUM, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.mark.parametrize(("width", "dark"), WAYS)
def test_the_page_asks_for_nothing_says_nothing_and_fits(tab: Tab, address: str, width: int, dark: bool) -> None:
    tab.requests.clear()
    tab.console.clear()
    tab.open(address, width, dark=dark)
    assert {request for request in tab.requests if not request.startswith("data:")} == {address}
    assert tab.console == []
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")


def test_the_tab_sees_requests_and_errors_where_there_are_any(tab: Tab, tmp_path: Path) -> None:
    """The twin of the test above: what it looks for would be seen."""
    bad = tmp_path / "bad.html"
    loud = "<img src='missing.png'><script>console.error('x'); undefined.y</script>"
    bad.write_text(f"<!doctype html>{loud}<p style='width:5000px'>wide")
    tab.requests.clear()
    tab.console.clear()
    tab.open(bad.as_uri(), 390)
    assert any(request.endswith("missing.png") for request in tab.requests)
    assert len(tab.console) >= 2
    assert not tab.run("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(("width", "dark"), WAYS)
def test_light_is_light_and_dark_is_dark(tab: Tab, address: str, width: int, dark: bool) -> None:
    tab.open(address, width, dark=dark)
    with Image.open(io.BytesIO(tab.screenshot())) as shot:
        assert shot.width == width
        histogram = shot.convert("L").histogram()
    share = sum(histogram[:64]) / sum(histogram)
    assert share > 0.8 if dark else share < 0.2


def test_nothing_overlaps_and_the_decision_is_seen_first(tab: Tab, address: str) -> None:
    for width in (390, 1280):
        tab.open(address, width)
        boxes = tab.run(
            "[...document.querySelectorAll('#decision, main > section')].map(e => e.getBoundingClientRect())"
            ".map(box => [box.top, box.bottom, box.left, box.right])"
        )
        assert len(boxes) == 10, "the decision, and the sections that have data"
        assert all(above[1] <= below[0] for above, below in itertools.pairwise(boxes))
        assert all(0 <= left < right <= width for _, _, left, right in boxes)
        assert tab.run("document.querySelector('h1').getBoundingClientRect().bottom < 450")


@pytest.mark.parametrize("width", [1024, 1440, 1920])
def test_a_desktop_is_used_to_its_right_edge(tab: Tab, address: str, width: int) -> None:
    """The decision on the left, its figure on the right; tables as wide as the page."""
    tab.open(address, width)
    words, figure = (
        tab.run(f"(box => [box.left, box.right, box.top])(document.querySelector('{name}').getBoundingClientRect())")
        for name in ("header > .words", "header > figure")
    )
    assert words[1] <= figure[0]
    assert abs(words[2] - figure[2]) < 10, "side by side"
    edge = min(width, 1600) + (max(width, 1600) - 1600) / 2
    assert figure[1] > edge - 60
    assert tab.run("document.querySelector('#candidates .scroll').getBoundingClientRect().right") > edge - 60


@pytest.mark.parametrize("width", [390, 1440])
def test_five_questions_are_answered_within_two_screens(tab: Tab, address: str, width: int) -> None:
    tab.open(address, width)
    answers = dict(
        tab.run("[...document.querySelectorAll('.answers > div')].map(e => [...e.children].map(c => c.innerText))")
    )
    assert list(answers) == [
        "Which file", "How fast", "How small", "What is lost", "On which machine",
        "How to run it, from the folder of this page",
    ]  # fmt: skip
    assert answers["On which machine"].startswith("A CPU of 1999, 3 usable CPUs")
    assert "densenet-deploy run" in answers["How to run it, from the folder of this page"]
    assert tab.run("document.querySelector('.answers').getBoundingClientRect().bottom") < (
        1800 if width == 390 else 900
    )
    inside = "[...document.querySelectorAll('.answers *')].every(e => e.getBoundingClientRect().right <= innerWidth)"
    assert tab.run(inside)


@pytest.mark.parametrize("dark", [False, True])
def test_images_keep_their_colours(tab: Tab, address: str, dark: bool) -> None:
    tab.open(address, 1440, dark=dark)
    box = "document.querySelector('.images img').getBoundingClientRect()"
    left, top = tab.run(f"(box => [box.left + 20, box.top + scrollY + 20])({box})")
    with Image.open(io.BytesIO(tab.screenshot())) as shot:
        red, green, blue = shot.convert("RGB").getpixel((int(left), int(top)))  # type: ignore[misc]
    assert (red > 150, green < 80, blue < 80) == (True, True, True)


def order(tab: Tab) -> list[str]:
    rows = "document.querySelector('#latency tbody').rows"
    return list(tab.run(f"[...{rows}].map(row => row.cells[0].textContent[0])"))


def states(tab: Tab) -> list[str]:
    return list(tab.run("[...document.querySelectorAll('#latency th')].map(th => th.getAttribute('aria-sort') || '')"))


def test_tables_are_sorted_by_keyboard(tab: Tab, address: str) -> None:
    tab.open(address, 1280)
    assert order(tab) == ["a", "b", "c"]
    column = tab.run(
        "[...document.querySelectorAll('#latency th')].findIndex(th => th.textContent.includes('ms per call'))"
    )
    tab.run("document.querySelector('#latency .scroll').focus()")
    for _ in range(column + 1):
        tab.press("Tab", 9)
    assert "ms per call" in tab.run("document.activeElement.textContent")
    tab.press("Enter", 13, "\r")
    assert order(tab) == ["b", "a", "c"], "9, 10, 100 ms: as numbers, not as text"
    assert states(tab)[column] == "ascending"
    tab.press(" ", 32, " ")
    assert order(tab) == ["c", "a", "b"]
    assert states(tab)[column] == "descending"
    tab.press("Tab", 9)
    tab.press("Enter", 13, "\r")
    assert [state for state in states(tab) if state] == ["ascending"], "one column at a time"


def test_tables_are_sorted_by_mouse(tab: Tab, address: str) -> None:
    tab.open(address, 1280)
    tab.run("document.querySelector('#latency th button').click()")
    tab.run("document.querySelector('#latency th button').click()")
    assert order(tab) == ["c", "b", "a"]


def test_it_prints(tab: Tab, address: str) -> None:
    tab.open(address, 1280)
    assert tab.pdf().startswith(b"%PDF-")


@pytest.mark.parametrize("width", [390, 1280])
def test_options_stay_in_one_line(tab: Tab, address: str, width: int) -> None:
    tab.open(address, width)
    options = "[...document.querySelectorAll('.whole')].filter(e => e.textContent.startsWith('--'))"
    assert tab.run(f"{options}.length") > 10
    assert tab.run(f"{options}.every(e => e.getBoundingClientRect().height < 30)")


def lines_of_names(tab: Tab) -> int:
    """How many lines the longest name of a model in the table of latencies takes."""
    lines = "e => { const range = document.createRange(); range.selectNodeContents(e); return new Set("
    lines += "[...range.getClientRects()].map(box => box.top)).size; }"
    return int(tab.run(f"Math.max(...[...document.querySelectorAll('#latency td:first-child')].map({lines}))"))


@pytest.mark.parametrize("width", [1280, 1440, 1920])
def test_tables_of_measurements_are_seen_whole_at_a_desk(tab: Tab, address: str, width: int) -> None:
    tab.open(address, width)
    regions = (
        "[...document.querySelectorAll('#candidates .scroll, #latency .scroll, #accuracy .scroll, #parity .scroll')]"
    )
    assert tab.run(f"{regions}.length") > 3
    assert tab.run(f"{regions}.every(e => e.scrollWidth <= e.clientWidth)")
    assert lines_of_names(tab) == 1


def test_a_phone_shows_that_a_table_goes_on(tab: Tab, address: str) -> None:
    tab.open(address, 390)
    assert lines_of_names(tab) > 1
    assert _darkest_at_the_right(tab, 0) < 220, "a shadow, where the table goes on"
    assert _darkest_at_the_right(tab, 9999) > 240, "and none where it ends"


def _darkest_at_the_right(tab: Tab, scrolled: int) -> int:
    """The grey of the right edge of the table of latencies, beside its caption where nothing is written."""
    region = "document.querySelector('#latency .scroll')"
    tab.run(f"{region}.scrollLeft = {scrolled}")
    left, top = tab.run(f"(box => [box.right - 3, box.top + scrollY + 4])({region}.getBoundingClientRect())")
    with Image.open(io.BytesIO(tab.screenshot())) as shot:
        return int(shot.convert("L").getpixel((int(left), int(top))))  # type: ignore[arg-type]
