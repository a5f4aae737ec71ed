"""The search for layers to leave float, on noise that is known."""

from __future__ import annotations

import pytest

from densenet_deploy.quantization.mixed_precision import Layer, MixedPrecision, blocks_of, find_float_layers


class Network:
    """Layers whose noise adds up, and a log of the sets that were tried, the sorted names of each as one word."""

    def __init__(self, layers: list[Layer], noises: list[float]) -> None:
        self.layers, self.noises = layers, dict(zip((layer.name for layer in layers), noises, strict=True))
        self.measured: list[str] = []
        self.judged: list[str] = []

    def search(self, limit: float) -> MixedPrecision:
        def noise(names: frozenset[str]) -> float:
            return sum(noise for name, noise in self.noises.items() if name not in names)

        def measure(names: frozenset[str]) -> float:
            self.measured.append("".join(sorted(names)))
            return noise(names)

        def judge(names: frozenset[str]) -> bool:
            self.judged.append("".join(sorted(names)))
            return noise(names) <= limit

        return find_float_layers(self.layers, measure, judge)


def _letters(blocks: str, costs: list[float] | None = None) -> list[Layer]:
    """Layers a, b, c … in blocks that are words."""
    names = "".join(blocks.split())
    block = {name: word for word in blocks.split() for name in word}
    return [Layer(name, block[name], cost) for name, cost in zip(names, costs or [1.0] * len(names), strict=True)]


def _many(count: int) -> list[Layer]:
    """So many layers in four blocks."""
    return [Layer(f"l{index}", f"b{index * 4 // count}") for index in range(count)]


def test_layers_by_block_in_the_order_of_their_first():
    a, b, c, d = Layer("a", "one"), Layer("b", "two"), Layer("c", "one"), Layer("d", "none", 2.0)
    assert blocks_of([a, b, c, d]) == {"one": (a, c), "two": (b,), "none": (d,)}
    assert list(blocks_of([b, a])) == ["two", "one"]
    assert (a.cost, d.cost) == (1.0, 2.0)


NOISES = [1, 2, 4, 3, 1, 16, 0, 8]


@pytest.mark.parametrize(
    ("layers", "noises", "limit", "found", "measured", "judged"),
    [
        ("abcd efgh", NOISES, 35, "", "", "-"),
        ("abcd efgh", NOISES, -1, "abcdefgh", "", "- abcdefgh"),
        # the block with the most noise suffices; f has the most noise of a layer, f and h suffice, h alone does not
        ("abcd efgh", NOISES, 14, "fh", "- abcd efgh ef e g", "- abcdefgh efgh f fh h"),
        # four single layers cost as much as the block, so the block is thinned out
        ("abcd efgh", NOISES, 10, "efh", "- abcd efgh ef e g ab c", "- abcdefgh efgh f fh ef efg efh h eh"),
        # between two, refused, and four, accepted, three are tried
        ("abcd efgh", NOISES, 4, "cdfh", "- abcd efgh ef e g ab c", "- abcdefgh efgh f fh cdfh cfh dfh cd cdf cdh"),
        ("abc def g", [0, 0, 0, 0, 1, 0, 0.5], 1, "g", "- abc def g", "- abcdefg g"),
    ],
    ids=[
        "nothing needs to",
        "out of reach",
        "two layers",
        "a block without one",
        "four layers",
        "a block of one layer",
    ],
)
def test_each_trial(layers, noises, limit, found, measured, judged):
    network = Network(_letters(layers), noises)
    result = network.search(limit)
    assert result.float_layers == tuple(found)
    assert network.measured == [names.strip("-") for names in measured.split()]
    assert network.judged == [names.strip("-") for names in judged.split()]
    assert result.trials == len({*network.measured, *network.judged})
    assert result.satisfied == (limit >= 0)


def test_each_trial_where_layers_differ_in_cost():
    """Per cost, the blocks' noise is 1/3, 1/7 and 1/2: g, then abc; the dearest layers go back first: a stays."""
    network = Network(_letters("abc def g", [3, 1, 2, 1, 5, 1, 1]), [1, 0, 1, 0, 1, 0, 0.5])
    assert network.search(1).float_layers == ("a", "c", "g")
    assert " ".join(network.measured).split() == ["abc", "def", "g", "a", "b", "d", "e"]
    assert " ".join(network.judged).split() == ["abcdefg", "g", "abcg", "ag", "bg", "bcg", "abg", "ac", "acg"]


def test_a_cheap_layer_goes_before_a_dear_one_of_equal_noise():
    layers = [Layer("dear", "a", 100.0), Layer("cheap", "b", 1.0), Layer("quiet", "c", 1.0)]
    assert Network(layers, [1, 1, 0]).search(1).float_layers == ("cheap",)


def test_the_shortest_set_is_found_by_doubling_and_bisection():
    names = [f"{index:02}" for index in range(40)]
    network = Network([Layer(name, name[0]) for name in names], list(range(1, 41)))
    found = network.search(sum(range(1, 28)))
    assert found.float_layers == tuple(names[27:])
    sizes = [len(names) // 2 for names in network.judged]
    assert sizes[:12] == [0, 40, 10, 20, 1, 2, 4, 8, 16, 12, 14, 13]
    assert found.trials == 44


@pytest.mark.parametrize("loud", [(5,), (3, 70), (0, 60, 119), (10, 11, 12)])
def test_the_loud_layers_are_found_in_fewer_trials_than_layers(loud):
    found = Network(_many(120), [(index in loud) + 2.0**-13 for index in range(120)]).search(0.5)
    assert found.satisfied
    assert found.float_layers == tuple(f"l{index}" for index in loud)
    assert found.trials < 60


def test_noise_of_a_whole_block_is_found_though_no_single_layer_takes_it_away():
    layers = _many(40)
    block = {layer.name for layer in blocks_of(layers)["b2"]}

    def noise(names: frozenset[str]) -> float:
        return 0.0 if block <= names else 1.0

    found = find_float_layers(layers, noise, lambda names: noise(names) < 0.5)
    assert set(found.float_layers) == block


def test_both_searches_stop_after_a_few_trials_for_each_binary_digit_of_the_number_of_layers():
    """120 has 7 digits. Blocks: none, all, four alone, two, three; layers: 6 for each digit and one; thinning: 2."""
    found = find_float_layers(_many(120), lambda names: 1 - len(names) / 120, lambda names: len(names) == 120)
    assert len(found.float_layers) == 120
    assert found.trials == 8 + (6 * 7 + 1) + 2 * 7


def test_layers_that_a_block_can_do_without_go_back():
    layers = [Layer(f"l{index}", f"b{index // 4}", float(index % 4 + 1)) for index in range(40)]

    def noise(names: frozenset[str]) -> float:
        """A bus whose noise goes when three readers of it are float, whichever they are."""
        return 0.0 if sum(f"l{index}" in names for index in range(8, 12)) >= 3 else 1.0

    found = find_float_layers(layers, noise, lambda names: noise(names) < 0.5)
    assert found.float_layers == ("l8", "l9", "l10"), "the dearest of the four is not needed"
