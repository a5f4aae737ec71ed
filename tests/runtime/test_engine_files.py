"""Engines on disk (bad inputs 22-25, 53, 54): what is loaded is what was built; headers are read without TensorRT."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from densenet_deploy.errors import BackendError, DeviceError, InputError, ModelFileError, ResourceError
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.runtime.engine_files import (
    checked_header,
    numbers,
    place_engine,
    program_section,
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
    assert (type(caught.value), caught.value.subject) == (InputError, str(engine))


def test_a_plan_that_cannot_be_read_is_a_resource_error(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> bytes:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(ResourceError) as caught:
        read_plan(engine)
    assert caught.value.subject == str(engine)


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
        (True, "10.3.0.26", True),
        (True, "10.3.0.1", True),
        (True, "10.3.0.30", True),
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


def test_an_rtx_plan_says_itself_which_gpus_it_was_built_for(tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    write_engine(path, PLAN, sidecar_of(PLAN, targets=("9.0",)))
    plan = read_plan(path)
    require_gpu(plan, "8.9")
    with pytest.raises(DeviceError) as caught:
        require_gpu(plan, "9.0")
    assert caught.value.subject == str(path)


def test_of_a_full_plan_without_a_sidecar_nothing_is_known(tmp_path: Path) -> None:
    path = tmp_path / "full.engine"
    path.write_bytes(plan_bytes(b"ftrt", (10, 3, 0, 26)))
    plan = read_plan(path, trust_engine=True)
    require_gpu(plan, "7.5")
    require_version(plan, "tensorrt", "10.3.0.26")
    with pytest.raises(BackendError):
        require_version(plan, "tensorrt", "10.9.0.1")


@pytest.mark.parametrize(
    ("hardware", "capability", "fits"),
    [
        ("none", "8.7", True),
        ("none", "8.6", False),
        ("ampere-plus", "9.0", True),
        ("ampere-plus", "8.0", True),
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


class TestPlacing:
    def test_nothing_is_left_of_a_first_engine_that_cannot_be_placed(self, tmp_path: Path, failing_rename) -> None:
        path = tmp_path / "model.engine"
        with failing_rename(path), pytest.raises(ResourceError):
            write_engine(path, PLAN, sidecar_of(PLAN))
        assert list(tmp_path.iterdir()) == []

    def test_a_plan_that_is_in_place_keeps_its_record_whatever_fails_afterwards(
        self, tmp_path: Path, failing_rename
    ) -> None:
        path = tmp_path / "model.engine"
        with failing_rename(path, afterwards=True), pytest.raises(ResourceError):
            write_engine(path, PLAN, sidecar_of(PLAN))
        assert read_plan(path).data == PLAN

    def test_the_record_of_a_plan_that_is_elsewhere_is_kept(self, engine: Path, failing_rename) -> None:
        engine.unlink()
        new = plan_bytes(body=b"other code")
        with failing_rename(engine), pytest.raises(ResourceError):
            write_engine(engine, new, sidecar_of(new))
        assert list(read_records(engine) or {}) == [sidecar_of(PLAN).sha256, sidecar_of(new).sha256]

    def test_an_unreadable_sidecar_is_replaced(self, engine: Path) -> None:
        sidecar_path(engine).write_text("{")
        write_engine(engine, PLAN, sidecar_of(PLAN))
        assert read_plan(engine).sidecar == sidecar_of(PLAN)

    @pytest.mark.timeout(20)
    def test_writers_of_one_folder_wait_for_one_another(self, tmp_path: Path) -> None:
        path = tmp_path / "model.engine"
        other = os.open(tmp_path, os.O_RDONLY)
        fcntl.flock(other, fcntl.LOCK_EX)
        with ThreadPoolExecutor(1) as pool:
            written = pool.submit(write_engine, path, PLAN, sidecar_of(PLAN))
            try:
                with pytest.raises(TimeoutError):
                    written.result(0.2)
                assert not path.exists()
            finally:
                fcntl.flock(other, fcntl.LOCK_UN)
            written.result(10)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if it is still held
        os.close(other)
        assert read_plan(path).data == PLAN

    def test_a_file_system_that_does_not_lock_is_written_to(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError(errno.ENOLCK, "no locks available")

        monkeypatch.setattr(fcntl, "flock", fail)
        write_engine(tmp_path / "model.engine", PLAN, sidecar_of(PLAN))
        assert read_plan(tmp_path / "model.engine").data == PLAN

    def test_a_folder_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError) as caught:
            place_engine(tmp_path / "temporary", tmp_path / "missing" / "model.engine", sidecar_of(PLAN))
        assert caught.value.subject == str(tmp_path / "missing")


@pytest.fixture
def failing_rename(monkeypatch: pytest.MonkeyPatch) -> Callable[..., contextlib.AbstractContextManager[None]]:
    """Let the rename to a path fail, or what follows on it."""

    @contextlib.contextmanager
    def failing(path: Path, *, afterwards: bool = False) -> Iterator[None]:
        rename = Path.replace

        def replace(source: Path, target: Path) -> Path:
            if target == path and not afterwards:
                raise OSError(errno.EIO, "input/output error")
            done = rename(source, target)
            if target == path:
                raise OSError(errno.EIO, "input/output error")
            return done

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            yield

    return failing


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


@pytest.mark.parametrize(("bit", "name"), [*enumerate(("7.5", "8.0", "8.6", "8.9", "12.0", "12.1", "newer"))])
def test_each_bit_of_the_mask_is_a_target(bit: int, name: str) -> None:
    header = sniff(plan_bytes(mask=1 << bit))
    assert header is not None
    assert header.targets == (name,)


def test_a_header_needs_no_more_than_its_36_bytes() -> None:
    assert sniff(plan_bytes(body=b"")) is not None


@pytest.mark.parametrize("data", [b"", b"vtrt", plan_bytes()[:35], b"PK\3\4" + bytes(60), plan_bytes(b"xtrt")])
def test_bytes_that_are_not_a_plan_have_no_header(data: bytes) -> None:
    assert sniff(data) is None
    with pytest.raises(ModelFileError) as caught:
        checked_header(data, "a.engine")
    assert caught.value.subject == "a.engine"


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"\0"])
def test_an_rtx_plan_of_another_length_is_refused(change) -> None:
    assert checked_header(plan_bytes(), "a.engine").size == len(plan_bytes())
    assert checked_header(change(plan_bytes(b"ftrt")), "a.engine").flavour == "tensorrt"
    with pytest.raises(ModelFileError) as caught:
        checked_header(change(plan_bytes()), "a.engine")
    assert caught.value.subject == "a.engine"


@pytest.mark.parametrize(
    ("mask", "capability", "fits"),
    [
        (0x7E, "8.6", True),
        (0x7E, "12.1", True),
        (0x7E, "13.0", True),
        (0x7E, "12.2", True),
        (0x40, "12.1", False),
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


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("10.3.0", "10.3.0.26", True),
        ("10.3.0.26", "10.3.0", True),
        ("10.14.1.48", "10.14.1.48.post1", True),
        ("10.3.0.44", "10.3.0.300", True),  # the header keeps one byte a number
        ("10.3.0.300", "10.3.0.44", True),
        ("1.2.3.4.5", "1.2.3.4.6", True),
        ("1.7.1.116", "1.7.2.116", False),
        ("1.7.1.116", "1.7.1.117", False),
        ("2.7.1.116", "1.7.1.116", False),
    ],
)
def test_versions_are_the_same_where_both_have_a_number(a: str, b: str, same: bool) -> None:
    assert same_version(a, b) is same


@pytest.mark.parametrize(
    ("version", "expected"), [("10.14.1.48.post1", (10, 14, 1, 48)), ("8", (8,)), ("12.", (12,)), ("soon", ())]
)
def test_the_leading_numbers_of_a_version(version: str, expected: tuple[int, ...]) -> None:
    assert numbers(version) == expected


@pytest.mark.parametrize(
    ("total", "tag", "offset", "size", "expected"),
    [
        (200, b"NGNE", 100, 50, (100, 150)),
        (200, b"NGNE", 100, 100, (100, 200)),
        (88, b"NGNE", 80, 8, (80, 88)),
        (200, b"NGNE", 1, 1, (1, 2)),
        (200, b"THGW", 100, 50, None),
        (200, b"NGNE", 100, 101, None),
        (200, b"NGNE", 0, 50, None),
        (200, b"NGNE", 100, 0, None),
        (87, b"NGNE", 80, 7, None),
    ],
)
def test_the_program_is_the_first_section_if_it_lies_inside(
    total: int, tag: bytes, offset: int, size: int, expected: tuple[int, int] | None
) -> None:
    plan = bytearray(index % 251 for index in range(max(total, 88)))
    struct.pack_into("<4s4xQQ", plan, 64, tag, offset, size)
    plan = plan[:total]
    start, end = expected or (0, total)
    assert program_section(memoryview(plan)) == bytes(plan[start:end])
