"""Memory of nets small enough to count by hand, and against what PyTorch holds and autograd keeps."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from densenet_deploy.analysis.memory import activation_memory, training_memory
from densenet_deploy.errors import UsageError
from densenet_deploy.manifest import sides
from densenet_deploy.models.build import build_model, empty_model
from densenet_deploy.models.live_memory import inference_memory
from densenet_deploy.variants import find_variant
from densenet_deploy.variants.spec import DenseNetSpec

# 4x4 pixels; 2 channels enter block 1, which appends 3 + 3 and so gives 8; 4 enter block 2 at 2x2 pixels, 7 leave it.
TINY = DenseNetSpec(growth_rate=3, blocks=(2, 1), init_features=2, bn_size=2, stem="cifar", num_classes=5)

BOTTLENECK = DenseNetSpec(growth_rate=4, blocks=(3, 2), init_features=8, num_classes=5, bn_size=2)
SPECS = {
    "bottleneck": BOTTLENECK,
    "plain": dataclasses.replace(BOTTLENECK, bn_size=0, stem="cifar", compression=1.0),
    "features": dataclasses.replace(BOTTLENECK, head="features"),
    "multiscale": dataclasses.replace(BOTTLENECK, head="multiscale"),
    **{
        stem: dataclasses.replace(BOTTLENECK, stem=stem)
        for stem in ("imagenet-nopool", "3x3-pool", "3x3-nopool", "deep", "deep-blur")
    },
    "one channel": dataclasses.replace(BOTTLENECK, in_channels=1),
    "pruned": BOTTLENECK.with_bottlenecks([3, 8, 5, 1, 9]),
    "mean": dataclasses.replace(BOTTLENECK, pooling="avg"),
    "maxima": dataclasses.replace(BOTTLENECK, pooling="max-avg"),
    "hidden": dataclasses.replace(BOTTLENECK, hidden="norm linear:6 relu norm linear:7 norm relu", bias=False),
    "hidden features": dataclasses.replace(BOTTLENECK, hidden="linear:6 relu", head="features"),
}


# 8x8, 4x4 and 2x2 pixels; channels 2 to 11, 5 to 8 and 4 to 7.
THREE = DenseNetSpec(growth_rate=3, blocks=(3, 1, 1), init_features=2, bn_size=2, stem="cifar", num_classes=5)


def peaks(spec, image_size=4):
    memory = activation_memory(spec, image_size=image_size, bytes_per_value=1)
    return {block.name: (block.bus_bytes, block.copies_bytes) for block in memory.blocks}


def kept(spec, image_size):
    memory = training_memory(spec, image_size=image_size, bytes_per_value=1)
    return {block.name: (block.plain_bytes, block.checkpointed_bytes) for block in memory.blocks}


def test_peaks_of_a_tiny_net_are_those_counted_by_hand():
    assert peaks(TINY) == {
        # image 3·16; the convolution writes into a bus of 8·16, or makes 2·16
        "stem": (3 * 16 + 8 * 16, 3 * 16 + 2 * 16),
        # second layer: bus 8, normalized copy 5, bottleneck 6 | its parts 5 with concatenation and normalized copy, or
        # parts, normalized copy and bottleneck 6; or, behind it, the parts 8 with their concatenation
        "denseblock1": ((8 + 5 + 6) * 16, max(5 + 5 + 5, 5 + 5 + 6, 8 + 8) * 16),
        # block output 8·16 and its normalized copy 8·16 (then the copy and 4·16 convolved, then those and the pool's)
        "transition1": ((8 + 8) * 16, (8 + 8) * 16),
        # bus 7, normalized copy 4, bottleneck 6 | what entered 4, normalized copy 4, bottleneck 6; or parts and whole
        "denseblock2": ((7 + 4 + 6) * 4, max(4 + 4 + 6, 7 + 7) * 4),
        # block output and its normalized copy
        "head": ((7 + 7) * 4, (7 + 7) * 4),
    }


def test_a_plain_layer_has_no_bottleneck():
    plain = dataclasses.replace(TINY, bn_size=0, blocks=(2,))
    bus, copies = peaks(plain)["denseblock1"]
    assert bus == (8 + 5) * 16  # the bus and the second layer's normalized copy; the result goes into the bus
    assert copies == (8 + 8) * 16  # the parts and the last concatenation


def test_peaks_of_three_blocks_are_those_counted_by_hand():
    assert peaks(THREE, 8) == {
        "stem": ((3 + 11) * 64, (3 + 2) * 64),
        # third layer: bus 11, normalized copy 8, bottleneck 6 | parts 8, their concatenation, its normalized copy
        "denseblock1": ((11 + 8 + 6) * 64, (8 + 8 + 8) * 64),
        "transition1": ((11 + 11) * 64, (11 + 11) * 64),
        # bus 8, normalized copy 5, bottleneck 6 | what entered 5, normalized copy 5, bottleneck 6
        "denseblock2": ((8 + 5 + 6) * 16, (5 + 5 + 6) * 16),
        "transition2": ((8 + 8) * 16, (8 + 8) * 16),
        # bus 7, normalized copy 4, bottleneck 6 | what entered 4, normalized copy 4, bottleneck 6, or parts and whole
        "denseblock3": ((7 + 4 + 6) * 4, (4 + 4 + 6) * 4),
        "head": ((7 + 7) * 4, (7 + 7) * 4),
    }
    memory = activation_memory(THREE, 8, bytes_per_value=1)
    assert (memory.bus_bytes, memory.copies_bytes) == (25 * 64, 24 * 64)


def test_one_tensor_alone_is_read_as_it_is_and_not_copied():
    spec = dataclasses.replace(TINY, growth_rate=1, blocks=(1,), init_features=10, bn_size=0)
    # what entered 10 and what was made 1 with their concatenation 11; a copy of what entered would make 30
    assert peaks(spec)["denseblock1"] == ((11 + 10) * 16, (10 + 1 + 11) * 16)


def test_the_imagenet_stem_peaks_where_its_pool_fills_the_bus_or_at_the_image():
    wide = DenseNetSpec(growth_rate=30, blocks=(2,), init_features=2, bn_size=2)
    # image 3 at 16x16 and convolved maps 2 at 8x8; then these and the bus of 62 at 4x4, or the pooled 2
    assert peaks(wide, 16)["stem"] == (2 * 64 + 62 * 16, 3 * 256 + 2 * 64)
    odd = dataclasses.replace(wide, growth_rate=1, init_features=40)
    # 40 at 3x3 and the bus of 42 or the pooled 40 at 2x2
    assert peaks(odd, 5)["stem"] == (40 * 9 + 42 * 4, 40 * 9 + 40 * 4)


def test_a_transition_peaks_where_its_pool_fills_a_wide_bus():
    spec = dataclasses.replace(TINY, blocks=(1, 20))
    # convolved maps 2 at 8x8 and the next bus of 62 at 4x4 | the block's output 5 and its normalized copy
    assert peaks(spec, 8)["transition1"] == (2 * 64 + 62 * 16, (5 + 5) * 64)


@pytest.mark.parametrize(("head", "features"), [("classifier", 7), ("multiscale", 256)])
def test_a_wide_classifier_peaks_in_the_head(head, features):
    spec = dataclasses.replace(TINY, head=head, num_classes=10_000)
    assert peaks(spec)["head"] == (features + 10_000, features + 10_000)


def test_a_multiscale_head_holds_every_block_s_output_to_the_end():
    multiscale = dataclasses.replace(TINY, head="multiscale")
    held_during_block_2 = 8 * 16
    assert peaks(multiscale)["denseblock2"][0] == peaks(TINY)["denseblock2"][0] + held_during_block_2
    assert peaks(multiscale)["head"][0] == 8 * 16 + 128 * 16 + 7 * 4  # reducing block 1 while block 2 waits


def test_features_peak_like_the_classifier_without_its_classes():
    assert peaks(dataclasses.replace(TINY, head="features", num_classes=10_000)) == peaks(TINY)


def test_training_keeps_what_is_counted_by_hand():
    assert kept(THREE, 8) == {
        "stem": (3 * 64, 3 * 64),
        # inputs 2 + 5 + 8 twice, and 3 bottlenecks of 6 twice | the widest input
        "denseblock1": ((30 + 36) * 64, 8 * 64),
        # the output 11, its normalized copy, and the convolved maps 5
        "transition1": ((11 + 11 + 5) * 64, (11 + 11 + 5) * 64),
        "denseblock2": ((10 + 12) * 16, 5 * 16),
        "transition2": ((8 + 8 + 4) * 16, (8 + 8 + 4) * 16),
        "denseblock3": ((8 + 12) * 4, 4 * 4),
        # the output, its normalized copy, and the row that the classifier reads
        "head": (2 * 7 * 4 + 7, 2 * 7 * 4 + 7),
    }


def test_training_of_other_stems_and_heads_is_counted_by_hand():
    assert kept(dataclasses.replace(THREE, head="features"), 8)["head"] == (56, 56)
    assert kept(dataclasses.replace(THREE, head="multiscale"), 8)["head"] == (7 * 4 + 3 * 128, 7 * 4 + 3 * 128)
    stem = 3 * 31**2 + 2 * 2 * 16**2  # the image; what enters and leaves the norm at 16x16
    assert kept(dataclasses.replace(THREE, stem="imagenet"), 31)["stem"] == (stem, stem)


@pytest.mark.parametrize(
    ("hidden", "rows"),
    [
        ("linear:6 relu", 7 + 6),  # what the linear layer reads, and what the ReLU makes, which the classifier reads
        ("linear:6 relu linear:9 norm", 7 + 6 + 9 + 9),  # the norm reads 9 too, and the classifier what that makes
        ("norm linear:6", 7 + 7 + 6),
    ],
)
def test_training_keeps_the_rows_that_hidden_layers_read(hidden, rows):
    maps = 2 * 7 * 4
    assert kept(dataclasses.replace(THREE, hidden=hidden), 8)["head"] == (maps + rows, maps + rows)
    features = maps + rows - {"relu": 0, "norm": 9, "linear:6": 6}[hidden.split()[-1]]
    assert kept(dataclasses.replace(THREE, hidden=hidden, head="features"), 8)["head"] == (features, features)


def test_a_wide_hidden_layer_peaks_in_the_head():
    hidden = dataclasses.replace(TINY, hidden="norm linear:1000 relu linear:2000 norm linear:1")
    assert peaks(hidden)["head"] == (2000 + 2000, 2000 + 2000)  # what enters and leaves the norm
    assert peaks(dataclasses.replace(hidden, hidden="linear:1000 relu"))["head"] == (1000 + 1000, 1000 + 1000)


def test_a_stem_with_a_blur_makes_its_maxima_and_keeps_them_without_and_with_a_margin():
    blur = dataclasses.replace(TINY, stem="deep-blur", in_channels=1, init_features=40, growth_rate=1)
    assert peaks(blur, 8)["stem"] == ((40 + 40) * 16, (40 + 40) * 16)  # the last convolution's maps and their maxima
    # the image; what enters and leaves each of three norms at 4x4; the maxima, and those with a margin of one pixel
    stem = 64 + 2 * (1 + 1 + 40) * 16 + 40 * (16 + 36)
    assert kept(blur, 8)["stem"] == (stem, stem)


def test_without_a_pool_the_stem_s_last_maps_are_a_part_of_the_first_block():
    plain = 3 * 64 + 2 * 2 * 64  # the image; what enters and leaves the norm
    assert kept(dataclasses.replace(THREE, stem="3x3-nopool"), 8)["stem"] == (plain, plain - 2 * 64)


def test_bytes_follow_batch_and_value_size():
    for count in (activation_memory, training_memory):
        one, many = count(THREE, 8, bytes_per_value=1), count(THREE, 8, batch=8, bytes_per_value=2)
        sums = {key: value for key, value in one.to_json().items() if key != "blocks"}
        assert {key: value for key, value in many.to_json().items() if key != "blocks"} == {
            key: 16 * value for key, value in sums.items()
        }
        assert count(THREE) == count(THREE, 224, 1, 4)


def test_json_holds_the_totals_and_every_block():
    single = dataclasses.replace(THREE, blocks=(1,))
    assert activation_memory(single, 2, bytes_per_value=1).to_json() == {
        "bus_bytes": 52,  # bus 5, normalized copy 2, bottleneck 6
        "copies_bytes": 44,  # what entered 2, bottleneck 6, and what was made 3
        "blocks": [
            {"name": "stem", "bus_bytes": 32, "copies_bytes": 20},
            {"name": "denseblock1", "bus_bytes": 52, "copies_bytes": 44},
            {"name": "head", "bus_bytes": 40, "copies_bytes": 40},
        ],
    }
    assert training_memory(single, 2, bytes_per_value=1).to_json() == {
        "plain_bytes": 12 + 64 + 45,
        "checkpointed_bytes": 12 + 8 + 45,
        "blocks": [
            {"name": "stem", "plain_bytes": 12, "checkpointed_bytes": 12},
            {"name": "denseblock1", "plain_bytes": 64, "checkpointed_bytes": 8},
            {"name": "head", "plain_bytes": 45, "checkpointed_bytes": 45},
        ],
    }


@pytest.mark.parametrize(
    ("option", "value", "subject"),
    [
        ("batch", 0, "batch=0"),
        ("batch", 1_000_001, "batch=1000001"),
        ("bytes_per_value", 0, "bytes-per-value=0"),
        ("bytes_per_value", 9, "bytes-per-value=9"),
    ],
)
def test_numbers_out_of_range_are_refused(option, value, subject):
    for count in (activation_memory, training_memory):
        with pytest.raises(UsageError) as caught:
            count(TINY, 4, **{option: value})
        assert caught.value.subject == subject
        assert count(TINY, 4, batch=1_000_000, bytes_per_value=8)


@pytest.mark.parametrize("name", ["121", "161", "169", "201", "264"])
def test_the_bus_saves_memory_in_every_imagenet_block(name):
    memory = activation_memory(find_variant(name).spec)
    blocks = [block for block in memory.blocks if block.name.startswith("denseblock")]
    assert all(block.bus_bytes < block.copies_bytes for block in blocks)
    assert memory.bus_bytes < memory.copies_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["121", "161", "cifar-bc-100-12"])
def test_the_count_with_copies_is_what_pytorch_holds_beside_the_image(name):
    variant = find_variant(name)
    size = variant.preprocessing.image_size
    image = 3 * size**2 * 4  # which the caller holds to the end, where the count frees it after its last reader
    measured = inference_memory(empty_model(variant.spec), size).peak_bytes - image
    # PyTorch also holds batch statistics of a norm, of a few hundred channels, which the count leaves out
    assert activation_memory(variant.spec, size).copies_bytes == pytest.approx(measured, rel=1e-3)


def kept_bytes(spec, image_size, batch, *, memory_efficient):
    """Bytes of the distinct float maps and rows that a training step keeps, without weights and batch statistics."""
    model = build_model(spec, memory_efficient=memory_efficient).train()
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        place = tensor.untyped_storage().data_ptr()
        if tensor.is_floating_point() and tensor.ndim > 1 and place not in weights:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = model(torch.zeros(batch, spec.in_channels, *sides(image_size)))
    assert result.requires_grad
    return sum(tensor.nbytes for tensor in kept.values())


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, (48, 32)])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_training_keeps_what_was_counted(spec, size):
    memory = training_memory(spec, size, batch=2)
    assert memory.plain_bytes == kept_bytes(spec, size, 2, memory_efficient=False)
    assert memory.checkpointed_bytes == kept_bytes(spec, size, 2, memory_efficient=True)


def test_doubling_the_depth_quadruples_plain_memory_and_doubles_checkpointed():
    shallow, deep = (
        training_memory(DenseNetSpec(growth_rate=64, blocks=(layers,), init_features=1, bn_size=0), 32).blocks[1]
        for layers in (64, 128)
    )
    assert deep.plain_bytes / shallow.plain_bytes == pytest.approx(4, rel=0.02)  # n(n − 1) against n²
    assert deep.checkpointed_bytes / shallow.checkpointed_bytes == pytest.approx(2, rel=0.02)  # n − 1 against n
