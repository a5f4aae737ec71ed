"""From a model to an engine and its sidecar: what is asked is what runs, and nothing is left half done."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from densenet_deploy.artifacts import Artifact, sha256_of
from densenet_deploy.engines.options import BuildOptions, batch_profiles
from densenet_deploy.engines.precision import EngineConvolution, precision_of
from densenet_deploy.errors import (
    DensenetDeployError,
    GateError,
    InputError,
    ModelFileError,
    OutputExistsError,
    ResourceError,
    UsageError,
)
from densenet_deploy.model import Model
from densenet_deploy.quantization.cache import CalibrationCache
from densenet_deploy.runtime.batching import BatchProfile
from densenet_deploy.runtime.engine_files import read_plan
from densenet_deploy.runtime.sidecar import Sidecar
from densenet_deploy.workflows.build_engine import EngineReport, build_engine, dry_run
from densenet_deploy.workflows.build_request import BuildRequest
from densenet_deploy.workflows.evaluate import evaluate
from densenet_deploy.workflows.export import export
from densenet_deploy.workflows.inspect.engine import InspectEngineReport, inspect_engine
from densenet_deploy.workflows.load import load
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.quantize import quantize
from tests.conftest import DIGITS
from tests.foreign_networks import CONVOLUTIONS, Encoding, image, written
from tests.made_once import made_once

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

SAMPLES = DIGITS.parents[1] / "calibration" / "samples"


def build(source: Any, precision: str, **how: Any) -> EngineReport:
    names = ("targets", "profiles", "tf32", "workspace_bytes")
    options = {key: how.pop(key) for key in names if key in how}
    report = build_engine(source, BuildOptions("rtx", precision, **options), **how).report
    assert isinstance(report, EngineReport)
    return report


def request(source: Any, options: BuildOptions, **stated: Any) -> BuildRequest:
    return BuildRequest.of(source, options, None, stated)


def sidecar_of(report: EngineReport) -> Sidecar:
    sidecar = read_plan(report.engine).sidecar
    assert sidecar is not None
    return sidecar


def convolutions_of(report: EngineReport) -> tuple[EngineConvolution, ...]:
    return precision_of(read_plan(report.engine)).convolutions


def copied(report: EngineReport, folder: Path) -> EngineReport:
    """The files of a build, with their times, in a folder of the test's own."""
    shutil.copytree(report.engine.parent, folder, dirs_exist_ok=True)
    places = {name: folder / getattr(report, name).name for name in ("engine", "sidecar", "onnx")}
    return dataclasses.replace(report, **places)


@pytest.fixture
def model(digits_onnx: Path, tmp_path: Path) -> Path:
    """An FP32 file in a folder of its own."""
    return Path(shutil.copy(digits_onnx, tmp_path / "digits.onnx"))


def built_once(name: str, make: Callable[[Path], EngineReport]) -> EngineReport:
    """The report of a build that is made once a test run; its files are not to be changed."""
    report = Path("report.json")
    folder = made_once(name, lambda folder: (folder / report).write_text(json.dumps(make(folder).to_json())))
    return EngineReport.from_json(json.loads((folder / report).read_text()))


@pytest.fixture(scope="module")
def fp16_build(digits_onnx: Path) -> EngineReport:
    """The FP16 engine of the digits model, beside the FP32 file."""
    return built_once("fp16", lambda folder: build(Path(shutil.copy(digits_onnx, folder / "digits.onnx")), "fp16"))


@pytest.fixture
def fp16(fp16_build: EngineReport, tmp_path: Path) -> EngineReport:
    """A copy of it."""
    return copied(fp16_build, tmp_path)


@pytest.fixture(scope="module")
def int8_builds(digits_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, EngineReport]:
    """INT8 engines of the digits model, by the kind of weight scales; both from one calibration."""
    cache = CalibrationCache(tmp_path_factory.mktemp("ranges"))

    def build_int8(folder: Path) -> EngineReport:
        quantization = QuantizeOptions(weights=folder.name.removeprefix("int8-"), samples=64)
        return build(digits_onnx, "int8", calibration=SAMPLES, quantization=quantization, cache=cache, out=folder)

    return {weights: built_once(f"int8-{weights}", build_int8) for weights in ("per-channel", "per-tensor")}


def test_fp16_of_an_fp32_file(fp16_build: EngineReport, digits_onnx: Path) -> None:
    report, folder = fp16_build, fp16_build.engine.parent
    assert (report.engine, report.onnx) == (folder / "digits.fp16.engine", folder / "digits.fp16.onnx")
    assert report.runs.convolutions == {"fp16": 39}
    assert report.parity is not None
    assert report.parity.cosine >= 0.9999
    assert evaluate(report.onnx, DIGITS / "held_out").top1 == evaluate(digits_onnx, DIGITS / "held_out").top1


def test_the_report_reads_its_own_json(fp16_build: EngineReport) -> None:
    facts = fp16_build.to_json()
    assert {"engine", "sidecar", "onnx", "flavour", "precision", "runs", "bytes", "seconds"} <= facts.keys()
    assert (facts["flavour"], facts["precision"], facts["bytes"]) == ("rtx", "fp16", fp16_build.engine.stat().st_size)
    assert EngineReport.from_json(facts) == fp16_build


def test_the_sidecar_holds_all_that_a_runner_needs(fp16_build: EngineReport) -> None:
    sidecar = sidecar_of(fp16_build)
    assert fp16_build.onnx is not None
    assert sidecar.onnx_sha256 == sha256_of(fp16_build.onnx)
    assert sidecar.profiles == (BatchProfile(1, 1, 1),)
    assert [tensor.name for tensor in (*sidecar.inputs, *sidecar.outputs)] == ["input", "logits"]
    assert sidecar.manifest is not None
    assert sidecar.manifest.labels == tuple("0123456789")
    assert sidecar.manifest.precision == "fp16"
    assert set(sidecar.convolutions.values()) == {"fp16"}
    assert sidecar.gpu is None


def test_a_file_that_holds_the_precision_is_built_as_it_is(fp16_build: EngineReport, tmp_path: Path) -> None:
    assert fp16_build.onnx is not None
    before = fp16_build.onnx.read_bytes()
    report = build(fp16_build.onnx, "fp16", out=f"{tmp_path}/again/")
    assert report.engine == tmp_path / "again" / "digits.fp16.engine"
    assert report.onnx == fp16_build.onnx
    assert report.parity is None
    assert report.sha256 == fp16_build.sha256, "two builds of one file are the same bytes"
    assert fp16_build.onnx.read_bytes() == before
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"digits.fp16.engine", "digits.fp16.engine.json"}


@pytest.mark.slow
def test_fp32_and_bf16(model: Path) -> None:
    assert build(model, "fp32").runs.convolutions == {"fp32": 39}
    bf16 = build(model, "bf16")
    assert bf16.runs.convolutions == {"bf16": 39}
    assert bf16.parity is not None
    assert bf16.parity.cosine >= 0.999


def test_a_model_in_memory(digits_onnx: Path, tmp_path: Path) -> None:
    source = load(digits_onnx.read_bytes())
    engine = build_engine(source, BuildOptions("rtx", "fp32"), out=tmp_path / "digits.engine")
    assert isinstance(engine, Model)
    assert engine.path == tmp_path / "digits.engine"
    assert engine.precision == "fp32"
    assert engine.manifest == source.manifest
    assert (tmp_path / "digits.fp32.onnx").read_bytes() == digits_onnx.read_bytes(), "what was built is beside it"


def test_int8_runs_in_int8(int8_builds: dict[str, EngineReport]) -> None:
    for report in int8_builds.values():
        runs = {conv.name: conv for conv in convolutions_of(report)}
        blocks = [conv for name, conv in runs.items() if "denseblock" in name]
        assert len(blocks) == 36
        assert {conv.precision for conv in blocks} == {"int8"}
        assert runs["features.conv0"].precision == "fp16"
        assert report.runs.share_of_macs["int8"] > 0.98


def test_int8_keeps_the_answers(int8_builds: dict[str, EngineReport]) -> None:
    per_channel, per_tensor = (int8_builds[kind].parity for kind in ("per-channel", "per-tensor"))
    assert per_channel is not None
    assert per_tensor is not None
    assert per_channel.sqnr_db >= 35
    assert per_tensor.sqnr_db >= 35


def test_scales_per_tensor_fuse_what_scales_per_channel_do_not(int8_builds: dict[str, EngineReport]) -> None:
    """What TensorRT-RTX 1.7 compiles: with one scale per weight tensor, dequantizing, bias and ReLU join the kernel."""
    one, many = (convolutions_of(int8_builds[kind]) for kind in ("per-tensor", "per-channel"))
    assert {conv.writes for conv in one} == {"fp16"}
    assert all(conv.bias for conv in one)
    bottlenecks = [conv for conv in one if conv.name.endswith("conv1") and "denselayer" in conv.name]
    assert len(bottlenecks) == 18
    assert all(conv.relu for conv in bottlenecks)
    assert {conv.writes for conv in many if conv.precision == "int8"} == {"fp32"}


@pytest.mark.slow
def test_the_bus_in_int8_too(digits_onnx: Path, tmp_path: Path, int8_builds: dict[str, EngineReport]) -> None:
    quantization = QuantizeOptions(quantize_bus=True, samples=64)
    report = build(digits_onnx, "int8", calibration=SAMPLES, quantization=quantization, out=f"{tmp_path}/")
    pairs = [_count(found.onnx, "QuantizeLinear") for found in (int8_builds["per-channel"], report)]
    assert pairs[1] > pairs[0]
    assert report.runs.convolutions == {"int8": 38, "fp16": 1}
    assert report.parity is not None
    assert report.parity.sqnr_db >= 35


def _count(path: Path | None, op_type: str) -> int:
    assert path is not None
    return sum(node.op_type == op_type for node in onnx.load(path).graph.node)


def test_an_int8_file_of_the_recipe_is_built_as_it_is(int8_builds: dict[str, EngineReport], tmp_path: Path) -> None:
    first = int8_builds["per-tensor"]
    report = build(first.onnx, "int8", out=f"{tmp_path}/")
    assert report.engine.name == "digits.int8.engine"
    assert report.sha256 == first.sha256, "two builds of one file are the same bytes"


def test_a_third_party_int8_file_is_checked(int8_builds: dict[str, EngineReport], tmp_path: Path) -> None:
    source = int8_builds["per-tensor"].onnx
    assert source is not None
    model = onnx.load(source)
    del model.metadata_props[:]
    path = tmp_path / "third_party.onnx"
    onnx.save(model, path)
    built = build(path, "int8")
    assert sidecar_of(built).manifest.is_third_party
    assert inspect_engine(built.engine).architecture is None
    zero_point = next(n.input[2] for n in model.graph.node if n.op_type == "QuantizeLinear")
    tensor = next(t for t in model.graph.initializer if t.name == zero_point)
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 1, zero_point))
    onnx.save(model, path)
    with pytest.raises(ModelFileError) as caught:
        build(path, "int8", force=True)
    assert caught.value.subject == str(path)


def test_int8_without_a_convolution_in_int8_is_not_written(fp16_build: EngineReport, tmp_path: Path) -> None:
    """A third-party file whose stored numbers are INT8, but whose convolutions compute in FP32."""
    model = onnx.load(fp16_build.engine.with_name("digits.onnx"))
    del model.metadata_props[:]
    padding = onnx.numpy_helper.from_array(np.zeros(10_000_000, np.int8), "padding")
    model.graph.initializer.append(padding)
    path = tmp_path / "padded.onnx"
    onnx.save(model, path)
    assert Artifact.open(path).precision == "int8"
    with pytest.raises(DensenetDeployError) as caught:
        build(path, "int8")
    assert caught.value.exit_code in (3, 4)
    assert list(tmp_path.iterdir()) == [path]


def test_a_third_party_file_that_quantizes_fp32_weights_is_not_an_fp32_file(model: Path) -> None:
    proto = onnx.load(model)
    del proto.metadata_props[:]
    onnx.save(proto, model)
    assert build(model, "fp32").runs.convolutions == {"fp32": 39}
    relu = next(node for node in proto.graph.node if node.op_type == "Relu")
    numbers = [("s", np.float32(0.1)), ("z", np.int8(0))]
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(value), name) for name, value in numbers)
    source = relu.input[0]
    proto.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", ["quantized", "s", "z"], ["restored"]))
    proto.graph.node.insert(0, onnx.helper.make_node("QuantizeLinear", [source, "s", "z"], ["quantized"]))
    relu.input[0] = "restored"
    nodes = _in_order(proto)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.save(proto, model)
    for precision in ("fp32", "fp16"):
        with pytest.raises(ModelFileError):
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


@pytest.mark.parametrize(("precision", "calibration"), [("int8", None), ("fp32", SAMPLES), ("bf16", SAMPLES)])
def test_calibration_that_is_missing_or_of_no_use(model: Path, precision: str, calibration: Path | None) -> None:
    with pytest.raises(UsageError):
        build(model, precision, calibration=calibration)


@pytest.mark.parametrize("precision", ["int8", "fp32", "bf16"])
def test_a_file_of_another_precision(fp16_build: EngineReport, precision: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        build(fp16_build.onnx, precision)
    assert caught.value.subject == str(fp16_build.onnx)


@pytest.mark.slow
def test_an_int8_file_of_another_recipe(model: Path) -> None:
    options = QuantizeOptions(recipe="onnxruntime", never_slower=False, samples=32)
    quantized = quantize(model, SAMPLES, options, out=model.parent).path
    for precision in ("int8", "fp16"):
        with pytest.raises(ModelFileError) as caught:
            build(quantized, precision)
        assert caught.value.subject == str(quantized)


@pytest.mark.parametrize(("name", "data"), [("empty.onnx", b""), ("text.onnx", b"hello"), ("plan.engine", b"vtrt")])
def test_files_that_are_not_models(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        build(path, "fp16")
    assert caught.value.subject == str(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        build(tmp_path / "missing.onnx", "fp16")
    assert caught.value.subject == str(tmp_path / "missing.onnx")


def test_the_same_inputs_are_up_to_date(fp16: EngineReport) -> None:
    written = [path.stat().st_mtime_ns for path in (fp16.engine, fp16.sidecar)]
    second = build(fp16.engine.with_name("digits.onnx"), "fp16")
    assert second.up_to_date
    assert second.to_json()["up_to_date"] is True
    assert EngineReport.from_json(second.to_json()) == second
    assert second.sha256 == fp16.sha256
    assert second.runs == fp16.runs
    assert [path.stat().st_mtime_ns for path in (fp16.engine, fp16.sidecar)] == written


def test_force_builds_again(fp16: EngineReport) -> None:
    again = build(fp16.engine.with_name("digits.onnx"), "fp16", force=True)
    assert not again.up_to_date
    assert again.sha256 == fp16.sha256


@pytest.mark.slow
def test_what_changed_is_built_again(fp16: EngineReport) -> None:
    model = fp16.engine.with_name("digits.onnx")
    wider = build(model, "fp16", profiles=batch_profiles([], [], [8]))
    assert not wider.up_to_date
    assert wider.sha256 != fp16.sha256
    wider.engine.write_bytes(wider.engine.read_bytes()[:-1])
    assert not build(model, "fp16", profiles=batch_profiles([], [], [8])).up_to_date, "a truncated engine is not one"
    wider.sidecar.write_text("{")
    with pytest.raises(OutputExistsError) as caught:
        build(model, "fp16")
    assert caught.value.subject == str(wider.engine)


@pytest.mark.slow
def test_a_calibration_that_cannot_be_identified_is_never_up_to_date(fp16: EngineReport) -> None:
    """Arrays from an iterable have no digest: the second build may see others."""
    images = np.random.default_rng(0).standard_normal((32, 3, 32, 32)).astype(np.float32)
    for _ in range(2):
        report = build(fp16.engine.with_name("digits.onnx"), "fp16", calibration=[images])
        assert not report.up_to_date


def test_another_file_at_the_place_of_the_engine_survives(model: Path, tiny_onnx: Path, fp16: EngineReport) -> None:
    kept = fp16.engine.read_bytes()
    with pytest.raises(OutputExistsError) as caught:
        build(tiny_onnx, "fp16", out=str(fp16.engine))
    assert caught.value.subject == str(fp16.engine)
    assert fp16.engine.read_bytes() == kept
    fp16.sidecar.unlink()
    fp16.engine.write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        build(model, "fp16")
    assert fp16.engine.read_bytes() == b"mine"
    build(model, "fp16", force=True)
    assert sidecar_of(fp16).manifest is not None


def test_another_file_at_the_place_of_the_graph_survives(model: Path) -> None:
    graph = model.with_name("digits.fp16.onnx")
    graph.write_bytes(b"mine")
    with pytest.raises(OutputExistsError) as caught:
        build(model, "fp16")
    assert caught.value.subject == str(graph)
    assert graph.read_bytes() == b"mine"
    assert not model.with_name("digits.fp16.engine").exists()


def test_where_memory_runs_out_the_graph_is_kept(model: Path) -> None:
    """bad-inputs 27."""
    with pytest.raises(ResourceError) as caught:
        build(model, "fp16", workspace_bytes=1)
    assert caught.value.exit_code == 6
    assert Artifact.open(model.with_name("digits.fp16.onnx")).precision == "fp16"
    assert sorted(path.name for path in model.parent.iterdir()) == ["digits.fp16.onnx", "digits.onnx"]


def test_an_engine_that_runs_in_another_precision_is_not_written(
    int8_builds: dict[str, EngineReport], tmp_path: Path
) -> None:
    """Scales per channel of an activation are something that TensorRT parses, and then computes in FP16."""
    source = int8_builds["per-tensor"].onnx
    assert source is not None
    changed = tmp_path / "changed.int8.tensorrt.onnx"
    name = _with_scales_for_channels(source, changed)
    with pytest.raises(GateError) as caught:
        build(changed, "int8")
    assert caught.value.subject == str(tmp_path / "changed.int8.engine")
    assert name in caught.value.why
    assert list(tmp_path.iterdir()) == [changed]


def _with_scales_for_channels(source: Path, changed: Path) -> str:
    """Give one activation a scale per channel, and return the name of the convolution that reads it."""
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


@pytest.mark.slow
def test_several_profiles_and_targets(model: Path) -> None:
    report = build(model, "fp16", profiles=batch_profiles([], [1, 4], [1, 8]), targets=("8.6", "12.0"))
    assert report.targets == ("8.6", "12.0")
    assert report.profiles == ((1, 1, 1), (1, 4, 8))
    assert sidecar_of(report).profiles == (BatchProfile(1, 1, 1), BatchProfile(1, 4, 8))
    assert report.runs.convolutions == {"fp16": 39}


@pytest.mark.slow
def test_calibration_images_give_fp16_its_ranges(model: Path) -> None:
    report = build(model, "fp16", calibration=SAMPLES)
    assert report.parity is not None
    assert report.parity.count == 16 * 10


@pytest.mark.slow
def test_a_range_beyond_fp16_stays_in_fp32(model: Path) -> None:
    proto = onnx.load(model)
    stem = next(node for node in proto.graph.node if node.name == "features.conv0")
    tensor = next(t for t in proto.graph.initializer if t.name == stem.input[1])
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1e5, tensor.name))
    onnx.save(proto, model)
    report = build(model, "fp16")
    assert report.runs.convolutions["fp32"] >= 1
    assert any("features.conv0" in note for note in report.notes)


@pytest.mark.slow
def test_a_checkpoint_is_exported_first(tmp_path: Path) -> None:
    report = build(DIGITS / "densenet_digits.safetensors", "fp32", out=f"{tmp_path}/")
    assert report.onnx == tmp_path / "densenet_digits.onnx"
    assert report.engine == tmp_path / "densenet_digits.fp32.engine"
    manifest = sidecar_of(report).manifest
    assert manifest is not None
    assert manifest.weights.source == "densenet_digits.safetensors"


@pytest.mark.slow
def test_the_journey_through_memory_gives_the_bytes_of_the_journey_through_files(
    fp16_build: EngineReport, tmp_path: Path
) -> None:
    model = export(load(DIGITS / "densenet_digits.safetensors"))
    report = build(model, "fp16", out=f"{tmp_path}/digits.fp16.engine")
    assert report.onnx == tmp_path / "digits.fp16.onnx"
    assert report.sha256 == fp16_build.sha256


def test_a_dry_run_writes_nothing(model: Path) -> None:
    report = dry_run(request(model, BuildOptions("rtx", "fp16", batch_profiles([], [], [8]), ("8.6",))))
    assert "--onnx=" + str(model.with_name("digits.fp16.onnx")) in report.command
    assert "--maxShapes=input:8x3x32x32" in report.command
    assert report.notes
    assert list(model.parent.iterdir()) == [model]
    assert "trtexec --onnx=" + str(model) in dry_run(request(model, BuildOptions("tensorrt", "fp32"))).command


@pytest.mark.parametrize(("source", "stated"), [("169", {}), (None, {"variant": "169"})])
def test_a_dry_run_of_a_variant(source: str | None, stated: Any) -> None:
    command = dry_run(request(source, BuildOptions("rtx", "fp16"), **stated)).command
    assert "artifacts/densenet169.fp16.engine" in command
    assert "input:1x3x224x224" in command


def test_inspect_reads_the_engine_back(int8_builds: dict[str, EngineReport], tmp_path: Path) -> None:
    engine = int8_builds["per-tensor"].engine
    facts = inspect_engine(engine).to_json()
    assert facts["runs"]["convolutions"] == {"int8": 38, "fp16": 1}
    assert facts["parameters"] == 176_122
    assert (facts["flavour"], facts["precision"]) == ("rtx", "int8")
    assert InspectEngineReport.from_json(facts).to_json() == facts
    alone = inspect_engine(Path(shutil.copy(engine, tmp_path / "alone.engine")))
    assert alone.to_json()["runs"] == facts["runs"]
    assert alone.to_json()["parameters"] is None
    assert any("sidecar" in note for note in alone.notes)


@pytest.mark.slow
def test_densenet121_alone(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One command without a file: exports, casts, builds; and the second time finds all of it."""
    report = build(None, "fp16", out=f"{tmp_path}/")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "densenet121.fp16.engine",
        "densenet121.fp16.engine.json",
        "densenet121.fp16.onnx",
        "densenet121.onnx",
    ]
    assert report.runs.convolutions == {"fp16": 120}
    assert any("untrained" in note for note in report.notes)
    assert build("121", "fp16", out=f"{tmp_path}/").up_to_date
    float_file = report.engine.with_name("densenet121.onnx")
    assert build(float_file, "fp32").runs.convolutions == {"fp32": 120}
    quantization = QuantizeOptions(samples=32, weights="per-tensor")
    int8 = build(float_file, "int8", calibration=SAMPLES, quantization=quantization)
    assert [conv.name for conv in convolutions_of(int8) if conv.precision != "int8"] == ["features.conv0"]
    assert int8.runs.writes == {"fp16": 120}
    _check_that_little_memory_is_exit_6(report.engine)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("variant", ["169", "201", "264"])
def test_every_variant_in_every_precision(variant: str, tmp_path: Path, times: int) -> None:
    if variant != "169" and times == 1:
        pytest.skip("takes minutes: asked for with --times 2")
    for precision in ("fp32", "fp16", "bf16", "int8"):
        quantization = QuantizeOptions(samples=32, weights="per-tensor")
        calibration = SAMPLES if precision == "int8" else None
        report = build(variant, precision, calibration=calibration, quantization=quantization, out=f"{tmp_path}/")
        assert report.runs.convolutions[precision] >= sum(report.runs.convolutions.values()) - 1  # the stem of INT8
        assert report.runs.share_of_macs[precision] > 0.9


def _check_that_little_memory_is_exit_6(engine: Path) -> None:
    """bad-inputs 27: the process may address 700 MB, of which TensorRT takes most before it begins."""
    before = {path.name: path.read_bytes() for path in engine.parent.iterdir()}
    words = f"-m densenet_deploy build-trt densenet121.fp16.onnx --fp16 --max-batch 2 -o {engine.name}"
    script = f"ulimit -v 700000; exec {sys.executable} {words}"
    done = subprocess.run(["bash", "-c", script], cwd=engine.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert {path.name: path.read_bytes() for path in engine.parent.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoding", [Encoding(opset=9, weights="inputs", head="view"), Encoding(opset=12, norm="caffe")]
)
def test_a_network_of_another_exporter_runs_in_int8_as_the_plan_says(encoding, tmp_path):
    path = tmp_path / "other.onnx"
    onnx.save(written(encoding), path)
    report = build(path, "int8", calibration=4 * image(encoding, 32) - 2)
    assert report.runs.convolutions == {"int8": CONVOLUTIONS - 1, "fp16": 1}  # the stem
    assert list(sidecar_of(report).convolutions.values()).count("int8") == CONVOLUTIONS - 1
    assert f"operator set {encoding.opset} was lifted to 13" in report.notes


@pytest.mark.slow
def test_the_zoo_network_of_the_onnx_package_becomes_an_engine(tmp_path):
    source = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_densenet121.onnx"
    report = build(Path(shutil.copy(source, tmp_path / "light.onnx")), "fp16")
    assert report.runs.convolutions == {"fp16": 120}
