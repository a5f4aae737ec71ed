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
from densenet_deploy.quantization.calibration_data import image_size_of_inputs, open_calibration_data
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
        with path.open("wb") as file:
            np.save(file, array)
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
    assert names[0] != list(open_calibration_data(images, SMALL, 4).digests())
    assert list(open_calibration_data(images, SMALL, 4).digests()) == list(
        open_calibration_data(images, SMALL, 4, 0).digests()
    )
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


def test_a_file_of_another_kind_is_refused_whatever_it_holds(tmp_path):
    path = tmp_path / "data.bin"
    with path.open("wb") as file:
        np.savez(file, arrays())
    with pytest.raises(DataError) as caught:
        open_calibration_data(path, SMALL)
    assert caught.value.subject == str(path)
    assert ".npy or .npz" in caught.value.fix


def test_a_path_may_be_text(images):
    assert len(open_calibration_data(str(images), SMALL)) == 10


def test_a_folder_may_be_named_like_an_array_file(images, tmp_path):
    folder = images.rename(tmp_path / "images.npy")
    data = open_calibration_data(folder, SMALL)
    assert (data.count, data.origin) == (10, folder)


# --- array files


@pytest.mark.parametrize("name", ["data.npy", "data.npz", "DATA.NPY"])
def test_an_array_file_gives_its_samples(name, tmp_path):
    path = save(tmp_path / name, arrays())
    data = open_calibration_data(path, SMALL)
    assert (len(data), data.count, data.origin, data.samples) == (40, 40, path, 512)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(data)), arrays())


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format_is_read(version, tmp_path):
    path = tmp_path / "data.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, arrays(), version)
    np.testing.assert_array_equal(np.concatenate(list(open_calibration_data(path, SMALL))), arrays())


@pytest.mark.parametrize("kind", ["data.npy", "data.npz", "array"])
def test_a_subset_of_an_array_is_drawn_by_seed_and_keeps_the_order(kind, tmp_path):
    source = arrays() if kind == "array" else save(tmp_path / kind, arrays())
    for count, seed in ((7, 1), (7, 2), (39, 0)):
        data = open_calibration_data(source, SMALL, count, seed)
        places = sorted(np.random.default_rng(seed).choice(40, count, replace=False))
        np.testing.assert_array_equal(np.concatenate(list(data)), arrays()[places])
        assert len(data) == count
    default = open_calibration_data(source, SMALL, 7)
    np.testing.assert_array_equal(np.concatenate(list(default)), np.concatenate(list(open_of_seed_0(source))))


def open_of_seed_0(source):
    return open_calibration_data(source, SMALL, 7, 0)


def test_512_samples_are_taken_unless_told_otherwise():
    assert open_calibration_data(arrays(513), SMALL).count == 512


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_the_digest_of_an_array_file_follows_the_chosen_samples(suffix, tmp_path):
    path = save(tmp_path / f"data{suffix}", arrays())
    first, again, other = (open_calibration_data(path, SMALL, 7, seed).digests() for seed in (1, 1, 2))
    assert first == again
    assert first.keys() == {"array", "chosen samples"}
    assert {name for name in first if first[name] != other[name]} == {"chosen samples"}


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
    "a number": (np.float32(1), "() float32"),
    "five axes": (arrays(1)[None], "(1, 1, 3, 8, 8)"),
    "Fortran order": (np.asfortranarray(arrays()), "Fortran"),
    "one sample in Fortran order": (np.asfortranarray(arrays(1)), "Fortran"),
}
BAD_VALUES = {
    "NaN": (np.nan, "NaN"),
    "Inf": (-np.inf, "NaN or Inf"),
    "0-255": (255, "to 255"),
    "below": (-255, "from -255"),
}


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(("array", "why"), BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_an_array_that_is_not_a_batch_of_inputs_is_refused_at_once(array, why, suffix, tmp_path):
    path = save(tmp_path / f"data{suffix}", array)
    with pytest.raises(DataError) as caught:
        open_calibration_data(path, SMALL)
    assert caught.value.subject == str(path)
    assert why in caught.value.why


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(("value", "why"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_values_beyond_normalized_images_are_refused(value, why, suffix, tmp_path):
    path = save(tmp_path / f"data{suffix}", with_value(value))
    with pytest.raises(DataError) as caught:
        list(open_calibration_data(path, SMALL))
    assert caught.value.subject == f"sample 13 of {path}"
    assert why in caught.value.why


@pytest.mark.parametrize("sign", [1, -1])
def test_values_up_to_eight_times_those_of_a_normalized_image_are_taken(sign):
    symmetric = Preprocessing(image_size=8, resize=9, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # gives -1 to 1
    assert len(list(open_calibration_data(with_value(sign * 8), symmetric))) == 40
    with pytest.raises(DataError):
        list(open_calibration_data(with_value(sign * np.nextafter(np.float32(8), np.float32(9))), symmetric))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("keep", [5, 40, 5000, -1])
def test_a_file_cut_short_is_refused_at_once(keep, suffix, tmp_path):
    path = save(tmp_path / f"data{suffix}", arrays())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError) as caught:
        open_calibration_data(path, SMALL)
    assert caught.value.subject == str(path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.write_bytes(b""), lambda path: None])
def test_a_pipe_and_an_empty_or_missing_file_are_refused_at_once(make, tmp_path):
    path = tmp_path / "data.npy"
    make(path)
    with pytest.raises(InputError) as caught:
        open_calibration_data(path, SMALL)
    assert caught.value.subject == str(path)
    assert not isinstance(caught.value, DataError)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_file_that_disappears_is_an_error_of_its_path(suffix, tmp_path):
    path = save(tmp_path / f"data{suffix}", arrays())
    data = open_calibration_data(path, SMALL)
    path.unlink()
    with pytest.raises(InputError) as caught:
        list(data)
    assert caught.value.subject == str(path)


def test_a_changed_byte_in_a_compressed_file_is_refused_or_harmless_never_another_error(tmp_path):
    path = save(tmp_path / "data.npz", arrays())
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(DataError):
        list(open_calibration_data(path, SMALL))


@pytest.mark.parametrize(
    ("members", "names"),
    [({"input": arrays(), "labels": np.arange(40)}, "2 arrays (input, labels)"), ({}, "0 arrays (none)")],
)
def test_an_archive_of_several_or_no_arrays_is_refused(members, names, tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, **members)
    with pytest.raises(DataError) as caught:
        open_calibration_data(path, SMALL)
    assert caught.value.subject == str(path)
    assert names in caught.value.why


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


def test_the_digest_of_an_array_is_that_of_the_chosen_samples_and_their_type():
    first, same, seed, value = (
        open_calibration_data(array, SMALL, samples=7, seed=seed).digests()
        for array, seed in ((arrays(), 1), (arrays(), 1), (arrays(), 2), (arrays() + np.float32(0.5), 1))
    )
    assert first == same
    assert first.keys() == {"array", "type"}
    assert len({digests["array"] for digests in (first, seed, value)}) == 3
    black = open_calibration_data(np.zeros((1, 16, 16, 3), np.uint8), SMALL).digests()
    zeros = open_calibration_data(np.zeros((1, 3, 8, 8), np.float32), SMALL).digests()
    assert black["array"] == zeros["array"]  # both are 768 bytes of zeros
    assert black["type"] != zeros["type"]


def test_an_array_of_pixels_and_a_tensor_are_arrays_too():
    found = list(open_calibration_data(pixels(5), SMALL))
    np.testing.assert_array_equal(np.concatenate(found), prepared(pixels(5)))
    tensor = torch.from_numpy(arrays(3)).requires_grad_()
    np.testing.assert_array_equal(np.concatenate(list(open_calibration_data(tensor, SMALL))), arrays(3))


def test_an_array_may_be_a_single_input_or_image():
    for single, expected in ((ONE, ONE[None]), (pixels(1)[0], prepared(pixels(1)))):
        data = open_calibration_data(single, SMALL)
        assert (data.count, data.origin) == (1, "calibration")
        np.testing.assert_array_equal(np.concatenate(list(data)), expected)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((40, 3, 9, 9), np.float32),
        np.zeros((0, 12, 10, 3), np.uint8),
        np.zeros((4, 0, 10, 3), np.uint8),
        np.zeros((4, 12, 10, 4), np.uint8),
        np.zeros((4, 12, 10, 3), np.int16),
        np.zeros((1, 4, 12, 10, 3), np.uint8),
        np.zeros((10, 3), np.uint8),
    ],
    ids=lambda array: f"{array.shape} {array.dtype}",
)
def test_an_array_that_holds_neither_inputs_nor_pixels_is_refused_at_once(array):
    with pytest.raises(DataError) as caught:
        open_calibration_data(array, SMALL)
    assert caught.value.subject == "array"
    assert f"{array.shape} {array.dtype}" in caught.value.why


# --- other channels and sides

GRAY = Preprocessing((8, 12), "none", (0.25,), (0.5,))
GRAY_PIXELS = np.random.default_rng(4).integers(0, 256, (3, 10, 14), np.uint8)
GRAY_INPUTS = (GRAY_PIXELS[:, None, 1:9, 1:13] / np.float32(255) - np.float32(0.25)) / np.float32(0.5)


@pytest.mark.parametrize(
    "source",
    [
        GRAY_PIXELS,
        GRAY_PIXELS[..., None],
        torch.from_numpy(GRAY_PIXELS),
        list(GRAY_PIXELS),
        list(GRAY_PIXELS[..., None]),
        [GRAY_PIXELS],
        [GRAY_PIXELS[..., None]],
        [(image, "cat") for image in GRAY_PIXELS],
        [Image.fromarray(image) for image in GRAY_PIXELS],
        GRAY_INPUTS,
        list(GRAY_INPUTS),
    ],
    ids=["NHW", "NHW1", "tensor", "HWs", "HW1s", "NHWs", "NHW1s", "with labels", "PIL", "inputs", "CHWs"],
)
def test_gray_pixels_come_with_their_channel_or_without(source):
    found = np.concatenate(list(open_calibration_data(source, GRAY)))
    np.testing.assert_array_equal(found, GRAY_INPUTS)


def test_an_array_in_which_the_last_axis_may_be_the_channel_is_one_image():
    data = open_calibration_data(GRAY_PIXELS[:1].reshape(14, 10, 1), Preprocessing(8, "none", (0.25,), (0.5,)))
    assert (data.count, [sample.shape for sample in data]) == (1, [(1, 1, 8, 8)])
    assert open_calibration_data(GRAY_PIXELS[0], GRAY).count == 1
    assert open_calibration_data(GRAY_PIXELS, GRAY).count == 3


def test_gray_pixels_have_the_range_of_their_preprocessing():
    for source in (GRAY_PIXELS, list(GRAY_PIXELS), iter(GRAY_PIXELS), [GRAY_PIXELS]):
        data = open_calibration_data(source, GRAY)
        assert len(list(data)) == 3
        assert (data.input_range().low, data.input_range().high) == ([-0.5], [1.5])
    inputs = open_calibration_data(GRAY_INPUTS, GRAY).input_range()
    assert inputs.high[0] < 1.5 + 0.2 + 1e-3
    assert inputs.high[0] != 1.5


@pytest.mark.parametrize(
    "array",
    [
        GRAY_PIXELS,
        GRAY_PIXELS[0],
        GRAY_PIXELS[..., None],
        np.zeros((3, 8, 12, 4), np.uint8),
        np.zeros((3, 3, 12, 8), np.float32),
        np.zeros((3, 1, 8, 12), np.float32),
    ],
    ids=lambda array: f"{array.shape} {array.dtype}",
)
def test_gray_or_four_channels_are_refused_where_the_model_takes_three(array):
    colors = Preprocessing((8, 12), "none")
    for source in (array, [array]):
        with pytest.raises(DataError) as caught:
            list(open_calibration_data(source, colors))
        assert "(N, 3, 8, 12)" in caught.value.why


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 8, 12, 3), np.uint8),
        np.zeros((3, 8, 12), np.uint16),
        np.zeros((2, 8, 12), np.float32),
        np.zeros((0, 8, 12), np.uint8),
        np.zeros((3, 0, 12), np.uint8),
        np.zeros(8, np.uint8),
        np.zeros((3, 1, 12, 8), np.float32),
    ],
    ids=lambda array: f"{array.shape} {array.dtype}",
)
def test_what_is_not_gray_is_refused_where_the_model_takes_one_channel(array):
    with pytest.raises(DataError) as caught:
        list(open_calibration_data(array, GRAY))
    assert (caught.value.subject, "(N, 1, 8, 12)" in caught.value.why) == ("array", True)


def test_four_channels_are_taken_as_they_are():
    four = Preprocessing((8, 12), "none", (0.0,) * 4, (1.0,) * 4)
    array = np.random.default_rng(4).integers(0, 256, (2, 8, 12, 4), np.uint8)
    expected = array.transpose(0, 3, 1, 2) / np.float32(255)
    for source in (array, list(array), [array], expected):
        np.testing.assert_array_equal(np.concatenate(list(open_calibration_data(source, four))), expected)


@pytest.mark.parametrize("mode", ["L", "I;16", "RGB"])
def test_a_folder_is_read_in_the_channels_of_the_model(mode, tmp_path):
    Image.new(mode, (14, 10), (255, 0, 0) if mode == "RGB" else 76).save(tmp_path / "0.png")
    (found,) = open_calibration_data(tmp_path, GRAY)
    value = 76 / 255 if mode != "I;16" else 76 / 65535
    np.testing.assert_allclose(found, np.full((1, 1, 8, 12), (value - 0.25) / 0.5), rtol=1e-6)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_array_files_hold_inputs_of_the_models_shape(suffix, tmp_path):
    path = save(tmp_path / f"data{suffix}", np.ascontiguousarray(GRAY_INPUTS))
    np.testing.assert_array_equal(np.concatenate(list(open_calibration_data(path, GRAY))), GRAY_INPUTS)
    for wrong in (Preprocessing((12, 8), "none", (0.25,), (0.5,)), Preprocessing((8, 12), "none")):
        with pytest.raises(DataError) as caught:
            open_calibration_data(path, wrong)
        assert "(3, 1, 8, 12) float32" in caught.value.why


def test_what_cannot_be_read_as_an_array_is_named():
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise TypeError("not today")

    with pytest.raises(InputError) as caught:
        open_calibration_data(Broken(), SMALL)
    assert caught.value.subject == "calibration"


# --- iterables


def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 12, 10, 3), np.uint8)


def prepared(images):
    return np.stack([prepare(load_image(image), SMALL) for image in images])


def png():
    file = io.BytesIO()
    Image.fromarray(pixels(1)[0]).save(file, "PNG")
    return file.getvalue()


ONE, BATCH, PNG = arrays(1)[0], arrays(4), png()
ITEMS = {
    "one input": (ONE, ONE[None]),
    "a batch of inputs": (BATCH, BATCH),
    "a tensor": (torch.from_numpy(BATCH), BATCH),
    "one image": (pixels(1)[0], prepared(pixels(1))),
    "a batch of images": (pixels(3), prepared(pixels(3))),
    "a tensor of pixels": (torch.from_numpy(pixels(1)[0]), prepared(pixels(1))),
    "PIL": (Image.fromarray(pixels(1)[0]), prepared(pixels(1))),
    "an image loaded before": (load_image(pixels(1)[0]), prepared(pixels(1))),
    "the bytes of a file": (PNG, prepared([PNG])),
    "images and labels": ((BATCH, np.arange(4)), BATCH),
    "images and one-hot labels": ((BATCH, np.eye(4)), BATCH),
    "an input and the name of its class": ((ONE, "cat"), ONE[None]),
    "nested": (([BATCH],), BATCH),
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
    for items in (paths, [str(path) for path in paths], [(path, "cat") for path in paths], [[path] for path in paths]):
        np.testing.assert_array_equal(np.concatenate(list(open_calibration_data(items, SMALL))), expected)


def test_a_data_loader_is_read_as_often_as_needed():
    loader = DataLoader(TensorDataset(torch.from_numpy(arrays()), torch.arange(40)), batch_size=16)
    data = open_calibration_data(loader, SMALL, samples=30)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(data)), arrays()[:30])
    assert data.digests() is None


def test_a_data_set_that_has_only_items_is_read_as_often_as_needed():
    data = open_calibration_data(TensorDataset(torch.from_numpy(arrays()), torch.arange(40)), SMALL, samples=30)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(data)), arrays()[:30])


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
    assert first == same
    assert first.keys() == other.keys() == {"samples"}
    assert first != other


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
    "no pixels": np.zeros((0, 8, 3), np.uint8),
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


def test_an_item_of_a_type_that_numpy_does_not_have_is_named():
    with pytest.raises(InputError) as caught:
        list(open_calibration_data([*samples(2), torch.zeros((1, 3, 8, 8), dtype=torch.bfloat16)], SMALL))
    assert caught.value.subject == "item 2"


# --- the range of inputs


def test_images_have_the_range_of_their_preprocessing(images):
    found = open_calibration_data(images, SMALL).input_range()
    low, high = SMALL.value_range
    np.testing.assert_array_equal(found.low, np.full(3, low, np.float32))
    np.testing.assert_array_equal(found.high, np.full(3, high, np.float32))
    for source in (pixels(4), list(pixels(4)), iter(pixels(4)), [PNG]):
        data = open_calibration_data(source, SMALL)
        assert list(data)
        np.testing.assert_array_equal(data.input_range().low, found.low)
        np.testing.assert_array_equal(data.input_range().high, found.high)


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


@pytest.mark.parametrize("kind", ["file", "array", "iterator", "list"])
def test_arrays_have_extremes_and_images_have_none(kind, tmp_path):
    small = arrays() * np.float32([0.1, 1, 2]).reshape(3, 1, 1)
    path = save(tmp_path / "data.npy", small)
    source = {"file": path, "array": small, "iterator": iter(small), "list": list(small)}[kind]
    data = open_calibration_data(source, SMALL)
    assert len(list(data)) == 40
    np.testing.assert_array_equal(data.extremes().low, small.min(axis=(0, 2, 3)))
    np.testing.assert_array_equal(data.extremes().high, small.max(axis=(0, 2, 3)))


def test_images_have_no_extremes(images):
    for source in (images, pixels(4), list(pixels(4))):
        data = open_calibration_data(source, SMALL)
        assert list(data)
        assert data.extremes() is None


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


@pytest.mark.parametrize("number", [0, 2**31 + 1])
def test_a_number_of_samples_out_of_range_is_refused(number):
    with pytest.raises(UsageError) as caught:
        open_calibration_data(ONE, SMALL, samples=number)
    assert caught.value.subject == f"samples={number}"
    assert open_calibration_data(ONE, SMALL, samples=2**31).samples == 2**31
    assert open_calibration_data(BATCH, SMALL, samples=1).count == 1


@pytest.mark.parametrize("source", [5, None, b"abc", {"images": 1}])
def test_what_holds_no_samples_is_refused_at_once(source):
    with pytest.raises(DataError) as caught:
        open_calibration_data(source, Preprocessing(32, 32))
    assert caught.value.subject == f"a {type(source).__name__}"


@pytest.mark.parametrize(
    "item",
    [
        list(pixels(2)),
        (ONE, ONE),
        (BATCH, BATCH),
        [Image.fromarray(image) for image in pixels(2)],
        [load_image(image) for image in pixels(2)],
        [ONE, Image.fromarray(pixels(1)[0])],
    ],
    ids=["pixels", "inputs", "batches", "PIL", "loaded", "mixed"],
)
def test_a_list_of_several_images_is_refused_and_not_cut_to_its_first(item):
    with pytest.raises(DataError) as caught:
        list(open_calibration_data([item], SMALL))
    assert caught.value.subject == "item 0"


def test_a_list_of_several_paths_is_refused_and_not_cut_to_its_first(images):
    with pytest.raises(DataError) as caught:
        list(open_calibration_data([[images / "0.png", str(images / "1.png")]], SMALL))
    assert caught.value.subject == "item 0"


@pytest.mark.parametrize("wrap", [iter, list])
def test_an_iterable_counts_what_was_read_in_one_pass(wrap):
    data = open_calibration_data(wrap(list(pixels(5))), SMALL)
    assert (data.count, data.origin) == (0, "calibration")
    assert len(list(itertools.islice(data, 2))) == data.count == 2
    assert len(list(data)) == data.count == 5
    assert len(list(itertools.islice(data, 3))) == 3
    assert data.count == 5


def test_the_image_size_of_arrays_is_read_without_their_values(tmp_path):
    inputs = np.zeros((2, 3, 16, 24), np.float32)
    np.save(tmp_path / "inputs.npy", inputs)
    np.savez(tmp_path / "inputs.npz", inputs)
    for source in (inputs, torch.from_numpy(inputs), tmp_path / "inputs.npy", str(tmp_path / "inputs.npz")):
        assert image_size_of_inputs(source) == (16, 24)


def test_pixels_folders_and_iterables_have_no_size_of_inputs(tmp_path):
    np.save(tmp_path / "doubles.npy", np.zeros((2, 3, 16, 24)))
    pixels, single = np.zeros((2, 16, 24, 3), np.uint8), np.zeros((3, 16, 24), np.float32)
    for source in (pixels, single, tmp_path, tmp_path / "doubles.npy", iter([single[None]])):
        assert image_size_of_inputs(source) is None
    (tmp_path / "damaged.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError):
        image_size_of_inputs(tmp_path / "damaged.npy")
