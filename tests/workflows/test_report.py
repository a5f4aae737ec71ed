"""The report as a page: every number on it is from an input, every section is there, equal inputs give equal bytes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from densenet_deploy.analysis.sensitivity import Cost, Sensitivity
from densenet_deploy.artifacts import sha256_of
from densenet_deploy.bench.machine import Machine
from densenet_deploy.bench.measurement import Measurement
from densenet_deploy.errors import DataError, InputError, OutputExistsError, UsageError
from densenet_deploy.model import Model
from densenet_deploy.parity.compare import Parity
from densenet_deploy.records import from_plain
from densenet_deploy.workflows.benchmark import BenchmarkReport
from densenet_deploy.workflows.quantize.quantize import QuantizeReport
from densenet_deploy.workflows.report import report, write_page
from densenet_deploy.workflows.sensitivity import SensitivityReport
from tests.reading_html import Reading
from tests.workflows.html_report.conftest import (
    ReportFolder,
    machine,
    parity,
    reports,
    result,
    two_models,
    validation,
)
from tests.workflows.html_report.test_decide import trial, tuned

__all__ = ["reports"]

SECTIONS = [
    "Candidates", "Latency", "Accuracy", "Parity and SQNR", "Calibration", "Precision of each layer",
    "The network", "Provenance", "Reproduce",
]  # fmt: skip


def sensitivity_of(model: Path) -> dict[str, object]:
    row = Sensitivity("features.conv0", ("features.conv0",), Cost(51.25), Cost(33.5), 3.25)
    return SensitivityReport(
        model=str(model), recipe="openvino", per="layer", float_top1=None, int8=Cost(30.25), sensitivity=(row,)
    ).to_json()


def quantization_of(model: Path) -> dict[str, object]:
    return QuantizeReport(
        onnx=model,
        recipe="openvino",
        outputs={"logits": Parity.from_json(parity())},
        layers_int8=8,
        layers_float=1,
        float_layers=("features.conv0",),
        float_unasked=(),
        weight_bits=7,
        calibrated_on=77,
    ).to_json()


@pytest.fixture(scope="module")
def read(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> ReportFolder:
    """What `page` is made of; not to be changed."""
    return two_models(tiny_onnx, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def page(read: ReportFolder) -> Reading:
    sources = read.sources(
        benchmarks=(read.compared(4.0, 2.0),),
        evaluations=read.evaluated(0.9012, 0.8999),
        validations=(read.write("validate.json", validation(read.slow, read.fast)),),
        sensitivities=(read.write("sensitivity.json", sensitivity_of(read.slow)),),
        quantizations=(read.write("quantize.json", quantization_of(read.fast)),),
    )
    return Reading(write_page(sources, str(read.folder / "page.html")).file.read_bytes())


def test_the_decision_comes_first_and_every_section_follows(page: Reading) -> None:
    assert page.headings[0] == "Ship fast.onnx"
    sections = [heading for heading in page.headings if heading in SECTIONS]
    assert sections == SECTIONS
    decision = page.text[page.text.index("Ship fast.onnx") : page.text.index("Candidates whose 95% intervals")]
    gain = "2.0 × faster, same size, same accuracy within noise (0 of 200 images)"
    facts = "2.00 [1.80, 2.20] against 4.00 [3.60, 4.40] ms per call, 0.0 against 0.0 MiB, top-1 89.99% against 90.12%"
    for words in (gain, f"Compared with slow.onnx on openvino, 2 threads: {facts}", "The fastest of 2 candidates.",
                  "Which file", "How fast", "How small", "What is lost", "A CPU of 1999, 3 usable CPUs",
                  "densenet-deploy run fast.onnx --backend openvino --threads 2 IMAGE"):  # fmt: skip
        assert words in decision
    assert "untrained" in decision.lower()


def test_latencies_are_those_measured(page: Reading) -> None:
    heads, slow, fast = page.table("single-stream, batch 1")
    assert heads[:3] == ["model", "runs on", "precision"]
    assert slow == ["slow.onnx", "openvino, 2 threads", "fp32", "4.00 [3.60, 4.40]", "4.40", "5.20", "250.0", "3.0",
                    "120", "7.00"]  # fmt: skip
    assert fast[3:7] == ["2.00 [1.80, 2.20]", "2.20", "2.60", "500.0"]
    assert "A CPU of 1999, 3 usable CPUs" in page.text


def test_accuracies_and_mistakes_are_those_found(page: Reading) -> None:
    rows = page.table("Accuracy")
    assert [row[2:6] for row in rows[1:]] == [["90.12%", "–", "3.21%", "200"], ["89.99%", "–", "3.21%", "200"]]
    weak, wrong = (table.rows for table in page.tables if table.caption.startswith("At most 10"))
    assert weak[1] == ["slow.onnx", "cat", "82.00%", "50"]
    assert wrong[1] == ["slow.onnx", "cat", "class 1", "7"]
    assert len(wrong) == 3, "right answers are not listed"


def test_parity_sensitivity_and_calibration_are_those_found(page: Reading) -> None:
    (row,) = page.table("Parity of outputs")[1:]
    assert row[:8] == ["fast.onnx", "slow.onnx", "43.2", "31.5", "0.987654", "0.123", "75.00%", "passed"]
    assert row[8:] == ["openvino 2026.0, cpu, int8", "onnxruntime 1.31, cpu, fp32"]
    assert page.table("The 1 layer of fast.onnx")[1] == ["features.norm0", "12.3", "0.987654", "0.123"]
    assert page.table("slow.onnx, recipe openvino")[1] == ["features.conv0", "51.2", "33.5", "3.2", "–"]
    (row,) = page.table("Calibration of each model")[1:]
    assert row == ["fast.onnx", "77", "openvino", "7", "8", "1", "43.2", "not measured"]


def test_precision_and_hashes_are_the_files_own(page: Reading, read: ReportFolder) -> None:
    slow = page.table("Precision")[1]  # stem, 2 x 2 layers of two convolutions, transition, classifier
    assert slow == ["slow.onnx", "fp32", "11 fp32", "fp32 (openvino)", "read from the graph"]
    assert page.table("Models")[1] == [
        "slow.onnx", f"{read.slow.stat().st_size:,}", read.hash(read.slow)
    ]  # fmt: skip
    inputs = page.table("Reports behind this page")
    assert read.hash(read.folder / "sensitivity.json") in [row[2] for row in inputs]


def test_figures_are_in_the_page(page: Reading) -> None:
    assert {name.split("-")[0] for name in page.ids if re.match(r"figure\d+-", name)} == {
        f"figure{number}" for number in range(1, 7)
    }, "pareto, sqnr, cost, growth, connections, reuse"


@pytest.mark.slow
def test_the_commands_are_those_that_the_reports_record(reports: ReportFolder) -> None:
    argv = ["densenet-deploy", "benchmark", "a b.onnx", "--threads", "2", "--json"]
    facts = json.loads(reports.compared().read_text())
    recorded = reports.write("recorded.json", facts | {"argv": argv})
    sources = reports.sources(benchmarks=(reports.compared(), recorded))
    page = Reading(write_page(sources, str(reports.folder / "page.html")).file.read_bytes())
    lines = page.text[page.text.index("Commands for the folder") :]
    assert f"densenet-deploy benchmark 'a b.onnx' --threads 2 --json > {recorded.name}" in lines
    assert lines.count("densenet-deploy benchmark") == 1, "the other report records none"
    assert "-o page.html --benchmark benchmark.json" in lines


def test_without_reports_the_page_says_what_makes_them(reports: ReportFolder) -> None:
    written = write_page(reports.sources(), str(reports.folder / "page.html"))
    page = Reading(written.file.read_bytes())
    assert written.chosen is None
    assert page.headings[0] == "No model to recommend yet"
    sections = ["Precision of each layer", "The network", "Provenance", "Not measured", "Reproduce"]
    assert [heading for heading in page.headings if heading in (*SECTIONS, "Not measured")] == sections
    for command in ("tune", "benchmark", "evaluate", "validate", "sensitivity", "quantize"):
        assert re.search(rf"densenet-deploy {command} slow.onnx .*--json > {command}\.json", page.text)
        assert f"--{command} {command}.json" in page.text
    assert "densenet-deploy validate slow.onnx fast.onnx --per-layer" in page.text
    assert "densenet-deploy evaluate slow.onnx --against fast.onnx --data FOLDER" in page.text


def test_what_is_known_is_not_said_to_be_missing(page: Reading) -> None:
    assert "Not measured" not in page.headings, "tune would not add to what benchmark measured"


def test_paths_are_those_of_the_folder_of_the_page(reports: ReportFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """From there its commands work, wherever the page was made from."""
    monkeypatch.chdir(reports.folder.parent)
    folder = Path(reports.folder.name)
    facts = json.loads(reports.compared().read_text())
    argv = ["densenet-deploy", "benchmark", str(folder / "slow.onnx"), "--threads", "1", "--json"]
    reports.write("benchmark.json", facts | {"argv": argv})
    sources = type(reports.sources())(
        (folder / "slow.onnx", folder / "fast.onnx"), benchmarks=(folder / "benchmark.json",)
    )
    text = Reading(write_page(sources, folder / "pages" / "page.html").file.read_bytes()).text
    assert "densenet-deploy run ../fast.onnx --backend openvino --threads 2 IMAGE" in text
    assert "densenet-deploy benchmark ../slow.onnx --threads 1 --json > ../benchmark.json" in text
    assert "densenet-deploy report ../slow.onnx ../fast.onnx -o page.html --benchmark ../benchmark.json" in text
    assert "densenet-deploy evaluate ../slow.onnx --against ../fast.onnx" in text
    assert str(reports.folder) not in text


def test_headline_table_and_command_show_what_tune_chose(reports: ReportFolder) -> None:
    other, chosen = trial(reports, latency_ms=5.4, interval_ms=(5.3, 5.45)), trial(reports, threads=2)
    tune = tuned(reports, other, chosen, chosen=chosen, reason="because")
    page = Reading(write_page(reports.sources(tunings=(tune,)), str(reports.folder / "page.html")).file.read_bytes())
    assert page.headings[0] == "Ship slow.onnx"
    heads, first, marked = page.table("Candidates")
    assert heads == ["#", "file", "runs on", "ms per call [95%]", "relative to the choice", "top-1", "points lost",
                     "SQNR dB", "file MiB", "memory MiB"]  # fmt: skip
    assert first[:5] == ["1", "slow.onnx", "onnxruntime, 1 thread", "5.40 [5.30, 5.45]", "as fast"]
    assert marked == [
        "2", "slow.onnx", "onnxruntime, 2 threads", "5.50 [5.00, 6.00]", "chosen", "91.00%", "0.40", "43.2", "3.0",
        "2.0",
    ]  # fmt: skip
    assert "As fast as the same file on onnxruntime, 1 thread (95% intervals overlap), of 2 candidates" in page.text
    assert "densenet-deploy benchmark slow.onnx --threads 1" in page.text[page.text.index("Commands for the folder") :]
    assert "A CPU of 1999" in page.text


@pytest.mark.slow
def test_a_machine_is_described_once(reports: ReportFolder) -> None:
    tune = tuned(reports)
    page = Reading(
        write_page(
            reports.sources(tunings=(tune,), benchmarks=(reports.compared(),)), f"{reports.folder}/"
        ).file.read_bytes()
    )
    assert page.text.count("A CPU of 1999") == 1
    assert "as in tune.json, above" in page.text
    tune.write_text(tune.read_text().replace("2.4.6", "2.4.7"))
    other = write_page(reports.sources(tunings=(tune,), benchmarks=(reports.compared(),)), f"{reports.folder}/")
    assert Reading(other.file.read_bytes()).text.count("A CPU of 1999") == 2, "another version, so another machine"


def test_a_stale_measurement_is_marked(reports: ReportFolder) -> None:
    sources = reports.sources(benchmarks=(reports.benchmark(result(reports.slow, 4.0, "0" * 64)),))
    page = Reading(write_page(sources, str(reports.folder / "page.html")).file.read_bytes())
    assert page.table("single-stream")[1][0] == "slow.onnx (since changed)"
    assert page.headings[0] == "No model to recommend yet"


@pytest.mark.slow
def test_equal_inputs_give_equal_bytes(reports: ReportFolder) -> None:
    sources, out = reports.sources(benchmarks=(reports.compared(),)), str(reports.folder / "page.html")
    first = write_page(sources, out).file.read_bytes()
    assert write_page(sources, out).file.read_bytes() == first
    other = reports.sources(benchmarks=(reports.compared(4.0, 2.5),))
    assert write_page(other, out).file.read_bytes() != first


@pytest.mark.slow
def test_unexpected_names_and_untrusted_metadata_are_shown_as_text(reports: ReportFolder) -> None:
    odd = reports.folder / "<b>$x$\x1b[2J.onnx"
    odd.write_bytes(reports.slow.read_bytes())
    note = "<img src=x onerror=alert(1)>" + "z" * 2_000_000
    benchmark = reports.benchmark(result(odd, 1.0, reports.hash(odd)), notes=(note,))
    (accuracy,) = reports.evaluated(0.5, 0.5)[:1]
    accuracy.write_text(accuracy.read_text().replace("slow.onnx", "<b>$x$\\u001b[2J.onnx"))
    sources = type(reports.sources())((odd, reports.fast), benchmarks=(benchmark,), evaluations=(accuracy,))
    data = write_page(sources, str(reports.folder / "page.html")).file.read_bytes()
    page = Reading(data)
    assert page.headings[0] == r"Ship <b>$x$\x1b[2J.onnx"
    assert {"b", "img"}.isdisjoint(page.tags)
    assert b"\x1b" not in data
    assert len(data) < 2_000_000


@pytest.mark.slow
def test_only_a_report_on_the_same_models_is_replaced(reports: ReportFolder) -> None:
    out = reports.folder / "page.html"
    write_page(reports.sources(), str(out))
    other = type(reports.sources())((reports.fast,))
    with pytest.raises(OutputExistsError) as caught:
        write_page(other, str(out))
    assert caught.value.subject == str(out)
    assert "fast.onnx" in write_page(other, str(out), force=True).file.read_text()
    out.write_text("mine")
    with pytest.raises(OutputExistsError):
        write_page(reports.sources(), str(out))
    assert out.read_text() == "mine"


def test_what_cannot_be_used_leaves_no_page(reports: ReportFolder) -> None:
    out, benchmark = reports.folder / "page.html", reports.compared()
    for given in ({"tunings": (benchmark,)}, {"sensitivities": (benchmark,)}):
        with pytest.raises(DataError) as caught:
            write_page(reports.sources(**given), str(out))
        assert caught.value.subject == str(benchmark)
    with pytest.raises(InputError):
        write_page(type(reports.sources())((reports.folder / "missing.onnx",)), str(out))
    with pytest.raises(UsageError) as refused:
        write_page(reports.sources(), str(reports.folder / "page.png"))
    assert refused.value.subject == str(reports.folder / "page.png")
    assert not out.exists()


def test_a_third_party_model_is_reported_without_an_architecture(torchvision_onnx: Path, tmp_path: Path) -> None:
    sources = ReportFolder(tmp_path, torchvision_onnx, torchvision_onnx).sources()
    page = Reading(write_page(type(sources)((torchvision_onnx,)), f"{tmp_path}/").file.read_bytes())
    assert "No model here says which DenseNet it is" in page.text
    assert page.table("Precision")[1][2].endswith("fp32")


def test_models_and_reports_in_memory_are_reported(tiny_onnx: Path, tmp_path: Path) -> None:
    held = Model.from_bytes("held", tiny_onnx.read_bytes())
    speed = from_plain(Measurement, result("held", 2.0, sha256_of(tiny_onnx)))
    timed = BenchmarkReport(results=(speed,), machine=from_plain(Machine, machine()))
    written = report([held], benchmark=[timed], out=tmp_path / "page.html")
    page = Reading(written.file.read_bytes())
    assert written.chosen == "held.onnx"
    assert page.table("Models")[1][0] == "held.onnx", "it has a name, not a file"
    assert page.table("single-stream, batch 1 (benchmark)")[1][0] == "held"
    assert "Drawn from held.onnx" in page.text
    assert "densenet-deploy run" not in page.text
