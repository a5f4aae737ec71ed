"""The search for layers to leave float, on noise that is known."""

from __future__ import annotations

import pytest

from densenet_deploy.quantization.mixed_precision import Layer, blocks_of, find_float_layers


def _layers(count: int) -> list[Layer]:
    return [Layer(f"l{index}", f"b{index * 4 // count}") for index in range(count)]


class Network:
    """Layers whose noise adds up: `loud` ones bring 1 each, the others next to nothing."""

    def __init__(self, count: int, loud: tuple[int, ...]) -> None:
        self.layers = _layers(count)
        self.loud = {f"l{index}" for index in loud}

    def noise(self, float_layers: frozenset[str]) -> float:
        rest = {layer.name for layer in self.layers} - float_layers
        return len(rest & self.loud) + 1e-4 * len(rest)

    def search(self, limit: float):
        return find_float_layers(self.layers, self.noise, lambda names: self.noise(names) <= limit)


@pytest.mark.parametrize("loud", [(5,), (3, 70), (0, 60, 119), (10, 11, 12)])
def test_the_loud_layers_are_found_in_fewer_trials_than_layers(loud):
    found = Network(120, loud).search(0.5)
    assert found.satisfied
    assert found.float_layers == tuple(f"l{index}" for index in loud)
    assert found.trials < 60


def test_trials_grow_slower_than_layers():
    few, many = Network(120, (0, 60, 119)).search(0.5), Network(480, (0, 240, 479)).search(0.5)
    assert many.trials < 2 * few.trials


def test_nothing_is_left_float_where_nothing_needs_to():
    found = Network(120, (5,)).search(10)
    assert (found.float_layers, found.trials, found.satisfied) == ((), 1, True)


def test_a_goal_out_of_reach_is_reported():
    found = Network(8, (1,)).search(-1)
    assert not found.satisfied
    assert len(found.float_layers) == 8


def test_a_cheap_layer_goes_before_a_dear_one_of_equal_noise():
    layers = [Layer("dear", "a", 100.0), Layer("cheap", "b", 1.0), Layer("quiet", "c", 1.0)]

    def noise(names: frozenset[str]) -> float:
        return 2.0 - len(names & {"dear", "cheap"})

    found = find_float_layers(layers, noise, lambda names: noise(names) <= 1)
    assert found.float_layers == ("cheap",)


def test_noise_of_a_whole_block_is_found_though_no_single_layer_takes_it_away():
    layers = _layers(40)
    block = {layer.name for layer in blocks_of(layers)["b2"]}

    def noise(names: frozenset[str]) -> float:
        return 0.0 if block <= names else 1.0

    found = find_float_layers(layers, noise, lambda names: noise(names) < 0.5)
    assert set(found.float_layers) == block


@pytest.mark.parametrize("count", [120, 960])
def test_trials_are_few_where_every_layer_is_needed(count):
    found = find_float_layers(_layers(count), lambda names: 1 - len(names) / count, lambda names: len(names) == count)
    assert len(found.float_layers) == count
    assert found.trials < 12 * count.bit_length()


def test_layers_that_a_block_can_do_without_go_back():
    layers = [Layer(f"l{index}", f"b{index // 4}", float(index % 4 + 1)) for index in range(40)]

    def noise(names: frozenset[str]) -> float:
        """A bus whose noise goes when three readers of it are float, whichever they are."""
        return 0.0 if sum(f"l{index}" in names for index in range(8, 12)) >= 3 else 1.0

    found = find_float_layers(layers, noise, lambda names: noise(names) < 0.5)
    assert found.float_layers == ("l8", "l9", "l10"), "the dearest of the four is not needed"


def test_trials_are_few_where_a_whole_block_is_needed():
    layers = _layers(400)
    block = {layer.name for layer in blocks_of(layers)["b2"]}
    found = find_float_layers(layers, lambda names: 1.0 - (block <= names), lambda names: block <= names)
    assert set(found.float_layers) == block
    assert found.trials < 12 * len(layers).bit_length()
