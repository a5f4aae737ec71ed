"""Engines on disk: a plan and its sidecar, checked together before TensorRT sees a byte, and written together.

A plan is native code that TensorRT loads without looking: whoever can change a byte of it can run anything. So its hash
must be the one that the sidecar was written for. That guards against damage and mix-ups, not against somebody who
rewrites both files: load engines that you built, or got over a channel that you trust.

To replace a plan, a sidecar with the old and the new record is written, then the plan, then a sidecar with the new
record alone: a plan has its record at every moment, whenever the power fails.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from densenet_deploy.artifacts import os_errors_about, put_in_place, require_file, sync, written_beside
from densenet_deploy.errors import BackendError, DeviceError, ManifestError, ModelFileError
from densenet_deploy.runtime.plan import PlanHeader, checked_header, numbers, same_version
from densenet_deploy.runtime.sidecar import Sidecar, read_records, sidecar_path, write_records

_REBUILD: Final = "build it again on this machine: densenet-deploy build-trt"


@dataclass(frozen=True)
class Plan:
    """The bytes of a plan that was checked, its header, and its facts; None where a stranger's plan was trusted."""

    path: Path
    data: bytes
    header: PlanHeader
    sidecar: Sidecar | None


def read_plan(path: Path, *, trust_engine: bool = False) -> Plan:
    """Read a plan and make sure that it is the one its sidecar describes.

    Args:
        path: the engine file.
        trust_engine: take a plan without a sidecar too. One whose sidecar describes another plan is refused anyway.

    Raises:
        InputError: if there is no such file.
        ModelFileError: if it is no plan, was cut or changed, or has no sidecar.
        ManifestError: if the sidecar cannot be read, or is of a newer schema.
    """
    require_file(path)
    with os_errors_about(path):
        data = path.read_bytes()
    import hashlib

    records = read_records(path)
    if records is None and not trust_engine:
        fix = "build it with build-trt, or if you trust its author load it with --trust-engine"
        raise ModelFileError(path, f"has no sidecar {sidecar_path(path).name} that vouches for it", fix)
    sidecar = None if records is None else records.get(hashlib.sha256(data).hexdigest())
    if records is not None and sidecar is None:
        fix = (
            "copy both files again or build it again; another tool's plan loads without this sidecar and --trust-engine"
        )
        raise ModelFileError(path, f"is not the plan that {sidecar_path(path).name} describes: its hash differs", fix)
    header = checked_header(data, path)
    if sidecar is not None and (sidecar.flavour, sidecar.size) != (header.flavour, len(data)):
        raise ModelFileError(path, "is of another flavour or size than its sidecar says", "build it again")
    return Plan(path, data, header, sidecar)


def require_version(plan: Plan, flavour: str, version: str) -> None:
    """Check that the TensorRT at hand, `flavour` in `version`, takes the plan.

    Raises:
        BackendError: if it was built by another flavour, or by a version that this one does not take.
    """
    built, here = f"{plan.header.flavour} {plan.header.version}", f"{flavour} {version}"
    if plan.header.flavour == flavour and _takes_version(plan, version):
        return
    raise BackendError(plan.path, f"was built by {built}, and this is {here}", f"install that version, or {_REBUILD}")


def require_gpu(plan: Plan, compute_capability: str) -> None:
    """Check that the plan was built for a GPU of `compute_capability` (`8.6`).

    Of a full TensorRT plan that is trusted without a sidecar nothing is known, and TensorRT itself will say.

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
        why = f"was built for compute capability {', '.join(built_for)}, and this GPU has {compute_capability}"
        raise DeviceError(plan.path, why, _REBUILD)


def write_engine(path: Path, plan: bytes | bytearray, sidecar: Sidecar) -> None:
    """Write a plan and its sidecar (see `place_engine`).

    Raises:
        ResourceError: if the disk is full, read-only or not permitted.
    """
    with written_beside(path) as temporary:
        temporary.write_bytes(plan)
        sync(temporary)
        place_engine(temporary, path, sidecar)


def place_engine(temporary: Path, path: Path, sidecar: Sidecar) -> None:
    """Move a plan that is on the disk to `path`, so that whatever plan lies there has its record at every moment.

    Raises:
        ResourceError: if the disk is full, read-only or not permitted.
    """
    with os_errors_about(path), _alone_in(path.parent):
        old: dict[str, Sidecar] = {}
        with contextlib.suppress(ManifestError):  # a sidecar that nobody can read vouches for nothing
            old = read_records(path) or {}
        write_records(path, {**old, sidecar.sha256: sidecar})
        try:
            put_in_place(temporary, path)
        except BaseException:
            if not old and not path.exists():  # a record of nothing
                sidecar_path(path).unlink(missing_ok=True)
            raise
        if old.keys() - {sidecar.sha256}:
            write_records(path, {sidecar.sha256: sidecar})


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other writers of engines out of `folder` for a moment, where the system knows how."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with os_errors_about(folder):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems lock nothing
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _takes_version(plan: Plan, version: str) -> bool:
    if same_version(plan.header.version, version):
        return True
    if plan.sidecar is None or not plan.sidecar.version_compatible:
        return False
    built, here = numbers(plan.sidecar.version), numbers(version)
    return built[:3] <= here[:3] and here[0] <= built[0] + 1


def _fits_full(sidecar: Sidecar, compute_capability: str) -> bool:
    if sidecar.hardware == "ampere-plus":
        return numbers(compute_capability) >= (8, 0)
    return compute_capability in sidecar.targets
