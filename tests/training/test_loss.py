"""The loss against its formulas, written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from densenet_deploy.training.loss import Mixed, Objective, mixed

OUTPUTS = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 0.5]])
CLASSES = torch.tensor([0, 2])


class Fixed(nn.Module):
    """A teacher that always answers the same."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, inputs):
        return self.outputs


def batch(classes=CLASSES, others=None, share=1.0):
    return Mixed(torch.zeros(len(classes), 1), classes, classes if others is None else others, share)


def logs(outputs, temperature=1.0):
    return torch.log(torch.softmax(outputs / temperature, 1))


def test_without_a_teacher_it_is_the_cross_entropy():
    wanted = -(logs(OUTPUTS)[0, 0] + logs(OUTPUTS)[1, 2]) / 2
    assert Objective()(OUTPUTS, batch()).item() == pytest.approx(wanted.item())


def test_smoothing_spreads_probability_over_all_classes():
    target = torch.full((2, 3), 0.1) + 0.7 * nn.functional.one_hot(CLASSES, 3)
    wanted = -(target * logs(OUTPUTS)).sum() / 2
    assert Objective(label_smoothing=0.3)(OUTPUTS, batch()).item() == pytest.approx(wanted.item())


def test_distillation_is_the_formula_of_hinton():
    taught = torch.tensor([[1.0, 1.0, 0.0], [2.0, 0.0, 0.0]])
    temperature, alpha = 4.0, 0.7
    soft = torch.softmax(taught / temperature, 1)
    distance = (soft * (torch.log(soft) - logs(OUTPUTS, temperature))).sum() / 2
    entropy = Objective()(OUTPUTS, batch())
    wanted = alpha * temperature**2 * distance + (1 - alpha) * entropy
    found = Objective(teacher=Fixed(taught), temperature=temperature, alpha=alpha)(OUTPUTS, batch())
    assert found.item() == pytest.approx(wanted.item())
    agreeing = Objective(teacher=Fixed(OUTPUTS), alpha=1.0)(OUTPUTS, batch())
    assert agreeing.item() == pytest.approx(0.0, abs=1e-6)


def test_an_image_without_a_class_counts_for_the_teacher_alone():
    classes = torch.tensor([0, -1])
    wanted = -logs(OUTPUTS)[0, 0] / 2
    assert Objective()(OUTPUTS, batch(classes)).item() == pytest.approx(wanted.item())
    assert Objective(teacher=Fixed(OUTPUTS * 2), alpha=1.0)(OUTPUTS, batch(torch.tensor([-1, -1]))).item() > 0.01


def test_the_loss_of_a_mixture_is_the_mixture_of_losses():
    others = torch.tensor([1, 1])
    first, second = (Objective()(OUTPUTS, batch(classes)) for classes in (CLASSES, others))
    found = Objective()(OUTPUTS, batch(CLASSES, others, 0.25))
    assert found.item() == pytest.approx((0.25 * first + 0.75 * second).item())


def test_mixing_is_seeded_and_follows_its_share():
    inputs = torch.arange(6.0).reshape(6, 1, 1, 1)
    classes = torch.arange(6)
    found = mixed(inputs, classes, 1.0, np.random.default_rng(0))
    expected = found.share * classes + (1 - found.share) * found.others
    torch.testing.assert_close(found.inputs.flatten(), expected.float())
    assert 0 < found.share < 1
    again = mixed(inputs, classes, 1.0, np.random.default_rng(0))
    assert torch.equal(again.inputs, found.inputs)
    plain = mixed(inputs, classes, 0.0, np.random.default_rng(0))
    assert plain.inputs is inputs
    assert plain.share == 1
