"""Damage that Pillow does not see: wrong checksums of a PNG, a JPEG filled up behind a cut. Each has a whole twin."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.errors import ImageError
from densenet_deploy.runtime.image_damage import why_not_whole
from densenet_deploy.runtime.images import load_image
from tests.runtime.test_images import encoded, image

KINDS_OF_JPEG = [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"comment": b"\xff\xd9 in a comment"}]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_wrong_checksum(data: bytes, kind: bytes) -> bytes:
    """Flip a bit of the CRC of the first chunk `kind`."""
    place = data.index(kind)
    length = int.from_bytes(data[place - 4 : place], "big")
    wrong = bytearray(data)
    wrong[place + 4 + length] ^= 1
    return bytes(wrong)


def pillow_takes(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
    return True


def test_a_png_with_a_wrong_checksum_of_its_pixels_is_refused():
    data = encoded(image())
    assert np.array_equal(load_image(data).pixels, image())
    assert pillow_takes(with_wrong_checksum(data, b"IDAT"))  # the reason for a check of our own
    with pytest.raises(ImageError) as caught:
        load_image(with_wrong_checksum(data, b"IDAT"))
    assert caught.value.subject.endswith(" bytes")


def test_the_checksum_of_a_chunk_that_does_not_matter_is_not_asked():
    data = encoded(image())
    end = data.index(b"IEND") - 4
    remark = chunk(b"tEXt", b"Comment\0hello")
    assert why_not_whole(io.BytesIO(data[:end] + remark[:-1] + b"\0" + data[end:]), "PNG") is None


def test_a_png_without_an_end_is_refused():
    data = encoded(image())
    with pytest.raises(ImageError) as caught:
        load_image(data[: data.index(b"IEND") - 4])
    assert caught.value.subject.endswith(" bytes")


@pytest.mark.parametrize("options", KINDS_OF_JPEG)
@pytest.mark.parametrize("percent", range(30, 100, 5))
def test_a_jpeg_filled_up_with_zeros_is_never_half_grey(percent, options):
    data = encoded(image(160, 120), "JPEG", **options)
    kept = len(data) * percent // 100
    with pytest.raises(ImageError) as caught:
        load_image(data[:kept] + bytes(3 * len(data)))
    assert caught.value.subject.endswith(" bytes")


def test_pillow_takes_the_jpeg_that_is_filled_up():
    """The reason for a check of our own."""
    data = encoded(image(160, 120), "JPEG")
    assert pillow_takes(data[: len(data) // 2] + bytes(3 * len(data)))


@pytest.mark.parametrize("options", KINDS_OF_JPEG)
@pytest.mark.parametrize("behind", [b"", bytes(1000), b"\xff\xd8\xff\xe0 another image", b"\xff"])
def test_what_follows_a_whole_jpeg_does_not_matter(options, behind):
    data = encoded(image(160, 120), "JPEG", **options)
    assert np.array_equal(load_image(data + behind).pixels, load_image(data).pixels)


def test_an_end_inside_a_thumbnail_is_not_the_end():
    """EXIF data hold a whole JPEG of their own."""
    thumbnail = encoded(image(16, 16), "JPEG")
    segment = b"Exif\0\0" + thumbnail
    data = encoded(image(160, 120), "JPEG")
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    assert load_image(data).pixels.size == (160, 120)
    with pytest.raises(ImageError):
        load_image(data[: len(data) - 1000] + bytes(1000))


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "WEBP", None])
def test_other_formats_are_left_to_their_decoders(form):
    assert why_not_whole(io.BytesIO(b"anything"), form) is None


@pytest.mark.parametrize("ending", [b"\xff\xe0", b"\xff\xe0\0", b"\xff\xe0\0\0", b"\xff\xda\xff\xff", b"\xff\xff", b""])
def test_a_jpeg_that_ends_in_a_segment_is_cut(ending):
    assert why_not_whole(io.BytesIO(b"\xff\xd8" + ending), "JPEG") == "ends too early"


@pytest.mark.parametrize("size", [0, 1, 2, 3, 63, 64, 65, 127, 128, 129])
def test_markers_are_found_wherever_reads_end(size):
    """A scan of `size` bytes puts the end marker across the edges of what is read at once."""
    scan = b"\xff\xd8\xff\xda\0\2" + bytes(size) + b"\xff\0\xff\xd0"
    assert why_not_whole(io.BytesIO(scan + b"\xff\xd9"), "JPEG") is None
    assert why_not_whole(io.BytesIO(scan + b"\xff\xff"), "JPEG") == "ends too early"
