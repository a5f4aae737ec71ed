"""Train a DenseNet-121 on rendered digits: `python -m examples.train_rendered_digits`, ten minutes of one core.

It shows what INT8 costs on a full-size network that does not find every image easy. It writes to
`artifacts/rendered_digits/` the weights with all that a runner needs, how they were trained (`training.json`),
`calibration/` and `held_out/`. Every epoch draws new images. The last epoch is kept, so the held-out images choose
nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import torch

from densenet_deploy.manifest import Manifest, WeightsOrigin
from densenet_deploy.models.build import DenseNet, build_model
from densenet_deploy.sources.weights import weights_sha256
from densenet_deploy.variants import find_variant
from examples.digits_data import LABELS
from examples.rendered_digits import PREPROCESSING, Nuisance, images_of, inputs_from, write_split
from examples.training import Batch, TrainingPlan, accuracy_of, fit, write_network

OUTPUT: Final = Path("artifacts") / "rendered_digits"
WEIGHTS_NAME: Final = "densenet_rendered_digits.safetensors"


@dataclass(frozen=True)
class RenderedOptions(TrainingPlan):
    """How to train; `seed` decides weights and images, with equal threads bit for bit.

    Over the first `easy_share` of the images nuisance grows from none to all of it: a network that met hard images
    from the start learned nothing in ten thousand. All but the last `float32_epochs` compute in bfloat16, which takes
    two thirds of the time where the CPU has it.
    """

    epochs: int = 8
    images: int = 7_000
    peak_learning_rate: float = 2e-3
    weight_decay: float = 0.02
    easy_share: float = 0.5
    float32_epochs: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Sizes:
    """How many images to write."""

    calibration: int = 512
    held_out: int = 1000


def train(options: RenderedOptions) -> DenseNet:
    """Return a DenseNet of 10 classes trained on `images` new ones an epoch, in eval mode."""
    torch.manual_seed(options.seed)
    spec = replace(find_variant(options.variant).spec, num_classes=len(LABELS))
    model = build_model(spec, seed=options.seed).to(memory_format=torch.channels_last)
    bfloat16_epochs = options.epochs - options.float32_epochs
    optimizer = torch.optim.AdamW(model.parameters(), options.peak_learning_rate, weight_decay=options.weight_decay)
    fit(model, optimizer, lambda epoch: batches(epoch, options), options.images, options, bfloat16_epochs)
    return model.to(memory_format=torch.contiguous_format)


def write_results(folder: Path, model: DenseNet, options: RenderedOptions, seconds: float, sizes: Sizes) -> float:
    """Write weights, labels, report and images to `folder`; return the held-out accuracy in float32."""
    write_split(folder / "calibration", "calibration", sizes.calibration)
    held_out = write_split(folder / "held_out", "held_out", sizes.held_out)
    inputs, digits = torch.from_numpy(inputs_from(held_out.images)), torch.from_numpy(held_out.digits)
    score = accuracy_of(model, inputs, digits)
    facts = {
        "options": asdict(options),
        "nuisance": asdict(Nuisance()),
        "images": {"training": options.epochs * options.images, **asdict(sizes)},
        "held_out_accuracy": score,
        "seconds": round(seconds),
    }
    origin = WeightsOrigin("rendered digits", weights_sha256(model.state_dict()))
    manifest = Manifest(options.variant, model.spec.to_facts(), origin, PREPROCESSING, LABELS)
    write_network(folder, WEIGHTS_NAME, model, manifest, facts)
    return score


def batches(epoch: int, options: RenderedOptions) -> Iterator[Batch]:
    """Yield an epoch of new images: inputs (N, 3, 64, 64) and digits (N,).

    Ten neighbouring numbers are ten digits, so nothing needs shuffling.
    """
    first, end = epoch * options.images, (epoch + 1) * options.images
    for start in range(first, end, options.batch_size):
        numbers = range(start, min(start + options.batch_size, end))
        data = images_of("training", numbers, _nuisance_at(start, options), options.seed)
        inputs = torch.from_numpy(inputs_from(data.images))
        yield inputs.contiguous(memory_format=torch.channels_last), torch.from_numpy(data.digits)


def _nuisance_at(number: int, options: RenderedOptions) -> Nuisance:
    easy = options.easy_share * options.epochs * options.images
    return Nuisance().eased(min(1.0, number / easy) if easy else 1.0)


def main() -> None:
    """Train with the options' defaults, or for fewer epochs to try it out, and print the accuracy."""
    parser = argparse.ArgumentParser(description="Train a DenseNet-121 on rendered digits.")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    parser.add_argument("--epochs", type=int, default=RenderedOptions.epochs)
    parser.add_argument("--images", type=int, default=RenderedOptions.images, help="new images an epoch")
    arguments = parser.parse_args()
    options = RenderedOptions(epochs=arguments.epochs, images=arguments.images)
    started = time.perf_counter()
    model = train(options)
    seconds = time.perf_counter() - started
    score = write_results(arguments.output, model, options, seconds, Sizes())
    print(f"held-out accuracy {score:.4f}, in {arguments.output}")


if __name__ == "__main__":
    main()
