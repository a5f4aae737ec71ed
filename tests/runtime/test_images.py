"""Images are untrusted: each kind becomes RGB by its stated rule, or is refused with a reason and at little cost."""

import errno
import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops

from densenet_deploy.errors import FeedError, ImageError, InputError, ResourceError
from densenet_deploy.runtime.images import MOST_PIXELS, LoadedImage, load_image
from tests.runtime.dicoms import dataset_of, dicom, written
from tests.runtime.tiffs import ALPHA, UNSPECIFIED, tiff


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def image(width: int = 40, height: int = 30) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def png(width: int, height: int, bits: int, color_type: int, rows: bytes) -> bytes:
    """A PNG written by hand, for the kinds that Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def colour_of(data: bytes) -> tuple[int, ...]:
    pixel = load_image(data).pixels.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


# --- what is taken


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_give_back_the_very_pixels(form):
    options = {"lossless": True} if form == "WEBP" else {}
    loaded = load_image(encoded(image(), form, **options))
    assert np.array_equal(loaded.pixels, image())
    assert loaded.notes == ()


def test_jpeg_is_decoded_as_pillow_does_without_draft():
    data = encoded(image(), "JPEG")
    assert np.array_equal(load_image(data).pixels, Image.open(io.BytesIO(data)))


def test_a_path_its_text_its_bytes_and_a_stream_are_the_same_image(tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes(encoded(image()))
    with path.open("rb") as file:
        file.seek(5)  # read from the start wherever it stood
        sources = [path, str(path), path.read_bytes(), file]
        assert all(np.array_equal(load_image(source).pixels, image()) for source in sources)
        assert not file.closed


def test_a_pipe_can_be_read():
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as file:
        file.write(encoded(image()))
    with os.fdopen(read_end, "rb") as file:
        assert np.array_equal(load_image(file).pixels, image())


@pytest.mark.parametrize("name", [b"two words.png", b"two\nlines.png", "🐈.png".encode(), b"\xff\xfe.png", b"cat.jpg"])
def test_neither_name_nor_suffix_matters(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(encoded(image()))
    assert np.array_equal(load_image(path).pixels, image())


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_slivers_load(size):
    assert load_image(encoded(Image.new("RGB", size))).pixels.size == size


def test_a_camera_frame_is_an_image():
    frame = np.asarray(image())
    assert np.array_equal(LoadedImage.from_array(frame).pixels, frame)


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.float32),
        np.zeros((8, 8), np.int16),
        np.zeros((8, 8), ">u2"),
        np.zeros((8, 8, 3), np.uint16),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((8, 8, 5), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((0, 8), np.uint8),
        np.zeros((0, 8), np.uint16),
        np.zeros(8, np.uint8),
        np.zeros((2, 8, 3, 3), np.uint8),
        [[1, 2, 3]],
        7,
    ],
)
def test_another_array_is_refused(frame):
    with pytest.raises(FeedError) as caught:
        load_image(frame)
    assert caught.value.subject == "image"


@pytest.mark.parametrize(
    ("shape", "dtype", "fix"),
    [
        ((3, 8, 9), np.uint8, "transpose it"),
        ((3, 8, 9), np.float32, "as uint8"),
        ((3, 8), np.float32, "as uint8"),
        ((4, 8, 9), np.uint8, "as uint8"),
        ((3, 8, 9, 1), np.uint8, "as uint8"),
        ((2, 8, 9, 3), np.uint8, "a list of images"),
        ((3, 8, 9, 3), np.uint8, "a list of images"),
        ((2, 8, 9, 3), np.float32, "as uint8"),
        ((2, 8, 9, 4), np.uint8, "as uint8"),
        ((2, 8, 9, 3, 3), np.uint8, "as uint8"),
        ((1, 2, 8, 9, 3), np.uint8, "as uint8"),
    ],
)
def test_what_an_array_looks_like_is_in_the_advice(shape, dtype, fix):
    with pytest.raises(FeedError) as caught:
        LoadedImage.from_array(np.zeros(shape, dtype))
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("shape", "mode", "channels"),
    [((8, 9), "L", 1), ((8, 9, 1), "L", 1), ((8, 9, 3), "RGB", 3), ((8, 9, 4), "RGBA", 4), ((3, 4, 3), "RGB", 3)],
)
def test_an_array_is_taken_with_the_channels_that_it_has(shape, mode, channels):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for asked in (1, 3, 4):
        loaded = load_image(array, asked)
        assert (loaded.pixels.mode, loaded.channels, loaded.notes) == (mode, channels, ())
        np.testing.assert_array_equal(np.asarray(loaded.pixels), array.reshape(np.asarray(loaded.pixels).shape))


@pytest.mark.parametrize("shape", [(256, 256), (256, 256, 1)])
def test_an_array_of_16_bits_keeps_them_all(shape):
    loaded = LoadedImage.from_array(np.arange(65536, dtype=np.uint16).reshape(shape))
    values = np.asarray(loaded.pixels)
    assert (loaded.pixels.mode, loaded.channels, values.shape) == ("F", 1, (256, 256))
    assert len(np.unique(values)) == 65536
    assert (values.min(), values.max(), values[128, 128]) == (0, 255, 128)  # 257 levels to one of 255


def test_an_image_that_was_loaded_before_is_itself():
    loaded = LoadedImage(image())
    assert all(load_image(loaded, channels) is loaded for channels in (1, 3, 4))


# --- how it becomes RGB: golden values, worked out by hand


@pytest.mark.parametrize(
    ("mode", "colour", "form", "rgb"),
    [
        ("1", 1, "PNG", (255, 255, 255)),
        ("L", 77, "PNG", (77, 77, 77)),
        ("LA", (77, 10), "PNG", (77, 77, 77)),
        ("RGBA", (10, 20, 30, 0), "PNG", (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), "TIFF", (10, 20, 30)),
        ("I;16", 0x8001, "PNG", (0x80, 0x80, 0x80)),
        ("I;16", 0x8001, "TIFF", (0x80, 0x80, 0x80)),
        ("I;16B", 0x8001, "TIFF", (0x80, 0x80, 0x80)),
        ("I;16", 0x7FFF, "PNG", (0x7F, 0x7F, 0x7F)),
        ("F", 0.0, "TIFF", (0, 0, 0)),
        ("F", 0.5, "TIFF", (128, 128, 128)),  # 127.5 rounds to even
        ("F", 0.3, "TIFF", (76, 76, 76)),  # 76.5 in float32 rounds to even
        ("F", 1.0, "TIFF", (255, 255, 255)),
        ("CMYK", (255, 0, 51, 51), "TIFF", (0, 204, 163)),  # 204·(255-51)/255 = 163.2
    ],
)
def test_every_mode_has_its_stated_value(mode, colour, form, rgb):
    assert colour_of(encoded(Image.new(mode, (2, 2), colour), form)) == rgb


def palette_image(mode: str = "P") -> Image.Image:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return image.convert(mode) if mode != "P" else image


@pytest.mark.parametrize(
    ("form", "transparency"),
    [("PNG", None), ("PNG", 1), ("PNG", b"\x80\x00"), ("GIF", None), ("GIF", 1)],  # an index, or PNG's table of alphas
)
def test_a_palette_gives_its_colours_even_where_transparent(form, transparency):
    options = {} if transparency is None else {"transparency": transparency}
    loaded = load_image(encoded(palette_image(), form, **options))
    assert loaded.pixels.getpixel((0, 0)) == (10, 20, 30)
    assert ("transparency is dropped" in loaded.notes) == (transparency is not None)


def test_a_palette_with_alpha_in_tiff_gives_its_colours():
    image = palette_image("PA")
    assert colour_of(encoded(image, "TIFF")) == (10, 20, 30)


def test_16_bit_rgb_keeps_the_high_bytes():
    row = b"\0" + struct.pack(">HHH", 0x8001, 0x40FF, 0xFFFF)
    assert colour_of(png(1, 1, 16, 2, row)) == (0x80, 0x40, 0xFF)


def test_cmyk_jpeg_follows_adobes_inversion():
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert colour_of(data) == pytest.approx((255, 0, 0), abs=2)  # JPEG rounding, twice
    assert load_image(data).notes == ("CMYK is converted without its colour profile",)


def test_ycck_jpeg_follows_adobes_inversion():
    """Store luma 128 and neutral chroma as the "C, M, Y" of an Adobe CMYK file, then mark the file as YCCK."""
    data = encoded(Image.new("CMYK", (16, 16), (255 - 100, 255 - 128, 255 - 128, 0)), "JPEG", quality=100)
    adobe = data.index(b"Adobe")
    assert data[adobe + 11] == 0  # no transform: plain CMYK
    ycck = data[: adobe + 11] + b"\x02" + data[adobe + 12 :]
    # Y=100, Cb=Cr=128 is stored C=M=Y=155, inverted 100, K=0: 255 - 100 = 155.
    assert colour_of(ycck) == pytest.approx((155, 155, 155), abs=2)  # JPEG rounding, twice


@pytest.mark.parametrize(
    ("mode", "colour", "word"),
    [("I", 70_000, "32-bit"), ("F", 255.0, "255"), ("F", -0.1, "-0.1"), ("F", float("nan"), "nan")],
)
def test_values_without_a_known_white_are_refused(mode, colour, word):
    with pytest.raises(ImageError) as caught:
        load_image(encoded(Image.new(mode, (2, 2), colour), "TIFF"))
    assert caught.value.subject.endswith(" bytes")
    assert word in caught.value.why


@pytest.mark.parametrize("values", [(-0.1, 0.5), (0.5, 1.1), (-0.1, 1.1), (0.5, float("nan"))])
def test_one_float_outside_is_enough(values):
    pixels = Image.fromarray(np.array([values], np.float32))
    with pytest.raises(ImageError) as caught:
        load_image(pixels)
    assert caught.value.subject == "image"


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_16_bit_says_so(mode):
    notes = load_image(encoded(Image.new(mode, (2, 2), 500), "TIFF")).notes
    assert notes == ("16-bit values are cut to their high byte",)


# --- how it becomes one channel


@pytest.mark.parametrize(
    ("mode", "colour", "form", "value", "notes"),
    [
        ("1", 1, "PNG", 255, ()),
        ("1", 0, "PNG", 0, ()),
        ("L", 77, "PNG", 77, ()),
        ("LA", (77, 10), "PNG", 77, ("transparency is dropped",)),
        ("RGB", (255, 0, 0), "PNG", 76, ("colors are converted to gray",)),  # 0.299·255 = 76.2
        ("RGB", (0, 255, 0), "PNG", 150, ("colors are converted to gray",)),  # 149.7
        ("RGB", (0, 0, 255), "PNG", 29, ("colors are converted to gray",)),  # 29.07
        ("RGBA", (0, 0, 255, 9), "PNG", 29, ("transparency is dropped", "colors are converted to gray")),
        (
            "CMYK",
            (0, 255, 255, 0),
            "TIFF",
            76,
            ("CMYK is converted without its colour profile", "colors are converted to gray"),
        ),
        ("I;16", 0x8001, "PNG", 0x8001 / 257, ()),
        ("I;16", 0x8001, "TIFF", 0x8001 / 257, ()),
        ("I;16B", 0x8001, "TIFF", 0x8001 / 257, ()),
        ("I;16", 0xFFFF, "PNG", 255, ()),
        ("F", 0.3, "TIFF", 76.5, ()),  # not rounded
        ("F", 1.0, "TIFF", 255, ()),
    ],
)
def test_every_mode_has_its_stated_gray(mode, colour, form, value, notes):
    loaded = load_image(encoded(Image.new(mode, (2, 2), colour), form), channels=1)
    assert loaded.pixels.mode == ("L" if isinstance(value, int) and mode not in ("I;16", "I;16B", "F") else "F")
    assert loaded.pixels.getpixel((0, 0)) == pytest.approx(value, rel=1e-6)  # float32
    assert (loaded.channels, loaded.notes) == (1, notes)


def test_a_file_of_16_bits_keeps_them_all_in_one_channel():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for form in ("PNG", "TIFF"):
        found = np.asarray(load_image(encoded(Image.fromarray(values), form), channels=1).pixels)
        np.testing.assert_array_equal(np.round(found * np.float32(257)).astype(np.uint16), values)


def test_colors_become_gray_as_pillow_makes_them():
    expected = np.asarray(image().convert("L"))
    np.testing.assert_array_equal(load_image(encoded(image()), channels=1).pixels, expected)
    np.testing.assert_array_equal(load_image(image(), channels=1).pixels, expected)


@pytest.mark.parametrize("transparency", [None, 1, b"\x80\x00"])
def test_a_palette_becomes_the_luma_of_its_colours(transparency):
    options = {} if transparency is None else {"transparency": transparency}
    loaded = load_image(encoded(palette_image(), "PNG", **options), channels=1)
    assert loaded.pixels.getpixel((0, 0)) == 18  # 0.299·10 + 0.587·20 + 0.114·30 = 18.15
    lost = () if transparency is None else ("transparency is dropped",)
    assert loaded.notes == (*lost, "colors are converted to gray")


def test_gray_with_a_transparent_value_is_gray():
    loaded = load_image(encoded(Image.new("L", (2, 2), 7), transparency=7), channels=1)
    assert (loaded.pixels.getpixel((0, 0)), loaded.notes) == (7, ("transparency is dropped",))


@pytest.mark.parametrize(("mode", "colour"), [("I", 70_000), ("F", 255.0), ("F", float("nan"))])
def test_values_without_a_known_white_are_refused_in_one_channel_too(mode, colour):
    with pytest.raises(ImageError):
        load_image(encoded(Image.new(mode, (2, 2), colour), "TIFF"), channels=1)


# --- how it becomes four channels

FOUR = np.random.default_rng(1).integers(0, 256, (6, 5, 4), np.uint8)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_four_channels_come_from_an_image_with_opacity(form):
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    loaded = load_image(encoded(Image.fromarray(FOUR), form, **options), channels=4)
    assert (loaded.pixels.mode, loaded.channels, loaded.notes) == ("RGBA", 4, ())
    np.testing.assert_array_equal(loaded.pixels, FOUR)


@pytest.mark.parametrize("extra", [UNSPECIFIED, ALPHA, None])
def test_four_channels_come_from_a_tiff_that_stores_four_whatever_the_fourth_means(extra):
    loaded = load_image(tiff(FOUR, extra), channels=4)
    assert (loaded.pixels.mode, loaded.notes) == ("RGBA", ())
    np.testing.assert_array_equal(loaded.pixels, FOUR)


def test_a_fourth_channel_that_is_not_opacity_is_dropped_by_another_name():
    dropped = "channels after red, green and blue are dropped"
    assert load_image(tiff(FOUR, UNSPECIFIED)).notes == (dropped,)
    assert load_image(tiff(FOUR, ALPHA)).notes == ("transparency is dropped",)
    assert load_image(tiff(FOUR, UNSPECIFIED), channels=1).notes == (dropped, "colors are converted to gray")
    np.testing.assert_array_equal(load_image(tiff(FOUR)).pixels, FOUR[:, :, :3])
    five = np.concatenate([FOUR, FOUR[:, :, :1]], axis=2)
    assert load_image(tiff(five)).notes == (dropped,)
    np.testing.assert_array_equal(load_image(tiff(five)).pixels, FOUR[:, :, :3])
    assert load_image(tiff(FOUR[:, :, :3])).notes == ()


@pytest.mark.parametrize("extra", [UNSPECIFIED, ALPHA])
def test_four_channels_of_16_bits_keep_the_high_bytes_and_say_so(extra):
    loaded = load_image(tiff(FOUR.astype(np.uint16) << 8 | 0x80, extra), channels=4)
    np.testing.assert_array_equal(loaded.pixels, FOUR)
    assert loaded.notes == ("16-bit values are cut to their high byte",)


def test_channels_may_be_stored_one_after_the_other_unless_pillow_reads_them_wrongly():
    np.testing.assert_array_equal(load_image(tiff(FOUR[:, :, :3], is_planar=True)).pixels, FOUR[:, :, :3])
    np.testing.assert_array_equal(load_image(tiff(FOUR, ALPHA, is_planar=True), channels=4).pixels, FOUR)
    for bands in (3, 4):
        with pytest.raises(ImageError) as caught:
            load_image(tiff(FOUR[:, :, :bands].astype(np.uint16), ALPHA, is_planar=True), channels=bands)
        assert "one after the other" in caught.value.why


@pytest.mark.parametrize(
    ("form", "image"),
    [("PNG", palette_image()), ("GIF", palette_image()), ("TIFF", palette_image("PA"))],
)
def test_a_palette_with_transparency_is_its_colours_and_opacity(form, image):
    options = {} if image.mode == "PA" else {"transparency": 1}
    loaded = load_image(encoded(image, form, **options), channels=4)
    opacity = 255 if image.mode == "PA" else 0
    assert (loaded.pixels.getpixel((0, 0)), loaded.notes) == ((10, 20, 30, opacity), ())


@pytest.mark.parametrize(
    ("mode", "form", "channels"),
    [
        ("RGB", "PNG", 4),
        ("L", "PNG", 4),
        ("LA", "PNG", 4),
        ("1", "PNG", 4),
        ("P", "PNG", 4),
        ("I;16", "PNG", 4),
        ("F", "TIFF", 4),
        ("CMYK", "TIFF", 4),
        ("CMYK", "JPEG", 4),
        *(("RGB", "PNG", channels) for channels in (0, 2, 5)),
        ("LA", "PNG", 2),
    ],
)
def test_channels_that_the_image_does_not_store_are_refused(mode, form, channels):
    data = encoded(Image.new(mode, (2, 2)), form)
    with pytest.raises(ImageError) as caught:
        load_image(data, channels)
    assert caught.value.subject == f"{len(data)} bytes"
    assert f"has the channels {', '.join(Image.new(mode, (1, 1)).getbands())}, " in caught.value.why
    assert load_image(data).channels == 3


def test_colors_with_a_transparent_one_are_three_channels():
    with pytest.raises(ImageError):
        load_image(encoded(Image.new("RGB", (2, 2)), transparency=(0, 0, 0)), channels=4)


@pytest.mark.parametrize("color_type", [2, 4, 6])
def test_16_bits_of_a_png_with_colors_or_opacity_are_cut_and_that_is_said(color_type):
    samples = {2: 3, 4: 2, 6: 4}[color_type]
    data = png(1, 1, 16, color_type, b"\0" + struct.pack(f">{samples}H", *[0x8001] * samples))
    for channels in (1, 3):
        loaded = load_image(data, channels)
        assert "16-bit values are cut to their high byte" in loaded.notes
        assert loaded.pixels.getpixel((0, 0)) == (0x80 if channels == 1 else (0x80,) * 3)


# --- DICOM (see test_dicom.py for what is shown)

RAMP = np.array([[0, 10, 50, 90, 100, 255]], np.uint8)
LEVELS = np.arange(0, 65536, 97, dtype=np.uint16)[None]
COLORS = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)


def test_gray_of_a_dicom_file_stays_fractions_for_a_model_of_one_channel():
    loaded = load_image(dicom(LEVELS), channels=1)
    assert (loaded.pixels.mode, loaded.channels, len(loaded.notes)) == ("F", 1, 1)
    np.testing.assert_allclose(loaded.pixels, LEVELS / 257, rtol=1e-6)  # float32


@pytest.mark.parametrize(("pixels", "note"), [(RAMP, ()), (LEVELS, ("values are rounded to 8 bits",))])
def test_gray_becomes_three_equal_channels_of_8_bits(pixels, note):
    loaded = load_image(dicom(pixels))
    assert (loaded.pixels.mode, loaded.channels) == ("RGB", 3)
    values = np.asarray(loaded.pixels)
    expected = np.round(pixels.astype(float) * (255 / np.iinfo(pixels.dtype).max)).astype(np.uint8)
    for channel in range(3):
        np.testing.assert_array_equal(values[:, :, channel], expected)
    assert loaded.notes[1:] == note


def test_colors_of_a_dicom_file_are_colors_or_become_gray():
    colors = load_image(dicom(COLORS))
    assert (colors.pixels.mode, colors.notes) == ("RGB", ())
    np.testing.assert_array_equal(colors.pixels, COLORS)
    loaded = load_image(dicom(COLORS), channels=1)
    np.testing.assert_array_equal(loaded.pixels, Image.fromarray(COLORS).convert("L"))
    assert loaded.notes == ("colors are converted to gray",)


@pytest.mark.parametrize("pixels", [RAMP, COLORS], ids=["gray", "colors"])
@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_of_a_dicom_file_are_refused(pixels, channels):
    with pytest.raises(ImageError) as caught:
        load_image(dicom(pixels), channels)
    assert f"has the channels {'R, G, B' if pixels is COLORS else 'F'}" in caught.value.why


def test_a_dicom_file_behind_the_header_of_a_tiff_is_the_tiff():
    """Whole-slide images are both; the first bytes decide."""
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (1, 2, 3)).save(file, "TIFF")
    data = bytearray(file.getvalue())
    assert data[:4] == b"II*\0"
    assert len(data) > 132
    assert load_image(bytes(data)).pixels.size == (3, 2)
    dual = dataset_of(RAMP)
    dual.preamble = data[:8] + bytes(120)
    with pytest.raises(ImageError):  # no TIFF follows its header
        load_image(written(dual))


# --- images of PIL


def test_an_image_of_pil_is_turned_as_its_file_is_and_unchanged(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("P", (12, 10)).save(tmp_path / "a.png", exif=exif, transparency=0)
    opened = Image.open(tmp_path / "a.png")
    info = dict(opened.info)
    loaded = load_image(opened)
    assert loaded.pixels.size == load_image(tmp_path / "a.png").pixels.size == (10, 12)
    assert loaded.notes == load_image(tmp_path / "a.png").notes
    assert (opened.info, opened.mode, opened.size) == (info, "P", (12, 10))


def test_a_damaged_image_of_pil_is_refused():
    data = encoded(image())
    with pytest.raises(ImageError) as caught:
        load_image(Image.open(io.BytesIO(data[: len(data) // 2])))
    assert caught.value.subject == "image"


def test_an_image_of_pil_without_a_file_has_nothing_to_lose():
    assert load_image(image()).notes == ()


# --- orientation and frames


def stored_for(orientation: int) -> Image.Image:
    """The pixels a camera stores so that `image()` is seen after turning (EXIF 2.32, tag 0x0112)."""
    seen = image()
    turns = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: np.rot90,
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p, -1),
    }
    return Image.fromarray(np.ascontiguousarray(turns[orientation](np.asarray(seen))))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored_for(orientation), form, exif=exif)
    assert np.array_equal(load_image(data).pixels, image())


def test_exif_orientation_of_a_jpeg_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    upright, turned = encoded(image(), "JPEG", quality=100), encoded(stored_for(6), "JPEG", quality=100, exif=exif)
    difference = ImageChops.difference(load_image(upright).pixels, load_image(turned).pixels)
    assert np.asarray(difference).mean() < 3  # chroma is subsampled along other pixels; a wrong turn gives over 60


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_is_applied_to_any_channels(orientation, channels):
    exif = Image.Exif()
    exif[0x0112] = orientation
    mode = {1: "I;16", 4: "RGBA"}[channels]
    pixels = np.random.default_rng(2).integers(0, 256, (5, 4, 4) if channels == 4 else (5, 4))
    turns = {1: 0, 3: 2, 6: 1, 8: -1}[orientation]  # by a quarter, against the clock
    stored = np.ascontiguousarray(np.rot90(pixels, turns).astype(np.uint8 if channels == 4 else np.uint16))
    loaded = load_image(encoded(Image.fromarray(stored), exif=exif), channels)
    scale = 1 if channels == 4 else 257
    assert Image.fromarray(stored).mode == mode
    np.testing.assert_allclose(np.asarray(loaded.pixels) * np.float32(scale), pixels, rtol=1e-6)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_damaged_exif_leaves_the_image_as_it_is(exif):
    assert load_image(encoded(image(), exif=exif)).pixels.size == image().size


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken_and_noted(form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    loaded = load_image(data)
    red, green, blue = loaded.pixels.getpixel((4, 4))
    assert red > 200 > 50 > max(green, blue)
    assert loaded.notes == ("only the first frame is used",)


# --- what is refused


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"not an image\n", "text"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>404</html>", "HTML"),
        (b"<HTML><body>", "HTML"),
        (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"8BPS\0\1\0\0", "Photoshop"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "HEIC"),
        (b"\x00\x01\x02\x03" * 9, "format"),
        (b"a" * 511 + b"\0", "format"),
        (b"a" * 512 + b"\0", "text"),  # as far as is looked at
        (b"P6 1 1 255 \x00\x00\x00", "format"),  # Pillow would read it
        (b"BM" + b"\xff" * 60, "decoded"),
    ],
)
def test_another_file_is_refused_by_what_it_is(tmp_path, data, word):
    path = tmp_path / "cat.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert caught.value.subject == str(path)
    assert word in caught.value.why
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_a_cut_jpeg_is_never_half_grey(options):
    data = encoded(image(160, 120), "JPEG", **options)
    for percent in range(10, 100):
        with pytest.raises(ImageError) as caught:
            load_image(data[: len(data) * percent // 100])
        assert caught.value.subject.endswith(" bytes")


def test_a_jpeg_without_its_last_byte_is_refused():
    with pytest.raises(ImageError):
        load_image(encoded(image(), "JPEG")[:-1])


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("percent", range(10, 100, 10))
def test_other_cut_images_are_refused(percent, form):
    data = encoded(image(), form)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of a cut TIFF before it fails
        with pytest.raises(ImageError):
            load_image(data[: len(data) * percent // 100])


def test_a_png_of_wrong_checksums_is_refused_though_pillow_reads_it():
    data = bytearray(encoded(image()))
    assert data[-12:-4] == b"\0\0\0\0IEND"
    data[-13] ^= 1  # of the pixels before it
    Image.open(io.BytesIO(data)).load()
    with pytest.raises(ImageError) as caught:
        load_image(bytes(data))
    assert caught.value.why.startswith("cannot be decoded (")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path, kind in ((tmp_path / "none.jpg", InputError), (tmp_path, ImageError)):
        with pytest.raises(InputError) as caught:
            load_image(path)
        assert type(caught.value) is kind
        assert caught.value.subject == str(path)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "frame.png")
    with pytest.raises(ImageError) as caught:
        load_image(tmp_path / "frame.png")
    assert caught.value.subject == str(tmp_path / "frame.png")


class Failing(io.BytesIO):
    """A stream that fails when it is read."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def read(self, _size: int | None = -1) -> bytes:
        raise self._error


@pytest.mark.parametrize("name", [None, "camera 1"])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), ResourceError),
        (OSError(errno.EIO, "Input/output error"), ResourceError),
        (OSError("a decoder's words"), ImageError),
        (ValueError("a decoder's words"), ImageError),
    ],
)
def test_what_fails_while_reading_is_about_the_stream(error, kind, name):
    stream = Failing(error)
    if name:
        stream.name = name
    with pytest.raises(kind) as caught:
        load_image(stream)
    assert caught.value.subject == (name or "a stream")


def test_the_limit_is_on_the_pixels_of_the_header():
    data = encoded(Image.new("L", (30, 20)))
    assert load_image(data, most_pixels=600).pixels.size == (30, 20)
    with pytest.raises(ImageError) as caught:
        load_image(data, most_pixels=599)
    assert "30x20" in caught.value.why


def test_the_limit_is_where_pillow_would_warn():
    assert MOST_PIXELS == Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError) as caught:  # any warning would be an error here
        load_image(png(MOST_PIXELS + 1, 1, 8, 0, b""))
    assert "pixels" in caught.value.why


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_a_huge_header_is_refused_with_little_memory(tmp_path):
    """The peak is VmHWM: `ru_maxrss` of a child counts the parent it was forked from."""
    path = tmp_path / "bomb.png"
    path.write_bytes(png(65_535, 65_535, 8, 2, b"\0" * 1_000_000))
    code = (
        "import pathlib, re, sys\n"
        "from densenet_deploy.errors import ImageError\n"
        "from densenet_deploy.runtime.images import load_image\n"
        "try:\n"
        "    load_image(sys.argv[1])\n"
        "except ImageError as exc:\n"
        "    status = pathlib.Path('/proc/self/status').read_text()\n"
        "    print(exc.why, re.search(r'VmHWM:\\s*(\\d+) kB', status)[1], sep='|')\n"
    )
    child = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    why, kibibytes = child.stdout.split("|")
    assert why.startswith("is 65535x65535 pixels")
    assert int(kibibytes) < 300_000
    assert child.stderr == ""


def test_a_png_whose_pixels_were_changed_is_refused():
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, "PNG")
    data = file.getvalue()
    checksum = data.index(b"IEND") - 8
    with pytest.raises(ImageError) as caught:
        load_image(data[:checksum] + b"0000" + data[checksum + 4 :])
    assert caught.value.why.startswith("cannot be decoded (")
