"""Images at URLs, in a store that fsspec keeps in memory."""

import io

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.errors import DataError, InputError, MissingPackageError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.image_urls import images_at, read_named_image
from densenet_deploy.runtime.preprocess import read_input

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "png")
    return file.getvalue()


@pytest.fixture
def store():
    """Two images in a folder, a text beside them, and a folder without images."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for name in ("b.PNG", "a.png"):
        system.pipe_file(f"/dogs/{name}", png())
    system.pipe_file("/dogs/note.txt", b"text")
    system.pipe_file("/texts/note.txt", b"text")
    yield "memory://dogs"
    system.rm("/dogs", recursive=True)
    system.rm("/texts", recursive=True)


def test_a_folder_a_pattern_and_an_image_name_images(store):
    both = ("memory:///dogs/a.png", "memory:///dogs/b.PNG")
    assert images_at(store) == both
    assert images_at(f"{store}/?.*") == both
    assert images_at(f"{store}/gone.png") == (f"{store}/gone.png",)  # is read later, and then a row with the reason


def test_a_folder_without_images_and_a_pattern_without_matches_are_refused(store):
    with pytest.raises(DataError) as caught:
        images_at("memory://texts")
    assert caught.value.subject == "memory://texts"
    with pytest.raises(InputError) as caught:
        images_at(f"{store}/*.jpg")
    assert caught.value.subject == f"{store}/*.jpg"


def test_the_image_at_a_url_is_that_of_the_file(store, tmp_path):
    preprocessing, file = Preprocessing(32, 32), tmp_path / "a.png"
    file.write_bytes(png())
    there, here = (read_named_image(name, preprocessing) for name in (f"{store}/a.png", str(file)))
    expected = read_input(file, preprocessing).pixels.tobytes()
    assert there.pixels.tobytes() == here.pixels.tobytes() == expected
    with pytest.raises(InputError) as caught:
        read_named_image(f"{store}/gone.png", preprocessing)
    assert (caught.value.subject, caught.value.why) == (f"{store}/gone.png", "no such file or folder")


def test_without_fsspec_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("densenet_deploy.packages.is_installed", lambda package: package != "fsspec")
    for ask in (images_at, lambda url: read_named_image(url, Preprocessing())):
        with pytest.raises(MissingPackageError) as caught:
            ask("s3://dogs/a.png")
        assert "scale" in caught.value.fix
