"""Class folders: the split, what is refused, and images that cannot be read."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from densenet_deploy.errors import DataError, InputError
from densenet_deploy.training.data import (
    UNLABELLED,
    class_names,
    read_data,
    require_a_batch,
    unreadable,
    without_bad,
)
from tests.training.tiny import write_classes

LABELS = ("dark", "light")


def names_of(examples) -> set[str]:
    return {f"{example.image.parent.name}/{example.image.name}" for example in examples}


def test_a_seeded_tenth_of_each_class_is_held_out(tmp_path: Path) -> None:
    write_classes(tmp_path, 20)
    data = read_data(tmp_path, None, LABELS, seed=1)
    assert Counter(example.index for example in data.validation) == {0: 2, 1: 2}
    assert len(data.training) == 36
    assert names_of(data.training).isdisjoint(names_of(data.validation))
    again, other = (read_data(tmp_path, None, LABELS, seed=seed) for seed in (1, 2))
    assert names_of(again.validation) == names_of(data.validation) != names_of(other.validation)
    assert data.notes == ("no validation data: 4 of 40 images, a tenth of each class, were held out (seed 1)",)


def test_a_class_of_one_image_keeps_it_and_one_of_two_gives_one(tmp_path: Path) -> None:
    write_classes(tmp_path, 2)
    (tmp_path / "dark" / "001.png").unlink()
    data = read_data(tmp_path, None, LABELS, seed=0)
    assert [example.index for example in data.validation] == [1]
    (tmp_path / "light" / "001.png").unlink()
    with pytest.raises(DataError, match="too few images"):
        read_data(tmp_path, None, LABELS, seed=0)


def test_train_and_val_inside_the_folder_are_the_two_parts(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 5)
    write_classes(tmp_path / "val", 3)
    data = read_data(tmp_path, None, LABELS, seed=0)
    assert (len(data.training), len(data.validation), data.notes) == (10, 6, ())
    assert class_names(tmp_path) == LABELS


def test_a_folder_to_validate_on_may_be_named_and_may_lack_a_class(tmp_path: Path) -> None:
    write_classes(tmp_path / "a", 5)
    write_classes(tmp_path / "b", 3)
    shutil.rmtree(tmp_path / "b" / "light")
    data = read_data(tmp_path / "a", tmp_path / "b", LABELS, seed=0)
    assert (len(data.training), len(data.validation)) == (10, 3)
    assert data.notes == ("1 of 2 classes have no validation image",)


def test_the_order_of_the_labels_decides_the_indices(tmp_path: Path) -> None:
    write_classes(tmp_path, 4)
    data = read_data(tmp_path, None, ("light", "dark"), seed=0)
    assert {example.index for example in data.training if example.image.parent.name == "light"} == {0}


def test_one_class_an_empty_class_and_no_classes_are_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "two", 3)
    shutil.rmtree(tmp_path / "two" / "light")
    with pytest.raises(DataError, match="a single class, 'dark'"):
        class_names(tmp_path / "two")
    (tmp_path / "two" / "light").mkdir()
    with pytest.raises(DataError, match="class folder without images") as caught:
        read_data(tmp_path / "two", None, LABELS, seed=0)
    assert caught.value.subject == str(tmp_path / "two" / "light")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        class_names(tmp_path / "none")
    with pytest.raises(InputError):
        class_names(tmp_path / "missing")


def test_a_label_without_a_folder_has_no_image(tmp_path: Path) -> None:
    write_classes(tmp_path, 3)
    with pytest.raises(DataError, match="no image of the class 'white'"):
        read_data(tmp_path, None, (*LABELS, "white"), seed=0)


def test_unreadable_images_are_counted_named_and_left_out_only_as_far_as_allowed(tmp_path: Path) -> None:
    write_classes(tmp_path, 10)
    bad = [tmp_path / "dark" / f"{number:03d}.png" for number in range(4)]
    for file in bad:
        file.write_bytes(b"not an image at all")
    data = read_data(tmp_path, None, LABELS, seed=0)
    found = [one for _, one in unreadable([*data.training, *data.validation], 3)]
    assert {one.path for one in found} == set(bad)
    with pytest.raises(DataError, match=r"4 of 20 images cannot be read \(.*; and 1 more\)"):
        without_bad(data, found, 3)
    rest = without_bad(data, found, 4)
    assert names_of([*rest.training, *rest.validation]).isdisjoint({f"dark/{file.name}" for file in bad})
    assert len(rest.training) + len(rest.validation) == 16
    assert rest.bad == tuple(found)


def test_a_class_of_which_nothing_can_be_read_is_refused_even_if_that_many_are_allowed(tmp_path: Path) -> None:
    write_classes(tmp_path, 3)
    for file in (tmp_path / "dark").iterdir():
        file.write_bytes(b"")
    data = read_data(tmp_path, None, LABELS, seed=0)
    found = [one for _, one in unreadable([*data.training, *data.validation], 3)]
    with pytest.raises(DataError, match="no readable image is left of the class 'dark'"):
        without_bad(data, found, 100)


def test_a_batch_must_be_full(tmp_path: Path) -> None:
    write_classes(tmp_path, 5)
    data = read_data(tmp_path, None, LABELS, seed=0)
    require_a_batch(data, 8)
    with pytest.raises(DataError, match="8 images to train on, fewer than a batch of 9"):
        require_a_batch(data, 9)


def test_unlabelled_images_have_no_class(tmp_path: Path) -> None:
    write_classes(tmp_path / "a", 5)
    write_classes(tmp_path / "b", 3, seed=1)
    data = read_data(tmp_path / "a", None, LABELS, seed=0, unlabelled=tmp_path / "b")
    assert sum(example.index == UNLABELLED for example in data.training) == 6
    assert all(example.index != UNLABELLED for example in data.validation)


def test_the_digest_follows_images_and_classes(tmp_path: Path) -> None:
    write_classes(tmp_path, 5)
    first = read_data(tmp_path, None, LABELS, seed=0).digest()
    assert first == read_data(tmp_path, None, LABELS, seed=0).digest()
    assert first != read_data(tmp_path, None, ("light", "dark"), seed=0).digest()
    (tmp_path / "dark" / "000.png").rename(tmp_path / "dark" / "zzz.png")
    assert first != read_data(tmp_path, None, LABELS, seed=0).digest()
