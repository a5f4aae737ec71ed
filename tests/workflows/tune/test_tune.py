"""`tune` on small real models: files, measurements, resumption, limits, dry runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from densenet_deploy.errors import (
    DataError,
    InputError,
    ModelFileError,
    OutputExistsError,
    UnknownNameError,
    UsageError,
)
from densenet_deploy.quantize.cache import CalibrationCache
from densenet_deploy.workflows.plot.points import pareto_points
from densenet_deploy.workflows.tune.candidates import Space, TuneOptions
from densenet_deploy.workflows.tune.forms import Source
from densenet_deploy.workflows.tune.memory import NAME
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
    return json.loads((folder / NAME).read_text())["entries"]


def _files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.fixture(scope="module")
def tuned(digits_onnx, tmp_path_factory):
    """The digits model, tuned over precisions, both recipes and both backends."""
    folder = tmp_path_factory.mktemp("tuned")
    cache = CalibrationCache(tmp_path_factory.mktemp("cache"))
    options = TuneOptions(precisions=("fp32", "fp16", "int8"), max_drop=1.0, **ALL)
    return tune([Source(digits_onnx)], options, str(folder), cache=cache), folder, options


def test_the_digits_are_tuned_over_all_forms(tuned):
    report, folder, _ = tuned
    names = {one.candidate.file.path.name for one in report.tried}
    made = {f"digits.{form}.onnx" for form in ("fp16", "int8.onnxruntime", "int8.openvino")}
    assert names == made | {"digits.onnx"}
    assert {path.name for path in folder.iterdir()} == made | {NAME}
    ran = {(one.candidate.file.form, one.candidate.backend) for one in report.tried}
    assert ("int8.onnxruntime", "onnxruntime") in ran
    assert ("int8.onnxruntime", "openvino") not in ran
    assert ("fp16", "openvino") in ran


def test_the_choice_keeps_the_limit_and_is_on_the_front(tuned):
    report, _, _ = tuned
    chosen = report.chosen
    assert chosen is not None
    assert chosen.drop <= 1.0
    assert chosen.quality.top1 >= 0.98
    assert chosen.quality.labelled == 360
    facts = report.to_json()
    assert chosen.missed == ()
    assert facts["chosen"]["reason"]
    assert all(one["top1"] is not None and one["parity"]["cosine"] > 0.99 for one in facts["pareto"])
    json.dumps(facts, allow_nan=False)


def test_its_json_makes_the_pareto_image(tuned, tmp_path):
    report, _, _ = tuned
    (tmp_path / "tune.json").write_text(json.dumps(report.to_json()))
    points = pareto_points([tmp_path / "tune.json"])
    assert len(points) == len(report.pareto)
    assert {point.top1 for point in points} == {one.quality.top1 for one in report.pareto}


def test_a_second_run_measures_nothing_and_says_the_same(tuned, digits_onnx):
    report, folder, options = tuned
    before = _files(folder)
    again = tune([Source(digits_onnx)], options, str(folder))
    assert (again.done, again.tried) == (0, report.tried)
    assert _files(folder) == before


def test_other_limits_need_no_new_files_or_answers(tuned, digits_onnx):
    _, folder, _ = tuned
    before = {name: time for name, time in _files(folder).items() if name != NAME}
    options = TuneOptions(precisions=("fp32", "fp16", "int8"), max_memory_mib=1.0, **ALL)
    report = tune([Source(digits_onnx)], options, str(folder))
    assert report.chosen is None
    assert "--max-memory 1 cannot be kept" in report.reason
    assert (report.failure.exit_code, report.done) == (4, 0)
    assert before.items() <= _files(folder).items()


@pytest.mark.parametrize("stage", ["tiny.fp16.onnx: parity", "first heat", "compare answers", "last heat"])
def test_an_interrupted_run_goes_on_where_it_was(stage, tiny_onnx, tmp_path):
    options = TuneOptions(**QUICK | {"backends": ("onnxruntime", "openvino")})
    source = [Source(tiny_onnx)]
    try:
        tune(source, options, str(tmp_path), listener=StopAt(stage))
        assert stage == "last heat", "the second heat may have decided"
    except KeyboardInterrupt:
        pass
    kept = _state(tmp_path) if (tmp_path / NAME).exists() else {}
    resumed = tune(source, options, str(tmp_path))
    assert resumed.reused >= len(kept)
    assert kept.items() <= _state(tmp_path).items()
    uninterrupted = tune(source, options, str(tmp_path))
    assert (uninterrupted.tried, uninterrupted.reason) == (resumed.tried, resumed.reason)
    assert uninterrupted.done == 0


def test_measuring_again_keeps_the_files(tiny_onnx, tmp_path):
    options = TuneOptions(**QUICK)
    tune([Source(tiny_onnx)], options, str(tmp_path))
    file = tmp_path / "tiny.fp16.onnx"
    before = file.stat().st_mtime_ns
    again = tune([Source(tiny_onnx)], options, str(tmp_path), measure_again=True)
    assert file.stat().st_mtime_ns == before
    assert again.reused == 1
    assert again.done >= 2


def test_a_file_that_was_touched_is_made_again(tiny_onnx, tmp_path):
    options = TuneOptions(**QUICK)
    first = tune([Source(tiny_onnx)], options, str(tmp_path))
    file = tmp_path / "tiny.fp16.onnx"
    content = file.read_bytes()
    os.truncate(file, 100)
    with pytest.raises(OutputExistsError):
        tune([Source(tiny_onnx)], options, str(tmp_path))
    again = tune([Source(tiny_onnx)], options, str(tmp_path), force=True)
    assert file.read_bytes() == content
    assert [one.quality for one in again.tried] == [one.quality for one in first.tried]


def test_other_calibration_images_are_another_file(tmp_path, digits_onnx):
    options = QUICK | {"precisions": ("fp32", "int8"), "calibration": SAMPLES}
    tune([Source(digits_onnx)], TuneOptions(**options, samples=64), str(tmp_path))
    before = (tmp_path / "digits.int8.onnxruntime.onnx").read_bytes()
    tune([Source(digits_onnx)], TuneOptions(**options, samples=32), str(tmp_path))
    assert (tmp_path / "digits.int8.onnxruntime.onnx").read_bytes() != before


def test_variants_and_checkpoints_are_exported_and_compared(checkpoint, tmp_path):
    options = TuneOptions(**QUICK | {"precisions": ("fp32",)})
    sources = [Source(variant="cifar-bc-10-4"), Source(checkpoint)]
    report = tune(sources, options, str(tmp_path))
    assert {one.candidate.file.base for one in report.tried} == {source.stem for source in sources}
    assert any("which model answers better" in note for note in report.notes)
    assert sum("untrained" in note for note in report.notes) == 1
    assert {one.candidate.file.base for one in report.pareto} == {source.stem for source in sources}


def test_a_dry_run_touches_nothing(tiny_onnx, tmp_path):
    folder = tmp_path / "none"
    plan = dry_run([Source(tiny_onnx), Source(variant="cifar-bc-10-4")], TuneOptions(calibration=SAMPLES), str(folder))
    assert not folder.exists()
    assert plan.candidates > 8
    facts = plan.to_json()
    assert (facts["dry_run"], facts["pareto"], facts["chosen"]) == (True, [], None)
    assert facts["expected_seconds"] > 10
    to_make = {Path(file["file"]).name for file in facts["plan"]["files"] if not file["up_to_date"]}
    assert {"tiny.fp16.onnx", "tiny.int8.openvino.onnx", "densenet-cifar-bc-10-4.onnx"} <= to_make
    assert "tiny.onnx" not in to_make
    assert "about" in plan.to_text()


def test_a_dry_run_after_the_run_finds_the_files(tuned, digits_onnx):
    _, folder, options = tuned
    before = _files(folder)
    plan = dry_run([Source(digits_onnx)], options, str(folder))
    assert all(file.up_to_date for file in plan.files)
    assert plan.candidates == 6
    assert _files(folder) == before


def test_int8_without_calibration_is_left_out_with_a_note(tiny_onnx, tmp_path):
    plan = dry_run([Source(tiny_onnx)], TuneOptions(), str(tmp_path))
    assert not any(file.form.startswith("int8") for file in plan.files)
    assert any("--calibration" in note for note in plan.notes)


def test_the_space_is_filled_in():
    space = Space.of(TuneOptions(calibration=SAMPLES, goal="throughput"))
    assert [form.name for form in space.forms][:2] == ["fp32", "fp16"]
    assert {form.name: form.backends for form in space.forms}["int8.openvino"] == ("openvino",)
    assert space.threads[0] == 1
    assert space.batches == (1, 8, 32)
    assert Space.of(TuneOptions()).batches == (1,)
    assert Space.of(TuneOptions(precisions=("fp16",))).forms[0].name == "fp32"


def test_a_recipe_file_is_a_form_of_its_own(tmp_path):
    file = tmp_path / "fine.toml"
    file.write_text('base = "openvino"\nobserver = "mse"\nmin-sqnr = 45.0\n')
    space = Space.of(TuneOptions(calibration=SAMPLES, recipes=(str(file), "tensorrt"), samples=64))
    form = space.forms[-1]
    assert (form.name, form.backends) == ("int8.fine", ("openvino",))
    assert (form.quantize.observer, form.quantize.min_sqnr, form.quantize.samples) == ("mse", 45.0, 64)
    assert any("tensorrt" in note for note in space.notes)


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
    ],
)
def test_options_that_cannot_be_meant(options):
    with pytest.raises(UsageError):
        TuneOptions(**options)


def test_what_is_asked_wrongly_is_refused_before_the_work(tiny_onnx, tmp_path):
    def run(*sources: Source, out: Path = tmp_path / "out", **options):
        tune(sources, TuneOptions(**options), str(out))

    with pytest.raises(UsageError, match="no model"):
        run()
    with pytest.raises(UsageError, match="two models"):
        run(Source(tiny_onnx), Source(tiny_onnx))
    with pytest.raises(UnknownNameError):
        run(Source(tiny_onnx), backends=("tenserrt",))
    with pytest.raises(UsageError):
        run(Source(tiny_onnx), backends=("torch",))
    with pytest.raises(UnknownNameError):
        run(Source(tiny_onnx), calibration=SAMPLES, recipes=("openvin",))
    with pytest.raises(InputError):
        run(Source(tiny_onnx), calibration=tmp_path / "missing")
    with pytest.raises(InputError):
        run(Source(tiny_onnx), data=tmp_path / "missing")
    with pytest.raises(InputError):
        run(Source(tmp_path / "missing.onnx"))
    with pytest.raises(UsageError, match="no folder"):
        run(Source(tiny_onnx), out=tmp_path / "tune.json")
    assert list(tmp_path.iterdir()) == []


def test_a_strangers_state_is_left_alone(tiny_onnx, tmp_path):
    (tmp_path / NAME).write_text("mine")
    with pytest.raises(DataError):
        tune([Source(tiny_onnx)], TuneOptions(**QUICK), str(tmp_path))
    assert (tmp_path / NAME).read_text() == "mine"


def test_a_quantized_file_is_no_model_to_tune(tuned, tmp_path):
    _, folder, _ = tuned
    with pytest.raises(ModelFileError, match="quantized"):
        tune([Source(folder / "digits.int8.openvino.onnx")], TuneOptions(**QUICK), str(tmp_path))
