"""Export, verify, quantize and run DenseNets.

>>> from densenet_deploy import open_runner
>>> with open_runner("artifacts/densenet121.onnx") as runner:      # doctest: +SKIP
...     logits = runner.run({"input": batch})["logits"]            # (N, 1000) float32

The names below are imported when they are first used, so that an edge application loads nothing it does not need.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any, Final

# ONNX Runtime reports usage and leaves an identifier in the home folder unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__: Final = "0.1.0"

_HOMES: Final = {
    "Classifier": "densenet_deploy.runtime.classifier",
    "DenseNetSpec": "densenet_deploy.variants.spec",
    "DensenetDeployError": "densenet_deploy.errors",
    "RunnerOptions": "densenet_deploy.runtime.runner",
    "evaluate": "densenet_deploy.workflows.evaluate",
    "export_onnx": "densenet_deploy.workflows.export",
    "find_variant": "densenet_deploy.variants",
    "load_model": "densenet_deploy.workflows.load",
    "open_runner": "densenet_deploy.runtime.runner",
    "validate": "densenet_deploy.workflows.validate",
}

__all__ = [
    "Classifier",
    "DenseNetSpec",
    "DensenetDeployError",
    "RunnerOptions",
    "__version__",
    "evaluate",
    "export_onnx",
    "find_variant",
    "load_model",
    "open_runner",
    "validate",
]

if TYPE_CHECKING:
    from densenet_deploy.errors import DensenetDeployError
    from densenet_deploy.runtime.classifier import Classifier
    from densenet_deploy.runtime.runner import RunnerOptions, open_runner
    from densenet_deploy.variants import find_variant
    from densenet_deploy.variants.spec import DenseNetSpec
    from densenet_deploy.workflows.evaluate import evaluate
    from densenet_deploy.workflows.export import export_onnx
    from densenet_deploy.workflows.load import load_model
    from densenet_deploy.workflows.validate import validate


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
