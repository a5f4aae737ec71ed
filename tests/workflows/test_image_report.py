"""What reports say about the images of a model."""

from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.workflows.image_report import described_input, remarks
from densenet_deploy.workflows.load import INPUT_FACTS
from tests.workflows.evaluation.colours import PLAIN, runner


def test_what_nobody_stated_is_named() -> None:
    one = runner()
    known, fast = Classifier(one), Classifier(one, fast=True)
    assert (described_input(known, one.manifest).assumed, described_input(known, None).assumed) == ((), INPUT_FACTS)
    assert described_input(known, one.manifest).mean == PLAIN.mean
    assert [described_input(which, one.manifest).fast_decode for which in (known, fast)] == [False, True]


def test_remarks_are_those_of_the_model_the_assumptions_and_fast_decoding() -> None:
    one = runner("multilabel", is_ours=False)
    one.manifest = None
    known, fast = Classifier(one), Classifier(one, fast=True)
    assert known.assumptions
    assert remarks(known, None) == known.assumptions
    assert remarks(known, None, ("first",)) == ("first", *known.assumptions)
    *before, last = remarks(fast, None)
    assert (tuple(before), "not exact" in last) == (known.assumptions, True)


def test_an_untrained_model_is_said(tiny_onnx) -> None:
    with Classifier.open(tiny_onnx) as classifier:
        found = remarks(classifier, classifier._runner.manifest)
    assert "untrained" in found[0]
