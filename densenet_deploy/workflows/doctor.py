"""Doctor: which backends work on this machine, with which devices, and what would mend those that do not."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict, dataclass
from importlib import metadata

from densenet_deploy.errors import DensenetDeployError, MissingPackageError
from densenet_deploy.packages import is_installed
from densenet_deploy.runtime.cpus import cpu_name, usable_cpus
from densenet_deploy.runtime.runner import Runner, backends


@dataclass(frozen=True)
class BackendHealth:
    """Whether a backend works: its version and devices, or the reason and the command that mends it."""

    available: bool
    version: str | None
    devices: tuple[str, ...]
    reason: str | None
    fix: str | None


@dataclass(frozen=True)
class DoctorReport:
    """Backends by name, export packages by name (None: not installed), and the machine."""

    backends: dict[str, BackendHealth]
    export_packages: dict[str, str | None]
    machine: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types."""
        return {
            "machine": self.machine,
            "python": platform.python_version(),
            "backends": {name: asdict(health) for name, health in self.backends.items()},
            "export": self.export_packages,
        }

    def to_text(self) -> str:
        """Return lines for people."""
        lines = [self.machine]
        lines += [_line(name, health) for name, health in self.backends.items()]
        missing = [name for name, version in self.export_packages.items() if version is None]
        lines.append(f"{'export':14} " + (f"needs {', '.join(missing)}; {_EXPORT_FIX}" if missing else "ready"))
        return "\n".join(lines)


_EXPORT_PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "onnxsim", "safetensors")
_EXPORT_FIX = "run: pip install 'densenet-deploy[export]'"


def examine() -> DoctorReport:
    """Import every backend that is installed and ask it for its devices. Nothing is raised for what is missing."""
    return DoctorReport(
        backends={name: _health(kind) for name, kind in sorted(backends.items().items())},
        export_packages={name: _version(name) for name in _EXPORT_PACKAGES},
        machine=f"{cpu_name() or platform.machine()}, {usable_cpus()} usable CPUs, {sys.platform}",
    )


def _health(kind: type[Runner]) -> BackendHealth:
    if not is_installed(kind.requires):
        missing = MissingPackageError.of(kind.requires, kind.extra)
        return BackendHealth(False, None, (), missing.why, missing.fix)
    try:
        version, devices = kind.probe()
    except DensenetDeployError as exc:
        return BackendHealth(False, None, (), exc.why, exc.fix)
    except Exception as exc:  # noqa: BLE001 - a broken install raises anything, and doctor must go on
        fix = f"reinstall it: pip install --force-reinstall 'densenet-deploy[{kind.extra}]'"
        return BackendHealth(False, None, (), f"does not import: {exc}", fix)
    if not devices:
        wanted = " or ".join(kind.devices)
        return BackendHealth(
            False, version, (), f"finds no {wanted} device", "check the driver, or use another backend"
        )
    return BackendHealth(True, version, devices, None, None)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _line(name: str, health: BackendHealth) -> str:
    if health.available:
        return f"{name:14} {health.version}, devices: {', '.join(health.devices)}"
    version = f"{health.version} " if health.version else ""
    return f"{name:14} {version}{health.reason}; {health.fix}"
