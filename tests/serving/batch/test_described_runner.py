"""A runner of which only the facts are known: a classifier finds in it what it finds in the runner itself."""

import json

import numpy as np
import pytest

from densenet_deploy.errors import RunnerStateError
from densenet_deploy.records import from_plain, to_plain
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.serving.batch.described_runner import DescribedRunner, RunnerFacts
from tests.workflows.evaluation.colours import runner


def described(one):
    facts = RunnerFacts.of(one, Classifier(one))
    read = from_plain(RunnerFacts, json.loads(json.dumps(to_plain(facts))))
    assert read == facts
    return DescribedRunner(read, one.placement)


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_what_a_model_means_is_known_without_it(task) -> None:
    one = runner(task, thresholds=(0.2, 0.3, 0.4) if task == "multilabel" else ())
    other = described(one)
    assert (other.inputs, other.outputs, other.manifest) == (one.inputs, one.outputs, one.manifest)
    mine, theirs = Classifier(one), Classifier(other)
    assert (theirs.meaning, theirs.labels, theirs.preprocessing) == (mine.meaning, mine.labels, mine.preprocessing)
    assert theirs.assumptions == mine.assumptions


def test_the_number_of_classes_is_counted_where_the_model_does_not_state_it() -> None:
    one = runner("multilabel", (), shown=None)
    other = described(one)
    assert Classifier(one).meaning.classes is None
    assert one.runs == 1
    assert Classifier(other).classes == Classifier(one).classes == 3
    assert other.outputs[0].shape == (None, 3)


def test_a_model_without_a_manifest_has_none(digits_onnx, tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(digits_onnx)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with open_runner(tmp_path / "bare.onnx") as one:
        other = described(one)
        assert (other.manifest, other.activations) == (None, one.activations)
        assert Classifier(other).assumptions == Classifier(one).assumptions


def test_it_runs_nothing() -> None:
    with pytest.raises(RunnerStateError):
        described(runner()).run(np.zeros((1, 3, 8, 8), np.float32))
