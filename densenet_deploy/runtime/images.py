"""Pictures from files, bytes and folders. Whatever goes in, what comes out is RGB, 8 bits a channel, upright and whole.

A picture is untrusted input. Six formats are decoded (JPEG, PNG, WebP, BMP, GIF, TIFF), recognized by their first bytes
and never by the suffix; the size in the header is checked before a pixel is decoded; one that ends early is refused.

==================  ==================================================================================================
what the file has   what becomes of it
==================  ==================================================================================================
gray, 1 bit         the same value in R, G and B (1 bit: 0 or 255)
palette             the colours of the palette
transparency        dropped: the stored colour is kept, as `Image.convert("RGB")` and so torchvision's loader have it
CMYK, YCCK          (255 - C)·(255 - K) / 255 and so on, after Adobe's inversion; colour profiles are not applied
16 bits a channel   the high byte (Pillow's own conversion would clip gray pictures to white)
float gray          0…1 becomes 0…255, rounded; a value outside is refused, for its white is not known
32-bit integers     refused, for their white is not known
EXIF orientation    applied, 1 to 8; damaged EXIF data counts as 1
several frames      the first one
==================  ==================================================================================================

Every loss is told in `LoadedImage.notes`.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
from densenet_deploy.errors import DataError, DensenetDeployError, FeedError, ImageError, InputError, ResourceError

ImageSource = str | Path | bytes | BinaryIO

IMAGE_SUFFIXES: Final = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
MOST_PIXELS: Final = 2**30 // 12  # as many as Pillow takes without a warning

# The classes are called directly: `Image.open` would warn of a large picture before its size could be refused here.
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
    (rb"", "is in no known picture format"),
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
    """A picture: `pixels` in Pillow's mode RGB, and in `notes` what was lost on the way there."""

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


@dataclass(frozen=True)
class LabelledImage:
    """The path of a picture, and the index of its class among the model's outputs."""

    path: Path
    index: int


@dataclass(frozen=True)
class BadImage:
    """A picture that could not be read, and why."""

    path: Path
    error: InputError


def load_image(source: ImageSource, *, most_pixels: int = MOST_PIXELS) -> LoadedImage:
    """Decode one picture.

    >>> load_image("cat.jpg").pixels.size      # doctest: +SKIP
    (500, 375)

    Args:
        source: a path, the bytes of a file, or an open binary file, which is read from its start and left open.
        most_pixels: refuse larger pictures, before they cost memory.

    Raises:
        ImageError: if it is no picture, damaged, cut short, too large, or of a kind that has no stated conversion.
        InputError: if there is no such file.
        ResourceError: if reading it failed, or memory ran out.
    """
    name = _name_of(source)
    if isinstance(source, (str, Path)) and Path(source).exists() and not Path(source).is_file():
        raise ImageError(name, "is no regular file", "give a picture file")
    with os_errors_about(name), _opened(source) as file, _decoding_errors_about(name):
        image = _recognized(file, name)
        if image.width * image.height > most_pixels:
            size = f"is {image.width}x{image.height} pixels, more than {most_pixels} in all"
            raise ImageError(name, size, "make it smaller")
        return _decoded(image, name)


def find_images(folder: Path) -> tuple[Path, ...]:
    """Return the pictures (by suffix) directly inside `folder` or inside its class folders, sorted by path.

    Raises:
        InputError: if there is no such folder.
        DataError: if it holds none.
    """
    with os_errors_about(folder):
        found = [path for place in (folder, *_class_folders(folder)) for path in _images_in(place)]
    if not found:
        raise DataError(folder, "holds no picture, directly or in class folders", f"add {_known_suffixes()} files")
    return tuple(sorted(found))


def find_labelled_images(folder: Path, labels: Sequence[str] | None = None) -> tuple[LabelledImage, ...]:
    """Return the pictures of a tree with one folder a class, `folder/cat/1.jpg`, sorted by path.

    Where every folder is named after a label, the name says the class; there may be fewer folders than labels. Where no
    folder is (ImageNet's `n01440764`), or there are no labels, the sorted folders are the classes in order, as
    torchvision's ImageFolder has it ("10" comes before "2"), and there must be as many as labels. Anything between is
    refused. Folders whose name starts with a dot do not count.

    Raises:
        InputError: if there is no such folder.
        DataError: if there are no class folders, one is empty, or they do not fit the labels.
    """
    with os_errors_about(folder):
        classes = _class_folders(folder)
        if not classes:
            raise DataError(folder, "holds no class folders", "give a folder with one folder of pictures a class")
        indices = _class_indices(folder, [place.name for place in classes], labels)
        return tuple(
            LabelledImage(path, index)
            for place, index in zip(classes, indices, strict=True)
            for path in _images_of_class(place)
        )


class ReadableImages:
    """Iterate over the pictures of `paths` that can be read, as (path, picture); the others are recorded in `bad`.

    Raises:
        DataError: while iterating, at the bad picture that exceeds `max_bad`.
    """

    def __init__(self, paths: Iterable[Path], max_bad: int = 0) -> None:
        self._paths = tuple(paths)
        self._max_bad = max_bad
        self.bad: list[BadImage] = []

    def __iter__(self) -> Iterator[tuple[Path, LoadedImage]]:
        self.bad.clear()
        for path in self._paths:
            try:
                image = load_image(path)
            except InputError as exc:
                record_bad(self.bad, BadImage(path, exc), self._max_bad)
            else:
                yield path, image


def record_bad(bad: list[BadImage], image: BadImage, max_bad: int) -> None:
    """Append `image` to `bad`.

    Raises:
        DataError: naming the first of them, if there are now more than `max_bad`.
    """
    bad.append(image)
    if len(bad) > max_bad:
        first = bad[0]
        why = f"{first.error.why} (unreadable pictures: {len(bad)}, allowed: {max_bad})"
        raise DataError(first.path, why, "repair or remove it, or raise --max-bad") from first.error


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
        raise ResourceError(name, "does not fit into memory", "make the picture smaller") from exc
    except Exception as exc:
        if isinstance(exc, OSError) and exc.errno is not None:
            raise
        raise ImageError(name, f"cannot be decoded ({exc})", "save or download it again") from exc


def _recognized(file: BinaryIO, name: object) -> ImageFile.ImageFile:
    """Read the header of a picture in one of the known formats."""
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    for pattern, reader in _READERS:
        if re.match(pattern, head, re.DOTALL):
            return reader(file)
    why = next(why for pattern, why in _STRANGERS if re.match(pattern, head, re.DOTALL | re.IGNORECASE))
    raise ImageError(name, why, "give a JPEG, PNG, WebP, BMP, GIF or TIFF picture")


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
    except Exception:  # noqa: BLE001  (EXIF is parsed by many paths of Pillow; a picture is no worse for its damage)
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


def _class_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    )


def _images_of_class(folder: Path) -> list[Path]:
    images = _images_in(folder)
    if not images:
        raise DataError(folder, "is a class folder without a picture", f"add {_known_suffixes()} files or remove it")
    return images


def _known_suffixes() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))


def _class_indices(folder: Path, names: Sequence[str], labels: Sequence[str] | None) -> list[int]:
    if not labels:
        return list(range(len(names)))
    strangers = sorted(set(names) - set(labels))
    if not strangers:
        return _indices_by_name(folder, names, labels)
    if len(strangers) < len(names):
        near = difflib.get_close_matches(strangers[0], labels, n=1)
        hint = f", rename it to {near[0]!r}" if near else ""
        raise DataError(folder / strangers[0], "is no label of the model, though others are", f"remove it{hint}")
    if len(names) != len(labels):
        why = f"holds {len(names)} class folders, the model has {len(labels)} labels; the first folder is {names[0]!r}"
        raise DataError(folder, why, f"name the folders after the labels, such as {labels[0]!r}")
    return list(range(len(names)))


def _indices_by_name(folder: Path, names: Sequence[str], labels: Sequence[str]) -> list[int]:
    counts = Counter(labels)
    for name in names:
        if counts[name] > 1:
            raise DataError(folder / name, f"names {counts[name]} labels of the model", "make the labels distinct")
    return [labels.index(name) for name in names]
