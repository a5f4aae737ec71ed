"""Ranges of inner tensors, from the cache or from a run over the calibration data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from densenet_deploy.manifest import Preprocessing
from densenet_deploy.workflows.stages import Step

if TYPE_CHECKING:
    import onnx

    from densenet_deploy.quantize.cache import CalibrationCache
    from densenet_deploy.quantize.calibrate import Calibration
    from densenet_deploy.quantize.calibration_data import CalibrationData


@dataclass(frozen=True)
class Observation:
    """What to observe: the inner `tensors` of `model`, float32 (N, C, ...), by the observer of that name."""

    model: onnx.ModelProto
    tensors: tuple[str, ...]
    observer: str = "minmax"


def observe(
    wanted: Observation,
    data: CalibrationData,
    preprocessing: Preprocessing,  # noqa: ARG001
    cache: CalibrationCache | None = None,
    step: Step = lambda _done, _total: None,
) -> Calibration:
    """Return the ranges that `wanted` names on `data`; see `calibrate`."""
    from densenet_deploy.quantize.calibrate import calibrate
    from densenet_deploy.quantize.observers.observer import CalibrationConfig

    return calibrate(wanted.model, data, CalibrationConfig(wanted.observer, tensors=wanted.tensors), cache, step)
