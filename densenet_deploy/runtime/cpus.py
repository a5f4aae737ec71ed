"""How many CPUs this process may use, and their features.

`os.cpu_count()` counts those of the machine. A container that may use two of its 64 cores and starts 64 threads spends
its time waiting, so affinity and the cgroup quota (https://docs.kernel.org/admin-guide/cgroup-v2.html, and v1) count.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_CGROUPS: Final = Path("/proc/self/cgroup")
_CPUINFO: Final = Path("/proc/cpuinfo")
_VNNI: Final = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def usable_cpus(cgroups: Path = _CGROUPS, own_cgroups: Path = _OWN_CGROUPS) -> int:
    """Return the smaller of the CPUs this process is bound to and its cgroup quota rounded up; at least 1.

    Args:
        cgroups: where the cgroup file system is mounted.
        own_cgroups: the file that names the groups of this process. A quota of any group above them counts too.
    """
    return whole_cpus(_bound_cpus(), cpu_quota(cgroups, own_cgroups))


def whole_cpus(bound: int, quota: float | None) -> int:
    """Return how many of `bound` CPUs a quota leaves, rounded up.

    >>> whole_cpus(8, 1.5), whole_cpus(8, None)
    (2, 8)
    """
    return bound if quota is None else max(1, min(bound, math.ceil(quota)))


def cpu_quota(cgroups: Path = _CGROUPS, own_cgroups: Path = _OWN_CGROUPS) -> float | None:
    """Return the CPU quota of this process's cgroups in CPUs (1.5, say); None without a quota."""
    return min((quota for folder in _cgroup_folders(cgroups, own_cgroups) for quota in _quotas(folder)), default=None)


def cpu_flags(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """Return the instruction-set flags of the first CPU (`avx2`, `avx512_vnni`, `asimddp`); empty where unknown."""
    return frozenset(_cpu_fact(cpuinfo, ("flags", "Features")).split())


def has_vnni(flags: frozenset[str] | None = None) -> bool | None:
    """Return whether an x86 CPU has VNNI or AMX, which add products of INT8 without saturation; None of other CPUs.

    >>> has_vnni(frozenset({"sse2", "avx2"})), has_vnni(frozenset({"sse2", "avx_vnni"})), has_vnni(frozenset())
    (False, True, None)
    """
    known = cpu_flags() if flags is None else flags
    return bool(known & _VNNI) if "sse2" in known else None


def cpu_name(cpuinfo: Path = _CPUINFO) -> str:
    """Return the model name of the first CPU; empty where unknown."""
    return _cpu_fact(cpuinfo, ("model name", "Model"))


def _bound_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_folders(root: Path, own_cgroups: Path) -> Iterator[Path]:
    """Yield the folder of every group of this process that may hold a CPU quota, and of the groups above it.

    A line reads `0::/path` (v2) or `4:cpu,cpuacct:/path` (v1). In a container the path may be the host's; the mount
    itself is then the group of the container.
    """
    for line in _read(own_cgroups).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in {root / controllers, root / "cpu"} if controllers else {root, root / "unified"}:
            group = mount / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))


def _quotas(folder: Path) -> Iterator[float]:
    """Yield the CPUs' worth of time that `folder` grants: `quota period` in µs in v2, one file each in v1."""
    v2 = _read(folder / "cpu.max")
    v1 = f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"
    for text in (v2, v1):
        numbers = text.split()
        if len(numbers) == 2 and all(number.isdecimal() and int(number) > 0 for number in numbers):
            yield int(numbers[0]) / int(numbers[1])


def _cpu_fact(cpuinfo: Path, keys: tuple[str, ...]) -> str:
    for line in _read(cpuinfo).splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
