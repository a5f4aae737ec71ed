"""What the first bytes of a TensorRT plan say: flavour, version, size and the GPUs it was built for.

Little endian, as both flavours write it:

    0   4 bytes  "ftrt" full TensorRT, "vtrt" TensorRT-RTX
    4   u32      serialization version, 0
    16  u64      size of the whole file
    24  4 × u8   version of the TensorRT that wrote it: major, minor, patch, build
    32  u32      TensorRT-RTX: one bit for each compute capability, see `_CAPABILITY_BITS`
    64  24 bytes for each of two sections of TensorRT-RTX: "NGNE" program or "THGW" weights, 0, u64 offset, u64 size

A plan says nothing of precision, inputs or outputs that could be read here: the sidecar does.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any, Final

from densenet_deploy.errors import ModelFileError

HEADER_BYTES: Final = 36
NEWER_GPUS: Final = "newer"
"""Stands among the targets of an RTX plan for compute capabilities after the newest that it names."""

_MAGIC: Final = {b"ftrt": "tensorrt", b"vtrt": "rtx"}
_CAPABILITY_BITS: Final = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1", NEWER_GPUS)
_NEWEST: Final = (12, 1)
_SECTIONS_AT: Final = 64
_FIRST_SECTION: Final = struct.Struct("<4s4xQQ")


@dataclass(frozen=True)
class PlanHeader:
    """What a plan says of itself.

    Attributes:
        flavour: `tensorrt` or `rtx`.
        version: of the TensorRT that wrote it, four numbers with dots.
        size: bytes of the whole plan, as it says.
        targets: compute capabilities that an RTX plan was built for, `newer` among them for later ones; of full
            TensorRT nothing is said here.
    """

    flavour: str
    version: str
    size: int
    targets: tuple[str, ...]

    def supports(self, compute_capability: str) -> bool:
        """Whether an RTX plan was built for a GPU of `compute_capability` (`8.6`)."""
        if compute_capability in self.targets:
            return True
        return NEWER_GPUS in self.targets and numbers(compute_capability) > _NEWEST


def sniff(data: bytes) -> PlanHeader | None:
    """Read the header from the first bytes of a file, at least `HEADER_BYTES`; None if they are no plan's."""
    flavour = _MAGIC.get(data[:4])
    if flavour is None or len(data) < HEADER_BYTES:
        return None
    size, mask = struct.unpack_from("<Q", data, 16)[0], struct.unpack_from("<I", data, 32)[0]
    version = ".".join(map(str, data[24:28]))
    named = tuple(word for bit, word in enumerate(_CAPABILITY_BITS) if mask >> bit & 1)
    return PlanHeader(flavour, version, size, named if flavour == "rtx" else ())


def checked_header(data: bytes, subject: object) -> PlanHeader:
    """Return the header of the whole plan `data`.

    Raises:
        ModelFileError: if it is no plan, or an RTX plan of another length than it says.
    """
    header = sniff(data)
    if header is None:
        raise ModelFileError(subject, "is no TensorRT plan", "build it with densenet-deploy build-trt")
    if header.flavour == "rtx" and header.size != len(data):  # full TensorRT is not known to keep its size there
        why = f"is {len(data)} bytes long and says that it has {header.size}"
        raise ModelFileError(subject, why, "copy or build it again")
    return header


def program_section(plan: Any) -> bytes:
    """Return what an RTX plan, a buffer, holds before its weights; the whole plan where that cannot be told."""
    data = memoryview(plan)
    if len(data) >= _FIRST_SECTION.size + _SECTIONS_AT:
        tag, offset, size = _FIRST_SECTION.unpack_from(data, _SECTIONS_AT)
        if tag == b"NGNE" and 0 < offset < offset + size <= len(data):
            return bytes(data[offset : offset + size])
    return bytes(data)


def same_version(a: str, b: str) -> bool:
    """Whether two versions agree in all numbers that both have; a plan keeps the lowest byte of each.

    >>> same_version("10.3.0", "10.3.0.26"), same_version("10.3.0.26", "10.4.0.26")
    (True, False)
    """
    return all(x % 256 == y % 256 for x, y in zip(numbers(a)[:4], numbers(b)[:4], strict=False))


def numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: `10.14.1.48.post1` is (10, 14, 1, 48)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()
