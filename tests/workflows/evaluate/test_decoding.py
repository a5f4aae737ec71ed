"""Images prepared ahead: the same as one by one, in order, what is broken recorded, no thread left behind."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.errors import DataError, UsageError
from densenet_deploy.runtime.images import load_image
from densenet_deploy.runtime.preprocess import default_preprocessing, prepare
from densenet_deploy.workflows.evaluate.decoding import PreparedImages

PREPROCESSING = default_preprocessing(32)


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
    for path, pixels in prepared:
        np.testing.assert_array_equal(pixels, prepare(load_image(path), PREPROCESSING))
    assert _workers() == []


def test_what_is_broken_is_recorded_and_the_rest_goes_on(files, tmp_path):
    broken, missing = tmp_path / "broken.png", tmp_path / "missing.png"
    broken.write_bytes(files[0].read_bytes()[:200])
    images = PreparedImages([files[0], broken, files[1], missing], PREPROCESSING, max_bad=2)
    for _ in range(2):  # and again the same
        assert [path for path, _ in images] == files[:2]
        assert [bad.path for bad in images.bad] == [broken, missing]


def test_one_too_many_ends_it_and_names_the_first(files, tmp_path):
    broken = [tmp_path / f"{number}.png" for number in range(2)]
    for path in broken:
        path.write_text("text")
    images = PreparedImages([*broken, *files], PREPROCESSING, max_bad=1)
    with pytest.raises(DataError, match=r"0\.png.*is text \(unreadable images: 2, allowed: 1\)"):
        list(images)
    assert _workers() == []


def test_who_stops_early_leaves_no_thread(files):
    images = iter(PreparedImages(files, PREPROCESSING, ahead=4, threads=2))
    assert next(images)[0] == files[0]
    assert _workers()
    images.close()  # type: ignore[attr-defined]
    assert _workers() == []


def test_an_error_of_ours_is_not_taken_for_a_bad_image(files):
    wrong = PreparedImages(
        files, PREPROCESSING.__class__(image_size=32, resize=36, interpolation="lanczos"), max_bad=99
    )
    with pytest.raises(UsageError, match="lanczos"):
        list(wrong)


@pytest.mark.parametrize("facts", [{"ahead": 0}, {"threads": 0}])
def test_numbers_that_cannot_be_meant(facts):
    with pytest.raises(UsageError):
        PreparedImages([Path("a.png")], PREPROCESSING, **facts)
