"""Stems as numbers, and which of them share their parameters."""

import pytest

from densenet_deploy.variants.stems import STEM_TABLE, STEMS, Stem, stem_of, stems_like


def test_the_stems_are_these():
    assert STEMS == ("imagenet", "cifar", "imagenet-nopool", "3x3-pool", "3x3-nopool", "deep", "deep-blur")
    assert STEM_TABLE["imagenet"] == Stem(kernel=7, stride=2, convolutions=1, norm=True, pool="max")
    assert STEM_TABLE["cifar"] == Stem(kernel=3, stride=1, convolutions=1, norm=False, pool="none")
    assert STEM_TABLE["deep-blur"] == Stem(kernel=3, stride=2, convolutions=3, norm=True, pool="blur")


@pytest.mark.parametrize(
    ("name", "halvings", "smallest", "text"),
    [
        ("imagenet", 2, 1, "conv0 stride 2, max pool 3x3/2"),
        ("cifar", 0, 1, "conv0 stride 1, no pool"),
        ("imagenet-nopool", 1, 1, "conv0 stride 2, no pool"),
        ("3x3-pool", 1, 1, "conv0 stride 1, max pool 3x3/2"),
        ("3x3-nopool", 0, 1, "conv0 stride 1, no pool"),
        ("deep", 2, 1, "conv0 stride 2, max pool 3x3/2"),
        ("deep-blur", 2, 3, "conv0 stride 2, max pool 3x3 and blur /2"),
    ],
)
def test_what_a_stem_does_to_an_image(name, halvings, smallest, text):
    stem = STEM_TABLE[name]
    assert (stem.halvings, stem.smallest_image_size, str(stem)) == (halvings, smallest, text)


def test_stems_with_the_same_parameters():
    alike = [("imagenet", "imagenet-nopool"), ("3x3-pool", "3x3-nopool"), ("deep", "deep-blur")]
    for one, other in alike:
        assert (stems_like(one), stems_like(other)) == ((other,), (one,))
    assert stems_like("cifar") == ()


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ((7, 1, True), "imagenet"),
        ((3, 1, True), "3x3-pool"),
        ((3, 1, False), "cifar"),
        ((3, 3, True), "deep"),
        ((7, 1, False), None),
        ((3, 2, True), None),
        ((5, 1, True), None),
    ],
)
def test_the_first_stem_with_such_parameters(parameters, name):
    kernel, convolutions, norm = parameters
    assert stem_of(kernel, convolutions, norm=norm) == name
