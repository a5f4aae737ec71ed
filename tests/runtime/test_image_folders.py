"""Folders of images: what is found, which class it shows, and what becomes of damaged ones."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.errors import DataError, InputError, UsageError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime import image_folders
from densenet_deploy.runtime.image_folders import LabelledImage, PreparedImages, find_images, find_labelled_images
from densenet_deploy.runtime.images import load_image
from densenet_deploy.runtime.preprocess import prepare, read_input
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


# --- images prepared ahead: the same as one by one, in order, without threads left behind


PREPROCESSING = Preprocessing.default(32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{number:02}.png")
    return sorted(folder.iterdir())


def _workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize(("ahead", "threads"), [(1, 1), (3, 4), (100, None)])
def test_every_image_comes_prepared_and_in_order(files, ahead, threads):
    prepared = list(PreparedImages(files, PREPROCESSING, ahead=ahead, threads=threads))
    assert [path for path, _ in prepared] == files
    for path, image in prepared:
        np.testing.assert_array_equal(image.pixels, prepare(load_image(path), PREPROCESSING))
    assert _workers() == []


def test_fast_decoding_and_what_was_lost_come_with_each_image(tmp_path):
    photo, clear = tmp_path / "a.jpg", tmp_path / "b.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)).save(photo)
    Image.new("RGBA", (40, 40)).save(clear)
    (_, fast), (_, lossy) = PreparedImages([photo, clear], PREPROCESSING, fast=True)
    np.testing.assert_array_equal(fast.pixels, read_input(photo, PREPROCESSING, fast=True).pixels)
    assert not np.array_equal(fast.pixels, read_input(photo, PREPROCESSING).pixels)
    assert (fast.notes, lossy.notes) == ((), ("transparency is dropped",))


def test_unreadable_images_are_recorded_and_the_rest_continues(files, tmp_path):
    broken, missing = tmp_path / "broken.png", tmp_path / "missing.png"
    broken.write_bytes(files[0].read_bytes()[:200])
    images = PreparedImages([files[0], broken, files[1], missing], PREPROCESSING, max_bad=2)
    for _ in range(2):  # and again the same
        assert [path for path, _ in images] == files[:2]
        assert [bad.path for bad in images.bad] == [broken, missing]


def test_one_too_many_is_an_error_that_names_the_first(files, tmp_path):
    broken = [tmp_path / f"{number}.png" for number in range(2)]
    for path in broken:
        path.write_text("text")
    images = PreparedImages([*broken, *files], PREPROCESSING, max_bad=1)
    with pytest.raises(DataError) as caught:
        list(images)
    assert caught.value.subject == str(broken[0])
    assert _workers() == []


def test_stopping_early_leaves_no_thread(files):
    images = iter(PreparedImages(files, PREPROCESSING, ahead=4, threads=2))
    assert next(images)[0] == files[0]
    assert sorted(_workers()) == ["decode_0", "decode_1"]
    images.close()  # type: ignore[attr-defined]
    assert _workers() == []


@pytest.fixture
def read(monkeypatch):
    """The files that are read, in order; all but the first wait until `read.release` is set."""

    class Read(list):
        release = threading.Event()

        def __call__(self, path, *args, **options):
            self.append(path)
            if len(self) > 1:
                assert self.release.wait(60)
            return read_input(path, *args, **options)

    found = Read()
    monkeypatch.setattr(image_folders, "read_input", found)
    return found


def test_as_many_are_prepared_ahead_as_were_asked_for(files, read):
    read.release.set()
    images = iter(PreparedImages(files, PREPROCESSING, ahead=3, threads=1))
    assert next(images)[0] == files[0]
    deadline = time.monotonic() + 20
    while len(read) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert read == files[:4]
    assert [path for path, _ in images] == files[1:]


def test_stopping_early_leaves_the_others_unread(files, read, monkeypatch):
    ended = ThreadPoolExecutor.shutdown

    def shutdown(pool, wait=True, *, cancel_futures=False):
        ended(pool, wait=False, cancel_futures=cancel_futures)
        read.release.set()  # what is being read may now end
        ended(pool, wait=wait)

    images = iter(PreparedImages(files, PREPROCESSING, ahead=len(files), threads=1))
    assert next(images)[0] == files[0]
    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shutdown)
    images.close()
    assert read in (files[:1], files[:2])


def test_another_error_is_not_counted_as_an_unreadable_image(files):
    wrong = PreparedImages(
        files, PREPROCESSING.__class__(image_size=32, resize=36, interpolation="lanczos"), max_bad=99
    )
    with pytest.raises(UsageError) as caught:
        list(wrong)
    assert "lanczos" in caught.value.subject


@pytest.mark.parametrize(
    ("name", "highest", "subject"), [("ahead", 1_000_000, "ahead"), ("threads", 1024, "decode-threads")]
)
def test_numbers_out_of_range_are_refused(name, highest, subject):
    for value in (1, highest):
        PreparedImages([Path("a.png")], PREPROCESSING, **{name: value})
    for value in (0, highest + 1):
        with pytest.raises(UsageError) as caught:
            PreparedImages([Path("a.png")], PREPROCESSING, **{name: value})
        assert caught.value.subject == f"{subject}={value}"


@pytest.mark.parametrize("limit", [1, None])
def test_bad_images_are_recorded_up_to_the_limit(tmp_path, limit):
    good = [save(tmp_path / f"{i}.png") for i in range(2)]
    bad = save(tmp_path / "bad.png", b"<html>")
    images = PreparedImages([good[0], bad, good[1]], PREPROCESSING, max_bad=limit)
    for _ in range(2):  # every pass starts counting anew
        assert [path for path, _ in images] == good
        assert [(entry.path, entry.error.why) for entry in images.bad] == [(bad, "is an HTML page")]


def test_one_bad_image_too_many_ends_the_pass_and_names_the_first(tmp_path):
    first, second = save(tmp_path / "a.png", b""), tmp_path / "missing.png"
    images = PreparedImages([first, second, save(tmp_path / "c.png")], PREPROCESSING, max_bad=1)
    with pytest.raises(DataError) as caught:
        list(images)
    assert caught.value.subject == str(first)
    assert len(images.bad) == 2


def test_by_default_no_bad_image_is_allowed(tmp_path):
    with pytest.raises(DataError) as caught:
        list(PreparedImages([save(tmp_path / "a.png", b"")], PREPROCESSING))
    assert caught.value.subject == str(tmp_path / "a.png")
