"""The file beside an engine: every fact comes back as it was, and nothing malformed is believed."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import pytest

from densenet_deploy.errors import InputError, ManifestError
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.runtime.batching import BatchProfile
from densenet_deploy.runtime.sidecar import (
    Sidecar,
    TensorFacts,
    platform_word,
    read_records,
    sidecar_path,
    write_records,
)
from tests.runtime.plans import plan_bytes, sidecar_of

MANIFEST = Manifest("121", {"growth_rate": 32}, WeightsOrigin("none", "ab", 0), Preprocessing(), labels=("cat", "dög"))
FULL = sidecar_of(
    plan_bytes(),
    profiles=(BatchProfile(1, 1, 1), BatchProfile(2, 8, 16)),
    hardware="ampere-plus",
    version_compatible=True,
    gpu="A GPU",
    options={"tf32": True, "workspace": None},
    manifest=MANIFEST,
    build_key="key",
    convolutions={"conv0": "fp16"},
)
MIB = 2**20


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """The path of an engine whose sidecar has one record."""
    path = tmp_path / "model.fp16.engine"
    write_records(path, {FULL.sha256: FULL})
    return path


def test_the_sidecar_is_named_after_the_engine() -> None:
    assert sidecar_path(Path("a/model.fp16.engine")) == Path("a/model.fp16.engine.json")


def test_records_come_back_as_they_were(engine: Path) -> None:
    assert read_records(engine) == {FULL.sha256: FULL}
    plain = sidecar_of(plan_bytes(body=b"other"))
    write_records(engine, {FULL.sha256: FULL, plain.sha256: plain})
    assert read_records(engine) == {FULL.sha256: FULL, plain.sha256: plain}


def test_without_a_sidecar_there_are_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "model.engine") is None


def test_the_file_is_what_its_documentation_says(engine: Path) -> None:
    text = sidecar_path(engine).read_text("utf-8")
    assert text.startswith('{\n "schema": 1,\n "records": {\n')
    assert text.endswith("}\n")
    facts = json.loads(text)
    assert set(facts) == {"schema", "records"}
    (record,) = facts["records"].values()
    assert "sha256" not in record
    assert record["manifest"]["schema"] == 1
    assert record["manifest"]["variant"] == "121"
    assert record["inputs"] == [{"name": "input", "dtype": "float32", "shape": [None, 3, 32, 32]}]


def test_what_a_build_does_not_state_has_its_usual_value() -> None:
    tensors = (TensorFacts("input", "float32", (1, 3, 8, 8)),)
    short = Sidecar("ab", 1, "rtx", "1.7", ("8.9",), "fp32", "cd", tensors, tensors, (BatchProfile(),))
    assert (short.hardware, short.version_compatible, short.gpu, short.platform) == ("none", False, None, "")
    assert (short.options, short.manifest, short.build_key, short.convolutions) == ({}, None, "", {})
    facts = short.to_facts()
    assert facts["manifest"] is None
    assert Sidecar.from_facts("ab", facts) == short


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("hardware", level) for level in ("none", "ampere-plus", "same-compute-capability")),
        *(("precision", word) for word in ("fp32", "fp16", "bf16", "int8")),
        *(("flavour", word) for word in ("rtx", "tensorrt")),
    ],
)
def test_these_words_are_known(name: str, value: str) -> None:
    assert getattr(Sidecar.from_facts("ab", {**FULL.to_facts(), name: value}), name) == value


def test_facts_not_known_here_are_left_out() -> None:
    assert Sidecar.from_facts(FULL.sha256, {**FULL.to_facts(), "colour": "green"}) == FULL


@pytest.mark.parametrize(
    ("name", "value", "subject"),
    [
        ("size", "36", "size"),
        ("size", 0, "size"),
        ("flavour", "trt", "flavour"),
        ("version", 1, "version"),
        ("targets", [8.6], "targets[0]"),
        ("precision", "fp4", "precision"),
        ("inputs", [], "inputs"),
        ("outputs", [], "outputs"),
        ("profiles", [], "profiles"),
        ("inputs", [{"name": "input", "dtype": "float32", "shape": [0]}], "inputs[0].shape[0]"),
        ("profiles", [{"min": 1, "opt": True, "max": 1}], "profiles[0].opt"),
        ("hardware", "any", "hardware"),
        ("version_compatible", 1, "version_compatible"),
        ("options", {"a": []}, "options.a"),
        ("manifest", [], "manifest"),
    ],
)
def test_every_fact_is_checked(name: str, value: object, subject: str) -> None:
    with pytest.raises(ManifestError) as caught:
        Sidecar.from_facts("ab", {**FULL.to_facts(), name: value})
    assert caught.value.subject == f"{subject} of the engine's sidecar"


@pytest.mark.parametrize("facts", [1, [1], "text", None])
def test_a_record_is_a_mapping(facts: object) -> None:
    with pytest.raises(ManifestError) as caught:
        Sidecar.from_facts("ab", facts)
    assert caught.value.subject.endswith("of the engine's sidecar")


def test_facts_of_a_model_in_a_newer_schema_are_refused_by_it_alone() -> None:
    facts = FULL.to_facts()
    with pytest.raises(ManifestError) as caught:
        Sidecar.from_facts("ab", {**facts, "manifest": {**facts["manifest"], "schema": 2}})
    assert caught.value.subject == "manifest.schema of the engine's sidecar"


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        (b"", "model.fp16.engine.json"),
        (b"\xff\xfe", "model.fp16.engine.json"),
        (b"[" * 100_000, "model.fp16.engine.json"),
        (b"[]", "model.fp16.engine.json"),
        (b'{"schema": 1}', "model.fp16.engine.json"),
        (b'{"schema": 1, "records": []}', "model.fp16.engine.json"),
        (b'{"schema": 2, "records": {}}', "model.fp16.engine.json"),
        (b'{"schema": true, "records": {}}', "model.fp16.engine.json"),
        (b'{"records": {}}', "model.fp16.engine.json"),
        (b'{"schema": 1, "records": {"ab": 1}}', "engine's sidecar"),
        (b'{"schema": 1, "records": {"ab": {}}}', "size of the engine's sidecar"),
    ],
)
def test_a_broken_file_is_refused(engine: Path, text: bytes, subject: str) -> None:
    sidecar_path(engine).write_bytes(text)
    with pytest.raises(ManifestError) as caught:
        read_records(engine)
    assert caught.value.subject.endswith(subject)


def test_a_file_without_records_is_empty(engine: Path) -> None:
    sidecar_path(engine).write_bytes(b'{"schema": 1, "records": {}}')
    assert read_records(engine) == {}


def test_a_path_that_cannot_be_looked_at_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        read_records(tmp_path / f"{'x' * 250}.engine")


@pytest.mark.parametrize(("size", "word"), [(64 * MIB, "JSON"), (64 * MIB + 1, "larger")])
def test_64_mib_are_read_and_no_more(engine: Path, size: int, word: str) -> None:
    with sidecar_path(engine).open("wb") as file:
        file.truncate(size)  # zeros that take no room, and are not JSON
    with pytest.raises(ManifestError) as caught:
        read_records(engine)
    assert word in caught.value.why


def test_what_would_be_too_large_to_be_read_again_is_not_written(engine: Path) -> None:
    size = sidecar_path(engine).stat().st_size
    sidecar_path(engine).unlink()
    with pytest.raises(ManifestError) as caught:
        write_records(engine, {FULL.sha256: FULL}, largest=size - 1)
    assert caught.value.subject == str(sidecar_path(engine))
    assert not sidecar_path(engine).exists()
    write_records(engine, {FULL.sha256: FULL}, largest=size)
    assert sidecar_path(engine).exists()


def test_a_platform_is_one_word() -> None:
    assert platform_word() == f"{sys.platform}-{platform.machine()}"
