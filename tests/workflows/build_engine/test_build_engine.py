"""From a file to an engine and its sidecar: what is asked is what runs, and nothing is left half done."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from densenet_deploy.artifacts import Artifact, sha256_of
from densenet_deploy.engines.options import BuildOptions, batch_profiles
from densenet_deploy.errors import (
    GateError,
    InputError,
    ModelFileError,
    OutputExistsError,
    ResourceError,
    UsageError,
)
from densenet_deploy.runtime.batching import BatchProfile
from densenet_deploy.runtime.engine_files import read_plan
from densenet_deploy.runtime.sidecar import sidecar_path
from densenet_deploy.workflows.build_engine.build_engine import EngineReport, build_engine, dry_run
from densenet_deploy.workflows.build_engine.graph import QUANTIZATION, Wanted
from densenet_deploy.workflows.evaluate import evaluate
from densenet_deploy.workflows.inspect.engine import inspect_engine
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.quantize import quantize
from tests.conftest import DIGITS

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

SAMPLES = DIGITS.parents[1] / "calibration" / "samples"


@pytest.fixture
def model(digits_onnx: Path, tmp_path: Path) -> Path:
    """A float file in a folder of its own."""
    return Path(shutil.copy(digits_onnx, tmp_path / "digits.onnx"))


def build(model: Path, precision: str, **how) -> EngineReport:
    options = {key: how.pop(key) for key in ("targets", "profiles", "tf32", "workspace_bytes") if key in how}
    return build_engine(Wanted(model, precision, **how), BuildOptions("rtx", precision, **options))


@pytest.fixture(scope="module")
def int8_reports(digits_onnx: Path, tmp_path_factory) -> dict[str, EngineReport]:
    """INT8 engines of the digits model, by the kind of weight scales."""
    reports = {}
    for weights in ("per-channel", "per-tensor"):
        folder = tmp_path_factory.mktemp(weights)
        quantization = dataclasses.replace(QUANTIZATION, weights=weights)
        wanted = Wanted(digits_onnx, "int8", None, SAMPLES, quantization, f"{folder}/")
        reports[weights] = build_engine(wanted, BuildOptions("rtx", "int8"))
    return reports


def test_fp16_of_a_float_file(model: Path) -> None:
    report = build(model, "fp16")
    assert report.engine == model.with_name("digits.fp16.engine")
    assert report.onnx == model.with_name("digits.fp16.onnx")
    assert report.proof.counts == {"fp16": 39}
    assert report.parity is not None
    assert report.parity.cosine >= 0.9999
    assert evaluate(report.onnx, DIGITS / "held_out").top1 == evaluate(model, DIGITS / "held_out").top1
    facts = report.to_json()
    assert {"engine", "sidecar", "flavour", "precision", "bytes", "seconds"} <= facts.keys()
    assert (facts["flavour"], facts["precision"], facts["bytes"]) == ("rtx", "fp16", report.engine.stat().st_size)


def test_the_sidecar_says_all_that_a_runner_needs(model: Path) -> None:
    build(model, "fp16", profiles=batch_profiles([], [2], [4]))
    sidecar = read_plan(model.with_name("digits.fp16.engine")).sidecar
    assert sidecar is not None
    assert sidecar.onnx_sha256 == sha256_of(model.with_name("digits.fp16.onnx"))
    assert sidecar.profiles == (BatchProfile(1, 2, 4),)
    assert [tensor.name for tensor in (*sidecar.inputs, *sidecar.outputs)] == ["input", "logits"]
    assert sidecar.manifest is not None
    assert sidecar.manifest.labels == tuple("0123456789")
    assert sidecar.manifest.precision == "fp16"
    assert sidecar.gpu is None


def test_a_file_that_holds_the_precision_builds_as_it_is(model: Path, tmp_path: Path) -> None:
    fp16 = build(model, "fp16").onnx
    assert fp16 is not None
    before = fp16.read_bytes()
    report = build(fp16, "fp16", out=f"{tmp_path}/again/")
    assert report.engine == tmp_path / "again" / "digits.fp16.engine"
    assert report.onnx == fp16
    assert report.parity is None
    assert fp16.read_bytes() == before
    assert [path.name for path in sorted((tmp_path / "again").iterdir())] == [
        "digits.fp16.engine",
        "digits.fp16.engine.json",
    ]


def test_fp32_and_bf16(model: Path) -> None:
    assert build(model, "fp32").proof.counts == {"fp32": 39}
    bf16 = build(model, "bf16")
    assert bf16.proof.counts == {"bf16": 39}
    assert bf16.parity is not None
    assert bf16.parity.cosine >= 0.999


def test_int8_runs_in_int8(int8_reports: dict[str, EngineReport]) -> None:
    for report in int8_reports.values():
        runs = {conv.name: conv for conv in report.proof.convolutions}
        blocks = [conv for name, conv in runs.items() if "denseblock" in name]
        assert len(blocks) == 36
        assert {conv.precision for conv in blocks} == {"int8"}
        assert runs["features.conv0"].precision == "fp16"
        assert report.proof.summary().share_of_macs["int8"] > 0.98


def test_int8_keeps_the_answers(int8_reports: dict[str, EngineReport]) -> None:
    per_channel, per_tensor = (int8_reports[kind].parity for kind in ("per-channel", "per-tensor"))
    assert per_channel is not None
    assert per_tensor is not None
    assert per_channel.sqnr_db >= 35
    assert per_tensor.sqnr_db >= per_channel.sqnr_db - 3


def test_scales_of_tensors_fuse_what_scales_of_channels_do_not(int8_reports: dict[str, EngineReport]) -> None:
    """What TensorRT-RTX 1.7 compiles: with one weight scale a tensor, dequantizing, bias and ReLU join the kernel."""
    one, many = (int8_reports[kind].proof.convolutions for kind in ("per-tensor", "per-channel"))
    assert {conv.writes for conv in one} == {"fp16"}
    assert all(conv.bias for conv in one)
    bottlenecks = [conv for conv in one if conv.name.endswith("conv1") and "denselayer" in conv.name]
    assert len(bottlenecks) == 18
    assert all(conv.relu for conv in bottlenecks)
    assert {conv.writes for conv in many if conv.precision == "int8"} == {"fp32"}


def test_the_bus_in_int8_too(digits_onnx: Path, tmp_path: Path, int8_reports: dict[str, EngineReport]) -> None:
    quantization = dataclasses.replace(QUANTIZATION, quantize_bus=True)
    report = build(digits_onnx, "int8", calibration=SAMPLES, quantization=quantization, out=f"{tmp_path}/")
    pairs = [_count(found.onnx, "QuantizeLinear") for found in (int8_reports["per-channel"], report)]
    assert pairs[1] > pairs[0]
    assert report.proof.counts == {"int8": 38, "fp16": 1}
    assert report.parity is not None
    assert report.parity.sqnr_db >= 35


def _count(path: Path | None, op_type: str) -> int:
    assert path is not None
    return sum(node.op_type == op_type for node in onnx.load(path).graph.node)


def test_an_int8_file_of_the_recipe_builds_as_it_is(int8_reports: dict[str, EngineReport], tmp_path: Path) -> None:
    first = int8_reports["per-tensor"]
    assert first.onnx is not None
    report = build(first.onnx, "int8", out=f"{tmp_path}/")
    assert report.engine.name == "digits.int8.engine"
    assert report.sidecar.sha256 == first.sidecar.sha256, "two builds of one file are the same bytes"


def test_a_strangers_int8_file_is_checked(int8_reports: dict[str, EngineReport], tmp_path: Path) -> None:
    source = int8_reports["per-tensor"].onnx
    assert source is not None
    model = onnx.load(source)
    del model.metadata_props[:]
    stranger = tmp_path / "stranger.onnx"
    onnx.save(model, stranger)
    assert build(stranger, "int8").sidecar.manifest is None
    zero_point = next(n.input[2] for n in model.graph.node if n.op_type == "QuantizeLinear")
    tensor = next(t for t in model.graph.initializer if t.name == zero_point)
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 1, zero_point))
    onnx.save(model, stranger)
    with pytest.raises(ModelFileError, match="zero point"):
        build(stranger, "int8", force=True)


def test_a_strangers_file_that_quantizes_float_weights_is_no_float_file(model: Path) -> None:
    proto = onnx.load(model)
    del proto.metadata_props[:]
    onnx.save(proto, model)
    assert build(model, "fp32").proof.counts == {"fp32": 39}
    pool = next(node for node in proto.graph.node if node.op_type == "Relu")
    numbers = [("s", np.float32(0.1)), ("z", np.int8(0))]
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(value), name) for name, value in numbers)
    source = pool.input[0]
    proto.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["restored"]))
    proto.graph.node.insert(0, onnx.helper.make_node("QuantizeLinear", [source, "s", "z"], ["codes"]))
    pool.input[0] = "restored"
    nodes = _in_order(proto)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.save(proto, model)
    for precision in ("fp32", "fp16"):
        with pytest.raises(ModelFileError, match="is quantized"):
            build(model, precision, force=True)


def _in_order(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    known = {tensor.name for tensor in proto.graph.initializer} | {value.name for value in proto.graph.input}
    left, ordered = list(proto.graph.node), []
    while left:
        ready = next(node for node in left if set(node.input) - {""} <= known)
        left.remove(ready)
        ordered.append(ready)
        known |= set(ready.output)
    return ordered


def test_precisions_that_do_not_fit_the_file(model: Path) -> None:
    with pytest.raises(UsageError, match="--calibration"):
        build(model, "int8")
    with pytest.raises(UsageError, match="not calibrated"):
        Wanted(model, "fp32", calibration=SAMPLES)
    fp16 = build(model, "fp16").onnx
    assert fp16 is not None
    for precision in ("int8", "fp32", "bf16"):
        with pytest.raises(ModelFileError, match="holds fp16 weights"):
            build(fp16, precision)
    quantized = quantize(
        model, SAMPLES, QuantizeOptions(recipe="onnxruntime", never_slower=False), out=model.parent
    ).path
    with pytest.raises(ModelFileError, match="recipe onnxruntime"):
        build(quantized, "int8")
    with pytest.raises(ModelFileError, match="is quantized"):
        build(quantized, "fp16")


def test_files_that_are_no_models(tmp_path: Path) -> None:
    for name, data in (("empty.onnx", b""), ("text.onnx", b"hello"), ("plan.engine", b"vtrt")):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(InputError):
            build(path, "fp16")
    with pytest.raises(InputError, match="no such file"):
        build(tmp_path / "missing.onnx", "fp16")


def test_the_same_inputs_are_up_to_date(model: Path) -> None:
    first = build(model, "fp16")
    written = [path.stat().st_mtime_ns for path in (first.engine, sidecar_path(first.engine))]
    second = build(model, "fp16")
    assert second.up_to_date
    assert second.to_json()["up_to_date"] is True
    assert second.sidecar == first.sidecar
    assert second.proof == first.proof
    assert [path.stat().st_mtime_ns for path in (first.engine, sidecar_path(first.engine))] == written
    assert not build(model, "fp16", force=True).up_to_date


def test_what_changed_is_built_again(model: Path) -> None:
    first = build(model, "fp16")
    wider = build(model, "fp16", profiles=batch_profiles([], [], [4]))
    assert not wider.up_to_date
    assert wider.sidecar.sha256 != first.sidecar.sha256
    wider.engine.write_bytes(wider.engine.read_bytes()[:-1])
    assert not build(model, "fp16", profiles=batch_profiles([], [], [4])).up_to_date, "a cut plan is no engine"
    sidecar_path(wider.engine).write_text("{")
    with pytest.raises(OutputExistsError):
        build(model, "fp16")


def test_a_stranger_in_the_way_survives(model: Path, tiny_onnx: Path) -> None:
    engine = model.with_name("digits.fp16.engine")
    engine.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match="no engine of this model"):
        build(model, "fp16")
    assert engine.read_bytes() == b"mine"
    build(model, "fp16", force=True)
    with pytest.raises(OutputExistsError):
        build(tiny_onnx, "fp16", out=str(engine))
    assert read_plan(engine).sidecar.manifest.labels


def test_a_stranger_where_the_graph_goes_survives(model: Path) -> None:
    graph = model.with_name("digits.fp16.onnx")
    graph.write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        build(model, "fp16")
    assert graph.read_bytes() == b"mine"
    assert not model.with_name("digits.fp16.engine").exists()


def test_where_memory_runs_out_the_graph_is_kept(model: Path) -> None:
    """bad-inputs 27."""
    with pytest.raises(ResourceError, match="ONNX is kept") as caught:
        build(model, "fp16", workspace_bytes=1)
    assert caught.value.exit_code == 6
    assert Artifact.open(model.with_name("digits.fp16.onnx")).precision == "fp16"
    assert sorted(path.name for path in model.parent.iterdir()) == ["digits.fp16.onnx", "digits.onnx"]


def test_an_engine_that_runs_otherwise_is_not_written(int8_reports: dict[str, EngineReport], tmp_path: Path) -> None:
    """A scale for each channel of an activation is something that TensorRT parses, and then computes in float."""
    source = int8_reports["per-tensor"].onnx
    assert source is not None
    changed = tmp_path / "changed.int8.tensorrt.onnx"
    name = _with_scales_for_channels(source, changed)
    with pytest.raises(GateError, match=f"1 of 39 .*{name} \\(int8 asked, fp16 runs\\)"):
        build(changed, "int8")
    assert list(tmp_path.iterdir()) == [changed]


def _with_scales_for_channels(source: Path, changed: Path) -> str:
    """Give one activation a scale a channel and return the name of the convolution that reads it."""
    model = onnx.load(source)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    quantize = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    restore = next(node for node in model.graph.node if quantize.output[0] in node.input)
    conv = next(node for node in model.graph.node if restore.output[0] in node.input)
    weights = next(node for node in model.graph.node if conv.input[1] in node.output)
    channels = stored[weights.input[0]].dims[1]
    scale = onnx.numpy_helper.to_array(stored[quantize.input[1]])
    for role, array in (("scales", np.full(channels, scale)), ("zeros", np.zeros(channels, np.int8))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, role))
    for node in (quantize, restore):
        node.input[1], node.input[2] = "scales", "zeros"
        node.attribute.append(onnx.helper.make_attribute("axis", 1))
    onnx.save(model, changed)
    return str(conv.name)


def test_several_profiles_and_targets(model: Path) -> None:
    report = build(model, "fp16", profiles=batch_profiles([], [], [1, 8]), targets=("8.6", "12.0"))
    assert report.sidecar.targets == ("8.6", "12.0")
    assert report.sidecar.profiles == (BatchProfile(1, 1, 1), BatchProfile(1, 8, 8))
    assert report.proof.counts == {"fp16": 39}


def test_calibration_images_give_fp16_its_ranges(model: Path) -> None:
    report = build(model, "fp16", calibration=SAMPLES)
    assert report.parity is not None
    assert report.parity.count == 16 * 10


def test_a_range_beyond_fp16_stays_in_float32(model: Path) -> None:
    proto = onnx.load(model)
    stem = next(node for node in proto.graph.node if node.name == "features.conv0")
    tensor = next(t for t in proto.graph.initializer if t.name == stem.input[1])
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1e5, tensor.name))
    onnx.save(proto, model)
    report = build(model, "fp16")
    assert report.proof.counts["fp32"] >= 1
    assert any("stay in float32: features.conv0" in note for note in report.notes)


def test_a_checkpoint_is_exported_first(tmp_path: Path) -> None:
    report = build(DIGITS / "densenet_digits.safetensors", "fp32", out=f"{tmp_path}/")
    assert report.onnx is not None
    assert report.onnx.parent == tmp_path
    assert report.engine.parent == tmp_path
    assert report.sidecar.manifest is not None
    assert report.sidecar.manifest.weights.source == "densenet_digits.safetensors"


def test_a_dry_run_writes_nothing(model: Path) -> None:
    report = dry_run(Wanted(model, "fp16"), BuildOptions("rtx", "fp16", batch_profiles([], [], [8]), ("8.6",)))
    assert "--onnx=" + str(model.with_name("digits.fp16.onnx")) in report.command
    assert "--maxShapes=input:8x3x32x32" in report.command
    assert report.notes
    assert list(model.parent.iterdir()) == [model]
    assert "trtexec --onnx=" + str(model) in dry_run(Wanted(model, "fp32"), BuildOptions("tensorrt", "fp32")).command
    named = dry_run(Wanted(None, "fp16", "169"), BuildOptions("rtx", "fp16"))
    assert "artifacts/densenet169.fp16.engine" in named.command
    assert "input:1x3x224x224" in named.command


def test_inspect_reads_the_engine_back(int8_reports: dict[str, EngineReport], tmp_path: Path) -> None:
    engine = int8_reports["per-tensor"].engine
    facts = inspect_engine(engine).to_json()
    assert facts["runs"]["convolutions"] == {"int8": 38, "fp16": 1}
    assert facts["parameters"] == 176_122
    assert (facts["flavour"], facts["precision"]) == ("rtx", "int8")
    stranger = Path(shutil.copy(engine, tmp_path / "stranger.engine"))
    report = inspect_engine(stranger)
    assert report.to_json()["runs"] == facts["runs"]
    assert report.to_json()["parameters"] is None
    assert "nobody vouches" in report.notes[0]


def test_densenet121_alone(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One command without a file: exports, casts, builds; and the second time finds all of it."""
    report = build_engine(Wanted(None, "fp16", out=f"{tmp_path}/"), BuildOptions("rtx", "fp16"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "densenet121.fp16.engine",
        "densenet121.fp16.engine.json",
        "densenet121.fp16.onnx",
        "densenet121.onnx",
    ]
    assert report.proof.counts == {"fp16": 120}
    assert any("untrained" in note for note in report.notes)
    assert build_engine(Wanted(None, "fp16", out=f"{tmp_path}/"), BuildOptions("rtx", "fp16")).up_to_date
    again = build(report.engine.with_name("densenet121.fp16.onnx"), "fp16", out=f"{tmp_path_factory.mktemp('again')}/")
    assert again.sidecar.sha256 == report.sidecar.sha256, "two builds of one file are the same bytes"
    float_file = report.engine.with_name("densenet121.onnx")
    assert build(float_file, "fp32").proof.counts == {"fp32": 120}
    quantization = dataclasses.replace(QUANTIZATION, samples=32, weights="per-tensor")
    int8 = build(float_file, "int8", calibration=SAMPLES, quantization=quantization)
    assert [conv.name for conv in int8.proof.convolutions if conv.precision != "int8"] == ["features.conv0"]
    assert {conv.writes for conv in int8.proof.convolutions} == {"fp16"}
    _check_that_little_memory_is_exit_6(report.engine)


@pytest.mark.study
@pytest.mark.parametrize("variant", ["121", "169", "201", "264"])
def test_every_variant_in_every_precision(variant: str, tmp_path: Path) -> None:
    for precision in ("fp32", "fp16", "bf16", "int8"):
        calibration = SAMPLES if precision == "int8" else None
        quantization = dataclasses.replace(QUANTIZATION, samples=32, weights="per-tensor")
        wanted = Wanted(None, precision, variant, calibration, quantization, f"{tmp_path}/")
        report = build_engine(wanted, BuildOptions("rtx", precision))
        assert report.proof.counts[precision] >= len(report.proof.convolutions) - 1  # the stem stays half in INT8
        assert report.proof.summary().share_of_macs[precision] > 0.9


def _check_that_little_memory_is_exit_6(engine: Path) -> None:
    """bad-inputs 27: the process may address 700 MB, of which TensorRT takes most before it begins."""
    before = {path.name: path.read_bytes() for path in engine.parent.iterdir()}
    words = f"-m densenet_deploy build-trt densenet121.fp16.onnx --fp16 --max-batch 2 -o {engine.name}"
    script = f"ulimit -v 700000; exec {sys.executable} {words}"
    done = subprocess.run(["bash", "-c", script], cwd=engine.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert "memory ran out" in done.stderr
    assert {path.name: path.read_bytes() for path in engine.parent.iterdir()} == before
