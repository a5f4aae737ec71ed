"""The counted bytes are those that autograd really keeps, read from its own hooks."""

import dataclasses

import pytest
import torch

from densenet_deploy.analysis.training_memory import training_memory
from densenet_deploy.models.build import build_model
from densenet_deploy.variants.spec import DenseNetSpec

BOTTLENECK = DenseNetSpec(growth_rate=4, blocks=(3, 2), init_features=8, num_classes=5, bn_size=2)
SPECS = {
    "bottleneck": BOTTLENECK,
    "plain": dataclasses.replace(BOTTLENECK, bn_size=0, stem="cifar", compression=1.0),
    "features": dataclasses.replace(BOTTLENECK, head="features"),
    "multiscale": dataclasses.replace(BOTTLENECK, head="multiscale"),
}


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


def test_bytes_follow_batch_and_value_size():
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
