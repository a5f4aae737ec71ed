"""The JSON file beside a plan that says what the plan is: typed, and checked before it is believed.

A plan says nothing of its inputs, its precision or the images that it wants. `X.engine.json` does, and holds the
plan's SHA-256, under which the facts are kept::

    {"schema": 1, "records": {"<sha256 of the plan>": {"flavour": "rtx", "version": "1.7.1.116", ...}}}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from densenet_deploy.artifacts import os_errors_about, write_file
from densenet_deploy.errors import ManifestError
from densenet_deploy.manifest import PREFIX, Manifest, Scalar
from densenet_deploy.runtime.engine_facts import HARDWARE_LEVELS, PRECISIONS, BatchProfile, TensorFacts
from densenet_deploy.runtime.trt import FLAVOURS

SCHEMA: Final = 1
SUFFIX: Final = ".json"

_LARGEST_BYTES: Final = 64 * 2**20


@dataclass(frozen=True)
class Sidecar:
    """The facts of one plan.

    Attributes:
        sha256, size: of the plan's bytes.
        flavour, version: the TensorRT that built it.
        targets: compute capabilities that it runs on; of full TensorRT that of the GPU that built it, and `newer` of
            TensorRT-RTX stands for those to come.
        precision: what the graph asked for: `fp32`, `fp16`, `bf16`, `int8`. What runs is read back from the engine.
        onnx_sha256: of the ONNX file that was built.
        inputs, outputs: as the engine takes and gives them.
        profiles: in the order of the engine's profiles; at least one.
        hardware: `none`, `ampere-plus`, `same-compute-capability`: what a full TensorRT plan was widened to.
        version_compatible: whether later versions of full TensorRT take it.
        gpu: name of the GPU that it was built with, or None where it was built without one.
        platform: operating system and processor that it was built on (`linux-x86_64`).
        options: the other choices of the build, by name.
        manifest: the facts of the model, or None for a stranger's.
        build_key: a hash over everything that decided what the engine is.
        convolutions: the precision that each ran in when the engine was read back after its build, by name.
    """

    sha256: str
    size: int
    flavour: str
    version: str
    targets: tuple[str, ...]
    precision: str
    onnx_sha256: str
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    profiles: tuple[BatchProfile, ...]
    hardware: str = "none"
    version_compatible: bool = False
    gpu: str | None = None
    platform: str = ""
    options: Mapping[str, Scalar] = field(default_factory=dict)
    manifest: Manifest | None = None
    build_key: str = ""
    convolutions: Mapping[str, str] = field(default_factory=dict)

    def to_facts(self) -> dict[str, Any]:
        """Return the facts as JSON has them, without the hash that they are stored under."""
        facts = asdict(self)
        del facts["sha256"]
        strings = {} if self.manifest is None else self.manifest.to_strings()
        facts["manifest"] = {key.removeprefix(PREFIX): json.loads(text) for key, text in strings.items()} or None
        return facts

    @classmethod
    def from_facts(cls, sha256: str, facts: Mapping[str, Any]) -> Sidecar:
        """Read the facts of the plan with the hash `sha256`; what is not known here is left out.

        Raises:
            ManifestError: if a fact is missing or malformed.
        """
        read = _Facts(facts)
        return cls(
            sha256=sha256,
            size=read.whole("size"),
            flavour=read.word("flavour", FLAVOURS),
            version=read.text("version"),
            targets=read.texts("targets"),
            precision=read.word("precision", PRECISIONS),
            onnx_sha256=read.text("onnx_sha256"),
            inputs=tuple(map(_tensor, read.objects("inputs"))),
            outputs=tuple(map(_tensor, read.objects("outputs"))),
            profiles=tuple(map(_profile, read.objects("profiles"))),
            hardware=read.word("hardware", HARDWARE_LEVELS),
            version_compatible=read.flag("version_compatible"),
            gpu=None if facts.get("gpu") is None else read.text("gpu"),
            platform=read.text("platform"),
            options=read.scalars("options"),
            manifest=_manifest(facts.get("manifest")),
            build_key=read.text("build_key"),
            convolutions={name: str(word) for name, word in read.scalars("convolutions").items()},
        )


def sidecar_path(engine: Path) -> Path:
    """Return where the sidecar of `engine` lies: `a.engine.json` beside `a.engine`."""
    return engine.with_name(engine.name + SUFFIX)


def read_records(engine: Path) -> dict[str, Sidecar] | None:
    """Return the records in the sidecar of `engine` by hash, or None where there is no sidecar.

    Raises:
        ManifestError: if it cannot be read, or is of a newer schema.
    """
    path = sidecar_path(engine)
    with os_errors_about(path):
        if not path.exists():
            return None
        if path.stat().st_size > _LARGEST_BYTES:
            raise ManifestError(path, f"is larger than {_LARGEST_BYTES} bytes", "build the engine again")
        text = path.read_bytes()
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ManifestError(path, "is not JSON", "build the engine again") from exc
    if not isinstance(facts, dict) or not isinstance(facts.get("records"), dict):
        raise ManifestError(path, "holds no records of engines", "build the engine again")
    _check_schema(path, facts.get("schema"))
    return {key: Sidecar.from_facts(key, _object(key, record)) for key, record in facts["records"].items()}


def write_records(engine: Path, records: Mapping[str, Sidecar]) -> None:
    """Write the sidecar of `engine` anew, whole or not at all.

    Raises:
        ManifestError: if it would be larger than what is read.
        ResourceError: if the disk is full, read-only or not permitted.
    """
    facts = {"schema": SCHEMA, "records": {sha256: record.to_facts() for sha256, record in records.items()}}
    text = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False)
    data, path = text.encode("utf-8", "backslashreplace") + b"\n", sidecar_path(engine)
    if len(data) > _LARGEST_BYTES:
        raise ManifestError(path, f"would be larger than {_LARGEST_BYTES} bytes", "give the model shorter labels")
    write_file(path, data)


def platform_word() -> str:
    """Return operating system and processor of this machine as one word: `linux-x86_64`."""
    import platform

    return f"{sys.platform}-{platform.machine()}"


def _check_schema(path: Path, schema: object) -> None:
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise ManifestError(path, f"names no schema but {schema!r}", "build the engine again")
    if schema > SCHEMA:
        why = f"is of schema {schema}, newer than {SCHEMA}, the newest known here"
        raise ManifestError(path, why, "upgrade densenet-deploy")


def _manifest(facts: object) -> Manifest | None:
    if facts is None:
        return None
    pairs = _object("manifest", facts)
    return Manifest.from_strings({PREFIX + key: json.dumps(value) for key, value in pairs.items()})


def _tensor(facts: Mapping[str, Any]) -> TensorFacts:
    read = _Facts(facts)
    shape = read.value("shape", list)
    if not all(size is None or (type(size) is int and size > 0) for size in shape):
        raise _malformed("shape", shape)
    return TensorFacts(read.text("name"), read.text("dtype"), tuple(shape))


def _profile(facts: Mapping[str, Any]) -> BatchProfile:
    read = _Facts(facts)
    return BatchProfile(read.whole("min"), read.whole("opt"), read.whole("max"))


class _Facts:
    """An object of JSON whose values are checked for their type before they are believed."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self._facts = facts

    def value(self, key: str, kind: type[Any]) -> Any:
        value = self._facts.get(key)
        if type(value) is not kind:
            raise _malformed(key, value)
        return value

    def text(self, key: str) -> str:
        return str(self.value(key, str))

    def word(self, key: str, known: tuple[str, ...]) -> str:
        word = self.text(key)
        if word not in known:
            raise _malformed(key, word)
        return word

    def whole(self, key: str) -> int:
        number: int = self.value(key, int)
        if number < 1:
            raise _malformed(key, number)
        return number

    def flag(self, key: str) -> bool:
        return bool(self.value(key, bool))

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.value(key, list)
        if not all(isinstance(value, str) for value in values):
            raise _malformed(key, values)
        return tuple(values)

    def objects(self, key: str) -> tuple[dict[str, Any], ...]:
        values = self.value(key, list)
        if not values:
            raise _malformed(key, values)
        return tuple(_object(key, value) for value in values)

    def scalars(self, key: str) -> dict[str, Scalar]:
        values = self.value(key, dict)
        if not all(value is None or isinstance(value, (str, int, float, bool)) for value in values.values()):
            raise _malformed(key, values)
        return dict(values)


def _object(key: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _malformed(key, value)
    return value


def _malformed(key: str, value: object) -> ManifestError:
    return ManifestError(f"{key} of the engine's sidecar", f"cannot be {value!r:.60}", "build the engine again")
