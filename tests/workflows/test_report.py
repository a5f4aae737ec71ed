"""The report as a page: every number on it is one of the inputs, every section is there, bytes are the same again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from densenet_deploy.errors import DataError, InputError, OutputExistsError, UsageError
from densenet_deploy.workflows.report import report
from tests.reading_html import Reading
from tests.workflows.html_report.conftest import Desk, desk, machine, parity, result, validation
from tests.workflows.html_report.test_decision import trial

__all__ = ["desk"]

SECTIONS = [
    "Speed and accuracy", "Latency", "Accuracy", "Parity and SQNR", "Calibration", "Precision proof", "The network",
    "Provenance", "Make it again",
]  # fmt: skip


def cost(sqnr_db: float) -> dict[str, float | None]:
    return {"sqnr_db": sqnr_db, "top1": None}


def sensitivity_of(model: Path) -> dict[str, object]:
    row = {"name": "features.conv0", "layers": ["features.conv0"], "only_int8": cost(51.25), "only_float": cost(33.5)}
    return {"model": str(model), "recipe": "openvino", "per": "layer", "int8": cost(30.25), "sensitivity": [row]}


def quantization_of(model: Path) -> dict[str, object]:
    return {"onnx": str(model), "recipe": "openvino", "parity": parity(), "calibrated_on": 77, "weight_bits": 7,
            "layers_int8": 8, "float_layers": ["features.conv0"], "speed": None, "notes": []}  # fmt: skip


@pytest.fixture
def page(desk: Desk) -> Reading:
    sources = desk.sources(
        benchmarks=(desk.raced(4.0, 2.0),),
        evaluations=desk.evaluated(0.9012, 0.8999),
        validations=(desk.write("validate.json", validation(desk.slow, desk.fast)),),
        sensitivities=(desk.write("sensitivity.json", sensitivity_of(desk.slow)),),
        quantizations=(desk.write("quantize.json", quantization_of(desk.fast)),),
    )
    return Reading(report(sources, str(desk.folder / "page.html")).file.read_bytes())


def test_the_decision_comes_first_and_every_section_follows(page: Reading) -> None:
    assert page.headings[0] == "Ship fast.onnx"
    sections = [heading for heading in page.headings if heading in SECTIONS]
    assert sections == SECTIONS
    assert page.text.index("Ship fast.onnx") < page.text.index("Worth a look")
    assert "2.00 ms" in page.text[: page.text.index("Worth a look")]
    assert "untrained" in page.text[: page.text.index("Worth a look")].lower()


def test_latencies_are_those_measured(page: Reading) -> None:
    heads, slow, fast = page.table("single-stream, batch 1")
    assert heads[:3] == ["model", "runs on", "in"]
    assert slow == ["slow.onnx", "openvino, 2 threads", "fp32", "4.00 [3.60, 4.40]", "4.40", "5.20", "250.0", "3.0",
                    "120", "7.00"]  # fmt: skip
    assert fast[3:7] == ["2.00 [1.80, 2.20]", "2.20", "2.60", "500.0"]
    assert "A CPU of 1999, 3 usable CPUs" in page.text


def test_accuracies_and_mistakes_are_those_found(page: Reading) -> None:
    rows = page.table("Accuracy")
    assert [row[2:6] for row in rows[1:]] == [["90.12 %", "–", "3.21 %", "200"], ["89.99 %", "–", "3.21 %", "200"]]
    weak, wrong = (table.rows for table in page.tables if table.caption.startswith("At most 10"))
    assert weak[1] == ["slow.onnx", "cat", "82.00 %", "50"]
    assert wrong[1] == ["slow.onnx", "cat", "class 1", "7"]
    assert len(wrong) == 3, "right answers are no mistakes"


def test_parity_sensitivity_and_calibration_are_those_found(page: Reading) -> None:
    (row,) = page.table("Parity of outputs")[1:]
    assert row[:7] == ["fast.onnx", "slow.onnx", "43.2", "0.987654", "0.123", "75.00 %", "passed"]
    assert row[7:] == ["openvino 2026.0, cpu, int8", "onnxruntime 1.31, cpu, fp32"]
    assert page.table("The 1 layers of fast.onnx")[1] == ["features.norm0", "12.3", "0.987654", "0.123"]
    assert page.table("slow.onnx, recipe openvino")[1] == ["features.conv0", "51.2", "33.5", "3.2", "–"]
    (row,) = page.table("What each was calibrated on")[1:]
    assert row == ["fast.onnx", "77", "openvino", "7", "8", "1", "43.2", "not measured"]


def test_precision_and_hashes_are_the_files_own(page: Reading, desk: Desk) -> None:
    slow = page.table("Precision")[1]  # stem, 2 x 2 layers of two convolutions, transition, classifier
    assert slow == ["slow.onnx", "fp32", "11 fp32", "fp32 (openvino)", "read from the graph"]
    assert page.table("Models")[1] == [
        str(desk.slow), f"{desk.slow.stat().st_size:,}", desk.hash(desk.slow)
    ]  # fmt: skip
    inputs = page.table("Reports that this page was made from")
    assert desk.hash(desk.folder / "sensitivity.json") in [row[2] for row in inputs]


def test_images_are_in_the_page(page: Reading) -> None:
    assert {name.split("-")[0] for name in page.ids if re.match(r"image\d+-", name)} == {
        f"image{number}" for number in range(1, 7)
    }, "pareto, sqnr, cost, growth, connections, reuse"


def test_the_commands_are_those_that_the_inputs_tell_of(page: Reading, desk: Desk) -> None:
    lines = page.text[page.text.index("Make it again", page.text.index("Reports that this page")) :]
    assert f"benchmark {desk.slow} {desk.fast} --backend openvino --batch 1 --threads 2 --seconds SECONDS" in lines
    assert f"validate {desk.slow} {desk.fast} --per-layer" in lines
    assert "export --num-classes 10 --head classifier --growth-rate 4 --blocks 2,2 --init-features 8" in lines
    assert f"-o {desk.folder / 'page.html'}" in lines


def test_without_reports_each_section_says_what_makes_them(desk: Desk) -> None:
    written = report(desk.sources(), str(desk.folder / "page.html"))
    page = Reading(written.file.read_bytes())
    assert written.chosen is None
    assert page.headings[0] == "No model to recommend yet"
    assert [heading for heading in page.headings if heading in SECTIONS] == SECTIONS
    for command in ("benchmark", "evaluate", "validate", "sensitivity", "quantize"):
        assert re.search(
            rf"densenet-deploy {command} {re.escape(str(desk.slow))} .*--json > {command}\.json", page.text
        )
        assert f"--{command} {command}.json" in page.text
    assert f"densenet-deploy tune {desk.slow} {desk.fast} --json > tune.json" in page.text
    assert f"densenet-deploy validate {desk.slow} {desk.fast} --per-layer" in page.text
    assert "There are no data yet on what each layer costs in INT8. This makes them" in page.text


def test_what_tune_kept_is_a_table_and_its_choice_the_headline(desk: Desk) -> None:
    kept = trial(desk, command="densenet-deploy benchmark slow.onnx --threads 1")
    tune = desk.write("tune.json", {"chosen": kept, "pareto": [kept], "reason": "because", "machine": machine()})
    page = Reading(report(desk.sources(tunings=(tune,)), str(desk.folder / "page.html")).file.read_bytes())
    assert page.headings[0] == "Ship slow.onnx"
    assert page.table("The Pareto front that tune found")[1] == [
        "slow.onnx", "onnxruntime, 1 thread, batch 1", "5.50 [5.00, 6.00]", "91.00 %", "0.40", "43.2", "2.0"
    ]  # fmt: skip
    assert "Because." in page.text
    assert "densenet-deploy benchmark slow.onnx --threads 1" in page.text[page.text.index("Words in capitals") :]
    assert "A CPU of 1999" in page.text


def test_a_machine_is_described_once(desk: Desk) -> None:
    tune = desk.write("tune.json", {"chosen": None, "pareto": [], "reason": "none", "machine": machine()})
    page = Reading(
        report(desk.sources(tunings=(tune,), benchmarks=(desk.raced(),)), f"{desk.folder}/").file.read_bytes()
    )
    assert page.text.count("A CPU of 1999") == 1
    assert "the same as that of tune.json, above" in page.text
    tune.write_text(tune.read_text().replace("2.4.6", "2.4.7"))
    other = report(desk.sources(tunings=(tune,), benchmarks=(desk.raced(),)), f"{desk.folder}/")
    assert Reading(other.file.read_bytes()).text.count("A CPU of 1999") == 2, "another version, so another machine"


def test_a_stale_measurement_is_marked(desk: Desk) -> None:
    sources = desk.sources(benchmarks=(desk.benchmark(result(desk.slow, 4.0, "0" * 64)),))
    page = Reading(report(sources, str(desk.folder / "page.html")).file.read_bytes())
    assert page.table("single-stream")[1][0] == "slow.onnx (since changed)"
    assert page.headings[0] == "No model to recommend yet"


def test_equal_inputs_give_equal_bytes(desk: Desk) -> None:
    sources, out = desk.sources(benchmarks=(desk.raced(),)), str(desk.folder / "page.html")
    first = report(sources, out).file.read_bytes()
    assert report(sources, out).file.read_bytes() == first
    other = desk.sources(benchmarks=(desk.raced(4.0, 2.5),))
    assert report(other, out).file.read_bytes() != first


def test_odd_names_and_strangers_metadata_are_shown_as_text(desk: Desk) -> None:
    odd = desk.folder / "<b>$x$\x1b[2J.onnx"
    odd.write_bytes(desk.slow.read_bytes())
    note = "<img src=x onerror=alert(1)>" + "z" * 2_000_000
    benchmark = desk.benchmark(result(odd, 1.0, desk.hash(odd)), notes=(note,))
    (accuracy,) = desk.evaluated(0.5, 0.5)[:1]
    accuracy.write_text(accuracy.read_text().replace("slow.onnx", "<b>$x$\\u001b[2J.onnx"))
    sources = type(desk.sources())((odd, desk.fast), benchmarks=(benchmark,), evaluations=(accuracy,))
    data = report(sources, str(desk.folder / "page.html")).file.read_bytes()
    page = Reading(data)
    assert page.headings[0] == r"Ship <b>$x$\x1b[2J.onnx"
    assert {"b", "img"}.isdisjoint(page.tags)
    assert b"\x1b" not in data
    assert len(data) < 2_000_000


def test_only_a_report_on_the_same_models_is_replaced(desk: Desk) -> None:
    out = desk.folder / "page.html"
    report(desk.sources(), str(out))
    other = type(desk.sources())((desk.fast,))
    with pytest.raises(OutputExistsError, match="no report on these models"):
        report(other, str(out))
    assert "fast.onnx" in report(other, str(out), force=True).file.read_text()
    out.write_text("mine")
    with pytest.raises(OutputExistsError):
        report(desk.sources(), str(out))
    assert out.read_text() == "mine"


def test_what_cannot_be_used_leaves_no_page(desk: Desk) -> None:
    out = desk.folder / "page.html"
    with pytest.raises(DataError, match="no report of tune"):
        report(desk.sources(tunings=(desk.raced(),)), str(out))
    with pytest.raises(DataError, match="no report of sensitivity"):
        report(desk.sources(sensitivities=(desk.raced(),)), str(out))
    with pytest.raises(InputError):
        report(type(desk.sources())((desk.folder / "missing.onnx",)), str(out))
    with pytest.raises(UsageError, match=r"is no \.html file"):
        report(desk.sources(), str(desk.folder / "page.png"))
    assert not out.exists()


def test_a_stranger_s_model_is_reported_as_far_as_it_tells(torchvision_onnx: Path, tmp_path: Path) -> None:
    sources = Desk(tmp_path, torchvision_onnx, torchvision_onnx).sources()
    page = Reading(report(type(sources)((torchvision_onnx,)), f"{tmp_path}/").file.read_bytes())
    assert "No model here says which DenseNet it is" in page.text
    assert page.table("Precision")[1][2].endswith("fp32")
