"""Find damage in image files that decoders do not report: wrong checksums and missing ends.

Pillow stops reading when it has all pixels. A PNG with corrupted pixel data then shows other colors, and a JPEG that
was cut and padded with zeros (by an interrupted download, say) shows its upper part above plain gray. Both are visible
in the file itself: PNG has a CRC in every chunk, and JPEG ends with a marker after its last scan. What follows the end
is ignored: phones store thumbnails and videos there.

Damage inside the scans of a JPEG cannot be found this way: the format has no checksums.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import BinaryIO, Final

_PNG_SIGNATURE_BYTES: Final = 8
_JPEG_SIGNATURE_BYTES: Final = 2
_PNG_NEEDED: Final = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_CUT: Final = "ends too early"

# Neither a stuffed 0xFF, nor a restart between blocks, nor padding.
_MARKER: Final = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")
_END_OF_IMAGE: Final = b"\xff\xd9"
_WITHOUT_LENGTH: Final = (b"\xff\x01", b"\xff\xd8")

_READ: Final = 65536  # bytes


def why_not_whole(file: BinaryIO, image_format: str | None) -> str | None:
    """Return what is wrong with the bytes of an image in the format `image_format`, as Pillow names it, or None.

    The position of `file` is restored.
    """
    check = {"PNG": _png_damage, "JPEG": _jpeg_damage}.get(image_format or "")
    if check is None:
        return None
    position = file.tell()
    try:
        return check(file)
    finally:
        file.seek(position)


def _png_damage(file: BinaryIO) -> str | None:
    file.seek(_PNG_SIGNATURE_BYTES)
    kind = b""
    while kind != b"IEND":
        head = file.read(8)
        if len(head) < 8:
            return _CUT
        length, kind = struct.unpack(">I4s", head)
        checksum = _checksum(file, kind, length)
        if kind in _PNG_NEEDED and file.read(4) != struct.pack(">I", checksum):
            return f"its {kind.decode()} chunk is damaged"
        if kind not in _PNG_NEEDED:
            file.seek(4, io.SEEK_CUR)
    return None


def _checksum(file: BinaryIO, kind: bytes, length: int) -> int:
    """Return the CRC of the chunk `kind`: its `length` bytes follow in `file`, as far as they exist."""
    checksum = zlib.crc32(kind)
    while part := file.read(min(length, _READ)):
        checksum = zlib.crc32(part, checksum)
        length -= len(part)
    return checksum


def _jpeg_damage(file: BinaryIO) -> str | None:
    file.seek(_JPEG_SIGNATURE_BYTES)
    while marker := _next_marker(file):
        if marker == _END_OF_IMAGE:
            return None
        if marker not in _WITHOUT_LENGTH:
            length = file.read(2)  # counts itself
            if len(length) < 2:
                return _CUT
            file.seek(max(0, int.from_bytes(length, "big") - 2), io.SEEK_CUR)
    return _CUT


def _next_marker(file: BinaryIO) -> bytes | None:
    """Return the next marker and leave `file` after it, or None at the end."""
    while len(part := file.read(_READ)) > 1:
        if match := _MARKER.search(part):
            file.seek(match.end() - len(part), io.SEEK_CUR)
            return match[0]
        if part.endswith(b"\xff"):
            file.seek(-1, io.SEEK_CUR)
    return None
