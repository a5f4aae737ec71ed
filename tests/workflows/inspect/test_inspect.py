"""What `inspect` reports about a variant, a checkpoint, a module and a file; profiles; sweeps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from densenet_deploy.analysis.accuracy import Published
from densenet_deploy.analysis.cost import model_cost
from densenet_deploy.analysis.memory import activation_memory
from densenet_deploy.errors import BackendError, ManifestError, ModelFileError, UnknownNameError, UsageError
from densenet_deploy.facts import Architecture
from densenet_deploy.model import Model
from densenet_deploy.models.build import build_model
from densenet_deploy.runtime.runner import RunnerOptions
from densenet_deploy.variants import find_variant
from densenet_deploy.variants.spec import DenseNetSpec
from densenet_deploy.variants.sweep import Sweep
from densenet_deploy.workflows.inspect.engine import inspect_engine
from densenet_deploy.workflows.inspect.inspect import (
    InspectOptions,
    InspectReport,
    inspect,
    inspect_file,
    inspect_spec,
    inspect_variant,
)
from densenet_deploy.workflows.inspect.operator_profile import ProfileOptions, profile_model
from densenet_deploy.workflows.inspect.sweep import SweepOptions, SweepReport, _open, run_sweep
from densenet_deploy.workflows.load import load
from tests.conftest import DIGITS, TINY
from tests.foreign_networks import Encoding, written
from tests.runtime.plans import plan_bytes, sidecar_of, write_engine

SPEC = DenseNetSpec(growth_rate=4, blocks=(2, 2), init_features=8, bn_size=2, stem="cifar", num_classes=10)


def plain(report: object) -> dict:
    return json.loads(json.dumps(report.to_json(), allow_nan=False))  # type: ignore[attr-defined]


def test_precision_decides_what_activations_weigh() -> None:
    full, half = (inspect_variant("121", options=InspectOptions(precision=word)) for word in (None, "fp16"))
    assert full.activation_memory.bus_bytes == 2 * half.activation_memory.bus_bytes
    assert half.to_json()["precision"] == "fp16"
    with pytest.raises(UnknownNameError) as caught:
        InspectOptions(precision="fp12")
    assert caught.value.subject == "fp12"


def test_facts_are_keywords_as_for_every_workflow() -> None:
    assert plain(inspect(architecture=TINY)) == plain(inspect_variant(None, TINY))
    assert inspect("121", num_classes=10).parameters < inspect("121").parameters
    with pytest.raises(UsageError) as caught:
        inspect("121", variant="169")
    assert caught.value.subject == "121"


def test_a_training_step_is_measured_when_asked_for() -> None:
    without = inspect_variant(None, TINY, InspectOptions(batch=4))
    report = inspect_variant(None, TINY, InspectOptions(batch=4, training=True))
    assert without.training_step is None
    assert plain(without)["training_memory"] == plain(report)["training_memory"]
    step = plain(report)["training_step"]
    assert step["peak_bytes"] > plain(report)["training_memory"]["plain_bytes"]
    assert [stage["name"] for stage in step["stages"]] == [block["name"] for block in plain(report)["blocks"]]
    assert "peak of a training step" in report.to_text()


def test_a_file_says_what_its_layers_compute_in(tiny_onnx: Path) -> None:
    report = inspect_file(tiny_onnx)
    assert {layer.precision for layer in report.layers} == {"fp32"}
    assert report.file_parameters < report.parameters, "norms were folded"
    assert "layers compute in fp32: 11" in report.to_text()
    with pytest.raises(UsageError) as caught:
        inspect_file(tiny_onnx, InspectOptions(precision="fp16"))
    assert caught.value.subject == "precision=fp16"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_profile_adds_up(backend: str, tiny_onnx: Path) -> None:
    profile = profile_model(tiny_onnx, 2, ProfileOptions(backend, "cpu", threads=1, calls=3))
    total = sum(entry.ms for entry in profile.operators)
    for shares in (profile.by_operator, profile.by_block, profile.by_precision):
        assert sum(share.ms for share in shares) == pytest.approx(total)
        assert sum(share.fraction for share in shares) == pytest.approx(1)
        assert sum(share.count for share in shares) == len(profile.operators)
        assert [share.ms for share in shares] == sorted((share.ms for share in shares), reverse=True)
    assert {"stem", "denseblock1", "transition1", "denseblock2", "head"} <= {share.name for share in profile.by_block}
    assert profile.placement.backend == backend
    assert profile.latency_ms > 0
    assert plain(profile)["operators"][0]["precision"] == "fp32"


def test_a_checkpoint_is_profiled_as_a_module() -> None:
    options = InspectOptions(profile=ProfileOptions(threads=RunnerOptions().threads, calls=1))
    report = inspect_file(DIGITS / "densenet_digits.safetensors", options)
    assert report.profile.placement.backend == "torch"
    assert "classifier" in {entry.name for entry in report.profile.operators}
    assert "share" in report.to_text()


def test_a_checkpoint_cannot_be_profiled_by_a_backend_of_files() -> None:
    with pytest.raises(BackendError):
        inspect(DIGITS / "densenet_digits.safetensors", InspectOptions(profile=ProfileOptions("openvino")))


def test_a_sweep_counts_what_inspect_counts() -> None:
    report = run_sweep(Sweep.parse("growth-rate=4,8"), SPEC, SweepOptions(batch=2, measure=False))
    assert [point.value for point in report.points] == ["4", "8"]  # no ResNets beside a CIFAR stem
    for point, spec in zip(report.points, Sweep.parse("growth-rate=4,8").specs(SPEC).values(), strict=True):
        cost = model_cost(spec, 32)
        assert (point.parameters, point.macs) == (cost.parameters, cost.macs)
        assert point.bus_bytes == activation_memory(spec, 32, 2).bus_bytes
        assert point.training_bytes > point.activation_bytes
    assert plain(report)["points"][0]["latency_ms"] is None


def test_a_sweep_compares_images_of_any_shape() -> None:
    base = dataclasses.replace(SPEC, in_channels=5)
    report = run_sweep(Sweep.parse("growth-rate=4"), base, SweepOptions((32, 48), measure=False))
    spec = dataclasses.replace(base, growth_rate=4)
    (point,) = report.points
    assert (point.parameters, point.macs) == (model_cost(spec).parameters, model_cost(spec, (32, 48)).macs)
    assert point.bus_bytes == activation_memory(spec, (32, 48)).bus_bytes
    assert report.to_text().startswith("batch 1, 32x48, fp32")
    assert SweepReport.from_json(plain(report)).image_size == (32, 48)
    with pytest.raises(UsageError) as caught:
        run_sweep(Sweep.parse("growth-rate=4"), base, SweepOptions((32, 1), measure=False))
    assert caught.value.subject == "image-size=1"


@pytest.mark.slow
def test_a_sweep_over_variants_keeps_the_channels_and_gives_resnets_as_many() -> None:
    base = dataclasses.replace(find_variant("121").spec, in_channels=1, growth_rate=8, blocks=(1, 1))
    report = run_sweep(Sweep.parse("growth-rate=4"), base, SweepOptions((64, 32), measure=False))
    assert {point.name: point.parameters for point in report.points}["resnet50"] == 25_557_032 - 2 * 64 * 49
    assert Sweep.parse("variant=169").specs(base)["169"].in_channels == 1
    assert {point.published for point in report.points} == {None}


def test_a_table_says_where_it_was_measured_and_what_others_published() -> None:
    report = run_sweep(Sweep.parse("growth-rate=4"), SPEC, SweepOptions(measure=False))
    (point,) = report.points
    assert "ms:" not in report.to_text()
    assert "not measured here" not in report.to_text()
    published = Published(0.75, None, "a paper")
    timed = dataclasses.replace(
        point, latency_ms=1.234, latency_interval_ms=(1.2, 1.3), placement="torch, cpu", published=published
    )
    lines = dataclasses.replace(report, points=(timed, timed)).to_text().splitlines()
    assert lines[-3:] == [
        "",
        "ms: median call, torch, cpu, each network in a process of its own",
        "published, not measured here: a paper",
    ]
    assert lines[-4].split()[-5:] == ["1.23", "1.20-1.30", "75.00%", "/", "-"]


def test_without_values_to_normalize_over_a_training_step_is_unknown() -> None:
    """At batch 1 the last maps are one pixel, of which a BatchNormalization has no variance."""
    spec = dataclasses.replace(SPEC, blocks=(1, 1))
    alone, pair = (
        run_sweep(Sweep.parse("growth-rate=4"), spec, SweepOptions(2, batch, measure=False)).points[0]
        for batch in (1, 2)
    )
    assert alone.training_bytes is None
    assert pair.training_bytes > 0


def served(path: Path, spec: object, shape: tuple[int, ...]) -> list[object]:
    """The shapes that a candidate takes and makes of two images, opened from the file that its process is given."""
    path.write_text(json.dumps({"network": spec, "shape": shape}))
    runner = _open(path, "torch", "cpu", RunnerOptions(threads=1))
    (given,) = runner.inputs
    (row,) = runner.run({given.name: np.zeros((2, *shape), np.float32)}).values()
    runner.close()
    return [given.shape, row.shape]


def test_the_process_of_a_candidate_builds_the_network_of_its_file(tmp_path: Path) -> None:
    facts = json.loads(json.dumps(dataclasses.replace(SPEC, in_channels=2).to_facts()))
    assert served(tmp_path / "0.json", facts, (2, 8, 12)) == [(None, 2, 8, 12), (2, 10)]
    assert served(tmp_path / "1.json", "resnet50", (1, 32, 64)) == [(None, 1, 32, 64), (2, 1000)]


@pytest.mark.slow
def test_published_accuracies_stand_beside_the_networks_they_are_of() -> None:
    report = run_sweep(Sweep.parse("variant=121"), find_variant("121").spec, SweepOptions(measure=False))
    points = {point.name: point for point in report.points}
    assert list(points) == ["densenet121", "resnet50", "resnet101"]
    assert points["resnet50"].parameters == 25_557_032
    assert points["resnet101"].parameters == 44_549_160
    assert points["resnet50"].published.top1 == pytest.approx(0.7613)
    assert points["resnet50"].bus_bytes is None
    assert "published, not measured here" in report.to_text()
    smaller = run_sweep(Sweep.parse("variant=121"), find_variant("121").spec, SweepOptions(64, measure=False))
    assert {point.published for point in smaller.points} == {None}  # published at 224 pixels


@pytest.mark.slow
def test_a_sweep_measures_each_network_in_a_process_of_its_own() -> None:
    small = {"growth_rate": 4, "blocks": (1,), "init_features": 8, "bn_size": 2, "stem": "cifar", "num_classes": 10}
    base = DenseNetSpec(**small, in_channels=2)
    report = run_sweep(Sweep.parse("growth-rate=4,6"), base, SweepOptions(image_size=(8, 12), rounds=2, threads=1))
    for point in report.points:
        assert point.latency_interval_ms[0] <= point.latency_ms <= point.latency_interval_ms[1]
        assert point.peak_memory_bytes > 1e8  # a process that holds PyTorch
        assert "torch" in point.placement
    facts = plain(report)["points"][0]
    assert facts["latency_ms"] > 0
    assert facts["peak_memory_bytes"] == report.points[0].peak_memory_bytes


def test_a_custom_network_is_profiled_untrained() -> None:
    options = InspectOptions(profile=ProfileOptions(calls=1, threads=1))
    report = inspect_variant(None, Architecture(growth_rate=4, blocks=(1,), stem="cifar"), options)
    assert report.profile.placement.backend == "torch"


def test_any_source_of_a_network_can_be_inspected(tiny_onnx: Path) -> None:
    module = build_model(SPEC)
    assert inspect(module).parameters == model_cost(SPEC).parameters
    assert inspect(module).to_json()["weights"] == DIGITS.name or inspect(module).image_size == 32
    assert inspect(str(tiny_onnx)).layers == inspect_file(tiny_onnx).layers
    assert inspect("121").parameters == 7_978_856
    other = inspect(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()), InspectOptions(image_size=10))
    assert (other.parameters, other.macs) == (4 * 27 + 4, 4 * 27 * 64)


def test_a_module_is_profiled_with_the_channels_that_were_stated() -> None:
    options = InspectOptions(image_size=(32, 48), profile=ProfileOptions(calls=1, threads=1))
    report = inspect_variant("cifar-bc-10-4", None, options, channels=2)
    assert (
        report.parameters
        == model_cost(dataclasses.replace(find_variant("cifar-bc-10-4").spec, in_channels=2)).parameters
    )
    assert report.profile.placement.backend == "torch"


def test_a_file_has_one_size_and_one_kind(tiny_onnx: Path, tmp_path: Path) -> None:
    assert inspect_file(tiny_onnx, InspectOptions(image_size=32)).image_size == 32
    with pytest.raises(UsageError) as caught:
        inspect_file(tiny_onnx, InspectOptions(image_size=64))
    assert caught.value.subject == "image-size=64"
    path = tmp_path / "model.xml"
    path.write_text('<?xml version="1.0"?><net name="n" version="11"></net>')
    path.with_suffix(".bin").touch()
    with pytest.raises(ModelFileError) as refused:
        inspect(path)
    assert refused.value.subject == str(path)
    with pytest.raises(ModelFileError) as unknown:
        inspect(Model("nothing"))
    assert unknown.value.subject == "nothing"


def test_facts_that_make_no_network_are_those_of_the_manifest(tiny_onnx: Path) -> None:
    manifest = load(tiny_onnx).manifest
    wrong = dataclasses.replace(manifest, spec={**manifest.spec, "blocks": (1,) * 8})
    with pytest.raises(ManifestError) as caught:
        inspect_spec("tiny.onnx", "fp32", wrong, InspectOptions(), (127, 200))
    assert caught.value.subject == "spec of tiny.onnx"
    assert inspect_spec("tiny.onnx", "fp32", wrong, InspectOptions(), (128, 200)).image_size == (128, 200)


def test_a_model_that_states_nothing_keeps_its_notes() -> None:
    report = inspect_variant(None, TINY)
    assert report.described(None, ("a note",)) == dataclasses.replace(report, notes=("a note",))


def test_an_engine_is_read_without_a_gpu(tiny_onnx: Path, tmp_path: Path) -> None:
    path, plan = tmp_path / "tiny.engine", plan_bytes(b"ftrt", (10, 3, 0, 26), mask=0)
    manifest = load(tiny_onnx).manifest
    facts = {"manifest": manifest, "convolutions": {"a": "int8", "b": "int8", "c": "fp16"}}
    write_engine(path, plan, sidecar_of(plan, precision="int8", **facts))
    report = inspect(str(path), InspectOptions(batch=2))
    assert report == inspect_engine(path, 2)
    assert (report.architecture.parameters, report.architecture.batch) == (model_cost(SPEC).parameters, 2)
    assert report.to_text().splitlines()[:6] == [
        f"{path}: 0.0 MiB, tensorrt 10.3.0.26",
        "built for   8.7",
        "batches     1/2/4 (min/opt/max)",
        "asked       int8",
        "runs        convolutions: 2 in int8, 1 in fp16, read from the inspector when it was built",
        "",
    ]
    assert report.to_text().endswith(report.architecture.to_text())
    path.with_name("tiny.engine.json").unlink()
    bare = inspect_engine(path)
    assert (bare.architecture, bare.precision) == (None, "unknown")
    assert bare.to_text().splitlines()[1:] == [
        "built for   unknown GPUs",
        "runs        convolutions: unknown: the engine does not say",
    ]


def test_a_report_reads_its_own_json(tiny_onnx: Path) -> None:
    report = inspect_file(tiny_onnx, InspectOptions(profile=ProfileOptions("openvino", threads=1, calls=1)))
    read = InspectReport.from_json(plain(report))
    assert read == report
    assert read.to_text() == report.to_text()
    swept = run_sweep(Sweep.parse("growth-rate=4"), SPEC, SweepOptions(measure=False))
    assert SweepReport.from_json(plain(swept)).to_text() == swept.to_text()


def test_a_graph_of_images_of_any_size_is_inspected_at_the_size_that_is_stated(tmp_path: Path) -> None:
    model = written(Encoding(opset=17))
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "side"
    onnx.save(model, tmp_path / "any.onnx")
    with pytest.raises(ModelFileError) as caught:
        inspect(tmp_path / "any.onnx")
    assert "--image-size" in caught.value.fix
    fixed, larger = (inspect(tmp_path / "any.onnx", InspectOptions(image_size=side)) for side in (16, (32, 16)))
    assert (fixed.image_size, larger.image_size) == (16, (32, 16))
    onnx.save(written(Encoding(opset=17)), tmp_path / "fixed.onnx")
    assert fixed.macs == inspect(tmp_path / "fixed.onnx").macs
    assert 1.5 * fixed.macs < larger.macs < 2.0 * fixed.macs  # twice the pixels, and the same classifier
