"""What the model sees, to the last bit, whatever the size: against a reference, and worked out by hand."""

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.errors import FeedError, UnknownNameError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.images import LoadedImage
from densenet_deploy.runtime.preprocess import cropped, default_preprocessing, prepare, prepare_batch

SMALL = Preprocessing(image_size=24, resize=27)


def noise(width: int, height: int) -> LoadedImage:
    pixels = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return LoadedImage(Image.fromarray(pixels))


def reference(image: LoadedImage, preprocessing: Preprocessing) -> np.ndarray:
    """Resize by Pillow, pad and cut by NumPy, normalize in float32."""
    width, height = image.pixels.size
    shorter = preprocessing.resize
    new = (shorter, shorter * height // width) if width <= height else (shorter * width // height, shorter)
    filters = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}
    resized = np.asarray(image.pixels.resize(new, filters[preprocessing.interpolation]))
    size, black = preprocessing.image_size, ((0, 0),)
    lacking = [max(size - side, 0) for side in resized.shape[:2]]
    padded = np.pad(resized, (*((less // 2, less - less // 2) for less in lacking), *black))
    top, left = (int(np.rint((side - size) / 2)) for side in padded.shape[:2])
    values = padded[top : top + size, left : left + size].astype(np.float32) / np.float32(255)
    return ((values - np.float32(preprocessing.mean)) / np.float32(preprocessing.std)).transpose(2, 0, 1)


SIZES = [(1, 1), (1, 7), (2, 3), (13, 5), (23, 24), (24, 24), (27, 28), (28, 27), (31, 97), (97, 31), (100, 75)]
CROPS = [(24, 27), (24, 24), (25, 36), (24, 13), (25, 14), (24, 23), (1, 1), (7, 64)]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_reference_bit_for_bit(size, interpolation):
    for crop, resize in CROPS:
        preprocessing = Preprocessing(crop, resize, interpolation=interpolation)
        assert np.array_equal(prepare(noise(*size), preprocessing), reference(noise(*size), preprocessing))


def test_equals_the_reference_at_imagenet_size():
    image = noise(333, 499)
    assert np.array_equal(prepare(image, Preprocessing()), reference(image, Preprocessing()))


def test_every_byte_value_is_normalized_in_float32():
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    image = LoadedImage(Image.fromarray(values))
    preprocessing = Preprocessing(16, 16, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    assert np.array_equal(prepare(image, preprocessing), reference(image, preprocessing))


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


def columns(width: int, height: int) -> LoadedImage:
    """An image whose red tells the column and whose green tells the row, both from 1."""
    rows, places = np.mgrid[1 : height + 1, 1 : width + 1].astype(np.uint8)
    return LoadedImage(Image.fromarray(np.stack([places, rows, 0 * rows], axis=2)))


def seen(image: LoadedImage, image_size: int, resize: int) -> tuple[list[int], list[int]]:
    """The columns and rows of an image that a model sees; 0 is the black around it."""
    result = np.asarray(cropped(image.pixels, Preprocessing(image_size, resize, interpolation="nearest")))
    return result[:, :, 0].max(axis=0).tolist(), result[:, :, 1].max(axis=1).tolist()


@pytest.mark.parametrize(
    ("size", "image_size", "resize", "columns_seen", "rows_seen"),
    [
        ((4, 4), 4, 4, [1, 2, 3, 4], [1, 2, 3, 4]),
        ((6, 4), 4, 4, [2, 3, 4, 5], [1, 2, 3, 4]),
        ((4, 6), 4, 4, [1, 2, 3, 4], [2, 3, 4, 5]),
        ((5, 4), 4, 4, [1, 2, 3, 4], [1, 2, 3, 4]),  # a corner at 0.5 is rounded to 0
        ((7, 4), 4, 4, [3, 4, 5, 6], [1, 2, 3, 4]),  # at 1.5 to 2
        ((4, 9), 4, 4, [1, 2, 3, 4], [3, 4, 5, 6]),  # at 2.5 to 2
        ((2, 2), 4, 2, [0, 1, 2, 0], [0, 1, 2, 0]),
        ((2, 2), 5, 2, [0, 1, 2, 0, 0], [0, 1, 2, 0, 0]),  # the odd column of black is on the right
        ((2, 6), 4, 2, [0, 1, 2, 0], [2, 3, 4, 5]),
        ((6, 2), 4, 2, [2, 3, 4, 5], [0, 1, 2, 0]),
        ((2, 3), 4, 4, [1, 1, 2, 2], [1, 2, 2, 3]),  # 4x6, of which the rows 1 to 5; two rows a row of the image
        ((3, 4), 2, 2, [1, 3], [2, 4]),  # the longer side, 2.67, is cut to 2; its rows show the middle of two
    ],
)
def test_the_crop_is_the_center_of_the_resized_image(size, image_size, resize, columns_seen, rows_seen):
    assert seen(columns(*size), image_size, resize) == (columns_seen, rows_seen)


def test_bilinear_is_the_mean_of_the_pixels_that_become_one():
    """Halved, with antialiasing: weights 1, 3, 3, 1 of the four nearest pixels, cut off at the edge."""
    row = np.array([0, 80, 160, 240], np.uint8)
    image = Image.fromarray(np.repeat(row[None, :, None], 4, axis=0).repeat(3, axis=2))
    result = np.asarray(cropped(image, Preprocessing(image_size=2, resize=2)))
    left = (3 * 0 + 3 * 80 + 160) / 7  # 57.1
    assert result[:, :, 0].tolist() == [[round(left), round(240 - left)]] * 2


def test_every_channel_is_normalized_by_its_own_numbers():
    pixels = np.full((2, 2, 3), (0, 51, 255), np.uint8)
    preprocessing = Preprocessing(2, 2, mean=(0.5, 0.1, 0.25), std=(0.5, 0.2, 0.375))
    result = prepare(LoadedImage(Image.fromarray(pixels)), preprocessing)
    wanted = [
        (np.float32(v) / np.float32(255) - np.float32(m)) / np.float32(s)
        for v, m, s in zip((0, 51, 255), preprocessing.mean, preprocessing.std, strict=True)
    ]
    assert result[:, 0, 0].tolist() == wanted
    assert wanted == pytest.approx([-1, 0.5, 2], rel=1e-6)  # roundings of float32
    assert (result == result[:, :1, :1]).all()


# --- an image that would be too large, of which only the crop is resized


def in_part(image: LoadedImage, preprocessing: Preprocessing) -> np.ndarray:
    return np.asarray(cropped(image.pixels, preprocessing, largest_resized=0))


def whole(image: LoadedImage, preprocessing: Preprocessing) -> np.ndarray:
    return np.asarray(cropped(image.pixels, preprocessing))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "crop", "resize"),
    [
        ((200, 48), 24, 24),
        ((20, 96), 12, 10),
        ((96, 20), 12, 10),
        ((12, 100), 24, 24),
        ((100, 12), 24, 24),
        ((160, 20), 30, 40),
        ((20, 160), 30, 40),
        ((40, 40), 50, 20),
        ((41, 40), 49, 20),
        ((320, 32), 2, 8),
    ],
)
def test_a_part_resized_by_a_power_of_two_is_exactly_that_of_the_whole(size, crop, resize, interpolation):
    preprocessing = Preprocessing(crop, resize, interpolation=interpolation)
    assert np.array_equal(in_part(noise(*size), preprocessing), whole(noise(*size), preprocessing))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(3, 400), (400, 7), (61, 900), (900, 61), (75, 200), (200, 75)])
def test_any_part_is_that_of_the_whole_within_a_level_a_pass(size, interpolation):
    preprocessing = Preprocessing(24, 27, interpolation=interpolation)
    difference = in_part(noise(*size), preprocessing).astype(int) - whole(noise(*size), preprocessing)
    assert np.abs(difference).max() <= 2  # Pillow keeps the corners of the part as float32


def test_an_image_of_the_largest_size_is_resized_as_a_whole():
    image, preprocessing = noise(75, 200), Preprocessing(24, 27)
    exact, part = whole(image, preprocessing), in_part(image, preprocessing)
    assert not np.array_equal(exact, part)  # which tells the two ways apart
    pixels = 27 * 72
    assert np.array_equal(cropped(image.pixels, preprocessing, largest_resized=pixels), exact)
    assert np.array_equal(cropped(image.pixels, preprocessing, largest_resized=pixels - 1), part)


def test_a_sliver_of_any_length_costs_no_more_than_its_crop():
    sliver = LoadedImage(Image.new("RGB", (1, 5_000_000), (255, 0, 0)))  # resized whole it would take a terabyte
    short = LoadedImage(sliver.pixels.crop((0, 0, 1, 1)))
    assert np.array_equal(prepare(sliver, Preprocessing()), prepare(short, Preprocessing()))


def test_the_default_is_imagenets_way_at_any_size():
    assert default_preprocessing() == Preprocessing()
    assert default_preprocessing(299).resize == 341
