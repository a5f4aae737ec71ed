"""INT8 files written by stock tools, the baselines of `int8.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

Images = Sequence[NDArray[np.float32]]

ACTIVATIONS: Final = ("u8s8", "s8s8")
METHODS: Final = ("MinMax", "Percentile", "Entropy")
PRESETS: Final = ("performance", "mixed")


@dataclass(frozen=True)
class StaticQuantization:
    """Settings of `onnxruntime.quantization.quantize_static`: activation and weight types, calibration method."""

    activations: str = "u8s8"
    method: str = "MinMax"

    def __str__(self) -> str:
        return f"{self.activations} {self.method}"


def quantize_with_onnxruntime(model: Path, images: Images, how: StaticQuantization, path: Path) -> None:
    """Write Q/DQ INT8 with weight scales per output channel, after the preprocessing that the tool recommends."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(model, prepared)
    signed = how.activations == "s8s8"
    quantization.quantize_static(
        prepared,
        path,
        ImageReader(images),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QInt8 if signed else quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod[how.method],
        extra_options={"ActivationSymmetric": signed, "WeightSymmetric": True},
    )
    prepared.unlink()


def quantize_with_nncf(model: Path, images: Images, preset: str, path: Path) -> None:
    """Write an INT8 OpenVINO IR with NNCF's post-training quantization."""
    import nncf
    import openvino

    dataset = nncf.Dataset(list(images))
    source = openvino.Core().read_model(model)
    quantized = nncf.quantize(source, dataset, subset_size=len(images), preset=nncf.QuantizationPreset(preset))
    openvino.save_model(quantized, path, compress_to_fp16=False)


class ImageReader:
    """Feeds images one by one, in the form that `quantize_static` reads."""

    def __init__(self, images: Images) -> None:
        self._rest: Iterator[NDArray[np.float32]] = iter(images)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next feed, or None after the last."""
        image = next(self._rest, None)
        return None if image is None else {"input": image}
