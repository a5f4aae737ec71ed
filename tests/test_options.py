"""Numbers inside their range and words among their choices."""

import math

import pytest

from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.options import require_choice, require_range


@pytest.mark.parametrize("value", [1, 5, 10, 1.0, 9.99])
def test_a_value_inside_its_range_comes_back(value):
    assert require_range("batch", value, 1, 10) is value


@pytest.mark.parametrize("value", [0, 11, -1, 0.999, math.inf, -math.inf, math.nan])
def test_a_value_outside_is_named_with_its_range(value):
    with pytest.raises(UsageError) as caught:
        require_range("batch", value, 1, 10)
    assert caught.value.subject == f"batch={value}"


def test_a_choice_comes_back():
    assert require_choice("stem", "cifar", ("imagenet", "cifar")) == "cifar"


def test_another_word_names_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        require_choice("stem", "cifr", ("imagenet", "cifar"))
    assert caught.value.subject == "cifr"
