"""Cases 28 to 36: images, one by one through `run` and as folders through `evaluate`.

Golden values of every kind of image, and cuts at each percent, are in `tests/runtime/test_images.py` and
`tests/runtime/test_image_damage.py`; here two files that must show the same are classified alike.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.faults.harness import Commands, arguments, peak_bytes_of, require_contract
from tests.runtime.test_images import encoded, image, palette_image, png, stored_for

CLASSES = 10


@pytest.fixture
def model(commands: Commands, tiny_onnx: Path) -> Path:
    (commands.folder / "tiny.onnx").write_bytes(tiny_onnx.read_bytes())
    return commands.folder / "tiny.onnx"


def scores(commands: Commands, model: Path, data: bytes) -> list[float]:
    path = commands.folder / "image.bin"
    path.write_bytes(data)
    (prediction,) = commands.answer("run", model, path)["predictions"]
    return [entry["score"] for entry in prediction["top"]]


def notes(commands: Commands, model: Path, data: bytes) -> str:
    path = commands.folder / "image.bin"
    path.write_bytes(data)
    return " ".join(commands.answer("run", model, path)["notes"])


@pytest.fixture
def tree(commands: Commands) -> Path:
    """One image in each of ten class folders."""
    root = commands.folder / "tree"
    for number in range(CLASSES):
        folder = root / f"class{number}"
        folder.mkdir(parents=True)
        (folder / "image.png").write_bytes(encoded(image()))
    return root


OTHER_FORMATS = {
    "28 zero bytes": (b"", "is empty"),
    "28 text": (b"no image\n", "is text"),
    "28 HTML": (b"<!DOCTYPE html><html>404</html>", "is an HTML page"),
    "35 EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is PostScript"),
    "35 PSD": (b"8BPS\0\1\0\0", "is a Photoshop file"),
    "35 PDF": (b"%PDF-1.7\n%\xe2\xe3", "is a PDF"),
}


@pytest.mark.parametrize("kind", OTHER_FORMATS)
def test_28_35_another_format_named_jpg(commands: Commands, model: Path, tree: Path, kind: str) -> None:
    data, why = OTHER_FORMATS[kind]
    path = tree / "class3" / "bad.jpg"
    path.write_bytes(data)
    commands.refused("run", model, path, says=("bad.jpg", why))
    commands.refused("evaluate", model, "--data", tree, says=("bad.jpg", why))
    answer = commands.answer("evaluate", model, "--data", tree, "--max-bad", "1")
    assert answer["count"] == CLASSES
    assert why in str(answer), "the rest goes on, and the reason is recorded"


@pytest.mark.parametrize("percent", [*range(10, 100, 10), 99])
def test_29_a_cut_jpeg_is_never_half_grey(commands: Commands, model: Path, percent: int) -> None:
    data = encoded(image(160, 120), "JPEG")
    (commands.folder / "cut.jpg").write_bytes(data[: len(data) * percent // 100])
    commands.refused("run", model, "cut.jpg", says=("cut.jpg", "cannot be decoded"))


def solid(mode: str, colour: object, form: str) -> bytes:
    return encoded(Image.new(mode, (40, 40), colour), form)  # type: ignore[arg-type]


KINDS = {
    "1-bit": (solid("1", 1, "PNG"), (255, 255, 255)),
    "grey": (solid("L", 77, "PNG"), (77, 77, 77)),
    "LA": (solid("LA", (77, 10), "PNG"), (77, 77, 77)),
    "RGBA": (solid("RGBA", (10, 20, 30, 0), "PNG"), (10, 20, 30)),
    "16-bit": (solid("I;16", 0x8001, "PNG"), (0x80, 0x80, 0x80)),
    "float": (solid("F", 1.0, "TIFF"), (255, 255, 255)),
    "CMYK": (solid("CMYK", (255, 0, 51, 51), "TIFF"), (0, 204, 163)),
    "palette": (encoded(palette_image().resize((40, 40))), (10, 20, 30)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_30_every_kind_is_its_stated_rgb(commands: Commands, model: Path, kind: str) -> None:
    data, rgb = KINDS[kind]
    assert scores(commands, model, data) == scores(commands, model, solid("RGB", rgb, "PNG"))
    assert scores(commands, model, data) != scores(commands, model, solid("RGB", (200, 10, 90), "PNG"))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_31_of_an_animation_the_first_frame_counts_and_is_noted(commands: Commands, model: Path, form: str) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    options = {"lossless": True} if form == "WEBP" else {}
    moving = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert "only the first frame is used" in notes(commands, model, moving)
    assert scores(commands, model, moving) == scores(commands, model, encoded(frames[0]))
    assert "frame" not in notes(commands, model, encoded(frames[0]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_32_exif_orientation_is_applied(commands: Commands, model: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = encoded(stored_for(orientation), exif=exif)
    assert scores(commands, model, turned) == scores(commands, model, encoded(image()))


def test_33_a_huge_header_is_refused_with_little_memory(commands: Commands, model: Path) -> None:
    (commands.folder / "huge.png").write_bytes(png(65_535, 65_535, 8, 2, b"\0" * 1_000_000))
    ended = peak_bytes_of(arguments("run", model, "huge.png"), commands.folder)
    require_contract(ended, 3, "huge.png", "65535x65535 pixels")
    assert ended.peak_bytes < 300e6


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_34_slivers_work(commands: Commands, model: Path, size: tuple[int, int]) -> None:
    assert np.isfinite(scores(commands, model, encoded(Image.new("RGB", size, (9, 90, 200))))).all()


def test_36_an_empty_folder_and_one_without_classes(commands: Commands, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    commands.refused("evaluate", model, "--data", "empty", says="empty")
    (tmp_path / "empty" / "image.png").write_bytes(encoded(image()))
    commands.refused("evaluate", model, "--data", "empty", says="empty")


def test_36_an_empty_class(commands: Commands, model: Path, tree: Path) -> None:
    (tree / "class4" / "image.png").unlink()
    commands.refused("evaluate", model, "--data", tree, says="class4")


@pytest.mark.parametrize("change", ["one too many", "one too few"])
def test_36_another_count_of_classes(commands: Commands, model: Path, tree: Path, change: str) -> None:
    if change == "one too many":
        (tree / "extra").mkdir()
        (tree / "extra" / "image.png").write_bytes(encoded(image()))
    else:
        (tree / "class9" / "image.png").unlink()
        (tree / "class9").rmdir()
    commands.refused("evaluate", model, "--data", tree, says="10")


def test_36_folders_of_other_names_than_the_labels(commands: Commands, digits_onnx: Path, tree: Path) -> None:
    """The digits are labelled; folders are neither all named after labels nor all otherwise."""
    labels = commands.answer("inspect", digits_onnx)["labels"]
    assert labels == CLASSES
    (tree / "class0").rename(tree / "0")
    commands.refused("evaluate", digits_onnx, "--data", tree, says="class1")
