"""What a source is asked for and what it returns; which sources and formats there are."""

import pytest

from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.facts import ModelFacts
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.sources.heads import HeadConventions
from densenet_deploy.sources.source import CheckpointFormat, LoadedNetwork, Match, WeightsConstraint, formats, sources
from densenet_deploy.variants import Variant
from densenet_deploy.variants.spec import DenseNetSpec

VARIANT = Variant("mine", DenseNetSpec(blocks=(1,), num_classes=7, head="multiscale"), Preprocessing(image_size=40))


@pytest.mark.parametrize(
    ("constraint", "classes", "head"),
    [
        (WeightsConstraint(), 7, "multiscale"),
        (WeightsConstraint(num_classes=3), 3, "multiscale"),
        (WeightsConstraint(head="features"), 7, "features"),
        (WeightsConstraint(num_classes=1_000_000, head="classifier"), 1_000_000, "classifier"),
    ],
)
def test_classes_and_head_are_applied_and_nothing_else(constraint, classes, head):
    spec = DenseNetSpec(blocks=(1,), num_classes=classes, head=head)
    assert constraint.applied_to(VARIANT) == Variant("mine", spec, Preprocessing(image_size=40))


@pytest.mark.parametrize(
    ("wrong", "subject"),
    [
        ({"num_classes": 0}, "num-classes=0"),
        ({"num_classes": 1_000_001}, "num-classes=1000001"),
        ({"head": "tail"}, "tail"),
    ],
)
def test_constraints_are_checked_when_they_are_made(wrong, subject):
    with pytest.raises(UsageError) as caught:
        WeightsConstraint(**wrong)
    assert caught.value.subject == subject


def test_the_limits_are_good():
    assert WeightsConstraint(num_classes=1).num_classes == 1


def test_nothing_is_asked_by_default():
    assert WeightsConstraint() == WeightsConstraint(None, None, None, seed=0, allow_nonfinite=False)


def test_a_network_of_which_nothing_is_known():
    assert LoadedNetwork("a").facts == ModelFacts()
    assert LoadedNetwork("a").output_names == ("logits",)


def test_the_surest_match_is_the_largest():
    assert sorted(Match) == [Match.NO, Match.POSSIBLE, Match.CERTAIN]
    assert not Match.NO


def test_every_file_of_the_package_adds_its_source_and_format():
    assert sources.names() == ("file", "graph", "hub", "module", "torchvision", "untrained")
    assert formats.names() == ("chexnet", "fastai", "monai", "person-reid", "torchvision", "torchxrayvision")


def test_unknown_names_say_of_what():
    with pytest.raises(UnknownNameError) as caught:
        sources.get("nowhere")
    assert caught.value.why == "unknown source"


def test_a_format_states_no_facts_by_itself():
    class Mine(CheckpointFormat):
        def recognises(self, names):
            return True

        def renames(self, names):
            return {}

    assert Mine().facts({}) == ModelFacts()
    assert Mine().notes({}) == ()
    assert Mine().library_output("logits", {}) == "logits"
    assert Mine().head == HeadConventions()
