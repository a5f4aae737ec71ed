"""Built DenseNets: the published sizes, torchvision's names and numbers, seeds, and training."""

import dataclasses

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from densenet_deploy.models.build import BlurPool, DenseNet, PlainLayer, build_model, empty_model, loaded_model
from densenet_deploy.variants import find_variant
from densenet_deploy.variants.spec import DenseNetSpec

TINY = DenseNetSpec(growth_rate=4, blocks=(2, 2, 2), init_features=8, stem="cifar", num_classes=5)
TORCHVISION = ["121", "161", "169", "201"]


def images(size, count=2):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(7))


def parameters_of(name):
    return sum(parameter.numel() for parameter in empty_model(find_variant(name).spec).parameters())


@pytest.mark.parametrize(
    ("name", "count"),
    [("121", 7_978_856), ("161", 28_681_000), ("169", 14_149_480), ("201", 20_013_928), ("264", 33_337_704)],
)
def test_parameter_counts_at_1000_classes(name, count):
    assert parameters_of(name) == count


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("cifar-40-12", 1.0),
        ("cifar-100-12", 7.0),
        ("cifar-100-24", 27.2),
        ("cifar-bc-100-12", 0.8),
        ("cifar-bc-250-24", 15.3),
        ("cifar-bc-190-40", 25.6),
    ],
)
def test_parameter_counts_of_the_paper_for_cifar(name, millions):
    assert round(parameters_of(name) / 1e6, 1) == millions


@pytest.mark.parametrize("name", TORCHVISION)
def test_names_and_shapes_are_those_of_torchvision(name):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(f"densenet{name}", weights=None).state_dict()
    ours = empty_model(find_variant(name).spec).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize(
    ("growth_rate", "blocks", "init_features", "bn_size"), [(4, (2, 3), 6, 2), (3, (1, 2, 1), 8, 4), (5, (2,), 4, 1)]
)
def test_small_networks_compute_what_those_of_torchvision_do(growth_rate, blocks, init_features, bn_size):
    ours = build_model(DenseNetSpec(growth_rate, blocks, init_features, bn_size=bn_size, num_classes=7), seed=1)
    theirs = torchvision.models.DenseNet(growth_rate, blocks, init_features, bn_size=bn_size, num_classes=7).eval()
    scramble(ours)
    theirs.load_state_dict(ours.state_dict())
    with torch.inference_mode():
        assert torch.equal(ours(images(64)), theirs(images(64)))  # the same operations in the same order


def scramble(model):
    """Statistics, scales and biases that are all different, so that every mix-up shows."""
    generator = torch.Generator().manual_seed(4)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and ("norm" in name or name.endswith("bias")):
            tensor.uniform_(0.5, 1.5, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("121", 64), ("161", 32), ("169", 32), ("201", 32)])
def test_weights_go_both_ways_and_give_the_same_logits(name, size):
    ours = build_model(find_variant(name).spec, seed=1)
    theirs = torchvision.models.get_model(f"densenet{name}", weights=None).eval()
    theirs.load_state_dict(ours.state_dict())
    build_model(find_variant(name).spec, seed=2).load_state_dict(theirs.state_dict())
    with torch.inference_mode():
        # The same operations on the same operands in the same order: no tolerance is needed.
        assert torch.equal(ours(images(size)), theirs(images(size)))


@pytest.mark.slow
def test_untrained_logits_are_of_ordinary_size():
    logits = build_model(find_variant("121").spec)(images(64))
    assert 0.1 < logits.std() < 10


def test_a_seed_decides_the_weights_and_the_global_random_state_does_not_move():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (build_model(TINY, seed=seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["features.conv0.weight"], other["features.conv0.weight"])
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


@pytest.mark.parametrize(
    "spec",
    [
        DenseNetSpec(growth_rate=4, blocks=(1, 1, 1, 1)),
        DenseNetSpec(growth_rate=4, blocks=(1, 1)),
        DenseNetSpec(growth_rate=4, blocks=(1, 1, 1), stem="cifar", bn_size=0),
    ],
)
def test_the_smallest_image_is_enough_and_one_pixel_less_is_not(spec):
    model, size = build_model(spec), spec.smallest_image_size
    assert model(images(size)).shape == (2, 1000)
    with pytest.raises(RuntimeError):
        model(images(size - 1))


def test_the_features_head_is_what_the_classifier_reads():
    classifier = build_model(TINY)
    features = build_model(dataclasses.replace(TINY, head="features"))
    pooled = features(images(16))
    assert pooled.shape == (2, TINY.feature_channels)
    assert "classifier.weight" not in features.state_dict()
    assert torch.equal(classifier.classifier(pooled), classifier(images(16)))


def test_without_a_bottleneck_a_layer_is_norm_relu_and_a_3x3_convolution():
    model = build_model(DenseNetSpec(growth_rate=2, blocks=(2,), init_features=3, bn_size=0, stem="cifar"))
    scramble(model)
    first, second = model.features.denseblock1
    maps = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))

    def layer(inner, entering):
        return functional.conv2d(inner.norm1(entering).relu(), inner.conv1.weight, padding=1)

    with torch.inference_mode():
        one = layer(first, maps)
        two = layer(second, torch.cat([maps, one], 1))
        assert torch.equal(model.features.denseblock1(maps), torch.cat([maps, one, two], 1))
    assert [inner.conv1.weight.shape for inner in (first, second)] == [(2, 3, 3, 3), (2, 5, 3, 3)]


def test_a_transition_averages_pixels_in_squares_of_two():
    model = build_model(DenseNetSpec(growth_rate=2, blocks=(1, 1), init_features=4, stem="cifar"))
    pooled = model.features.transition1.pool(torch.arange(16.0).reshape(1, 1, 4, 4))
    assert pooled.tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]


def test_relus_of_the_features_work_in_place():
    model = build_model(dataclasses.replace(TINY, stem="imagenet"))
    relus = [layer for layer in model.features.modules() if isinstance(layer, torch.nn.ReLU)]
    assert len(relus) == 1 + 2 * 6 + 2
    assert all(relu.inplace for relu in relus)


def test_weights_are_drawn_as_the_paper_and_torchvision_do():
    model = build_model(DenseNetSpec(blocks=(1,), num_classes=1000))
    features = model.features.denseblock1.denselayer1
    # a normal distribution of the variance 2 / inputs: of 36864 draws, the deviation is right to about 0.4 %
    assert features.conv2.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    # an even distribution up to 1 / √inputs: of 96000 draws, the largest is within a thousandth of it
    assert model.classifier.weight.abs().max().item() == pytest.approx(96**-0.5, rel=0.001)
    assert not model.classifier.bias.any()
    assert (features.norm1.weight.unique().tolist(), features.norm1.bias.unique().tolist()) == ([1.0], [0.0])


def test_the_seed_is_0_and_memory_is_not_saved_unless_asked_for():
    model, seeded, lean = build_model(TINY), build_model(TINY, seed=0), build_model(TINY, memory_efficient=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), seeded.parameters(), strict=True))
    for made, saves in ((model, False), (DenseNet(TINY), False), (lean, True)):
        assert {layer.memory_efficient for layer in made.modules() if isinstance(layer, PlainLayer)} == {saves}
    assert not model.training


def test_an_empty_model_has_shapes_without_values():
    model = empty_model(TINY)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert not model.training


def test_the_multiscale_head_is_the_mean_of_a_convolution_of_every_block():
    model = build_model(dataclasses.replace(TINY, head="multiscale"))
    scramble(model)
    assert {name for name, _ in model.head.named_parameters()} == {
        f"reduce{block}.conv.{kind}" for block in (1, 2, 3) for kind in ("weight", "bias")
    }
    with torch.inference_mode():
        maps, expected = model.features.conv0(images(16)), []
        for block in (1, 2, 3):
            maps = model.features.get_submodule(f"denseblock{block}")(maps)
            conv = model.head.get_submodule(f"reduce{block}.conv")
            expected.append(maps.mean((2, 3)) @ conv.weight[:, :, 0, 0].T + conv.bias)
            if block < 3:
                maps = model.features.get_submodule(f"transition{block}")(maps.clone())
        # the mean of a sum and the sum of a mean differ by float32 rounding of numbers near 10
        torch.testing.assert_close(model.head(model.features(images(16))), torch.cat(expected, 1), rtol=1e-4, atol=1e-4)


def test_the_multiscale_head_reads_every_block():
    model = build_model(dataclasses.replace(TINY, head="multiscale"))
    assert model.classifier.in_features == 3 * 128
    assert not any(conv.bias.any() for conv in model.head.modules() if isinstance(conv, torch.nn.Conv2d))
    model(images(16)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("bn_size", [0, 4])
def test_memory_efficient_training_is_the_same_training(bn_size):
    spec = dataclasses.replace(TINY, bn_size=bn_size, compression=1.0)
    plain, efficient = (build_model(spec, memory_efficient=choice).train() for choice in (False, True))
    for model in (plain, efficient):
        model(images(16, count=4)).square().sum().backward()
    wanted, got = dict(plain.named_parameters()), dict(efficient.named_parameters())
    # The recomputation repeats the same operations, so gradients and statistics agree bit for bit.
    assert all(torch.equal(wanted[name].grad, got[name].grad) for name in wanted)
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), efficient.buffers(), strict=True))


def test_memory_efficient_training_keeps_less():
    kept = {choice: saved_bytes(choice) for choice in (False, True)}
    assert kept[True] < 0.8 * kept[False]


def test_nothing_is_recomputed_outside_of_training():
    assert saved_bytes(memory_efficient=True, trains=False) == saved_bytes(memory_efficient=False, trains=False)


def saved_bytes(memory_efficient, trains=True):
    total = 0

    def keep(tensor):
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    model = build_model(dataclasses.replace(TINY, blocks=(8,)), memory_efficient=memory_efficient).train(trains)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images(16))
    return total


def test_dropout_works_in_training_only():
    model = build_model(dataclasses.replace(TINY, drop_rate=0.5))
    assert model.features.denseblock1.denselayer1.drop.p == 0.5
    assert isinstance(build_model(TINY).features.denseblock1.denselayer1.drop, torch.nn.Identity)
    assert torch.equal(model(images(16)), build_model(TINY)(images(16)))
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model(images(16)), model(images(16)))


def test_a_blurred_map_is_every_other_pixel_of_binomial_means_of_its_own_channel():
    maps = torch.zeros(1, 2, 5, 5)
    maps[0, 0, 2, 2], maps[0, 1, 0, 0] = 16, 16
    found = BlurPool(2)(maps)
    assert found[0, 0].tolist() == [[0, 0, 0], [0, 4, 0], [0, 0, 0]]
    assert found[0, 1].tolist() == [[4, 0, 0], [0, 0, 0], [0, 0, 0]]  # the border is mirrored without its pixel
    assert BlurPool(1)(torch.full((1, 1, 4, 4), 3.0)).tolist() == [[[[3, 3], [3, 3]]]]


def test_a_head_of_maxima_means_and_hidden_layers():
    spec = dataclasses.replace(TINY, pooling="max-avg", hidden="norm linear:3 relu")
    model = build_model(spec)
    maps = model.features(images(16))
    norm, linear = (next(m for m in model.modules() if isinstance(m, kind)) for kind in (nn.BatchNorm1d, nn.Linear))
    pooled = torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], 1)
    row = functional.relu(functional.linear(norm(pooled), linear.weight, linear.bias))
    torch.testing.assert_close(model(images(16)), model.classifier(row))
    assert linear.weight.shape == (3, 2 * spec.feature_channels)


def test_a_loaded_model_holds_the_tensors_that_it_was_given():
    state = build_model(TINY, seed=3).state_dict()
    loaded = loaded_model(TINY, state)
    assert loaded.classifier.weight.data_ptr() == state["classifier.weight"].data_ptr()
    torch.testing.assert_close(loaded(images(8)), build_model(TINY, seed=3)(images(8)), rtol=0, atol=0)
