"""torchvision's names for weights, and the download: from a file URL, so that no network is needed."""

import enum
import errno
import hashlib
import http.client
import io
import socket
import sys
import urllib.error
from pathlib import Path

import pytest
import torch
import torchvision

from densenet_deploy.errors import (
    CheckpointError,
    InputError,
    MissingPackageError,
    ResourceError,
    UnknownNameError,
    UsageError,
    install_command,
)
from densenet_deploy.manifest import Preprocessing, WeightsOrigin
from densenet_deploy.sources import Match, WeightsConstraint, load
from densenet_deploy.sources.torchvision import (
    OldNames,
    TorchvisionSource,
    fetched,
    find_public_weights,
    is_public_name,
    public_variant,
)
from densenet_deploy.sources.weights import weights_sha256
from densenet_deploy.variants import Variant, find_variant


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


def test_a_silent_server_is_given_up_on(cache):
    """bad-inputs 50: the server accepts the connection and never answers."""
    before = socket.getdefaulttimeout()
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/net-00000000.pth"
        with pytest.raises(ResourceError) as caught:
            fetched(url, timeout_seconds=0.2)
    assert caught.value.subject == url
    assert socket.getdefaulttimeout() == before
    assert list(cache.iterdir()) == []


URL = "https://example.org/net-x-00000000.pth?a=b"


@pytest.fixture
def downloads(monkeypatch):
    """What torch is asked to download, instead of downloading it; an exception in the list is raised first."""
    calls = []

    def download(url, path, **options):
        if calls and isinstance(calls[-1], Exception):
            raise calls[-1]
        calls.append((url, path, options, socket.getdefaulttimeout()))
        Path(path).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return calls


def test_torch_downloads_in_silence_with_the_hash_in_the_name_and_for_20_seconds_without_an_answer(cache, downloads):
    before = socket.getdefaulttimeout()
    cache.mkdir(parents=True)
    with pytest.raises(CheckpointError) as caught:
        fetched(URL)
    path = str(cache / "net-x-00000000.pth")
    assert downloads == [(URL, path, {"hash_prefix": "00000000", "progress": False}, 20.0)]
    assert caught.value.subject == path
    assert socket.getdefaulttimeout() == before


@pytest.mark.parametrize(
    "problem",
    [
        urllib.error.URLError("no"),
        http.client.IncompleteRead(b""),
        TimeoutError(),
        ConnectionResetError(),
        RuntimeError(),
    ],
    ids=repr,
)
def test_a_download_that_fails_names_the_address(cache, downloads, problem):
    downloads.append(problem)
    with pytest.raises(ResourceError) as caught:
        fetched(URL)
    assert caught.value.subject == URL


def test_a_disk_that_fills_up_names_the_file(cache, downloads):
    downloads.append(OSError(errno.ENOSPC, "full"))
    with pytest.raises(ResourceError) as caught:
        fetched(URL)
    assert caught.value.subject == str(cache / "net-x-00000000.pth")


def test_a_cache_that_is_no_folder_is_bad_input(cache):
    cache.parent.mkdir(parents=True)
    cache.touch()
    with pytest.raises(InputError) as caught:
        fetched(URL)
    assert caught.value.subject == str(cache)


@pytest.mark.parametrize(
    ("name", "variant", "means"),
    [
        *((f"imagenet:{variant}", None, variant) for variant in ("121", "161", "169", "201")),
        *(("imagenet", None, "121"), ("imagenet", "169", "169"), ("imagenet:169", "169", "169")),
        *(("DenseNet201_Weights.DEFAULT", None, "201"), ("another", "161", "161")),
    ],
)
def test_the_variant_is_that_of_the_name_or_the_one_asked_for(name, variant, means):
    assert public_variant(name, variant) == means
    assert find_public_weights(name, variant).name == f"DenseNet{means}_Weights.IMAGENET1K_V1"


@pytest.mark.parametrize(
    ("name", "variant", "match"),
    [
        *(("imagenet", None, Match.CERTAIN), ("DEFAULT", None, Match.CERTAIN)),
        *(("121", None, Match.NO), (b"imagenet", None, Match.NO), (Path("imagenet"), None, Match.NO)),
    ],
)
def test_only_text_is_a_public_name(name, variant, match):
    assert TorchvisionSource().matches(name) is match


def test_a_contradiction_is_found_by_the_name_alone():
    TorchvisionSource().check("imagenet:169", "169")
    with pytest.raises(UsageError) as caught:
        TorchvisionSource().check("imagenet:169", "121")
    assert caught.value.subject == "imagenet:169"


def test_public_names_are_suggested():
    assert TorchvisionSource.names == ("imagenet", "imagenet:121", "imagenet:161", "imagenet:169", "imagenet:201")


@pytest.mark.parametrize("package", ["torch", "torchvision"])
def test_the_packages_that_public_weights_need_are_named_when_missing(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError) as caught:
        TorchvisionSource().load("imagenet", WeightsConstraint())
    assert caught.value.subject == package
    assert install_command("export") in caught.value.fix


@pytest.fixture
def tiny(monkeypatch, cache, tmp_path, model):
    """The variant 121 as a tiny network, whose weights torchvision publishes at an address on this machine."""

    class Published(enum.Enum):
        IMAGENET1K_V1 = "v1"
        DEFAULT = IMAGENET1K_V1
        url = property(lambda self: address[0])
        meta = property(lambda self: {"categories": list("abcde")})

    def publish(state):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        path = tmp_path / f"net-{hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}.pth"
        path.write_bytes(buffer.getvalue())
        address[:] = [path.as_uri()]

    address = []
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: Published)
    publish(model.state_dict())
    return Variant("121", model.spec, Preprocessing(image_size=40)), publish


def test_public_weights_are_loaded_under_their_public_name(tiny, model):
    variant, _ = tiny
    loaded = load("imagenet", WeightsConstraint(variant=variant))
    assert (loaded.name, loaded.variant, loaded.labels) == ("densenet121", variant, tuple("abcde"))
    assert loaded.origin == WeightsOrigin("Published.IMAGENET1K_V1", weights_sha256(model.state_dict()))


def test_without_a_variant_it_is_the_one_of_the_name(tiny):
    with pytest.raises(CheckpointError) as caught:  # the tiny network is not a DenseNet-169
        load("imagenet:169")
    assert "densenet169" in caught.value.why


def test_public_weights_are_finite_whatever_is_accepted_elsewhere(tiny, model):
    variant, publish = tiny
    publish(model.state_dict() | {"classifier.bias": torch.full((5,), float("nan"))})
    with pytest.raises(CheckpointError):
        load("imagenet", WeightsConstraint(variant=variant, allow_nonfinite=True))


def test_the_names_of_old_files_lose_a_dot():
    names = [
        "features.denseblock1.denselayer2.norm.1.weight",
        "features.denseblock1.denselayer10.conv.2.weight",
        "features.norm.1.weight",
        "features.denseblock1.denselayer2.norm.3.weight",
    ]
    assert OldNames().renames(names) == {
        names[0]: "features.denseblock1.denselayer2.norm1.weight",
        names[1]: "features.denseblock1.denselayer10.conv2.weight",
        names[2]: names[2],
        names[3]: names[3],
    }
    assert OldNames().recognises(names)
    assert not OldNames().recognises(names[2:])
