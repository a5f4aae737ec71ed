"""What can be chosen about a quantization, on the command line and in a recipe file alike."""

from __future__ import annotations

from dataclasses import dataclass

from densenet_deploy.errors import UsageError
from densenet_deploy.options import require_choice, require_range
from densenet_deploy.quantization.observers.observer import CalibrationConfig, ObserverOptions


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize.

    Attributes:
        recipe: `onnxruntime`, `openvino`, `tensorrt`, or `auto`: openvino where it is installed, else onnxruntime.
        observer: how ranges are chosen: minmax, percentile, entropy, mse.
        observer_options: its options, such as `PercentileOptions(percentile=99.9)`; None means its defaults.
        samples: images to calibrate on, a seeded subset; all where there are fewer.
        equalize: whether to spread ranges over channels first; `alpha` of equalize-layer.
        correct: whether to take back what quantization does to mean and swing of every layer's outputs.
        weights: `per-channel` or `per-tensor` scales.
        quantize_bus: whether the recipe `tensorrt` writes the buses of dense blocks in INT8 too; others do anyway.
        max_drop: percentage points of top-1 that may be lost on the calibration images, which are then in class
            folders; the cheapest layers stay float until that holds.
        min_sqnr: SQNR of the logits in dB, on calibration images, that must be reached in the same way.
        never_slower: whether layers whose INT8 gains no time on this machine go back to float.
        float_layers: names of convolutions that stay float in any case.
    """

    recipe: str = "auto"
    observer: str = "minmax"
    observer_options: ObserverOptions | None = None
    samples: int = 512
    alpha: float = 0.5
    equalize: bool = True
    correct: bool = True
    weights: str = "per-channel"
    quantize_bus: bool = False
    max_drop: float | None = None
    min_sqnr: float | None = None
    never_slower: bool = True
    float_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        CalibrationConfig(self.observer, self.observer_options)  # which checks them
        require_range("samples", self.samples, 1, 1_000_000)
        require_range("alpha", self.alpha, 0.0, 1.0)
        require_choice("weights", self.weights, ("per-channel", "per-tensor"))
        if self.max_drop is not None:
            require_range("max-drop", self.max_drop, 0.0, 100.0)
        if self.min_sqnr is not None:
            require_range("min-sqnr", self.min_sqnr, 0.0, 200.0)
        if self.max_drop is not None and self.min_sqnr is not None:
            raise UsageError("--max-drop and --min-sqnr", "ask for two different things", "give one of them")
