"""The report of a comparison of two models, as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from densenet_deploy.parity.compare import Parity, worst, worst_first
from densenet_deploy.parity.gates import Gate, failed_gates

WORST_LAYERS: Final = 10
_NAMED: Final = 3

Json = dict[str, object]


@dataclass(frozen=True)
class ComparisonReport:
    """How far a candidate model is from a reference.

    Attributes:
        reference, candidate: each model's file and what ran it.
        outputs: the parity of each output, by the reference's name.
        gates: the limits that every output must keep.
        layers: the parity of inner tensors in execution order, if these were compared.
        skipped: why other inner tensors could not be compared, by name.
        first_divergence: the first layer, in execution order, that misses the gates.
        notes: remarks that the figures need.
    """

    reference: str
    candidate: str
    outputs: Mapping[str, Parity]
    gates: tuple[Gate, ...] = ()
    layers: Mapping[str, Parity] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    first_divergence: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def parity(self) -> Parity:
        """That of the worst output."""
        return worst(self.outputs)[1]

    @property
    def failed(self) -> tuple[str, ...]:
        """A sentence for each gate that an output misses; it names the output if there are several."""
        several = len(self.outputs) > 1
        return tuple(
            f"{name}: {sentence}" if several else sentence
            for name, parity in self.outputs.items()
            for sentence in failed_gates(parity, self.gates)
        )

    @property
    def passed(self) -> bool | None:
        """Whether every output keeps the gates; None if there are no gates and all values are finite."""
        if self.failed:
            return False
        return True if self.gates else None

    @property
    def worst_layers(self) -> dict[str, Parity]:
        """At most ten layers, the worst first."""
        return dict(list(worst_first(self.layers).items())[:WORST_LAYERS])

    def to_json(self) -> Json:
        """Return strings, finite numbers, None, and lists and dictionaries of them."""
        return {
            "reference": self.reference,
            "candidate": self.candidate,
            "parity": self.parity.to_json(),
            "outputs": {name: parity.to_json() for name, parity in self.outputs.items()},
            "passed": self.passed,
            "failed": list(self.failed),
            "first_divergence": self.first_divergence,
            "worst_layers": [{"name": name, **parity.to_json()} for name, parity in self.worst_layers.items()],
            "skipped": dict(self.skipped),
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return lines of plain text."""
        lines = [f"reference  {self.reference}", f"candidate  {self.candidate}", *self._parity_lines()]
        verdict = "passed" if self.passed else "no gate"
        lines += [f"failed     {sentence}" for sentence in self.failed] or [verdict]
        if self.first_divergence is not None:
            lines.append(f"diverges   first at {self.first_divergence}")
        lines += _layer_table(self.worst_layers)
        lines += _skipped_lines(self.skipped)
        return "\n".join(lines)

    def _parity_lines(self) -> list[str]:
        """The worst output, then every output if there are several."""
        name, parity = worst(self.outputs)
        if len(self.outputs) == 1:
            return [f"parity     {parity}"]
        each = [f"  {name}: {parity}" for name, parity in self.outputs.items()]
        return [f"parity     {parity} (worst output: {name})", *each]


def _layer_table(layers: Mapping[str, Parity]) -> list[str]:
    if not layers:
        return []
    width = max(map(len, layers))
    header = f"{'worst layer':{width}}  {'SQNR dB':>8}  {'cosine':>9}  {'max |Δ|':>9}"
    rows = [
        f"{name:{width}}  {parity.sqnr_db:8.1f}  {parity.cosine:9.6f}  {parity.max_abs:9.3g}"
        for name, parity in layers.items()
    ]
    return [header, *rows]


def _skipped_lines(skipped: Mapping[str, str]) -> list[str]:
    """One line per reason: how many layers, and the first of them."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        by_reason.setdefault(reason, []).append(name)
    return [
        f"skipped    {len(names)} {reason}: {', '.join(names[:_NAMED])}{', …' if len(names) > _NAMED else ''}"
        for reason, names in by_reason.items()
    ]
