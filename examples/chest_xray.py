"""A chest X-ray network from its checkpoint to a classifier: `python -m examples.chest_xray [FOLDER]`, a few minutes.

The checkpoint has the shape of TorchXRayVision's: one channel of values in −1024…1024, one output for each finding, and
a threshold for each in `op_threshs`. It is exported, written in INT8, evaluated as a multilabel model by the area under
the ROC curve, and classifies an image of 16 bits.

The radiographs are drawn, and so are their four findings: what is shown is the way, not medicine.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional

import densenet_deploy as dd
from densenet_deploy.models.build import DenseNet, build_model
from densenet_deploy.variants.spec import DenseNetSpec

FINDINGS: Final = ("Nodule", "Effusion", "Cardiomegaly", "Pneumothorax")
SIZE: Final = 64
SPEC: Final = DenseNetSpec(
    growth_rate=8, blocks=(2, 2, 2, 2), init_features=16, in_channels=1, num_classes=len(FINDINGS)
)

Gray = npt.NDArray[np.uint16]
Flags = npt.NDArray[np.bool_]

_PREVALENCE: Final = 0.3
_ROWS, _COLUMNS = np.mgrid[0:SIZE, 0:SIZE] / SIZE


def draw(rng: np.random.Generator) -> tuple[Gray, Flags]:
    """Return a radiograph (SIZE, SIZE) of 16 bits, and which findings it shows, (4,)."""
    shows = rng.random(len(FINDINGS)) < _PREVALENCE
    side, lift = rng.choice((0.3, 0.7)), rng.normal(0, 0.03)
    image = 0.55 + 0.1 * _ROWS
    for center in (0.3, 0.7):
        image -= 0.3 * _disc(0.45 + lift, center, 0.32, 0.15)
    image += 0.15 * _disc(0.68, 0.52, 0.12, 0.26 if shows[2] else 0.12)
    if shows[0]:
        image += 0.3 * _disc(0.45 + rng.normal(0, 0.1), side + rng.normal(0, 0.04), 0.05, 0.05)
    if shows[1]:
        image += 0.25 * (_disc(0.45 + lift, side, 0.32, 0.15) * (_ROWS > 0.6))
    if shows[3]:
        image -= 0.15 * (_disc(0.45 + lift, 1 - side, 0.32, 0.15) * (_ROWS < 0.4))
    noisy = image * rng.uniform(0.9, 1.1) + rng.normal(0, 0.04, image.shape)
    return (np.clip(noisy, 0, 1) * 65535).astype(np.uint16), shows


def write_set(folder: Path, count: int, seed: int) -> Path:
    """Write `count` radiographs as PNG of 16 bits, and return the CSV file that lists them with their findings."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "findings.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("file", *FINDINGS))
        for number in range(count):
            pixels, shows = draw(rng)
            Image.fromarray(pixels).save(folder / f"{number:04}.png")
            rows.writerow((f"{number:04}.png", *map(int, shows)))
    return table


def train(images: int = 2000, epochs: int = 5, seed: int = 0) -> DenseNet:
    """Return a network trained on drawn radiographs, in eval mode."""
    inputs, shows = _drawn(images, seed)
    torch.manual_seed(seed)
    model = build_model(SPEC, seed=seed).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(images).split(32):
            loss = functional.binary_cross_entropy_with_logits(model(inputs[chosen]), shows[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def thresholds(model: DenseNet, images: int = 500, seed: int = 1) -> torch.Tensor:
    """Return the threshold of each finding, (4,), with the best F1 on radiographs that the training has not seen."""
    inputs, shows = _drawn(images, seed)
    with torch.inference_mode():
        scores, held = torch.sigmoid(model(inputs)), shows > 0.5
    candidates = torch.linspace(0.05, 0.95, 19)
    positive = scores[None] >= candidates[:, None, None]
    f1 = 2 * (positive & held).sum(1) / (positive.sum(1) + held.sum(0))
    return candidates[f1.argmax(0)]


def save_checkpoint(model: DenseNet, path: Path) -> None:
    """Save the weights as TorchXRayVision does."""
    torch.save({**model.state_dict(), "op_threshs": thresholds(model)}, path)


def main(folder: Path) -> None:
    """Train, save, export, quantize, evaluate, classify."""
    calibration, held_out = write_set(folder / "calibration", 128, seed=2), write_set(folder / "held_out", 400, seed=3)
    save_checkpoint(train(), folder / "chest.pth")

    model = dd.load(folder / "chest.pth", image_size=SIZE, resize=SIZE, labels=FINDINGS)
    exported = dd.export(model, out=folder / "chest.onnx", force=True)
    print(exported.report)
    options = dd.QuantizeOptions(never_slower=False)
    int8 = dd.quantize(exported, calibration.parent, options, out=folder / "chest.int8.onnx", force=True)
    print(int8.report)
    for one in (exported, int8):
        print(dd.evaluate(one, held_out))
    with dd.Classifier.open(folder / "chest.int8.onnx") as classify:
        print(classify(held_out.parent / "0000.png"))


def _drawn(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs (N, 1, SIZE, SIZE) in −1024…1024 and findings (N, 4), both float32."""
    rng = np.random.default_rng(seed)
    images, shows = zip(*(draw(rng) for _ in range(count)), strict=True)
    values = (np.stack(images)[:, None].astype(np.float32) / 65535 - 0.5) * 2048
    return torch.from_numpy(values), torch.from_numpy(np.stack(shows).astype(np.float32))


def _disc(row: float, column: float, height: float, width: float) -> npt.NDArray[np.float64]:
    """Return a soft ellipse with center and half-axes as fractions of the image, 0 to 1."""
    distance = ((_ROWS - row) / height) ** 2 + ((_COLUMNS - column) / width) ** 2
    return np.asarray(0.5 - 0.5 * np.tanh(4 * (distance - 1)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A chest X-ray network from its checkpoint to a classifier.")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path("artifacts/chest"))
    main(parser.parse_args().folder)
