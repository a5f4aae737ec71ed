"""The precision in which each convolution of an engine runs, read back from the engine.

TensorRT accepts a good deal silently: a quantized convolution with unsuitable scales becomes an FP16 one. So what was
compiled is read back: from the inspector where there is a GPU, else from the text in an engine of TensorRT-RTX. Where
neither says, the answer is `unknown`.

A plan of TensorRT-RTX 1.7 holds its program as undocumented text, which was found by looking: a header, a list of typed
tensors, and one line per operation::

    tensor={ … dims={ 1 24 32 32 } name="a.1_4" … type=half }
    corrltn={ name="features.conv0" output={"b.1_5" } input={"a.1_4" "w" … } … relu=true … bias=true … layers="[ONNX
    Layer: features.conv0][ONNX Layer: features.relu0]" }

`corrltn` is a convolution. A 1x1 convolution may also become `fully_connected`, in a program of its own, marked as
`__gemm_from_conv1x1`. There is one program per profile. The device compiles it once more and may choose otherwise.
From text of another form nothing is concluded.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from densenet_deploy.errors import GateError
from densenet_deploy.runtime.engine_files import Plan, program_section

UNKNOWN: Final = "unknown"

_WIDEST_FIRST: Final = ("fp32", "bf16", "fp16", "int8")
_MOST_NAMED: Final = 8
_DTYPES: Final = {
    "int8": "int8",
    **dict.fromkeys(("half", "fp16"), "fp16"),
    **dict.fromkeys(("bfloat16", "bf16"), "bf16"),
    **dict.fromkeys(("float", "fp32", "tf32"), "fp32"),
}
_HEADER: Final = b"header {\n"
_TENSOR: Final = re.compile(
    rb"\b(?:sub_)?tensor=\{[^\n]*? dims=\{([^}\n]*)\}[^\n]*? name=\"([^\"\n]+)\"[^\n]*? type=(\w+) \}"
)
_CONVOLUTION: Final = re.compile(
    rb"\b(corrltn|fully_connected)=\{ name=\"([^\"\n]+)\""
    rb" output=\{\"([^\"\n]+)\"[^}\n]*\} input=\{\"([^\"\n]+)\" \"([^\"\n]+)\"([^\n]*)"
)
_MEMORY: Final = re.compile(rb"\bregion = \{ name=devmem size=(\d+) ")
_FROM_CONVOLUTION: Final = b"__gemm_from_conv1x1"
_NODE: Final = re.compile(rb"\[ONNX Layer: ([^\]\n]+)\]")

_Tensor = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class EngineConvolution:
    """A convolution of an engine.

    Attributes:
        name: of the ONNX node.
        precision: of data and weights: `int8`, `fp16`, `bf16`, `fp32`, or `unknown`.
        writes: the precision of its result.
        macs: multiply-accumulates per image; 0 where the engine does not say.
        relu: whether the ReLU behind it is part of the kernel.
        bias: whether a bias is part of the kernel.
    """

    name: str
    precision: str
    writes: str = UNKNOWN
    macs: int = 0
    relu: bool = False
    bias: bool = False


@dataclass(frozen=True)
class PrecisionSummary:
    """What the convolutions of an engine run in, counted.

    Attributes:
        source: where it was read, or `unknown`.
        convolutions: how many run in each precision; empty where the engine does not say.
        share_of_macs: the share of their multiply-accumulates in each precision; empty where it is unknown.
        writes: how many write each precision.
        fused_relu: how many have the ReLU behind them in their kernel.
        fused_bias: how many have a bias in their kernel.
    """

    source: str = UNKNOWN
    convolutions: Mapping[str, int] = field(default_factory=dict)
    share_of_macs: Mapping[str, float] = field(default_factory=dict)
    writes: Mapping[str, int] = field(default_factory=dict)
    fused_relu: int = 0
    fused_bias: int = 0

    def __str__(self) -> str:
        if not self.convolutions:
            return "unknown: the engine does not say"
        shares = self.share_of_macs
        words = (
            f"{count} in {word}" + (f" ({shares[word]:.1%} of MACs)" if shares else "")
            for word, count in self.convolutions.items()
        )
        return f"{', '.join(words)}, read from {self.source}"


@dataclass(frozen=True)
class EnginePrecision:
    """The convolutions of an engine, and where they were read; empty where the engine does not say."""

    convolutions: tuple[EngineConvolution, ...] = ()
    source: str = UNKNOWN

    @property
    def counts(self) -> dict[str, int]:
        """How many convolutions run in each precision, the most frequent first."""
        return dict(Counter(conv.precision for conv in self.convolutions).most_common())

    def summary(self) -> PrecisionSummary:
        """Count the convolutions."""
        total = sum(conv.macs for conv in self.convolutions)
        macs: Counter[str] = Counter()
        for conv in self.convolutions:
            macs[conv.precision] += conv.macs
        return PrecisionSummary(
            self.source,
            self.counts,
            {word: macs[word] / total for word in self.counts} if total else {},
            dict(Counter(conv.writes for conv in self.convolutions).most_common()),
            sum(conv.relu for conv in self.convolutions),
            sum(conv.bias for conv in self.convolutions),
        )


def require_precision(
    subject: object, precision: str, asked: Mapping[str, str], found: EnginePrecision
) -> tuple[str, ...]:
    """Check that every convolution runs in the precision that the graph asks for, as far as the engine says.

    Args:
        subject: the engine, as an error names it.
        precision: of the build; `int8` needs at least one convolution in INT8.
        asked: the precision that the graph asks for, by the name of the convolution.
        found: read back from the engine.

    Returns:
        A note where the engine does not say it of all of them.

    Raises:
        GateError: naming the convolutions that run in another precision, or if INT8 has none in INT8.
    """
    runs = {conv.name: conv.precision for conv in found.convolutions}
    wrong = [name for name, word in asked.items() if runs.get(name, UNKNOWN) not in (word, UNKNOWN)]
    if wrong:
        named = ", ".join(f"{name} ({asked[name]} asked, {runs[name]} runs)" for name in wrong[:_MOST_NAMED])
        more = f" and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        why = f"{len(wrong)} of {len(asked)} convolutions run in another precision: {named}{more}"
        raise GateError(subject, why, "nothing was written; build for other GPUs or in another precision")
    if precision == "int8" and "int8" not in (*asked.values(), *found.counts):  # asked for, it may be unknown
        why = f"INT8 was asked for, and none of its {len(asked)} convolutions runs in INT8"
        raise GateError(subject, why, "nothing was written; quantize its convolutions, or build in another precision")
    silent = sum(runs.get(name, UNKNOWN) == UNKNOWN for name in asked)
    return (f"precision unknown: the engine does not say what {silent} convolutions run in",) if silent else ()


def precision_of(plan: Plan) -> EnginePrecision:
    """Return what the convolutions of an engine on disk run in; nothing is loaded or run for it."""
    if plan.header.flavour == "rtx":
        return from_rtx_plan(plan.data)
    if plan.sidecar is None or not plan.sidecar.convolutions:
        return EnginePrecision()
    recorded = (EngineConvolution(name, word) for name, word in plan.sidecar.convolutions.items())
    return EnginePrecision(tuple(recorded), "the inspector when it was built")


def one_of_each(convolutions: Iterable[EngineConvolution]) -> tuple[EngineConvolution, ...]:
    """Return each node once: of one that was compiled for several profiles, the widest precision."""
    found: dict[str, EngineConvolution] = {}
    for conv in convolutions:
        known = found.get(conv.name)
        if known is None or _width(conv) < _width(known):
            found[conv.name] = conv
    return tuple(found.values())


def _width(conv: EngineConvolution) -> int:
    return _WIDEST_FIRST.index(conv.precision) if conv.precision in _WIDEST_FIRST else len(_WIDEST_FIRST)


def from_inspector(text: str) -> EnginePrecision:
    """Read the JSON that TensorRT's engine inspector gives of an engine built with detailed verbosity.

    A layer names its tensors' types ("Format/Datatype": "Int8 NC/32HW32 …") and the graph's nodes in its metadata. A
    kernel that several convolutions were compiled into does not say which of them run in what.
    """
    try:
        layers = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return EnginePrecision()
    found = (_inspected(layer) for layer in layers if isinstance(layer, dict))
    convolutions = one_of_each(conv for conv in found if conv is not None)
    return EnginePrecision(convolutions, "the engine inspector" if convolutions else UNKNOWN)


def _inspected(layer: Mapping[str, Any]) -> EngineConvolution | None:
    if "conv" not in str(layer.get("LayerType", "")).lower() + str(layer.get("ParameterType", "")).lower():
        return None
    nodes = re.findall(r"\[ONNX Layer: ([^\]]+)\]", str(layer.get("Metadata", ""))) or [str(layer.get("Name", ""))]
    relu = str(layer.get("Activation", "")).upper() == "RELU"
    return EngineConvolution(nodes[0], _type_of(layer, "Inputs"), _type_of(layer, "Outputs"), relu=relu)


def _type_of(layer: Mapping[str, Any], side: str) -> str:
    tensors = layer.get(side) or [{}]
    first = tensors[0] if isinstance(tensors, list) and isinstance(tensors[0], dict) else {}
    words = str(first.get("Format/Datatype") or first.get("DataType") or first.get("Datatype") or "").split()
    return _DTYPES.get(words[0].lower(), UNKNOWN) if words else UNKNOWN


def from_rtx_plan(plan: Any) -> EnginePrecision:
    """Read the text in `plan`, a buffer with the bytes of a TensorRT-RTX engine; empty if its form is unknown."""
    convolutions = one_of_each(conv for program in _programs(program_section(plan)) for conv in _convolutions(program))
    return EnginePrecision(convolutions, "the plan's text" if convolutions else UNKNOWN)


def activation_bytes(plan: Any) -> int | None:
    """Return the bytes of device memory that `plan`, a buffer, needs besides its weights; None if it does not say."""
    sizes = [int(match[1]) for program in _programs(program_section(plan)) for match in _MEMORY.finditer(program)]
    return max(sizes, default=None)


def _programs(section: bytes) -> Iterator[bytes]:
    start = section.find(_HEADER)
    while start >= 0:
        end = section.find(b"\0", start)
        yield section[start : end if end >= 0 else len(section)]
        start = section.find(_HEADER, start + 1)


def _convolutions(program: bytes) -> Iterator[EngineConvolution]:
    tensors: dict[bytes, _Tensor] = {
        match[2]: (_DTYPES.get(match[3].decode(), UNKNOWN), _sizes(match[1])) for match in _TENSOR.finditer(program)
    }
    for match in _CONVOLUTION.finditer(program):
        if match[1] == b"corrltn" or _FROM_CONVOLUTION in match[6]:
            yield _convolution(match, tensors)


def _convolution(match: re.Match[bytes], tensors: Mapping[bytes, _Tensor]) -> EngineConvolution:
    missing: _Tensor = (UNKNOWN, ())
    (reads, data), (holds, kernel) = tensors.get(match[4], missing), tensors.get(match[5], missing)
    writes, result = tensors.get(match[3], missing)
    return EngineConvolution(
        _node(match[2], match[6]),
        reads if reads == holds else UNKNOWN,
        writes,
        _macs(kernel, result) if match[1] == b"corrltn" else _matrix_macs(data, kernel, result),
        relu=b" relu=true " in match[6],
        bias=b" bias=true " in match[6],
    )


def _macs(kernel: tuple[int, ...], result: tuple[int, ...]) -> int:
    """Of a kernel (M, C, h, w) and a result (N, M, H, W); N may be missing."""
    is_known = len(kernel) == 4 and len(result) >= 2
    return math.prod(kernel) * math.prod(result[-2:]) if is_known else 0


def _matrix_macs(left: tuple[int, ...], right: tuple[int, ...], result: tuple[int, ...]) -> int:
    """Of (…, M, K) × (…, K, L) = (…, M, L), in any order and transposition: M·K·L is the root of MK·KL·ML."""
    if min(len(left), len(right), len(result)) < 2:
        return 0
    return math.isqrt(math.prod((*left[-2:], *right[-2:], *result[-2:])))


def _node(name: bytes, rest: bytes) -> str:
    """The ONNX node: of those that were compiled into the operation, the one that it is named after."""
    nodes = _NODE.findall(rest)
    named_after = max((node for node in nodes if name.startswith(node)), key=len, default=None)
    return (named_after or (nodes[0] if nodes else name)).decode(errors="replace")


def _sizes(dims: bytes) -> tuple[int, ...]:
    """Sizes without those that a profile leaves open, which are names."""
    return tuple(int(word) for word in dims.split() if word.isdigit())
