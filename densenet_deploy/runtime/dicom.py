"""Read a DICOM file as a radiologist's viewer shows it: rescaled, windowed, white at 255.

=====================  ===========================================================================================
stored values          become the modality's (rescale slope and intercept, or its lookup table)
window                 the file's first; without one, the range of the stored bits: black is the lowest value.
                       A VOI lookup table is not applied
MONOCHROME2            as it is
MONOCHROME1            inverted, so that bright tissue is bright
RGB, YBR               the colors, 8 bits each
several frames         the first
=====================  ===========================================================================================

All of this is said in the notes. Gray values are fractions of 255, so that 16 bits stay 16 bits. The package pydicom
(the extra `dicom`) is imported where a file is read. A DICOM file is untrusted input: the size in its header is
checked before any pixel is decoded. Equations: DICOM PS3.3, C.11.1 (modality) and C.11.2 (window).
"""

from __future__ import annotations

import io
import math
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from densenet_deploy.errors import ImageError
from densenet_deploy.packages import require_packages

HEADER_BYTES: Final = 132
"""The preamble, which may hold anything, and the four letters `DICM`."""

_DEFLATED: Final = "1.2.840.10008.1.2.1.99"
_FIRST_GROUP_OF_DATA: Final = 0x0003_0000  # tags before it are of the file, not of the image
_COLORS: Final = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_MOST_BITS: Final = 16

Values = npt.NDArray[np.float64]


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts with `head` says that it is a DICOM file."""
    return head[128:HEADER_BYTES] == b"DICM"


def read_dicom(file: BinaryIO, name: object, most_pixels: int) -> tuple[Image.Image, tuple[str, ...]]:
    """Return the image in a DICOM file in mode F, white at 255, or in mode RGB; and what was done to it.

    Args:
        file: to read from its start.
        name: of the file, for errors.
        most_pixels: refuse larger images before they cost memory.

    Raises:
        ImageError: if it holds no image, or one that is damaged, too large, or of a kind without a stated conversion.
        MissingPackageError: if pydicom is not installed.
    """
    require_packages("dicom", "pydicom")
    file.seek(0)
    dataset = _dataset(io.BytesIO(file.read()), name)  # from memory, where a length in the file reserves nothing
    _check(dataset, name, most_pixels)
    pixels = _first_frame(dataset, name)
    frames = ("only the first frame is used",) if int(dataset.get("NumberOfFrames") or 1) > 1 else ()
    if dataset.SamplesPerPixel == 3:
        return Image.fromarray(pixels), frames
    values, notes = _displayed(pixels, dataset, name)
    return Image.fromarray(values.astype(np.float32)), (*frames, *notes)


def _dataset(file: BinaryIO, name: object) -> Any:
    """Parse the whole file, unless it is deflated: a few kilobytes could hold gigabytes."""
    from pydicom.filereader import dcmread, read_dataset

    file.seek(HEADER_BYTES)
    described = read_dataset(file, False, True, stop_when=lambda tag, *_: tag >= _FIRST_GROUP_OF_DATA)
    if described.get("TransferSyntaxUID") == _DEFLATED:
        raise ImageError(name, "is deflated", "save it with an uncompressed transfer syntax")
    file.seek(0)
    return dcmread(file)


def _check(dataset: Any, name: object, most_pixels: int) -> None:
    """Refuse what is not one of the images that are converted here."""
    if "PixelData" not in dataset or "Rows" not in dataset or "Columns" not in dataset:
        raise ImageError(name, f"is a DICOM file without an image ({_kind(dataset)})", "give one that holds an image")
    width, height = int(dataset.Columns), int(dataset.Rows)
    if width * height > most_pixels:
        why = f"is {width}x{height} pixels, more than the limit of {most_pixels}"
        raise ImageError(name, why, "make it smaller")
    photometric, samples, bits = dataset.PhotometricInterpretation, dataset.SamplesPerPixel, dataset.BitsAllocated
    is_gray = photometric in ("MONOCHROME1", "MONOCHROME2") and samples == 1 and bits <= _MOST_BITS
    is_colored = photometric in _COLORS and samples == 3 and bits == 8
    if not width * height or not (is_gray or is_colored):
        why = f"stores {width}x{height} pixels of {samples} {photometric} samples of {bits} bits"
        raise ImageError(name, why, "save it as MONOCHROME2 of up to 16 bits, or RGB of 8")


def _kind(dataset: Any) -> str:
    """What the file says that it is, such as `Basic Text SR Storage`."""
    uid = dataset.get("SOPClassUID") or "of no stated kind"
    return str(getattr(uid, "name", uid))


def _first_frame(dataset: Any, name: object) -> npt.NDArray[Any]:
    """Decode (H, W), or (H, W, 3) of RGB."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        is_known = get_decoder(syntax).is_available
    except NotImplementedError:
        is_known = False
    if not is_known:
        fix = "decompress it with `gdcmconv --raw IN OUT`, or install pylibjpeg and its codecs"
        raise ImageError(name, f"is compressed as {syntax.name}, which no installed package decodes", fix)
    return np.asarray(pixel_array(dataset, index=0))


def _displayed(stored: npt.NDArray[Any], dataset: Any, name: object) -> tuple[Values, tuple[str, ...]]:
    """Return gray values 0 to 255 of stored ones, and what was assumed and done."""
    from pydicom.pixels.processing import apply_modality_lut

    values = np.asarray(apply_modality_lut(stored, dataset), np.float64)
    center, width = (_first(dataset.get(element)) for element in ("WindowCenter", "WindowWidth"))
    if center is not None and width is not None:
        function = str(dataset.get("VOILUTFunction") or "LINEAR")
        shown = _windowed(values, center, width, function, name)
        notes = [f"the window {center:g} ± {width / 2:g} of the file is black to white"]
    else:
        low, high = sorted(float(value) for value in apply_modality_lut(_stored_range(dataset), dataset))
        if low == high:
            raise ImageError(name, f"rescales every value to {low:g}", "repair it")
        shown = _scaled(values, low, high)
        notes = [f"the file has no window: {low:g} to {high:g}, which its bits can hold, is black to white"]
    if "VOILUTSequence" in dataset:
        notes.append("the VOI lookup table of the file is not applied")
    if not np.isfinite(shown).all():
        raise ImageError(name, "has a rescale slope or window that makes no finite values", "repair it")
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        notes.append("MONOCHROME1 is inverted: the lowest value is white")
        shown = 255 - shown
    return shown, tuple(notes)


def _first(value: Any) -> float | None:
    """Return the first number of an element with one or several, or None of an empty one."""
    if value is None or value == "":
        return None
    return (
        float(value) if isinstance(value, (str, int, float)) or not hasattr(value, "__getitem__") else _first(value[0])
    )


def _stored_range(dataset: Any) -> npt.NDArray[np.int64]:
    """Return the lowest and highest value that the stored bits can hold."""
    bits = int(dataset.BitsStored)
    return np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if dataset.PixelRepresentation else [0, 2**bits - 1])


def _windowed(values: Values, center: float, width: float, function: str, name: object) -> Values:
    smallest = 1.0 if function == "LINEAR" else math.ulp(0.0)
    if not width >= smallest or function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ImageError(name, f"has a {function} window of width {width:g}", "repair it")
    if function == "SIGMOID":
        return 127.5 + 127.5 * np.tanh(2 * (values - center) / width)  # 255 / (1 + exp(-4 …)), without an overflow
    if function == "LINEAR":  # of whole numbers: the ends are half a value inside
        center, width = center - 0.5, width - 1
    return _scaled(values, center - width / 2, center + width / 2)


def _scaled(values: Values, low: float, high: float) -> Values:
    """Return 0 up to `low`, 255 from `high`, and a line between them; a step if both are equal."""
    if low == high:
        return np.where(values > low, 255.0, 0.0)
    return np.asarray(np.clip((values - low) / (high - low), 0, 1) * 255)
