"""CSVs of labels: what each task reads from them, and what is refused, with its line and column."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from densenet_deploy.errors import DataError, InputError
from densenet_deploy.workflows.evaluation.label_table import LabelTable

CHEST = ("Edema", "Effusion", "No Finding")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "c,d.png", "sub/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def _table(folder: Path, text: str | bytes) -> LabelTable:
    file = folder / "labels.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return LabelTable.read(file)


def _refused(folder: Path, text: str | bytes, method: str = "classes", labels: tuple[str, ...] = (), count: int = 3):
    with pytest.raises(DataError) as caught:
        getattr(_table(folder, text), method)(labels, count)
    assert caught.value.subject == str(folder / "labels.csv")
    return caught.value


def test_classes_by_index_relative_to_the_csv(folder):
    found = _table(folder, f"file,label\nsub/e.png,2\n./a.png, 0 \n{folder}/b.png,1\n").classes((), 3)
    assert list(found.items()) == [(folder / "sub/e.png", 2), (folder / "a.png", 0), (folder / "b.png", 1)]


def test_classes_by_label_and_a_label_counts_more_than_an_index(folder):
    text = 'file,label\r\n"c,d.png","tench, Tinca"\r\na.png,0\r\n\r\nb.png,1\r\n'
    found = _table(folder, b"\xef\xbb\xbf" + text.encode()).classes(("1", "tench, Tinca", "0"), 3)
    assert list(found.values()) == [1, 2, 0]
    assert _table(folder, "file,label\na.png,1\nb.png,0\n").classes(("cat", "dog"), 2) == {
        folder / "a.png": 1, folder / "b.png": 0,
    }  # fmt: skip


def test_an_unknown_number_of_classes_checks_nothing(folder):
    assert _table(folder, "file,label\na.png,7\n").classes((), None) == {folder / "a.png": 7}


def test_labels_are_matched_by_name_and_unknown_cells_are_nan(folder):
    text = "file,No Finding,Edema,Effusion\na.png,1,0,-1\nb.png,,NaN,1.0\nsub/e.png,0.0,1,-1.0\n"
    found = _table(folder, text).label_rows(CHEST, 3)
    shown = {path.name: tuple(None if math.isnan(one) else one for one in row) for path, row in found.items()}
    assert shown == {"a.png": (0, None, 1), "b.png": (None, 1, None), "e.png": (1, None, 0)}


def test_without_labels_columns_are_outputs_in_order(folder):
    assert _table(folder, "file,x,y\na.png,1,0\n").label_rows((), 2) == {folder / "a.png": (1, 0)}
    assert _table(folder, "file,x,y\na.png,1,0\n").label_rows((), None) == {folder / "a.png": (1, 0)}


def test_numbers(folder):
    text = "file,weight,age\na.png,-1,61.5\nb.png,1e3,0\n"
    assert _table(folder, text).numbers(("age", "weight"), 2) == {
        folder / "a.png": (61.5, -1.0), folder / "b.png": (0.0, 1000.0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("path,label\na.png,0\n", "line 1: the first column is 'path'"),
        ("\nfile\na.png\n", "line 2: has no column after 'file'"),
        ("file,x,x\na.png,0,1\n", "line 1: column 'x' appears 2 times"),
        ("file,x,\na.png,0,1\n", "line 1: a column has no name"),
        ("file,label\n", "names no image"),
        ("file,label\na.png\n", "line 2: has 1 cells, the header 2"),
        ("file,label\na.png,0\n\nb.png,0,1\n", "line 4: has 3 cells, the header 2"),
        ("file,label\na.png,0\ngone.png,0\n", "line 3, column 'file': there is no file 'gone.png'"),
        ("file,label\nsub,0\n", "line 2, column 'file': there is no file 'sub'"),
        ("file,label\n,0\n", "line 2, column 'file': there is no file ''"),
        (
            "file,label\na.png,0\nsub/../a.png,1\n",
            "line 3, column 'file': 'sub/../a.png' is already in line 2",
        ),
        ('file,label\na.png,"0\n', "line 2: unexpected end of data"),
        (b"file,label\na\xff.png,0\n", "is not UTF-8 at byte 12"),
    ],
)
def test_what_is_not_a_csv_about_images_is_refused(folder, text, why):
    assert _refused(folder, text).why.startswith(why)


@pytest.mark.parametrize(
    ("text", "labels", "why"),
    [
        ("file,class\na.png,0\n", (), "line 1: has the columns 'class'; a multiclass model needs one, 'label'"),
        ("file,label,more\na.png,0,1\n", (), "line 1: has the columns 'label', 'more'"),
        ("file,label\na.png,0\nb.png,3\n", (), "line 3, column 'label': is class 3, the model has classes 0 to 2"),
        ("file,label\na.png,-1\n", (), "line 2, column 'label': '-1' is neither a label nor an index"),
        ("file,label\na.png,²\n", (), "line 2, column 'label': '²' is neither"),
        ("file,label\na.png,cat\n", (), "line 2, column 'label': 'cat' is neither a label nor an index"),
        ("file,label\na.png,cat\n", ("dog", "cow"), "line 2, column 'label': 'cat' is neither a label nor an index"),
        ("file,label\na.png,cat\nb.png,1\n", ("cat", "dog"), "line 3, column 'label': '1' is not a label of the model"),
        ("file,label\na.png,cat\n", ("cat", "cat"), "line 2, column 'label': 'cat' is the label of several classes"),
    ],
)
def test_what_is_not_a_class_of_the_model_is_refused(folder, text, labels, why):
    assert _refused(folder, text, labels=labels).why.startswith(why)


def test_a_misspelt_class_is_told_the_nearest(folder):
    fix = _refused(folder, "file,label\na.png,cat\nb.png,dgo\n", labels=("cat", "dog")).fix
    assert fix == "did you mean 'dog'?"


@pytest.mark.parametrize(
    ("text", "labels", "why"),
    [
        ("file,Edema,Effusion\na.png,1,0\n", CHEST, "line 1: has no column for 'No Finding'"),
        ("file,Edema,Efusion,No Finding\na.png,1,0,0\n", CHEST, "line 1, column 'Efusion': is not a label"),
        ("file,x,y\na.png,1,0\n", (), "line 1: has 2 columns after 'file', the model has 3 outputs and no labels"),
        ("file,x,y,z\na.png,1,0,0\n", ("x", "x", "y"), "'x' is the label of 2 outputs"),
        ("file,x,y,z\na.png,1,0,2\n", (), "line 2, column 'z': is '2', not 1, 0"),
        ("file,x,y,z\na.png,1,yes,0\n", (), "line 2, column 'y': is 'yes', not 1, 0"),
        ("file,x,y,z\na.png,0.5,1,0\n", (), "line 2, column 'x': is '0.5', not 1, 0"),
        ("file,x,y,z\na.png,inf,1,0\n", (), "line 2, column 'x': is 'inf', not 1, 0"),
    ],
)
def test_labels_that_do_not_fit_are_refused(folder, text, labels, why):
    assert _refused(folder, text, "label_rows", labels).why.startswith(why)


@pytest.mark.parametrize("cell", ["", "nan", "inf", "-inf", "1e999", "old", "1_0", "1,5"])
def test_what_is_not_a_number_is_refused(folder, cell):
    why = _refused(folder, f'file,weight,age\na.png,1,2\nb.png,7,"{cell}"\n', "numbers", count=2).why
    assert why.startswith(f"line 3, column 'age': is '{cell}', not a finite number")


def test_columns_are_named_as_far_as_they_are_few(folder):
    names = tuple(f"label{number}" for number in range(8))
    why = _refused(folder, "file,label7\na.png,1\n", "label_rows", names, 8).why
    assert why.endswith("no column for 'label0', 'label1', 'label2', 'label3', 'label4' and 2 more")
    why = _refused(folder, "file,label7,label6,label5\na.png,1,1,1\n", "label_rows", names, 8).why
    assert why.endswith("no column for 'label0', 'label1', 'label2', 'label3', 'label4'")


def test_a_missing_csv_is_an_input_error(tmp_path):
    with pytest.raises(InputError) as caught:
        LabelTable.read(str(tmp_path / "none.csv"))
    assert caught.value.subject == str(tmp_path / "none.csv")


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_cells_may_be_separated_by_semicolons_and_tabs(folder, mark, quote):
    rows = [(f"{quote}file{quote}", "Edema", '"Effusion, left"', "No; Finding"), ("a.png", "1", "0", "-1")]
    if mark == ";":
        rows[0] = (*rows[0][:3], '"No; Finding"')
    text = "".join(mark.join(row) + "\n" for row in rows)
    found = _table(folder, text).label_rows(("No; Finding", "Effusion, left", "Edema"), 3)
    assert [str(value) for value in found[folder / "a.png"]] == ["nan", "0.0", "1.0"]


def test_the_header_decides_what_separates_cells(folder):
    assert _refused(folder, "file,label\na.png;0\n").why == "line 2: has 1 cells, the header 2"
    found = _table(folder, "file;label\na.png;tench, Tinca\n").classes(("cat", "tench, Tinca"), 2)
    assert found == {folder / "a.png": 1}


@pytest.mark.parametrize(("yes", "no"), [("True", "False"), ("TRUE", "FALSE"), ("true", "false")])
def test_true_and_false_are_1_and_0(folder, yes, no):
    found = _table(folder, f"file,Edema,Effusion\na.png,{yes},{no}\n").label_rows(("Edema", "Effusion"), 2)
    assert found[folder / "a.png"] == (1, 0)
    assert "is 'yes'" in _refused(folder, "file,x\na.png,yes\n", "label_rows", count=1).why
    assert "not a finite number" in _refused(folder, f"file,x\na.png,{yes}\n", "numbers", count=1).why
