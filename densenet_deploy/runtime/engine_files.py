"""TensorRT engines on disk: a plan and its sidecar, checked together before TensorRT reads a byte, written together.

A plan, as TensorRT calls the bytes of an engine, is native code that is loaded without any checks: whoever can change a
byte of it can run anything. So its hash must be the one that the sidecar was written for. That guards against damage
and mix-ups, not against somebody who rewrites both files: load engines that you built, or got through a channel that
you trust.

To replace a plan, a sidecar with the old and the new record is written, then the plan, then a sidecar with the new
record alone: a plan has its record at every moment, whenever the power fails.

The first bytes of a plan state flavour, version, size and target GPUs, little endian:

    0   4 bytes  "ftrt" full TensorRT, "vtrt" TensorRT-RTX
    4   u32      serialization version, 0
    16  u64      size of the whole file
    24  4 × u8   version of the TensorRT that wrote it: major, minor, patch, build
    32  u32      TensorRT-RTX: one bit for each compute capability, see `_CAPABILITY_BITS`
    64  24 bytes for each of two sections of TensorRT-RTX: "NGNE" program or "THGW" weights, 0, u64 offset, u64 size

Precision, inputs and outputs cannot be read from a plan: the sidecar states them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from densenet_deploy.artifacts import os_errors_about, put_in_place, require_file
from densenet_deploy.errors import BackendError, DeviceError, ManifestError, ModelFileError
from densenet_deploy.runtime.sidecar import Sidecar, read_records, sidecar_path, write_records

HEADER_BYTES: Final = 36
NEWER_GPUS: Final = "newer"
"""Among the targets of an RTX plan: compute capabilities after the newest that it names."""

_MAGIC: Final = {b"ftrt": "tensorrt", b"vtrt": "rtx"}
_CAPABILITY_BITS: Final = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1", NEWER_GPUS)
_NEWEST: Final = (12, 1)
_SECTIONS_AT: Final = 64
_FIRST_SECTION: Final = struct.Struct("<4s4xQQ")
_REBUILD: Final = "build it again on this machine: densenet-deploy build-trt"


@dataclass(frozen=True)
class PlanHeader:
    """What a plan states about itself.

    Attributes:
        flavour: `tensorrt` or `rtx`.
        version: of the TensorRT that wrote it, four numbers with dots.
        size: bytes of the whole plan.
        targets: compute capabilities that an RTX plan was built for, `newer` for later ones; empty for full TensorRT.
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
    """Read the header from the first bytes of a file, at least `HEADER_BYTES`; None if it is not a plan."""
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
        ModelFileError: if it is not a plan, or an RTX plan of another size than it states.
    """
    header = sniff(data)
    if header is None:
        raise ModelFileError(subject, "is not a TensorRT engine", "build it with densenet-deploy build-trt")
    if header.flavour == "rtx" and header.size != len(data):  # full TensorRT does not always store its size there
        why = f"has {len(data)} bytes, and its header states {header.size}"
        raise ModelFileError(subject, why, "copy or build it again")
    return header


def program_section(plan: Any) -> bytes:
    """Return the part of an RTX plan, a buffer, without its weights; the whole plan where that is unknown."""
    data = memoryview(plan)
    if len(data) >= _FIRST_SECTION.size + _SECTIONS_AT:
        tag, offset, size = _FIRST_SECTION.unpack_from(data, _SECTIONS_AT)
        if tag == b"NGNE" and 0 < offset < offset + size <= len(data):
            return bytes(data[offset : offset + size])
    return bytes(data)


def same_version(a: str, b: str) -> bool:
    """Whether two versions agree in all numbers that both have; a plan stores the lowest byte of each.

    >>> same_version("10.3.0", "10.3.0.26"), same_version("10.3.0.26", "10.4.0.26")
    (True, False)
    """
    return all(x % 256 == y % 256 for x, y in zip(numbers(a)[:4], numbers(b), strict=False))


def numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: `10.14.1.48.post1` is (10, 14, 1, 48)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


@dataclass(frozen=True)
class Plan:
    """The bytes of a checked plan, its header, and its sidecar; None where a plan without one was trusted."""

    path: Path
    data: bytes
    header: PlanHeader
    sidecar: Sidecar | None


def read_plan(path: Path, *, trust_engine: bool = False) -> Plan:
    """Read a plan and check that it is the one its sidecar describes.

    Args:
        path: the engine file.
        trust_engine: accept a plan without a sidecar. One with the sidecar of another plan is refused anyway.

    Raises:
        InputError: if the file does not exist.
        ModelFileError: if it is not a plan, was cut or changed, or has no sidecar.
        ManifestError: if the sidecar cannot be read, or is of a newer schema.
    """
    require_file(path)
    with os_errors_about(path):
        data = path.read_bytes()
    records = read_records(path)
    if records is None and not trust_engine:
        fix = "build it with build-trt, or if you trust its author load it with --trust-engine"
        raise ModelFileError(path, f"has no sidecar {sidecar_path(path).name}", fix)
    sidecar = None if records is None else records.get(hashlib.sha256(data).hexdigest())
    if records is not None and sidecar is None:
        fix = "copy both files again, or build it again; an engine of another tool needs --trust-engine and no sidecar"
        raise ModelFileError(path, f"is not the engine that {sidecar_path(path).name} describes: its hash differs", fix)
    header = checked_header(data, path)
    if sidecar is not None and (sidecar.flavour, sidecar.size) != (header.flavour, len(data)):
        raise ModelFileError(path, "has another flavour or size than its sidecar states", "build it again")
    return Plan(path, data, header, sidecar)


def require_version(plan: Plan, flavour: str, version: str) -> None:
    """Check that the installed TensorRT, `flavour` in `version`, can load the plan.

    Raises:
        BackendError: if it was built by another flavour, or by a version that this one does not accept.
    """
    built, here = f"{plan.header.flavour} {plan.header.version}", f"{flavour} {version}"
    if plan.header.flavour == flavour and _takes_version(plan, version):
        return
    raise BackendError(plan.path, f"was built by {built}; this is {here}", f"install that version, or {_REBUILD}")


def require_gpu(plan: Plan, compute_capability: str) -> None:
    """Check that the plan was built for a GPU of `compute_capability` (`8.6`).

    Nothing is known of a full TensorRT plan that is trusted without a sidecar, and TensorRT itself will check it.

    Raises:
        DeviceError: if it was built for others.
    """
    sidecar = plan.sidecar
    if plan.header.flavour == "rtx":
        fits, built_for = plan.header.supports(compute_capability), plan.header.targets
    elif sidecar is None:
        return
    else:
        fits, built_for = _fits_full(sidecar, compute_capability), sidecar.targets
    if not fits:
        why = f"was built for compute capability {', '.join(built_for)}, and this GPU is {compute_capability}"
        raise DeviceError(plan.path, why, _REBUILD)


def place_engine(temporary: Path, path: Path, sidecar: Sidecar) -> None:
    """Move a plan that is on the disk to `path`, so that the plan at `path` has its record at every moment.

    Raises:
        ResourceError: if the disk is full, read-only or not permitted.
    """
    with os_errors_about(path), _alone_in(path.parent):
        old: dict[str, Sidecar] = {}
        with contextlib.suppress(ManifestError):  # an unreadable sidecar holds no records
            old = read_records(path) or {}
        write_records(path, {**old, sidecar.sha256: sidecar})
        try:
            put_in_place(temporary, path)
        except BaseException:
            if not old and not path.exists():  # a record without a plan
                sidecar_path(path).unlink(missing_ok=True)
            raise
        if old.keys() - {sidecar.sha256}:
            write_records(path, {sidecar.sha256: sidecar})


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other writers of engines out of `folder` during the block, where the system supports it."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with os_errors_about(folder):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems do not lock
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _takes_version(plan: Plan, version: str) -> bool:
    if plan.sidecar is None or not plan.sidecar.version_compatible:
        return same_version(plan.header.version, version)
    built, here = numbers(plan.sidecar.version), numbers(version)
    return built[:3] <= here and here[0] <= built[0] + 1


def _fits_full(sidecar: Sidecar, compute_capability: str) -> bool:
    if sidecar.hardware == "ampere-plus":
        return numbers(compute_capability) >= (8, 0)
    return compute_capability in sidecar.targets
