"""Batch jobs from sources to files: the rows of `predict`, whatever the workers; what is there is done."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from densenet_deploy import BatchJobOptions, DensenetDeployError, predict
from densenet_deploy.cli import main
from densenet_deploy.errors import (
    DataError,
    MissingPackageError,
    OutputExistsError,
    UnknownNameError,
    UsageError,
)
from densenet_deploy.serving.batch.folder_lock import locked
from densenet_deploy.serving.batch.plan import PLAN, Plan
from densenet_deploy.workflows import batch
from densenet_deploy.workflows.batch import BatchReport
from densenet_deploy.workflows.load import load

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "held_out"


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images of digits, and one that is text."""
    folder = tmp_path_factory.mktemp("ten")
    for number, digit in enumerate(sorted(DIGITS.glob("*/*.png"))[::40]):
        shutil.copy(digit, folder / f"{number}.png")
    (folder / "45.png").write_text("text")
    assert len(list(folder.iterdir())) == 10
    return folder


SMALL = BatchJobOptions(shard_size=4, batch=3, format="jsonl")


@pytest.fixture(scope="module")
def done(digits_onnx, ten, tmp_path_factory):
    """The folder of a job of three shards, and its report."""
    out = tmp_path_factory.mktemp("job") / "rows"
    return out, predict(digits_onnx, ten, out=out, job=SMALL)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_rows_are_the_predictions_in_their_order(done, digits_onnx, ten):
    out, report = done
    assert sorted(contents(out)) == ["_plan.json", "part-00000.jsonl", "part-00001.jsonl", "part-00002.jsonl"]
    rows = [json.loads(line) for path in sorted(out.glob("part-*")) for line in path.read_text().splitlines()]
    predictions = predict(digits_onnx, ten).predictions
    assert [row["file"] for row in rows] == [prediction.file for prediction in predictions]
    assert [row["error"] for row in rows] == [prediction.error for prediction in predictions]
    for row, prediction in zip(rows, predictions, strict=True):
        if row["error"] is None:
            assert [best["index"] for best in row["top"]] == [score.index for score in prediction.top]
            # float32 logits, summed in another order in a batch
            assert row["score"] == pytest.approx(prediction.top[0].score, rel=1e-5)
    assert (report.rows, report.bad, report.shards, report.resumed, report.batch) == (10, 1, 3, 0, 3)
    assert report.out == out
    assert report.images_per_second == pytest.approx(10 / report.seconds)


def test_the_report_is_json_that_reads_itself(done):
    report = done[1]
    facts = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert BatchReport.from_json(facts) == report
    assert {"rows", "bad", "out", "shards", "resumed", "seconds", "images_per_second"} <= set(facts)
    assert str(done[0]) in str(report)


def test_workers_without_a_shard_are_noted_where_the_plan_has_fewer(digits_onnx, ten, tmp_path):
    """Not where `--resume` left fewer: another shard size is another plan."""
    out = tmp_path / "rows"
    report = predict(digits_onnx, ten, out=out, job=BatchJobOptions(10, "jsonl", 3, workers=2))
    assert any("1 of 2 workers had a shard to do" in note for note in report.notes)
    out = tmp_path / "others"
    predict(digits_onnx, ten, out=out, job=BatchJobOptions(5, "jsonl", 3, workers=2))
    (out / "part-00001.jsonl").unlink()
    again = predict(digits_onnx, ten, out=out, job=BatchJobOptions(5, "jsonl", 3, workers=2, resume=True))
    assert (again.resumed, again.notes) == (1, ())


def test_two_workers_write_the_bytes_of_one(done, digits_onnx, ten, tmp_path):
    out = tmp_path / "rows"
    report = predict(digits_onnx, ten, out=out, job=BatchJobOptions(4, "jsonl", 3, workers=2))
    assert contents(out) == contents(done[0])
    assert (report.workers, report.rows, report.bad) == (2, 10, 1)
    assert not [note for note in report.notes if "workers" in note]


def test_a_job_goes_on_with_what_is_missing_to_the_same_bytes(done, digits_onnx, ten, tmp_path):
    out = Path(shutil.copytree(done[0], tmp_path / "rows"))
    (out / "part-00001.jsonl").unlink()
    (out / ".part-00001.jsonl.0123.tmp").write_text("half")  # of a process that was killed
    kept = (out / "part-00000.jsonl").stat().st_mtime_ns
    seen: list[tuple[int, int | None]] = []
    report = predict(
        digits_onnx,
        ten,
        out=out,
        job=BatchJobOptions(4, "jsonl", 3, resume=True),
        progress=lambda _stage, done=0, total=None: seen.append((done, total)),
    )
    assert contents(out) == contents(done[0])
    assert (out / "part-00000.jsonl").stat().st_mtime_ns == kept
    assert (report.rows, report.bad, report.resumed) == (10, 1, 2)
    assert seen[-1] == (4, 4)
    again = predict(digits_onnx, ten, out=out, job=BatchJobOptions(4, "jsonl", 3, resume=True))
    assert (again.rows, again.bad, again.resumed, again.images_per_second) == (10, 1, 3, None)
    assert "nothing" in str(again)


@pytest.mark.parametrize("name", ["part-00000.jsonl", PLAN])
def test_a_job_whose_files_are_removed_meanwhile_is_not_done(done, digits_onnx, ten, tmp_path, name):
    out = tmp_path / "rows"

    def remove(_stage, done=0, _total=None):
        if done == 10:
            (out / name).unlink(missing_ok=True)

    with pytest.raises(DataError, match="is gone") as caught:
        predict(digits_onnx, ten, out=out, job=SMALL, progress=remove)
    assert caught.value.subject == str(out / name)
    if name != PLAN:
        predict(digits_onnx, ten, out=out, job=dataclasses.replace(SMALL, resume=True))
        assert contents(out) == contents(done[0])


def test_a_job_that_is_neither_resumed_nor_replaced_is_refused(done, digits_onnx, ten, tmp_path):
    with pytest.raises(OutputExistsError) as caught:
        predict(digits_onnx, ten, out=done[0], job=SMALL)
    assert caught.value.subject == str(done[0])
    (tmp_path / "part-of-a-book.txt").write_text("text")
    with pytest.raises(OutputExistsError):
        predict(digits_onnx, ten, out=tmp_path, job=SMALL)


def test_another_job_is_not_gone_on_with(done, digits_onnx, tiny_onnx, ten, tmp_path):
    before = contents(done[0])
    changed = [
        (digits_onnx, ten, {}, {"top_k": 2}, "top_k 5 then, 2 now"),
        (tiny_onnx, [ten / "0.png"], {"shard_size": 5}, {}, "other images: 10 then, 1 now"),
    ]
    for model, images, cut, more, word in changed:
        job = BatchJobOptions(**{"shard_size": 4, "batch": 3, "format": "jsonl", "resume": True} | cut)
        with pytest.raises(DataError) as caught:
            predict(model, images, out=done[0], job=job, **more)
        assert word in caught.value.why
    assert contents(done[0]) == before


def test_a_shard_of_something_else_is_refused(done, digits_onnx, ten, tmp_path):
    out = Path(shutil.copytree(done[0], tmp_path / "rows"))
    shutil.copy(out / "part-00002.jsonl", out / "part-00000.jsonl")
    with pytest.raises(DataError) as caught:
        predict(digits_onnx, ten, out=out, job=BatchJobOptions(4, "jsonl", 3, resume=True))
    assert caught.value.subject == str(out / "part-00000.jsonl")


def test_a_folder_of_shards_is_one_table(tiny_onnx, ten, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    predict(tiny_onnx, ten, out=tmp_path / "rows", job=BatchJobOptions(4, batch=10))
    table = pq.read_table(tmp_path / "rows")
    assert table.column("file").to_pylist() == sorted(map(str, ten.iterdir()))


def test_a_file_is_the_shards_one_after_the_other(done, digits_onnx, ten, tmp_path):
    out = tmp_path / "rows.jsonl"
    report = predict(digits_onnx, ten, out=out, job=BatchJobOptions(4, batch=3, workers=4))
    assert [note for note in report.notes if "3 of 4 workers" in note]
    assert out.read_bytes() == b"".join(path.read_bytes() for path in sorted(done[0].glob("part-*")))
    assert list(tmp_path.iterdir()) == [out]
    assert (report.out, report.format, report.shards) == (out, "jsonl", 3)
    with pytest.raises(OutputExistsError):
        predict(digits_onnx, ten, out=out)
    with pytest.raises(OutputExistsError):  # it is done, and what made it is not known any more
        predict(digits_onnx, ten, out=out, job=BatchJobOptions(resume=True))


def test_what_a_killed_job_left_beside_its_file_is_removed(done, digits_onnx, ten, tmp_path):
    out = tmp_path / "rows.jsonl"
    shutil.copytree(done[0], tmp_path / "rows.jsonl.parts")
    (tmp_path / ".rows.jsonl.0123456789abcdef.tmp").write_text("half")
    kept = [tmp_path / ".rows.jsonl.my.tmp", tmp_path / ".other.jsonl.0123456789abcdef.tmp"]
    for path in kept:
        path.write_text("text")
    predict(digits_onnx, ten, out=out, job=BatchJobOptions(4, batch=3, resume=True))
    assert sorted(tmp_path.iterdir()) == sorted([out, *kept])


def test_a_job_is_replaced_when_asked(done, digits_onnx, ten, tmp_path):
    out = Path(shutil.copytree(done[0], tmp_path / "rows"))
    report = predict(digits_onnx, ten, out=out, job=BatchJobOptions(10, "jsonl", force=True))
    assert sorted(contents(out)) == ["_plan.json", "part-00000.jsonl"]
    assert (report.resumed, report.shards) == (0, 1)


def test_only_what_the_plan_names_is_replaced(done, digits_onnx, ten, tmp_path):
    out = Path(shutil.copytree(done[0], tmp_path / "rows"))
    (out / "notes.txt").write_text("text")
    (out / "part-00003.jsonl").write_text("text")
    before = contents(out)
    for choice in ({"force": True}, {"resume": True}):
        with pytest.raises(OutputExistsError) as caught:
            predict(digits_onnx, ten, out=out, job=BatchJobOptions(4, "jsonl", 3, **choice))
        assert caught.value.subject == str(out / "part-00003.jsonl")
    assert contents(out) == before
    (out / "part-00003.jsonl").unlink()
    predict(digits_onnx, ten, out=out, job=BatchJobOptions(10, "csv", force=True))
    assert sorted(contents(out)) == ["_plan.json", "notes.txt", "part-00000.csv"]


@pytest.mark.parametrize("text", ["{}", None])
def test_what_lies_beside_a_plan_that_cannot_be_read_is_not_removed(text, done, digits_onnx, ten, tmp_path):
    out = Path(shutil.copytree(done[0], tmp_path / "rows"))
    plan = out / "_plan.json"
    plan.write_text(text or plan.read_text().replace('"format": "jsonl"', '"format": "xml"'))
    before = contents(out)
    with pytest.raises(DataError) as caught:
        predict(digits_onnx, ten, out=out, job=BatchJobOptions(4, "jsonl", 3, force=True))
    assert caught.value.subject == str(plan)
    assert contents(out) == before


def test_two_jobs_do_not_write_into_one_folder(done, digits_onnx, ten, tmp_path, capsys):
    pytest.importorskip("fcntl")
    out = Path(shutil.copytree(done[0], tmp_path / "rows"))
    before = contents(out)
    with locked(out):
        for words in (["--resume"], ["--force"]):
            assert main(["run", str(digits_onnx), str(ten), "-o", str(out), "--format", "jsonl", *words]) == 3
            assert "is being written by process" in capsys.readouterr().err
        with locked(tmp_path / "rows.csv.parts"), pytest.raises(OutputExistsError):
            predict(digits_onnx, ten, out=tmp_path / "rows.csv")
    assert contents(out) == before


def test_a_job_that_was_done_meanwhile_is_not_done_again(done, digits_onnx, ten, tmp_path, monkeypatch):
    """Two begin at the same time: the second one holds the folder when the first has ended."""
    out, real = tmp_path / "rows", batch.image_names

    def names_while_the_other_one_works(images):
        shutil.copytree(done[0], out)
        return real(images)

    monkeypatch.setattr(batch, "image_names", names_while_the_other_one_works)
    with pytest.raises(OutputExistsError):
        predict(digits_onnx, ten, out=out, job=SMALL)
    assert contents(out) == contents(done[0])


def test_a_disk_without_locks_is_said(digits_onnx, ten, tmp_path, monkeypatch):
    monkeypatch.setattr("densenet_deploy.serving.batch.folder_lock._refusal", lambda _: "no locks available")
    report = predict(digits_onnx, ten, out=tmp_path / "rows", job=SMALL)
    assert [note for note in report.notes if "cannot be locked" in note]
    assert sorted(contents(tmp_path / "rows"))[0] == "_plan.json"


def test_a_model_in_memory_is_that_of_its_file(done, digits_onnx, ten, tmp_path):
    predict(load(digits_onnx), ten, out=tmp_path / "rows", job=SMALL)
    mine, theirs = contents(tmp_path / "rows"), contents(done[0])
    assert mine == theirs


@pytest.mark.slow
def test_an_image_that_kills_its_process_is_a_row_of_the_job(done, digits_onnx, ten, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "PROGRAM", "tests.serving.batch.crashing_program")
    images = Path(shutil.copytree(ten, tmp_path / "images"))
    shutil.copy(ten / "0.png", images / "crash.png")
    out = tmp_path / "rows.csv"
    report = predict(digits_onnx, images, out=out, job=BatchJobOptions(batch=3))
    assert (report.rows, report.bad) == (11, 2)
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows if row["error"]] == ["45.png", "crash.png"]
    assert "SIGSEGV" in rows[-1]["error"]


@pytest.mark.parametrize(
    ("options", "subject"),
    [
        ({"shard_size": 0}, "shard-size=0"),
        ({"workers": 0}, "workers=0"),
        ({"batch": 4097}, "batch=4097"),
        ({"engine": "spark"}, "spark"),
        ({"format": "xml"}, "xml"),
        ({"address": "auto"}, "address=auto"),
        ({"resume": True, "force": True}, "resume"),
    ],
)
def test_options_out_of_range_or_of_another_kind_are_usage_errors(options, subject):
    with pytest.raises(UsageError) as caught:
        BatchJobOptions(**options)
    assert caught.value.subject == subject
    assert isinstance(caught.value, UnknownNameError) == ("=" not in subject and subject != "resume")


def test_a_table_of_images_is_not_replaced_by_its_rows(tiny_onnx, ten, tmp_path):
    table = tmp_path / "list.csv"
    table.write_text(f"file\n{ten / '0.png'}\n")
    with pytest.raises(UsageError) as caught:
        predict(tiny_onnx, [ten, table], out=tmp_path / "." / "list.csv", job=BatchJobOptions(force=True))
    assert caught.value.why == "is a source of the images"
    assert list(tmp_path.iterdir()) == [table]


def test_a_job_without_images_is_a_usage_error(tiny_onnx, tmp_path):
    with pytest.raises(UsageError) as caught:
        predict(tiny_onnx, [], out=tmp_path / "rows")
    assert caught.value.subject == "images"
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_is_not_that_of_the_file_is_a_usage_error(tiny_onnx, ten, tmp_path):
    with pytest.raises(UsageError):
        predict(tiny_onnx, ten, out=tmp_path / "rows.csv", job=BatchJobOptions(format="jsonl"))


def test_a_package_that_is_missing_is_named_before_the_work(tiny_onnx, ten, tmp_path, monkeypatch):
    monkeypatch.setattr("densenet_deploy.packages.is_installed", lambda package: package != "pyarrow")
    with pytest.raises(MissingPackageError):
        predict(tiny_onnx, ten, out=tmp_path / "rows")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_cannot_be_read_is_an_input_error(tmp_path):
    for text in ("", "{}", "[]"):
        (tmp_path / "_plan.json").write_text(text)
        with pytest.raises(DensenetDeployError) as caught:
            Plan.read(tmp_path)
        assert caught.value.exit_code == 3


def test_the_command_writes_parquet_and_ends_as_asked(digits_onnx, ten, tmp_path, capsys):
    pq = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "rows.parquet"
    assert main(["run", str(digits_onnx), str(ten), "-o", str(out), "--max-bad", "0", "--json"]) == 3
    captured = capsys.readouterr()
    assert [json.loads(captured.out)[key] for key in ("rows", "bad", "out")] == [10, 1, str(out)]
    assert json.loads(captured.err)["error"]["exit_code"] == 3
    rows = pq.read_table(out).to_pylist()
    assert [row["label"] for row in rows if row["error"] is None] == [str(label) for label in range(9)]


@pytest.mark.parametrize(("readable", "more", "code"), [(0, (), 3), (1, (), 0), (0, ("--max-bad", "2"), 0)])
def test_a_job_without_a_single_answer_fails_unless_that_was_allowed(
    digits_onnx, tmp_path, capsys, readable, more, code
):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(b"none")
    if readable:
        Image.new("RGB", (32, 32)).save(tmp_path / "0.png")
    words = ["run", str(digits_onnx), str(tmp_path / "*.png"), "-o", str(tmp_path / "rows"), "--format", "jsonl"]
    assert main([*words, *more]) == code
    captured = capsys.readouterr()
    assert "rows        2" in captured.out
    assert ("none of 2 images could be read" in captured.err) == (code == 3)


@pytest.mark.parametrize(
    "words", [["--resume"], ["--workers", "2"], ["-o", "rows.txt"], ["-o", "rows/", "--shard-size", "0"]]
)
def test_words_that_do_not_fit_are_usage_errors(words, digits_onnx, ten, capsys):
    assert main(["run", str(digits_onnx), str(ten), *words]) == 2
