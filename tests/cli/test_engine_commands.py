"""What people see of an engine on a simulated GPU: `doctor` names it, `run` classifies with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.cli import main
from densenet_deploy.runtime.sidecar import sidecar_path
from densenet_deploy.workflows.doctor import diagnose
from tests.runtime.simulated_tensorrt import FULL, simulated_gpu, write_simulated_engine
from tests.runtime.simulated_tensorrt.cuda import SimulatedMachine


def test_doctor_names_version_and_devices_or_says_why_there_are_none() -> None:
    with simulated_gpu(FULL, SimulatedMachine(gpus=2)):
        health = diagnose().backends["tensorrt"]
    assert (health.version, health.available, health.devices) == ("10.3.0.26", True, ("cuda:0", "cuda:1"))
    with simulated_gpu(FULL, SimulatedMachine(has_driver=False)):
        health = diagnose().backends["tensorrt"]
    assert (health.version, health.available, health.devices) == ("10.3.0.26", False, ())
    assert health.reason == "finds no cuda device"


def test_run_classifies_with_an_engine(tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = write_simulated_engine(tmp_path, tiny_onnx, FULL)
    image = tmp_path / "grey.png"
    Image.fromarray(np.full((40, 40, 3), 128, np.uint8)).save(image)
    with simulated_gpu(FULL):
        assert main(["run", str(engine), str(image), "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert len(answer["predictions"][0]["top"]) == 5
        assert answer["device"] == "cuda:0"
        sidecar_path(engine).unlink()
        assert main(["run", str(engine), str(image)]) == 3
        assert "--trust-engine" in capsys.readouterr().err
        assert main(["run", str(engine), str(image), "--trust-engine"]) == 0
        assert "unknown" in capsys.readouterr().out, "the precision of an engine without a sidecar"
