"""Calibrate one model in its own process and print the cost: `calibrate_alone.py TOOL MODEL FOLDER COUNT`.

TOOL is `densenet-deploy` or `quantize_static`, both with the entropy method. The time excludes imports;
`peak_memory_bytes` is the largest resident set of the process.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from densenet_deploy.quantization.calibration_data import open_calibration_data
from densenet_deploy.workflows.load import load, preprocessing_of
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.preparation import prepare_int8
from densenet_deploy.workflows.stages import Stages


def ours(model: Path, folder: Path, count: int) -> None:
    """Calibrate as `quantize --observer entropy` does, without a cache and without corrections."""
    options = QuantizeOptions(recipe="onnxruntime", observer="entropy", samples=count, correct=False)
    prepare_int8(load(model), folder, options, Stages())


def theirs(model: Path, folder: Path, count: int) -> None:
    """Calibrate with the entropy method of ONNX Runtime's quantizer, which reads images on demand."""
    from int8_peers import ImageReader
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    data = open_calibration_data(folder, preprocessing_of(load(model)), count)
    with tempfile.TemporaryDirectory() as name:
        calibrator = create_calibrator(
            model, augmented_model_path=str(Path(name) / "augmented.onnx"), calibrate_method=CalibrationMethod.Entropy
        )
        calibrator.set_execution_providers(["CPUExecutionProvider"])
        calibrator.collect_data(ImageReader(data))  # type: ignore[arg-type]
        calibrator.compute_data()


TOOLS: dict[str, Callable[[Path, Path, int], None]] = {"densenet-deploy": ours, "quantize_static": theirs}


def resident_bytes(field: str) -> int:
    """Return a size from /proc/self/status, such as VmRSS or VmHWM, in bytes."""
    found = re.search(rf"^{field}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def main(tool: str, model: str, folder: str, count: str) -> None:
    start = perf_counter()
    TOOLS[tool](Path(model), Path(folder), int(count))
    print(json.dumps({"seconds": perf_counter() - start, "peak_memory_bytes": resident_bytes("VmHWM")}))


if __name__ == "__main__":
    main(*sys.argv[1:])
