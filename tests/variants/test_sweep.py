"""One number with several values: what it changes, and what cannot be read."""

import pytest

from densenet_deploy.errors import UsageError
from densenet_deploy.variants import find_variant
from densenet_deploy.variants.spec import DenseNetSpec
from densenet_deploy.variants.sweep import Sweep

SPEC = DenseNetSpec(growth_rate=4, blocks=(2, 2), init_features=8, bn_size=2, stem="cifar", num_classes=10)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("growth-rate=2,8", [{"growth_rate": 2}, {"growth_rate": 8}]),
        ("compression=0.3", [{"compression": 0.3}]),
        ("bn-size=0,4", [{"bn_size": 0}, {"bn_size": 4}]),
        ("init-features=16", [{"init_features": 16}]),
        ("depth=0.1,2", [{"blocks": (1, 1)}, {"blocks": (4, 4)}]),
    ],
)
def test_a_sweep_changes_one_number(text: str, expected: list[dict[str, object]]) -> None:
    specs = Sweep.parse(text).specs(SPEC)
    for spec, changed in zip(specs.values(), expected, strict=True):
        assert spec.to_facts() == {**SPEC.to_facts(), **changed}


def test_a_sweep_over_variants_keeps_the_classes() -> None:
    specs = Sweep.parse("variant=121,169").specs(SPEC)
    assert specs["169"].blocks == find_variant("169").spec.blocks
    assert specs["169"].num_classes == 10


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("growth=1", "growth"),
        ("growth-rate", "--sweep growth-rate"),
        ("growth-rate=", "--sweep growth-rate="),
        ("growth-rate=" + ",".join(map(str, range(1, 14))), "--sweep growth-rate=1,2,3,4,5,6,7,8,9,10,11,12,13"),
        ("growth-rate=two", "--sweep growth-rate=two"),
        ("growth-rate=0", "growth-rate=0"),
        ("depth=0", "depth=0.0"),
        ("variant=122", "122"),
    ],
)
def test_an_invalid_sweep_is_a_usage_error(text: str, subject: str) -> None:
    with pytest.raises(UsageError) as caught:
        Sweep.parse(text).specs(SPEC)
    assert caught.value.subject == subject


def test_the_option_is_named_as_it_was_given() -> None:
    with pytest.raises(UsageError) as caught:
        Sweep.parse("growth-rate=", "search")
    assert (caught.value.subject, "--search" in caught.value.fix) == ("--search growth-rate=", True)
    with pytest.raises(UsageError) as caught:
        Sweep.parse("growth-rate=x", "search").changes(SPEC, "x")
    assert caught.value.subject == "--search growth-rate=x"


def test_values_are_those_between_the_commas() -> None:
    assert Sweep.parse("bn-size= 2, ,4,").values == ("2", "4")
    assert len(Sweep.parse("bn-size=" + ",".join(["1"] * 12)).values) == 12
