"""Folders of images: what is found, which class it shows, and what becomes of damaged ones."""

from pathlib import Path

import pytest
from PIL import Image

from densenet_deploy.errors import DataError, InputError
from densenet_deploy.runtime.image_folders import LabelledImage, ReadableImages, find_images, find_labelled_images
from tests.runtime.test_images import encoded


def save(path: Path, data: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(Image.new("RGB", (4, 4))) if data is None else data)
    return path


def test_images_are_found_directly_inside_and_in_class_folders(tmp_path):
    wanted = [save(tmp_path / name) for name in ("a.JPG", "cat/1.png", "cat/2.tiff", "z.webp")]
    for name in ("notes.txt", "._a.jpg", ".b.jpg", "c.jpg_", ".cache/1.png", "cat/deep/3.png", "dir.png/x.txt"):
        save(tmp_path / name)
    assert find_images(tmp_path) == tuple(wanted)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "TIFF", "Jpg"])
def test_images_are_known_by_their_suffix_in_any_case(tmp_path, suffix):
    assert find_images(save(tmp_path / f"a.{suffix}").parent) == (tmp_path / f"a.{suffix}",)


def test_a_folder_without_images_is_refused(tmp_path):
    save(tmp_path / "notes.txt")
    for folder, kind in ((tmp_path, DataError), (tmp_path / "none", InputError)):
        with pytest.raises(kind) as caught:
            find_images(folder)
        assert caught.value.subject == str(folder)


def tree(root: Path, *classes: str) -> Path:
    for name in classes:
        save(root / name / "1.png")
    return root


def indices(root: Path, labels: tuple[str, ...] | None = None) -> dict[str, int]:
    return {image.path.parent.name: image.index for image in find_labelled_images(root, labels)}


@pytest.mark.parametrize("labels", [None, ()])
def test_without_labels_sorted_folders_are_the_classes(tmp_path, labels):
    assert indices(tree(tmp_path, "dog", "cat", ".git"), labels) == {"cat": 0, "dog": 1}


def test_folders_named_after_labels_follow_the_labels_order(tmp_path):
    assert indices(tree(tmp_path, "cat", "dog"), ("dog", "cat")) == {"cat": 1, "dog": 0}


def test_there_may_be_fewer_folders_than_labels(tmp_path):
    assert indices(tree(tmp_path, "dog"), ("ant", "cat", "dog")) == {"dog": 2}


def test_other_names_in_equal_number_follow_their_order(tmp_path):
    assert indices(tree(tmp_path, "n02", "n01"), ("cat", "dog")) == {"n01": 0, "n02": 1}


def test_every_image_of_a_class_is_listed(tmp_path):
    tree(tmp_path, "cat", "dog")
    second = save(tmp_path / "cat" / "2.png")
    assert find_labelled_images(tmp_path)[1] == LabelledImage(second, 0)
    assert len(find_labelled_images(tmp_path)) == 3


@pytest.mark.parametrize(
    ("folders", "labels", "subject", "hint"),
    [
        ((), None, "", ""),
        (("n01", "n02", "n03"), ("cat", "dog"), "", "'cat'"),
        (("n01",), ("cat", "dog"), "", "'cat'"),
        (("cat", "dgo"), ("cat", "dog"), "dgo", "'dog'"),
        (("cat", "dog", "zebra"), ("cat", "dog"), "zebra", ""),
        (("crane",), ("crane", "crane"), "crane", ""),
    ],
)
def test_folders_that_do_not_match_the_labels_are_refused(tmp_path, folders, labels, subject, hint):
    with pytest.raises(DataError) as caught:
        find_labelled_images(tree(tmp_path, *folders), labels)
    assert caught.value.subject == str(tmp_path / subject)
    assert hint in caught.value.fix


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(InputError) as caught:
        find_labelled_images(tmp_path / "none")
    assert caught.value.subject == str(tmp_path / "none")


def test_an_empty_class_is_refused_by_name(tmp_path):
    (tree(tmp_path, "cat") / "dog").mkdir()
    with pytest.raises(DataError) as caught:
        find_labelled_images(tmp_path)
    assert caught.value.subject == str(tmp_path / "dog")


@pytest.mark.parametrize("limit", [1, None])
def test_bad_images_are_recorded_up_to_the_limit(tmp_path, limit):
    good = [save(tmp_path / f"{i}.png") for i in range(2)]
    bad = save(tmp_path / "bad.png", b"<html>")
    images = ReadableImages([good[0], bad, good[1]], max_bad=limit)
    for _ in range(2):  # every pass starts counting anew
        assert [path for path, _ in images] == good
        assert [(entry.path, entry.error.why) for entry in images.bad] == [(bad, "is an HTML page")]


def test_one_bad_image_too_many_ends_the_pass_and_names_the_first(tmp_path):
    first, second = save(tmp_path / "a.png", b""), tmp_path / "missing.png"
    images = ReadableImages([first, second, save(tmp_path / "c.png")], max_bad=1)
    with pytest.raises(DataError) as caught:
        list(images)
    assert caught.value.subject == str(first)
    assert len(images.bad) == 2


def test_by_default_no_bad_image_is_allowed(tmp_path):
    with pytest.raises(DataError) as caught:
        list(ReadableImages([save(tmp_path / "a.png", b"")]))
    assert caught.value.subject == str(tmp_path / "a.png")
