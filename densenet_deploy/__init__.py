"""Export, verify, quantize and run DenseNets.

>>> import densenet_deploy as dd
>>> model = dd.load("densenet_digits.safetensors")                 # doctest: +SKIP
>>> onnx = dd.export(model)                                        # doctest: +SKIP
>>> int8 = dd.quantize(onnx, "calibration/samples")                # doctest: +SKIP
>>> int8.save("digits.int8.onnx")                                  # doctest: +SKIP

The names below are imported when they are first used, so that an edge application loads nothing it does not need.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any, Final

# ONNX Runtime reports usage and leaves an identifier in the home folder unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__: Final = "0.1.0"

if TYPE_CHECKING:
    from densenet_deploy.engines.options import BuildOptions
    from densenet_deploy.errors import DensenetDeployError
    from densenet_deploy.facts import Architecture, ModelFacts
    from densenet_deploy.manifest import Manifest, Preprocessing
    from densenet_deploy.model import Model, UntrainedWeightsWarning
    from densenet_deploy.parity.compare import Parity
    from densenet_deploy.parity.gates import Gate
    from densenet_deploy.runtime.classifier import Classifier, Prediction
    from densenet_deploy.runtime.runner import Runner, RunnerOptions, open_runner
    from densenet_deploy.serving.server import ServeOptions
    from densenet_deploy.training.options import TrainOptions
    from densenet_deploy.variants.spec import DenseNetSpec
    from densenet_deploy.workflows.batch import BatchJobOptions
    from densenet_deploy.workflows.benchmark import BenchmarkOptions, benchmark
    from densenet_deploy.workflows.build_engine import build_engine
    from densenet_deploy.workflows.cast import CastOptions, cast
    from densenet_deploy.workflows.compare import CompareOptions, compare
    from densenet_deploy.workflows.evaluate import EvaluateOptions, evaluate
    from densenet_deploy.workflows.export import ExportOptions, export
    from densenet_deploy.workflows.inspect.inspect import InspectOptions, inspect
    from densenet_deploy.workflows.load import load
    from densenet_deploy.workflows.predict import predict
    from densenet_deploy.workflows.prune.options import PruneOptions
    from densenet_deploy.workflows.prune.prune import prune
    from densenet_deploy.workflows.quantize.options import QuantizeOptions
    from densenet_deploy.workflows.quantize.quantize import quantize
    from densenet_deploy.workflows.report import report
    from densenet_deploy.workflows.sensitivity import SensitivityOptions, sensitivity
    from densenet_deploy.workflows.serve import serve
    from densenet_deploy.workflows.simplify import simplify
    from densenet_deploy.workflows.train.search import SearchOptions
    from densenet_deploy.workflows.train.train import train
    from densenet_deploy.workflows.triton import TritonOptions, triton
    from densenet_deploy.workflows.tune.candidates import TuneOptions
    from densenet_deploy.workflows.tune.tune import tune
    from densenet_deploy.workflows.web import WebOptions, web

_HOMES: Final = {
    "Architecture": "facts",
    "BatchJobOptions": "workflows.batch",
    "BenchmarkOptions": "workflows.benchmark",
    "BuildOptions": "engines.options",
    "CastOptions": "workflows.cast",
    "Classifier": "runtime.classifier",
    "CompareOptions": "workflows.compare",
    "DenseNetSpec": "variants.spec",
    "DensenetDeployError": "errors",
    "EvaluateOptions": "workflows.evaluate",
    "ExportOptions": "workflows.export",
    "Gate": "parity.gates",
    "InspectOptions": "workflows.inspect.inspect",
    "Manifest": "manifest",
    "Model": "model",
    "ModelFacts": "facts",
    "Parity": "parity.compare",
    "Prediction": "runtime.classifier",
    "Preprocessing": "manifest",
    "PruneOptions": "workflows.prune.options",
    "QuantizeOptions": "workflows.quantize.options",
    "Runner": "runtime.runner",
    "RunnerOptions": "runtime.runner",
    "SearchOptions": "workflows.train.search",
    "SensitivityOptions": "workflows.sensitivity",
    "ServeOptions": "serving.server",
    "TrainOptions": "training.options",
    "TritonOptions": "workflows.triton",
    "TuneOptions": "workflows.tune.candidates",
    "UntrainedWeightsWarning": "model",
    "WebOptions": "workflows.web",
    "benchmark": "workflows.benchmark",
    "build_engine": "workflows.build_engine",
    "cast": "workflows.cast",
    "compare": "workflows.compare",
    "evaluate": "workflows.evaluate",
    "export": "workflows.export",
    "inspect": "workflows.inspect.inspect",
    "load": "workflows.load",
    "open_runner": "runtime.runner",
    "predict": "workflows.predict",
    "prune": "workflows.prune.prune",
    "quantize": "workflows.quantize.quantize",
    "report": "workflows.report",
    "sensitivity": "workflows.sensitivity",
    "serve": "workflows.serve",
    "simplify": "workflows.simplify",
    "train": "workflows.train.train",
    "triton": "workflows.triton",
    "tune": "workflows.tune.tune",
    "web": "workflows.web",
}

__all__ = [
    "Architecture",
    "BatchJobOptions",
    "BenchmarkOptions",
    "BuildOptions",
    "CastOptions",
    "Classifier",
    "CompareOptions",
    "DenseNetSpec",
    "DensenetDeployError",
    "EvaluateOptions",
    "ExportOptions",
    "Gate",
    "InspectOptions",
    "Manifest",
    "Model",
    "ModelFacts",
    "Parity",
    "Prediction",
    "Preprocessing",
    "PruneOptions",
    "QuantizeOptions",
    "Runner",
    "RunnerOptions",
    "SearchOptions",
    "SensitivityOptions",
    "ServeOptions",
    "TrainOptions",
    "TritonOptions",
    "TuneOptions",
    "UntrainedWeightsWarning",
    "WebOptions",
    "__version__",
    "benchmark",
    "build_engine",
    "cast",
    "compare",
    "evaluate",
    "export",
    "inspect",
    "load",
    "open_runner",
    "predict",
    "prune",
    "quantize",
    "report",
    "sensitivity",
    "serve",
    "simplify",
    "train",
    "triton",
    "tune",
    "web",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
