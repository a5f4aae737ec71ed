"""What a quantization came to: the file, its parity, and what every layer became."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from densenet_deploy.errors import printable
from densenet_deploy.parity.compare import Parity
from densenet_deploy.workflows.quantize.layer_choice import Speed, block_of


@dataclass(frozen=True)
class QuantizeReport:
    """An INT8 file, how far its outputs are from the float file's on calibration images, and what stayed float.

    `float_unasked` names the layers that were asked for INT8 and stayed float all the same: what the recipe keeps.
    """

    onnx: Path
    recipe: str
    parity: Parity
    layers_int8: tuple[str, ...]
    layers_float: tuple[str, ...]
    weight_bits: int
    calibrated_on: int
    stages: Mapping[str, float]
    notes: tuple[str, ...]
    speed: Speed | None = None
    explanation: tuple[str, ...] = ()
    float_unasked: tuple[str, ...] = ()

    def explained(self) -> QuantizeReport:
        """Return the report with a sentence about every layer."""
        put_back = self.speed.put_back if self.speed is not None else ()
        told = [f"{name}: INT8, {self.weight_bits}-bit weights" for name in self.layers_int8]
        for name in self.layers_float:
            why = "faster in float on this machine" if block_of(name) in put_back else "asked for, or for accuracy"
            kept = f"the recipe {self.recipe} keeps it"
            told.append(f"{name}: float, {kept if name in self.float_unasked else why}")
        return dataclasses.replace(self, explanation=tuple(told))

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types."""
        return {
            "onnx": str(self.onnx),
            "recipe": self.recipe,
            "parity": self.parity.to_json(),
            "layers_int8": len(self.layers_int8),
            "layers_float": len(self.layers_float),
            "float_layers": list(self.layers_float),
            "float_unasked": list(self.float_unasked),
            "weight_bits": self.weight_bits,
            "calibrated_on": self.calibrated_on,
            "seconds": sum(self.stages.values()),
            "stages": dict(self.stages),
            "speed": self.speed.to_json() if self.speed is not None else None,
            "notes": list(self.notes),
            **({"explanation": list(self.explanation)} if self.explanation else {}),
        }

    def _unasked(self) -> str:
        count = len(self.float_unasked)
        if not count:
            return "no layer that was asked for INT8 stayed float"
        layers = "1 layer was" if count == 1 else f"{count} layers were"
        return f"{layers} asked for INT8, and the recipe {self.recipe} keeps float: {', '.join(self.float_unasked)}"

    def to_text(self) -> str:
        """Return lines for people."""
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.stages.items())
        kept = f": {', '.join(self.layers_float)}" if self.layers_float else ""
        return "\n".join(
            [
                f"wrote       {printable(self.onnx)}",
                f"recipe      {self.recipe}, {self.weight_bits}-bit weights, {self.calibrated_on} images",
                f"layers      {len(self.layers_int8)} in INT8, {len(self.layers_float)} float{kept}",
                f"checked     {self._unasked()}",
                f"parity      {self.parity}",
                f"speed       {self.speed or 'not measured'}",
                f"seconds     {sum(self.stages.values()):.1f} ({stages})",
                *(f"layer       {sentence}" for sentence in self.explanation),
            ]
        )
