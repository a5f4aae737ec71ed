"""The JSON file beside an engine that describes it: typed, and checked before it is used.

A plan, as TensorRT calls the bytes of an engine, does not state its inputs, its precision or the images that it takes.
`X.engine.json` does. It holds the plan's SHA-256, under which the facts are kept::

    {"schema": 1, "records": {"<sha256 of the plan>": {"flavour": "rtx", "version": "1.7.1.116", ...}}}
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from densenet_deploy.artifacts import os_errors_about, write_file
from densenet_deploy.errors import DensenetDeployError, ManifestError
from densenet_deploy.manifest import SCHEMA as MANIFEST_SCHEMA
from densenet_deploy.manifest import Manifest, Scalar, check_schema
from densenet_deploy.records import Choice, Range, fields_to_plain, from_plain, parse_json, write_json
from densenet_deploy.runtime.batching import BatchProfile
from densenet_deploy.runtime.trt import FLAVOURS

if TYPE_CHECKING:
    from densenet_deploy.runtime.feeds import TensorSpec

HARDWARE_LEVELS: Final = ("none", "ampere-plus", "same-compute-capability")
PRECISIONS: Final = ("fp32", "fp16", "bf16", "int8")

SCHEMA: Final = 1
SUFFIX: Final = ".json"

_LARGEST_BYTES: Final = 64 * 2**20
_FIX: Final = "build the engine again"


@dataclass(frozen=True)
class TensorFacts:
    """Name, NumPy type (`float32`) and shape of an input or output; a dimension of None is the profile's."""

    name: str
    dtype: str
    shape: tuple[Annotated[int, Range(1)] | None, ...]

    def spec(self) -> TensorSpec:
        """Return them as a runner has them."""
        import numpy as np

        from densenet_deploy.runtime.feeds import TensorSpec

        return TensorSpec(self.name, self.shape, np.dtype(self.dtype))


@dataclass(frozen=True)
class Sidecar:
    """The facts of one engine.

    Attributes:
        sha256, size: of the plan's bytes.
        flavour, version: the TensorRT that built it.
        targets: compute capabilities that it runs on: for full TensorRT that of the GPU that built it; for TensorRT-RTX
            those that it was built for, with `newer` for later ones.
        precision: of the graph: `fp32`, `fp16`, `bf16`, `int8`. What really runs is in `convolutions`.
        onnx_sha256: of the ONNX file that was built.
        inputs, outputs: of the engine.
        profiles: in the order of the engine's profiles; at least one.
        hardware: `none`, `ampere-plus`, `same-compute-capability`: hardware compatibility of a full TensorRT engine.
        version_compatible: whether later versions of full TensorRT accept it.
        gpu: name of the GPU that it was built with, or None where it was built without one.
        platform: operating system and processor that it was built on (`linux-x86_64`).
        options: the other options of the build, by name.
        manifest: the facts of the model, or None where it carried none.
        build_key: a hash of everything that determines the engine.
        convolutions: the precision in which each convolution runs, as read back from the engine, by name.
    """

    sha256: str
    size: Annotated[int, Range(1)]
    flavour: Annotated[str, Choice(*FLAVOURS)]
    version: str
    targets: tuple[str, ...]
    precision: Annotated[str, Choice(*PRECISIONS)]
    onnx_sha256: str
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    profiles: tuple[BatchProfile, ...]
    hardware: Annotated[str, Choice(*HARDWARE_LEVELS)] = "none"
    version_compatible: bool = False
    gpu: str | None = None
    platform: str = ""
    options: Mapping[str, Scalar] = field(default_factory=dict)
    manifest: Manifest | None = None
    build_key: str = ""
    convolutions: Mapping[str, str] = field(default_factory=dict)

    def to_facts(self) -> dict[str, Any]:
        """Return the facts as JSON has them, without the hash that they are stored under."""
        facts = fields_to_plain(self)
        del facts["sha256"]
        if self.manifest is not None:
            facts["manifest"] = {"schema": MANIFEST_SCHEMA, **facts["manifest"]}
        return facts

    @classmethod
    def from_facts(cls, sha256: str, facts: object) -> Sidecar:
        """Read the facts of the engine with the hash `sha256`; unknown ones are ignored.

        Raises:
            ManifestError: if a fact is missing or malformed, or those of the model are of a newer schema.
        """
        known = {**facts, "sha256": sha256} if isinstance(facts, Mapping) else facts
        if isinstance(known, dict) and isinstance(model := known.get("manifest"), Mapping):
            check_schema("manifest.schema of the engine's sidecar", model.get("schema"), MANIFEST_SCHEMA, _FIX)
        sidecar = from_plain(cls, known, fail=_malformed)
        for name in ("inputs", "outputs", "profiles"):
            if not getattr(sidecar, name):
                raise _malformed(name, "is empty")
        return sidecar


def sidecar_path(engine: Path) -> Path:
    """Return the path of the sidecar of `engine`: `a.engine.json` beside `a.engine`."""
    return engine.with_name(engine.name + SUFFIX)


def read_records(engine: Path) -> dict[str, Sidecar] | None:
    """Return the records in the sidecar of `engine` by hash, or None without a sidecar.

    Raises:
        ManifestError: if it cannot be read, or is of a newer schema.
    """
    path = sidecar_path(engine)
    with os_errors_about(path):
        if not path.exists():
            return None
        if path.stat().st_size > _LARGEST_BYTES:
            raise ManifestError(path, f"is larger than {_LARGEST_BYTES} bytes", _FIX)
        text = path.read_bytes()
    try:
        facts = parse_json(text)
    except ValueError as exc:
        raise ManifestError(path, "is not JSON", _FIX) from exc
    if not isinstance(facts, dict) or not isinstance(facts.get("records"), dict):
        raise ManifestError(path, "does not hold records of engines", _FIX)
    check_schema(path, facts.get("schema"), SCHEMA, _FIX)
    return {key: Sidecar.from_facts(key, record) for key, record in facts["records"].items()}


def write_records(engine: Path, records: Mapping[str, Sidecar], *, largest: int = _LARGEST_BYTES) -> None:
    """Write the sidecar of `engine`, whole or not at all.

    Raises:
        ManifestError: if it would have more than `largest` bytes, and be too large to be read again.
        ResourceError: if the disk is full, read-only or not permitted.
    """
    facts = {"schema": SCHEMA, "records": {sha256: record.to_facts() for sha256, record in records.items()}}
    data, path = write_json(facts, indent=1).encode() + b"\n", sidecar_path(engine)
    if len(data) > largest:
        raise ManifestError(path, f"would be larger than {largest} bytes", "give the model shorter labels")
    write_file(path, data)


def platform_word() -> str:
    """Return operating system and processor of this machine as one word: `linux-x86_64`."""
    import platform

    return f"{sys.platform}-{platform.machine()}"


def _malformed(where: str, why: str) -> DensenetDeployError:
    return ManifestError(f"{where} of the engine's sidecar", why, _FIX)
