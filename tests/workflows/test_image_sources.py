"""Which images a list of sources names: files, folders, patterns, tables and URLs, in order."""

from __future__ import annotations

import glob
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from densenet_deploy.cli import main
from densenet_deploy.errors import DataError, InputError, MissingPackageError, ResourceError, UsageError
from densenet_deploy.workflows.image_sources import _matches, image_names


def test_an_image_in_memory_is_refused_with_the_way_out():
    with pytest.raises(UsageError, match="Classifier"):
        image_names([Image.new("RGB", (2, 2))])


def test_sources_are_named_in_their_order_and_folders_are_sorted(images, tmp_path):
    one = str(images / "0" / "same.png")
    names = image_names([images / "3", f"{images}/[45]/*.png", one, tmp_path / "gone.png", one])
    assert names == (*(f"{images}/{number}/same.png" for number in (3, 4, 5)), one, f"{tmp_path}/gone.png", one)
    assert image_names(one) == image_names([one]) == (one,)


def test_a_pattern_that_matches_nothing_is_an_error(tmp_path):
    with pytest.raises(InputError) as caught:
        image_names([tmp_path / "*.png"])
    assert caught.value.subject == str(tmp_path / "*.png")


@pytest.mark.parametrize(
    "text",
    [
        "file\na.png\nsub/b.png\n",
        "\ufefffile;age\r\na.png;3\r\n\r\nsub/b.png;4\r\n",
        "id\tfile\n1\ta.png\n2\tsub/b.png",
    ],
)
def test_a_csv_names_files_relative_to_its_folder(text, tmp_path):
    (tmp_path / "list.csv").write_text(text, newline="")
    assert image_names(tmp_path / "list.csv") == (str(tmp_path / "a.png"), str(tmp_path / "sub" / "b.png"))


def test_a_csv_may_name_absolute_paths_and_urls(tmp_path):
    (tmp_path / "list.csv").write_text(f'file\n{os.sep}a.png\ns3://cats/1.png\n"b,c.png"\n')
    assert image_names(tmp_path / "list.csv") == (f"{os.sep}a.png", "s3://cats/1.png", str(tmp_path / "b,c.png"))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no column"),
        ("path\na.png\n", "no column"),
        ("file\n", "names no image"),
        ("file,age\na.png,3\n,4\n", "row 2"),
        ("file\na,b.png\n", "line 2"),
    ],
)
def test_a_csv_of_another_form_is_refused_with_its_line(text, word, tmp_path):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        image_names(tmp_path / "list.csv")
    assert caught.value.subject == str(tmp_path / "list.csv")
    assert word in caught.value.why


def test_a_parquet_file_names_what_a_csv_does(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"age": [1, 2], "file": ["a.png", "s3://cats/1.png"]}), tmp_path / "list.parquet")
    assert image_names(tmp_path / "list.parquet") == (str(tmp_path / "a.png"), "s3://cats/1.png")
    wrong = {"age": [1]}, {"file": [1]}, {"file": [None, "a.png"]}, {"file": pa.array([], pa.string())}
    for columns in wrong:
        pq.write_table(pa.table(columns), tmp_path / "wrong.parquet")
        with pytest.raises(DataError):
            image_names(tmp_path / "wrong.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "list.parquet").read_bytes()[:-9])
    with pytest.raises(DataError) as caught:
        image_names(tmp_path / "cut.parquet")
    assert "Parquet" in caught.value.why


@pytest.fixture
def store(images):
    """URLs of a store in memory: two images in a folder, and a text."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for name in ("b", "a"):
        system.pipe_file(f"/cats/{name}.png", (images / "0" / "same.png").read_bytes())
    system.pipe_file("/cats/note.txt", b"text")
    yield "memory://cats"
    system.rm("/cats", recursive=True)


def test_urls_name_images_folders_and_patterns(store):
    both = ("memory:///cats/a.png", "memory:///cats/b.png")
    assert image_names(store) == image_names(f"{store}/*.png") == both
    assert image_names([f"{store}/b.png"]) == ("memory://cats/b.png",)
    with pytest.raises(InputError):
        image_names(f"{store}/*.jpg")


def test_a_store_without_its_package_and_an_unknown_one_are_refused():
    pytest.importorskip("fsspec")
    with pytest.raises(InputError):
        image_names("nosuchstore://cats/*.png")


def test_urls_without_fsspec_name_the_extra(monkeypatch):
    monkeypatch.setattr("densenet_deploy.packages.is_installed", lambda package: package != "fsspec")
    with pytest.raises(MissingPackageError) as caught:
        image_names("s3://cats/*.png")
    assert "scale" in caught.value.fix


def test_the_command_takes_urls(tiny_onnx, images, capsys):
    pytest.importorskip("fsspec")
    url = f"file://{images}/0/same.png"
    assert main(["run", str(tiny_onnx), url, "--json"]) == 0
    (there,) = json.loads(capsys.readouterr().out)["predictions"]
    assert there["file"] == url
    assert main(["run", str(tiny_onnx), str(images / "0" / "same.png"), "--json"]) == 0
    (here,) = json.loads(capsys.readouterr().out)["predictions"]
    assert there["top"] == here["top"]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Files below the working folder, some of them hidden, and links that form a loop."""
    for name in ("a.png", "sub/b.png", "sub/deep/c.png", "sub/.d.png", ".hidden/e.png", "[1].png", "other/f.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


PATTERNS = (
    *("*.png", "./*.png", "**/*.png", "sub/**/*.png", "s*/*.png", "*/deep/c.png", "*/*/*", "sub/.*", ".hid*/*"),
    *("[[]1].png", "{here}/**/*.png", "{here}/[!a]*/b.png", "sub/../*.png", "**/deep/*", "**/**/b.png", "a.png/*"),
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_means_what_it_means_to_glob(pattern, tree):
    pattern = pattern.format(here=tree)
    expected = sorted({str(Path(name)) for name in glob.glob(pattern, recursive=True)})  # noqa: PTH207
    assert sorted({str(Path(name)) for name in _matches("", Path(pattern).parts)}) == expected


def test_a_pattern_follows_no_loop_of_links_and_names_an_image_once(tree):
    assert image_names("[as]*") == ("a.png", "sub/b.png", "sub/deep/c.png")
    (tree / "sub" / "up").symlink_to("..")
    (tree / "sub" / "again").symlink_to("deep")
    assert image_names("**/*.png") == ("[1].png", "a.png", "sub/b.png", "sub/deep/c.png")
    assert image_names("s*/up/*.png") == ("sub/up/[1].png", "sub/up/a.png")
    assert image_names("sub/de*") == image_names("sub/deep/**") == ("sub/deep/c.png",)


def test_a_folder_that_a_pattern_cannot_read_is_an_error(tree, monkeypatch):
    def refused(place):
        if str(place).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(place))
        return real(place)

    for name in ("scandir", "listdir"):
        real = getattr(os, name)
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refused)
            with pytest.raises(ResourceError, match="permission denied"):
                image_names("**/*.png" if name == "scandir" else "sub/*/*.png")
