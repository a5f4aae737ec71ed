"""Read one image from a file, bytes, a stream, PIL, an array or a tensor: RGB, 8 bits per channel, upright, complete.

An image file is untrusted input. Six formats are decoded (JPEG, PNG, WebP, BMP, GIF, TIFF), recognized by their first
bytes and never by the suffix; the size in the header is checked before any pixel is decoded. An incomplete image is
refused, and so is a PNG with wrong checksums (`image_damage.py`).

====================  ================================================================================================
the image has         the result
====================  ================================================================================================
gray, 1 bit           the same value in R, G and B (1 bit: 0 or 255)
palette               the colors of the palette
transparency          is dropped: the stored color stays, as with `Image.convert("RGB")` and torchvision's loader
CMYK, YCCK            (255 - C)·(255 - K) / 255 and so on, after Adobe's inversion; color profiles are not applied
16 bits per channel   the high byte (Pillow's own conversion would clip gray images to white)
float gray            0…1 becomes 0…255, rounded; values outside are refused, since their white is unknown
32-bit integers       are refused, since their white is unknown
EXIF orientation      is applied, 1 to 8; damaged EXIF data counts as 1
several frames        the first one
====================  ================================================================================================

Every loss is noted in `LoadedImage.notes`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Self, cast

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from densenet_deploy.artifacts import StrPath, os_errors_about
from densenet_deploy.errors import DensenetDeployError, FeedError, ImageError, ResourceError
from densenet_deploy.runtime.feeds import Array, Feed, as_array
from densenet_deploy.runtime.image_damage import why_not_whole

MOST_PIXELS: Final = 2**30 // 12  # as many as Pillow takes without a warning

# The classes are called directly: `Image.open` would warn of a large image before its size could be refused here.
_READERS: Final[tuple[tuple[bytes, type[ImageFile.ImageFile]], ...]] = (
    (rb"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (rb"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (rb"RIFF....WEBP", WebPImagePlugin.WebPImageFile),
    (rb"BM", BmpImagePlugin.BmpImageFile),
    (rb"GIF8[79]a", GifImagePlugin.GifImageFile),
    (rb"II[*+]\0|MM\0[*+]", TiffImagePlugin.TiffImageFile),
)
_OTHER_FORMATS: Final = (
    (rb"\Z", "is empty"),
    (rb"%PDF", "is a PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "is PostScript"),
    (rb"8BPS", "is a Photoshop file"),
    (rb"....ftyp", "is HEIC, AVIF or a video"),
    (rb"(\xef\xbb\xbf)?\s*<(!doctype )?html", "is an HTML page"),
    (rb"[^\0-\x08\x0e-\x1f]+\Z", "is text"),
    (rb"", "is not in a known image format"),
)
_HEAD_BYTES: Final = 512


@dataclass(frozen=True)
class LoadedImage:
    """An image: `pixels` in Pillow's mode RGB; `notes` say what was lost in the conversion."""

    pixels: Image.Image
    notes: tuple[str, ...] = ()

    @classmethod
    def from_array(cls, pixels: Feed) -> Self:
        """Wrap a frame of a camera: an array or a tensor of uint8, (H, W, 3), in RGB order.

        Raises:
            FeedError: if it is anything else.
        """
        array = as_array("image", pixels)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
            raise FeedError("image", f"is {array.shape} {array.dtype}, not uint8 (H, W, 3)", _array_fix(array))
        return cls(Image.fromarray(array))


FileSource = StrPath | bytes | bytearray | memoryview | BinaryIO
ImageSource = FileSource | Image.Image | Feed | LoadedImage
"""What `load_image` takes."""


def load_image(source: ImageSource, *, most_pixels: int = MOST_PIXELS) -> LoadedImage:
    """Return an image as RGB, decoding it if necessary.

    >>> load_image("cat.jpg").pixels.size      # doctest: +SKIP
    (500, 375)

    Args:
        source: a path; the bytes of a file; an open binary file, which is read from its start and left open; a PIL
            image; a uint8 array or tensor (H, W, 3) in RGB order; or an image that was loaded before.
        most_pixels: refuse files with more, before they cost memory.

    Raises:
        ImageError: if it is not an image, damaged, incomplete, too large, or of a kind without a stated conversion.
        FeedError: if an array is not uint8 (H, W, 3).
        InputError: if the file does not exist.
        ResourceError: if reading it failed, or memory ran out.
    """
    if isinstance(source, LoadedImage):
        return source
    if isinstance(source, Image.Image):
        with _decoding_errors_about("image"):
            return _decoded(source, "image")
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        return _load_file(source, most_pixels)
    if hasattr(source, "read"):
        return _load_file(cast("BinaryIO", source), most_pixels)
    return LoadedImage.from_array(source)


def _load_file(source: FileSource, most_pixels: int) -> LoadedImage:
    name = _name_of(source)
    if isinstance(source, (str, os.PathLike)) and Path(source).exists() and not Path(source).is_file():
        raise ImageError(name, "is not a regular file", "give an image file")
    with os_errors_about(name), _opened(source) as file, _decoding_errors_about(name):
        image = _recognized(file, name)
        if image.width * image.height > most_pixels:
            size = f"is {image.width}x{image.height} pixels, more than the limit of {most_pixels}"
            raise ImageError(name, size, "make it smaller")
        damage = why_not_whole(file, image.format)
        if damage is not None:
            raise ImageError(name, f"cannot be decoded ({damage})", "save or download it again")
        return _decoded(image, name)


def _array_fix(array: Array) -> str:
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[0] == 3:
        return "it looks like (3, H, W): transpose it to (H, W, 3)"
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3:
        return "give a list of images"
    return "give one image as uint8 of (H, W, 3) in RGB order"


def _name_of(source: FileSource) -> object:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes"
    if isinstance(source, (str, os.PathLike)):
        return source
    return getattr(source, "name", "a stream")


@contextlib.contextmanager
def _opened(source: FileSource) -> Iterator[BinaryIO]:
    """Give `source` as a file that can seek; close it only if it was opened here."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        with Path(source).open("rb") as file:
            yield _seekable(file)
    else:
        yield _seekable(source)


def _seekable(file: BinaryIO) -> BinaryIO:
    return file if file.seekable() else io.BytesIO(file.read())


@contextlib.contextmanager
def _decoding_errors_about(name: object) -> Iterator[None]:
    """Turn what a decoder raises on hostile bytes into an ImageError; true I/O errors, which have a number, pass."""
    try:
        yield
    except DensenetDeployError:
        raise
    except MemoryError as exc:
        raise ResourceError(name, "does not fit in memory", "make the image smaller") from exc
    except Exception as exc:
        if isinstance(exc, OSError) and exc.errno is not None:
            raise
        raise ImageError(name, f"cannot be decoded ({exc})", "save or download it again") from exc


def _recognized(file: BinaryIO, name: object) -> ImageFile.ImageFile:
    """Read the header of an image in one of the known formats."""
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    for pattern, reader in _READERS:
        if re.match(pattern, head, re.DOTALL):
            return reader(file)
    why = next(why for pattern, why in _OTHER_FORMATS if re.match(pattern, head, re.DOTALL | re.IGNORECASE))
    raise ImageError(name, why, "give a JPEG, PNG, WebP, BMP, GIF or TIFF image")


def _decoded(image: Image.Image, name: object) -> LoadedImage:
    notes = _losses(image)
    image.load()
    orientation = _orientation(image)
    return LoadedImage(_upright(_rgb(image, name), orientation), notes)


def _losses(image: Image.Image) -> tuple[str, ...]:
    losses = {
        "only the first frame is used": getattr(image, "is_animated", False),
        "transparency is dropped": image.has_transparency_data,
        "16-bit values are cut to their high byte": image.mode.startswith("I;16"),
        "CMYK is converted without its colour profile": image.mode == "CMYK",
    }
    return tuple(note for note, is_lost in losses.items() if is_lost)


def _orientation(image: Image.Image) -> Any:
    """Return the EXIF orientation of a loaded image: Pillow rotates a TIFF itself while loading."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001  (damaged EXIF fails anywhere in Pillow, and the pixels are as good without it)
        return None


def _upright(pixels: Image.Image, orientation: Any) -> Image.Image:
    """Apply `orientation`. The other EXIF tags are dropped first: Pillow fails to rewrite those that are damaged."""
    pixels.info = {}
    if orientation not in range(2, 9):
        return pixels
    pixels.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(pixels)


def _rgb(image: Image.Image, name: object) -> Image.Image:
    """Return a new image in mode RGB."""
    if image.mode == "I":
        raise ImageError(name, "holds 32-bit or signed integers: white is unknown", "save it with 8 or 16 bits")
    if image.mode == "F":
        return _gray(_bytes_of_fractions(np.asarray(image), name))
    if image.mode.startswith("I;16"):
        return _gray(np.asarray(image) >> 8)
    if "transparency" in image.info:  # dropped here, or Pillow would warn while dropping it
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def _gray(values: Array) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _bytes_of_fractions(values: Array, name: object) -> Array:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # false for NaN too
        raise ImageError(name, f"holds floats from {low:g} to {high:g}", "scale them to 0…1 or save it with 8 bits")
    return (values * 255).round()
