"""TIFF files written by hand, for the kinds that Pillow cannot write: any number of bands, of any meaning."""

from __future__ import annotations

import struct

import numpy as np

UNSPECIFIED, ALPHA = 0, 2
"""What the samples after red, green and blue are (ExtraSamples, TIFF 6.0 section 18); 1 is premultiplied alpha."""

SHORT, LONG = 3, 4


def tiff(bands: np.ndarray, extra: int | None = UNSPECIFIED, *, is_planar: bool = False) -> bytes:
    """Return an uncompressed RGB TIFF of `bands`, (H, W, C) uint8 or uint16, little-endian."""
    height, width, count = bands.shape
    planes = [bands[..., band] for band in range(count)] if is_planar else [bands]
    pixels = b"".join(plane.astype(plane.dtype.newbyteorder("<")).tobytes() for plane in planes)
    size, start = len(pixels) // len(planes), 8
    tags = {
        256: (SHORT, [width]),
        257: (SHORT, [height]),
        258: (SHORT, [8 * bands.itemsize] * count),
        259: (SHORT, [1]),  # not compressed
        262: (SHORT, [2]),  # RGB
        273: (LONG, [start + size * place for place in range(len(planes))]),
        277: (SHORT, [count]),
        278: (SHORT, [height]),
        279: (LONG, [size] * len(planes)),
        284: (SHORT, [2 if is_planar else 1]),
    }
    if extra is not None and count > 3:
        tags[338] = (SHORT, [extra] * (count - 3))
    data, entries = bytearray(pixels), b""
    for tag, (kind, values) in tags.items():
        packed = struct.pack(f"<{len(values)}{'H' if kind == SHORT else 'L'}", *values)
        if len(packed) > 4:
            data += bytes(len(data) % 2)
            packed, place = struct.pack("<L", start + len(data)), packed
            data += place
        entries += struct.pack("<HHL", tag, kind, len(values)) + packed.ljust(4, b"\0")
    data += bytes(len(data) % 2)
    header = b"II*\0" + struct.pack("<L", start + len(data))
    return header + bytes(data) + struct.pack("<H", len(tags)) + entries + bytes(4)
