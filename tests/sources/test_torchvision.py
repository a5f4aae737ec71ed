"""torchvision's names for weights, and the download: from a file URL, so that no network is needed."""

import hashlib
import socket
import subprocess
import sys

import pytest

from densenet_deploy.errors import CheckpointError, ResourceError, UnknownNameError, UsageError
from densenet_deploy.sources import WeightsConstraint, load, torchvision
from densenet_deploy.sources.torchvision import fetched, find_public_weights, is_public_name
from densenet_deploy.variants import find_variant


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub" / "checkpoints"


@pytest.fixture
def published(tmp_path):
    """The URL of a file that is named, as torchvision's are, after its hash."""
    data = b"weights"
    path = tmp_path / f"net-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    path.write_bytes(data)
    return path.as_uri()


@pytest.mark.parametrize(
    ("name", "variant", "means"),
    [
        ("imagenet", None, "DenseNet121_Weights.IMAGENET1K_V1"),
        ("imagenet:169", None, "DenseNet169_Weights.IMAGENET1K_V1"),
        ("imagenet:densenet201", "201", "DenseNet201_Weights.IMAGENET1K_V1"),
        ("imagenet", "201", "DenseNet201_Weights.IMAGENET1K_V1"),
        ("IMAGENET1K_V1", "161", "DenseNet161_Weights.IMAGENET1K_V1"),
        ("DEFAULT", "169", "DenseNet169_Weights.IMAGENET1K_V1"),
        ("DenseNet169_Weights.IMAGENET1K_V1", None, "DenseNet169_Weights.IMAGENET1K_V1"),
    ],
)
def test_names_of_public_weights(name, variant, means):
    assert is_public_name(name)
    found = find_public_weights(name, variant)
    assert found.name == means
    assert len(found.labels) == 1000
    assert found.labels[0] == "tench"


@pytest.mark.parametrize("name", ["none", "imagenet.pth", "weights.safetensors", "DenseNet121", "imagenet:"])
def test_other_words_are_not_public_names(name):
    assert not is_public_name(name)


@pytest.mark.parametrize("variant", ["264", "cifar-40-12"])
def test_variants_without_public_weights_name_those_that_have(variant):
    with pytest.raises(UsageError) as caught:
        load("imagenet", WeightsConstraint(variant=find_variant(variant)))
    assert caught.value.subject == "imagenet"
    assert "121, 161, 169, 201" in caught.value.fix


@pytest.mark.parametrize("name", ["DenseNet169_Weights.IMAGENET1K_V1", "imagenet:169"])
def test_a_name_of_another_variant_is_a_contradiction(name):
    with pytest.raises(UsageError) as caught:
        load(name, WeightsConstraint(variant=find_variant("121")))
    assert caught.value.subject == name


def test_an_unknown_version_is_named():
    with pytest.raises(UnknownNameError) as caught:
        load("IMAGENET1K_V9")
    assert caught.value.subject == "IMAGENET1K_V9"
    assert "IMAGENET1K_V1" in caught.value.fix


def test_a_download_is_cached_and_then_needs_no_source(cache, published, tmp_path):
    path = fetched(published)
    assert path.parent == cache
    next(tmp_path.glob("net-*.pth")).unlink()
    assert fetched(published) == path


def test_a_cached_file_that_changed_is_refused(cache, published):
    path = fetched(published)
    path.write_bytes(b"other")
    with pytest.raises(CheckpointError) as caught:
        fetched(published)
    assert caught.value.subject == str(path)


def test_a_download_that_arrives_damaged_leaves_nothing(cache, published, tmp_path):
    next(tmp_path.glob("net-*.pth")).write_bytes(b"other")
    with pytest.raises(ResourceError) as caught:
        fetched(published)
    assert caught.value.subject == published
    assert not list(cache.iterdir())


def test_50_without_a_network_it_is_a_resource_error(cache, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: refused at once
    with pytest.raises(ResourceError) as caught:
        load("imagenet")
    assert caught.value.subject.startswith("https://download.pytorch.org/")


def test_torchvision_is_imported_for_public_names_only():
    code = """
import sys
from densenet_deploy.sources import load
load("cifar-bc-40-12")
sys.exit("torchvision" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_silent_server_is_given_up_on(cache, monkeypatch):
    """bad-inputs 50: the server accepts the connection and never answers."""
    monkeypatch.setattr(torchvision, "_SOCKET_TIMEOUT_SECONDS", 0.2)
    before = socket.getdefaulttimeout()
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/net-00000000.pth"
        with pytest.raises(ResourceError) as caught:
            fetched(url)
    assert caught.value.subject == url
    assert socket.getdefaulttimeout() == before
    assert list(cache.iterdir()) == []
