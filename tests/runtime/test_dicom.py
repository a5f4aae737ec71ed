"""DICOM files: rescaled, windowed and inverted by the equations of the standard, without losing bits; or refused."""

from __future__ import annotations

import contextlib
import io
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG2MPML,
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from densenet_deploy.errors import ImageError, MissingPackageError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.dicom import is_dicom, read_dicom
from densenet_deploy.runtime.image_folders import PreparedImages, find_images
from densenet_deploy.runtime.images import load_image
from densenet_deploy.runtime.preprocess import prepare
from tests.runtime.dicoms import dataset_of, dicom, written

ALL_16 = np.arange(65536, dtype=np.uint16).reshape(256, 256)
RAMP = np.array([[0, 10, 50, 90, 100, 255]], np.uint8)


def gray(data: bytes) -> np.ndarray:
    loaded = load_image(data, channels=1)
    assert (loaded.pixels.mode, loaded.channels) == ("F", 1)
    return np.asarray(loaded.pixels)


def window(center: float, width: float, **elements) -> dict:
    return {"WindowCenter": center, "WindowWidth": width, **elements}


# --- what is shown


def test_a_file_says_what_it_is_in_its_129th_byte():
    assert is_dicom(bytes(128) + b"DICM")
    assert is_dicom(dicom(RAMP)[:132])
    assert not is_dicom(bytes(127) + b"DICM")
    assert not is_dicom(bytes(128) + b"DICN")
    assert not is_dicom(b"")


def test_without_a_window_the_range_of_the_stored_bits_is_black_to_white():
    loaded = load_image(dicom(RAMP), channels=1)
    np.testing.assert_array_equal(loaded.pixels, RAMP)
    assert loaded.notes == ("the file has no window: 0 to 255, which its bits can hold, is black to white",)


def test_all_16_bits_are_kept():
    values = gray(dicom(ALL_16))
    np.testing.assert_allclose(values, ALL_16 / 257, rtol=1e-6)
    assert len(np.unique(values)) == 65536


@pytest.mark.parametrize(
    ("dtype", "bits", "low", "high"),
    [
        (np.uint16, 16, 0, 65535),
        (np.uint16, 12, 0, 4095),
        (np.int16, 16, -32768, 32767),
        (np.int16, 12, -2048, 2047),
        (np.uint8, 8, 0, 255),
        (np.int8, 8, -128, 127),
    ],
)
def test_the_range_is_that_of_the_bits_stored(dtype, bits, low, high):
    middle = (low + high) // 2
    data = dicom(np.array([[low, middle, high]], dtype), BitsStored=bits)
    expected = [0, (middle - low) / (high - low) * 255, 255]
    assert gray(data)[0] == pytest.approx(expected, rel=1e-6)
    assert f"{low} to {high}" in load_image(data, channels=1).notes[0]


@pytest.mark.parametrize(
    ("slope", "intercept", "text"), [(2, -1024, "-1024 to -514"), (0.5, 0, "0 to 127.5"), (-1, 10, "-245 to 10")]
)
def test_the_range_is_rescaled_as_the_values_are(slope, intercept, text):
    data = dicom(RAMP, RescaleSlope=slope, RescaleIntercept=intercept)
    np.testing.assert_allclose(gray(data), RAMP if slope > 0 else 255 - RAMP.astype(float), rtol=1e-6)
    assert text in load_image(data, channels=1).notes[0]


def test_a_window_is_black_to_white_by_the_equation_of_the_standard():
    """C.11.2.1.2.1: c = 50, w = 81: black up to 49.5 - 40 = 9.5, white from 89.5."""
    loaded = load_image(dicom(RAMP, **window(50, 81)), channels=1)
    expected = [0, ((10 - 49.5) / 80 + 0.5) * 255, ((50 - 49.5) / 80 + 0.5) * 255, 255, 255, 255]
    np.testing.assert_allclose(np.asarray(loaded.pixels)[0], expected, rtol=1e-6)
    assert loaded.notes == ("the window 50 ± 40.5 of the file is black to white",)


def test_an_exact_window_ends_where_it_says():
    """C.11.2.1.3.2: c = 50, w = 80: black up to 10, white from 90."""
    values = gray(dicom(RAMP, **window(50, 80, VOILUTFunction="LINEAR_EXACT")))
    np.testing.assert_allclose(values[0], [0, 0, 127.5, 255, 255, 255], rtol=1e-6)
    narrow = gray(dicom(RAMP, **window(50, 0.5, VOILUTFunction="LINEAR_EXACT")))
    np.testing.assert_allclose(narrow[0], [0, 0, 127.5, 255, 255, 255], rtol=1e-6)


def test_a_sigmoid_window_never_reaches_its_ends():
    """C.11.2.1.3.1."""
    values = gray(dicom(RAMP, **window(50, 80, VOILUTFunction="SIGMOID")))
    np.testing.assert_allclose(
        values[0], [255 / (1 + math.exp(-4 * (x - 50) / 80)) for x in RAMP[0].tolist()], rtol=1e-6
    )
    assert gray(dicom(RAMP, **window(50, 1e-3, VOILUTFunction="SIGMOID")))[0, [0, 2, 5]].tolist() == [0, 127.5, 255]


def test_a_window_of_width_1_is_a_step():
    assert gray(dicom(RAMP, **window(50.5, 1)))[0].tolist() == [0, 0, 0, 255, 255, 255]  # black up to 50


def test_the_window_is_of_rescaled_values():
    values = gray(dicom(RAMP, RescaleSlope=2, RescaleIntercept=-100, **window(0, 201)))
    expected = [min(max(((2 * x - 100 + 0.5) / 200 + 0.5) * 255, 0), 255) for x in RAMP[0].astype(float)]
    np.testing.assert_allclose(values[0], expected, rtol=1e-6)


def test_of_several_windows_the_first_is_taken():
    both = dicom(RAMP, WindowCenter=[50, 100], WindowWidth=[81, 200])
    np.testing.assert_array_equal(gray(both), gray(dicom(RAMP, **window(50, 81))))


@pytest.mark.parametrize(
    "elements",
    [
        {"WindowCenter": 50},
        {"WindowWidth": 81},
        {"WindowCenter": "", "WindowWidth": ""},
        {"WindowCenter": None, "WindowWidth": 5},
        {"WindowCenter": 50, "WindowWidth": None},
    ],
)
def test_half_a_window_is_none(elements):
    loaded = load_image(dicom(RAMP, **elements), channels=1)
    np.testing.assert_array_equal(loaded.pixels, RAMP)
    assert "no window" in loaded.notes[0]


def test_a_modality_lookup_table_is_applied():
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [256, 0, 16], "US"
    table.add_new("LUTData", "US", list(range(0, 2560, 10)))
    values = gray(dicom(RAMP, ModalityLUTSequence=Sequence([table]), **window(500, 1001)))
    expected = [min((10 * x - 499.5) / 1000 + 0.5, 1) * 255 for x in RAMP[0].astype(float)]
    np.testing.assert_allclose(values[0], expected, rtol=1e-6)


def test_a_voi_lookup_table_is_not_applied_and_that_is_said():
    table = Dataset()
    table.LUTDescriptor = [256, 0, 8]
    table.add_new("LUTData", "US", [0] * 256)
    loaded = load_image(dicom(RAMP, VOILUTSequence=Sequence([table])), channels=1)
    np.testing.assert_array_equal(loaded.pixels, RAMP)
    assert loaded.notes[1:] == ("the VOI lookup table of the file is not applied",)


def test_monochrome1_is_inverted_and_that_is_said():
    loaded = load_image(dicom(RAMP, PhotometricInterpretation="MONOCHROME1"), channels=1)
    np.testing.assert_array_equal(loaded.pixels, 255 - RAMP.astype(np.float32))
    assert loaded.notes[1:] == ("MONOCHROME1 is inverted: the lowest value is white",)
    windowed = dicom(RAMP, PhotometricInterpretation="MONOCHROME1", **window(50, 81))
    np.testing.assert_allclose(gray(windowed), 255 - gray(dicom(RAMP, **window(50, 81))), rtol=1e-5, atol=1e-4)


def test_of_several_frames_the_first_is_taken_and_that_is_said():
    loaded = load_image(dicom(np.stack([RAMP, 255 - RAMP, RAMP])), channels=1)
    np.testing.assert_array_equal(loaded.pixels, RAMP)
    assert loaded.notes[0] == "only the first frame is used"
    assert len(load_image(dicom(RAMP, NumberOfFrames=1), channels=1).notes) == 1


COLORS = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)


def test_colors_are_colors():
    loaded = load_image(dicom(COLORS))
    np.testing.assert_array_equal(loaded.pixels, COLORS)
    assert (loaded.pixels.mode, loaded.notes) == ("RGB", ())
    planes = dicom(COLORS, PlanarConfiguration=1)
    planar = dataset_of(COLORS, PlanarConfiguration=1)
    planar.PixelData = COLORS.transpose(2, 0, 1).tobytes()
    assert len(planes) == len(written(planar))
    np.testing.assert_array_equal(load_image(written(planar)).pixels, COLORS)


def test_luma_and_chroma_become_colors():
    ycbcr = np.asarray(Image.fromarray(COLORS).convert("YCbCr"))
    loaded = load_image(dicom(ycbcr, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(np.asarray(loaded.pixels).astype(int) - COLORS).max() <= 3  # rounded twice


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless])
def test_other_transfer_syntaxes_are_decoded(syntax):
    dataset = dataset_of(ALL_16)
    if syntax is RLELossless:
        dataset.compress(RLELossless)
    dataset.file_meta.TransferSyntaxUID = syntax
    np.testing.assert_allclose(gray(written(dataset)), ALL_16 / 257, rtol=1e-6)


@pytest.mark.parametrize(("syntax", "form"), [(JPEGBaseline8Bit, "JPEG"), (JPEG2000Lossless, "JPEG2000")])
def test_what_pillow_decodes_is_decoded(syntax, form):
    pixels = np.asarray(Image.linear_gradient("L").resize((16, 16)))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **({"no_jp2": True} if form == "JPEG2000" else {"quality": 100}))
    dataset = dataset_of(pixels)
    dataset.PixelData = encapsulate([file.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    assert np.abs(gray(written(dataset)) - pixels).max() <= (1 if form == "JPEG" else 0)


def test_a_file_a_path_and_a_stream_are_the_same_image(tmp_path):
    data = dicom(ALL_16[:8, :9])
    path = tmp_path / "chest.dcm"
    path.write_bytes(data)
    with path.open("rb") as file:
        file.seek(7)
        for source in (path, str(path), file, data):
            np.testing.assert_array_equal(load_image(source, channels=1).pixels, gray(data))


def test_folders_hold_dicom_files(tmp_path):
    for name in ("a.dcm", "b.DCM", "c.dicom"):
        (tmp_path / name).write_bytes(dicom(RAMP))
    paths = find_images(tmp_path)
    assert [path.name for path in paths] == ["a.dcm", "b.DCM"]
    height, width = RAMP.shape
    plain = Preprocessing((height, width), "none", (0.0,), (1.0,))
    for _, image in PreparedImages(paths, plain):
        np.testing.assert_allclose(image.pixels[0] * 255, RAMP, rtol=1e-6)


def test_a_model_sees_all_bits():
    preprocessing = Preprocessing(256, "none", (0.0,), (1.0,))
    found = prepare(load_image(dicom(ALL_16), channels=1), preprocessing)
    np.testing.assert_allclose(found[0] * 65535, ALL_16, rtol=1e-6)


# --- what is refused


def refusal(data: bytes, channels: int = 1) -> ImageError:
    with pytest.raises(ImageError) as caught:
        load_image(data, channels)
    assert caught.value.subject == f"{len(data)} bytes"
    assert caught.value.exit_code == 3
    return caught.value


def without(*names: str) -> bytes:
    dataset = dataset_of(RAMP)
    for name in names:
        delattr(dataset, name)
    return written(dataset)


@pytest.mark.parametrize("name", ["PixelData", "Rows", "Columns"])
def test_a_file_without_an_image_is_refused_by_what_it_is(name):
    assert "without an image (Secondary Capture Image Storage)" in refusal(without(name)).why


def test_a_report_is_not_an_image():
    dataset = dataset_of(RAMP)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    del dataset.PixelData
    assert "Basic Text SR Storage" in refusal(written(dataset)).why
    del dataset.SOPClassUID
    assert "without an image (of no stated kind)" in refusal(written(dataset)).why


@pytest.mark.parametrize(
    ("pixels", "elements"),
    [
        (RAMP, {"PhotometricInterpretation": "PALETTE COLOR"}),
        (RAMP, {"PhotometricInterpretation": "RGB"}),
        (COLORS, {"PhotometricInterpretation": "MONOCHROME2"}),
        (COLORS.astype(np.uint16), {}),
        (RAMP.astype(np.uint32), {}),
        (RAMP, {"SamplesPerPixel": 2}),
        (RAMP, {"Rows": 0}),
        (RAMP, {"Columns": 0}),
    ],
    ids=str,
)
def test_pixels_of_a_kind_without_a_stated_conversion_are_refused(pixels, elements):
    error = refusal(dicom(pixels, **elements))
    assert error.why.startswith("stores ")
    assert "MONOCHROME2" in error.fix


@pytest.mark.parametrize(
    "name", ["PhotometricInterpretation", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation"]
)
def test_a_missing_element_is_damage(name):
    assert "cannot be decoded" in refusal(without(name)).why


@pytest.mark.parametrize("syntax", [JPEGLSLossless, MPEG2MPML])
def test_a_compression_that_nothing_here_decodes_is_named_with_a_way_out(syntax):
    dataset = dataset_of(RAMP)
    dataset.PixelData = encapsulate([b"\xff\xd8" + bytes(20)])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    error = refusal(written(dataset))
    assert syntax.name in error.why
    assert "gdcmconv" in error.fix


def test_a_deflated_file_is_refused_before_it_is_inflated():
    dataset = dataset_of(np.zeros((2000, 2000), np.uint8))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data = written(dataset)
    assert len(data) < 10_000
    assert refusal(data).why == "is deflated"


def test_the_limit_is_on_the_pixels_of_the_header():
    data = dicom(np.zeros((20, 30), np.uint8))
    assert load_image(data, 1, most_pixels=600).pixels.size == (30, 20)
    with pytest.raises(ImageError) as caught:
        load_image(data, 1, most_pixels=599)
    assert caught.value.why == "is 30x20 pixels, more than the limit of 599"
    huge = dicom(RAMP, Rows=65535, Columns=65535)
    assert "65535x65535" in refusal(huge).why


@pytest.mark.parametrize(
    "elements",
    [
        window(50, 0),
        window(50, -5),
        window(50, 0.5),
        window(50, 0, VOILUTFunction="LINEAR_EXACT"),
        window(50, 80, VOILUTFunction="CUBIC"),
        {"RescaleSlope": 0, "RescaleIntercept": 0},
    ],
    ids=str,
)
def test_a_window_or_slope_that_shows_nothing_is_refused(elements):
    assert refusal(dicom(RAMP, **elements)).fix == "repair it"


def test_a_window_that_is_not_a_number_is_refused():
    data = dicom(RAMP, **window(50, 81))
    for number in (b"nan", b"inf", b"abc"):
        place = data.index(b"\x28\x00\x50\x10DS") + 8
        assert data[place : place + 4] == b"50.0" or data[place : place + 2] == b"50"
        dataset = dataset_of(RAMP, **window(1234, 81))
        text = written(dataset).replace(b"1234", number.ljust(4))
        refusal(text)


@pytest.mark.parametrize("step", range(20))
def test_a_cut_file_is_refused(step):
    data = dicom(ALL_16[:16, :16], **window(50, 81))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of a cut file before it fails
        refusal(data[: 133 + (len(data) - 134) * step // 19])


@pytest.mark.slow
def test_changed_bytes_are_refused_or_read_but_never_another_error():
    dataset = dataset_of(ALL_16[:6, :6], **window(50, 81), RescaleSlope=2, RescaleIntercept=1)
    whole = written(dataset)
    dataset.compress(RLELossless)
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in (whole, written(dataset)):
            for _ in range(400):
                changed = bytearray(data)
                for place in rng.integers(132, len(data) - 60, rng.integers(1, 6)):
                    changed[place] = rng.integers(256)
                with contextlib.suppress(ImageError):
                    assert load_image(bytes(changed), channels=1).channels == 1


def test_nested_sequences_end():
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    sequence = b"\x40\x00\x30\xa7SQ\0\0\xff\xff\xff\xff"
    head = dicom(RAMP)
    start = head.index(b"\x08\x00\x16\x00UI")
    refusal(head[:start] + (sequence + item) * 5_000)


# --- without pydicom


def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    (tmp_path / "a.dcm").write_bytes(dicom(RAMP))
    for load in (
        lambda: load_image(tmp_path / "a.dcm"),
        lambda: list(PreparedImages([tmp_path / "a.dcm"], Preprocessing(), max_bad=None)),
        lambda: read_dicom(io.BytesIO(), "a", 1),
    ):
        with pytest.raises(MissingPackageError) as caught:
            load()
        assert caught.value.subject == "pydicom"
        assert "dicom" in caught.value.fix


def test_pydicom_is_imported_only_for_a_dicom_file(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    code = (
        "import sys\nfrom densenet_deploy.runtime.images import load_image\nload_image(sys.argv[1])\n"
        "assert not any(name.startswith('pydicom') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], check=True)
