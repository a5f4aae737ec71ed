"""The numbers of a DenseNet: what follows from them, and what is refused."""

import dataclasses

import pytest

from densenet_deploy.errors import ManifestError, UsageError
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.variants.spec import SCALE_CHANNELS, DenseNetSpec, compressed


def test_channels_of_densenet_121():
    spec = DenseNetSpec()
    assert spec.channels_in == (64, 128, 256, 512)
    assert spec.channels_out == (256, 512, 1024, 1024)
    assert spec.feature_channels == 1024


def test_features_are_those_of_the_last_block():
    assert DenseNetSpec(growth_rate=3, blocks=(1, 2, 3), init_features=10, compression=1.0).feature_channels == 28


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
    ("field", "option", "good", "bad"),
    [
        ("growth_rate", "growth-rate", (1, 1024), (0, 1025)),
        ("init_features", "init-features", (1, 8192), (0, -1, 8193)),
        ("compression", "compression", (0.01, 1.0), (0.0, 0.0099, 1.01, float("nan"))),
        ("bn_size", "bn-size", (0, 64), (-1, 65)),
        ("drop_rate", "drop-rate", (0.0, 0.99), (-0.01, 1.0)),
        ("num_classes", "num-classes", (1, 1_000_000), (0, 1_000_001)),
        ("in_channels", "channels", (1, 4096), (0, 4097)),
    ],
)
def test_numbers_have_limits(field, option, good, bad):
    for value in good:
        assert getattr(DenseNetSpec(**{"init_features": 256, field: value}), field) == value
    for value in bad:
        with pytest.raises(UsageError) as caught:
            DenseNetSpec(**{field: value})
        assert caught.value.subject == f"{option}={value}"


@pytest.mark.parametrize("blocks", [(1,), (1,) * 8, (512,)])
def test_one_to_eight_blocks_of_one_to_512_layers_are_good(blocks):
    assert DenseNetSpec(blocks=blocks).blocks == blocks


@pytest.mark.parametrize(
    ("blocks", "subject"),
    [
        ((), "number of blocks=0"),
        ((1,) * 9, "number of blocks=9"),
        ((6, 0), "blocks=0"),
        ((513,), "blocks=513"),
    ],
)
def test_other_blocks_are_refused(blocks, subject):
    with pytest.raises(UsageError) as caught:
        DenseNetSpec(blocks=blocks)
    assert caught.value.subject == subject


def test_stems_and_heads_are_these():
    for stem in ("imagenet", "cifar", "imagenet-nopool", "3x3-pool", "3x3-nopool", "deep", "deep-blur"):
        assert DenseNetSpec(stem=stem).stem == stem
    for head in ("classifier", "features", "multiscale"):
        assert DenseNetSpec(head=head).head == head
    for wrong in ({"stem": "mnist"}, {"head": "detector"}):
        with pytest.raises(UsageError) as caught:
            DenseNetSpec(**wrong)
        assert caught.value.subject in wrong.values()
        assert caught.value.why in ("unknown stem", "unknown head")


def test_the_defaults_are_densenet_121():
    assert DenseNetSpec() == DenseNetSpec(32, (6, 12, 24, 16), 64, 0.5, 4, 0.0, "imagenet", 1000, "classifier")


def test_the_multiscale_head_has_128_channels_of_each_block():
    assert SCALE_CHANNELS == 128


@pytest.mark.parametrize(("channels", "compression", "kept"), [(7, 0.5, 3), (8, 0.5, 4), (9, 1.0, 9), (10, 0.19, 1)])
def test_a_transition_rounds_down(channels, compression, kept):
    assert compressed(channels, compression) == kept


@pytest.mark.parametrize(
    ("blocks", "stem", "size"),
    [
        ((1,), "imagenet", 1),
        ((1, 1), "imagenet", 5),
        ((1, 1, 1, 1), "imagenet", 29),
        ((1,), "cifar", 1),
        ((1, 1, 1), "cifar", 4),
        ((1, 1), "imagenet-nopool", 3),
        ((1, 1), "3x3-pool", 3),
        ((1, 1, 1), "3x3-nopool", 4),
        ((1, 1), "deep", 5),
        ((1,), "deep-blur", 3),
        ((1, 1), "deep-blur", 5),
    ],
)
def test_the_smallest_image_doubles_with_every_transition(blocks, stem, size):
    assert DenseNetSpec(blocks=blocks, stem=stem).smallest_image_size == size


def test_a_transition_keeps_at_least_one_channel():
    with pytest.raises(UsageError) as caught:
        DenseNetSpec(growth_rate=1, blocks=(1, 1), init_features=1, compression=0.4)
    assert caught.value.subject == "compression=0.4"
    assert DenseNetSpec(growth_rate=1, blocks=(1, 1), init_features=1, compression=0.5).channels_in == (1, 1)


def test_dropout_classes_and_head_do_not_make_another_architecture():
    assert DenseNetSpec().same_architecture(DenseNetSpec(drop_rate=0.2, num_classes=3, head="features"))
    assert DenseNetSpec().same_architecture(DenseNetSpec(in_channels=1, hidden="relu", bias=False, pooling="avg"))
    changes = ({"bn_size": 2}, {"growth_rate": 31}, {"blocks": (6,)}, {"init_features": 63}, {"compression": 0.6})
    for change in (*changes, {"stem": "cifar"}):
        assert not DenseNetSpec().same_architecture(DenseNetSpec(**change))


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


def test_ends_are_input_channels_and_head():
    other = DenseNetSpec(in_channels=1, num_classes=7, head="features", pooling="avg", hidden="norm", bias=False)
    spec = DenseNetSpec(growth_rate=8, stem="deep", drop_rate=0.1)
    assert spec.with_ends_of(other, head="classifier") == DenseNetSpec(
        8, (6, 12, 24, 16), 64, 0.5, 4, 0.1, "deep", 7, "classifier", 1, "avg", "norm", bias=False
    )


@pytest.mark.parametrize(
    ("changes", "pooled", "row"),
    [
        ({}, 1024, 1024),
        ({"pooling": "max-avg"}, 2048, 2048),
        ({"pooling": "avg", "hidden": "norm"}, 1024, 1024),
        ({"hidden": "linear:50 relu linear:20 norm relu"}, 1024, 20),
        ({"head": "multiscale"}, 1024, 512),
    ],
)
def test_widths_of_the_head(changes, pooled, row):
    spec = DenseNetSpec(**changes)
    assert (spec.pooled_width, spec.row_width) == (pooled, row)
    if spec.head == "classifier":
        assert dataclasses.replace(spec, head="features").output_width == row


@pytest.mark.parametrize(
    "wrong",
    [
        {"pooling": "gem"},
        {"hidden": "linear"},
        {"head": "multiscale", "hidden": "norm"},
        {"head": "multiscale", "pooling": "avg"},
    ],
)
def test_heads_that_are_not_built_are_refused(wrong):
    with pytest.raises(UsageError):
        DenseNetSpec(**wrong)


def test_the_stem_has_the_growth_rate_before_its_last_convolution():
    assert DenseNetSpec(growth_rate=5, init_features=7, stem="deep").stem_widths == (5, 5, 7)
    assert DenseNetSpec(growth_rate=5, init_features=7).stem_widths == (7,)


NEWER = ("in_channels", "pooling", "hidden", "bias")


@pytest.mark.parametrize("name", NEWER)
def test_files_of_before_these_numbers_have_the_defaults(name):
    facts = {key: value for key, value in DenseNetSpec().to_facts().items() if key != name}
    assert DenseNetSpec.from_facts(facts) == DenseNetSpec()


@pytest.mark.parametrize("name", [name for name in DenseNetSpec().to_facts() if name not in NEWER])
def test_a_missing_fact_is_named(name):
    facts = {key: value for key, value in DenseNetSpec().to_facts().items() if key != name}
    with pytest.raises(ManifestError) as caught:
        DenseNetSpec.from_facts(facts)
    assert caught.value.subject == f"spec.{name}"


def test_whole_numbers_are_good_compressions():
    assert DenseNetSpec.from_facts({**DenseNetSpec().to_facts(), "compression": 1}).compression == 1.0


def test_pruned_layers_have_widths_of_their_own() -> None:
    spec = DenseNetSpec(growth_rate=4, blocks=(2, 1)).with_bottlenecks([12, 16, 5])
    assert (spec.bn_size, spec.bottlenecks) == (4, (12, 16, 5))
    assert spec.bottleneck_widths == ((12, 16), (5,))
    assert DenseNetSpec.from_facts(spec.to_facts()) == spec
    assert not spec.same_architecture(DenseNetSpec(growth_rate=4, blocks=(2, 1)))


@pytest.mark.parametrize(
    ("widths", "bn_size", "bottlenecks"),
    [
        ([12, 12, 12], 3, ()),
        ([10, 10, 10], 3, (10, 10, 10)),
        ([13, 12, 12], 4, (13, 12, 12)),
        ([1, 1, 1], 1, (1, 1, 1)),
        ([256, 1, 1], 64, (256, 1, 1)),
    ],
)
def test_one_network_has_one_spec(widths: list[int], bn_size: int, bottlenecks: tuple[int, ...]) -> None:
    spec = DenseNetSpec(growth_rate=4, blocks=(2, 1)).with_bottlenecks(widths)
    assert (spec.bn_size, spec.bottlenecks) == (bn_size, bottlenecks)
    assert [width for block in spec.bottleneck_widths for width in block] == widths


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"bottlenecks": (12, 16)}, "number of bottlenecks=2"),
        ({"bottlenecks": (12, 16, 5, 5)}, "number of bottlenecks=4"),
        ({"bottlenecks": (12, 16, 0)}, "bottlenecks=0"),
        ({"bottlenecks": (12, 16, 257), "bn_size": 65}, "bn-size=65"),
        ({"bottlenecks": (12, 16, 257), "bn_size": 64}, "bottlenecks=257"),
        ({"bottlenecks": (12, 16, 5), "bn_size": 3}, "bn-size=3"),
        ({"bottlenecks": (12, 16, 5), "bn_size": 0}, "bn-size=0"),
        ({"bottlenecks": (16, 16, 16)}, "bn-size=4"),
    ],
)
def test_widths_that_contradict_the_rest_are_refused(changes: dict, subject: str) -> None:
    with pytest.raises(UsageError) as caught:
        DenseNetSpec(**{"growth_rate": 4, "blocks": (2, 1)} | changes)
    assert caught.value.subject == subject


def test_a_plain_layer_has_no_bottleneck_and_a_file_states_only_unequal_ones() -> None:
    assert DenseNetSpec(blocks=(1, 2), bn_size=0).bottleneck_widths == ((0,), (0, 0))
    assert DenseNetSpec(blocks=(1, 2)).bottleneck_widths == ((128,), (128, 128))
    assert "bottlenecks" not in DenseNetSpec().to_facts()
