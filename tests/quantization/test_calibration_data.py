"""Calibration data from folders, arrays and iterables: the same samples each time, and invalid ones refused."""

import io
import itertools
import os
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from densenet_deploy.errors import DataError, InputError, UsageError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.quantization.calibration_data import open_calibration_data
from densenet_deploy.runtime.images import load_image
from densenet_deploy.runtime.preprocess import prepare
from tests.quantization.observed import samples

SMALL = Preprocessing(image_size=8, resize=9)


@pytest.fixture
def images(tmp_path):
    """Six images directly inside and four in class folders."""
    folder = tmp_path / "images"
    rng = np.random.default_rng(0)
    for name in [*(f"{index}.png" for index in range(6)), "cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8)).save(path)
    return folder


def save(path, array, **more):
    if path.suffix == ".npz":
        np.savez_compressed(path, input=array, **more)
    else:
        np.save(path, array)
    return path


def arrays(count=40):
    return np.concatenate(samples(count))


# --- folders


def test_a_folder_gives_each_of_its_images_as_the_model_takes_them(images):
    data = open_calibration_data(images, SMALL)
    found = list(data)
    assert len(data) == len(found) == 10
    wanted = [prepare(load_image(path), SMALL) for path in images.rglob("*.png")]
    assert {array.tobytes() for array in found} == {array.tobytes() for array in wanted}
    assert all(sample.shape == (1, 3, 8, 8) and sample.dtype == np.float32 for sample in found)
    np.testing.assert_array_equal(np.concatenate(list(data)), np.concatenate(found))  # it can be read again


def test_subset_and_order_are_drawn_by_seed_so_that_the_first_few_are_a_fair_sample(images):
    names = [list(open_calibration_data(images, SMALL, 4, seed).digests()) for seed in (1, 1, 2)]
    assert names[0] == names[1] != names[2]
    assert len(names[0]) == 4
    whole = list(open_calibration_data(images, SMALL, 10, 1).digests())
    assert names[0] == whole[:4]
    assert whole != sorted(whole)


def test_digests_follow_names_and_bytes(images):
    before = open_calibration_data(images, SMALL).digests()
    assert set(before) >= {"0.png", "cat/1.png"}
    (images / "0.png").write_bytes((images / "1.png").read_bytes())
    (images / "2.png").rename(images / "7.png")
    after = open_calibration_data(images, SMALL).digests()
    assert after["0.png"] == before["1.png"] == after["1.png"]
    assert after["7.png"] == before["2.png"]
    assert "2.png" not in after


def test_a_folder_without_images_or_with_a_broken_one_is_refused(images, tmp_path):
    (images / "3.png").write_bytes(b"<html>no image</html>")
    with pytest.raises(DataError) as caught:
        list(open_calibration_data(images, SMALL))
    assert caught.value.subject == str(images / "3.png")
    (tmp_path / "empty").mkdir()
    for missing, kind in (("empty", DataError), ("nowhere", InputError)):
        with pytest.raises(kind) as caught:
            open_calibration_data(tmp_path / missing, SMALL)
        assert caught.value.subject == str(tmp_path / missing)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "data.txt").write_text("x")
    with pytest.raises(DataError) as caught:
        open_calibration_data(tmp_path / "data.txt", SMALL)
    assert caught.value.subject == str(tmp_path / "data.txt")


def test_a_path_may_be_text(images):
    assert len(open_calibration_data(str(images), SMALL)) == 10


# --- array files


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_array_file_gives_its_samples(suffix, tmp_path):
    data = open_calibration_data(save(tmp_path / f"data{suffix}", arrays()), SMALL)
    assert len(data) == 40
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(data)), arrays())


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_subset_of_an_array_is_drawn_by_seed_and_part_of_its_digest(suffix, tmp_path):
    path = save(tmp_path / f"data{suffix}", arrays())
    first, again, other = (open_calibration_data(path, SMALL, 7, seed) for seed in (1, 1, 2))
    rows = np.concatenate(list(first))
    places = [int(np.flatnonzero((arrays() == row).all(axis=(1, 2, 3)))[0]) for row in rows]
    assert places == sorted(set(places))
    assert len(places) == 7
    assert first.digests() == again.digests() != other.digests()


def test_the_digest_of_an_array_follows_its_bytes_not_its_name(tmp_path):
    first, renamed = (open_calibration_data(save(tmp_path / name, arrays()), SMALL) for name in ("a.npy", "b.npy"))
    changed = open_calibration_data(save(tmp_path / "c.npy", arrays() + np.float32(0.5)), SMALL)
    assert first.digests() == renamed.digests() != changed.digests()


def with_value(value):
    array = arrays()
    array[13, 1, 2, 3] = value
    return array


BAD_HEADERS = {
    "double": (arrays().astype(np.float64), "float64"),
    "bytes": (np.zeros((40, 3, 8, 8), np.uint8), "uint8"),
    "big-endian": (arrays().astype(">f4"), ">f4"),
    "objects": (np.array([{}, {}]), "object"),
    "one sample": (arrays()[0], "(3, 8, 8)"),
    "NHWC": (arrays().transpose(0, 2, 3, 1).copy(), "(40, 8, 8, 3)"),
    "another size": (np.zeros((40, 3, 9, 9), np.float32), "(40, 3, 9, 9)"),
    "no samples": (np.zeros((0, 3, 8, 8), np.float32), "(0, 3, 8, 8)"),
    "Fortran order": (np.asfortranarray(arrays()), "Fortran"),
}
BAD_VALUES = {"NaN": with_value(np.nan), "Inf": with_value(-np.inf), "0-255": with_value(255)}


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(("array", "why"), BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_an_array_that_is_not_a_batch_of_inputs_is_refused_at_once(array, why, suffix, tmp_path):
    path = save(tmp_path / f"data{suffix}", array)
    with pytest.raises(DataError) as caught:
        open_calibration_data(path, SMALL)
    assert caught.value.subject == str(path)
    assert why in caught.value.why


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("array", BAD_VALUES.values(), ids=BAD_VALUES)
def test_values_beyond_normalized_images_are_refused(array, suffix, tmp_path):
    path = save(tmp_path / f"data{suffix}", array)
    with pytest.raises(DataError) as caught:
        list(open_calibration_data(path, SMALL))
    assert caught.value.subject == f"sample 13 of {path}"


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("keep", [5, 40, 0.5, 0.99])
def test_a_file_cut_short_is_refused_at_once(keep, suffix, tmp_path):
    path = save(tmp_path / f"data{suffix}", arrays())
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if keep > 1 else int(keep * len(whole))])
    with pytest.raises(DataError):
        open_calibration_data(path, SMALL)


def test_a_changed_byte_in_a_compressed_file_is_refused_or_harmless_never_another_error(tmp_path):
    path = save(tmp_path / "data.npz", arrays())
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(DataError):
        list(open_calibration_data(path, SMALL))


def test_an_archive_of_several_arrays_is_refused(tmp_path):
    path = save(tmp_path / "data.npz", arrays(), labels=np.arange(40))
    with pytest.raises(DataError) as caught:
        open_calibration_data(path, SMALL)
    assert caught.value.subject == str(path)


def test_a_pickle_named_npy_is_refused_and_not_loaded(tmp_path):
    marker = tmp_path / "marker"
    payload = b"cos\nsystem\n(S'touch " + os.fsencode(marker) + b"'\ntR."
    (tmp_path / "data.npy").write_bytes(payload)
    with pytest.raises(DataError):
        open_calibration_data(tmp_path / "data.npy", SMALL)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_array_file_is_streamed(suffix, tmp_path):
    array = np.tile(arrays(64), (40, 1, 1, 1))  # 2560 samples, 2 MB
    data = open_calibration_data(save(tmp_path / f"data{suffix}", array), SMALL, samples=10_000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in data) == 2560
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < array.nbytes / 4


# --- arrays in memory


def test_an_array_gives_its_samples_and_a_digest():
    data = open_calibration_data(arrays(), SMALL, samples=7, seed=1)
    rows = list(data)
    assert len(data) == len(rows) == 7
    assert all((arrays() == row).all(axis=(1, 2, 3)).any() for row in rows)
    assert data.digests() == open_calibration_data(arrays(), SMALL, samples=7, seed=1).digests()
    assert data.digests() != open_calibration_data(arrays() + np.float32(0.5), SMALL, samples=7, seed=1).digests()


def test_an_array_of_pixels_and_a_tensor_are_arrays_too():
    found = list(open_calibration_data(pixels(5), SMALL))
    np.testing.assert_array_equal(np.concatenate(found), prepared(pixels(5)))
    tensor = torch.from_numpy(arrays(3)).requires_grad_()
    np.testing.assert_array_equal(np.concatenate(list(open_calibration_data(tensor, SMALL))), arrays(3))


def test_an_array_of_another_size_is_refused_at_once():
    with pytest.raises(DataError) as caught:
        open_calibration_data(np.zeros((40, 3, 9, 9), np.float32), SMALL)
    assert "(40, 3, 9, 9)" in caught.value.why


# --- iterables


def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 12, 10, 3), np.uint8)


def prepared(images):
    return np.stack([prepare(load_image(image), SMALL) for image in images])


ONE, BATCH = arrays(1)[0], arrays(4)
ITEMS = {
    "one input": (ONE, ONE[None]),
    "a batch of inputs": (BATCH, BATCH),
    "a tensor": (torch.from_numpy(BATCH), BATCH),
    "one image": (pixels(1)[0], prepared(pixels(1))),
    "a batch of images": (pixels(3), prepared(pixels(3))),
    "a tensor of pixels": (torch.from_numpy(pixels(1)[0]), prepared(pixels(1))),
    "PIL": (Image.fromarray(pixels(1)[0]), prepared(pixels(1))),
    "an image loaded before": (load_image(pixels(1)[0]), prepared(pixels(1))),
    "images and labels": ((BATCH, np.arange(4)), BATCH),
    "a list of tensors": ([torch.from_numpy(BATCH), torch.arange(4)], BATCH),
    "a dict": ({"pixel_values": torch.from_numpy(BATCH), "labels": torch.arange(4)}, BATCH),
    "a dict with an image": ({"image": Image.fromarray(pixels(1)[0]), "label": 3}, prepared(pixels(1))),
}


@pytest.mark.parametrize(("item", "expected"), ITEMS.values(), ids=ITEMS)
def test_an_item_may_be_an_image_or_a_batch_in_any_form(item, expected):
    found = list(open_calibration_data([item, item], SMALL))
    assert all(sample.shape == (1, 3, 8, 8) and sample.dtype == np.float32 for sample in found)
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate([expected, expected]))


def test_an_item_may_be_a_path(images):
    paths = sorted(images.glob("*.png"))
    expected = prepared(paths)
    for items in (paths, [str(path) for path in paths]):
        np.testing.assert_array_equal(np.concatenate(list(open_calibration_data(items, SMALL))), expected)


def test_a_data_loader_is_read_as_often_as_needed():
    loader = DataLoader(TensorDataset(torch.from_numpy(arrays()), torch.arange(40)), batch_size=16)
    data = open_calibration_data(loader, SMALL, samples=30)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(data)), arrays()[:30])
    assert data.digests() is None


def test_an_iterator_is_kept_as_far_as_it_was_read():
    source = iter(samples(40))
    data = open_calibration_data(source, SMALL, samples=30)
    np.testing.assert_array_equal(np.concatenate(list(itertools.islice(data, 10))), arrays()[:10])
    assert len(list(itertools.islice(source, 1))) == 1  # nothing was taken ahead
    again = np.concatenate(list(data))
    np.testing.assert_array_equal(again, np.concatenate([arrays()[:10], arrays()[11:31]]))
    np.testing.assert_array_equal(np.concatenate(list(data)), again)


def test_the_digest_of_an_iterator_is_that_of_its_samples():
    first, same, other = (open_calibration_data(iter(samples(count)), SMALL, 8).digests() for count in (8, 9, 7))
    assert first == same != other


def test_no_more_is_taken_from_an_iterator_than_was_asked_for():
    source = iter(samples(10))
    assert len(list(open_calibration_data(source, SMALL, samples=4))) == 4
    assert len(list(source)) == 6


BAD_ITEMS = {
    "float64": np.zeros((1, 3, 8, 8)),
    "NaN": np.full((1, 3, 8, 8), np.nan, np.float32),
    "a list of lists": [[1.0]],
    "a stream": io.BytesIO(),
    "CHW pixels": np.zeros((3, 8, 8), np.uint8),
    "another size": np.zeros((3, 9, 9), np.float32),
    "a dict of two images": {"left": ONE, "right": ONE},
    "an empty dict": {},
    "an empty tuple": (),
    "a missing file": "missing.png",
}


@pytest.mark.parametrize("item", BAD_ITEMS.values(), ids=BAD_ITEMS)
def test_an_invalid_item_is_named(item):
    with pytest.raises(DataError) as caught:
        list(open_calibration_data([*samples(2), item], SMALL))
    assert caught.value.subject.startswith("item 2")


# --- the range of inputs


def test_images_have_the_range_of_their_preprocessing(images):
    found = open_calibration_data(images, SMALL).input_range()
    low, high = SMALL.value_range
    np.testing.assert_array_equal(found.low, np.full(3, low, np.float32))
    np.testing.assert_array_equal(found.high, np.full(3, high, np.float32))
    np.testing.assert_array_equal(open_calibration_data(pixels(4), SMALL).input_range().low, found.low)


@pytest.mark.parametrize("kind", ["file", "array", "iterator", "list"])
def test_arrays_have_their_own_range_with_headroom(kind, tmp_path):
    small = arrays() * np.float32([0.1, 1, 2]).reshape(3, 1, 1)
    path = save(tmp_path / "data.npy", small)
    data = open_calibration_data(
        {"file": path, "array": small, "iterator": iter(small), "list": list(small)}[kind], SMALL
    )
    assert len(list(data)) == 40
    found, (low, high) = data.input_range(), (small.min(axis=(0, 2, 3)), small.max(axis=(0, 2, 3)))
    np.testing.assert_allclose(found.low, low - 0.1 * (high - low), rtol=1e-5)  # float32 of a tenth
    np.testing.assert_allclose(found.high, high + 0.1 * (high - low), rtol=1e-5)


def test_values_of_an_unknown_normalization_are_not_checked(tmp_path):
    wide = arrays() * np.float32(400)
    path = save(tmp_path / "data.npy", wide)
    for source in (path, wide, list(wide)):
        with pytest.raises(DataError):
            list(open_calibration_data(source, SMALL))
        found = list(open_calibration_data(source, SMALL, check_values=False))
        np.testing.assert_array_equal(np.concatenate(found), wide)
    with pytest.raises(DataError):
        list(open_calibration_data(with_value(np.inf), SMALL, check_values=False))


def test_zero_samples_are_refused(images):
    with pytest.raises(UsageError) as caught:
        open_calibration_data(images, SMALL, samples=0)
    assert caught.value.subject == "samples=0"


@pytest.mark.parametrize("source", [5, None, b"abc", {"images": 1}])
def test_what_holds_no_samples_is_refused_at_once(source):
    with pytest.raises(DataError) as caught:
        open_calibration_data(source, Preprocessing(32, 32))
    assert caught.value.subject == f"a {type(source).__name__}"


def test_a_list_of_several_images_is_refused_and_not_cut_to_its_first():
    with pytest.raises(DataError) as caught:
        list(open_calibration_data([list(pixels(2))], Preprocessing(32, 32)))
    assert caught.value.subject == "item 0"


def test_an_iterator_counts_what_was_read():
    data = open_calibration_data(iter(pixels(5)), Preprocessing(32, 32))
    assert len(list(data)) == data.count == 5
