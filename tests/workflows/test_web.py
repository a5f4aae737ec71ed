"""`web`: what the page is given about a model, and models that no browser runs."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import densenet_deploy as dd
from densenet_deploy.artifacts import Artifact
from densenet_deploy.cli import main
from densenet_deploy.errors import ModelFileError, OutputExistsError, UsageError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.serving.web.runtime_files import BINARY
from densenet_deploy.workflows import web as module
from densenet_deploy.workflows.web import check_image
from tests.conftest import DIGITS
from tests.serving.web.small_runtime import RUNTIME, write_small_runtime


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dd.WebOptions:
    write_small_runtime(tmp_path / "runtime", monkeypatch)
    return dd.WebOptions(runtime=tmp_path / "runtime")


def files_of(folder: Path) -> dict[str, bytes]:
    (version,) = (path for path in folder.iterdir() if path.is_dir())
    return {path.name: path.read_bytes() for path in version.iterdir()}


def facts_of(folder: Path) -> dict:
    return json.loads(files_of(folder)["facts.json"])


def graph_file(path: Path, shape: list, *, classes: int = 3, tail: str = "Identity"):
    """A third-party graph: a weighted mean over the sides, and what `tail` makes of it."""
    channels = shape[1]
    weights = np.arange(channels * classes, dtype=np.float32).reshape(channels, classes) / 7
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "w"], ["mixed"]),
        helper.make_node(tail, ["mixed"], ["y"]),
    ]
    held = [helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])]
    held.append(numpy_helper.from_array(weights, "w"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], classes])],
        held,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_the_page_knows_what_the_file_says(digits_onnx: Path, tmp_path: Path, options: dd.WebOptions) -> None:
    report = dd.web(digits_onnx, tmp_path / "site", options)
    files, facts = files_of(tmp_path / "site"), facts_of(tmp_path / "site")
    assert files["model.onnx"] == digits_onnx.read_bytes()
    assert {name: files[name] for name in RUNTIME} == RUNTIME
    manifest = dd.load(digits_onnx).manifest
    assert Preprocessing(**{**facts["preprocessing"], "mean": (0.306,) * 3, "std": (0.324,) * 3}) == (
        manifest.preprocessing
    )
    assert facts["preprocessing"]["mean"] == list(manifest.preprocessing.mean)
    assert facts["names"] == list("0123456789")
    assert facts["meaning"] == {"output": "logits", "task": "multiclass", "activation": "none", "thresholds": [0.5]}
    assert facts["input"] == {
        "name": "input",
        "dtype": "float32",
        "shape": [1, 3, 32, 32],
        "description": str(manifest.preprocessing),
    }
    assert facts["model"] == "DenseNet cifar-bc-40-12, FP32, 0.8 MB"
    assert facts["notes"] == []
    assert facts["sizes"] == {name: len(files[name]) for name in (BINARY, "model.onnx", "check.png")}
    assert facts["check"]["tolerance"] == 1e-4
    with Classifier.open(digits_onnx, "onnxruntime") as classify:
        outputs = classify.logits(classify.prepare(files["check.png"]).pixels[None])[0]
    np.testing.assert_allclose(facts["check"]["outputs"], outputs, rtol=1e-6)
    assert "<title>digits</title>" in (tmp_path / "site" / "index.html").read_text()
    written = {path: path.stat().st_size for path in (tmp_path / "site").rglob("*") if path.is_file()}
    answer = json.loads(json.dumps(report.to_json()))
    assert answer["file"] == str(tmp_path / "site" / "index.html")
    assert answer["bytes"] == sum(written.values())
    assert set(map(Path, answer["files"])) == set(written)
    assert answer["model_bytes"] == digits_onnx.stat().st_size
    assert f"--directory {tmp_path / 'site'} 8000" in report.to_text()
    assert type(report).from_json(answer) == report


def test_facts_that_are_stated_are_in_the_page_and_in_the_model(tmp_path: Path, options: dd.WebOptions) -> None:
    model = graph_file(tmp_path / "m.onnx", ["n", 1, 16, 16], tail="Sigmoid")
    labels = ["a", "b", "a"]
    dd.web(
        model, tmp_path / "site", options, labels=labels, task="multilabel", thresholds=[0.5, 0.25, 0.75], resize="none"
    )
    facts = facts_of(tmp_path / "site")
    assert facts["names"] == ["a (0)", "b", "a (2)"]
    assert facts["meaning"] == {
        "output": "y",
        "task": "multilabel",
        "activation": "sigmoid",
        "thresholds": [0.5, 0.25, 0.75],
    }
    assert facts["preprocessing"]["resize"] == "none"
    manifest = Artifact.open(files_of(tmp_path / "site")["model.onnx"]).manifest
    assert manifest is not None
    assert manifest.labels == tuple(labels)


def test_what_is_assumed_is_shown_on_the_page(tmp_path: Path, options: dd.WebOptions) -> None:
    report = dd.web(graph_file(tmp_path / "m.onnx", [4, 3, 16, 16]), tmp_path / "site", options)
    facts = facts_of(tmp_path / "site")
    assert facts["input"]["shape"] == [4, 3, 16, 16]  # the batch of the graph is fixed
    assert any("mean" in note and "assumed" in note for note in facts["notes"])
    assert any("multiclass is assumed" in note for note in facts["notes"])
    assert facts["names"] == ["class 0", "class 1", "class 2"]
    assert "assumed" in report.to_text()


def test_four_channels_are_those_of_an_image_file(tmp_path: Path, options: dd.WebOptions) -> None:
    dd.web(graph_file(tmp_path / "m.onnx", ["n", 4, 16, 16]), tmp_path / "site", options)
    assert facts_of(tmp_path / "site")["input"]["shape"] == [1, 4, 16, 16]
    with Image.open(io.BytesIO(files_of(tmp_path / "site")["check.png"])) as image:
        assert image.mode == "RGBA"


def test_numbers_and_features(tmp_path: Path, options: dd.WebOptions) -> None:
    model = graph_file(tmp_path / "m.onnx", ["n", 3, 16, 16])
    dd.web(model, tmp_path / "numbers", options, task="regression", labels=["age", "weight", "height"])
    dd.web(model, tmp_path / "features", options, task="features")
    assert facts_of(tmp_path / "numbers")["names"] == ["age", "weight", "height"]
    assert facts_of(tmp_path / "features")["names"] == []
    assert len(facts_of(tmp_path / "features")["check"]["outputs"]) == 3


def test_an_untrained_checkpoint_is_exported_and_the_page_says_so(tmp_path: Path, options: dd.WebOptions) -> None:
    architecture = dd.Architecture(growth_rate=4, blocks=(2, 2), init_features=8, bn_size=2, stem="cifar")
    report = dd.web(None, tmp_path / "site", options, architecture=architecture, num_classes=4)
    assert any("untrained" in note for note in report.notes)
    assert any("untrained" in note for note in facts_of(tmp_path / "site")["notes"])


def test_a_checkpoint_is_exported(tmp_path: Path, options: dd.WebOptions) -> None:
    dd.web(DIGITS / "densenet_digits.safetensors", tmp_path / "site", options)
    assert facts_of(tmp_path / "site")["names"] == list("0123456789")


def test_pixels_in_the_graph(tmp_path: Path, options: dd.WebOptions) -> None:
    onnx_model = dd.export(DIGITS / "densenet_digits.safetensors", dd.ExportOptions(input="uint8"))
    dd.web(onnx_model, tmp_path / "site", options)
    facts = facts_of(tmp_path / "site")
    assert facts["input"]["dtype"] == facts["preprocessing"]["dtype"] == "uint8"
    assert facts["input"]["shape"] == [1, 32, 32, 3]


def test_weights_in_another_file_are_taken_in(digits_onnx: Path, tmp_path: Path, options: dd.WebOptions) -> None:
    proto = onnx.load(digits_onnx)
    onnx.save(proto, tmp_path / "split.onnx", save_as_external_data=True, location="split.data", size_threshold=0)
    assert (tmp_path / "split.onnx").stat().st_size < digits_onnx.stat().st_size / 2
    dd.web(tmp_path / "split.onnx", tmp_path / "site", options)
    data = files_of(tmp_path / "site")["model.onnx"]
    assert len(data) > 0.9 * digits_onnx.stat().st_size
    assert Artifact.open(data).manifest == Artifact.open(digits_onnx).manifest


@pytest.mark.slow
def test_a_lower_precision_may_differ_more(digits_onnx: Path, tmp_path: Path, options: dd.WebOptions) -> None:
    half = dd.cast(dd.load(digits_onnx), dd.CastOptions("fp16", samples=2))
    dd.web(half, tmp_path / "site", options)
    assert facts_of(tmp_path / "site")["check"]["tolerance"] == 1e-2
    assert facts_of(tmp_path / "site")["input"]["dtype"] == "float32"


def test_models_that_no_browser_runs(digits_onnx: Path, tmp_path: Path, options: dd.WebOptions) -> None:
    site = tmp_path / "site"
    brain = dd.cast(dd.load(digits_onnx), dd.CastOptions("bf16", samples=2))
    with pytest.raises(ModelFileError, match="bfloat16"):
        dd.web(brain, site, options)
    (tmp_path / "ir.xml").write_text("<net name='x'></net>")
    with pytest.raises(ModelFileError, match="browsers run ONNX files"):
        dd.web(tmp_path / "ir.xml", site, options)
    for channels in (2, 5):
        with pytest.raises(ModelFileError, match=f"{channels} channels"):
            dd.web(graph_file(tmp_path / f"{channels}.onnx", ["n", channels, 16, 16]), site, options)
    assert not site.exists()


def test_a_model_may_be_as_large_as_a_browser_can_hold(
    digits_onnx: Path, tmp_path: Path, options: dd.WebOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.LARGEST_MODEL == 2**30
    size = digits_onnx.stat().st_size
    monkeypatch.setattr(module, "LARGEST_MODEL", size - 1)
    with pytest.raises(ModelFileError, match="browser's memory"):
        dd.web(digits_onnx, tmp_path / "site", options)
    proto = onnx.load(digits_onnx)
    onnx.save(proto, tmp_path / "split.onnx", save_as_external_data=True, location="split.data", size_threshold=0)
    with pytest.raises(ModelFileError, match="browser's memory"):
        dd.web(tmp_path / "split.onnx", tmp_path / "site", options)
    monkeypatch.setattr(module, "LARGEST_MODEL", size)
    dd.web(digits_onnx, tmp_path / "site", options)


def test_a_page_is_replaced_only_with_force(tiny_onnx: Path, tmp_path: Path, options: dd.WebOptions) -> None:
    site = tmp_path / "site"
    dd.web(tiny_onnx, site, options)
    before = {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}
    with pytest.raises(OutputExistsError, match="--force"):
        dd.web(tiny_onnx, site, dataclasses.replace(options, title="New"))
    assert {path: path.read_bytes() for path in site.rglob("*") if path.is_file()} == before
    dd.web(tiny_onnx, site, dataclasses.replace(options, title="New"), force=True)
    assert "<title>New</title>" in (site / "index.html").read_text()


def test_a_title_has_1_to_100_characters() -> None:
    for title in ("x", 100 * "x"):
        assert dd.WebOptions(title).title == title
    for title in ("", "  ", 101 * "x"):
        with pytest.raises(UsageError, match="title"):
            dd.WebOptions(title)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_image_of_the_check_shows_what_preprocessing_does(channels: int) -> None:
    """Its sides differ and both are larger than the input, so it is resized and cut; its channels differ."""
    facts = ((0.0,) * channels, (1.0,) * channels)
    with Image.open(io.BytesIO(check_image(Preprocessing((20, 32), 32, *facts)))) as image:
        assert image.mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        assert image.size == (48, 40)
        bands = {band.tobytes() for band in image.split()}
    assert len(bands) == channels
    with Image.open(io.BytesIO(check_image(Preprocessing(4000, 4000, *facts)))) as image:
        assert max(image.size) <= 640
    with Image.open(io.BytesIO(check_image(Preprocessing(1, 1, *facts)))) as image:
        assert image.size == (1, 1)


def test_the_command(
    tiny_onnx: Path, tmp_path: Path, options: dd.WebOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["web", str(tiny_onnx), "-o", str(tmp_path / "site"), "--runtime", str(options.runtime), "--title", "Tiny"]
    assert main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["file"] == str(tmp_path / "site" / "index.html")
    assert answer["bytes"] > answer["model_bytes"] == tiny_onnx.stat().st_size
    assert "<h1>Tiny</h1>" in (tmp_path / "site" / "index.html").read_text()
    assert main(words) == 3
    assert capsys.readouterr().err.startswith("error: output: ")


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("command", ["web", "triton"])
def test_a_file_of_ours_is_only_run_so_that_neither_pytorch_nor_the_packages_for_graphs_are_imported(
    command: str, digits_onnx: Path, tmp_path: Path
) -> None:
    words = [command, str(digits_onnx), "-o", str(tmp_path / "out")]
    script = (
        "import sys\n"
        "from densenet_deploy.cli import main\n"
        "from tests.serving.web.small_runtime import write_small_runtime\n"
        "import pathlib, pytest\n"
        "write_small_runtime(pathlib.Path(sys.argv[1]), pytest.MonkeyPatch())\n"
        "code = main(sys.argv[2:])\n"
        "print(code, *sorted({'torch', 'onnx', 'onnx_ir', 'onnxsim', 'sympy'} & {*sys.modules}))\n"
    )
    more = ["--runtime", str(tmp_path / "runtime")] if command == "web" else []
    line = [sys.executable, "-c", script, str(tmp_path / "runtime"), *words, *more, "-q"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0"


def test_the_command_that_is_shown_works_in_a_folder_with_a_space(
    digits_onnx: Path, tmp_path: Path, options: dd.WebOptions
) -> None:
    report = dd.web(digits_onnx, tmp_path / "my site", options)
    assert f"--directory '{tmp_path}/my site' 8000" in str(report)
