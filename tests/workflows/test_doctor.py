"""`doctor`: what is installed is reported with versions and devices, as text and as JSON that reads itself."""

from __future__ import annotations

import json
from importlib import metadata

from densenet_deploy.errors import install_command
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
