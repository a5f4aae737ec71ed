"""Classes from a file: both forms, labels, indices and sorted names, and what cannot be meant."""

from __future__ import annotations

import pytest

from densenet_deploy.errors import DataError, InputError
from densenet_deploy.workflows.evaluate.ground_truth import read_ground_truth

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
    ("text", "labels", "why"),
    [
        ("", (), "is empty"),
        ("a.jpg 0\n\nb.jpg 1\n", (), "line 2 is blank"),
        ("0\n1\n", (), "has 2 lines for 4 images"),
        ("a.jpg 0\nb.jpg\n", (), r"line 2 \('b.jpg'\) names no image and class"),
        ("a.jpg 0\nnothing 1\n", (), "line 2"),
        ("a.jpg 0\na.jpg 1\n", (), "names a.jpg 2 times"),
        ("a.jpg 3\n", (), "names class 3, the model has the classes 0 to 2; count from 0"),
        ("1\n2\n3\n1\n", (), "names class 3"),
        ("a.jpg tiger cat\nb.jpg tigre\n", LABELS, "'tigre' is no label of the model, though others are"),
        ("a.jpg n01\nb.jpg n02\n", LABELS, "names 2 classes such as 'n01', none of them a label; the model has 3"),
        ("a.jpg crane\n", ("crane", "crane", "x"), "'crane' is the label of several classes"),
    ],
)
def test_what_cannot_be_meant_is_refused(folder, text, labels, why):
    with pytest.raises(DataError, match=why):
        _read(folder, text, labels)


def test_bytes_that_are_no_text_and_files_that_are_missing(folder, tmp_path):
    (tmp_path / "truth.txt").write_bytes(b"a.jpg \xff\n")
    with pytest.raises(DataError, match="is not UTF-8 at byte 6"):
        read_ground_truth(folder, tmp_path / "truth.txt", (), 3)
    with pytest.raises(InputError, match="no such file"):
        read_ground_truth(folder, tmp_path / "none.txt", (), 3)
    (tmp_path / "truth.txt").write_text("0\n")
    with pytest.raises(InputError, match="no such file"):
        read_ground_truth(tmp_path / "nowhere", tmp_path / "truth.txt", (), 3)
