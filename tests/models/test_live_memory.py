"""Peaks of live tensors against networks small enough to count by hand, and against what autograd keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from densenet_deploy.analysis.cost import network_part
from densenet_deploy.analysis.memory import training_memory
from densenet_deploy.errors import UsageError
from densenet_deploy.models.build import DenseNet, empty_model
from densenet_deploy.models.live_memory import LiveMemory, StageMemory, inference_memory, training_memory_of
from densenet_deploy.variants import find_variant
from densenet_deploy.variants.spec import DenseNetSpec

SPEC = DenseNetSpec(growth_rate=4, blocks=(3, 2), init_features=8, num_classes=5, bn_size=2)

IMAGE, WIDE, NARROW = 2 * 3 * 64 * 4, 2 * 4 * 64 * 4, 2 * 2 * 64 * 4  # bytes of (2, C, 8, 8) float32


def chain(*, inplace: bool) -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=inplace), nn.Conv2d(4, 2, 1))


def test_an_inference_holds_the_image_and_what_the_step_reads_and_writes() -> None:
    memory = inference_memory(chain(inplace=False), 8, batch=2)
    assert [stage.forward_bytes for stage in memory.stages] == [
        IMAGE + WIDE,
        IMAGE + WIDE + WIDE,
        IMAGE + WIDE + NARROW,
    ]
    assert memory.peak_bytes == IMAGE + 2 * WIDE
    assert {stage.backward_bytes for stage in memory.stages} == {0}


def test_in_place_needs_no_second_map() -> None:
    assert inference_memory(chain(inplace=True), 8, batch=2).peak_bytes == IMAGE + WIDE + NARROW


def test_one_image_of_three_channels_is_measured_unless_more_are_asked_for() -> None:
    for measure in (inference_memory, training_memory_of):
        assert measure(chain(inplace=False), 8) == measure(chain(inplace=False), 8, batch=1, channels=3)
        assert measure(chain(inplace=False), 8).peak_bytes < measure(chain(inplace=False), 8, batch=2).peak_bytes


def test_a_view_of_a_weight_is_not_counted() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5))
    assert inference_memory(module, 8, batch=2).peak_bytes == IMAGE + 2 * 5 * 4


def test_measuring_leaves_neither_hooks_nor_gradients() -> None:
    module = chain(inplace=True)
    training_memory_of(module, 8, batch=2)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not any(inner._forward_hooks or inner._forward_pre_hooks for inner in module.modules())


def test_stages_are_the_children_and_those_of_the_features() -> None:
    names = [stage.name for stage in inference_memory(empty_model(SPEC), 32).stages]
    inner = ("conv0", "norm0", "relu0", "pool0", "denseblock1", "transition1", "denseblock2", "norm5")
    assert names == [*(f"features.{name}" for name in inner), "head", "classifier"]


def test_a_part_needs_what_the_largest_of_its_stages_needs() -> None:
    stages = (StageMemory("a.1", 3, 7), StageMemory("b", 9, 9), StageMemory("a.2", 5, 2))
    merged = LiveMemory(stages, 11, 13).by_part(lambda name: name[0])
    assert merged == LiveMemory((StageMemory("a", 5, 7), StageMemory("b", 9, 9)), 11, 13)


def test_other_errors_of_a_module_stay_what_they_are() -> None:
    class Wrong(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        training_memory_of(Wrong(), 8)


def test_weights_stand_beside_the_peak() -> None:
    weights = 4 * (3 * 4 + 4 + 4 * 2 + 2)
    assert inference_memory(chain(inplace=True), 8).weights_bytes == weights


def test_a_training_step_ends_with_the_gradients_of_the_weights() -> None:
    memory = training_memory_of(chain(inplace=True), 8, batch=2)
    last = memory.stages[0]  # backward ends where forward began
    assert memory.peak_bytes >= last.backward_bytes >= IMAGE + memory.weights_bytes


@pytest.mark.parametrize("memory_efficient", [False, True])
def test_a_step_holds_what_autograd_keeps_and_then_more(memory_efficient: bool) -> None:
    with torch.device("meta"):
        module = DenseNet(SPEC, memory_efficient=memory_efficient)
    counted = training_memory(SPEC, 32, batch=8)
    kept = counted.checkpointed_bytes if memory_efficient else counted.plain_bytes
    memory = training_memory_of(module, 32, batch=8)
    assert kept < memory.peak_bytes < 2 * kept + memory.weights_bytes
    assert max(stage.backward_bytes for stage in memory.stages) == memory.peak_bytes


def test_checkpointing_saves_memory_and_inference_needs_least() -> None:
    with torch.device("meta"):
        plain, lean = DenseNet(SPEC), DenseNet(SPEC, memory_efficient=True)
    inference = inference_memory(plain, 32, batch=8).peak_bytes
    assert inference < training_memory_of(lean, 32, batch=8).peak_bytes < training_memory_of(plain, 32, 8).peak_bytes


@pytest.mark.slow
def test_checkpointing_takes_more_than_70_percent_off_a_step_of_densenet_121() -> None:
    peaks = []
    for memory_efficient in (True, False):
        with torch.device("meta"):
            module = DenseNet(find_variant("121").spec, memory_efficient=memory_efficient)
        peaks.append(training_memory_of(module, 224, batch=16).peak_bytes)
    assert peaks[0] < 0.3 * peaks[1]


def test_stages_merge_into_parts_and_keep_their_peaks() -> None:
    memory = training_memory_of(empty_model(SPEC), 32, batch=8)
    blocks = memory.by_part(network_part)
    assert [stage.name for stage in blocks.stages] == ["stem", "denseblock1", "transition1", "denseblock2", "head"]
    assert max(stage.backward_bytes for stage in blocks.stages) == memory.peak_bytes == blocks.peak_bytes


def test_measuring_twice_gives_the_same_and_leaves_no_gradients() -> None:
    module = empty_model(SPEC)
    first = training_memory_of(module, 32, batch=8)
    assert training_memory_of(module, 32, batch=8) == first
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_single_value_per_channel_cannot_be_trained() -> None:
    with pytest.raises(UsageError) as caught:
        training_memory_of(empty_model(SPEC), SPEC.smallest_image_size, batch=1)
    assert caught.value.subject == "batch=1"
