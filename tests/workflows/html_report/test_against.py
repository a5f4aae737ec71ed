"""Two reports side by side: what changed, and what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from densenet_deploy.errors import DataError
from densenet_deploy.reports import Table
from densenet_deploy.workflows.html_report.against import against_section
from densenet_deploy.workflows.html_report.decide import decide
from densenet_deploy.workflows.html_report.load import Earlier, ReportSources, load_material
from densenet_deploy.workflows.html_report.page import Remarks
from densenet_deploy.workflows.report import write_page
from tests.reading_html import Reading
from tests.workflows.html_report.conftest import ReportFolder, evaluation, two_models
from tests.workflows.html_report.test_decide import trial, tuned


def compared_with(before: Path, sources: ReportSources) -> dict[str, Table]:
    """The tables of the section that compares a page with `sources`, by caption; remarks under an empty one."""
    (section,) = against_section(decide(load_material(sources)), Earlier.read(before))
    assert section.title == f"Compared with {before.name}"
    tables = {one.caption: one for one in section.blocks if isinstance(one, Table)}
    sentences = [sentence for one in section.blocks if isinstance(one, Remarks) for sentence in one.sentences]
    return {**tables, "": Table("", sentences, [])}


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


@pytest.fixture(scope="module")
def before(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    read = two_models(tiny_onnx, tmp_path_factory.mktemp("before"))
    sources = read.sources(benchmarks=(read.compared(4.0, 2.0),), evaluations=read.evaluated(0.9, 0.9))
    return write_page(sources, read.folder / "before.html").file


@pytest.mark.slow
def test_two_reports_stand_side_by_side(reports: ReportFolder, before: Path) -> None:
    given = {"benchmarks": (reports.compared(1.0, 2.1),), "evaluations": reports.evaluated(0.9, 0.905)}
    found = compared_with(before, reports.sources(**given))
    facts = {row[0]: row[1:] for row in texts(found["What to ship, then and now"])}
    assert facts["file"] == ["fast.onnx", "slow.onnx", "–"]
    assert facts["ms per call [95%]"] == ["2.00 [1.80, 2.20]", "1.00 [0.900, 1.10]", "2.0 × faster"]
    fast, slow = sorted(texts(found["Candidates that both measured"]))
    assert fast == ["fast.onnx", "openvino, 2 threads", "2.00 [1.80, 2.20]", "2.10 [1.89, 2.31]", "as fast",
                    "90.00%", "90.50%", "same size"]  # fmt: skip
    assert slow[4] == "4.0 × faster"
    assert found[""].headings == []


def test_candidates_of_other_settings_are_not_compared(reports: ReportFolder, before: Path) -> None:
    found = compared_with(before, reports.sources(tunings=(tuned(reports, chosen=trial(reports)),)))
    assert "Candidates that both measured" not in found
    assert "No candidate was measured in both." in found[""].headings


def test_a_tuning_is_compared_with_too(reports: ReportFolder) -> None:
    tune = tuned(reports, chosen=trial(reports))
    older = reports.folder / "older.json"
    older.write_bytes(tune.read_bytes())
    again = tuned(reports, chosen=trial(reports, latency_ms=2.0, interval_ms=(1.9, 2.1)))
    found = compared_with(older, reports.sources(tunings=(again,)))
    assert texts(found["Candidates that both measured"])[0][4] == "2.8 × faster"


def test_what_differs_between_the_machines_is_said(reports: ReportFolder, before: Path) -> None:
    changed = reports.compared()
    changed.write_text(changed.read_text().replace("2.4.6", "2.4.7").replace("A CPU of 1999", "Another"))
    (sentence,) = compared_with(before, reports.sources(benchmarks=(changed,)))[""].headings
    assert "same conditions: cpu A CPU of 1999, now Another; numpy 2.4.6, now 2.4.7." in sentence


def test_processors_of_one_name_are_told_apart_by_what_they_can_do(reports: ReportFolder, before: Path) -> None:
    """Virtual machines call CPUs of several generations `AMD EPYC`."""
    facts = json.loads(reports.compared().read_text())
    gpu = {"index": 0, "name": "X1", "compute_capability": "9.0", "driver": "575"}
    facts["machine"] |= {"vnni": False, "gpus": [gpu]}
    older = write_page(
        reports.sources(benchmarks=(reports.write("older.json", facts),)), reports.folder / "o.html"
    ).file
    facts["machine"] |= {"vnni": True, "gpus": []}
    now = reports.sources(benchmarks=(reports.write("now.json", facts),))
    (sentence,) = compared_with(older, now)[""].headings
    assert "same conditions: without VNNI, now with VNNI; X1, driver 575, now no GPU." in sentence
    assert "VNNI" not in compared_with(before, now)[""].headings  # it was not recorded


@pytest.mark.parametrize(
    ("images", "change"), [("b" * 64, "other images"), ("a" * 64, "same accuracy"), (None, "same accuracy")]
)
def test_accuracies_on_other_images_are_not_subtracted(reports: ReportFolder, images: str | None, change: str) -> None:
    def page(sha256: str | None) -> ReportSources:
        written = [
            reports.write(f"{path.stem}.json", evaluation(path, 0.9) | {"truth_sha256": sha256})
            for path in (reports.slow, reports.fast)
        ]
        return reports.sources(benchmarks=(reports.compared(),), evaluations=written)

    older = write_page(page("a" * 64), reports.folder / "older.html").file
    rows = {row[0]: row for row in texts(compared_with(older, page(images))["What to ship, then and now"])}
    assert rows["accuracy"][3] == change


def test_the_page_shows_what_it_is_compared_with(reports: ReportFolder, before: Path) -> None:
    sources = reports.sources(benchmarks=(reports.compared(),), against=before)
    page = Reading(write_page(sources, reports.folder / "now.html").file.read_bytes())
    assert "Compared with before.html" in page.headings
    assert "--against" in page.text


@pytest.mark.parametrize("content", ["<p>mine", '<meta name="densenet-deploy-decision" content="{}">', "\0"])
def test_another_page_cannot_be_compared_with(reports: ReportFolder, content: str) -> None:
    page = reports.folder / "mine.html"
    page.write_text(content)
    with pytest.raises(DataError) as caught:
        Earlier.read(page)
    assert caught.value.subject == str(page)
