"""Comparing two models: equal ones pass, a changed weight is found by its layer, unlike ones are refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from densenet_deploy.errors import BackendError, DataError, GateError, ModelFileError, UsageError
from densenet_deploy.parity.compare import Parity, ParityMeter
from densenet_deploy.parity.gates import Gate
from densenet_deploy.workflows.compare import (
    CompareOptions,
    ComparisonReport,
    LayerParity,
    compare,
    missed_gates,
    require_sqnr,
)
from densenet_deploy.workflows.load import load

QUICK = CompareOptions(samples=2)
CHANGED = "features.denseblock2.denselayer1.conv2"


@pytest.fixture
def changed(tiny_onnx: Path, tmp_path: Path) -> Path:
    """A copy in which one convolution has the opposite sign."""
    model = onnx.load(tiny_onnx)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == f"{CHANGED}.weight")
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    onnx.save(model, tmp_path / "changed.onnx")
    return tmp_path / "changed.onnx"


def test_a_model_equals_itself(tiny_onnx):
    report = compare(tiny_onnx, tiny_onnx, options=QUICK)
    assert report.passed
    assert (report.parity.max_abs, report.parity.top1_agreement) == (0.0, 1.0)
    assert report.notes == ("untrained weights (random, seed 0): predictions are meaningless",)


def test_every_backend_computes_the_same(tiny_onnx):
    options = CompareOptions(samples=2, reference_backend="onnxruntime", candidate_backend="openvino")
    report = compare(tiny_onnx, tiny_onnx, options=options)
    assert report.passed
    assert "onnxruntime" in report.reference
    assert "openvino" in report.candidate


def test_a_changed_weight_fails_and_its_layer_is_the_first_to_diverge(tiny_onnx, changed):
    report = compare(tiny_onnx, changed, options=CompareOptions(samples=2, per_layer=True))
    assert not report.passed
    assert report.first_divergence == CHANGED
    assert report.layers[CHANGED].cosine == pytest.approx(-1.0)
    assert report.layers["features.denseblock1.concat"].max_abs == 0.0
    facts = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert facts["passed"] is False
    assert CHANGED in {layer["name"] for layer in facts["worst_layers"]}


def test_equal_models_diverge_nowhere(tiny_onnx):
    report = compare(tiny_onnx, tiny_onnx, options=CompareOptions(samples=1, per_layer=True))
    assert report.first_divergence is None
    assert list(report.layers)[-1] == "logits"
    assert report.skipped == {}


def test_a_checkpoint_shows_its_layers_too(checkpoint):
    report = compare(checkpoint, checkpoint, options=CompareOptions(samples=1, per_layer=True))
    assert report.passed
    assert CHANGED in report.layers


def test_another_checkpoint_is_another_model(tiny_onnx, checkpoint):
    assert not compare(tiny_onnx, checkpoint, options=QUICK).passed


def test_the_gates_given_are_the_gates_that_count(tiny_onnx, changed):
    assert compare(tiny_onnx, changed, options=CompareOptions(samples=2, gates=())).passed is None
    strict = CompareOptions(samples=2, gates=(Gate("max_abs", 1e-9),))
    assert "max_abs" in compare(tiny_onnx, changed, options=strict).failed[0]


def test_images_of_the_users_are_compared_on(tiny_onnx, images):
    report = compare(tiny_onnx, tiny_onnx, images, CompareOptions(samples=3))
    assert report.parity.count == 3 * 10  # logits of three images


def test_a_folder_without_images_is_refused(tiny_onnx, tmp_path):
    with pytest.raises(DataError):
        compare(tiny_onnx, tiny_onnx, tmp_path)


def test_models_of_different_sizes_are_refused(tiny_onnx, tmp_path):
    model = onnx.load(tiny_onnx)
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 64
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "larger.onnx")
    with pytest.raises(ModelFileError):
        compare(tiny_onnx, tmp_path / "larger.onnx", options=QUICK)


def means(*shape: int | str) -> onnx.ModelProto:
    """A network whose outputs are the mean of each channel."""
    image = ",".join(map(str, ("N", *shape)))
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g (float[{image}] x) => (float[N,K] scores)'
        "{ mean = GlobalAveragePool(x)  scores = Flatten(mean) }"
    )


def array(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("reference", "candidate", "shape"),
    [
        ((1, 32, 48), (1, 32, 48), (1, 32, 48)),
        ((4, "H", "W"), (4, 32, 48), (4, 32, 48)),
        ((4, 32, 48), (4, "H", "W"), (4, 32, 48)),
        ((3, 32, "W"), (3, "H", 48), (3, 32, 48)),
        (("C", "H", "W"), (1, "H", 48), (1, 48, 48)),
        ((3, "H", "W"), (3, "H", "W"), (3, 224, 224)),
    ],
)
def test_models_are_compared_on_images_that_both_take(reference, candidate, shape):
    report = compare(means(*reference), means(*candidate), options=QUICK)
    assert (report.parity.max_abs, report.parity.count) == (0.0, 2 * shape[0])
    assert compare(means(*reference), means(*candidate), array(2, *shape), QUICK).parity.max_abs == 0.0
    with pytest.raises(DataError) as caught:
        compare(means(*reference), means(*candidate), array(2, shape[0], shape[1] + 1, shape[2]), QUICK)
    assert f"(N, {', '.join(map(str, shape))})" in caught.value.why


@pytest.mark.parametrize("stated_first", [True, False])
def test_a_dynamic_model_is_compared_on_images_of_the_size_that_was_stated(stated_first):
    def compared(other: onnx.ModelProto, *shape: int):
        stated = load(means(3, "H", "W"), image_size=(32, 48), mean=0.5, std=0.5)
        pair = (stated, other) if stated_first else (other, stated)
        return compare(*pair, array(2, *shape), QUICK)

    assert compared(means(3, "H", "W"), 3, 32, 48).parity.max_abs == 0.0
    with pytest.raises(DataError):
        compared(means(3, "H", "W"), 3, 64, 64)
    with pytest.raises(ModelFileError):  # the stated size is that of the graph from then on
        compared(means(3, 64, 64), 3, 64, 64)


@pytest.mark.parametrize(
    ("reference", "candidate", "ours", "theirs"),
    [
        ((3, 32, 32), (1, 32, 32), "3x32x32", "1x32x32"),
        ((3, 32, 48), (3, 48, 32), "3x32x48", "3x48x32"),
        ((3, "H", 48), (3, 32, 32), "3x?x48", "3x32x32"),
        ((1, "H", "W"), (3, "H", "W"), "1x?x?", "3x?x?"),
    ],
)
def test_models_of_other_channels_or_sides_are_refused_with_both(reference, candidate, ours, theirs):
    with pytest.raises(ModelFileError) as caught:
        compare(means(*reference), means(*candidate), options=QUICK)
    assert caught.value.subject == "candidate"
    assert caught.value.why == f"takes images of {theirs}, the reference of {ours}"


def test_a_third_party_file_is_compared_on_imagenet_preprocessing(torchvision_onnx):
    report = compare(torchvision_onnx, torchvision_onnx, options=QUICK)
    assert report.passed
    assert report.notes == ()


@pytest.mark.parametrize("renamed", [True, False], ids=["renamed", "added"])
def test_outputs_matched_by_position_and_outputs_left_out_are_named(tiny_onnx, renamed):
    model = onnx.load(tiny_onnx)
    model.graph.node.append(onnx.helper.make_node("Identity", ["logits"], ["scores"]))
    if not renamed:
        model.graph.output.add().CopyFrom(model.graph.output[0])
    model.graph.output[-1].name = "scores"
    report = compare(tiny_onnx, model, options=QUICK)
    assert (list(report.outputs), report.parity.max_abs) == (["logits"], 0.0)
    assert [("logits" in note, "scores" in note) for note in report.notes[1:]] == [(renamed, True)]


@pytest.mark.slow
def test_what_shows_no_inner_tensors_is_refused(tiny_onnx, tmp_path):
    import openvino

    openvino.save_model(openvino.convert_model(tiny_onnx), tmp_path / "tiny.xml", compress_to_fp16=False)
    with pytest.raises(BackendError) as caught:
        compare(tiny_onnx, tmp_path / "tiny.xml", options=CompareOptions(samples=1, per_layer=True))
    assert caught.value.subject == "tiny"


def test_anything_that_loads_is_compared(tiny_onnx, changed):
    quick = CompareOptions(samples=1)
    assert compare(tiny_onnx, tiny_onnx.read_bytes(), options=quick).parity.max_abs == 0.0
    assert compare(load(tiny_onnx), onnx.load(changed), options=quick).parity.max_abs > 0.0


@pytest.mark.parametrize("kind", ["array", "list", "npy"])
def test_arrays_are_compared_on(tiny_onnx, tmp_path, kind):
    array = np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32)
    np.save(tmp_path / "a.npy", array)
    data = {"array": array, "list": list(array), "npy": tmp_path / "a.npy"}[kind]
    report = compare(tiny_onnx, tiny_onnx, data, CompareOptions(samples=8))
    assert report.outputs["logits"].count == 3 * 10


@pytest.mark.parametrize("samples", [0, -1])
def test_nothing_to_compare_is_a_usage_error(samples):
    with pytest.raises(UsageError) as caught:
        CompareOptions(samples=samples)
    assert caught.value.subject == f"samples={samples}"


def test_the_same_samples_come_every_time(tiny_onnx, changed):
    one, two = (compare(tiny_onnx, changed, options=QUICK).parity for _ in range(2))
    assert one == two
    assert np.isfinite(one.max_abs)


def test_layers_are_compared_on_the_same_samples_of_an_iterator(tiny_onnx):
    samples = np.random.default_rng(0).uniform(-1, 1, (6, 3, 32, 32)).astype(np.float32)
    options = CompareOptions(per_layer=True)
    report = compare(tiny_onnx, tiny_onnx, iter(samples), options)
    assert report.layers.keys() == compare(tiny_onnx, tiny_onnx, samples, options).layers.keys() != set()


@pytest.mark.parametrize("facts", [[], {}, {"name": 3}])
def test_a_layer_of_a_report_has_a_name(facts):
    with pytest.raises(ValueError, match="has no name"):
        LayerParity.from_json(facts)


@pytest.mark.parametrize(("labels", "said"), [("abcdefghij", False), ("bacdefghij", True), ("", False)])
def test_models_with_other_labels_have_no_common_classes_which_is_said(tiny_onnx, labels, said):
    """Equal numbers at equal places, which two models call by different names."""
    ours, theirs = (
        load(tiny_onnx, labels=list(names)) if names else load(tiny_onnx) for names in ("abcdefghij", labels)
    )
    report = compare(ours, theirs, options=QUICK)
    assert (report.parity.max_abs, report.parity.top1_agreement) == (0.0, None if said else 1.0)
    assert any("other labels" in note for note in report.notes) is said


def test_models_of_two_tasks_are_compared_by_their_numbers_which_is_said(tiny_onnx):
    report = compare(load(tiny_onnx, task="multiclass"), load(tiny_onnx, task="regression"), options=QUICK)
    assert any("multiclass model, the candidate a regression model" in note for note in report.notes)


def test_a_layer_with_nan_has_no_sqnr_in_the_table():
    whole = Parity(0.5, 0.5, 1.0, 1.0, 0.9, 12.345, None, None, None, 8)
    layers = (
        LayerParity("broken", dataclasses.replace(whole, sqnr_db=math.inf, nonfinite=1)),
        LayerParity("sound", whole),
    )
    text = ComparisonReport(
        reference="a", candidate="b", outputs={"y": whole}, passed=None, worst_layers=layers
    ).to_text()
    rows = [line.split() for line in text.splitlines() if line.startswith(("broken", "sound"))]
    assert rows == [["broken", "NaN", "or", "Inf", "–", "–"], ["sound", "12.3", "0.900000", "0.5"]]


def test_a_gate_judges_the_outputs_of_which_its_metric_has_a_meaning():
    scores = Parity(0.5, 0.5, 1.0, 1.0, 0.9, 12.0, None, 0.5, None, 8)
    vector = dataclasses.replace(scores, top1_agreement=None)
    gate = (Gate("top1_agreement", 0.6),)
    (missed,) = missed_gates({"scores": scores, "vector": vector}, gate)
    assert missed.startswith("scores: top1_agreement is 0.5")
    assert missed_gates({"scores": scores, "vector": vector}, (Gate("top1_agreement", 0.5),)) == ()
    assert [text.partition(" is not")[0] for text in missed_gates({"one": vector, "two": vector}, gate)] == [
        "one: top1_agreement",
        "two: top1_agreement",
    ]


# -- a demand


def parity(sqnr_db: float) -> Parity:
    """Of outputs of power 1 with an error of that power below them."""
    meter = ParityMeter()
    meter.update(np.array([[1.0, -1.0]]), np.array([[1.0, -1.0]]) + 10 ** (-sqnr_db / 20))
    return meter.result()


BROKEN = ParityMeter()
BROKEN.update(np.ones((2, 2)), np.array([[1.0, np.nan], [np.inf, 1.0]]))


def test_outputs_have_to_be_finite() -> None:
    with pytest.raises(GateError) as caught:
        require_sqnr({"good": parity(40), "bad": BROKEN.result()}, None, "net.onnx", "ask for less")
    assert (caught.value.subject, "bad holds" in caught.value.why) == ("net.onnx", True)


def test_the_worst_output_has_to_reach_the_sqnr_that_was_asked_for() -> None:
    outputs = {"good": parity(50), "worse": parity(30)}
    require_sqnr(outputs, None, "net.onnx", "ask for less")
    require_sqnr(outputs, 29.9, "net.onnx", "ask for less")
    with pytest.raises(GateError) as caught:
        require_sqnr(outputs, 30.1, "net.onnx", "ask for less")
    assert (caught.value.subject, "reaches 30.00 dB" in caught.value.why) == ("net.onnx", True)
