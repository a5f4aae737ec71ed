"""What the model sees equals torchvision's own transforms to the last bit, whatever the size."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from densenet_deploy.errors import FeedError, UnknownNameError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.images import LoadedImage
from densenet_deploy.runtime.preprocess import _resized_part, default_preprocessing, prepare, prepare_batch

SMALL = Preprocessing(image_size=24, resize=27)


def noise(width: int, height: int) -> LoadedImage:
    pixels = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return LoadedImage(Image.fromarray(pixels))


def torchvision_result(image: LoadedImage, preprocessing: Preprocessing) -> np.ndarray:
    steps = [
        transforms.Resize(
            preprocessing.resize, transforms.InterpolationMode(preprocessing.interpolation), antialias=True
        ),
        transforms.CenterCrop(preprocessing.image_size),
        transforms.ToTensor(),
        transforms.Normalize(preprocessing.mean, preprocessing.std),
    ]
    result = transforms.Compose(steps)(image.pixels)
    assert isinstance(result, torch.Tensor)
    return result.numpy()


SIZES = [
    (1, 1),
    (1, 7),
    (2, 3),
    (13, 5),
    (23, 24),
    (24, 24),
    (27, 27),
    (27, 28),
    (28, 27),
    (31, 97),
    (97, 31),
    (100, 75),
]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("crop", "resize"), [(24, 27), (24, 24), (25, 36), (24, 13), (25, 14), (24, 23), (1, 1), (7, 64)]
)
@pytest.mark.parametrize("size", SIZES)
def test_equals_torchvision_bit_for_bit(size, crop, resize, interpolation):
    preprocessing = Preprocessing(crop, resize, interpolation=interpolation)
    assert np.array_equal(prepare(noise(*size), preprocessing), torchvision_result(noise(*size), preprocessing))


@pytest.mark.parametrize("size", [(500, 375), (333, 499), (640, 427), (256, 257), (225, 300)])
def test_equals_torchvision_at_imagenet_size(size):
    assert np.array_equal(prepare(noise(*size), Preprocessing()), torchvision_result(noise(*size), Preprocessing()))


@pytest.mark.parametrize("length", range(24, 60))
def test_every_crop_corner_is_rounded_as_torchvision_does(length):
    preprocessing = Preprocessing(image_size=24, resize=24, interpolation="nearest")
    image = noise(24, length)
    assert np.array_equal(prepare(image, preprocessing), torchvision_result(image, preprocessing))


def test_every_byte_value_is_normalized_as_torchvision_does():
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    image = LoadedImage(Image.fromarray(values))
    preprocessing = Preprocessing(16, 16, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    assert np.array_equal(prepare(image, preprocessing), torchvision_result(image, preprocessing))


def test_the_result_is_contiguous_float32():
    result = prepare(noise(40, 30), SMALL)
    assert result.shape == (3, 24, 24)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous


def test_the_callers_buffer_is_filled_and_returned():
    buffer = np.full((3, 24, 24), np.nan, np.float32)
    assert prepare(noise(40, 30), SMALL, buffer) is buffer
    assert np.array_equal(buffer, prepare(noise(40, 30), SMALL))


def test_a_batch_is_its_images():
    images = [noise(40, 30), noise(30, 41), noise(5, 5)]
    buffer = np.empty((3, 3, 24, 24), np.float32)
    assert prepare_batch(images, SMALL, buffer) is buffer
    assert np.array_equal(buffer, np.stack([prepare(image, SMALL) for image in images]))
    assert np.array_equal(prepare_batch(images, SMALL), buffer)


@pytest.mark.parametrize(
    "buffer", [np.empty((3, 24, 24)), np.empty((3, 24, 25), np.float32), np.empty((1, 3, 24, 24), np.float32)]
)
def test_another_buffer_is_refused(buffer):
    with pytest.raises(FeedError) as caught:
        prepare(noise(40, 30), SMALL, buffer)
    assert caught.value.subject == "out"
    with pytest.raises(FeedError) as caught:
        prepare_batch([noise(40, 30)] * 2, SMALL, buffer)
    assert caught.value.subject == "out"


def test_an_unknown_interpolation_names_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        prepare(noise(4, 4), Preprocessing(interpolation="bilinaer"))
    assert caught.value.subject == "bilinaer"


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize(("old", "new"), [((3, 400), (27, 3600)), ((400, 7), (1542, 27)), ((61, 900), (27, 398))])
@pytest.mark.parametrize("place", [0, 0.3, 0.5, 1])
def test_a_part_computed_alone_is_the_part_of_the_whole(old, new, place, resample):
    image = noise(*old).pixels
    left, top = (int((side - 24) * place) for side in new)
    part = (left, top, left + 24, top + 24)
    alone = np.asarray(_resized_part(image, new, part, resample)).astype(int)
    whole = np.asarray(image.resize(new, resample).crop(part)).astype(int)
    assert np.abs(alone - whole).max() <= 2  # of 255, one a pass: Pillow keeps the corners of the part as float32


@pytest.mark.parametrize("size", [(3, 4_000), (4_000, 3)])
def test_a_sliver_too_long_to_resize_equals_torchvision_within_two_levels(size):
    preprocessing = Preprocessing(image_size=260)  # more than its shorter side becomes, so that it is padded too
    sliver = noise(*size)
    difference = prepare(sliver, preprocessing) - torchvision_result(sliver, preprocessing)
    assert np.abs(difference).max() <= 2.001 / (255 * min(preprocessing.std))  # one a pass


def test_a_sliver_of_any_length_costs_no_more_than_its_crop():
    sliver = LoadedImage(Image.new("RGB", (1, 5_000_000), (255, 0, 0)))  # resized whole it would take 1.3 terabytes
    assert np.array_equal(prepare(sliver, SMALL), prepare(LoadedImage(sliver.pixels.crop((0, 0, 1, 1))), SMALL))


def test_the_default_is_imagenets_way_at_any_size():
    assert default_preprocessing() == Preprocessing()
    assert default_preprocessing(299).resize == 341
