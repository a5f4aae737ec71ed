"""One image from a file, bytes or a stream. What comes out is RGB, 8 bits a channel, upright and whole.

An image is untrusted input. Six formats are decoded (JPEG, PNG, WebP, BMP, GIF, TIFF), recognized by their first bytes
and never by the suffix; the size in the header is checked before a pixel is decoded. An image that ends early is
refused, and so is a PNG whose checksums are wrong (`image_damage.py`).

==================  ==================================================================================================
what the file has   what becomes of it
==================  ==================================================================================================
gray, 1 bit         the same value in R, G and B (1 bit: 0 or 255)
palette             the colours of the palette
transparency        dropped: the stored colour is kept, as `Image.convert("RGB")` and so torchvision's loader have it
CMYK, YCCK          (255 - C)·(255 - K) / 255 and so on, after Adobe's inversion; colour profiles are not applied
16 bits a channel   the high byte (Pillow's own conversion would clip gray images to white)
float gray          0…1 becomes 0…255, rounded; a value outside is refused, for its white is not known
32-bit integers     refused, for their white is not known
EXIF orientation    applied, 1 to 8; damaged EXIF data counts as 1
several frames      the first one
==================  ==================================================================================================

Every loss is told in `LoadedImage.notes`.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from densenet_deploy.artifacts import os_errors_about
from densenet_deploy.errors import DensenetDeployError, FeedError, ImageError, ResourceError
from densenet_deploy.runtime.image_damage import why_not_whole

ImageSource = str | Path | bytes | BinaryIO

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
_STRANGERS: Final = (
    (rb"\Z", "is empty"),
    (rb"%PDF", "is a PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "is PostScript"),
    (rb"8BPS", "is a Photoshop file"),
    (rb"....ftyp", "is HEIC, AVIF or a video"),
    (rb"(\xef\xbb\xbf)?\s*<(!doctype )?html", "is an HTML page"),
    (rb"[^\0-\x08\x0e-\x1f]+\Z", "is text"),
    (rb"", "is in no known image format"),
)
_HEAD_BYTES: Final = 512

_UPRIGHT: Final = 1
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class LoadedImage:
    """An image: `pixels` in Pillow's mode RGB, and in `notes` what was lost on the way there."""

    pixels: Image.Image
    notes: tuple[str, ...] = ()

    @classmethod
    def from_array(cls, pixels: npt.NDArray[Any]) -> Self:
        """Wrap a camera's frame: uint8, (H, W, 3), RGB.

        Raises:
            FeedError: if it is anything else.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
            raise FeedError("pixels", f"are {pixels.shape} {pixels.dtype}", "give uint8 of (H, W, 3) in RGB order")
        return cls(Image.fromarray(pixels))


def load_image(source: ImageSource, *, most_pixels: int = MOST_PIXELS) -> LoadedImage:
    """Decode one image.

    >>> load_image("cat.jpg").pixels.size      # doctest: +SKIP
    (500, 375)

    Args:
        source: a path, the bytes of a file, or an open binary file, which is read from its start and left open.
        most_pixels: refuse larger images, before they cost memory.

    Raises:
        ImageError: if it is no image, damaged, cut short, too large, or of a kind that has no stated conversion.
        InputError: if there is no such file.
        ResourceError: if reading it failed, or memory ran out.
    """
    name = _name_of(source)
    if isinstance(source, (str, Path)) and Path(source).exists() and not Path(source).is_file():
        raise ImageError(name, "is no regular file", "give an image file")
    with os_errors_about(name), _opened(source) as file, _decoding_errors_about(name):
        image = _recognized(file, name)
        if image.width * image.height > most_pixels:
            size = f"is {image.width}x{image.height} pixels, more than {most_pixels} in all"
            raise ImageError(name, size, "make it smaller")
        damage = why_not_whole(file, image.format)
        if damage is not None:
            raise ImageError(name, f"cannot be decoded ({damage})", "save or download it again")
        return _decoded(image, name)


def _name_of(source: ImageSource) -> object:
    if isinstance(source, bytes):
        return f"{len(source)} bytes"
    if isinstance(source, (str, Path)):
        return source
    return getattr(source, "name", "a stream")


@contextlib.contextmanager
def _opened(source: ImageSource) -> Iterator[BinaryIO]:
    """Give `source` as a file that can seek; close it only if it was opened here."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif isinstance(source, (str, Path)):
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
        raise ResourceError(name, "does not fit into memory", "make the image smaller") from exc
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
    why = next(why for pattern, why in _STRANGERS if re.match(pattern, head, re.DOTALL | re.IGNORECASE))
    raise ImageError(name, why, "give a JPEG, PNG, WebP, BMP, GIF or TIFF image")


def _decoded(image: ImageFile.ImageFile, name: object) -> LoadedImage:
    notes = _losses(image)
    image.load()
    turn = _TURNS.get(_orientation(image))
    pixels = _rgb(image, name)
    return LoadedImage(pixels if turn is None else pixels.transpose(turn), notes)


def _losses(image: ImageFile.ImageFile) -> tuple[str, ...]:
    losses = {
        "only the first frame is used": getattr(image, "is_animated", False),
        "transparency is dropped": image.has_transparency_data,
        "16-bit values are cut to their high byte": image.mode.startswith("I;16"),
        "CMYK is converted without its colour profile": image.mode == "CMYK",
    }
    return tuple(note for note, is_lost in losses.items() if is_lost)


def _orientation(image: ImageFile.ImageFile) -> int:
    """Return the EXIF orientation; to be asked after `load`, because Pillow turns a TIFF itself while loading."""
    try:
        orientation: int = image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT)
    except Exception:  # noqa: BLE001  (EXIF is parsed by many paths of Pillow; an image is no worse for its damage)
        return _UPRIGHT
    return orientation


def _rgb(image: ImageFile.ImageFile, name: object) -> Image.Image:
    if image.mode == "I":
        raise ImageError(name, "holds 32-bit or signed integers, whose white is not known", "save it with 8 or 16 bits")
    if image.mode == "F":
        return _gray(_bytes_of_fractions(np.asarray(image), name))
    if image.mode.startswith("I;16"):
        return _gray(np.asarray(image) >> 8)
    image.info.pop("transparency", None)  # dropped here, or Pillow would warn while dropping it
    return image.convert("RGB")


def _gray(values: npt.NDArray[Any]) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _bytes_of_fractions(values: npt.NDArray[Any], name: object) -> npt.NDArray[Any]:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # false for NaN too
        raise ImageError(name, f"holds floats from {low:g} to {high:g}", "scale them to 0…1 or save it with 8 bits")
    return (values * 255).round()
