"""Rows of every task, as JSON Lines, CSV and Parquet: the same exact answers; bad images with a reason."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from densenet_deploy.errors import DataError, UnknownNameError
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.preprocess import PreparedImage
from densenet_deploy.serving.batch.formats import FORMATS, CsvRows, JsonRows, ParquetRows, format_named
from densenet_deploy.serving.batch.rows import PredictionRows, RowLayout
from tests.function_runner import FunctionRunner

LOGITS = np.array([0.5, -1.25, 3.0], np.float32)


def layout_of(task, labels=(), top_k=5, name="logits"):
    runner = FunctionRunner(lambda batch: {name: np.zeros((len(batch), 3), np.float32)})
    classifier = Classifier(runner, task=task, labels=list(labels))
    return classifier, RowLayout.of(classifier, 3, top_k)


FILES = ["a.png", "b.png"]


def rows_of(task, labels=(), top_k=5):
    classifier, layout = layout_of(task, labels, top_k)
    rows = PredictionRows(classifier, layout)
    (good,) = rows.of_batch(["a.png"], [PreparedImage(LOGITS, ("alpha was dropped",))], LOGITS[None])
    return layout, [good, rows.refused("b.png", "is text")]


SOFTMAX = np.exp(np.float64(LOGITS)) / np.exp(np.float64(LOGITS)).sum()


def test_a_row_of_classes_holds_the_best_and_the_ranking():
    layout, (good, bad) = rows_of("multiclass", ["x", "y", "z"], top_k=2)
    assert list(good) == list(bad) == list(layout.columns)
    assert (good["index"], good["label"], good["error"]) == (2, "z", None)
    assert [(best["index"], best["label"]) for best in good["top"]] == [(2, "z"), (0, "x")]
    np.testing.assert_allclose([best["score"] for best in good["top"]], SOFTMAX[[2, 0]], rtol=1e-15)
    assert good["score"] == good["top"][0]["score"]
    assert good["notes"] == ["alpha was dropped"]
    assert bad == dict.fromkeys(layout.columns) | {"file": "b.png", "error": "is text", "notes": []}


def test_no_more_classes_are_listed_than_there_are():
    layout, (good, _) = rows_of("multiclass", top_k=9)
    assert layout.top_k == len(good["top"]) == 3
    assert good["label"] is None


def test_a_row_of_labels_holds_all_scores_in_order_and_what_is_positive():
    layout, (good, _) = rows_of("multilabel", ["x", "y", "x"])
    np.testing.assert_allclose(good["scores"], 1 / (1 + np.exp(-np.float64(LOGITS))), rtol=1e-15)
    assert good["positive"] == ["x (0)", "x (2)"]
    assert layout.thresholds == (0.5,)


def test_rows_of_a_regression_and_of_features_hold_the_numbers():
    assert rows_of("regression")[1][0]["values"] == LOGITS.tolist()
    _, (features, _) = rows_of("features")
    assert (features["length"], features["features"]) == (3, LOGITS.tolist())
    assert features["norm"] == pytest.approx(float(np.linalg.norm(LOGITS)), abs=0)


def test_csv_has_a_column_for_every_fact():
    layout, rows = rows_of("multiclass", ["x", "y", "z"], top_k=2)
    header, good, bad = csv.reader(io.StringIO(CsvRows(layout).encoded(rows).decode()))
    assert header == ["file", "index", "label", "score", "top2_index", "top2_label", "top2_score", "error", "notes"]
    assert good[:3] == ["a.png", "2", "z"]
    assert float(good[3]) == rows[0]["score"]
    assert (good[4], good[-1]) == ("0", "alpha was dropped")
    assert bad == ["b.png", *[""] * 6, "is text", ""]


@pytest.mark.parametrize(
    ("task", "columns"),
    [("multilabel", "positive x y z"), ("regression", "x y z"), ("features", "length norm features")],
)
def test_csv_columns_of_the_other_tasks(task, columns):
    layout, rows = rows_of(task, ["x", "y", "z"] if task != "features" else ())
    header, good, bad = csv.reader(io.StringIO(CsvRows(layout).encoded(rows).decode()))
    assert header == ["file", *columns.split(), "error", "notes"]
    assert len(good) == len(bad) == len(header)
    assert bad[1:-2] == [""] * (len(header) - 3)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_csv_columns_have_names_of_their_own(task):
    layout = RowLayout(task, ("x", "file", "error"))
    assert [name for name in layout.csv_columns() if name != "positive"] == [
        "file",
        "x",
        "file (1)",
        "error (2)",
        "error",
        "notes",
    ]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression", "features"])
def test_files_are_counted_and_joined_to_the_rows_of_one(name, task, tmp_path):
    layout, rows = rows_of(task)
    form = format_named(name)(layout)
    parts = [tmp_path / f"{number}{form.suffix}" for number in range(2)]
    for part in parts:
        part.write_bytes(form.encoded(rows))
        assert form.bad_among(part, FILES) == 1
    out = tmp_path / f"all{form.suffix}"
    form.join(parts, out)
    assert form.bad_among(out, FILES * 2) == 2
    assert form.encoded(rows) == form.encoded(rows)
    if name != "parquet":  # which keeps a group of rows for each part
        assert out.read_bytes() == form.encoded([*rows, *rows])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*(p.name for p in parts), out.name])


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression", "features"])
def test_parquet_holds_the_rows_under_a_schema_that_bad_images_do_not_change(task, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    layout, rows = rows_of(task)
    for name, some in (("both", rows), ("bad", rows[1:])):
        (tmp_path / name).write_bytes(ParquetRows(layout).encoded(some))
    table = pq.read_table(tmp_path / "both")
    assert table.to_pylist() == [dict(row) for row in rows]
    assert table.schema == pq.read_schema(tmp_path / "bad")
    assert json.loads(table.schema.metadata[b"densenet_deploy"])["task"] == task


def test_a_name_that_utf8_cannot_hold_is_escaped_in_every_format(tmp_path):
    layout, rows = rows_of("regression")
    row = {**rows[0], "file": "a\udc80.png"}
    assert b"a\\udc80.png" in CsvRows(layout).encoded([row])
    assert json.loads(JsonRows(layout).encoded([row]))["file"] == "a\udc80.png"
    assert b"a\\udc80.png" in ParquetRows(layout).encoded([row])


@pytest.mark.parametrize("name", ["a\rb.png", "a\r\nb.png", "a\nb.png", 'a",b.png', "=a.png", " a.png"])
def test_any_name_is_one_row_of_a_csv(name, tmp_path):
    layout, rows = rows_of("multiclass")
    path = tmp_path / "a.csv"
    path.write_bytes(CsvRows(layout).encoded([{**rows[0], "file": name}]))
    with path.open(encoding="utf-8", newline="") as file:
        (read,) = csv.DictReader(file)
    assert (read["file"], float(read["score"])) == (name, rows[0]["score"])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("data", [b"", b"file,index\n", b"PAR1 but cut", b'{"file": 1}\n'])
def test_a_file_of_something_else_is_refused(name, data, tmp_path):
    form = format_named(name)(layout_of("multiclass")[1])
    path = tmp_path / "part"
    path.write_bytes(data)
    if (name, data) == ("jsonl", b""):
        assert form.bad_among(path, []) == 0
        return
    with pytest.raises(DataError) as caught:
        form.bad_among(path, FILES)
    assert caught.value.subject == str(path)


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_other_images_and_cut_files_are_refused(name, tmp_path):
    layout, rows = rows_of("features")
    form = format_named(name)(layout)
    path = tmp_path / "part"
    path.write_bytes(form.encoded(rows))
    for files, words in ((FILES[:1], "2 rows"), (FILES[::-1], "row 1 is of a.png, not of b.png")):
        with pytest.raises(DataError) as caught:
            form.bad_among(path, files)
        assert words in caught.value.why
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError):
        form.bad_among(path, FILES)


def test_every_flipped_byte_of_the_pages_of_a_parquet_file_is_noticed(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    layout, rows = rows_of("multiclass")
    path = tmp_path / "part"
    whole = ParquetRows(layout).encoded(rows)
    path.write_bytes(whole)
    group = pq.ParquetFile(path).metadata.row_group(0)
    for number in range(group.num_columns):
        column = group.column(number)
        start = column.dictionary_page_offset or column.data_page_offset
        last = start + column.total_compressed_size - 1
        path.write_bytes(whole[:last] + bytes([whole[last] ^ 1]) + whole[last + 1 :])
        with pytest.raises(DataError):
            ParquetRows(layout).bad_among(path, FILES)


def test_features_longer_than_a_cell_of_csv_are_read_back(tmp_path):
    layout, rows = rows_of("features")
    path = tmp_path / "part"
    path.write_bytes(CsvRows(layout).encoded([{**rows[0], "features": [0.1234567] * 20_000}]))
    assert path.stat().st_size > csv.field_size_limit() == 131072
    assert CsvRows(layout).bad_among(path, FILES[:1]) == 0
    assert csv.field_size_limit() == 131072


def test_an_unknown_format_names_the_known_ones():
    with pytest.raises(UnknownNameError) as caught:
        format_named("parket")
    assert "parquet" in caught.value.fix
