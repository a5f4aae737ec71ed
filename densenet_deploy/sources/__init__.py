"""Where networks come from: a variant's name, public weights, a checkpoint, a module in memory, a graph.

>>> load("cifar-bc-40-12").variant.spec.num_classes
10
"""

from __future__ import annotations

import os

from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.sources.source import (
    CheckpointFormat,
    LoadedNetwork,
    Match,
    Source,
    WeightsConstraint,
    formats,
    sources,
)

__all__ = [
    "CheckpointFormat",
    "LoadedNetwork",
    "Match",
    "Source",
    "WeightsConstraint",
    "formats",
    "load",
    "source_for",
    "sources",
]


def load(source: object, constraint: WeightsConstraint | None = None) -> LoadedNetwork:
    """Load the network that `source` names or is.

    >>> load("examples/digits/densenet_digits.safetensors").labels[:3]     # doctest: +SKIP
    ('0', '1', '2')

    Args:
        source: the name of a variant (`121`), `none` (untrained), public weights (`imagenet`, `imagenet:169`), the path
            of a checkpoint or of a graph (`.onnx`, `.xml`, `.engine`), a state dict, an `nn.Module`, the bytes of an
            ONNX file, or an `onnx.ModelProto`.
        constraint: what the network must be.

    Raises:
        UnknownNameError: if `source` is a string that no source knows.
        UsageError: if it is of another type, or contradicts `constraint`.
        InputError: if a file cannot be read, or does not fit `constraint`.
        ResourceError: if public weights cannot be downloaded.
        MissingPackageError: if a package is not installed.
    """
    return source_for(source).load(source, constraint or WeightsConstraint())


def source_for(source: object) -> Source:
    """Return the source that loads `source`.

    Raises:
        UnknownNameError: if it is a string that no source knows.
        UsageError: if it is of a type that no source takes.
    """
    known = [kind() for kind in sources.items().values()]
    best = max(known, key=lambda candidate: candidate.matches(source))
    if best.matches(source) is not Match.NO:
        return best
    if isinstance(source, (str, os.PathLike)):
        raise UnknownNameError.among("weights", os.fspath(source), {name for kind in known for name in kind.names})
    types = "a name, a path, a state dict, an nn.Module, an onnx.ModelProto, or the bytes of an ONNX file"
    raise UsageError(type(source).__name__, "is not a source of a network", f"give {types}")
