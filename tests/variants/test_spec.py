"""The numbers of a DenseNet: what follows from them, and what is refused."""

import dataclasses

import pytest

from densenet_deploy.errors import ManifestError, UsageError
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.variants.spec import DenseNetSpec


def test_channels_of_densenet_121():
    spec = DenseNetSpec()
    assert spec.channels_in == (64, 128, 256, 512)
    assert spec.channels_out == (256, 512, 1024, 1024)
    assert spec.feature_channels == 1024


def test_compression_rounds_down():
    assert DenseNetSpec(growth_rate=5, blocks=(1, 1), init_features=10).channels_in == (10, 7)


@pytest.mark.parametrize(
    ("head", "name", "width"),
    [("classifier", "logits", 10), ("multiscale", "logits", 10), ("features", "features", 1024)],
)
def test_output_follows_the_head(head, name, width):
    spec = DenseNetSpec(head=head, num_classes=10)
    assert (spec.output_name, spec.output_width) == (name, width)


@pytest.mark.parametrize(
    "wrong",
    [
        {"growth_rate": 0},
        {"blocks": ()},
        {"blocks": (6, 0)},
        {"blocks": (1,) * 9},
        {"init_features": -1},
        {"compression": 0.0},
        {"compression": 1.01},
        {"compression": float("nan")},
        {"bn_size": -1},
        {"drop_rate": 1.0},
        {"num_classes": 0},
        {"stem": "mnist"},
        {"head": "detector"},
    ],
)
def test_numbers_out_of_range_are_usage_errors(wrong):
    with pytest.raises(UsageError):
        DenseNetSpec(**wrong)


def test_a_transition_keeps_at_least_one_channel():
    with pytest.raises(UsageError) as caught:
        DenseNetSpec(growth_rate=1, blocks=(1, 1), init_features=1, compression=0.4)
    assert caught.value.subject == "compression=0.4"


def test_dropout_classes_and_head_do_not_make_another_architecture():
    assert DenseNetSpec().same_architecture(DenseNetSpec(drop_rate=0.2, num_classes=3, head="features"))
    assert not DenseNetSpec().same_architecture(DenseNetSpec(bn_size=2))


def test_facts_survive_the_manifest():
    spec = DenseNetSpec(growth_rate=12, blocks=(3, 5), compression=1.0, bn_size=0, drop_rate=0.25, stem="cifar")
    manifest = Manifest("custom", spec.to_facts(), WeightsOrigin("none", "00", 0), Preprocessing())
    read = Manifest.from_strings(manifest.to_strings())
    assert read is not None
    assert DenseNetSpec.from_facts(read.spec) == spec


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"growth_rate": "32"}, "growth_rate"),
        ({"growth_rate": True}, "growth_rate"),
        ({"blocks": (6, "x")}, "blocks[1]"),
        ({"blocks": 6}, "blocks"),
        ({"compression": "half"}, "compression"),
        ({"bn_size": 4.0}, "bn_size"),
        ({"num_classes": -5}, "num-classes"),
        ({"stem": "mnist"}, "mnist"),
        ({"width": 3}, "width"),
    ],
)
def test_wrong_facts_are_metadata_errors(change, named):
    with pytest.raises(ManifestError) as caught:
        DenseNetSpec.from_facts({**DenseNetSpec().to_facts(), **change})
    assert caught.value.subject.startswith(f"spec.{named}")


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(DenseNetSpec)])
def test_a_missing_fact_is_named(name):
    facts = {key: value for key, value in DenseNetSpec().to_facts().items() if key != name}
    with pytest.raises(ManifestError) as caught:
        DenseNetSpec.from_facts(facts)
    assert caught.value.subject == f"spec.{name}"


def test_whole_numbers_are_good_compressions():
    assert DenseNetSpec.from_facts({**DenseNetSpec().to_facts(), "compression": 1}).compression == 1.0
