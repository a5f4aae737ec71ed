"""Training as a workflow: what comes out, what goes on with it, transfer, distillation, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import densenet_deploy as dd
from densenet_deploy.errors import ModelFileError, OutputExistsError, UsageError
from densenet_deploy.training.options import TrainOptions
from densenet_deploy.workflows.train.train import train
from tests.training.tiny import ARCHITECTURE, FACTS, write_classes

QUICK = TrainOptions(epochs=3, batch_size=8, flip=False)
FILES = {"state.pt", "best.safetensors", "last.safetensors", "metrics.jsonl", "curves.png"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("data") / "squares")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dd.Model:
    """A finished training, with its folder; not to be changed."""
    options = TrainOptions(epochs=8, batch_size=8, flip=False, lr=0.2)
    return train(data, options, out=tmp_path_factory.mktemp("out") / "run", **FACTS)


def test_the_report_the_files_and_the_model_agree(trained: dd.Model, data: Path) -> None:
    report = trained.report
    folder = report.checkpoint.parent
    assert {path.name for path in folder.iterdir()} == FILES
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(1, 9))
    tops = [record["top1"] for record in records]
    assert report.top1 == max(tops) == tops[report.best_epoch - 1]
    assert report.best_epoch == 1 + tops.index(max(tops))
    assert (report.epochs, report.training_images, report.validation_images, report.classes) == (8, 36, 4, 2)
    assert report.loss == records[-1]["loss"]
    assert records[0]["images"] == 32  # four full batches of eight
    assert trained.manifest.labels == ("dark", "light")
    assert trained.manifest.assumed == ()
    loaded = dd.load(report.last)
    assert loaded.manifest.weights.sha256 == report.weights_sha256


def test_it_learns_what_evaluate_measures(trained: dd.Model, data: Path, tmp_path: Path) -> None:
    """The file of the best epoch reaches the reported top-1 on the same images, by the command for it."""
    report = trained.report
    assert report.top1 == 1.0
    unseen = write_classes(tmp_path / "unseen", 50, seed=9)
    assert dd.evaluate(report.checkpoint, unseen).top1 > 0.95


def test_export_needs_no_further_facts(trained: dd.Model, data: Path) -> None:
    onnx = dd.export(trained.report.checkpoint)
    assert onnx.manifest.labels == ("dark", "light")
    assert onnx.manifest.preprocessing.mean == (0.5,) * 3
    assert onnx.manifest.task == "multiclass"
    assert not any("assumed" in note for note in onnx.report.notes)
    assert dd.Classifier(onnx.runner())(data / "light" / "000.png").top[0].label == "light"


def test_the_last_validation_is_that_of_evaluate(data: Path, tmp_path: Path) -> None:
    held = write_classes(tmp_path / "val", 37, seed=3)
    report = train(data, QUICK, val=held, out=tmp_path / "run", **FACTS).report
    measured = dd.evaluate(report.last, held, backend="torch")
    assert report.history[-1].top1 == measured.top1
    assert report.history[-1].calibration_error == pytest.approx(measured.calibration_error, abs=1e-6)


def test_without_a_folder_the_best_network_stays_in_memory(data: Path, tmp_path: Path) -> None:
    on_disk = train(data, QUICK, out=tmp_path / "run", **FACTS)
    in_memory = train(data, QUICK, **FACTS)
    assert in_memory.report.checkpoint is in_memory.report.curves is None
    assert in_memory.report.weights_sha256 == on_disk.report.weights_sha256
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(in_memory.module(images), dd.load(on_disk.report.checkpoint).module(images))


@pytest.mark.slow
@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_resumed_training_ends_at_the_bits_of_a_whole_one(data: Path, tmp_path: Path, done: int) -> None:
    """Interrupted while an epoch trains; files that the run could not write any more are written on resuming."""
    whole = train(data, QUICK, out=tmp_path / "whole", **FACTS).report

    def stop(stage: str, step: int = 0, total: int | None = None) -> None:
        if stage.startswith("train") and step == 4 * done + 2:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    if done < QUICK.epochs:
        with pytest.raises(KeyboardInterrupt):
            train(data, QUICK, out=out, progress=stop, **FACTS)
    else:
        train(data, QUICK, out=out, **FACTS)
    for name in ("best.safetensors", "metrics.jsonl"):
        (out / name).unlink(missing_ok=True)
    (out / ".state.pt.0123456789abcdef.tmp").write_bytes(b"left by a killed process")
    report = train(data, QUICK, out=out, resume=True, **FACTS).report
    assert report.resumed_from == done
    assert report.weights_sha256 == whole.weights_sha256
    assert {path.name for path in out.iterdir()} == FILES
    for name in ("best.safetensors", "last.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_resumed_training_has_the_same_options_and_data(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(data, QUICK, out=out, **FACTS)
    before = (out / "state.pt").read_bytes()
    other = write_classes(tmp_path / "squares", seed=5)
    (other / "dark" / "000.png").unlink()
    changes = [
        (data, {"options": TrainOptions(epochs=4, batch_size=8, flip=False)}, "epochs"),
        (other, {}, "data"),
        (data, {"mean": 0.25}, "preprocessing"),
    ]
    for images, given, subject in changes:
        with pytest.raises(UsageError) as caught:
            train(images, given.pop("options", QUICK), out=out, resume=True, **{**FACTS, **given})
        assert caught.value.subject == subject
    assert (out / "state.pt").read_bytes() == before


def test_another_training_is_not_replaced_unasked(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = train(data, QUICK, out=out, **FACTS).report
    with pytest.raises(OutputExistsError):
        train(data, QUICK, out=out, **FACTS)
    again = train(data, QUICK, out=out, force=True, **FACTS).report
    assert again.weights_sha256 == first.weights_sha256
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "best.safetensors").write_bytes(b"of somebody")
    with pytest.raises(OutputExistsError):
        train(data, QUICK, out=tmp_path / "other", resume=True, **FACTS)
    assert (tmp_path / "other" / "best.safetensors").read_bytes() == b"of somebody"


def test_resuming_nothing_begins_and_says_so(data: Path, tmp_path: Path) -> None:
    report = train(data, QUICK, out=tmp_path / "run", resume=True, **FACTS).report
    assert "there was nothing to resume: the training began" in report.notes
    assert report.resumed_from is None


def test_the_shards_of_a_training_that_goes_on_are_its_own(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = TrainOptions(epochs=2, batch_size=8, shards=2)
    first = train(data, options, out=out, **FACTS).report
    assert first.shards == 2
    assert any("2 shards of 4 images" in note for note in first.notes)
    again = train(data, TrainOptions(epochs=2, batch_size=8), out=out, resume=True, **FACTS).report
    assert (again.shards, again.weights_sha256) == (2, first.weights_sha256)


@pytest.mark.slow
def test_the_average_is_what_is_kept(data: Path, tmp_path: Path) -> None:
    plain = train(data, QUICK, out=tmp_path / "plain", **FACTS).report
    options = TrainOptions(epochs=3, batch_size=8, flip=False, ema=0.5)
    averaged = train(data, options, out=tmp_path / "run", **FACTS).report
    assert averaged.weights_sha256 != plain.weights_sha256
    state = torch.load(averaged.checkpoint.parent / "state.pt", weights_only=True)
    last = dd.load(averaged.last).module.state_dict()
    assert torch.equal(last["classifier.weight"], state["trainer"]["average"]["classifier.weight"])
    assert not torch.equal(last["classifier.weight"], state["trainer"]["network"]["classifier.weight"])
    assert averaged.loss == plain.loss  # the average is kept, not trained


def test_other_classes_get_a_new_classifier_on_the_same_features(trained: dd.Model, tmp_path: Path) -> None:
    three = write_classes(tmp_path / "three", 10, ("a", "b", "c"))
    options = TrainOptions(epochs=1, batch_size=8, freeze="features")
    model = train(three, options, weights=trained.report.checkpoint)
    assert model.manifest.labels == ("a", "b", "c")
    assert "a new classifier of 3 classes was put on best" in model.report.notes
    before, after = dd.load(trained.report.checkpoint).module.state_dict(), model.module.state_dict()
    features = [name for name in before if name.startswith("features.") and "num_batches" not in name]
    assert all(torch.equal(before[name], after[name]) for name in features)
    assert model.manifest.preprocessing == trained.manifest.preprocessing


def test_the_same_classes_keep_their_classifier_and_its_order(trained: dd.Model, data: Path) -> None:
    options = TrainOptions(epochs=1, batch_size=8, lr=0.0)
    model = train(data, options, weights=trained.report.checkpoint)
    assert any("the classifier of best was kept" in note for note in model.report.notes)
    before = dd.load(trained.report.checkpoint).module.state_dict()
    assert torch.equal(before["classifier.weight"], model.module.state_dict()["classifier.weight"])
    other = train(data, options, weights=trained.report.checkpoint, labels=["light", "dark"])
    assert other.manifest.labels == ("light", "dark")
    assert any("a new classifier of 2 classes" in note for note in other.report.notes)


def test_stated_labels_order_the_outputs(data: Path) -> None:
    model = train(data, QUICK, labels=["light", "dark"], **FACTS)
    assert model.manifest.labels == ("light", "dark")
    assert model.report.top1 == 1.0


@pytest.mark.slow
def test_a_student_learns_from_a_teacher_without_a_label(trained: dd.Model, data: Path, tmp_path: Path) -> None:
    """With alpha 1 the labels count for nothing: the images are in the folders of the other class."""
    wrong = tmp_path / "wrong"
    write_classes(wrong / "train", 40, seed=4)
    (wrong / "train" / "dark").rename(wrong / "train" / "x")
    (wrong / "train" / "light").rename(wrong / "train" / "dark")
    (wrong / "train" / "x").rename(wrong / "train" / "light")
    write_classes(wrong / "val", 20, seed=5)
    options = TrainOptions(epochs=8, batch_size=8, flip=False, lr=0.2, alpha=1.0, teacher=trained.report.checkpoint)
    report = train(wrong, options, architecture=ARCHITECTURE).report
    assert report.top1 > 0.9
    assert report.input.mean == (0.5,) * 3  # as the teacher's


def test_unlabelled_images_add_to_those_of_the_folders(trained: dd.Model, data: Path, tmp_path: Path) -> None:
    more = write_classes(tmp_path / "more", 10, seed=8)
    options = TrainOptions(epochs=1, batch_size=8, teacher=trained)
    report = train(data, options, unlabelled=more, architecture=ARCHITECTURE).report
    assert report.training_images == 36 + 20


def test_a_cifar_archive_trains_at_its_own_size(tmp_path: Path) -> None:
    from tests.training.test_cifar import files_of, write_archive

    archive = write_archive(tmp_path / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", files_of(10, binary=True))
    options = TrainOptions(epochs=1, batch_size=4)
    model = train(archive, options, architecture=ARCHITECTURE)
    assert (model.manifest.preprocessing.image_size, model.manifest.preprocessing.resize) == (32, 32)
    assert model.manifest.labels[0] == "class 0"
    assert (model.report.training_images, model.report.validation_images) == (10, 2)


@pytest.mark.parametrize(
    ("given", "subject"),
    [
        ({"task": "multilabel"}, "task=multilabel"),
        ({"num_classes": 3}, "num-classes=3"),
        ({"head": "features"}, "head=features"),
        ({"seed": 3}, "seed=3"),
        ({"unlabelled": "x"}, "unlabelled=x"),
        ({"resume": True}, "resume"),
    ],
)
def test_facts_that_the_data_decide_are_refused(data: Path, given: dict, subject: str) -> None:
    with pytest.raises(UsageError) as caught:
        train(data, QUICK, **{**FACTS, **given})
    assert caught.value.subject == subject


def test_a_network_of_somebody_else_is_refused(data: Path) -> None:
    other = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with pytest.raises(ModelFileError, match="not a DenseNet"):
        train(data, QUICK, weights=other)


def test_gray_images_train_networks_of_one_channel(data: Path) -> None:
    facts = {**FACTS, "channels": 1}
    model = train(data, QUICK, **facts)
    assert model.module(torch.zeros(1, 1, 8, 8)).shape == (1, 2)
    assert model.report.top1 == 1.0


def test_left_out_images_are_in_the_report(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "data", 10)
    (folder / "dark" / "003.png").write_bytes(b"no image")
    options = TrainOptions(epochs=1, batch_size=8, max_bad=1)
    report = train(folder, options, **FACTS).report
    assert [bad.file for bad in report.bad] == [folder / "dark" / "003.png"]
    assert report.training_images + report.validation_images == 19


def test_the_text_says_what_was_trained(trained: dd.Model) -> None:
    text = str(trained.report)
    assert "2 classes" in text
    assert "36 to train on, 4 to validate" in text
    assert f"{trained.report.best_epoch} of 8: top-1 100.00%" in text
    assert np.isfinite(trained.report.seconds)
