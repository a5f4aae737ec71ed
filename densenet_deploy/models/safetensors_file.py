"""The safetensors format: its header checked before anything is built from it, and a writer whose bytes never vary.

A file is 8 bytes of header length (little-endian), the header in JSON, and the tensors' bytes, which the offsets must
cover once, without holes (https://huggingface.co/docs/safetensors). A duplicate key would let two readers see two
networks. The library's own writer orders the metadata at random, so that no two files of the same weights are equal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Final

from torch import Tensor

_LARGEST_HEADER_BYTES: Final = 100 * 10**6
_METADATA: Final = "__metadata__"
_BYTES_OF: Final = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
_BYTES_OF_WIDE: Final = {"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}


def checked_metadata(data: bytes) -> dict[str, str]:
    """Return the text pairs of a safetensors file's bytes, after checking that every tensor lies where it may.

    Raises:
        ValueError: saying what is wrong with the file.
    """
    header, end = _header(data)
    strings = header.pop(_METADATA, {})
    if not isinstance(strings, dict) or not all(isinstance(text, str) for text in strings.values()):
        raise ValueError("its metadata are not pairs of text")
    spans = sorted((*_span(name, entry), name) for name, entry in header.items())
    expected = 0
    for begin, stop, name in spans:
        if begin != expected:
            raise ValueError(f"tensor {name} {'overlaps another' if begin < expected else 'leaves a hole before it'}")
        expected = stop
    if expected != len(data) - end:
        raise ValueError(f"its tensors need {expected} bytes, and {len(data) - end} are there")
    return strings


def float32_bytes(tensors: Mapping[str, Tensor], strings: Mapping[str, str]) -> bytes:
    """Return the file that holds `tensors` as float32 and `strings` as metadata, both in the order of their names."""
    header: dict[str, object] = {_METADATA: dict(sorted(strings.items()))}
    blobs: list[bytes] = []
    end = 0
    for name in sorted(tensors):
        blobs.append(tensors[name].detach().cpu().float().contiguous().numpy().tobytes())
        begin, end = end, end + len(blobs[-1])
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False).encode()
    padded = text.ljust(math.ceil(len(text) / 8) * 8)
    return b"".join([len(padded).to_bytes(8, "little"), padded, *blobs])


def _header(data: bytes) -> tuple[dict[str, object], int]:
    """(parsed header, where the tensors begin)."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, _LARGEST_HEADER_BYTES):
        raise ValueError(f"its header claims {length} bytes")
    if data[8:9] != b"{":
        raise ValueError("its header is no JSON object")
    try:
        header: dict[str, object] = json.loads(data[8 : 8 + length], object_pairs_hook=_without_duplicates)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as exc:
        raise ValueError("its header is not JSON") from exc
    return header, 8 + length


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("its header holds a key twice")
    return table


def _span(name: str, entry: object) -> tuple[int, int]:
    """(begin, end) of a tensor's bytes, which must be as many as its shape and type need."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name} is not described by dtype, shape and data_offsets")
    shape, offsets = _sizes(name, entry["shape"]), _sizes(name, entry["data_offsets"])
    width = (_BYTES_OF | _BYTES_OF_WIDE).get(str(entry["dtype"]))
    if width is None:
        raise ValueError(f"tensor {name} has the unknown type {entry['dtype']}")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * width:
        raise ValueError(f"tensor {name} of shape {shape} cannot lie at {offsets}")
    return offsets[0], offsets[1]


def _sizes(name: str, value: object) -> list[int]:
    if not isinstance(value, list) or any(type(size) is not int or size < 0 for size in value):
        raise ValueError(f"tensor {name} has sizes that are no whole numbers")
    return value
