"""Engines on disk (bad inputs 22-25, 53, 54): what is loaded is what was built; headers are read without TensorRT."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from pathlib import Path

import pytest

from densenet_deploy.errors import BackendError, DeviceError, InputError, ManifestError, ModelFileError, ResourceError
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.runtime.batching import BatchProfile
from densenet_deploy.runtime.engine_files import (
    checked_header,
    numbers,
    read_plan,
    require_gpu,
    require_version,
    same_version,
    sniff,
)
from densenet_deploy.runtime.sidecar import read_records, sidecar_path
from tests.runtime.plans import plan_bytes, sidecar_of, write_engine

PLAN = plan_bytes()
MANIFEST = Manifest("121", {"growth_rate": 32}, WeightsOrigin("none", "ab", 0), Preprocessing(), labels=("cat", "dög"))


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "model.fp16.engine"
    write_engine(path, PLAN, sidecar_of(PLAN, manifest=MANIFEST, options={"tf32": True, "workspace": None}))
    return path


def test_all_facts_come_back(engine: Path) -> None:
    plan = read_plan(engine)
    wanted = sidecar_of(PLAN, manifest=MANIFEST, options={"tf32": True, "workspace": None})
    assert plan.data == PLAN
    assert plan.sidecar == wanted
    assert sidecar_path(engine).name == "model.fp16.engine.json"
    assert sorted(path.name for path in engine.parent.iterdir()) == [engine.name, sidecar_path(engine).name]


@pytest.mark.parametrize("position", [0, 16, 30, 38, len(PLAN) - 1])
def test_one_changed_byte_is_seen(engine: Path, position: int) -> None:
    data = bytearray(PLAN)
    data[position] ^= 1
    engine.write_bytes(data)
    for trust in (False, True):
        with pytest.raises(ModelFileError) as caught:
            read_plan(engine, trust_engine=trust)
        assert caught.value.subject.endswith("model.fp16.engine")


def test_a_cut_plan_is_seen(engine: Path) -> None:
    engine.write_bytes(PLAN[:-1])
    with pytest.raises(ModelFileError) as caught:
        read_plan(engine)
    assert caught.value.subject.endswith("model.fp16.engine")
    engine.write_bytes(b"")
    with pytest.raises(InputError) as caught:
        read_plan(engine)
    assert caught.value.subject.endswith("model.fp16.engine")


def test_an_engine_without_a_sidecar_needs_trust(tmp_path: Path) -> None:
    path = tmp_path / "other.engine"
    path.write_bytes(PLAN)
    with pytest.raises(ModelFileError) as caught:
        read_plan(path)
    assert caught.value.subject.endswith("other.engine")
    plan = read_plan(path, trust_engine=True)
    assert plan.sidecar is None
    assert plan.header.flavour == "rtx"
    path.write_bytes(b"nothing of the kind, but long enough for a header")
    with pytest.raises(ModelFileError) as caught:
        read_plan(path, trust_engine=True)
    assert caught.value.subject.endswith("other.engine")


def test_another_flavour_or_version_is_refused(engine: Path) -> None:
    plan = read_plan(engine)
    require_version(plan, "rtx", "1.7.1.116")
    for flavour, version in (("rtx", "1.7.2.3"), ("rtx", "1.6.1.120"), ("tensorrt", "10.16.1.11")):
        with pytest.raises(BackendError) as caught:
            require_version(plan, flavour, version)
        assert caught.value.subject.endswith("model.fp16.engine")
        assert f"{flavour} {version}" in str(caught.value)
        assert "build-trt" in str(caught.value)


@pytest.mark.parametrize(
    ("compatible", "here", "fits"),
    [
        (True, "10.9.0.1", True),
        (True, "11.1.0.1", True),
        (True, "10.2.0.1", False),
        (True, "12.0.0.1", False),
        (False, "10.9.0.1", False),
        (False, "10.3.0.26", True),
    ],
)
def test_version_compatible_plans_go_forward_one_major(tmp_path: Path, compatible: bool, here: str, fits: bool) -> None:
    data, path = plan_bytes(b"ftrt", (10, 3, 0, 26)), tmp_path / "full.engine"
    write_engine(path, data, sidecar_of(data, version_compatible=compatible))
    if fits:
        require_version(read_plan(path), "tensorrt", here)
        return
    with pytest.raises(BackendError):
        require_version(read_plan(path), "tensorrt", here)


def test_another_gpu_is_refused(engine: Path) -> None:
    require_gpu(read_plan(engine), "8.9")
    with pytest.raises(DeviceError) as caught:
        require_gpu(read_plan(engine), "9.0")
    assert caught.value.subject.endswith("model.fp16.engine")


@pytest.mark.parametrize(
    ("hardware", "capability", "fits"),
    [
        ("none", "8.7", True),
        ("none", "8.6", False),
        ("ampere-plus", "9.0", True),
        ("ampere-plus", "7.5", False),
        ("same-compute-capability", "8.7", True),
        ("same-compute-capability", "8.9", False),
    ],
)
def test_full_plans_and_gpus(tmp_path: Path, hardware: str, capability: str, fits: bool) -> None:
    data, path = plan_bytes(b"ftrt", (10, 3, 0, 26)), tmp_path / "full.engine"
    write_engine(path, data, sidecar_of(data, hardware=hardware))
    if fits:
        require_gpu(read_plan(path), capability)
        return
    with pytest.raises(DeviceError) as caught:
        require_gpu(read_plan(path), capability)
    assert caught.value.subject.endswith("full.engine")


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        (b"", "model.fp16.engine.json"),
        (b"\xff\xfe", "model.fp16.engine.json"),
        (b"[" * 100_000, "model.fp16.engine.json"),
        (b"[]", "model.fp16.engine.json"),
        (b'{"schema": 1}', "model.fp16.engine.json"),
        (b'{"schema": 2, "records": {}}', "model.fp16.engine.json"),
        (b'{"schema": true, "records": {}}', "model.fp16.engine.json"),
        (b'{"schema": 1, "records": {"ab": 1}}', "engine's sidecar"),
        (b'{"schema": 1, "records": {"ab": {}}}', "size of the engine's sidecar"),
    ],
)
def test_a_broken_sidecar_is_refused(engine: Path, text: bytes, subject: str) -> None:
    sidecar_path(engine).write_bytes(text)
    for trust in (False, True):
        with pytest.raises(ManifestError) as caught:
            read_plan(engine, trust_engine=trust)
        assert caught.value.subject.endswith(subject)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", "36"),
        ("size", 0),
        ("flavour", "trt"),
        ("version", 1),
        ("targets", [8.6]),
        ("precision", "fp4"),
        ("inputs", []),
        ("inputs", [{"name": "input", "dtype": "float32", "shape": [0]}]),
        ("profiles", [{"min": 1, "opt": True, "max": 1}]),
        ("hardware", "any"),
        ("version_compatible", 1),
        ("options", {"a": []}),
        ("manifest", {"schema": 9}),
        ("manifest", []),
    ],
)
def test_every_fact_is_checked(engine: Path, key: str, value: object) -> None:
    facts = json.loads(sidecar_path(engine).read_text())
    (record,) = facts["records"].values()
    record[key] = value
    sidecar_path(engine).write_text(json.dumps(facts))
    with pytest.raises(ManifestError):
        read_plan(engine)


def test_facts_not_known_here_are_left_out(engine: Path) -> None:
    facts = json.loads(sidecar_path(engine).read_text())
    (record,) = facts["records"].values()
    record["colour"] = "green"
    sidecar_path(engine).write_text(json.dumps(facts))
    assert read_plan(engine).sidecar == sidecar_of(PLAN, manifest=MANIFEST, options={"tf32": True, "workspace": None})


def test_a_size_or_flavour_that_is_not_the_plans_is_refused(engine: Path) -> None:
    for change in ({"size": 5}, {"flavour": "tensorrt"}):
        write_engine(engine, PLAN, dataclasses.replace(sidecar_of(PLAN), **change))
        with pytest.raises(ModelFileError) as caught:
            read_plan(engine)
        assert caught.value.subject.endswith("model.fp16.engine")


@pytest.mark.parametrize(("step", "survivor"), [(1, "old"), (2, "old"), (3, "new"), (4, "new")])
def test_the_plan_has_its_record_at_every_moment(
    engine: Path, monkeypatch: pytest.MonkeyPatch, step: int, survivor: str
) -> None:
    """Writing fails at one of its three renames, as if the power had gone; 4 comes never."""
    new = plan_bytes(body=b"other code")
    renames = 0
    rename = Path.replace

    def failing(source: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        if renames == step:
            raise OSError(5, "power failure")
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", failing)
    with contextlib.suppress(ResourceError):
        write_engine(engine, new, sidecar_of(new))
    monkeypatch.undo()
    assert renames == min(step, 3)
    assert read_plan(engine).data == {"old": PLAN, "new": new}[survivor]
    write_engine(engine, new, sidecar_of(new))
    assert list(read_records(engine) or {}) == [sidecar_of(new).sha256]


def test_two_writers_leave_one_whole_winner(tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    plans = [plan_bytes(body=bytes([index]) * 1000) for index in range(8)]
    threads = [threading.Thread(target=write_engine, args=(path, plan, sidecar_of(plan))) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_plan(path).data in plans
    assert len(list(tmp_path.iterdir())) == 2


def test_profiles_come_back_in_order(tmp_path: Path) -> None:
    path, profiles = tmp_path / "model.engine", (BatchProfile(1, 1, 1), BatchProfile(2, 8, 16))
    write_engine(path, PLAN, sidecar_of(PLAN, profiles=profiles))
    sidecar = read_plan(path).sidecar
    assert sidecar is not None
    assert sidecar.profiles == profiles


def test_an_rtx_header_names_version_size_and_targets() -> None:
    data = plan_bytes()
    header = sniff(data)
    assert header is not None
    assert (header.flavour, header.version, header.size) == ("rtx", "1.7.1.116", len(data))
    assert header.targets == ("8.0", "8.6", "8.9", "12.0", "12.1", "newer")


def test_a_full_header_names_no_targets() -> None:
    header = sniff(plan_bytes(b"ftrt", (10, 3, 0, 26), mask=0xFF))
    assert header is not None
    assert (header.flavour, header.version, header.targets) == ("tensorrt", "10.3.0.26", ())


@pytest.mark.parametrize("data", [b"", b"vtrt", plan_bytes()[:35], b"PK\3\4" + bytes(60), plan_bytes(b"xtrt")])
def test_bytes_that_are_not_a_plan_have_no_header(data: bytes) -> None:
    assert sniff(data) is None
    with pytest.raises(ModelFileError) as caught:
        checked_header(data, "a.engine")
    assert caught.value.subject == "a.engine"


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"\0"])
def test_an_rtx_plan_of_another_length_is_refused(change) -> None:
    assert checked_header(plan_bytes(), "a.engine").size == len(plan_bytes())
    with pytest.raises(ModelFileError) as caught:
        checked_header(change(plan_bytes()), "a.engine")
    assert caught.value.subject == "a.engine"


@pytest.mark.parametrize(
    ("mask", "capability", "fits"),
    [
        (0x7E, "8.6", True),
        (0x7E, "12.1", True),
        (0x7E, "13.0", True),
        (0x3E, "13.0", False),
        (0x7E, "7.5", False),
        (0x7E, "9.0", False),  # Hopper lies between targets and is none
        (0x04, "8.6", True),
        (0x04, "8.9", False),
    ],
)
def test_targets(mask: int, capability: str, fits: bool) -> None:
    header = sniff(plan_bytes(mask=mask))
    assert header is not None
    assert header.supports(capability) is fits


def test_versions() -> None:
    assert same_version("10.3.0", "10.3.0.26")
    assert same_version("10.14.1.48", "10.14.1.48.post1")
    assert same_version("10.3.0.44", "10.3.0.300")  # the header keeps one byte a number
    assert not same_version("1.7.1.116", "1.7.2.116")
    assert numbers("soon") == ()
