"""Read one image from a file, bytes, a stream, PIL, an array or a tensor: upright, complete, in the model's channels.

An image file is untrusted input. Seven formats are decoded (JPEG, PNG, WebP, BMP, GIF, TIFF, and DICOM by
`dicom.py`), recognized by their first bytes and never by the suffix; the size in the header is checked before any pixel
is decoded. An incomplete image is refused, and so is a PNG with wrong checksums (`image_damage.py`).

====================  ==========================================  =============================================
the image has         of 3 channels (RGB, 8 bits)                 of 1 channel (gray)
====================  ==========================================  =============================================
gray, 1 bit           the same value in R, G and B (0 or 255)     the value
palette               the colors of the palette                   their luma
colors                the colors                                  luma (ITU-R 601), as `Image.convert("L")`
transparency          is dropped: the stored color stays, as with `Image.convert("RGB")` and torchvision's loader
CMYK, YCCK            (255 - C)·(255 - K) / 255 and so on, after Adobe's inversion; color profiles are not applied
16 bits per channel   the high byte (Pillow would clip to white)  all 16 bits, as fractions of 255; of colors the
                                                                  high byte
float gray            0…1 becomes 0…255, rounded                  0…1 becomes 0…255, not rounded
DICOM, gray           what a viewer shows, rounded to 8 bits      what a viewer shows, all 16 bits
====================  ==========================================  =============================================

Floats outside 0…1 and 32-bit integers are refused, since their white is unknown. The EXIF orientation, 1 to 8, is
applied; damaged EXIF data counts as 1. Of several frames the first is taken. Four channels come from an image that
stores four, such as RGB and near infrared in a TIFF, or red, green, blue and opacity. Every loss is noted in
`LoadedImage.notes`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import re
from collections.abc import Callable, Iterator
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
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from densenet_deploy.artifacts import StrPath, os_errors_about
from densenet_deploy.errors import DensenetDeployError, FeedError, ImageError, ResourceError
from densenet_deploy.runtime.dicom import is_dicom, read_dicom
from densenet_deploy.runtime.feeds import Array, Feed, as_array
from densenet_deploy.runtime.image_damage import why_not_whole

MOST_PIXELS: Final = 2**30 // 12  # as many as Pillow takes without a warning


class _TiffImageFile(TiffImagePlugin.TiffImageFile):
    """A TIFF of which a fourth channel without a stated meaning, such as near infrared, is kept: Pillow drops it.

    Channels of 16 bits that are stored one after the other are refused: Pillow reads them as bytes.
    """

    def _open(self) -> None:
        super()._open()
        count, bits = self.tag_v2.get(_SAMPLES, 1), self.tag_v2.get(_BITS, (1,))
        if self.tag_v2.get(_PLANAR) == _ONE_AFTER_THE_OTHER and count > 1 and max(bits) >= 16:
            raise ValueError("its channels of 16 bits are stored one after the other")
        if self.mode == "RGB" and count == len("RGBX"):
            self._mode = "RGBX"


# The classes are called directly: `Image.open` would warn of a large image before its size could be refused here.
_READERS: Final[tuple[tuple[bytes, type[ImageFile.ImageFile]], ...]] = (
    (rb"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (rb"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (rb"RIFF....WEBP", WebPImagePlugin.WebPImageFile),
    (rb"BM", BmpImagePlugin.BmpImageFile),
    (rb"GIF8[79]a", GifImagePlugin.GifImageFile),
    (rb"II[*+]\0|MM\0[*+]", _TiffImageFile),
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
_GRAY_MODES: Final = ("1", "L", "LA", "La", "F", "I", "I;16", "I;16B", "I;16L", "I;16N")
_SAMPLES, _BITS, _PLANAR, _ONE_AFTER_THE_OTHER = 277, 258, 284, 2  # of TIFF
_CHANNELS: Final = {"L": 1, "F": 1, "RGB": 3, "RGBA": 4}
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING: Final = (5, 6, 7, 8)  # orientations that exchange width and height

SideLengths = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """An image of values 0 to 255.

    Attributes:
        stored: an image in Pillow's mode RGB, L (gray), F (gray with fractions, from 16 bits) or RGBA (four channels);
            or a frame, uint8 of (H, W, 3), which is not copied and must not change before it was prepared.
        notes: what was lost in the conversion.
        full_size: width and height of a JPEG that was decoded at a reduced scale; None at its own.
    """

    stored: Image.Image | Array
    notes: tuple[str, ...] = ()
    full_size: SideLengths | None = None

    @functools.cached_property
    def pixels(self) -> Image.Image:
        """The whole image in one of Pillow's modes RGB, L, F and RGBA."""
        return self.stored if isinstance(self.stored, Image.Image) else Image.fromarray(self.stored)

    @property
    def size(self) -> SideLengths:
        """Width and height, as they are stored here."""
        return self.stored.size if isinstance(self.stored, Image.Image) else self.stored.shape[1::-1]

    @property
    def channels(self) -> int:
        """1, 3 or 4."""
        return _CHANNELS[self.stored.mode] if isinstance(self.stored, Image.Image) else self.stored.shape[2]

    @property
    def is_float(self) -> bool:
        """Whether its values have fractions (mode F)."""
        return isinstance(self.stored, Image.Image) and self.stored.mode == "F"

    @classmethod
    def from_array(cls, pixels: Feed) -> Self:
        """Wrap a frame of a camera: an array or a tensor, which is not copied.

        Args:
            pixels: uint8 of (H, W, 3) in RGB order, (H, W, 4), (H, W, 1) or (H, W); or uint16 of one channel.

        Raises:
            FeedError: if it is anything else.
        """
        array = as_array("image", pixels)
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[:, :, 0]
        is_gray, is_colored = array.ndim == 2, array.ndim == 3 and array.shape[2] in (3, 4)
        if array.size and array.dtype == np.uint8 and (is_gray or is_colored):
            return cls(array if is_colored and array.shape[2] == 3 else Image.fromarray(array))
        if array.size and array.dtype == np.uint16 and is_gray:
            return cls(_fractions_of_255(array))
        raise FeedError("image", f"is {array.shape} {array.dtype}, not uint8 (H, W, 3)", _array_fix(array))


FileSource = StrPath | bytes | bytearray | memoryview | BinaryIO
ImageSource = FileSource | Image.Image | Feed | LoadedImage
"""What `load_image` takes."""


ReducedSize = Callable[[SideLengths], SideLengths]
"""From the width and height of an upright image to the least that is needed of them."""


def load_image(
    source: ImageSource, channels: int = 3, *, most_pixels: int = MOST_PIXELS, needed: ReducedSize | None = None
) -> LoadedImage:
    """Return an image in the channels that a model takes, decoding it if necessary.

    A PIL image that is already in them is not copied.

    >>> load_image("cat.jpg").pixels.size      # doctest: +SKIP
    (500, 375)

    Args:
        source: a path; the bytes of a file; an open binary file, which is read from its start and left open; a PIL
            image; an array or a tensor (see `LoadedImage.from_array`); or an image that was loaded before. The last two
            are taken as they are.
        channels: 3 for RGB, 1 for gray, 4 for an image that stores four.
        most_pixels: refuse files with more, before they cost memory.
        needed: decode a JPEG at 1/2, 1/4 or 1/8 of its size where that leaves at least as many pixels each way: faster,
            and not exact. None decodes all.

    Raises:
        ImageError: if it is not an image, damaged, incomplete, too large, or of a kind without a stated conversion.
        FeedError: if an array is not one of pixels.
        InputError: if the file does not exist.
        ResourceError: if reading it failed, or memory ran out.
        MissingPackageError: if it is a DICOM file, and pydicom is not installed.
    """
    if isinstance(source, LoadedImage):
        return source
    if isinstance(source, Image.Image):
        with _decoding_errors_about("image"):
            return _decoded(source, "image", channels)
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        return _load_file(source, channels, most_pixels, needed)
    if hasattr(source, "read"):
        return _load_file(cast("BinaryIO", source), channels, most_pixels, needed)
    return LoadedImage.from_array(source)


def _load_file(source: FileSource, channels: int, most_pixels: int, needed: ReducedSize | None) -> LoadedImage:
    name = _name_of(source)
    if isinstance(source, (str, os.PathLike)) and Path(source).exists() and not Path(source).is_file():
        raise ImageError(name, "is not a regular file", "give an image file")
    with os_errors_about(name), _opened(source) as file, _decoding_errors_about(name):
        head = _head(file)
        reader = _reader_of(head)
        if reader is None and is_dicom(head):
            return _of_dicom(*read_dicom(file, name, most_pixels), name, channels)
        if reader is None:
            raise _unknown_format(head, name)
        image = reader(file)
        if image.width * image.height > most_pixels:
            size = f"is {image.width}x{image.height} pixels, more than the limit of {most_pixels}"
            raise ImageError(name, size, "make it smaller")
        damage = why_not_whole(file, image.format)
        if damage is not None:
            raise ImageError(name, f"cannot be decoded ({damage})", "save or download it again")
        full_size = _reduced(image, needed) if needed is not None and image.format == "JPEG" else None
        return dataclasses.replace(_decoded(image, name, channels), full_size=full_size)


def _reduced(jpeg: ImageFile.ImageFile, needed: ReducedSize) -> SideLengths | None:
    """Let `jpeg` be decoded at a reduced scale, and return its full size when upright; None if it needs all pixels."""
    lies = _orientation(jpeg) in _LYING
    stored = jpeg.size
    full = stored[::-1] if lies else stored
    least = needed(full)
    jpeg.draft(None, least[::-1] if lies else least)
    return None if jpeg.size == stored else full


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


def _head(file: BinaryIO) -> bytes:
    """Return the first bytes of a file, and leave it at its start."""
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    return head


def _reader_of(head: bytes) -> type[ImageFile.ImageFile] | None:
    return next((reader for pattern, reader in _READERS if re.match(pattern, head, re.DOTALL)), None)


def _unknown_format(head: bytes, name: object) -> ImageError:
    why = next(why for pattern, why in _OTHER_FORMATS if re.match(pattern, head, re.DOTALL | re.IGNORECASE))
    return ImageError(name, why, "give a JPEG, PNG, WebP, BMP, GIF, TIFF or DICOM image")


def _of_dicom(image: Image.Image, notes: tuple[str, ...], name: object, channels: int) -> LoadedImage:
    if image.mode != "F" or channels not in (1, 3):
        converted = _decoded(image, name, channels)
        return LoadedImage(converted.pixels, (*notes, *converted.notes))
    if channels == 1:
        return LoadedImage(image, notes)
    values = np.asarray(image)
    levels = values.round()
    rounded = () if np.array_equal(levels, values) else ("values are rounded to 8 bits",)
    return LoadedImage(Image.fromarray(levels.astype(np.uint8)).convert("RGB"), (*notes, *rounded))


def _decoded(image: Image.Image, name: object, channels: int) -> LoadedImage:
    notes = _losses(image, channels)
    image.load()
    orientation = _orientation(image)  # after loading: Pillow rotates a TIFF itself
    if "transparency" in image.info and channels != 4:  # dropped here, or Pillow would warn while dropping it
        image = image.copy()
        del image.info["transparency"]
    converted = {1: _gray, 3: _rgb, 4: _four}.get(channels, _refused)(image, name)
    return LoadedImage(_upright(converted, orientation), notes)


def _losses(image: Image.Image, channels: int) -> tuple[str, ...]:
    stored, keeps_16_bits = _stored_mode(image), channels == 1 and image.mode.startswith("I;16")
    losses = {
        "only the first frame is used": getattr(image, "is_animated", False),
        "transparency is dropped": channels != 4 and image.has_transparency_data,
        "channels after red, green and blue are dropped": channels != 4 and "RGBX" in (image.mode, stored[:4]),
        "16-bit values are cut to their high byte": ";16" in stored and not keeps_16_bits,
        "CMYK is converted without its colour profile": image.mode == "CMYK",
        "colors are converted to gray": channels == 1 and image.mode not in _GRAY_MODES,
    }
    return tuple(note for note, is_lost in losses.items() if is_lost)


def _stored_mode(image: Image.Image) -> str:
    """Return the mode of the pixels in the file, such as `RGB;16B`; of an image in memory, its own."""
    tiles = getattr(image, "tile", ())
    stored = tiles[0].args if tiles else image.mode
    return str(stored[0] if isinstance(stored, tuple) else stored)


def _orientation(image: Image.Image) -> Any:
    """Return the EXIF orientation of an image; None if it has none, or damaged EXIF data."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001  (damaged EXIF fails anywhere in Pillow, and the pixels are as good without it)
        return None


def _upright(pixels: Image.Image, orientation: Any) -> Image.Image:
    """Return `pixels` turned as `orientation`, 2 to 8, says; as they are for anything else that a file may hold."""
    return pixels.transpose(_UPRIGHT[int(orientation)]) if orientation in range(2, 9) else pixels


def _rgb(image: Image.Image, name: object) -> Image.Image:
    """Return an image in mode RGB: the same one if it is in it."""
    if (fractions := _fractions(image, name)) is not None:
        high_bytes = np.asarray(image) >> 8 if image.mode != "F" else np.asarray(fractions).round()
        return Image.fromarray(high_bytes.astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _gray(image: Image.Image, name: object) -> Image.Image:
    """Return an image in mode L, or F where it has more than 8 bits: the same one if it is in mode L."""
    if (fractions := _fractions(image, name)) is not None:
        return fractions
    if image.mode == "L":
        return image
    return (image if image.mode in _GRAY_MODES else image.convert("RGB")).convert("L")


def _four(image: Image.Image, name: object) -> Image.Image:
    """Return a new image in mode RGBA, which holds any four channels."""
    is_palette = image.mode in ("P", "PA") and image.has_transparency_data
    bands = (image.convert("RGBA") if is_palette else image).split()
    if len(bands) != 4 or image.mode == "CMYK":
        why = f"has the channels {', '.join(image.getbands())}, the model takes 4"
        raise ImageError(name, why, "give an image that stores four channels, such as a TIFF, or arrays")
    return Image.merge("RGBA", bands)


def _refused(image: Image.Image, name: object) -> Image.Image:
    why = f"has the channels {', '.join(image.getbands())}, the model takes another number of them"
    raise ImageError(name, why, "give arrays (N, C, H, W), which need no decoding")


def _fractions(image: Image.Image, name: object) -> Image.Image | None:
    """Return an image of more than 8 bits as fractions of 255, in mode F; None of any other."""
    if image.mode == "I":
        raise ImageError(name, "holds 32-bit or signed integers: white is unknown", "save it with 8 or 16 bits")
    values = np.asarray(image) if image.mode == "F" or image.mode.startswith("I;16") else None
    if values is None:
        return None
    if image.mode != "F":
        return _fractions_of_255(values)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # false for NaN too
        raise ImageError(name, f"holds floats from {low:g} to {high:g}", "scale them to 0…1 or save it with 8 bits")
    return Image.fromarray(values * np.float32(255))


def _fractions_of_255(values: Array) -> Image.Image:
    """Return uint16 values as an image in mode F, white at 255."""
    return Image.fromarray(values.astype(np.float32) / np.float32(257))
