"""Folders and repositories of Hugging Face: through a server on this machine, and without one."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
import safetensors.torch
import torch

from densenet_deploy.errors import CheckpointError, MissingPackageError, ResourceError, UsageError
from densenet_deploy.sources import Match, load
from densenet_deploy.sources.hub import HubSource
from tests.sources.torch_networks import agree, network

pytest.importorskip("huggingface_hub")

CONFIG = {
    "architecture": "densenet121",
    "label_names": ["a", "b", "c", "d", "e"],
    "pretrained_cfg": {"input_size": [3, 96, 96], "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3},
}
COMMIT = "0" * 39 + "1"


@pytest.fixture(scope="module")
def net():
    return network()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, net):
    folder = tmp_path_factory.mktemp("hub") / "skin"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    safetensors.torch.save_file(net.state_dict(), folder / "model.safetensors")
    return folder


class Hub(ThreadingHTTPServer):
    """The part of the hub that downloads need: `GET /OWNER/NAME/resolve/REVISION/FILE`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        is_listing = self.path.startswith("/api/models/")
        owner, name, *rest = unquote(self.path).removeprefix("/api/models").strip("/").split("/")
        if (owner, name) not in (("me", "skin"), ("timm", "densenet121.mine")):
            return self.refuse(401 if owner == "private" else 404, "RepoNotFound")
        if is_listing:
            return self.listing(rest[1] if rest else "main")
        revision, file = rest[-2], self.server.folder / rest[-1]
        if revision not in ("main", "v1") or not file.is_file():
            return self.refuse(404, "EntryNotFound")
        data = file.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
        return None

    def listing(self, revision: str) -> None:
        if revision not in ("main", "v1"):
            return self.refuse(404, "RevisionNotFound")
        files = [{"rfilename": file.name} for file in self.server.folder.iterdir()]
        data = json.dumps({"id": "me/skin", "sha": COMMIT, "siblings": files}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        return None

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with Hub(folder) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()


def test_a_folder_is_its_weights_with_the_facts_beside_them(folder, net):
    for source in (folder, str(folder)):
        loaded = load(source)
        assert (loaded.name, loaded.labels) == ("skin", tuple("abcde"))
        assert (loaded.facts.image_size, loaded.facts.resize, loaded.facts.mean) == (96, 96, (0.5,) * 3)
        assert agree(net, loaded.module)


def test_older_folders_hold_a_pickle(tmp_path, net):
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    assert load(tmp_path).facts.given() == {"channels": 3}


@pytest.mark.parametrize("source", [3, None, b"hf://me/skin", ["hf://me/skin"]])
def test_only_a_name_or_a_path_can_be_a_folder(source):
    assert HubSource().matches(source) == Match.NO


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    assert "model.safetensors" in caught.value.why


@pytest.mark.parametrize("source", ["hf://me/skin", "hf://me/skin@v1", "timm/densenet121.mine"])
def test_a_repository_is_downloaded_once(hub, net, source):
    loaded = load(source)
    assert (loaded.name, loaded.origin.source, loaded.labels) == (
        source.partition("@")[0].rpartition("/")[2],
        source,
        tuple("abcde"),
    )
    assert agree(net, loaded.module)
    listing, *files = hub.asked
    assert listing.endswith("/revision/v1" if "@" in source else source.removeprefix("hf://"))
    assert all(f"/resolve/{'v1' if '@' in source else 'main'}/" in path for path in files)


def test_what_was_fetched_earlier_does_without_a_network(hub, net, monkeypatch):
    load("hf://me/skin")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    loaded = load("hf://me/skin")
    assert (loaded.labels, agree(net, loaded.module)) == (tuple("abcde"), True)


def test_a_repository_without_weights_is_refused(hub, tmp_path):
    hub.folder = tmp_path
    (tmp_path / "README.md").touch()
    with pytest.raises(CheckpointError) as caught:
        load("hf://me/skin")
    assert "model.safetensors" in caught.value.why


@pytest.mark.parametrize(
    ("source", "words"),
    [("hf://me/other", "does not have it"), ("hf://me/skin@v9", "revision v9"), ("hf://private/it", "private")],
)
def test_what_the_hub_does_not_have_is_bad_input(hub, source, words):
    with pytest.raises(CheckpointError) as caught:
        load(source)
    assert words in caught.value.why
    assert caught.value.exit_code == 3


def test_no_network_is_exit_6_in_one_line(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ResourceError) as caught:
        load("hf://me/skin")
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (6, False)


def test_the_package_is_named_when_missing(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingPackageError) as caught:
        load("hf://me/skin")
    assert "hub" in caught.value.fix


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("hf://me/skin", Match.CERTAIN),
        ("hf://nonsense", Match.CERTAIN),
        ("timm/densenet121.ra_in1k", Match.CERTAIN),
        ("timm/tv_densenet121", Match.CERTAIN),
        ("timm/densenetblur121d.ra_in1k@main", Match.CERTAIN),
        ("timm/resnet50.a1_in1k", Match.NO),
        ("other/densenet121", Match.NO),
        ("densenet121", Match.NO),
        (3, Match.NO),
    ],
)
def test_names_of_repositories(source, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert HubSource().matches(source) is match


def test_a_folder_on_disk_is_not_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "timm/densenet121").mkdir(parents=True)
    assert HubSource().matches("timm/densenet121") is Match.NO
    (tmp_path / "timm/densenet121/pytorch_model.bin").touch()
    assert HubSource().matches("timm/densenet121") is Match.CERTAIN


@pytest.mark.parametrize("source", ["hf://nonsense", "hf://a/b/c", "hf://", "hf://a/b@"])
def test_other_names_are_refused_before_any_work(source):
    for action in (lambda: HubSource().check(source, None), lambda: load(source)):
        with pytest.raises(UsageError) as caught:
            action()
        assert caught.value.subject == source
