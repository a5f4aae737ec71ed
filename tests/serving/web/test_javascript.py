"""The page's JavaScript equals the Python: images to the bit, on every kind of PNG and hostile sizes, and answers."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from densenet_deploy.errors import ImageError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.feeds import TensorSpec
from densenet_deploy.runtime.images import MOST_PIXELS
from densenet_deploy.runtime.meaning import OutputMeaning
from densenet_deploy.runtime.preprocess import read_input
from tests.serving.web.javascript import (
    CHANNELS,
    NODE,
    WITHOUT_NODE,
    array_of,
    chunk,
    in_node,
    input_case,
    png_of,
    text_of,
)

pytestmark = pytest.mark.skipif(NODE is None, reason=WITHOUT_NODE)

GRAY = {"mean": (0.449,), "std": (0.226,)}
FOUR = {"mean": (0.1, 0.2, 0.3, 0.4), "std": (0.5, 0.6, 0.7, 0.8)}
SIZES = [(1, 1), (1, 37), (41, 1), (2, 1000), (1000, 3), (33, 47), (64, 64), (65, 129), (301, 200), (97, 1201)]
RESIZES = [
    Preprocessing(16, 19),
    Preprocessing((24, 10), (37, 11), interpolation="bicubic"),
    Preprocessing(20, 64, interpolation="nearest"),
    Preprocessing((31, 50), "none"),
    Preprocessing(16, 19, interpolation="bicubic", dtype="uint8"),
]


def pixels(width: int, height: int, channels: int, *, levels: int = 256, seed: int = 0) -> np.ndarray:
    """Noise over a slope: rows that differ, with all levels."""
    random = np.random.default_rng((seed, width, height))
    slope = np.linspace(0, levels - 1, width * height).reshape(height, width, 1)
    return ((slope + random.integers(0, levels // 2, (height, width, channels))) % levels).astype(np.uint16)


def saved(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def compare(cases: list[tuple[bytes, Preprocessing]], folder: Path) -> None:
    """Check that inputs and notes are the same in both languages."""
    answers = in_node([input_case(png, preprocessing) for png, preprocessing in cases], folder)
    for (png, preprocessing), answer in zip(cases, answers, strict=True):
        assert "error" not in answer, (answer, preprocessing)
        expected = read_input(png, preprocessing)
        found = array_of(answer["input"], preprocessing.dtype).reshape(expected.pixels.shape)
        apart = np.count_nonzero(found != expected.pixels)
        assert apart == 0, f"{apart} of {found.size} values of {Image.open(io.BytesIO(png))}, {preprocessing}"
        assert answer["notes"] == list(expected.notes)


@pytest.mark.parametrize("preprocessing", RESIZES, ids=str)
def test_images_of_any_size_become_the_same_bits(tmp_path: Path, preprocessing: Preprocessing) -> None:
    sizes = [size for size in SIZES if size[1] < 10 * size[0] or PIL.__version__ >= "13"]  # Pillow 12 begins with rows
    compare([(saved(Image.fromarray(pixels(*size, 3).astype(np.uint8))), preprocessing) for size in sizes], tmp_path)


def test_where_pillow_begins_with_columns(tmp_path: Path) -> None:
    """It does where the height loses more than twice as many pixels as the width: just inside, and just outside."""
    if PIL.__version__ < "13":
        pytest.skip("Pillow 12 always begins with rows")
    wide, tall = Preprocessing((20, 20), (20, 20)), Preprocessing((20, 60), (20, 60))
    cases = [(40, height, wide) for height in (59, 60, 61)] + [(40, height, tall) for height in (19, 20, 21)]
    images = [(Image.fromarray(pixels(*size, 3).astype(np.uint8)), preprocessing) for *size, preprocessing in cases]
    compare([(saved(image), preprocessing) for image, preprocessing in images], tmp_path)
    both = []
    for image, preprocessing in images:
        height, width = preprocessing.shape[1:]
        way = Image.Resampling.BILINEAR
        rows_first = image.resize((width, image.height), way).resize((width, height), way)
        both.append(image.resize((width, height), way).tobytes() == rows_first.tobytes())
    assert both == [True, True, False, True, True, False], "only these show in which order Pillow passes"


def test_every_kind_of_png_becomes_the_same_bits(tmp_path: Path) -> None:
    kinds = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 4), (3, 8), (4, 8), (4, 16)]
    kinds += [(6, 8), (6, 16)]
    palette = chunk(b"PLTE", bytes(np.random.default_rng(3).integers(0, 256, 3 * 256, np.uint8)))
    cases = []
    for color, depth in kinds:
        before = chunk(b"PLTE", palette[8 : 8 + 3 * 2**depth]) if color == 3 else b""
        for is_interlaced in (False, True):
            values = pixels(43, 29, CHANNELS[color], levels=2**depth)
            png = png_of(values, color, depth, is_interlaced=is_interlaced, before=before, filters=(0, 1, 2, 3, 4))
            cases.append((png, Preprocessing(16, 19)))
            if (color, depth) != (4, 16):  # which Pillow reads as colors, and then notes that it converts them
                cases.append((png, Preprocessing(16, 19, **GRAY)))
            if color == 6:
                cases.append((png, Preprocessing(16, 19, **FOUR)))
    compare(cases, tmp_path)


def test_gray_of_16_bits_keeps_them_in_one_channel(tmp_path: Path) -> None:
    png = png_of(pixels(50, 40, 1, levels=65536), 0, 16)
    ways = [(16, 19, "bilinear"), (16, 19, "bicubic"), (16, 64, "nearest"), (16, "none", "bilinear")]
    compare([(png, Preprocessing(size, resize, **GRAY, interpolation=way)) for size, resize, way in ways], tmp_path)
    compare([(png, Preprocessing(16, 19, **GRAY, dtype="float32"))], tmp_path)


def test_transparency_is_dropped_and_the_stored_color_stays(tmp_path: Path) -> None:
    rgba = pixels(40, 30, 4).astype(np.uint8)
    rgba[:15, :, 3] = 0
    few = Image.fromarray(rgba[:, :, :3]).quantize(16)
    images = [saved(Image.fromarray(rgba)), saved(Image.fromarray(rgba[:, :, :2], "LA")), saved(few, transparency=3)]
    images.append(png_of(pixels(20, 20, 3), 2, 8, before=chunk(b"tRNS", bytes(6))))
    compare([(png, Preprocessing(16, 19)) for png in images], tmp_path)
    compare([(images[0], Preprocessing(16, 19, **FOUR)), (images[2], Preprocessing(16, 19, **FOUR))], tmp_path)


def test_an_index_beyond_the_palette(tmp_path: Path) -> None:
    png = png_of(pixels(40, 30, 1, levels=8), 3, 8, before=chunk(b"PLTE", bytes(range(9))))
    compare([(png, Preprocessing(16, 19))], tmp_path)


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_images_are_turned_as_exif_says(tmp_path: Path, byte_order: str) -> None:
    image = Image.fromarray(pixels(31, 20, 3).astype(np.uint8))
    cases = []
    for orientation in (0, *range(1, 9), 9):
        exif = Image.Exif()
        exif.endian = byte_order
        exif[0x0110], exif[0x0112] = "a camera", orientation
        cases.append((saved(image, exif=exif), Preprocessing((16, 24), 19)))
    inputs = {array.tobytes() for array in (read_input(*case).pixels for case in cases)}
    assert len(inputs) == 8, "they differ"
    compare(cases, tmp_path)
    damaged = png_of(pixels(31, 20, 3), 2, 8, before=chunk(b"eXIf", b"MM\0*\0\0"))
    compare([(damaged, Preprocessing(16, 19))], tmp_path)


def exif_cases() -> list[tuple[bytes, int]]:
    """JPEGs and WebPs with every orientation, with none, and with EXIF data that is damaged; and their orientations."""
    image = Image.fromarray(pixels(31, 20, 3).astype(np.uint8))
    found = []
    for kind, options in (("JPEG", {"comment": b"Exif is said here, too"}), ("WEBP", {"lossless": True})):
        for orientation in (None, 0, *range(1, 9), 9):
            exif = Image.Exif()
            if orientation is not None:
                exif[0x0110], exif[0x0112] = "a camera", orientation
            file = io.BytesIO()
            image.save(file, kind, exif=exif, **options)
            found.append((file.getvalue(), orientation if orientation in range(2, 9) else 1))
        file = io.BytesIO()
        image.save(file, kind, exif=b"Exif\0\0MM\0*\0\0\0", **options)
        found.append((file.getvalue(), 1))
    return found


def test_the_orientation_of_jpegs_and_webps_is_read_and_hidden_from_the_browser(tmp_path: Path) -> None:
    cases = exif_cases()
    answers = in_node([{"call": "exif", "image": text_of(data)} for data, _ in cases], tmp_path)
    for (data, orientation), answer in zip(cases, answers, strict=True):
        assert answer["orientation"] == orientation
        hidden = io.BytesIO(array_of(answer["image"], np.uint8))
        with (
            Image.open(io.BytesIO(data)) as before,
            Image.open(hidden) as after,
        ):
            assert dict(after.getexif()) == {}
            assert np.array_equal(np.asarray(before), np.asarray(after))
    whole = cases[4][0]
    others = [b"", b"GIF89a", *(whole[:length] for length in range(0, 60, 7)), whole[:2] + b"\xff" * 9 + whole[2:]]
    answers = in_node([{"call": "exif", "image": text_of(data)} for data in others], tmp_path)
    assert all("error" not in answer for answer in answers)
    assert [answer["orientation"] for answer in answers][-1] == 3, "padding before a marker is skipped"


def test_damaged_images_are_refused_in_plain_words(tmp_path: Path) -> None:
    png = png_of(pixels(40, 30, 3), 2, 8)
    flipped = bytearray(png)
    flipped[60] ^= 1
    short = b"".join((png[:33], chunk(b"IDAT", b"x\x9c\x03\0\0\0\0\1"), chunk(b"IEND", b"")))
    large = png[:8] + chunk(b"IHDR", b"\0\0\xff\xff\0\0\xff\xff\x08\x02\0\0\0") + png[33:]
    bad = [png[:-12], png[:100], bytes(flipped), short, large, png[:33] + chunk(b"IEND", b""), png[:20]]
    answers = in_node([input_case(one, Preprocessing()) for one in bad], tmp_path)
    assert [answer.get("error", "").removeprefix("the PNG cannot be decoded: ") for answer in answers] == [
        "it ends too early",
        "it ends too early",
        "its IDAT chunk is damaged",
        "its pixels are damaged or end too early",
        "65535x65535 pixels are too many",
        "its pixels are damaged or end too early",
        "it ends too early",
    ]
    for one in bad:
        with pytest.raises(ImageError):
            read_input(one, Preprocessing())


def test_the_limit_of_pixels_is_the_one_of_python(tmp_path: Path) -> None:
    """Just inside, the pixels are missing; just outside, they are not even looked for."""
    sides = [(MOST_PIXELS, 1), (MOST_PIXELS + 1, 1)]
    heads = [chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)) for size in sides]
    bad = [b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"x") + chunk(b"IEND", b"") for head in heads]
    inside, outside = in_node([input_case(one, Preprocessing()) for one in bad], tmp_path)
    assert "damaged or end too early" in inside["error"]
    assert "too many" in outside["error"]


def test_four_channels_are_not_made_up(tmp_path: Path) -> None:
    three = Preprocessing(16, 19, **FOUR)
    rgb = png_of(pixels(20, 20, 3), 2, 8)
    canvas = {"call": "canvas", "rgba": text_of(bytes(16)), "width": 2, "height": 2, "channels": 4}
    for answer in in_node([input_case(rgb, three), canvas], tmp_path):
        assert "four channels" in answer["error"]


def test_pixels_of_a_canvas(tmp_path: Path) -> None:
    """Gray stays gray without a note; where the image is transparent, the browser may have changed colors."""
    gray = np.repeat(np.arange(4, dtype=np.uint8), 4).reshape(2, 2, 4)
    gray[..., 3] = 255
    color = np.array([[[255, 0, 0, 255], [0, 255, 0, 255]], [[0, 0, 255, 255], [9, 9, 9, 254]]], np.uint8)
    cases = [
        {"call": "canvas", "rgba": text_of(one.tobytes()), "width": 2, "height": 2, "channels": channels}
        for one in (gray, color)
        for channels in (1, 3)
    ]
    answers = in_node(cases, tmp_path)
    assert array_of(answers[0]["data"], np.uint8).tolist() == [0, 1, 2, 3]
    assert array_of(answers[1]["data"], np.uint8).tolist() == gray[..., :3].reshape(-1).tolist()
    luma = np.asarray(Image.fromarray(color[..., :3]).convert("L")).reshape(-1).tolist()
    assert array_of(answers[2]["data"], np.uint8).tolist() == luma == [76, 150, 29, 9]
    assert [answer["notes"] for answer in answers[:2]] == [[], []]
    assert answers[2]["notes"][0] == "colors are converted to gray"
    assert len(answers[3]["notes"]) == 1
    assert "transparent" in answers[3]["notes"][0]


@pytest.mark.parametrize("activation", ["none", "softmax", "sigmoid"])
@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression", "features"])
def test_answers_mean_the_same(tmp_path: Path, task: str, activation: str) -> None:
    logits = np.array([2.5, -800.0, 2.5, 0.1, 90.0, -3.0], np.float32)
    row = logits if activation == "none" else np.array([0.3, 0.0, 0.3, 0.1, 0.2, 0.7], np.float32)
    thresholds = (0.5, 0.5, 0.3, 0.1, 0.5, 0.7)
    spec = TensorSpec("out", (None, 6), np.dtype(np.float32))
    meaning = OutputMeaning(spec, task, activation, thresholds)
    facts = {"task": task, "activation": activation, "thresholds": list(thresholds)}
    (answer,) = in_node([{"call": "answer", "row": text_of(row.tobytes()), "meaning": facts}], tmp_path)
    scores = meaning.scores(row)
    np.testing.assert_allclose(answer["scores"], scores, rtol=1e-15)
    if task == "features":
        assert answer["length"] == 6
        assert answer["norm"] == pytest.approx(float(np.linalg.norm(row)), rel=1e-6)
        return
    order = [entry["index"] for entry in answer["entries"]]
    expected = range(6) if task == "regression" else np.argsort(-row, kind="stable").tolist()
    assert order == list(expected)
    if task == "multilabel":
        positive = [entry["positive"] for entry in sorted(answer["entries"], key=lambda entry: entry["index"])]
        assert positive == meaning.positive(scores).tolist()
    else:
        assert all("positive" not in entry for entry in answer["entries"])


def test_one_threshold_is_for_all_labels_and_numbers_are_finite(tmp_path: Path) -> None:
    facts = {"task": "multilabel", "activation": "none", "thresholds": [0.5]}
    row = np.array([0.0, -1e-6, 1.0], np.float32)
    bad = np.array([0.0, np.nan, 1.0], np.float32)
    good, refused = in_node(
        [{"call": "answer", "row": text_of(one.tobytes()), "meaning": facts} for one in (row, bad)], tmp_path
    )
    assert [(entry["index"], entry["positive"]) for entry in good["entries"]] == [(2, True), (0, True), (1, False)]
    assert "not finite" in refused["error"]
