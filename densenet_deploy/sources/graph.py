"""Graphs that are compiled or exported already: a file, the bytes of an ONNX file, or a graph of the onnx packages.

A file with a manifest is ours: it is used as it is, and read when it is first needed. The ONNX graph of somebody else
is adopted (`graph/foreign.py`) where the onnx package is installed; elsewhere, as on a device, the file is used as it
is. A graph that adoption changes lives in memory from then on.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Final

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import UsageError
from densenet_deploy.packages import imported, is_installed
from densenet_deploy.sources.source import LoadedNetwork, Match, Source, WeightsConstraint, sources

_SUFFIXES: Final = (".onnx", ".xml", ".engine")
_UNNAMED: Final = "model"


@sources.register("graph")
class GraphSource(Source):
    """Adopt an ONNX file, an OpenVINO model, an engine, the bytes of an ONNX file, or a graph in memory.

    That is an `onnx.ModelProto`, what `torch.onnx.export` returns, or a model of onnx-ir.
    """

    names = _SUFFIXES

    def matches(self, source: object) -> Match:
        if isinstance(source, (str, os.PathLike)):
            return Match.CERTAIN if Path(source).suffix.lower() in _SUFFIXES else Match.NO
        in_memory = isinstance(source, (bytes, bytearray, memoryview)) or hasattr(source, "SerializeToString")
        return Match.CERTAIN if in_memory or _is_program(source) or _is_ir(source) else Match.NO

    def load(self, source: object, constraint: WeightsConstraint) -> LoadedNetwork:
        stated = {"num-classes": constraint.num_classes, "head": constraint.head, **constraint.architecture}
        stated["variant"] = None if constraint.variant is None else constraint.variant.name
        for name, value in stated.items():
            if value is not None:
                raise UsageError(
                    f"{name.replace('_', '-')}={value}", "a graph cannot be given another architecture", "omit it"
                )
        artifact = Artifact.open(_path_or_bytes(source))
        name = _UNNAMED if artifact.data is not None else artifact.path.stem
        if artifact.kind == "onnx" and artifact.manifest is None and is_installed("onnx") and is_installed("onnx_ir"):
            return _adopted(name, artifact, allow_nonfinite=constraint.allow_nonfinite)
        return LoadedNetwork(
            name=name,
            artifact=artifact,
            manifest=artifact.manifest,
            labels=artifact.manifest.labels if artifact.manifest else (),
        )


def _adopted(name: str, artifact: Artifact, *, allow_nonfinite: bool) -> LoadedNetwork:
    """Return the graph of a file without a manifest, in the form that everything here expects."""
    from densenet_deploy.graph.foreign import adopt
    from densenet_deploy.graph.onnx_file import read_onnx

    found = adopt(read_onnx(artifact), artifact.path, allow_nonfinite=allow_nonfinite)
    if found.notes:
        data = found.model.SerializeToString()
        held = Artifact.open(data)
        artifact = dataclasses.replace(held, path=artifact.path, original=artifact)
    return LoadedNetwork(name=name, artifact=artifact, graph=found.model, notes=found.notes)


def _path_or_bytes(source: object) -> str | os.PathLike[str] | bytes:
    if isinstance(source, (str, os.PathLike)):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if _is_program(source):
        source = source.model_proto  # type: ignore[attr-defined]
    elif _is_ir(source):
        import onnx_ir

        source = onnx_ir.to_proto(source)  # type: ignore[call-overload]
    data: bytes = source.SerializeToString()  # type: ignore[attr-defined]
    return data


def _is_program(source: object) -> bool:
    """Whether it is what `torch.onnx.export` returns."""
    onnx = imported("torch.onnx")
    return onnx is not None and isinstance(source, onnx.ONNXProgram)


def _is_ir(source: object) -> bool:
    onnx_ir = imported("onnx_ir")
    return onnx_ir is not None and isinstance(source, onnx_ir.Model)
