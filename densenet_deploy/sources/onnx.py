"""ONNX files and graphs in memory, adopted as they are."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from densenet_deploy.artifacts import sha256_of
from densenet_deploy.errors import ManifestError, UsageError
from densenet_deploy.manifest import Manifest, WeightsOrigin
from densenet_deploy.packages import require_packages
from densenet_deploy.sources.source import LoadedNetwork, Match, Source, WeightsConstraint, sources
from densenet_deploy.variants import Variant
from densenet_deploy.variants.spec import DenseNetSpec

if TYPE_CHECKING:
    import onnx

_UNNAMED: Final = "model"


@sources.register("onnx")
class OnnxSource(Source):
    """Adopt an `.onnx` file, or an `onnx.ModelProto`."""

    names = (".onnx",)

    def matches(self, source: object) -> Match:
        if isinstance(source, (str, os.PathLike)):
            return Match.CERTAIN if Path(source).suffix.lower() == ".onnx" else Match.NO
        kind = type(source)
        return Match.CERTAIN if kind.__name__ == "ModelProto" and kind.__module__.startswith("onnx") else Match.NO

    def load(self, source: object, constraint: WeightsConstraint) -> LoadedNetwork:
        require_packages("export", "onnx")
        if constraint != WeightsConstraint():
            raise UsageError("an ONNX graph", "is used as it is", "leave out variant, num-classes, head and seed")
        if isinstance(source, (str, os.PathLike)):
            return _from_file(Path(source))
        return _from_proto(source)  # type: ignore[arg-type]


def _from_file(path: Path) -> LoadedNetwork:
    from densenet_deploy.graph.onnx_file import load_onnx

    proto = load_onnx(path)
    return _network(path.stem, proto, WeightsOrigin(path.name, sha256_of(path)))


def _from_proto(proto: onnx.ModelProto) -> LoadedNetwork:
    from densenet_deploy.graph.onnx_file import check_onnx

    check_onnx(proto, proto.graph.name or _UNNAMED)
    digest = hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
    return _network(proto.graph.name or _UNNAMED, proto, WeightsOrigin("an onnx.ModelProto", digest))


def _network(name: str, proto: onnx.ModelProto, origin: WeightsOrigin) -> LoadedNetwork:
    manifest = Manifest.from_strings({entry.key: entry.value for entry in proto.metadata_props})
    return LoadedNetwork(
        name=name,
        origin=manifest.weights if manifest else origin,
        proto=proto,
        variant=_variant_of(manifest),
        manifest=manifest,
        labels=manifest.labels if manifest else (),
        output_names=tuple(value.name for value in proto.graph.output),
    )


def _variant_of(manifest: Manifest | None) -> Variant | None:
    """The DenseNet that the facts describe; they may describe another network, which has no such numbers."""
    if manifest is None:
        return None
    with contextlib.suppress(ManifestError):
        return Variant(manifest.variant, DenseNetSpec.from_facts(manifest.spec), manifest.preprocessing)
    return None
