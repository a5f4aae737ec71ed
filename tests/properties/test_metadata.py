"""What travels with a model comes back as it was, whatever text and numbers: in strings, ONNX files and sidecars."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
from hypothesis import strategies as st

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import DataError, DensenetDeployError, InputError, ManifestError, UsageError, printable
from densenet_deploy.manifest import INTERPOLATIONS, PREFIX, Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.onnx_envelope import append_metadata
from densenet_deploy.runtime.batching import BatchProfile
from densenet_deploy.runtime.classifier import read_labels
from densenet_deploy.runtime.sidecar import TensorFacts, read_records, write_records
from tests.properties.holds import holds_for
from tests.properties.texts import FLOATS, POSITIVE, TEXTS
from tests.runtime.plans import plan_bytes, sidecar_of

PIXELS = st.integers(1, 65536)
WHOLE = st.integers(-(2**63), 2**63)
PREPROCESSINGS = st.builds(
    Preprocessing,
    image_size=PIXELS,
    resize=PIXELS,
    mean=st.tuples(FLOATS, FLOATS, FLOATS),
    std=st.tuples(POSITIVE, POSITIVE, POSITIVE),
    interpolation=st.sampled_from(INTERPOLATIONS),
)
SPECS = st.dictionaries(
    TEXTS, st.none() | TEXTS | st.booleans() | WHOLE | FLOATS | st.lists(WHOLE).map(tuple), max_size=4
)
MANIFESTS = st.builds(
    Manifest,
    variant=TEXTS,
    spec=SPECS,
    weights=st.builds(WeightsOrigin, source=TEXTS, sha256=TEXTS, seed=st.none() | WHOLE),
    preprocessing=PREPROCESSINGS,
    labels=st.lists(TEXTS, max_size=4).map(tuple),
    precision=TEXTS,
    recipe=st.none() | TEXTS,
    batch=st.none() | WHOLE,
    opset=st.none() | WHOLE,
    tools=st.dictionaries(TEXTS, TEXTS, max_size=3),
)
MEANS = """<ir_version: 8, opset_import: ["" : 18]> means (float[N,3,8,8] input) => (float[N,3] logits)
{ pooled = GlobalAveragePool(input)  logits = Flatten(pooled) }"""


@pytest.fixture(scope="module")
def means() -> bytes:
    data: bytes = onnx.parser.parse_model(MEANS).SerializeToString()
    return data


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@holds_for(few=60, many=1_000, manifest=MANIFESTS)
def test_a_manifest_comes_back_from_its_strings(manifest: Manifest) -> None:
    strings = manifest.to_strings()
    assert Manifest.from_strings(strings) == manifest
    for text in strings.values():
        text.encode()  # what protobuf carries


@holds_for(few=50, many=150, manifest=MANIFESTS)
def test_a_manifest_comes_back_from_an_onnx_file(means: bytes, place: Path, manifest: Manifest) -> None:
    path = place / "means.onnx"
    path.write_bytes(append_metadata(means, manifest.to_strings()))
    assert Artifact.open(path).manifest == manifest
    props = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert Manifest.from_strings(props) == manifest


SIDECARS = st.builds(
    lambda **changes: sidecar_of(plan_bytes(), **changes),
    precision=st.sampled_from(("fp32", "fp16", "bf16", "int8")),
    onnx_sha256=TEXTS,
    inputs=st.lists(
        st.builds(TensorFacts, TEXTS, TEXTS, st.lists(st.none() | st.integers(1, 2**40)).map(tuple)),
        min_size=1,
        max_size=2,
    ).map(tuple),
    profiles=st.lists(st.builds(BatchProfile, *[st.integers(1, 2**40)] * 3), min_size=1, max_size=2).map(tuple),
    version_compatible=st.booleans(),
    gpu=st.none() | TEXTS,
    platform=TEXTS,
    options=st.dictionaries(TEXTS, st.none() | TEXTS | st.booleans() | WHOLE | FLOATS, max_size=3),
    manifest=st.none() | MANIFESTS,
    build_key=TEXTS,
    convolutions=st.dictionaries(TEXTS, TEXTS, max_size=3),
)


@holds_for(few=30, many=150, sidecar=SIDECARS, key=TEXTS)
def test_a_sidecar_comes_back_from_its_file(place: Path, sidecar: object, key: str) -> None:
    sidecar = dataclasses.replace(sidecar, sha256=key)  # type: ignore[type-var]
    write_records(place / "x.engine", {key: sidecar})  # type: ignore[dict-item]
    assert read_records(place / "x.engine") == {key: sidecar}


JSON = st.recursive(
    st.none() | st.booleans() | WHOLE | FLOATS | TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner)
)


@holds_for(few=60, many=1_000, manifest=MANIFESTS, key=st.integers(0, 9), corrupted=JSON | TEXTS)
def test_a_corrupted_fact_is_refused_by_name_or_is_a_fact(manifest: Manifest, key: int, corrupted: object) -> None:
    import json

    strings = manifest.to_strings()
    name = sorted(strings)[key]
    strings[name] = corrupted if isinstance(corrupted, str) else json.dumps(corrupted)
    try:
        found = Manifest.from_strings(strings)
    except ManifestError as exc:
        assert str(exc).startswith(f"metadata: {PREFIX}")
        assert str(exc).isprintable()
    else:
        assert found is not None
        assert Manifest.from_strings(found.to_strings()) == found


LINES = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=20)


@holds_for(few=100, many=1_000, lines=st.lists(LINES, min_size=1, max_size=5), bom=st.booleans())
def test_labels_are_one_a_line_or_the_blank_line_is_named(place: Path, lines: list[str], bom: bool) -> None:
    path = place / "labels.txt"
    path.write_bytes("\n".join(lines).encode("utf-8-sig" if bom else "utf-8"))
    expected = [line.strip() for line in ["\n".join(lines).removeprefix("\ufeff").removesuffix("\n")][0].split("\n")]
    try:
        assert list(read_labels(path)) == expected
    except DataError as exc:
        assert "" in expected
        assert "blank" in str(exc) or "empty" in str(exc)


@holds_for(few=200, many=1_000, subject=TEXTS, why=TEXTS)
def test_an_error_is_one_printable_line_whatever_it_quotes(subject: str, why: str) -> None:
    assert printable(subject).isprintable()
    for kind in (InputError, UsageError, DensenetDeployError):
        line = str(kind(subject, why, "see the list"))
        assert line.isprintable()
        line.encode()


def test_megabytes_come_back(means: bytes, place: Path) -> None:
    text = '\N{CAT FACE}\x1b\\"' * 500_000
    manifest = Manifest("121", {}, WeightsOrigin(text, ""), Preprocessing(), labels=(text, "", text))
    (place / "large.onnx").write_bytes(append_metadata(means, manifest.to_strings()))
    assert Artifact.open(place / "large.onnx").manifest == manifest


def test_a_sidecar_that_could_not_be_read_again_is_not_written(place: Path) -> None:
    manifest = Manifest("121", {}, WeightsOrigin("none", ""), Preprocessing(), labels=("x" * 10_000,) * 7000)
    sidecar = sidecar_of(plan_bytes(), manifest=manifest)
    with pytest.raises(ManifestError, match="larger than"):
        write_records(place / "large.engine", {sidecar.sha256: sidecar})
    assert read_records(place / "large.engine") is None
