"""A comparison as people read it and as programs do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from densenet_deploy.parity.compare import Parity
from densenet_deploy.parity.layers import LayerParity, SkippedLayer, worst_first

WORST_LAYERS: Final = 10
_NAMED: Final = 3

Json = dict[str, object]


@dataclass(frozen=True)
class ComparisonReport:
    """Reference and candidate in words, their parity, and the gates it missed, each a sentence.

    `layers`, `skipped` and `first_divergence` (the first layer, in execution order, that misses the gates) come from a
    comparison layer by layer, where one was made. `notes` are remarks for whoever reads the numbers.
    """

    reference: str
    candidate: str
    parity: Parity
    failed: tuple[str, ...] = ()
    layers: tuple[LayerParity, ...] = ()
    skipped: tuple[SkippedLayer, ...] = ()
    first_divergence: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.failed

    @property
    def worst_layers(self) -> tuple[LayerParity, ...]:
        """At most ten layers, the worst first."""
        return tuple(worst_first(self.layers)[:WORST_LAYERS])

    def to_json(self) -> Json:
        """Return strings, finite numbers, None, and lists and dictionaries of them."""
        return {
            "reference": self.reference,
            "candidate": self.candidate,
            "parity": self.parity.to_json(),
            "passed": self.passed,
            "failed": list(self.failed),
            "first_divergence": self.first_divergence,
            "worst_layers": [{"name": layer.name, **layer.parity.to_json()} for layer in self.worst_layers],
            "skipped": {layer.name: layer.reason for layer in self.skipped},
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return lines of plain text."""
        lines = [f"reference  {self.reference}", f"candidate  {self.candidate}", f"parity     {self.parity}"]
        lines += [f"failed     {sentence}" for sentence in self.failed] or ["passed"]
        if self.first_divergence is not None:
            lines.append(f"diverges   first at {self.first_divergence}")
        lines += _layer_table(self.worst_layers)
        lines += _skipped_lines(self.skipped)
        return "\n".join(lines)


def _layer_table(layers: tuple[LayerParity, ...]) -> list[str]:
    if not layers:
        return []
    width = max(len(layer.name) for layer in layers)
    header = f"{'worst layer':{width}}  {'SQNR dB':>8}  {'cosine':>9}  {'max |Δ|':>9}"
    return [header, *(_layer_row(layer, width) for layer in layers)]


def _skipped_lines(skipped: tuple[SkippedLayer, ...]) -> list[str]:
    """One line a reason: how many, and the first of them."""
    by_reason: dict[str, list[str]] = {}
    for layer in skipped:
        by_reason.setdefault(layer.reason, []).append(layer.name)
    return [
        f"skipped    {len(names)} {reason}: {', '.join(names[:_NAMED])}{', …' if len(names) > _NAMED else ''}"
        for reason, names in by_reason.items()
    ]


def _layer_row(layer: LayerParity, width: int) -> str:
    parity = layer.parity
    return f"{layer.name:{width}}  {parity.sqnr_db:8.1f}  {parity.cosine:9.6f}  {parity.max_abs:9.3g}"
