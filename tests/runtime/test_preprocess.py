"""What the model sees, to the last bit, whatever the size: against a reference, and worked out by hand."""

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.errors import FeedError, UnknownNameError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.images import LoadedImage
from densenet_deploy.runtime.preprocess import cropped, prepare, prepare_batch

SMALL = Preprocessing(image_size=24, resize=27)


def noise(width: int, height: int, mode: str = "RGB") -> LoadedImage:
    rng, bands = np.random.default_rng([width, height]), len(Image.new(mode, (1, 1)).getbands())
    if mode == "F":
        return LoadedImage(Image.fromarray(rng.integers(0, 65536, (height, width)).astype(np.float32) / 257))
    pixels = rng.integers(0, 256, (height, width, bands), dtype=np.uint8)
    return LoadedImage(Image.fromarray(pixels if bands > 1 else pixels[:, :, 0]))


def new_size(size: tuple[int, int], resize: int | tuple[int, int] | str) -> tuple[int, int]:
    """Width and height of a resized image."""
    width, height = size
    if resize == "none":
        return size
    if isinstance(resize, tuple):
        return resize[::-1]
    return (resize, resize * height // width) if width <= height else (resize * width // height, resize)


def reference(image: LoadedImage, preprocessing: Preprocessing) -> np.ndarray:
    """Resize each band by Pillow, pad and cut by NumPy, normalize in float32."""
    filters = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}
    new, resample = new_size(image.pixels.size, preprocessing.resize), filters[preprocessing.interpolation]
    resized = np.stack([np.asarray(band.resize(new, resample)) for band in image.pixels.split()])
    _, *sides = preprocessing.shape
    lacking = [max(size - side, 0) for size, side in zip(sides, resized.shape[1:], strict=True)]
    padded = np.pad(resized, ((0, 0), *((less // 2, less - less // 2) for less in lacking)))
    top, left = (int(np.rint((side - size) / 2)) for side, size in zip(padded.shape[1:], sides, strict=True))
    values = padded[:, top : top + sides[0], left : left + sides[1]].astype(np.float32) / np.float32(255)
    mean, std = (np.float32(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    return (values - mean) / std


SIZES = [(1, 1), (1, 7), (2, 3), (13, 5), (23, 24), (24, 24), (27, 28), (28, 27), (31, 97), (97, 31), (100, 75)]
CROPS = [(24, 27), (24, 24), (25, 36), (24, 13), (25, 14), (24, 23), (1, 1), (7, 64)]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_reference_bit_for_bit(size, interpolation):
    for crop, resize in CROPS:
        preprocessing = Preprocessing(crop, resize, interpolation=interpolation)
        assert np.array_equal(prepare(noise(*size), preprocessing), reference(noise(*size), preprocessing))


GRAY = {"mean": (0.25,), "std": (0.5,)}
FOUR = {"mean": (0.485, 0.456, 0.406, 0.25), "std": (0.229, 0.224, 0.225, 0.5)}
CHANNELS = {"RGB": {}, "L": GRAY, "F": GRAY, "RGBA": FOUR}
RECTANGLES = [  # crops and sizes to resize to
    *(((24, 16), 27), ((16, 24), 27), ((24, 16), 10), ((1, 7), 5), ((7, 1), 64)),
    *(((24, 16), (27, 18)), ((16, 24), (8, 40)), (24, (24, 24)), (24, (30, 20)), ((5, 9), (1, 1))),
    *(((24, 16), "none"), ((16, 24), "none"), (24, "none"), (1, "none")),
]


@pytest.mark.parametrize("mode", CHANNELS)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_any_channels_sides_and_resizes_equal_the_reference_bit_for_bit(interpolation, mode):
    for size in SIZES:
        for crop, resize in RECTANGLES:
            preprocessing = Preprocessing(crop, resize, interpolation=interpolation, **CHANNELS[mode])
            result = prepare(noise(*size, mode), preprocessing)
            assert result.shape == preprocessing.shape
            assert np.array_equal(result, reference(noise(*size, mode), preprocessing))


def test_a_fourth_channel_does_not_weight_the_others():
    """As opacity it would: a pixel of opacity 0 has no color."""
    pixels = np.array([[[200, 100, 50, 0], [0, 0, 0, 255]]], np.uint8).repeat(2, axis=0)
    preprocessing = Preprocessing(1, (1, 1), (0.0,) * 4, (1 / 255,) * 4)
    result = prepare(LoadedImage(Image.fromarray(pixels)), preprocessing)
    assert result.ravel() == pytest.approx([100, 50, 25, 128], rel=1e-6)


def test_fractions_are_not_rounded():
    pixels = np.array([[0.25, 0.75], [100.125, 254.9]], np.float32)
    preprocessing = Preprocessing(2, "none", (0.0,), (1 / 255,))
    result = prepare(LoadedImage(Image.fromarray(pixels)), preprocessing)
    assert result[0] == pytest.approx(pixels, rel=1e-6)
    halved = prepare(LoadedImage(Image.fromarray(pixels)), Preprocessing(1, 1, (0.0,), (1 / 255,)))
    assert halved.item() == pytest.approx(pixels.mean(), rel=1e-6)


@pytest.mark.parametrize(("mode", "channels"), [("L", 3), ("F", 3), ("RGBA", 3), ("RGB", 1), ("RGB", 4), ("L", 2)])
def test_an_image_of_other_channels_is_refused(mode, channels):
    preprocessing = Preprocessing(24, 27, (0.5,) * channels, (0.5,) * channels)
    with pytest.raises(FeedError) as caught:
        prepare(noise(40, 30, mode), preprocessing)
    assert caught.value.subject == "image"
    assert f"the model takes {channels}" in caught.value.why
    assert f"channels={channels}" in caught.value.fix


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


def seen(
    image: LoadedImage, image_size: int | tuple[int, int], resize: int | tuple[int, int] | str
) -> tuple[list[int], list[int]]:
    """The columns and rows of an image that a model sees; 0 is the black around it."""
    preprocessing = Preprocessing(image_size, resize, interpolation="nearest")
    result = np.asarray(cropped(image, preprocessing))
    assert result.shape[:2] == preprocessing.shape[1:]
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
        ((4, 6), (2, 4), 4, [1, 2, 3, 4], [3, 4]),
        ((4, 6), (4, 2), 4, [2, 3], [2, 3, 4, 5]),
        ((4, 6), (6, 2), "none", [2, 3], [1, 2, 3, 4, 5, 6]),
        ((4, 6), (2, 6), "none", [0, 1, 2, 3, 4, 0], [3, 4]),
        ((2, 4), (2, 4), (2, 4), [1, 1, 2, 2], [2, 4]),  # two columns a column, every second row
        ((2, 4), (2, 2), (2, 4), [1, 2], [2, 4]),
        ((3, 4), 2, 2, [1, 3], [2, 4]),  # the longer side, 2.67, is cut to 2; its rows show the middle of two
    ],
)
def test_the_crop_is_the_center_of_the_resized_image(size, image_size, resize, columns_seen, rows_seen):
    assert seen(columns(*size), image_size, resize) == (columns_seen, rows_seen)


def test_bilinear_is_the_mean_of_the_pixels_that_become_one():
    """Halved, with antialiasing: weights 1, 3, 3, 1 of the four nearest pixels, cut off at the edge."""
    row = np.array([0, 80, 160, 240], np.uint8)
    image = Image.fromarray(np.repeat(row[None, :, None], 4, axis=0).repeat(3, axis=2))
    result = np.asarray(cropped(LoadedImage(image), Preprocessing(image_size=2, resize=2)))
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
    return np.asarray(cropped(image, preprocessing, largest_resized=0))


def whole(image: LoadedImage, preprocessing: Preprocessing) -> np.ndarray:
    return np.asarray(cropped(image, preprocessing))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "crop", "resize"),
    [
        ((200, 48), (24, 50), 24),
        ((48, 200), (50, 24), 24),
        ((40, 80), (12, 30), (20, 40)),
        ((80, 40), (30, 12), (40, 20)),
        ((40, 80), (30, 12), "none"),
        ((40, 80), (90, 12), "none"),
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
    for mode, facts in CHANNELS.items():
        preprocessing = Preprocessing(crop, resize, interpolation=interpolation, **facts)
        image = noise(*size, mode)
        assert in_part(image, preprocessing).shape[:2] == preprocessing.shape[1:]
        assert np.array_equal(in_part(image, preprocessing), whole(image, preprocessing))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(3, 400), (400, 7), (61, 900), (900, 61), (75, 200), (200, 75)])
def test_any_part_is_that_of_the_whole_within_a_level_a_pass(size, interpolation):
    preprocessing = Preprocessing(24, 27, interpolation=interpolation)
    difference = in_part(noise(*size), preprocessing).astype(int) - whole(noise(*size), preprocessing)
    assert np.abs(difference).max() <= 2  # Pillow keeps the corners of the part as float32


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("crop", "resize"), [((24, 17), 27), ((17, 24), (31, 45)), ((60, 9), (31, 45))])
def test_any_part_of_fractions_is_that_of_the_whole(crop, resize, interpolation):
    for size in ((61, 300), (300, 61)):
        preprocessing = Preprocessing(crop, resize, interpolation=interpolation, **GRAY)
        image = noise(*size, "F")
        difference = in_part(image, preprocessing) - whole(image, preprocessing)
        assert np.abs(difference).max() < 0.01  # of 255, without rounding to levels


def test_an_image_of_the_largest_size_is_resized_as_a_whole():
    image, preprocessing = noise(75, 200), Preprocessing(24, 27)
    exact, part = whole(image, preprocessing), in_part(image, preprocessing)
    assert not np.array_equal(exact, part)  # which tells the two ways apart
    pixels = 27 * 72
    assert np.array_equal(cropped(image, preprocessing, largest_resized=pixels), exact)
    assert np.array_equal(cropped(image, preprocessing, largest_resized=pixels - 1), part)


@pytest.mark.parametrize("resize", [(48, 27), "none"])
def test_the_largest_size_counts_the_pixels_of_any_resize(resize):
    image, preprocessing = noise(75, 200), Preprocessing((24, 20), resize)
    exact, part = whole(image, preprocessing), in_part(image, preprocessing)
    assert np.array_equal(exact, part) == (resize == "none")
    pixels = 48 * 27 if resize != "none" else 75 * 200
    assert np.array_equal(cropped(image, preprocessing, largest_resized=pixels), exact)
    assert np.array_equal(cropped(image, preprocessing, largest_resized=pixels - 1), part)


def test_the_limit_is_passed_on_to_each_of_four_channels():
    image, preprocessing = noise(75, 200, "RGBA"), Preprocessing(24, 27, **FOUR)
    bands = [in_part(LoadedImage(band), Preprocessing(24, 27, **GRAY)) for band in image.pixels.split()]
    assert np.array_equal(in_part(image, preprocessing), np.stack(bands, axis=2))
    assert not np.array_equal(in_part(image, preprocessing), whole(image, preprocessing))


def test_a_sliver_of_any_length_costs_no_more_than_its_crop():
    sliver = LoadedImage(Image.new("RGB", (1, 5_000_000), (255, 0, 0)))  # resized whole it would take a terabyte
    short = LoadedImage(sliver.pixels.crop((0, 0, 1, 1)))
    assert np.array_equal(prepare(sliver, Preprocessing()), prepare(short, Preprocessing()))
