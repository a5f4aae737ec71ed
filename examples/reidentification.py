"""Find a person again by features: `python -m examples.reidentification [FOLDER]`, a minute.

A re-identification network takes upright images of 256×128 pixels and returns a vector; images of the same person have
vectors in about the same direction. The network is trained as a classifier of persons, exported without its
classifier, written in INT8, and finds persons that it has never seen in a gallery.

The persons are drawn: head, shirt and trousers of some color. What is shown is the way, not a benchmark.
"""

from __future__ import annotations

import argparse
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

SIZE: Final = (256, 128)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PERSONS: Final = 32
SPEC: Final = DenseNetSpec(growth_rate=8, blocks=(2, 2, 2, 2), init_features=16, num_classes=PERSONS)

Pixels = npt.NDArray[np.uint8]


def draw(person: int, seed: int) -> Pixels:
    """Return an image (256, 128, 3) of a person, whose colors and stature follow from the number, before some wall."""
    who, now = np.random.default_rng(person), np.random.default_rng([person, seed])
    shirt, trousers, hair = who.integers(30, 226, (3, 3))
    breadth, height = who.uniform(0.16, 0.26), who.uniform(0.75, 0.95)
    wall, light, shift = now.integers(90, 170), now.uniform(0.8, 1.2), now.normal(0, 0.04)
    rows, columns = np.mgrid[0 : SIZE[0], 0 : SIZE[1]] / np.array(SIZE)[:, None, None]
    above, aside = 1 - (1 - rows) / height, np.abs(columns - 0.5 - shift)
    image = np.full((*SIZE, 3), wall, float)
    image[(above > 0.2) & (above < 0.58) & (aside < breadth)] = shirt
    image[(above >= 0.58) & (aside < 0.8 * breadth) & (aside > 0.02)] = trousers
    image[(above - 0.1) ** 2 + (0.6 * aside) ** 2 < 0.006] = hair
    return np.clip(image * light + now.normal(0, 10, image.shape), 0, 255).astype(np.uint8)


def train(epochs: int = 10, views: int = 8, seed: int = 0) -> DenseNet:
    """Return a network that tells `PERSONS` persons apart, in eval mode."""
    images = [draw(person, view) for person in range(PERSONS) for view in range(views)]
    inputs, persons = _inputs(images), torch.arange(PERSONS).repeat_interleave(views)
    torch.manual_seed(seed)
    model = build_model(SPEC, seed=seed).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(16):
            loss = functional.cross_entropy(model(inputs[chosen]), persons[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def rank1(classify: dd.Classifier, persons: range) -> float:
    """Return the fraction of persons whose second image is nearest to their first, by cosine."""
    gallery, queries = (_vectors(classify, [draw(person, view) for person in persons]) for view in (100, 101))
    return float((np.argmax(queries @ gallery.T, axis=1) == np.arange(len(persons))).mean())


def main(folder: Path) -> None:
    """Train, save, export the features, quantize, search."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {f"module.{k}": v for k, v in train().state_dict().items()}}, folder / "person.pth.tar")

    model = dd.load(folder / "person.pth.tar", head="features", image_size=SIZE, mean=MEAN, std=STD)
    exported = dd.export(model, out=folder / "person.onnx", force=True)
    print(exported.report)
    calibration = [draw(person, 0) for person in range(1000, 1064)]
    options = dd.QuantizeOptions(never_slower=False)
    int8 = dd.quantize(exported, calibration, options, out=folder / "person.int8.onnx", force=True)
    print(int8.report)
    for path in ("person.onnx", "person.int8.onnx"):
        with dd.Classifier.open(folder / path) as classify:
            print(f"{path}: rank 1 of 64 unseen persons {rank1(classify, range(2000, 2064)):.1%}")


def _inputs(images: list[Pixels]) -> torch.Tensor:
    values = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def _vectors(classify: dd.Classifier, images: list[Pixels]) -> npt.NDArray[np.float64]:
    """Return the features of images with length 1, (N, C)."""
    found = [prediction.features for prediction in classify([Image.fromarray(image) for image in images])]
    vectors = np.stack([one.values.astype(np.float64) for one in found if one is not None])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Find a person again by features.")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path("artifacts/reidentification"))
    main(parser.parse_args().folder)
