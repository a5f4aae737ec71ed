"""`doctor`: what is installed is reported with versions and devices, as text and as JSON that reads itself."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from densenet_deploy.errors import install_command
from densenet_deploy.runtime.trt import load_tensorrt
from densenet_deploy.workflows.doctor import BackendHealth, DoctorReport, diagnose


def test_installed_backends_have_a_version_and_devices():
    report = diagnose()
    health = report.backends["onnxruntime"]
    assert health.available
    assert "cpu" in health.devices
    assert report.export["onnx"] == metadata.version("onnx")
    assert DoctorReport.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False))) == report


def test_what_is_missing_is_named_with_the_command_that_installs_it():
    missing = BackendHealth(False, None, (), "is not installed", "run: install it")
    report = DoctorReport(machine="m", python="3", backends={"openvino": missing}, export={"torch": None, "onnx": "1"})
    machine, backend, export = str(report).splitlines()
    assert machine == "m"
    assert backend.split(maxsplit=1) == ["openvino", "is not installed; run: install it"]
    assert export.startswith("export ")
    assert "torch" in export
    assert export.endswith(install_command("export"))


class Broken(ModuleType):
    """A package of which some library is missing: nothing in it can be used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> object:
        raise OSError(f"lib{self.__name__}.so: cannot open {name}")


def test_a_broken_installation_is_reported_and_the_others_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", Broken("openvino"))
    backends = diagnose().backends
    health = backends["openvino"]
    assert (health.available, health.version, health.devices) == (False, None, ())
    assert "libopenvino.so" in health.reason
    assert "densenet-deploy[openvino]" in health.fix
    assert backends["onnxruntime"].available


def test_a_package_that_cannot_be_imported_is_reported_as_its_backend_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: not found')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    load_tensorrt.cache_clear()
    health = diagnose().backends["tensorrt"]
    assert (health.available, health.version, health.fix) == (False, None, "reinstall the package tensorrt")
    assert "libnvinfer.so.10" in health.reason
