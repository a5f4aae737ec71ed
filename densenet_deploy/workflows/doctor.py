"""Doctor: the available backends and devices of this machine, and how to fix the ones that are unavailable."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from densenet_deploy.errors import DensenetDeployError, MissingPackageError
from densenet_deploy.packages import installed_version, is_installed
from densenet_deploy.reports import Report
from densenet_deploy.runtime.cpus import cpu_name, usable_cpus
from densenet_deploy.runtime.runner import Runner, backends

_EXPORT_PACKAGES: Final = ("torch", "torchvision", "onnx", "onnxscript", "onnxsim")


@dataclass(frozen=True)
class BackendHealth:
    """Whether a backend is available: its version and devices, or why it is not and the command that fixes that."""

    available: bool
    version: str | None
    devices: tuple[str, ...]
    reason: str | None
    fix: str | None

    def __str__(self) -> str:
        if self.available:
            return f"{self.version}, devices: {', '.join(self.devices)}"
        version = f"{self.version} " if self.version else ""
        return f"{version}{self.reason}; {self.fix}"


@dataclass(frozen=True, kw_only=True)
class DoctorReport(Report):
    """The machine, its backends by name, and the packages that `export` needs (None: not installed)."""

    kind: ClassVar[str] = "doctor"

    machine: str
    python: str
    backends: Mapping[str, BackendHealth]
    export: Mapping[str, str | None]

    def to_text(self) -> str:
        missing = [name for name, version in self.export.items() if version is None]
        fix = MissingPackageError.of(missing[0], "export").fix if missing else ""
        export = f"needs {', '.join(missing)}; {fix}" if missing else "ready"
        lines = [*self.backends.items(), ("export", export)]
        return "\n".join([self.machine, *(f"{name:14} {health}" for name, health in lines)])


def diagnose() -> DoctorReport:
    """Import every installed backend and ask it for its devices; whatever is missing is reported, not raised.

    >>> print(diagnose())                                                                    # doctest: +SKIP
    Intel(R) Xeon(R) CPU, 2 usable CPUs, linux
    onnxruntime    1.29.0, devices: cpu
    openvino       is not installed; run: uv sync --inexact --no-dev --extra openvino
    export         ready
    """
    return DoctorReport(
        machine=f"{cpu_name() or platform.machine()}, {usable_cpus()} usable CPUs, {sys.platform}",
        python=platform.python_version(),
        backends={name: _health(kind) for name, kind in sorted(backends.items().items())},
        export={name: installed_version(name) for name in _EXPORT_PACKAGES},
    )


def _health(kind: type[Runner]) -> BackendHealth:
    if not is_installed(kind.requires):
        missing = MissingPackageError.of(kind.requires, kind.extra)
        return BackendHealth(False, None, (), missing.why, missing.fix)
    try:
        version, devices = kind.probe()
    except DensenetDeployError as exc:
        return BackendHealth(False, None, (), exc.why, exc.fix)
    except Exception as exc:  # noqa: BLE001 - a broken installation raises anything, and the others are still of interest
        fix = f"reinstall it: pip install --force-reinstall 'densenet-deploy[{kind.extra}]'"
        return BackendHealth(False, None, (), f"does not import: {exc}", fix)
    if not devices:
        reason = f"finds no {' or '.join(kind.devices)} device"
        return BackendHealth(False, version, (), reason, "check the driver, or use another backend")
    return BackendHealth(True, version, devices, None, None)
