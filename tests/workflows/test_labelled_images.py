"""Classes of images from a file."""

from __future__ import annotations

import pytest

from densenet_deploy.errors import DataError, InputError
from densenet_deploy.workflows.labelled_images import read_ground_truth

LABELS = ("tench, Tinca tinca", "tiger cat", "7")


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "val"
    images.mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg", "odd one.jpg"):
        (images / name).write_bytes(b"not looked into")
    return images


def _read(folder, text, labels=(), classes=3):
    file = folder.parent / "truth.txt"
    file.write_text(text)
    found, remarks = read_ground_truth(folder, file, labels, classes)
    return {image.path.name: image.index for image in found}, remarks


@pytest.mark.parametrize("separator", [" ", "\t", ",", "  ", ", "])
def test_files_and_indices(folder, separator):
    lines = [f"{name}{separator}{index}" for name, index in (("b.jpg", 2), ("a.jpg", 0), ("c.jpg", 1))]
    found, remarks = _read(folder, "\n".join(lines) + "\n")
    assert found == {"a.jpg": 0, "b.jpg": 2, "c.jpg": 1}
    assert list(found) == ["a.jpg", "b.jpg", "c.jpg"]
    assert len(remarks) == 1
    assert remarks[0].startswith("1 images of ")


def test_classes_alone_belong_to_the_sorted_images(folder):
    found, remarks = _read(folder, "\ufeff2\r\n0\r\n1\r\n0\r\n\r\n")
    assert found == {"a.jpg": 2, "b.jpg": 0, "c.jpg": 1, "odd one.jpg": 0}
    assert remarks == ()


def test_labels_may_hold_spaces_and_commas(folder):
    found, _ = _read(folder, "a.jpg tiger cat\nodd one.jpg,tench, Tinca tinca\nb.jpg\t7\n", LABELS)
    assert found == {"a.jpg": 1, "b.jpg": 2, "odd one.jpg": 0}
    alone, _ = _read(folder, "tench, Tinca tinca\n7\ntiger cat\n7\n", LABELS)
    assert list(alone.values()) == [0, 2, 1, 2]


def test_names_as_many_as_the_classes_are_sorted_as_folders_are(folder):
    found, _ = _read(folder, "a.jpg n03\nb.jpg n01\nc.jpg n02\nodd one.jpg\tn01\n", LABELS)
    assert found == {"a.jpg": 2, "b.jpg": 0, "c.jpg": 1, "odd one.jpg": 0}


def test_a_label_counts_more_than_an_index(folder):
    assert _read(folder, "a.jpg 1\nb.jpg 0\n", ("1", "0", "2"))[0] == {"a.jpg": 0, "b.jpg": 1}


def test_a_missing_image_is_kept_for_its_reader_to_report(folder):
    assert _read(folder, "a.jpg 0\ngone.jpg 1\n")[0] == {"a.jpg": 0, "gone.jpg": 1}


@pytest.mark.parametrize(
    ("text", "labels", "culprit"),
    [
        ("", (), "empty"),
        ("a.jpg 0\n\nb.jpg 1\n", (), "line 2"),
        ("0\n1\n", (), "2 lines for 4 images"),
        ("a.jpg 0\nb.jpg\n", (), "line 2 ('b.jpg')"),
        ("a.jpg 0\nnothing 1\n", (), "line 2"),
        ("a.jpg 0\na.jpg 1\n", (), "a.jpg 2 times"),
        ("a.jpg 3\n", (), "class 3"),
        ("1\n2\n3\n1\n", (), "class 3"),
        ("a.jpg tiger cat\nb.jpg tigre\n", LABELS, "'tigre'"),
        ("a.jpg n01\nb.jpg n02\n", LABELS, "'n01'"),
        ("a.jpg crane\n", ("crane", "crane", "x"), "'crane'"),
    ],
)
def test_faulty_files_are_refused_with_the_place_of_the_fault(folder, text, labels, culprit):
    with pytest.raises(DataError) as caught:
        _read(folder, text, labels)
    assert caught.value.subject == str(folder.parent / "truth.txt")
    assert culprit in caught.value.why


def test_bytes_that_are_not_text_and_missing_files_are_refused(folder, tmp_path):
    (tmp_path / "truth.txt").write_bytes(b"a.jpg \xff\n")
    with pytest.raises(DataError) as caught:
        read_ground_truth(folder, tmp_path / "truth.txt", (), 3)
    assert "byte 6" in caught.value.why
    (tmp_path / "good.txt").write_text("0\n")
    for images, file, missing in (
        (folder, tmp_path / "none.txt", tmp_path / "none.txt"),
        (tmp_path / "nowhere", tmp_path / "good.txt", tmp_path / "nowhere"),
    ):
        with pytest.raises(InputError) as caught:
            read_ground_truth(images, file, (), 3)
        assert caught.value.subject == str(missing)
