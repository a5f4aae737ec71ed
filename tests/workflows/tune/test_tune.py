"""`tune` on small real models: files, measurements, resumption, limits, dry runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import (
    DataError,
    InputError,
    ModelFileError,
    OutputExistsError,
    UnknownNameError,
    UsageError,
)
from densenet_deploy.model import Model
from densenet_deploy.quantization.cache import CalibrationCache
from densenet_deploy.workflows.cast import CastOptions, cast
from densenet_deploy.workflows.load import load
from densenet_deploy.workflows.plot import pareto_points
from densenet_deploy.workflows.tune.cache import FILE_NAME
from densenet_deploy.workflows.tune.candidates import SearchSpace, TuneOptions
from densenet_deploy.workflows.tune.report import TuneReport
from densenet_deploy.workflows.tune.tune import dry_run, tune
from tests.conftest import DIGITS

SAMPLES = DIGITS.parents[1] / "calibration" / "samples"
QUICK = {"precisions": ("fp32", "fp16"), "backends": ("onnxruntime",), "threads": (1,), "device": "cpu"}
ALL = {"calibration": SAMPLES, "data": DIGITS / "held_out", "threads": (1,), "device": "cpu"}


class StopAt:
    """A listener that interrupts the work when a stage that begins so is announced."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def __call__(self, stage: str, done: int = 0, total: int | None = None) -> None:
        if stage.startswith(self.stage):
            raise KeyboardInterrupt


def _state(folder: Path) -> dict:
    return json.loads((folder / FILE_NAME).read_text())["entries"]


def _files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.fixture(scope="module")
def tuned(digits_onnx, tmp_path_factory):
    """The digits model, tuned over precisions, both recipes and both backends."""
    folder = tmp_path_factory.mktemp("tuned")
    cache = CalibrationCache(tmp_path_factory.mktemp("cache"))
    options = TuneOptions(precisions=("fp32", "fp16", "int8"), max_drop=1.0, **ALL)
    return tune([digits_onnx], options, out=folder, cache=cache), folder, options


@pytest.mark.slow
def test_the_digits_are_tuned_over_all_forms(tuned):
    report, folder, _ = tuned
    names = {one.model.name for one in report.candidates}
    made = {f"digits.{form}.onnx" for form in ("fp16", "int8.onnxruntime", "int8.openvino")}
    assert names == made | {"digits.onnx"}
    assert {path.name for path in folder.iterdir()} == made | {FILE_NAME}
    ran = {(one.form, one.backend) for one in report.candidates}
    assert ("int8.onnxruntime", "onnxruntime") in ran
    assert ("int8.onnxruntime", "openvino") not in ran
    assert ("fp16", "openvino") in ran


@pytest.mark.slow
def test_the_choice_keeps_the_limit_and_is_on_the_front(tuned):
    report, _, _ = tuned
    chosen = report.chosen
    assert chosen is not None
    assert chosen.drop_points <= 1.0
    assert chosen.top1 >= 0.98
    assert chosen.labelled == 360
    assert chosen.path.is_file()
    facts = report.to_json()
    assert chosen.limits_missed == ()
    assert TuneReport.from_json(json.loads(json.dumps(facts))).candidates == report.candidates
    assert facts["chosen"]["reason"]
    assert all(one["top1"] is not None and one["parity"]["cosine"] > 0.99 for one in facts["pareto"])
    json.dumps(facts, allow_nan=False)


@pytest.mark.slow
def test_its_json_makes_the_pareto_plot(tuned, tmp_path):
    report, _, _ = tuned
    (tmp_path / "tune.json").write_text(json.dumps(report.to_json()))
    _, points = pareto_points([tmp_path / "tune.json"])
    assert len(points) == len(report.pareto)
    assert {point.merit for point in points} == {one.top1 for one in report.pareto}


@pytest.mark.slow
def test_a_second_run_measures_nothing_and_says_the_same(tuned, digits_onnx):
    report, folder, options = tuned
    before = _files(folder)
    again = tune([digits_onnx], options, out=folder)
    assert (again.steps.done, again.candidates) == (0, report.candidates)
    assert _files(folder) == before


@pytest.mark.slow
def test_other_limits_need_no_new_files_or_answers(tuned, digits_onnx):
    _, folder, _ = tuned
    before = {name: time for name, time in _files(folder).items() if name != FILE_NAME}
    options = TuneOptions(precisions=("fp32", "fp16", "int8"), max_memory_mib=1.0, **ALL)
    report = tune([digits_onnx], options, out=folder)
    assert report.chosen is None
    assert "--max-memory 1 cannot be kept" in report.reason
    assert (report.failure.exit_code, report.steps.done) == (4, 0)
    assert before.items() <= _files(folder).items()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tiny.fp16.onnx: parity", "first round", "compare answers", "second round"])
def test_an_interrupted_run_goes_on_where_it_was(stage, tiny_onnx, tmp_path):
    options = TuneOptions(**QUICK | {"backends": ("onnxruntime", "openvino")})
    source = [tiny_onnx]
    try:
        tune(source, options, out=tmp_path, progress=StopAt(stage))
        assert stage == "second round", "the first round may have decided"
    except KeyboardInterrupt:
        pass
    kept = _state(tmp_path) if (tmp_path / FILE_NAME).exists() else {}
    resumed = tune(source, options, out=tmp_path)
    assert resumed.steps.remembered >= len(kept)
    assert kept.items() <= _state(tmp_path).items()
    uninterrupted = tune(source, options, out=tmp_path)
    assert (uninterrupted.candidates, uninterrupted.reason) == (resumed.candidates, resumed.reason)
    assert uninterrupted.steps.done == 0


@pytest.mark.slow
def test_measuring_again_keeps_the_files(tiny_onnx, tmp_path):
    options = TuneOptions(**QUICK)
    tune([tiny_onnx], options, out=tmp_path)
    file = tmp_path / "tiny.fp16.onnx"
    before = file.stat().st_mtime_ns
    again = tune([tiny_onnx], options, out=tmp_path, measure_again=True)
    assert file.stat().st_mtime_ns == before
    assert again.steps.remembered == 1
    assert again.steps.done >= 2


@pytest.mark.slow
def test_a_file_that_was_touched_is_made_again(tiny_onnx, tmp_path):
    options = TuneOptions(**QUICK)
    first = tune([tiny_onnx], options, out=tmp_path)
    file = tmp_path / "tiny.fp16.onnx"
    content = file.read_bytes()
    os.truncate(file, 100)
    with pytest.raises(OutputExistsError):
        tune([tiny_onnx], options, out=tmp_path)
    again = tune([tiny_onnx], options, out=tmp_path, force=True)
    assert file.read_bytes() == content
    assert [one.parity for one in again.candidates] == [one.parity for one in first.candidates]


@pytest.mark.slow
def test_other_calibration_images_are_another_file(tmp_path, digits_onnx):
    options = QUICK | {"precisions": ("fp32", "int8"), "calibration": SAMPLES}
    tune([digits_onnx], TuneOptions(**options, samples=64), out=tmp_path)
    before = (tmp_path / "digits.int8.onnxruntime.onnx").read_bytes()
    tune([digits_onnx], TuneOptions(**options, samples=32), out=tmp_path)
    assert (tmp_path / "digits.int8.onnxruntime.onnx").read_bytes() != before


@pytest.mark.slow
def test_variants_and_checkpoints_are_exported_and_compared(checkpoint, tmp_path):
    options = TuneOptions(**QUICK | {"precisions": ("fp32",), "variants": ("cifar-bc-10-4",)})
    report = tune([str(checkpoint)], options, out=tmp_path)
    names = {"densenet-cifar-bc-10-4", checkpoint.stem}
    assert {one.base for one in report.candidates} == names
    assert any("answers of different models" in note for note in report.notes)
    assert sum("untrained" in note for note in report.notes) == 1
    assert {one.base for one in report.pareto} == names


def test_a_dry_run_touches_nothing(tiny_onnx, tmp_path):
    folder = tmp_path / "none"
    options = TuneOptions(calibration=SAMPLES, variants=("cifar-bc-10-4",))
    report = dry_run([tiny_onnx], options, out=folder)
    assert not folder.exists()
    assert report.plan.candidates > 8
    facts = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (facts["dry_run"], facts["pareto"], facts["chosen"]) == (True, [], None)
    to_make = {Path(file["file"]).name for file in facts["plan"]["files"] if not file["up_to_date"]}
    assert {"tiny.fp16.onnx", "tiny.int8.openvino.onnx", "densenet-cifar-bc-10-4.onnx"} <= to_make
    assert "tiny.onnx" not in to_make
    assert f"{len(to_make)} files to make, {report.plan.candidates} short timings" in str(report)


@pytest.mark.slow
def test_a_dry_run_after_the_run_finds_the_files(tuned, digits_onnx):
    _, folder, options = tuned
    before = _files(folder)
    report = dry_run([digits_onnx], options, out=folder)
    assert all(file.up_to_date for file in report.plan.files)
    assert (report.plan.candidates, report.plan.comparisons) == (6, 6)
    assert _files(folder) == before


@pytest.mark.slow
def test_models_in_memory_are_written_beside_the_results(digits_onnx, checkpoint, tmp_path):
    options = TuneOptions(**QUICK | {"precisions": ("fp32",)})
    graph, module = load(digits_onnx), load(checkpoint)
    held = Model("held", graph.manifest, artifact=Artifact.open(graph.to_bytes()))
    report = tune([held, module], options, out=tmp_path)
    assert {one.model for one in report.candidates} == {tmp_path / "held.onnx", tmp_path / f"{module.name}.onnx"}
    assert tune([held, module], options, out=tmp_path).steps.done == 0


@pytest.mark.slow
@pytest.mark.parametrize("is_stated", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_16_bit_file_is_tuned_from_its_widened_weights(tiny_onnx, tmp_path, is_stated):
    cast(tiny_onnx, CastOptions("fp16"), out=tmp_path / "tiny.fp16.onnx")
    facts = {"labels": [f"class {n}" for n in range(10)]} if is_stated else {}
    report = tune([tmp_path / "tiny.fp16.onnx"], TuneOptions(**QUICK), out=tmp_path / "tune", **facts)
    assert {one.model.name: Artifact.open(one.model).precision for one in report.candidates} == {
        "tiny.onnx": "fp32",
        "tiny.fp16.onnx": "fp16",
    }
    assert any("its fp16 weights were widened to float32 first" in note for note in report.notes)
    again = dry_run([tmp_path / "tiny.fp16.onnx"], TuneOptions(**QUICK), out=tmp_path / "tune", **facts)
    assert all(file.up_to_date for file in again.plan.files)
    assert any("widened" in note for note in again.notes)


@pytest.mark.slow
def test_stated_facts_travel_with_the_files(digits_onnx, tmp_path):
    options = TuneOptions(**QUICK | {"precisions": ("fp32",)})
    report = tune([digits_onnx], options, out=tmp_path, labels=[f"digit {n}" for n in range(10)])
    assert Artifact.open(report.chosen.path).manifest.labels[0] == "digit 0"


def test_int8_without_calibration_is_left_out_with_a_note(tiny_onnx, tmp_path):
    report = dry_run([tiny_onnx], TuneOptions(), out=tmp_path)
    assert not any(file.form.startswith("int8") for file in report.plan.files)
    assert any("--calibration" in note for note in report.notes)


def test_the_space_is_filled_in():
    space = SearchSpace.of(TuneOptions(calibration=SAMPLES, goal="throughput"))
    assert [form.name for form in space.precisions][:2] == ["fp32", "fp16"]
    assert {form.name: form.backends for form in space.precisions}["int8.openvino"] == ("openvino",)
    assert space.threads[0] == 1
    assert space.batches == (1, 8, 32)
    assert SearchSpace.of(TuneOptions()).batches == (1,)
    assert SearchSpace.of(TuneOptions(precisions=("fp16",))).precisions[0].name == "fp32"


def test_a_recipe_file_is_a_form_of_its_own(tmp_path):
    file = tmp_path / "fine.toml"
    file.write_text('base = "openvino"\nobserver = "mse"\nmin-sqnr = 45.0\n')
    space = SearchSpace.of(TuneOptions(calibration=SAMPLES, recipes=(str(file), "tensorrt"), samples=64))
    form = space.precisions[-1]
    assert (form.name, form.backends) == ("int8.fine", ("openvino",))
    assert (form.quantize.observer, form.quantize.min_sqnr, form.quantize.samples) == ("mse", 45.0, 64)
    assert any("tensorrt" in note for note in space.notes)


def test_smaller_networks_are_forms_of_their_own():
    options = TuneOptions(
        calibration=SAMPLES, recipes=("openvino",), ratios=(0.25, 0.5), finetune=True, max_drop=1.0, samples=64
    )
    forms = {form.name: form for form in SearchSpace.of(options).precisions}
    assert list(forms) == [
        "fp32",
        "fp16",
        "int8.openvino.finetuned",
        "pruned-0.25",
        "pruned-0.25.int8.openvino.finetuned",
        "pruned-0.5",
        "pruned-0.5.int8.openvino.finetuned",
    ]
    half = forms["pruned-0.5.int8.openvino.finetuned"]
    assert (half.precision, half.prune.ratio, half.prune.widths, half.prune.finetune) == (
        "int8",
        0.5,
        "per-layer",
        True,
    )
    assert (half.quantize.finetune, half.quantize.samples, half.prune.samples) == (True, 64, 64)
    plain = forms["pruned-0.25"]
    assert (plain.precision, plain.quantize, plain.prune.ratio) == ("fp32", None, 0.25)
    assert set(plain.backends) == set(forms["fp32"].backends)
    assert all(forms[name].prune is None for name in ("fp32", "fp16", "int8.openvino.finetuned"))


@pytest.mark.slow
def test_pruned_forms_are_made_once_measured_and_judged(digits_onnx, tmp_path):
    options = TuneOptions(
        precisions=("int8",), recipes=("onnxruntime",), backends=("onnxruntime",), ratios=(0.5,), max_drop=3.0, **ALL
    )
    report = tune([digits_onnx], options, out=tmp_path)
    found = {one.form: one for one in report.candidates}
    assert set(found) == {"fp32", "int8.onnxruntime", "pruned-0.5", "pruned-0.5.int8.onnxruntime"}
    assert {path.name for path in tmp_path.glob("*.onnx")} == {
        "digits.int8.onnxruntime.onnx",
        "digits.pruned-0.5.onnx",
        "digits.pruned-0.5.int8.onnxruntime.onnx",
    }
    small = load(tmp_path / "digits.pruned-0.5.int8.onnxruntime.onnx")
    assert (small.precision, small.manifest.recipe) == ("int8", "onnxruntime")
    assert found["pruned-0.5"].parity.sqnr_db < 60  # its answers are its own
    before = _files(tmp_path)
    assert tune([digits_onnx], options, out=tmp_path).chosen.model == report.chosen.model
    assert {name: time for name, time in _files(tmp_path).items() if name != FILE_NAME} == {
        name: time for name, time in before.items() if name != FILE_NAME
    }
    (tmp_path / "digits.pruned-0.5.onnx").write_bytes(b"touched")
    tune([digits_onnx], options, out=tmp_path)  # is made again
    assert load(tmp_path / "digits.pruned-0.5.onnx").precision == "fp32"


@pytest.mark.parametrize(
    "options",
    [
        {"precisions": ("fp8",)},
        {"goal": "speed"},
        {"max_drop": -1.0},
        {"max_latency_ms": 0.0},
        {"max_memory_mib": 0.0},
        {"batches": (0,)},
        {"threads": (0,)},
        {"device": "tpu"},
        {"ratios": (1.0,), "calibration": SAMPLES, "max_drop": 1.0},
        {"ratios": (0.5, 0.5), "calibration": SAMPLES, "max_drop": 1.0},
        {"ratios": (0.5,), "calibration": SAMPLES},
        {"ratios": (0.5,), "max_drop": 1.0},
        {"finetune": True},
    ],
)
def test_invalid_options_are_refused(options):
    with pytest.raises(UsageError):
        TuneOptions(**options)


@pytest.mark.parametrize(
    ("names", "options", "kind", "subject"),
    [
        ((), {}, UsageError, "tune"),
        (("tiny", "tiny"), {}, UsageError, "tiny"),
        (("tiny",), {"backends": ("tenserrt",)}, UnknownNameError, "tenserrt"),
        (("tiny",), {"backends": ("torch",)}, UsageError, "torch"),
        (("tiny",), {"calibration": SAMPLES, "recipes": ("openvin",)}, UnknownNameError, "openvin"),
        (("tiny",), {"calibration": "missing"}, InputError, "missing"),
        (("tiny",), {"data": "missing"}, InputError, "missing"),
        (("missing.onnx",), {}, InputError, "missing.onnx"),
    ],
)
def test_a_faulty_request_is_refused_before_the_work(names, options, kind, subject, tiny_onnx, tmp_path):
    sources = [tiny_onnx if name == "tiny" else tmp_path / name for name in names]
    with pytest.raises(kind) as caught:
        tune(sources, TuneOptions(**options), out=tmp_path / "out")
    assert caught.value.subject.endswith(subject)
    assert list(tmp_path.iterdir()) == []


def test_the_output_has_to_be_a_folder(tiny_onnx, tmp_path):
    with pytest.raises(UsageError) as caught:
        tune([tiny_onnx], out=tmp_path / "tune.json")
    assert caught.value.subject == str(tmp_path / "tune.json")


def test_another_file_in_place_of_the_state_is_unchanged(tiny_onnx, tmp_path):
    (tmp_path / FILE_NAME).write_text("mine")
    with pytest.raises(DataError):
        tune([tiny_onnx], TuneOptions(**QUICK), out=tmp_path)
    assert (tmp_path / FILE_NAME).read_text() == "mine"


@pytest.mark.slow
def test_a_quantized_file_cannot_be_tuned(tuned, tmp_path):
    _, folder, _ = tuned
    quantized = folder / "digits.int8.openvino.onnx"
    with pytest.raises(ModelFileError) as caught:
        tune([quantized], TuneOptions(**QUICK), out=tmp_path)
    assert caught.value.subject == str(quantized)


@pytest.fixture
def labels_csv(tmp_path):
    """Forty digits, of which each label is that of a fourth."""
    lines = ["file," + ",".join(map(str, range(10)))]
    for place, path in enumerate(sorted((DIGITS / "held_out").glob("*/*.png"))[::9]):
        lines.append(f"{path}," + ",".join(str(int((place + label) % 4 == 0)) for label in range(10)))
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    return tmp_path / "labels.csv"


@pytest.mark.slow
def test_labels_of_a_csv_judge_a_multilabel_model(tiny_onnx, labels_csv, tmp_path):
    options = TuneOptions(precisions=("fp32",), backends=("onnxruntime",), threads=(1,), data=labels_csv, max_drop=1.0)
    report = tune([tiny_onnx], options, out=tmp_path / "tune", task="multilabel")
    (one,) = report.candidates
    assert (one.top1, one.labelled, one.drop_points) == (None, 40, 0.0)
    assert 0 < one.auroc < 1
    assert one.compared_on == "40 images of the labelled data"
    assert TuneReport.from_json(json.loads(json.dumps(report.to_json()))).candidates == report.candidates


@pytest.mark.slow
def test_numbers_of_a_csv_judge_a_regression_by_its_error(tiny_onnx, labels_csv, tmp_path):
    options = TuneOptions(precisions=("fp32",), backends=("onnxruntime",), threads=(1,), data=labels_csv)
    report = tune([tiny_onnx], options, out=tmp_path / "tune", task="regression")
    (one,) = report.candidates
    assert (one.top1, one.auroc, one.labelled, one.drop_points) == (None, None, 40, None)
    assert one.mae > 0
    assert f"MAE {one.mae:.4g} of 40 images" in report.reason
    assert "  MAE" in report.to_text()
    assert TuneReport.from_json(json.loads(json.dumps(report.to_json()))).candidates == report.candidates


@pytest.mark.parametrize(
    ("facts", "subject"),
    [
        ({"task": "regression", "data": "labels.csv", "max_drop": 1.0}, "--max-drop"),
        ({"task": "features", "max_drop": 1.0}, "--max-drop"),
        ({"task": "multilabel", "max_drop": 1.0}, "--max-drop"),
    ],
)
def test_an_accuracy_that_a_task_does_not_have_is_refused_before_the_work(
    tiny_onnx, labels_csv, tmp_path, facts, subject
):
    data = labels_csv if "data" in facts else None
    options = TuneOptions(**QUICK, data=data, max_drop=facts.get("max_drop"))
    with pytest.raises(UsageError) as caught:
        tune([tiny_onnx], options, out=tmp_path / "tune", task=facts["task"])
    assert caught.value.subject == subject
    assert not list(tmp_path.glob("tune/*.fp16.onnx"))


def test_models_of_two_tasks_are_not_ranked(tiny_onnx, digits_onnx, labels_csv, tmp_path):
    options = TuneOptions(**QUICK, data=labels_csv)
    with pytest.raises(UsageError) as caught:
        tune([load(tiny_onnx, task="multilabel"), digits_onnx], options, out=tmp_path / "tune")
    assert caught.value.subject == "--data"
    assert "tiny.onnx by auroc, digits.onnx by top1" in caught.value.why
