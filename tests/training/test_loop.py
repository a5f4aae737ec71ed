"""The loop: what a step does, what an epoch reports, and what makes two runs equal bit for bit."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from densenet_deploy.errors import GateError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.models.build import build_model
from densenet_deploy.training.batches import Augmentation, Batches
from densenet_deploy.training.data import Example
from densenet_deploy.training.loop import Trainer
from densenet_deploy.training.loss import Objective
from densenet_deploy.training.network import save_memory, weights_in
from densenet_deploy.training.options import TrainOptions
from densenet_deploy.training.processes import Processes
from densenet_deploy.variants.spec import DenseNetSpec

SPEC = DenseNetSpec(growth_rate=2, blocks=(1, 1), init_features=4, bn_size=2, stem="cifar", num_classes=3)
PLAIN = Preprocessing(image_size=8, resize=8, mean=(0.5,) * 3, std=(0.25,) * 3)
ALONE = Processes(0, 1, torch.device("cpu"))
PIXELS = np.random.default_rng(0).integers(0, 256, (18, 8, 8, 3), np.uint8)
EXAMPLES = tuple(Example(image, number % 3) for number, image in enumerate(PIXELS))


def trainer(options: TrainOptions, *, spec=SPEC, shards=1, processes=ALONE, lean=False) -> Trainer:
    batches = Batches(
        EXAMPLES,
        PLAIN,
        Augmentation("crop", flip=True),
        batch_size=options.batch_size,
        shards=shards,
        seed=options.seed,
    )
    network = build_model(spec, seed=1)
    if lean:
        save_memory(network)
    return Trainer(network, batches, options, processes, Objective(), is_pretrained=False)


def run(made: Trainer, epochs: range) -> Trainer:
    for epoch in epochs:
        made.epoch(epoch, lambda *_: None)
    return made


def same(one: Trainer, other: Trainer) -> bool:
    pairs = zip(weights_in(one.result).values(), weights_in(other.result).values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


OPTIONS = TrainOptions(epochs=4, batch_size=6)
VARIED = {
    "plain": OPTIONS,
    "adamw": dataclasses.replace(OPTIONS, optimizer="adamw", schedule="cosine", warmup_epochs=1.5),
    "average": dataclasses.replace(OPTIONS, ema=0.9),
    "mixed": dataclasses.replace(OPTIONS, mixup=0.4, label_smoothing=0.1),
    "bf16": dataclasses.replace(OPTIONS, amp="bf16"),
    "fp16": dataclasses.replace(OPTIONS, amp="fp16"),
    "frozen": dataclasses.replace(OPTIONS, freeze="until=denseblock1"),
}


@pytest.mark.parametrize("name", VARIED)
def test_a_run_that_goes_on_from_a_state_ends_at_the_same_bits(name):
    spec = dataclasses.replace(SPEC, drop_rate=0.3)
    whole = run(trainer(VARIED[name], spec=spec), range(4))
    first = run(trainer(VARIED[name], spec=spec), range(2))
    torch.manual_seed(99)  # whatever else draws numbers meanwhile
    second = trainer(VARIED[name], spec=spec)
    second.restore(first.state())
    run(second, range(2, 4))
    assert same(whole, second)
    assert not same(whole, first)


def test_a_training_leaves_the_global_random_state_alone():
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    run(trainer(OPTIONS), range(1))
    assert torch.equal(torch.rand(1), wanted)


def test_seeds_differ_and_dropout_is_drawn_anew_in_every_step():
    spec = dataclasses.replace(SPEC, drop_rate=0.5)
    assert same(run(trainer(OPTIONS, spec=spec), range(1)), run(trainer(OPTIONS, spec=spec), range(1)))
    other = dataclasses.replace(OPTIONS, seed=1)
    assert not same(run(trainer(OPTIONS, spec=spec), range(1)), run(trainer(other, spec=spec), range(1)))


def test_saving_memory_changes_no_bit():
    spec = dataclasses.replace(SPEC, drop_rate=0.3)
    assert same(run(trainer(OPTIONS, spec=spec), range(2)), run(trainer(OPTIONS, spec=spec, lean=True), range(2)))


def test_one_shard_is_an_ordinary_step_of_pytorch():
    made = trainer(dataclasses.replace(OPTIONS, schedule="constant"))
    network = build_model(SPEC, seed=1).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    losses = []
    for (shard,) in Batches(EXAMPLES, PLAIN, Augmentation("crop", flip=True), batch_size=6, shards=1, seed=0).epoch(0):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(shard.inputs), shard.classes)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    result = made.epoch(0, lambda *_: None)
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-6)
    for name, tensor in weights_in(made.network).items():
        torch.testing.assert_close(tensor, weights_in(network)[name], rtol=1e-5, atol=1e-7)


def test_shards_average_gradients_and_statistics_of_parts():
    """The step of two shards, from the definition: each normalized alone, then averaged."""
    options = dataclasses.replace(OPTIONS, schedule="constant", batch_size=18)
    made = trainer(options, shards=2)
    (shards,) = Batches(EXAMPLES, PLAIN, Augmentation("crop", flip=True), batch_size=18, shards=2, seed=0).epoch(0)
    gradients, statistics = [], []
    for shard in shards:
        network = build_model(SPEC, seed=1).train()
        torch.nn.functional.cross_entropy(network(shard.inputs), shard.classes).backward()
        gradients.append(network.classifier.weight.grad)
        statistics.append(network.features.norm5.running_var)
    made.epoch(0, lambda *_: None)
    wanted = sum(gradients) / 2
    start = build_model(SPEC, seed=1)
    expected = start.classifier.weight - 0.1 * 1.9 * (wanted + 1e-4 * start.classifier.weight)  # Nesterov's first step
    torch.testing.assert_close(made.network.classifier.weight, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(made.network.features.norm5.running_var, sum(statistics) / 2, rtol=1e-5, atol=1e-7)


class Recorded(Processes):
    """One of two processes; what the other one computes for its shard is played back."""

    def gathered_tensors(self, tensor):
        other = self.others.pop(0)
        return [tensor, other] if self.rank == 0 else [other, tensor]


def test_two_processes_add_up_what_one_does(monkeypatch):
    """Each process computes every second shard; with the rows of the other one, both end where one process ends."""
    whole = run(trainer(OPTIONS, shards=2), range(2))
    rows = []
    recording = trainer(OPTIONS, shards=2)
    original = recording._row
    monkeypatch.setattr(recording, "_row", lambda *given: rows.append(original(*given).clone()) or rows[-1].clone())
    run(recording, range(2))
    for rank in (0, 1):
        process = Recorded(rank, 2, torch.device("cpu"))
        object.__setattr__(process, "others", [row.clone() for row in rows[1 - rank :: 2]])
        assert same(whole, run(trainer(OPTIONS, shards=2, processes=process), range(2)))


def test_an_epoch_reports_loss_accuracy_and_rates():
    steps = []
    made = trainer(dataclasses.replace(OPTIONS, lr=0.5, head_lr=0.25))
    made.epoch(0, lambda *done: steps.append(done))
    result = made.epoch(3, lambda *_: None)
    assert steps == [(1, 12), (2, 12), (3, 12)]
    assert result.images == 18
    assert (result.lr, result.head_lr) == (0.005, 0.0025)
    assert 0 <= result.top1 <= 1
    assert result.top1 * 18 == pytest.approx(round(result.top1 * 18))
    assert math.isfinite(result.loss)
    assert trainer(dataclasses.replace(OPTIONS, mixup=1.0)).epoch(0, lambda *_: None).top1 is None


def test_a_loss_that_is_not_finite_stops_before_the_step():
    made = trainer(OPTIONS)
    with torch.no_grad():
        made.network.classifier.bias[0] = math.nan
    before = made.network.features.conv0.weight.clone()
    with pytest.raises(GateError, match="became nan in step 1 of epoch 3"):
        made.epoch(2, lambda *_: None)
    assert torch.equal(made.network.features.conv0.weight, before)


def test_a_weight_that_is_not_finite_after_the_last_step_is_named():
    made = trainer(dataclasses.replace(OPTIONS, batch_size=18, lr=1e3, weight_decay=1.0))
    with torch.no_grad():
        made.network.features.conv0.weight.fill_(1e36)  # decayed by 1000 times itself
    with pytest.raises(GateError, match="after epoch 1"):
        made.epoch(0, lambda *_: None)


def test_training_learns():
    made = trainer(dataclasses.replace(OPTIONS, epochs=30, lr=0.2))
    first = made.epoch(0, lambda *_: None)
    run(made, range(1, 29))
    assert made.epoch(29, lambda *_: None).loss < 0.75 * first.loss
