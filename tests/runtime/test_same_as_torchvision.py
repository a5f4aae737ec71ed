"""What the model sees equals torchvision's own transforms to the last bit, whatever the size."""

import numpy as np
import pytest
import torch
from torchvision import transforms

from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.images import LoadedImage
from densenet_deploy.runtime.preprocess import prepare
from tests.runtime.test_preprocess import CHANNELS, CROPS, RECTANGLES, SIZES, noise


def torchvision_result(image: LoadedImage, preprocessing: Preprocessing) -> np.ndarray:
    interpolation = transforms.InterpolationMode(preprocessing.interpolation)
    resize = [] if preprocessing.resize == "none" else [transforms.Resize(preprocessing.resize, interpolation)]
    scale = [lambda tensor: tensor / 255] if image.pixels.mode == "F" else []  # ToTensor leaves floats as they are
    steps = [
        *resize,
        transforms.CenterCrop(preprocessing.image_size),
        transforms.ToTensor(),
        *scale,
        transforms.Normalize(preprocessing.mean, preprocessing.std),
    ]
    result = transforms.Compose(steps)(image.pixels)
    assert isinstance(result, torch.Tensor)
    return result.numpy()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", SIZES)
def test_equals_torchvision_bit_for_bit(size, interpolation):
    for crop, resize in CROPS:
        preprocessing = Preprocessing(crop, resize, interpolation=interpolation)
        assert np.array_equal(prepare(noise(*size), preprocessing), torchvision_result(noise(*size), preprocessing))


@pytest.mark.parametrize("mode", ["RGB", "L", "F"])  # four channels are opacity to Pillow, which weights by it
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_rectangles_and_gray_equal_torchvision_bit_for_bit(interpolation, mode):
    for size in SIZES:
        for crop, resize in RECTANGLES:
            preprocessing = Preprocessing(crop, resize, interpolation=interpolation, **CHANNELS[mode])
            image = noise(*size, mode)
            assert np.array_equal(prepare(image, preprocessing), torchvision_result(image, preprocessing))


@pytest.mark.parametrize("size", [(500, 375), (333, 499)])
def test_equals_torchvision_at_imagenet_size(size):
    assert np.array_equal(prepare(noise(*size), Preprocessing()), torchvision_result(noise(*size), Preprocessing()))


def test_every_crop_corner_is_rounded_as_torchvision_does():
    preprocessing = Preprocessing(image_size=24, resize=24, interpolation="nearest")
    for length in range(24, 60):
        image = noise(24, length)
        assert np.array_equal(prepare(image, preprocessing), torchvision_result(image, preprocessing))
