"""Top-1 agreement has a meaning for scores of classes alone, in the report of every workflow that compares models."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx.helper
import pytest
import torch

from densenet_deploy.cli import main
from densenet_deploy.manifest import TASKS
from densenet_deploy.model import Model
from densenet_deploy.parity.gates import Gate
from densenet_deploy.workflows.cast import cast
from densenet_deploy.workflows.check import Recording, require_recorded
from densenet_deploy.workflows.compare import CompareOptions, compare
from densenet_deploy.workflows.export import export
from densenet_deploy.workflows.load import load
from densenet_deploy.workflows.prune.options import PruneOptions
from densenet_deploy.workflows.prune.prune import prune
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.quantize import quantize
from densenet_deploy.workflows.simplify import simplify
from densenet_deploy.workflows.tune.cache import ResultCache
from densenet_deploy.workflows.tune.candidates import ModelFile, Trial
from densenet_deploy.workflows.tune.measure import LocalMeasurer, Quality
from densenet_deploy.workflows.tune.models import FloatModel
from tests.conftest import TINY

IMAGES = np.random.default_rng(0).uniform(-1, 1, (32, 3, 32, 32)).astype(np.float32)
WORKFLOWS = {
    "export": lambda model: model,
    "simplify": simplify,
    "cast": cast,
    "quantize": lambda model: quantize(model, IMAGES, QuantizeOptions(recipe="onnxruntime", never_slower=False)),
    "prune": lambda model: prune(model, IMAGES, PruneOptions(ratio=0.5)),
    "compare": lambda model: compare(model, model, options=CompareOptions(samples=2, per_layer=True)),
}


@pytest.fixture(scope="module", params=TASKS)
def exported(request: pytest.FixtureRequest) -> Model:
    """A network of ten outputs, by its task."""
    with pytest.warns(UserWarning, match="untrained"):
        return export(load(architecture=TINY, num_classes=10, task=request.param))


def agreements(facts: object) -> Iterator[float | None]:
    """Every agreement in a report, of all outputs."""
    if isinstance(facts, dict):
        yield from (value for key, value in facts.items() if key.endswith("_agreement"))
    nested = facts.values() if isinstance(facts, dict) else facts if isinstance(facts, list) else ()
    for one in nested:
        yield from agreements(one)


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_only_a_multiclass_model_has_a_top1_agreement(exported, workflow):
    made = WORKFLOWS[workflow](exported)
    report = made.report if isinstance(made, Model) else made
    is_multiclass = exported.manifest.task == "multiclass"
    facts = report.to_json()
    of_outputs = list(agreements({key: facts.get(key) for key in ("parity", "outputs", "rounded")}))
    assert of_outputs
    assert {value is not None for value in of_outputs} == {is_multiclass}
    assert ("top-1 agreement" in report.to_text()) == is_multiclass
    if workflow == "compare":  # of inner tensors, never
        assert set(agreements(facts["worst_layers"])) == {None}


def test_nor_have_recorded_outputs_another(exported, tmp_path):
    with exported.runner() as run:
        np.savez(tmp_path / "recorded.npz", x=IMAGES, y=run(IMAGES)["logits"])
    outputs, _ = require_recorded(exported, Recording.read(tmp_path / "recorded.npz"))
    assert (outputs["logits"].top1_agreement is not None) == (exported.manifest.task == "multiclass")


def test_tune_counts_changed_classes_only_where_there_are_classes(exported, tmp_path):
    path = exported.save(tmp_path / "net.onnx")
    file = ModelFile(path, "net", "fp32", "fp32", "hash", path.stat().st_size)
    models = {"net": FloatModel(file, exported.manifest.preprocessing, exported.manifest)}
    measurer = LocalMeasurer(Trial(file, "onnxruntime", 1, 1), models, ResultCache(tmp_path / "results.json"))
    quality = measurer.quality(file, "onnxruntime")
    assert isinstance(quality, Quality)
    assert quality.drop(None) == (0.0 if exported.manifest.task == "multiclass" else None)


def test_the_command_prints_none_and_refuses_a_gate_on_it(exported, tmp_path, capsys):
    path = exported.save(tmp_path / "net.onnx")
    code = main(["validate", str(path), str(path), "--samples", "2", "--gate", "top1_agreement=1"])
    is_multiclass = exported.manifest.task == "multiclass"
    assert code == (0 if is_multiclass else 4)
    assert ("top-1 agreement" in capsys.readouterr().out) == is_multiclass


# -- a file that states no task shows it, or is taken for scores of classes


def third_party(tail: str, outputs: int = 4) -> onnx.ModelProto:
    """A network of another exporter that ends in `tail`."""
    weight = np.random.default_rng(1).standard_normal((3, outputs)).astype(np.float32)
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
        onnx.helper.make_node("Flatten", ["mean"], ["means"]),
        onnx.helper.make_node("MatMul", ["means", "w"], ["row"]),
        onnx.helper.make_node(tail, ["row"], ["scores"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, 32, 32])],
        [onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["N", outputs])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize(
    ("tail", "outputs", "agreement"),
    [("Softmax", 4, 1.0), ("Identity", 4, 1.0), ("Sigmoid", 4, None), ("Identity", 1, None)],
)
def test_a_file_without_a_task_shows_what_it_is(tail, outputs, agreement):
    graph = third_party(tail, outputs)
    report = compare(graph, graph, options=CompareOptions(samples=3))
    assert report.parity.top1_agreement == agreement


def test_both_models_have_to_give_scores_of_classes():
    scores, labels = third_party("Identity"), third_party("Sigmoid")
    for pair in ((scores, labels), (labels, scores)):
        assert compare(*pair, options=CompareOptions(samples=3)).parity.top1_agreement is None
    stated = load(scores, task="multilabel")
    for pair in ((scores, stated), (stated, scores)):
        assert compare(*pair, options=CompareOptions(samples=3)).parity.top1_agreement is None
    assert compare(labels, labels, options=CompareOptions(samples=3), task="multiclass").parity.top1_agreement == 1.0


# -- several outputs


class TwoHeads(torch.nn.Module):
    """Scores of five classes, and a vector of another width."""

    def __init__(self, names: tuple[str, str]) -> None:
        super().__init__()
        self.names, self.maps = names, torch.nn.Conv2d(3, 8, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        row = self.maps(x).mean((2, 3))
        return dict(zip(self.names, (row[:, :5], row), strict=True))


@pytest.mark.parametrize(
    ("names", "facts"), [(("logits", "embedding"), {}), (("scores", "row"), {"labels": list("abcde")})]
)
def test_of_several_outputs_those_with_one_column_per_class_have_it(names, facts):
    model = export(load(TwoHeads(names).eval(), image_size=8, **facts))
    assert {name: one.top1_agreement for name, one in model.report.outputs.items()} == {names[0]: 1.0, names[1]: None}
    gates = (Gate("top1_agreement", 1.0), Gate("cosine", 0.999))
    report = compare(model, model, options=CompareOptions(samples=2, gates=gates))
    assert {name: parity.top1_agreement for name, parity in report.outputs.items()} == {names[0]: 1.0, names[1]: None}
    assert report.passed is True  # the gate judges the output that it has a meaning for
