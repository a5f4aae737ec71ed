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
from tests.runtime.test_images import encoded, image, palette_image

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


@pytest.mark.parametrize("size", [*range(4), *range(2**16 - 10, 2**16 + 2), 2**17])
def test_markers_are_found_wherever_reads_end(size):
    """A scan of `size` bytes puts the end marker across the edges of what is read at once, 64 KiB."""
    scan = b"\xff\xd8\xff\xda\0\2" + bytes(size) + b"\xff\0\xff\xd0"
    assert why_not_whole(io.BytesIO(scan + b"\xff\xd9"), "JPEG") is None
    assert why_not_whole(io.BytesIO(scan + b"\xff\xff"), "JPEG") == "ends too early"


@pytest.mark.parametrize("length", [b"\0\0", b"\0\1", b"\0\2"])
def test_an_empty_segment_takes_nothing_of_what_follows(length):
    """A length counts itself; one below that is wrong, and is read as none."""
    assert why_not_whole(io.BytesIO(b"\xff\xd8\xff\xe0" + length + b"\xff\xd9"), "JPEG") is None


def test_an_end_inside_a_segment_is_not_the_end():
    start = b"\xff\xd8\xff\xe0\0\6\xff\xd9\xff\xd9"
    assert why_not_whole(io.BytesIO(start), "JPEG") == "ends too early"
    assert why_not_whole(io.BytesIO(start + b"\xff\xd9"), "JPEG") is None


def test_markers_without_a_length_are_followed_at_once():
    for marker in (b"\xff\x01", b"\xff\xd8"):
        assert why_not_whole(io.BytesIO(b"\xff\xd8" + marker + b"\xff\xd9"), "JPEG") is None


@pytest.mark.parametrize("length", [2**16 - 1, 2**16, 2**16 + 1, 200_000])
def test_the_checksum_is_that_of_the_whole_chunk(length):
    """Chunks are read in portions of 64 KiB."""
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", bytes(range(256)) * (length // 256) + bytes(length % 256))
    end = chunk(b"IEND", b"")
    assert why_not_whole(io.BytesIO(data + end), "PNG") is None
    last = len(data) - 5  # the last byte of the chunk's content
    wrong = data[:last] + bytes([data[last] ^ 1]) + data[last + 1 :]
    assert why_not_whole(io.BytesIO(wrong + end), "PNG") == "its IDAT chunk is damaged"


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"IDAT", b"IEND"])
def test_every_chunk_that_matters_is_checked(kind):
    data = encoded(palette_image())
    assert why_not_whole(io.BytesIO(data), "PNG") is None
    assert why_not_whole(io.BytesIO(with_wrong_checksum(data, kind)), "PNG") == f"its {kind.decode()} chunk is damaged"


def test_a_png_cut_anywhere_is_not_whole():
    data = encoded(Image.new("L", (3, 3)))
    for end in range(8, len(data)):
        assert why_not_whole(io.BytesIO(data[:end]), "PNG") is not None


@pytest.mark.parametrize(
    ("form", "data"), [("PNG", encoded(image())), ("JPEG", encoded(image(), "JPEG")), ("GIF", b"")]
)
def test_a_file_is_read_from_its_start_and_its_position_restored(form, data):
    file = io.BytesIO(data)
    for _ in range(2):
        file.seek(5)
        assert why_not_whole(file, form) is None
        assert file.tell() == 5
    file = io.BytesIO(data[:20])
    file.seek(7)
    why_not_whole(file, form)
    assert file.tell() == 7
