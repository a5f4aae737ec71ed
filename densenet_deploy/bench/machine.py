"""The machine that a measurement belongs to: processors, clocks, versions, and the load from other programs.

What the system does not report is None, never a guess. Facts about NVIDIA GPUs come from `nvidia-smi`, which is
installed with the driver.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from densenet_deploy.packages import installed_versions
from densenet_deploy.runtime.cpus import cpu_name, cpu_quota, has_vnni, usable_cpus
from densenet_deploy.runtime.nvidia import Gpu

QUIET_CPUS: Final = 0.1
_STAT: Final = Path("/proc/stat")
_CPUINFO: Final = Path("/proc/cpuinfo")
_MEMINFO: Final = Path("/proc/meminfo")
_CPUFREQ: Final = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_SMI_SECONDS: Final = 10
_GPU_FACTS: Final = (
    "name",
    "driver_version",
    "compute_cap",
    "memory.total",
    "clocks.sm",
    "clocks.max.sm",
    "temperature.gpu",
    "persistence_mode",
)
_MIB: Final = 2**20


@dataclass(frozen=True)
class Machine:
    """Where and when something was measured.

    Attributes:
        versions: of packages, by name.
        busy_cpus: CPU time per second that other programs used just before.
        cpu_quota: CPU time per second that the cgroup grants; None if it is not limited.
        cpu_mhz, governor: the clock of the first CPU at that moment, and its frequency governor.
        vnni: whether an x86 CPU has VNNI or AMX, on which the speed of INT8 depends; None of other CPUs.
    """

    cpu: str
    usable_cpus: int
    system: str
    python: str
    versions: Mapping[str, str]
    date: str
    busy_cpus: float | None
    cpu_quota: float | None = None
    cpu_mhz: float | None = None
    governor: str | None = None
    memory_bytes: int | None = None
    gpus: tuple[Gpu, ...] = ()
    vnni: bool | None = None

    @classmethod
    def this(cls, *packages: str) -> Self:
        """Describe this machine, with the versions of the installed ones of `packages`; takes about a second."""
        return cls(
            cpu=cpu_name() or platform.processor() or platform.machine(),
            usable_cpus=usable_cpus(),
            system=platform.platform(),
            python=platform.python_version(),
            versions=installed_versions(packages),
            date=dt.datetime.now(dt.UTC).date().isoformat(),
            busy_cpus=busy_cpus(),
            cpu_quota=cpu_quota(),
            cpu_mhz=_cpu_mhz(),
            governor=_read(_CPUFREQ / "scaling_governor").strip() or None,
            memory_bytes=_memory_bytes(),
            gpus=gpus(),
            vnni=has_vnni(),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What makes figures measured on this machine at that moment uncertain."""
        if self.busy_cpus is None or self.busy_cpus <= QUIET_CPUS:
            return ()
        return (f"other programs use {self.busy_cpus:.2f} CPUs; the figures are preliminary",)

    def __str__(self) -> str:
        clock = "" if self.cpu_mhz is None else f", {self.cpu_mhz:.0f} MHz"
        return "; ".join([f"{self.processor}{clock}", *self._gpus])

    @property
    def processor(self) -> str:
        """The CPUs, as far as they stay the same from run to run."""
        quota = "" if self.cpu_quota is None else f", quota {self.cpu_quota:g}"
        return f"{self.cpu}, {self.usable_cpus} usable CPUs{quota}{f', {self._vnni}' if self._vnni else ''}"

    def other_hardware(self, now: Machine) -> list[str]:
        """Return in words how the hardware of `now` differs from this one's, as far as both are known."""
        words = [
            f"{name.replace('_', ' ')} {getattr(self, name)}, now {getattr(now, name)}"
            for name in ("cpu", "usable_cpus", "cpu_quota")
            if getattr(self, name) != getattr(now, name)
        ]
        pairs = [(self._vnni, now._vnni)] if self._vnni and now._vnni else []
        pairs.append(("; ".join(self._gpus) or "no GPU", "; ".join(now._gpus) or "no GPU"))
        return [*words, *(f"{before}, now {after}" for before, after in pairs if before != after)]

    @property
    def _vnni(self) -> str:
        return "" if self.vnni is None else "with VNNI" if self.vnni else "without VNNI"

    @property
    def _gpus(self) -> list[str]:
        return [f"{gpu.name}, driver {gpu.driver}" for gpu in self.gpus]


def busy_cpus(seconds: float = 1.0) -> float | None:
    """Return the CPU time per second used while this process sleeps; None if the system does not report it."""
    if not _STAT.exists():
        return None
    before = _busy_ticks()
    time.sleep(seconds)
    return round((_busy_ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds, 2)


def gpus() -> tuple[Gpu, ...]:
    """Return the NVIDIA GPUs that `nvidia-smi` lists; none if it is missing or fails."""
    return tuple(_gpu(index, row) for index, row in enumerate(_ask_smi(_GPU_FACTS)))


def gpu_memory_used_bytes() -> int | None:
    """Return the memory in use on all NVIDIA GPUs together, by any program; None if no GPU answers."""
    used = [_number(value) for (value,) in _ask_smi(("memory.used",))]
    known = [mib for mib in used if mib is not None]
    return int(sum(known) * _MIB) if known else None


def _ask_smi(facts: tuple[str, ...]) -> list[list[str]]:
    """One list of texts per GPU, in the order of `facts`."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(facts)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[field.strip() for field in line.split(",")] for line in done.stdout.splitlines()]
    return [row for row in rows if len(row) == len(facts)]


def _gpu(index: int, row: list[str]) -> Gpu:
    name, driver, capability, total, clock, highest, celsius, persistence = row
    mib = _number(total)
    return Gpu(
        index=index,
        name=name,
        compute_capability=capability,
        driver=driver,
        memory_bytes=None if mib is None else int(mib * _MIB),
        clock_mhz=_number(clock),
        highest_clock_mhz=_number(highest),
        temperature_celsius=_number(celsius),
        persistent=persistence == "Enabled",
    )


def _number(text: str) -> float | None:
    """A number from nvidia-smi, which writes `[N/A]` or `[Not Supported]` for what a device does not report."""
    try:
        return float(text)
    except ValueError:
        return None


def _cpu_mhz() -> float | None:
    scaled = _read(_CPUFREQ / "scaling_cur_freq").strip()
    if scaled.isdecimal():
        return int(scaled) / 1000
    clock = re.search(r"^cpu MHz\s*:\s*([\d.]+)$", _read(_CPUINFO), re.MULTILINE)
    return float(clock[1]) if clock else None


def _memory_bytes() -> int | None:
    total = re.search(r"^MemTotal:\s*(\d+) kB$", _read(_MEMINFO), re.MULTILINE)
    return int(total[1]) * 1024 if total else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _busy_ticks() -> int:
    """Ticks since boot that CPUs spent on anything but idling and waiting for disks (proc_stat(5))."""
    fields = list(map(int, _STAT.read_text().split("\n", 1)[0].split()[1:9]))
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return user + nice + system + irq + softirq + steal
