"""Fast decoding: the same sizes and crop, fewer pixels decoded, only where enough are left; exact otherwise."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.images import load_image
from densenet_deploy.runtime.preprocess import nearest_pixels, normalized, prepare, read_input

PREPROCESSING = Preprocessing(28, 32)


def photo(width: int, height: int, mode: str = "RGB", orientation: int | None = None, form: str = "JPEG") -> bytes:
    """A smooth image: what resizing in another way changes little."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    rough = np.random.default_rng([width, height]).integers(0, 256, (5, 7, bands), np.uint8)
    image = Image.fromarray(rough if bands > 1 else rough[:, :, 0], mode).resize((width, height), Image.BICUBIC)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, form, **({"quality": 95, "exif": exif} if form == "JPEG" else {}))
    return file.getvalue()


def decoded(data: bytes, preprocessing: Preprocessing, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """The size at which `read_input` decodes a JPEG in fast mode."""
    sizes = []
    original = JpegImagePlugin.JpegImageFile.load

    def load(self):
        sizes.append(self.size)
        return original(self)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", load)
    read_input(data, preprocessing, fast=True)
    return sizes[0]


@pytest.mark.parametrize(
    ("size", "resize", "decoded_at"),
    [
        ((127, 127), 32, (127, 127)),  # at half of it 63 pixels would be left, one less than twice 32
        ((128, 128), 32, (64, 64)),
        ((128, 127), 32, (128, 127)),
        ((129, 128), 32, (65, 64)),
        ((255, 255), 32, (128, 128)),
        ((256, 256), 32, (64, 64)),
        ((512, 1024), 32, (64, 128)),
        ((1024, 600), 32, (128, 75)),  # 75 rows for 32; at an eighth of 1024x511 it would be 64
        ((1024, 1024), 32, (128, 128)),  # an eighth is the least there is
        ((64, 64), "none", (64, 64)),
        ((640, 640), (32, 64), (160, 160)),  # 64 columns need 128
        ((1, 900), 32, (1, 900)),
    ],
)
def test_a_jpeg_is_decoded_with_at_least_twice_the_pixels(monkeypatch, size, resize, decoded_at):
    preprocessing = Preprocessing(28, resize)
    assert decoded(photo(*size), preprocessing, monkeypatch) == decoded_at


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_turned_jpeg_is_turned_and_cropped_as_exactly(monkeypatch, orientation):
    data = photo(640, 400, orientation=orientation)
    loaded = load_image(data, needed=lambda size: (size[0] // 2, size[1] // 2))
    upright = (640, 400) if orientation in (1, 3) else (400, 640)
    assert (loaded.full_size, loaded.size) == (upright, (upright[0] // 2, upright[1] // 2))
    exact, fast = (read_input(data, PREPROCESSING, fast=is_fast).pixels for is_fast in (False, True))
    assert not np.array_equal(exact, fast)
    assert np.abs(exact - fast).max() < 0.2  # of a range of 4.7: smooth colors


@pytest.mark.parametrize("size", [(1919, 1079), (1921, 1083), (999, 333)])
def test_sizes_that_no_scale_divides_keep_their_crop(size):
    data = photo(*size)
    exact, fast = (read_input(data, PREPROCESSING, fast=is_fast).pixels for is_fast in (False, True))
    assert exact.shape == fast.shape
    assert np.abs(exact - fast).max() < 0.25


@pytest.mark.parametrize(
    ("mode", "channels", "form"), [("L", 1, "JPEG"), ("L", 3, "JPEG"), ("CMYK", 3, "JPEG"), ("RGBA", 4, "PNG")]
)
def test_every_mode_is_decoded_fast(mode, channels, form):
    facts = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    exact, fast = (
        read_input(photo(512, 512, mode, form=form), Preprocessing(28, 32, **facts), fast=is_fast).pixels
        for is_fast in (False, True)
    )
    assert not np.array_equal(exact, fast)
    assert np.abs(exact - fast).max() < 0.3


@pytest.mark.parametrize(
    ("data", "preprocessing"),
    [
        (photo(127, 127), PREPROCESSING),
        (photo(127, 127, form="PNG"), PREPROCESSING),
        (photo(900, 900), Preprocessing(28, 32, interpolation="nearest")),
        (photo(900, 900), Preprocessing(28, "none")),
    ],
    ids=["a small JPEG", "a small PNG", "nearest", "no resizing"],
)
def test_what_would_not_be_faster_stays_exact(data, preprocessing):
    exact, fast = (read_input(data, preprocessing, fast=is_fast).pixels for is_fast in (False, True))
    # the part is computed in another way, which may round a level differently in each pass
    assert np.abs(exact - fast).max() <= 2 / 255 / 0.224 + 1e-6


def test_exact_is_the_default():
    data = photo(640, 400)
    np.testing.assert_array_equal(read_input(data, PREPROCESSING).pixels, prepare(load_image(data), PREPROCESSING))
    assert load_image(data).full_size is None


def test_pixels_and_normalized_values_turn_into_each_other():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    values = normalized(pixels, PREPROCESSING)
    np.testing.assert_array_equal(nearest_pixels(values, PREPROCESSING), pixels)
    assert nearest_pixels(values * 100, PREPROCESSING).dtype == np.uint8
    for image, expected in zip(pixels, values, strict=True):
        plain = Preprocessing((5, 7), "none")
        np.testing.assert_array_equal(prepare(load_image(image), plain), expected)
        taken = Preprocessing((5, 7), "none", dtype="uint8")
        np.testing.assert_array_equal(prepare(load_image(image), taken), image)


def test_sixteen_bits_are_rounded_for_a_graph_of_pixels_and_it_is_noted():
    values = np.array([[0, 128, 129, 65535]], np.uint16)  # 257 a level
    taken = Preprocessing((1, 4), "none", (0.5,), (0.25,), dtype="uint8")
    found = read_input(values, taken)
    assert found.pixels.ravel().tolist() == [0, 0, 1, 255]
    assert found.notes == ("values are rounded to 8 bits",)
    plain = read_input(values, Preprocessing((1, 4), "none", (0.5,), (0.25,)))
    assert (plain.pixels.dtype, plain.notes) == (np.float32, ())


def test_a_classifier_says_whether_it_decodes_fast(tiny_onnx):
    data = photo(640, 480)
    with Classifier.open(tiny_onnx) as exact, Classifier.open(tiny_onnx, fast=True) as fast:
        assert (exact.fast, fast.fast) == (False, True)
        np.testing.assert_array_equal(fast.prepare(data).pixels, read_input(data, fast.preprocessing, fast=True).pixels)
        assert fast(fast.prepare(data)) == fast(data)
        assert exact(exact.prepare(data)) == exact(data)
