"""Train a small DenseNet-BC on handwritten digits, on a CPU in minutes: `python -m examples.train_digits`.

It writes to `examples/digits/` the weights with all that a runner needs (labels, preprocessing, origin), how they were
trained (`training.json`) and the held-out images. The last epoch is kept, so the held-out digits choose nothing.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from densenet_deploy.manifest import Manifest, WeightsOrigin
from densenet_deploy.models.build import DenseNet, build_model
from densenet_deploy.sources.weights import weights_sha256
from densenet_deploy.variants import find_variant
from examples.digits_data import LABELS, PREPROCESSING, SPLIT_SEED, Digits, digits_split, inputs_from, write_images
from examples.training import Batch, TrainingPlan, accuracy_of, fit, write_network

OUTPUT: Final = Path(__file__).parent / "digits"


@dataclass(frozen=True)
class TrainingOptions(TrainingPlan):
    """How to train; `seed` decides weights, order and augmentation, with equal threads bit for bit."""

    variant: str = "cifar-bc-40-12"
    most_degrees: float = 10.0
    most_shift: float = 0.08
    seed: int = 0


def train(data: Digits, options: TrainingOptions) -> DenseNet:
    """Return a DenseNet trained on `data`, in eval mode: SGD with Nesterov momentum."""
    torch.manual_seed(options.seed)
    model = build_model(find_variant(options.variant).spec, seed=options.seed)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1, momentum=0.9, nesterov=True, weight_decay=options.weight_decay
    )
    return fit(model, optimizer, lambda _: _batches(data, options), len(data.digits), options)


def accuracy(model: DenseNet, data: Digits) -> float:
    """Return the share of `data` that the model classifies correctly."""
    return accuracy_of(model, torch.from_numpy(inputs_from(data.images)), torch.from_numpy(data.digits))


def write_results(folder: Path, model: DenseNet, options: TrainingOptions, data: tuple[Digits, Digits]) -> float:
    """Write weights, labels, report and held-out images to `folder`; return the held-out accuracy."""
    training, held_out = data
    score = accuracy(model, held_out)
    origin = WeightsOrigin("scikit-learn digits", weights_sha256(model.state_dict()))
    manifest = Manifest(options.variant, model.spec.to_facts(), origin, PREPROCESSING, LABELS)
    facts = {
        "options": asdict(options),
        "split": {"seed": SPLIT_SEED, "training": len(training.digits), "held_out": len(held_out.digits)},
        "held_out_accuracy": score,
    }
    write_network(folder, "densenet_digits.safetensors", model, manifest, facts)
    write_images(folder / "held_out", held_out)
    return score


def _batches(data: Digits, options: TrainingOptions) -> Iterator[Batch]:
    """Yield shuffled, augmented batches: inputs (N, 3, 32, 32) and digits (N,)."""
    inputs, digits = torch.from_numpy(inputs_from(data.images)), torch.from_numpy(data.digits)
    for chosen in torch.randperm(len(digits)).split(options.batch_size):
        yield _moved(inputs[chosen], options), digits[chosen]


def _moved(inputs: Tensor, options: TrainingOptions) -> Tensor:
    """Turn and shift each image a little; pixels from outside repeat the border."""
    count = len(inputs)
    angles = (torch.rand(count) * 2 - 1) * math.radians(options.most_degrees)
    shifts = (torch.rand(count, 2) * 2 - 1) * (2 * options.most_shift)
    rotations = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], dim=1).view(count, 2, 2)
    grid = functional.affine_grid(torch.cat([rotations, shifts[:, :, None]], dim=2), list(inputs.shape), False)
    return functional.grid_sample(inputs, grid, padding_mode="border", align_corners=False)


def main() -> None:
    """Train with the options' defaults, or for fewer epochs to try it out, and print the accuracy."""
    parser = argparse.ArgumentParser(description="Train a small DenseNet-BC on handwritten digits.")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    parser.add_argument("--epochs", type=int, default=TrainingOptions.epochs)
    arguments = parser.parse_args()
    options = TrainingOptions(epochs=arguments.epochs)
    data = digits_split()
    model = train(data[0], options)
    print(f"held-out accuracy {write_results(arguments.output, model, options, data):.4f}, in {arguments.output}")


if __name__ == "__main__":
    main()
