"""The folder of a page: complete, strict, replaced in one step, and never somebody else's folder."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest

from densenet_deploy import artifacts
from densenet_deploy.errors import OutputExistsError, ResourceError
from densenet_deploy.serving.web import site as site_module
from densenet_deploy.serving.web.site import POLICY, Site, require_free

PAGE = resources.files("densenet_deploy.serving.web") / "page"
MODULES = ("answer.js", "app.js", "exif.js", "image.js", "png.js", "preprocess.js", "worker.js")


class Tags(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_holds_what_the_page_names_and_nothing_else(tmp_path: Path) -> None:
    site = Site.of("Digits", {"model.onnx": b"model", "facts.json": b"{}"})
    written = site.write(tmp_path / "site")
    found = contents(tmp_path / "site")
    own = {"LICENSE.onnxruntime-web.txt", "icon.svg", "style.css", *MODULES, "files.json", "model.onnx", "facts.json"}
    assert set(found) == {"index.html", "sw.js", *(f"{site.version}/{name}" for name in own)}
    assert written == tuple(sorted(tmp_path / "site" / name for name in found))
    assert site.size_bytes == sum(map(len, found.values()))
    assert json.loads(found[f"{site.version}/files.json"]) == sorted(own)
    tags = Tags(found["index.html"].decode()).found
    named = {attrs[key] for _, attrs in tags for key in ("src", "href") if attrs.get(key)}
    assert named == {f"{site.version}/{name}" for name in ("icon.svg", "style.css", "app.js")}
    assert (tmp_path / "site" / site.version).stat().st_mode & 0o777 == 0o755


def test_modules_import_only_what_is_there() -> None:
    runtime = "ort.wasm.bundle.min.mjs"
    for name in MODULES:
        imported = re.findall(r'from "\./([^"]+)"', (PAGE / name).read_text())
        assert set(imported) <= {*MODULES, runtime}, name
    assert runtime in (PAGE / "worker.js").read_text()


def test_the_policy_lets_nothing_in_from_elsewhere_and_the_page_needs_no_more() -> None:
    text = Site.of("t", {}).files["index.html"].decode()
    tags = Tags(text).found
    (policy,) = [attrs["content"] for _, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == POLICY
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == "'self' 'wasm-unsafe-eval'"
    allowed = {"'none'", "'self'", "'wasm-unsafe-eval'", "blob:"}
    assert {word for rule in rules.values() for word in rule.split()} <= allowed
    assert [attrs for tag, attrs in tags if tag == "script"] == [
        {"type": "module", "src": f"{Site.of('t', {}).version}/app.js"}
    ]
    assert not [attrs for _, attrs in tags if "style" in attrs or any(name.startswith("on") for name in attrs)]
    assert "<style" not in text
    for name in PAGE.iterdir():
        text = name.read_text()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg|127\.0\.0\.1)", text), name
        assert "innerHTML" not in text
        assert "eval(" not in text


def test_a_title_is_text() -> None:
    text = Site.of('</title><script>alert("x")</script>$version', {}).files["index.html"].decode()
    assert text.count("<script") == 1
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;$version" in text


def test_a_version_is_a_hash_of_all_that_it_holds() -> None:
    sites = [
        Site.of("a", {"model.onnx": b"1"}),
        Site.of("b", {"model.onnx": b"1"}),
        Site.of("a", {"model.onnx": b"2"}),
        Site.of("a", {"model.onn": b"1"}),
    ]
    assert len({site.version for site in sites}) == 4
    assert all(re.fullmatch(r"v-[0-9a-f]{12}", site.version) for site in sites)
    assert Site.of("a", {"model.onnx": b"1"}) == sites[0]
    assert Site.of("a", {"x": b"", "y": b""}).version == Site.of("a", {"y": b"", "x": b""}).version


def test_a_new_version_replaces_the_old_one(tmp_path: Path) -> None:
    old, new = Site.of("a", {"model.onnx": b"1"}), Site.of("a", {"model.onnx": b"2"})
    old.write(tmp_path)
    new.write(tmp_path)
    assert contents(tmp_path) == new.files
    new.write(tmp_path)
    assert contents(tmp_path) == new.files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "sw.js", new.version]


def test_what_is_unfinished_is_in_the_folder_itself_and_known_as_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename is one step on one disk alone. Wherever the command is killed, the folder is free for the next one."""
    folder, hidden = tmp_path / "site", 0

    def looking(path: Path, *parts: bytes) -> None:
        nonlocal hidden
        hidden += path.relative_to(folder).parts[0].startswith(".v-")
        artifacts.write_file(path, *parts)
        if path.name != "index.html":
            require_free(folder, force=False)

    monkeypatch.setattr(site_module, "write_file", looking)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    site = Site.of("a", {})
    site.write(folder)
    assert hidden == len(site.files) - 2


def test_folders_of_others_stay_however_old_they_are(tmp_path: Path) -> None:
    for name in ("images", "v-1", "v-0123456789abc", "old.v-0123456789ab"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo.png").write_bytes(b"mine")
        os.utime(tmp_path / name, (0, 0))
    before = contents(tmp_path)
    site = Site.of("a", {})
    site.write(tmp_path)
    assert contents(tmp_path) == {**before, **site.files}


def test_room_is_looked_for_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def no_room(path: Path, size_bytes: int = 0) -> None:
        asked.append(size_bytes)
        raise ResourceError(path, "no space left on device", "free some space")

    monkeypatch.setattr(site_module, "require_room", no_room)
    site = Site.of("a", {"model.onnx": b"1"})
    with pytest.raises(ResourceError):
        site.write(tmp_path / "site")
    assert asked == [site.size_bytes]
    assert list(tmp_path.iterdir()) == []


def test_what_somebody_changed_in_a_version_is_put_right(tmp_path: Path) -> None:
    site = Site.of("a", {"model.onnx": b"1"})
    site.write(tmp_path)
    version = tmp_path / site.version
    for change in (
        lambda: (version / "model.onnx").write_bytes(b"other"),
        lambda: (version / "more.js").write_bytes(b""),
        lambda: (version / "app.js").unlink(),
    ):
        change()
        site.write(tmp_path)
        assert contents(tmp_path) == site.files


def test_the_same_version_is_not_touched(tmp_path: Path) -> None:
    """Visitors may be loading it."""
    site = Site.of("a", {"model.onnx": b"1"})
    site.write(tmp_path)
    before = (tmp_path / site.version).stat()
    site.write(tmp_path)
    assert (tmp_path / site.version).stat().st_ino == before.st_ino
    assert (tmp_path / site.version).stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("fails_at", range(20))
def test_a_page_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    """At each file in turn the disk is full: the page is the old one or, from its index.html on, the new one."""
    old, new = Site.of("a", {"model.onnx": b"1"}), Site.of("a", {"model.onnx": b"2"})
    old.write(tmp_path)
    count = 0

    def full_disk(path: Path, *parts: bytes) -> None:
        nonlocal count
        count += 1
        if count > fails_at:
            raise ResourceError(path, "no space left on device", "free some space")
        artifacts.write_file(path, *parts)

    monkeypatch.setattr(site_module, "write_file", full_disk)
    needed = len(new.files)
    if fails_at >= needed:
        new.write(tmp_path)
        assert contents(tmp_path) == new.files
        return
    with pytest.raises(ResourceError):
        new.write(tmp_path)
    found = contents(tmp_path)
    assert {name: found[name] for name in old.files if name != "sw.js"} == {
        name: data for name, data in old.files.items() if name != "sw.js"
    }
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_a_folder_that_was_made_is_removed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(path: Path, *_: bytes) -> None:
        raise ResourceError(path, "no space left on device", "free some space")

    monkeypatch.setattr(site_module, "write_file", full_disk)
    with pytest.raises(ResourceError):
        Site.of("a", {}).write(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("age", "stays"), [(3500, True), (3700, False)])
def test_what_a_killed_command_left_is_cleared_away(tmp_path: Path, age: float, stays: bool) -> None:
    """It was killed before its index.html was written, so the folder is free. Young folders may be another writer's."""
    site = Site.of("a", {})
    for name in ("sw.js", ".sw.js.0123.tmp", ".index.html.0123.tmp"):
        (tmp_path / name).write_bytes(b"x")
    left = {".v-0123456789ab.x1.tmp", "v-0123456789ab"}
    for name in left:
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    require_free(tmp_path, force=False)
    site.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {site.version, *(left if stays else ())}


def test_of_two_writers_one_wins_whole(tmp_path: Path) -> None:
    """Each of a few writers, side by side, writes its version again and again."""
    sites = [Site.of("a", {"model.onnx": bytes([number])}) for number in range(3)]
    with ThreadPoolExecutor(len(sites)) as pool:
        for number in range(5):
            folder = tmp_path / str(number)
            list(pool.map(lambda site, folder=folder: site.write(folder), sites))  # type: ignore[misc]
            found = contents(folder)
            (winner,) = (site for site in sites if found["index.html"] == site.files["index.html"])
            assert {name: found[name] for name in winner.files} == winner.files
            assert not [name for name in found if ".tmp" in name]


def test_which_folders_are_free(tmp_path: Path) -> None:
    require_free(tmp_path / "new", force=False)
    require_free(tmp_path, force=False)
    Site.of("a", {}).write(tmp_path / "page")
    require_free(tmp_path / "page", force=True)
    with pytest.raises(OutputExistsError, match="--force"):
        require_free(tmp_path / "page", force=False)
    (tmp_path / "page" / "CNAME").write_text("example.org")  # what a host wants beside the page stays
    require_free(tmp_path / "page", force=True)
    Site.of("b", {}).write(tmp_path / "page")
    assert (tmp_path / "page" / "CNAME").exists()


@pytest.mark.parametrize("name", ["index.html", "photo.png", "v-0123", "sw.js.bak"])
def test_a_folder_of_somebody_else_is_never_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("<!doctype html>mine")
    for force in (False, True):
        with pytest.raises(OutputExistsError, match="holds other files"):
            require_free(tmp_path, force=force)
    with pytest.raises(OutputExistsError, match="is a file"):
        require_free(tmp_path / name, force=True)
