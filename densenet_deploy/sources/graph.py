"""Graphs that are compiled or exported already: a file, the bytes of an ONNX file, or an `onnx.ModelProto`.

They are used as they are, and read when they are first needed; here, only their facts are.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import UsageError
from densenet_deploy.sources.source import LoadedNetwork, Match, Source, WeightsConstraint, sources

_SUFFIXES: Final = (".onnx", ".xml", ".engine")
_UNNAMED: Final = "model"


@sources.register("graph")
class GraphSource(Source):
    """Adopt an ONNX file, an OpenVINO model, an engine, the bytes of an ONNX file, or an `onnx.ModelProto`."""

    names = _SUFFIXES

    def matches(self, source: object) -> Match:
        if isinstance(source, (str, os.PathLike)):
            return Match.CERTAIN if Path(source).suffix.lower() in _SUFFIXES else Match.NO
        in_memory = isinstance(source, (bytes, bytearray, memoryview)) or hasattr(source, "SerializeToString")
        return Match.CERTAIN if in_memory else Match.NO

    def load(self, source: object, constraint: WeightsConstraint) -> LoadedNetwork:
        stated = {"num-classes": constraint.num_classes, "head": constraint.head}
        stated["variant"] = None if constraint.variant is None else constraint.variant.name
        for name, value in stated.items():
            if value is not None:
                raise UsageError(f"{name}={value}", "a graph cannot be given another architecture", "omit it")
        artifact = Artifact.open(_path_or_bytes(source))
        return LoadedNetwork(
            name=_UNNAMED if artifact.data is not None else artifact.path.stem,
            artifact=artifact,
            manifest=artifact.manifest,
            labels=artifact.manifest.labels if artifact.manifest else (),
        )


def _path_or_bytes(source: object) -> str | os.PathLike[str] | bytes:
    if isinstance(source, (str, os.PathLike)):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    data: bytes = source.SerializeToString()  # type: ignore[attr-defined]
    return data
