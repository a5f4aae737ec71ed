"""Activation memory against a net small enough to count by hand, training memory against what autograd keeps."""

import dataclasses

import pytest
import torch

from densenet_deploy.analysis.memory import activation_memory, training_memory
from densenet_deploy.errors import UsageError
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
}


def peaks(spec, **options):
    memory = activation_memory(spec, image_size=4, bytes_per_value=1, **options)
    return {block.name: (block.bus_bytes, block.copies_bytes) for block in memory.blocks}


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


def test_the_imagenet_stem_peaks_where_its_pool_fills_the_bus():
    spec = DenseNetSpec(growth_rate=3, blocks=(2,), init_features=2, bn_size=2)
    memory = activation_memory(spec, image_size=16, bytes_per_value=1)
    assert memory.blocks[0].bus_bytes == max(3 * 16**2 + 2 * 8**2, 2 * 8**2 + 8 * 4**2)


def test_a_multiscale_head_holds_every_block_s_output_to_the_end():
    multiscale = dataclasses.replace(TINY, head="multiscale")
    held_during_block_2 = 8 * 16
    assert peaks(multiscale)["denseblock2"][0] == peaks(TINY)["denseblock2"][0] + held_during_block_2
    assert peaks(multiscale)["head"][0] == 8 * 16 + 128 * 16 + 7 * 4  # reducing block 1 while block 2 waits


def test_features_peak_like_the_classifier():
    assert peaks(dataclasses.replace(TINY, head="features")) == peaks(TINY)


def test_bytes_follow_batch_and_value_size():
    one, many = activation_memory(TINY, 4), activation_memory(TINY, 4, batch=8, bytes_per_value=2)
    assert many.bus_bytes == 4 * one.bus_bytes
    assert many.to_json()["copies_bytes"] == 4 * one.copies_bytes


@pytest.mark.parametrize("name", ["121", "161", "169", "201", "264"])
def test_the_bus_saves_memory_in_every_imagenet_block(name):
    memory = activation_memory(find_variant(name).spec)
    blocks = [block for block in memory.blocks if block.name.startswith("denseblock")]
    assert all(block.bus_bytes < block.copies_bytes for block in blocks)
    assert memory.bus_bytes < memory.copies_bytes


def test_batch_0_is_refused():
    with pytest.raises(UsageError) as caught:
        activation_memory(TINY, 4, batch=0)
    assert caught.value.subject == "batch=0"


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
        result = model(torch.zeros(batch, 3, image_size, image_size))
    assert result.requires_grad
    return sum(tensor.nbytes for tensor in kept.values())


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_training_keeps_what_was_counted(spec):
    memory = training_memory(spec, image_size=32, batch=2)
    assert memory.plain_bytes == kept_bytes(spec, 32, 2, memory_efficient=False)
    assert memory.checkpointed_bytes == kept_bytes(spec, 32, 2, memory_efficient=True)


def test_training_bytes_follow_batch_and_value_size():
    one, many = training_memory(BOTTLENECK, 32), training_memory(BOTTLENECK, 32, batch=8, bytes_per_value=2)
    assert many.plain_bytes == 4 * one.plain_bytes
    assert many.to_json()["checkpointed_bytes"] == 4 * one.checkpointed_bytes


def test_doubling_the_depth_quadruples_plain_memory_and_doubles_checkpointed():
    shallow, deep = (
        training_memory(DenseNetSpec(growth_rate=64, blocks=(layers,), init_features=1, bn_size=0), 32).blocks[1]
        for layers in (64, 128)
    )
    assert deep.plain_bytes / shallow.plain_bytes == pytest.approx(4, rel=0.02)  # n(n − 1) against n²
    assert deep.checkpointed_bytes / shallow.checkpointed_bytes == pytest.approx(2, rel=0.02)  # n − 1 against n
