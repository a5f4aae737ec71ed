"""Accuracy on labelled images, by hand and by `evaluate`, and disagreements of two models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import densenet_deploy as dd
from densenet_deploy.artifacts import sha256_of
from densenet_deploy.cli import main
from densenet_deploy.errors import DataError, InputError, ModelFileError, UsageError
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.serving.batch.engine import LocalEngine
from densenet_deploy.workflows import job_workers
from densenet_deploy.workflows.evaluate import EvaluateOptions, evaluate
from densenet_deploy.workflows.evaluation.report import EvaluateReport
from densenet_deploy.workflows.load import load
from tests.conftest import DIGITS
from tests.workflows.evaluation.colours import painted, runner


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_one_image_in_every_class_is_right_once_in_ten_and_among_five_half_the_time(tiny_onnx, images, batch):
    report = evaluate(tiny_onnx, images, EvaluateOptions(batch=batch))
    assert (report.top1, report.top5, report.count) == (0.1, 0.5, 10)


def test_a_checkpoint_is_evaluated_too(checkpoint, images):
    report = evaluate(checkpoint, images)
    assert (report.top1, report.backend) == (0.1, "torch")
    (assumed,) = report.notes
    assert assumed.startswith("the model does not state image_size")


@pytest.mark.parametrize(
    "form", [lambda one: one.module, lambda one: one.module.state_dict()], ids=["module", "weights"]
)
def test_what_has_no_file_is_evaluated_and_has_no_hash(checkpoint, images, form):
    report = evaluate(form(load(checkpoint)), images, image_size=32)
    assert (report.top1, report.sha256) == (0.1, None)


def test_data_that_are_not_a_path_are_refused(tiny_onnx, images):
    with pytest.raises(UsageError, match="is not a path"):
        evaluate(tiny_onnx, [(images / "0", 0)])


def test_the_evaluation_is_plain_json_and_readable(tiny_onnx, images):
    report = evaluate(tiny_onnx, images)
    facts = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (facts["top1"], facts["top5"], facts["count"]) == (0.1, 0.5, 10)
    assert facts["images_per_second"] == pytest.approx(10 / facts["seconds"])
    untrained, assumed = facts["notes"]
    assert "untrained" in untrained
    assert assumed.startswith("the model does not state")
    assert "top-1 10.00%, top-5 50.00% on 10 images" in report.to_text()


def test_the_file_and_the_images_are_told_apart_by_their_hashes(tiny_onnx, images):
    report = evaluate(tiny_onnx, images, EvaluateOptions(against=load(tiny_onnx)))
    assert report.sha256 == report.against.sha256 == report.second.sha256 == sha256_of(tiny_onnx)
    assert evaluate(load(tiny_onnx.read_bytes()), images).sha256 is None
    with open_runner(tiny_onnx) as run:
        assert evaluate(run, images).sha256 is None
    assert len(report.truth_sha256) == 64
    assert report.second.truth_sha256 == report.truth_sha256


@pytest.fixture
def one_broken(images, tmp_path):
    """The same folders, with one file that is not an image."""
    for folder in images.iterdir():
        (tmp_path / folder.name).mkdir()
        (tmp_path / folder.name / "same.png").write_bytes((folder / "same.png").read_bytes())
    (tmp_path / "3" / "page.jpg").write_text("<html>404</html>")
    return tmp_path


def test_a_broken_image_is_an_error_unless_it_is_allowed(tiny_onnx, one_broken):
    with pytest.raises(DataError):
        evaluate(tiny_onnx, one_broken)
    report = evaluate(tiny_onnx, one_broken, EvaluateOptions(max_bad=1))
    assert (report.count, [bad.file.name for bad in report.bad]) == (10, ["page.jpg"])
    assert report.to_json()["bad"][0]["file"].endswith("page.jpg")
    assert "page.jpg" in report.to_text()


@pytest.mark.parametrize("count", [3, 11])
def test_without_labels_there_must_be_as_many_folders_as_classes(tiny_onnx, images, tmp_path, count):
    for index in range(count):
        (tmp_path / f"{index:02}").mkdir()
        (tmp_path / f"{index:02}" / "same.png").write_bytes((images / "0" / "same.png").read_bytes())
    with pytest.raises(DataError) as caught:
        evaluate(tiny_onnx, tmp_path)
    assert caught.value.subject == str(tmp_path)
    assert str(count) in caught.value.why


def test_a_flat_folder_with_its_classes_in_a_file_gives_what_folders_give(digits_onnx, tmp_path):
    flat, lines = tmp_path / "flat", []
    flat.mkdir()
    for path in sorted((DIGITS / "held_out").glob("*/*.png"))[::6]:
        name = f"{path.parent.name}_{path.name}"
        (flat / name).write_bytes(path.read_bytes())
        (tmp_path / "tree" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / path.parent.name / path.name).write_bytes(path.read_bytes())
        lines.append(f"{name} {path.parent.name}")
    truth = tmp_path / "truth.txt"
    truth.write_text("\n".join(lines[:-1]))
    by_file = evaluate(digits_onnx, flat, EvaluateOptions(ground_truth=truth))
    assert by_file.count == len(lines) - 1
    assert any("1 images" in note for note in by_file.notes)
    truth.write_text("\n".join([*lines, "gone.png 3"]))
    with pytest.raises(DataError) as caught:
        evaluate(digits_onnx, flat, EvaluateOptions(ground_truth=truth))
    assert caught.value.subject == str(flat / "gone.png")
    by_file = evaluate(digits_onnx, flat, EvaluateOptions(ground_truth=truth, max_bad=1))
    by_folder = evaluate(digits_onnx, tmp_path / "tree")
    assert [bad.file.name for bad in by_file.bad] == ["gone.png"]
    assert (by_file.top1, by_file.count) == (by_folder.top1, by_folder.count)
    assert by_file.classes == by_folder.classes


def test_classes_confusions_and_calibration_add_up(digits_onnx):
    report = evaluate(digits_onnx, DIGITS / "held_out")
    facts = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert [entry["label"] for entry in facts["classes"]] == list("0123456789")
    assert sum(entry["count"] for entry in facts["classes"]) == 360
    assert sum(entry["right"] for entry in facts["classes"]) == round(facts["top1"] * 360)
    wrong = [entry for entry in facts["confusion"] if entry["truth"] != entry["predicted"]]
    assert sum(entry["count"] for entry in wrong) == 360 - round(facts["top1"] * 360) > 0
    assert 0 < facts["calibration_error"] < 0.1
    assert sum(part["count"] for part in facts["reliability"]) == 360
    text = report.to_text()
    assert "calibration error" in text
    assert "weakest classes" in text
    assert "most frequent confusions" in text


def test_if_all_is_right_there_is_no_weak_class(digits_onnx, tmp_path):
    (tmp_path / "7").symlink_to(DIGITS / "held_out" / "7")
    report = evaluate(digits_onnx, tmp_path)
    assert report.top1 == 1
    assert "weakest" not in report.to_text()
    assert "confusions" not in report.to_text()


def test_disagreements_are_listed_with_their_files(digits_onnx, tiny_onnx):
    report = evaluate(digits_onnx, DIGITS / "held_out", EvaluateOptions(against=tiny_onnx))
    other = report.against
    assert other is not None
    both_right = 360 * report.top1 - other.only_first_right
    assert both_right == pytest.approx(360 * other.top1 - other.only_second_right)
    assert 100 < len(other.disagreements) <= 360 - both_right
    for found in other.disagreements:
        assert found.first != found.second
        assert found.file.parent.name == str(found.truth)
    facts = json.loads(json.dumps(report.to_json(), allow_nan=False))["against"]
    assert facts["top1_agreement"] == pytest.approx(1 - len(other.disagreements) / 360)
    assert facts["disagreements"][0]["file"].endswith(".png")
    assert 0 < facts["disagreements"][0]["first_score"] <= 1
    lines = report.to_text().splitlines()
    assert lines[-1] == f"… and {len(other.disagreements) - 20} more; --json lists all"
    assert lines[-2].startswith(f"  {other.disagreements[19].file}: ")
    untrained, _assumed = report.notes
    assert untrained.startswith(f"{tiny_onnx}: untrained")


def test_a_model_agrees_with_itself_on_another_backend(tiny_onnx, images):
    options = EvaluateOptions(against=tiny_onnx, against_backend="openvino")
    against = evaluate(tiny_onnx, images, options).against
    assert against is not None
    assert (against.top1_agreement, against.disagreements, against.backend) == (1.0, (), "openvino")


def test_a_missing_second_model_is_refused_before_the_first_runs(tiny_onnx, tmp_path):
    with pytest.raises(InputError) as caught:
        evaluate(tiny_onnx, tmp_path / "unread", EvaluateOptions(against=tmp_path / "none.onnx"))
    assert caught.value.subject == str(tmp_path / "none.onnx")


def test_a_runner_is_evaluated_and_stays_open(tiny_onnx, images):
    with open_runner(tiny_onnx) as opened:
        report = evaluate(opened, str(images))
        assert opened.is_usable
    assert (report.top1, report.model, report.backend) == (0.1, "onnxruntime", "onnxruntime")


def test_a_report_reads_its_own_json(tiny_onnx, images):
    report = evaluate(tiny_onnx, images, EvaluateOptions(against=tiny_onnx))
    facts = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert facts["task"] == "multiclass"
    assert EvaluateReport.from_json(facts) == report


def test_a_stated_task_decides_what_is_measured(tiny_onnx, images):
    """Every folder holds the same image, so each label is positive once and never ranked above another image."""
    report = evaluate(tiny_onnx, images, task="multilabel")
    assert (report.task, report.top1, report.auroc, report.average_precision) == ("multilabel", None, 0.5, 0.1)
    assert [(one.count, one.positives) for one in report.by_label] == [(10, 1)] * 10


def test_a_model_of_features_is_refused(tiny_onnx, images):
    with pytest.raises(ModelFileError) as caught:
        evaluate(tiny_onnx, images, task="features")
    assert (caught.value.subject, caught.value.exit_code) == (str(tiny_onnx), 3)


def test_a_csv_gives_what_folders_give(digits_onnx, tmp_path):
    paths = sorted((DIGITS / "held_out").glob("*/*.png"))[::40]
    for path in paths:
        (tmp_path / "tree" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "tree" / path.parent.name)
    lines = [f"tree/{path.parent.name}/{path.name},{path.parent.name}" for path in paths]
    (tmp_path / "val.csv").write_text("\n".join(["file,label", *lines]))
    by_csv, by_folder = evaluate(digits_onnx, tmp_path / "val.csv"), evaluate(digits_onnx, tmp_path / "tree")
    assert (by_csv.count, by_csv.top1, by_csv.classes) == (9, by_folder.top1, by_folder.classes)


def test_a_csv_that_names_a_missing_image_is_refused_whatever_may_be_unreadable(tiny_onnx, images, tmp_path):
    (tmp_path / "val.csv").write_text(f"file,label\n{images}/0/same.png,0\n{images}/0/gone.png,0\n")
    with pytest.raises(DataError) as caught:
        evaluate(tiny_onnx, tmp_path / "val.csv", EvaluateOptions(max_bad=9))
    assert caught.value.why.startswith("line 3, column 'file'")


def test_an_unreadable_image_of_a_csv_is_counted(tmp_path):
    painted(tmp_path, {"a.png": (200, 0, 0), "b.png": (0, 0, 0)})
    (tmp_path / "bad.png").write_text("<html>")
    (tmp_path / "val.csv").write_text("file,red,green,blue\nbad.png,1,1,1\na.png,1,0,0\nb.png,0,0,1\n")
    report = evaluate(runner(), tmp_path / "val.csv", EvaluateOptions(max_bad=1, batch=1))
    assert (report.count, [one.positives for one in report.by_label]) == (2, [1, 0, 1])
    assert [bad.file for bad in report.bad] == [tmp_path / "bad.png"]


def test_two_models_of_labels_are_compared_by_their_figures(tiny_onnx, images):
    known = load(tiny_onnx, task="multilabel")
    report = evaluate(known, images, EvaluateOptions(against=known, against_backend="openvino"))
    assert report.against is not None
    assert (report.against.auroc, report.against.shared, report.against.backend) == (0.5, 10, "openvino")
    assert report.against.difference == {"auroc": 0.0, "average_precision": 0.0, "f1": 0.0}
    assert len(report.against.by_label) == 10


def test_stated_facts_apply_to_both_models(tiny_onnx, images):
    labels = [f"{n}" for n in range(10)][::-1]
    options = EvaluateOptions(against=tiny_onnx, against_backend="openvino")
    report = evaluate(tiny_onnx, images, options, task="multilabel", labels=labels, thresholds=0.3)
    assert report.against.difference == {"auroc": 0.0, "average_precision": 0.0, "f1": 0.0}
    assert [one.label for one in report.against.by_label] == labels
    given = evaluate(tiny_onnx, images, EvaluateOptions(against=load(tiny_onnx, mean=0.9, std=0.1)), mean=0.5, std=0.5)
    assert (given.against.top1_agreement, given.against.shared) == (1.0, 10)


def test_a_fact_that_the_second_model_contradicts_is_refused_with_its_name(tiny_onnx, digits_onnx, images, tmp_path):
    dynamic = onnx.load(tiny_onnx)
    for axis in (2, 3):
        dynamic.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    onnx.save(dynamic, tmp_path / "any.onnx")
    with pytest.raises(UsageError) as caught:
        evaluate(tmp_path / "any.onnx", images, EvaluateOptions(against=digits_onnx), image_size=48)
    assert (caught.value.subject, caught.value.why) == ("image-size=48", "digits takes 32 pixels")


def test_two_tasks_are_not_compared(tiny_onnx, images):
    with pytest.raises(DataError) as caught:
        evaluate(load(tiny_onnx, task="multilabel"), images, EvaluateOptions(against=tiny_onnx))
    assert caught.value.subject == str(tiny_onnx)
    assert "multiclass" in caught.value.why


def test_a_csv_takes_no_ground_truth(tiny_onnx, tmp_path):
    with pytest.raises(UsageError) as caught:
        evaluate(tiny_onnx, tmp_path / "val.csv", EvaluateOptions(ground_truth=tmp_path / "truth.txt"))
    assert caught.value.subject == "ground-truth"


def test_stated_labels_name_the_classes(tiny_onnx, images):
    report = evaluate(tiny_onnx, images, labels=[f"{n}" for n in range(10)][::-1])
    assert {part.index: part.label for part in report.classes}[0] == "9"


def test_progress_counts_the_images(tiny_onnx, images):
    steps = []
    evaluate(tiny_onnx, images, EvaluateOptions(batch=4), progress=lambda *step: steps.append(step))
    assert steps == [("evaluate", 0, 10), ("evaluate", 4, 10), ("evaluate", 8, 10)]


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"max_bad": -1}, {"decode_threads": 0}, {"against_backend": "openvino"}]
)
def test_invalid_options_are_refused(wrong):
    with pytest.raises(UsageError):
        EvaluateOptions(**wrong)


def test_models_with_other_labels_are_not_compared(tiny_onnx, images):
    names = tuple(map(str, range(10)))
    model, other = load(tiny_onnx, labels=names), load(tiny_onnx, labels=names[::-1])
    with pytest.raises(DataError) as caught:
        evaluate(model, images, EvaluateOptions(against=other))
    assert caught.value.subject == "tiny"


def test_nothing_can_be_stated_of_an_open_runner(tiny_onnx, images):
    with open_runner(tiny_onnx) as opened, pytest.raises(UsageError) as caught:
        evaluate(opened, images, mean=0.5)
    assert caught.value.subject == "mean"


def test_a_figure_measured_with_fast_decoding_says_so(tiny_onnx, images):
    exact, fast = (evaluate(tiny_onnx, images, EvaluateOptions(fast_decode=is_fast)) for is_fast in (False, True))
    assert (exact.input.fast_decode, fast.to_json()["input"]["fast_decode"]) == (False, True)
    assert exact.input.shape == (3, 32, 32)
    assert [note for note in fast.notes if note not in exact.notes] == [
        note for note in fast.notes if "decoded fast" in note
    ]
    assert len(fast.notes) == len(exact.notes) + 1
    assert EvaluateReport.from_json(json.loads(json.dumps(fast.to_json()))).input == fast.input


@pytest.fixture
def in_processes(monkeypatch):
    """Workers of `--engine ray` as two processes of this machine: the same program and messages, without a cluster."""
    monkeypatch.setattr(job_workers, "_ray", lambda job, *_: LocalEngine(job, 2))


@pytest.fixture(scope="module")
def digits_with_bad(tmp_path_factory):
    """Eight images of every digit, and three files that are not images; a CSV of the same files with made-up labels."""
    folder = tmp_path_factory.mktemp("digits") / "tree"
    for path in sorted((DIGITS / "held_out").glob("*/*.png")):
        target = folder / path.parent.name / path.name
        if not target.parent.exists() or len(list(target.parent.iterdir())) < 8:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    for name in ("0/0000a.png", "3/text.png", "9/zzz.png"):
        (folder / name).write_text("text")
    rng = np.random.default_rng(0)
    files = sorted(folder.glob("*/*.png"))
    lines = [",".join(map(str, ("file", *range(10))))]
    lines += [",".join([str(path), *map(str, rng.integers(0, 2, 10))]) for path in files]
    (folder.parent / "labels.csv").write_text("\n".join(lines))
    return folder


def judged(report):
    """The JSON of a report, without what a clock measured."""
    facts = report.to_json()
    for part in (facts, facts["against"] or {}):
        for name in ("seconds", "images_per_second"):
            part.pop(name, None)
    return facts


def same_on_workers(model, data, **stated):
    """Evaluate here and by workers; check that all but the time is the same, and return it."""
    against = stated.pop("against", None)
    reports = [
        evaluate(model, data, EvaluateOptions(5, 3, engine=engine, against=against), **stated)
        for engine in ("local", "ray")
    ]
    here, there = map(judged, reports)
    assert here == there
    assert there["count"] == 80
    return there


@pytest.mark.slow
@pytest.mark.parametrize("shard", [5, 17, 256])
def test_workers_find_the_same_figures_whatever_their_shards(
    digits_onnx, digits_with_bad, in_processes, shard, monkeypatch
):
    monkeypatch.setattr("densenet_deploy.workflows.evaluate._SHARD", shard)
    found = same_on_workers(digits_onnx, digits_with_bad)
    assert found["top1"] > 0.9
    assert [Path(bad["file"]).name for bad in found["bad"]] == ["0000a.png", "text.png", "zzz.png"]


@pytest.mark.slow
def test_workers_find_the_same_figures_of_labels_and_numbers(digits_onnx, digits_with_bad, in_processes):
    table = digits_with_bad.parent / "labels.csv"
    assert same_on_workers(digits_onnx, table, task="multilabel")["auroc"] is not None
    assert same_on_workers(digits_onnx, table, task="regression")["mae"] > 0


@pytest.mark.slow
def test_workers_compare_two_models_and_say_what_was_assumed(digits_onnx, tiny_onnx, digits_with_bad, in_processes):
    found = same_on_workers(dd.load(tiny_onnx), digits_with_bad, against=digits_onnx)
    assert found["against"]["shared"] == 80
    assert found["against"]["disagreements"]
    assert any("untrained" in note for note in found["notes"])


@pytest.mark.slow
def test_too_many_bad_images_are_the_same_error_by_workers(digits_onnx, digits_with_bad, in_processes, monkeypatch):
    monkeypatch.setattr("densenet_deploy.workflows.evaluate._SHARD", 5)
    errors = []
    for engine in ("local", "ray"):
        with pytest.raises(DataError) as caught:
            evaluate(digits_onnx, digits_with_bad, EvaluateOptions(5, 2, engine=engine))
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert "0000a.png" in errors[0]
    assert "unreadable images: 3, allowed: 2" in errors[0]


def test_where_no_image_can_be_read_workers_say_so(digits_onnx, in_processes, tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "a.png").write_text("text")
    with pytest.raises(DataError, match="no readable image"):
        evaluate(digits_onnx, tmp_path, EvaluateOptions(max_bad=1, engine="ray"))


def test_the_command_takes_the_engine(digits_onnx, digits_with_bad, in_processes, capsys):
    words = ["evaluate", str(digits_onnx), "--data", str(digits_with_bad), "--max-bad", "3", "--json"]
    assert main(words) == 0
    local = json.loads(capsys.readouterr().out)
    assert main([*words, "--engine", "ray", "--workers", "2", "--address", "auto"]) == 0
    ray = json.loads(capsys.readouterr().out)
    for facts in (local, ray):
        for name in ("seconds", "images_per_second", "argv"):
            del facts[name]
    assert local == ray


def test_options_of_a_cluster_and_of_this_machine_are_not_mixed(tiny_onnx, images):
    for options, subject in (
        ({"engine": "spark"}, "spark"),
        ({"workers": 2}, "workers=2"),
        ({"address": "auto"}, "address=auto"),
        ({"engine": "ray", "decode_threads": 2}, "decode-threads=2"),
        ({"engine": "ray", "workers": 0}, "workers=0"),
    ):
        with pytest.raises(UsageError) as caught:
            EvaluateOptions(**options)
        assert caught.value.subject == subject
    with open_runner(tiny_onnx) as one, pytest.raises(UsageError, match="engine=ray"):
        evaluate(one, images, EvaluateOptions(engine="ray"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_ray_cluster_finds_the_same_figures(digits_onnx, digits_with_bad, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr("densenet_deploy.workflows.evaluate._SHARD", 10)
    same_on_workers(digits_onnx, digits_with_bad)
