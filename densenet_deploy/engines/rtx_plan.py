"""Read from a TensorRT-RTX plan what its convolutions were compiled to, without a GPU.

A plan of 1.7 holds its program as text, of which nothing is documented: a header, a list of typed tensors, and a line
an operation::

    tensor={ … dims={ 1 24 32 32 } name="a.1_4" … type=half }
    corrltn={ name="features.conv0" output={"b.1_5" } input={"a.1_4" "w" … } … relu=true … bias=true … layers="[ONNX
    Layer: features.conv0][ONNX Layer: features.relu0]" }

`corrltn` is a convolution. A 1x1 convolution may also become `fully_connected`, in a program of its own, marked as
`__gemm_from_conv1x1`. There is a program for each profile. On the device it is compiled once more, and may then choose
otherwise. Where a plan does not look like that, nothing is concluded from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from densenet_deploy.engines.precision import UNKNOWN, PrecisionProof, RunningConvolution, one_of_each
from densenet_deploy.runtime.engine_files import program_section

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
_TYPES: Final = {b"int8": "int8", b"half": "fp16", b"bf16": "bf16", b"float": "fp32"}

_Tensor = tuple[str, tuple[int, ...]]


def read_rtx_plan(plan: Any) -> PrecisionProof:
    """Return what the convolutions of `plan`, a buffer, run in; none where its text is not what is known here."""
    convolutions = one_of_each(conv for program in _programs(program_section(plan)) for conv in _convolutions(program))
    return PrecisionProof(convolutions, "the plan's text" if convolutions else UNKNOWN)


def activation_bytes(plan: Any) -> int | None:
    """Return the bytes on the device that `plan`, a buffer, needs besides its weights; None where it does not say."""
    sizes = [int(match[1]) for program in _programs(program_section(plan)) for match in _MEMORY.finditer(program)]
    return max(sizes, default=None)


def _programs(section: bytes) -> Iterator[bytes]:
    start = section.find(_HEADER)
    while start >= 0:
        end = section.find(b"\0", start)
        yield section[start : end if end >= 0 else len(section)]
        start = section.find(_HEADER, start + 1)


def _convolutions(program: bytes) -> Iterator[RunningConvolution]:
    tensors: dict[bytes, _Tensor] = {
        match[2]: (_TYPES.get(match[3], UNKNOWN), _sizes(match[1])) for match in _TENSOR.finditer(program)
    }
    for match in _CONVOLUTION.finditer(program):
        if match[1] == b"corrltn" or _FROM_CONVOLUTION in match[6]:
            yield _convolution(match, tensors)


def _convolution(match: re.Match[bytes], tensors: Mapping[bytes, _Tensor]) -> RunningConvolution:
    nowhere: _Tensor = (UNKNOWN, ())
    (reads, data), (holds, kernel) = tensors.get(match[4], nowhere), tensors.get(match[5], nowhere)
    writes, result = tensors.get(match[3], nowhere)
    return RunningConvolution(
        _node(match[2], match[6]),
        reads if reads == holds else UNKNOWN,
        writes,
        _macs(kernel, result) if match[1] == b"corrltn" else _matrix_macs(data, kernel, result),
        relu=b" relu=true " in match[6],
        bias=b" bias=true " in match[6],
    )


def _macs(kernel: tuple[int, ...], result: tuple[int, ...]) -> int:
    """A kernel (M, C, h, w) and a result (N, M, H, W); N may be open."""
    known = len(kernel) == 4 and len(result) >= 2
    return math.prod(kernel) * math.prod(result[-2:]) if known else 0


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
