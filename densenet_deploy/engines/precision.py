"""In which precision each convolution of an engine was asked to run, and runs.

TensorRT accepts a good deal in silence: a quantized convolution whose scales it does not like becomes a half one. So
what was compiled is read back, from the inspector where a GPU is, from the text in an RTX plan elsewhere. Where neither
says, the answer is `unknown`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from densenet_deploy.errors import GateError

UNKNOWN: Final = "unknown"
WIDEST_FIRST: Final = ("fp32", "bf16", "fp16", "int8")
_MOST_NAMED: Final = 8
_DTYPES: Final = {"int8": "int8", "half": "fp16", "fp16": "fp16", "bfloat16": "bf16", "bf16": "bf16"} | dict.fromkeys(
    ("float", "fp32", "tf32"), "fp32"
)


@dataclass(frozen=True)
class RunningConvolution:
    """A convolution of an engine: its node in the graph, what it reads and writes, its work, what was fused into it.

    Attributes:
        name: of the ONNX node.
        precision: of data and weights: `int8`, `fp16`, `bf16`, `fp32`, or `unknown`.
        writes: the precision of its result.
        macs: multiply-accumulates for one image; 0 where the engine does not say.
        relu, bias: whether the ReLU behind it, and a bias, are part of the kernel.
    """

    name: str
    precision: str
    writes: str = UNKNOWN
    macs: int = 0
    relu: bool = False
    bias: bool = False


@dataclass(frozen=True)
class PrecisionProof:
    """What the convolutions of an engine run in; none of them where the engine does not say."""

    convolutions: tuple[RunningConvolution, ...]
    source: str = UNKNOWN

    @property
    def counts(self) -> dict[str, int]:
        """How many convolutions run in each precision."""
        return dict(Counter(conv.precision for conv in self.convolutions).most_common())

    @property
    def shares(self) -> dict[str, float]:
        """The share of the convolutions' multiply-accumulates in each precision; empty where they are unknown."""
        total = sum(conv.macs for conv in self.convolutions)
        if total == 0:
            return {}
        return {
            word: sum(conv.macs for conv in self.convolutions if conv.precision == word) / total for word in self.counts
        }

    def to_json(self) -> dict[str, object]:
        """Return the proof with plain types."""
        return {
            "source": self.source,
            "convolutions": self.counts,
            "share_of_macs": self.shares,
            "writes": dict(Counter(conv.writes for conv in self.convolutions).most_common()),
            "fused_relu": sum(conv.relu for conv in self.convolutions),
            "fused_bias": sum(conv.bias for conv in self.convolutions),
        }

    def __str__(self) -> str:
        if not self.convolutions:
            return "unknown: the engine does not say"
        shares = self.shares
        told = (
            f"{count} in {word}" + (f" ({shares[word]:.1%} of MACs)" if shares else "")
            for word, count in self.counts.items()
        )
        return f"{', '.join(told)}, read from {self.source}"

    def to_facts(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        return asdict(self)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> PrecisionProof:
        """Read what `to_facts` wrote."""
        return cls(tuple(RunningConvolution(**conv) for conv in facts["convolutions"]), facts["source"])


def require_precision(subject: object, asked: Mapping[str, str], proof: PrecisionProof) -> tuple[str, ...]:
    """Check that every convolution runs in the precision `asked` for it by name, as far as the engine says.

    Returns:
        A note where it does not say of all.

    Raises:
        GateError: naming the convolutions that run in another.
    """
    runs = {conv.name: conv.precision for conv in proof.convolutions}
    wrong = [name for name, word in asked.items() if runs.get(name, UNKNOWN) not in (word, UNKNOWN)]
    if wrong:
        named = ", ".join(f"{name} ({asked[name]} asked, {runs[name]} runs)" for name in wrong[:_MOST_NAMED])
        more = f" and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        fix = "nothing was written; build for other GPUs or in another precision"
        raise GateError(subject, f"{len(wrong)} of {len(asked)} convolutions run otherwise: {named}{more}", fix)
    silent = sum(runs.get(name, UNKNOWN) == UNKNOWN for name in asked)
    return (f"precision unknown: the engine does not say what {silent} convolutions run in",) if silent else ()


def one_of_each(convolutions: Iterable[RunningConvolution]) -> tuple[RunningConvolution, ...]:
    """Return each node once: of one that was compiled for several profiles, the widest precision."""
    found: dict[str, RunningConvolution] = {}
    for conv in convolutions:
        known = found.get(conv.name)
        if known is None or _width(conv) < _width(known):
            found[conv.name] = conv
    return tuple(found.values())


def from_inspector(text: str) -> PrecisionProof:
    """Read the JSON that TensorRT's engine inspector gives of an engine built with detailed verbosity.

    A layer names its tensors' types ("Format/Datatype": "Int8 NC/32HW32 …") and the graph's nodes in its metadata. A
    kernel that several convolutions were compiled into does not say which of them run in what.
    """
    try:
        layers = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return PrecisionProof(())
    found = (_inspected(layer) for layer in layers if isinstance(layer, dict))
    convolutions = one_of_each(conv for conv in found if conv is not None)
    return PrecisionProof(convolutions, "the engine inspector" if convolutions else UNKNOWN)


def _inspected(layer: Mapping[str, Any]) -> RunningConvolution | None:
    if "conv" not in str(layer.get("LayerType", "")).lower() + str(layer.get("ParameterType", "")).lower():
        return None
    nodes = re.findall(r"\[ONNX Layer: ([^\]]+)\]", str(layer.get("Metadata", ""))) or [str(layer.get("Name", ""))]
    relu = str(layer.get("Activation", "")).upper() == "RELU"
    return RunningConvolution(nodes[0], _type_of(layer, "Inputs"), _type_of(layer, "Outputs"), relu=relu)


def _type_of(layer: Mapping[str, Any], side: str) -> str:
    tensors = layer.get(side) or [{}]
    first = tensors[0] if isinstance(tensors, list) and isinstance(tensors[0], dict) else {}
    words = str(first.get("Format/Datatype") or first.get("DataType") or first.get("Datatype") or "").split()
    return _DTYPES.get(words[0].lower(), UNKNOWN) if words else UNKNOWN


def _width(conv: RunningConvolution) -> int:
    return WIDEST_FIRST.index(conv.precision) if conv.precision in WIDEST_FIRST else len(WIDEST_FIRST)
