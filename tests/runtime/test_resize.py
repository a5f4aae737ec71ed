"""A part of a resized image: the bits of the whole, from fewer pixels; and where that is not so, the whole."""

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.runtime import resize
from densenet_deploy.runtime.images import LoadedImage
from densenet_deploy.runtime.resize import resized_part

BILINEAR, BICUBIC, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST


def pixels(width: int, height: int) -> np.ndarray:
    """Noise in the upper half, ties below it: black and white rows and columns in turn."""
    image = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[height // 2 :: 2] = 255
    image[height // 2 + 1 :: 2, ::2] = 0
    return image


def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes that Pillow resizes to, as they come."""
    sizes: list[tuple[int, int]] = []
    original = Image.Image.resize

    def resized(self, size, *args):
        sizes.append(size)
        return original(self, size, *args)

    monkeypatch.setattr(Image.Image, "resize", resized)
    return sizes


@pytest.mark.parametrize("resample", [BILINEAR, BICUBIC])
@pytest.mark.parametrize(
    ("old", "new", "part", "widened"),
    [
        ((1920, 1080), (455, 256), (115, 16, 339, 240), (273, 224)),  # 1920/455 = 384/91: columns 91 to 364
        ((1080, 1920), (256, 455), (16, 115, 240, 339), (224, 273)),
        ((640, 480), (341, 256), (58, 16, 282, 240), (341, 224)),  # 341 is odd and has no divisor in common with 640
        ((480, 640), (256, 341), (16, 58, 240, 282), (224, 341)),
        ((512, 512), (256, 256), (16, 16, 240, 240), (224, 224)),
        ((768, 600), (256, 200), (60, 7, 100, 190), (40, 200)),  # 600/200 = 3: every corner is whole
        ((300, 300), (280, 280), (28, 28, 252, 252), (224, 224)),  # 15/14: corners at multiples of 7
        ((97, 101), (90, 94), (33, 35, 57, 59), (90, 94)),
    ],
)
def test_only_what_exact_corners_enclose_is_computed_and_its_bits_are_those_of_the_whole(
    monkeypatch, old, new, part, widened, resample
):
    frame = pixels(*old)
    whole = np.asarray(Image.fromarray(frame).resize(new, resample).crop(part))
    sizes = computed(monkeypatch)
    for image in (LoadedImage(frame), LoadedImage(Image.fromarray(frame)), LoadedImage(np.asfortranarray(frame))):
        np.testing.assert_array_equal(np.asarray(resized_part(image, new, part, resample)), whole)
        assert sizes[-1] == widened if old != (768, 600) else sizes[-1] == (40, 183)


@pytest.mark.parametrize("seed", range(40))
def test_any_part_of_any_image_is_that_of_the_whole(seed):
    rng = np.random.default_rng(seed)
    old = tuple(map(int, rng.choice([8, 16, 20, 31, 64, 100, 120, 256, 300, 480], 2)))
    new = tuple(map(int, rng.choice([7, 8, 12, 24, 32, 45, 60, 64, 90, 100, 128], 2)))
    left, top = (int(rng.integers(0, side)) for side in new)
    right, bottom = (int(rng.integers(start + 1, side + 1)) for start, side in zip((left, top), new, strict=True))
    part, frame = (left, top, right, bottom), pixels(*old)
    for resample in (BILINEAR, BICUBIC, NEAREST):
        whole = np.asarray(Image.fromarray(frame).resize(new, resample).crop(part))
        for image in (LoadedImage(frame), LoadedImage(Image.fromarray(frame))):
            np.testing.assert_array_equal(np.asarray(resized_part(image, new, part, resample)), whole)


@pytest.mark.parametrize("resample", [BILINEAR, BICUBIC])
@pytest.mark.parametrize(
    ("height", "threads", "rows", "columns"),
    [
        (512, 1, (512,), (455,)),
        (512, 2, (256, 256), (227, 228)),
        (512, 3, (256, 256), (227, 228)),  # 2**19 pixels are enough for two
        (511, 2, (511,), (455,)),
        (767, 3, (383, 384), (227, 228)),
        (768, 3, (256, 256, 256), (151, 152, 152)),
    ],
)
def test_bands_of_a_large_image_have_the_bits_of_the_whole(monkeypatch, height, threads, rows, columns, resample):
    image, new = Image.fromarray(pixels(1024, height)), (455, height // 2)
    part = (115, 0, 339, new[1])
    whole = np.asarray(image.resize(new, resample).crop(part))
    sizes = computed(monkeypatch)
    found = resized_part(LoadedImage(image), new, part, resample, threads=threads)
    assert sorted(sizes) == sorted([*((455, size) for size in rows), *((size, new[1]) for size in columns)])
    np.testing.assert_array_equal(np.asarray(found), whole)


@pytest.mark.parametrize(
    ("image", "new", "resample"),
    [
        (Image.fromarray(pixels(64, 64)), (32, 32), NEAREST),
        (Image.fromarray(pixels(64, 64)[:, :, 0].astype(np.float32)), (32, 32), BILINEAR),
        (Image.fromarray(pixels(64, 128)), (60, 119), BILINEAR),  # 9 rows lost for 4 columns
    ],
)
def test_what_keeps_no_bits_in_part_is_resized_as_a_whole(monkeypatch, image, new, resample):
    sizes = computed(monkeypatch)
    part = (8, 8, 24, 24)
    found = np.asarray(resized_part(LoadedImage(image), new, part, resample))
    assert sizes == [new]
    np.testing.assert_array_equal(found, np.asarray(image.resize(new, resample).crop(part)))


def test_one_row_fewer_lost_and_the_part_is_enough(monkeypatch):
    sizes = computed(monkeypatch)
    frame = LoadedImage(pixels(64, 128))
    resized_part(frame, (60, 120), (0, 0, 15, 15), BILINEAR)  # 8 rows lost for 4 columns: 16/15 both ways
    assert sizes == [(15, 20), (15, 15)]  # the first 20 rows hold all that the pixels of 15 see


@pytest.mark.parametrize(("largest", "steps"), [(240 * 160, 2), (240 * 160 - 1, 1)])
def test_where_the_whole_would_be_too_large_the_part_alone_is_computed_in_one_step(monkeypatch, largest, steps):
    frame, part = LoadedImage(Image.fromarray(pixels(480, 320))), (20, 30, 120, 60)
    exact = np.asarray(resized_part(frame, (240, 160), part, BILINEAR)).astype(int)
    sizes = computed(monkeypatch)
    found = np.asarray(resized_part(frame, (240, 160), part, BILINEAR, largest_resized=largest))
    assert (len(sizes), sizes[-1]) == (steps, (100, 30))
    assert np.abs(found - exact).max() <= 1


def test_an_image_of_its_size_is_cut_without_resizing(monkeypatch):
    sizes, frame = computed(monkeypatch), pixels(40, 30)
    for image in (LoadedImage(frame), LoadedImage(Image.fromarray(frame))):
        found = np.asarray(resized_part(image, (40, 30), (3, 5, 20, 29), BILINEAR))
        np.testing.assert_array_equal(found, frame[5:29, 3:20])
    assert sizes == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "exact"),
    [
        (2**24 - 1, 2**12, (0, 2**11)),  # a corner at half of that, with 24 bits
        (2**25 - 1, 2**12, (0, 2**12)),  # with 25, one too many for float32
    ],
)
def test_corners_beyond_float32_are_not_exact(old, new, exact):
    assert resize._exact_span(old, new, 0, 2**11, BILINEAR) == exact


def test_a_weight_on_the_edge_of_rounding_is_not_trusted(monkeypatch):
    assert resize._exact_span(512, 256, 0, 100, BILINEAR) == (0, 100)
    resize._exact_span.cache_clear()
    monkeypatch.setattr(resize, "_WEIGHT_BITS", 2)  # 1/8 and 3/8, in quarters, lie halfway between two numbers
    assert resize._exact_span(512, 256, 0, 100, BILINEAR) == (0, 256)
    for bits, end in ((7, 256), (8, 100)):  # 111, 29, -9 and -3 of 256: with 7 bits all are halfway
        resize._exact_span.cache_clear()
        monkeypatch.setattr(resize, "_WEIGHT_BITS", bits)
        assert resize._exact_span(512, 256, 0, 100, BICUBIC) == (0, end)
    resize._exact_span.cache_clear()


def test_the_weights_are_those_of_the_filters():
    distances = np.array([0, 0.5, 1, 1.5, 2, 2.5])
    assert resize._filter(distances, BILINEAR).tolist() == [1, 0.5, 0, 0, 0, 0]
    assert resize._filter(distances, BICUBIC).tolist() == [1, 0.5625, 0, -0.0625, 0, 0]


def test_fast_averages_blocks_from_twice_the_gap_on(monkeypatch):
    reduced: list[tuple[int, int]] = []
    original = Image.Image.reduce
    monkeypatch.setattr(
        Image.Image, "reduce", lambda self, factor, box: (reduced.append(factor), original(self, factor, box))[1]
    )
    for side in (159, 160):
        frame = pixels(side, side)
        found = np.asarray(resized_part(LoadedImage(frame), (40, 40), (0, 0, 40, 40), BILINEAR, fast=True)).astype(int)
        exact = np.asarray(resized_part(LoadedImage(frame), (40, 40), (0, 0, 40, 40), BILINEAR))
        assert np.abs(found - exact).mean() < 12  # of noise, which averages treat worst
    assert reduced == [(2, 2)]
