"""The contract of the command line: names, JSON keys, exit codes, one line for every failure."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densenet_deploy import __version__
from densenet_deploy.cli import main
from densenet_deploy.graph.graph_pass import EXACT
from tests.conftest import DIGITS

CUSTOM = ["--growth-rate", "4", "--blocks", "2,2", "--init-features", "8", "--stem", "cifar", "--num-classes", "10"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "grey.png"
    Image.fromarray(np.full((40, 40, 3), 128, np.uint8)).save(path)
    return path


def run_json(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    code = main([*map(str, words), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    answer = json.loads(captured.out)
    assert answer["schema"] == 1
    return answer


def run_failing(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Run, and check what holds for every failure: nothing on stdout, and one line on stderr."""
    code = main([*map(str, words)])
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.rstrip("\n")
    assert line.startswith("error: ")
    assert "\n" not in line
    assert "; " in line, "the line says what to do"
    return code, line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("export", "--variant", "122"), (2, "UnknownNameError", "122")),
        (("inspect", "missing\n.onnx"), (3, "InputError", "missing\\n.onnx")),
        (("run", "DIGITS", "IMAGE", "--backend", "openvino"), (5, "BackendError", "openvino")),
        (("inspect", "--variant", "121", "--batch", "0"), (2, "UsageError", "batch=0")),
    ],
)
def test_an_error_is_one_object_with_json(
    capsys: pytest.CaptureFixture[str],
    image: Path,
    words: tuple[str, ...],
    expected: tuple[object, ...],
) -> None:
    files = {"DIGITS": str(DIGITS / "densenet_digits.safetensors"), "IMAGE": str(image)}
    words = tuple(files.get(word, word) for word in words)
    code, line = run_failing(capsys, *words)
    assert main([*words, "--json"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    error = json.loads(captured.err)["error"]
    assert (error["exit_code"], error["kind"], error["subject"]) == expected
    assert line == f"error: {error['message']}"


def test_export_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    answer = run_json(capsys, "export", *CUSTOM, "-o", tmp_path)
    assert Path(answer["onnx"]).parent == tmp_path
    assert Path(answer["onnx"]).is_file()
    assert answer["weights"] == "none"
    assert answer["parameters"] > 0
    assert answer["seconds"] > 0
    assert answer["parity"]["cosine"] >= 0.99999
    assert set(answer["parity"]) >= {"max_abs", "mean_abs", "cosine", "sqnr_db", "top1_agreement"}


def test_an_untrained_model_says_so_at_every_step(
    capsys: pytest.CaptureFixture[str], tiny_onnx: Path, image: Path
) -> None:
    for words in (["run", tiny_onnx, image], ["inspect", tiny_onnx], ["validate", tiny_onnx, tiny_onnx]):
        assert main([*map(str, words)]) == 0
        assert capsys.readouterr().err.count("untrained") == 1


def test_options_before_the_command_are_those_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "-q", "inspect", "--variant", "121"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["argv"] == ["densenet-deploy", "--json", "-q", "inspect", "--variant", "121"]
    second = run_json(capsys, "inspect", "--variant", "121", "-q")
    assert second["argv"] == ["densenet-deploy", "inspect", "--variant", "121", "-q", "--json"]
    assert first | {"argv": second["argv"]} == second


def test_quiet_prints_results_only(capsys: pytest.CaptureFixture[str], tiny_onnx: Path, image: Path) -> None:
    assert main(["run", str(tiny_onnx), str(image), "-q"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert str(image) in captured.out


def test_simplify_json(capsys: pytest.CaptureFixture[str], tiny_onnx: Path, tmp_path: Path) -> None:
    answer = run_json(capsys, "simplify", tiny_onnx, "-o", tmp_path / "simple.onnx")
    assert answer["nodes_after"] <= answer["nodes_before"]
    assert [report["name"] for report in answer["passes"]] == list(EXACT)


def test_validate_json(capsys: pytest.CaptureFixture[str], tiny_onnx: Path) -> None:
    words = ["--candidate-backend", "openvino", "--samples", "2", "--per-layer"]
    answer = run_json(capsys, "validate", tiny_onnx, tiny_onnx, *words)
    assert answer["passed"] is True
    assert answer["worst_layers"][0]["name"]
    assert answer["parity"]["top1_agreement"] == 1.0


def test_a_missed_gate_is_exit_4_with_the_report(capsys: pytest.CaptureFixture[str], tiny_onnx: Path) -> None:
    words = ["validate", str(tiny_onnx), str(tiny_onnx), "--candidate-backend", "openvino", "--gate", "max_abs=0"]
    assert main([*words, "--json"]) == 4
    captured = capsys.readouterr()
    assert json.loads(captured.out)["passed"] is False
    assert "max_abs" in json.loads(captured.err)["error"]["message"]


def test_run_json(capsys: pytest.CaptureFixture[str], tiny_onnx: Path, image: Path) -> None:
    answer = run_json(capsys, "run", tiny_onnx, image, "--top-k", "3")
    (prediction,) = answer["predictions"]
    assert prediction["file"] == str(image)
    assert len(prediction["top"]) == 3
    assert prediction["top"][0]["label"] is None
    assert 0 < prediction["top"][0]["score"] < 1


def test_evaluate_json(capsys: pytest.CaptureFixture[str], digits_onnx: Path) -> None:
    answer = run_json(capsys, "evaluate", digits_onnx, "--data", DIGITS / "held_out")
    training = json.loads((DIGITS / "training.json").read_text())
    assert answer["count"] == 360
    assert answer["top1"] == pytest.approx(training["held_out_accuracy"], abs=1e-9)
    assert answer["top1"] <= answer["top5"] <= 1
    assert answer["images_per_second"] > 0


def test_inspect_json(capsys: pytest.CaptureFixture[str], tiny_onnx: Path) -> None:
    answer = run_json(capsys, "inspect", "--variant", "121")
    assert answer["parameters"] == 7_978_856
    assert answer["macs"] == pytest.approx(2.834e9, rel=1e-3)
    assert sum(block["parameters"] for block in answer["blocks"]) == answer["parameters"]
    assert run_json(capsys, "inspect", tiny_onnx)["precision"] == "fp32"


def test_doctor_json(capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_json(capsys, "doctor")
    for health in answer["backends"].values():
        assert set(health) >= {"available", "version", "devices", "reason"}
    assert answer["backends"]["onnxruntime"]["available"] is True


@pytest.mark.parametrize(
    "words",
    [
        ["exprot"],
        ["export", "--varient", "121"],
        ["export", "--batch", "many"],
        ["export", "--batch", "0"],
        ["export", "--image-size", "16"],
        ["export", "--blocks", "6,x"],
        ["export", "--std", "1", "0", "1"],
        ["export", "--mean", "1,2"],
        ["export", "--num-classes", "ten"],
        ["inspect"],
        ["inspect", "--variant", "121", "--batch", "0"],
        ["run"],
        ["run", "a\0.onnx", "b.png"],
        ["run", "a.onnx", "\ud800.png"],
    ],
    ids=" ".join,
)
def test_usage_errors_are_exit_2(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    code, _ = run_failing(capsys, *words)
    assert code == 2


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr() == (f"densenet-deploy {__version__}\n", "")


def test_bad_input_is_exit_3(capsys: pytest.CaptureFixture[str], tiny_onnx: Path, image: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("not a model")
    assert run_failing(capsys, "run", text, image)[0] == 3
    assert run_failing(capsys, "inspect", text)[0] == 3
    assert run_failing(capsys, "simplify", text)[0] == 3
    assert run_failing(capsys, "run", tiny_onnx, text)[0] == 3
    (tmp_path / "empty").mkdir()
    assert run_failing(capsys, "run", tiny_onnx, tmp_path / "empty")[0] == 3


def test_labels_of_another_count_are_exit_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")
    code, line = run_failing(capsys, "export", *CUSTOM, "--labels", labels, "-o", tmp_path)
    assert code == 2
    assert "2 labels for 10 classes" in line


def test_another_file_in_the_way_is_exit_3_and_survives(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    foreign = tmp_path / "model.onnx"
    foreign.write_bytes(b"mine")
    code, _ = run_failing(capsys, "export", *CUSTOM, "-o", foreign)
    assert code == 3
    assert foreign.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [foreign]


def test_missing_device_is_exit_5(capsys: pytest.CaptureFixture[str], tiny_onnx: Path, image: Path) -> None:
    code, line = run_failing(capsys, "run", tiny_onnx, image, "--backend", "openvino", "--device", "npu")
    assert code == 5
    assert "--device cpu" in line


def test_verbose_adds_a_traceback(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.NOTSET, "densenet_deploy"):  # puts the level back, which -v sets for the whole process
        assert main(["inspect", str(tmp_path / "missing.onnx"), "-v"]) == 3
    captured = capsys.readouterr()
    assert "Traceback" in captured.err
    assert captured.err.rstrip().splitlines()[-1].startswith("error: ")


def test_odd_paths_work(capsys: pytest.CaptureFixture[str], digits_onnx: Path, tmp_path: Path) -> None:
    for name in (b"two words", b"two\nlines", "\N{CAT}".encode(), b"\xff\xfe"):
        folder = tmp_path / os.fsdecode(name)
        folder.mkdir()
        model, image = folder / "model.onnx", folder / "image.png"
        model.write_bytes(digits_onnx.read_bytes())
        image.write_bytes(next((DIGITS / "held_out").glob("*/*.png")).read_bytes())
        assert run_json(capsys, "run", model, image)["predictions"][0]["file"] == str(image)
        assert main(["run", str(model), str(image)]) == 0
        capsys.readouterr().out.encode()  # what is printed can be printed anywhere


def test_closed_and_narrow_streams(tiny_onnx: Path) -> None:
    """Errors stay off stdout when stderr is closed, and what a stream cannot encode is escaped."""
    script = f"{' '.join(_command('inspect', '--variant', 'bogus'))} 2>&-"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    done = subprocess.run(
        _command("validate", str(tiny_onnx), str(tiny_onnx)),
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_another_form_of_the_model_is_another_artifact(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    run_json(capsys, "export", *CUSTOM, "--batch", "4", "-o", target)
    before = target.read_bytes()
    assert run_failing(capsys, "export", *CUSTOM, "-o", target)[0] == 3
    assert target.read_bytes() == before


def test_onnx_runtime_leaves_nothing_at_home(tiny_onnx: Path, image: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "scratch")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    for folder in ("home", "scratch"):
        (tmp_path / folder).mkdir()
    words = _command("run", str(tiny_onnx), str(image), "--backend", "onnxruntime")
    assert subprocess.run(words, env=environment, capture_output=True, check=False).returncode == 0
    assert [path for folder in ("home", "scratch") for path in (tmp_path / folder).rglob("*")] == []


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "densenet_deploy", *words]


def test_a_closed_stdout_is_not_a_failure() -> None:
    for words in (["--help"], ["inspect", "--variant", "264"], ["inspect", "--variant", "264", "--json"]):
        script = f"{' '.join(_command(*words))} | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_of_several_images_the_readable_ones_are_printed_and_a_broken_one_is_exit_3(
    capsys: pytest.CaptureFixture[str], tiny_onnx: Path, image: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(image.read_bytes()[:-20])
    words = ["run", str(tiny_onnx), str(broken), str(image), "--json"]
    assert main(words) == 3
    captured = capsys.readouterr()
    assert [len(one["top"]) for one in json.loads(captured.out)["predictions"]] == [0, 5]
    assert json.loads(captured.err)["error"]["subject"] == str(broken)
    assert main([*words, "--max-bad", "1"]) == 0
    assert [len(one["top"]) for one in json.loads(capsys.readouterr().out)["predictions"]] == [0, 5]
