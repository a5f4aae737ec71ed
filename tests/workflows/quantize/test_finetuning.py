"""`quantize` with fine-tuning: the report, the file, demands that outrank it, and what is refused."""

from __future__ import annotations

import dataclasses
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from densenet_deploy import packages
from densenet_deploy.errors import DataError, MissingPackageError, UsageError
from densenet_deploy.model import Model
from densenet_deploy.quantization.checks import check_quantized
from densenet_deploy.quantization.int8_writer import Int8Writer
from densenet_deploy.training import int8_finetuning
from densenet_deploy.workflows.compare import CompareOptions, compare
from densenet_deploy.workflows.load import load
from densenet_deploy.workflows.quantize import finetuning
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.quantize import QuantizeReport, quantize
from tests.graph.passes.networks import make_network

OPTIONS = QuantizeOptions(recipe="onnxruntime", never_slower=False, correct=False, finetune=True)
IMAGES = np.random.default_rng(0).standard_normal((64, 3, 32, 32), np.float32) / 2


@pytest.fixture(scope="module")
def network() -> Model:
    return load(make_network("classifier").proto, image_size=32)


@pytest.fixture(scope="module")
def plain(network: Model) -> Model:
    """What comes of it without fine-tuning."""
    return quantize(network, IMAGES, dataclasses.replace(OPTIONS, finetune=False))


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a fine-tuning that lasts two seconds."""
    plain = int8_finetuning.FinetuneOptions

    def brief(**given: Any) -> int8_finetuning.FinetuneOptions:
        return plain(**{**given, "steps": 12, "batch": 8, "lr": 0.02})

    monkeypatch.setattr(int8_finetuning, "FinetuneOptions", brief)


def test_the_report_says_what_was_learnt_and_the_parity_is_that_of_the_file(network: Model, plain: Model) -> None:
    tuned = quantize(network, IMAGES, OPTIONS)
    assert plain.report.finetune is None
    found = tuned.report.finetune
    assert (found.images, found.held_out, found.steps, found.seed, found.kept) == (48, 16, 12, 0, True)
    assert found.sqnr_after_db >= found.sqnr_rounded_db > found.sqnr_before_db
    assert found.stopped.startswith("all steps were made")
    assert [name for name in tuned.report.stages if name in ("round weights", "fine-tune")] == [
        "round weights",
        "fine-tune",
    ]
    assert tuned.to_bytes() != plain.to_bytes()
    assert check_quantized(tuned.onnx, "onnxruntime") == ()
    measured = compare(network, tuned, IMAGES, CompareOptions(samples=64)).parity.sqnr_db
    assert tuned.report.parity.sqnr_db == pytest.approx(measured, abs=0.01)
    assert tuned.report.parity.sqnr_db > plain.report.parity.sqnr_db
    assert QuantizeReport.from_json(tuned.report.to_json()) == tuned.report
    assert "fine-tuned  SQNR" in str(tuned.report)
    assert any("48 of all 64 were learnt from" in note for note in tuned.report.notes)


def test_what_is_not_better_is_not_kept(network: Model, plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    few = int8_finetuning.FinetuneOptions
    monkeypatch.setattr(int8_finetuning, "FinetuneOptions", lambda **given: dataclasses.replace(few(**given), lr=30.0))
    monkeypatch.setattr(Int8Writer, "rounded", lambda writer, _, float_layers, seed: writer.write(float_layers))
    ruined = quantize(network, IMAGES, OPTIONS)
    assert ruined.to_bytes() == plain.to_bytes()
    assert ruined.report.outputs == plain.report.outputs
    assert ruined.report.finetune.kept is False
    assert ruined.report.finetune.sqnr_after_db == ruined.report.finetune.sqnr_before_db
    assert "not kept" in str(ruined.report)


def _with(monkeypatch: pytest.MonkeyPatch, *measured: float) -> list[onnx.ModelProto]:
    """Let these be the SQNRs of the recipe's file, the one with rounded weights, and the one that learnt.

    Nothing is learnt but a word. Returns what the steps begin with.
    """
    rest, begun = iter(measured), []

    def learns(model: onnx.ModelProto, *_: Any) -> int8_finetuning.Finetuned:
        begun.append(onnx.ModelProto.FromString(model.SerializeToString()))
        model.doc_string = "learnt"
        return int8_finetuning.Finetuned(model, 12, (50.0, 51.0), 1, "all steps were made")

    monkeypatch.setattr(finetuning, "_sqnr_db", lambda *_: next(rest))
    monkeypatch.setattr(int8_finetuning, "finetune", learns)
    return begun


@pytest.fixture(scope="module")
def rounded(network: Model) -> Model:
    """The file with rounded weights."""
    with pytest.MonkeyPatch.context() as patch:
        _with(patch, 50.0, 60.0, 60.0)
        return quantize(network, IMAGES, OPTIONS)


@pytest.mark.slow
def test_a_file_that_is_not_better_where_it_runs_is_not_kept(
    network: Model, plain: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with(monkeypatch, 50.0, 50.0, 50.0)
    found = quantize(network, IMAGES, OPTIONS)
    assert found.to_bytes() == plain.to_bytes()
    told = found.report.finetune
    assert (told.kept, told.sqnr_rounded_db, told.sqnr_after_db) == (False, 50.0, 50.0)
    assert "weights rounded anew were not kept" in told.stopped


@pytest.mark.slow
def test_rounded_weights_alone_are_kept_where_steps_bring_nothing(plain: Model, rounded: Model) -> None:
    told = rounded.report.finetune
    assert (told.kept, told.steps) == (True, 12)
    assert (told.sqnr_before_db, told.sqnr_rounded_db, told.sqnr_after_db) == (50.0, 60.0, 60.0)
    assert "50.0 -> 60.0 (rounded anew) -> 60.0 dB" in str(told)
    assert "not kept" not in told.stopped
    assert rounded.to_bytes() != plain.to_bytes()
    assert check_quantized(rounded.onnx, "onnxruntime") == ()
    assert rounded.report.layers_int8 == plain.report.layers_int8


@pytest.mark.slow
def test_steps_begin_with_the_better_file(
    network: Model, plain: Model, rounded: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    for measured, file in (((50.0, 60.0, 61.0), rounded), ((50.0, 49.9, 61.0), plain)):
        begun = _with(monkeypatch, *measured)
        found = quantize(network, IMAGES, OPTIONS)
        told = found.report.finetune
        assert (told.kept, told.sqnr_after_db, found.onnx.doc_string) == (True, 61.0, "learnt")
        assert [model.graph for model in begun] == [file.onnx.graph]


def test_without_time_for_a_step_the_rounded_weights_are_the_result(
    network: Model, rounded: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 300.0, 301.0])
    monkeypatch.setattr(finetuning.time, "monotonic", lambda: next(clock))
    _with(monkeypatch, 50.0, 60.0)
    found = quantize(network, IMAGES, OPTIONS)
    told = found.report.finetune
    assert (told.steps, told.kept, told.sqnr_after_db, told.seconds) == (0, True, 60.0, 301.0)
    assert told.stopped == "rounding took the 300 s, and no step was made"
    assert found.to_bytes() == rounded.to_bytes()


@pytest.mark.slow
def test_steps_have_the_time_that_rounding_left(network: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    class StoppedError(Exception):
        pass

    def learns(model: Any, target: Any, learnt: Any, held_out: Any, how: Any, step: Any) -> None:
        raise StoppedError(how.seconds)

    clock = iter([0.0, 299.9])
    monkeypatch.setattr(finetuning.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(int8_finetuning, "finetune", learns)
    with pytest.raises(StoppedError, match=r"^0\.1$"):
        quantize(network, IMAGES, OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rounded_to", "learnt_to", "kept"), [(30.0, 30.0, "learnt"), (30.0, 29.9, "rounded"), (29.9, 29.9, "nothing")]
)
def test_a_demand_outranks_it(
    network: Model, monkeypatch: pytest.MonkeyPatch, rounded_to: float, learnt_to: float, kept: str
) -> None:
    """Each form is asked about beside the one that it would replace, whatever was tried in between."""
    asked = dataclasses.replace(OPTIONS, min_sqnr=20.0)
    plain = quantize(network, IMAGES, dataclasses.replace(asked, finetune=False)).to_bytes()
    best = rounded_to if kept != "nothing" else 30.0
    measured, about = iter([30.0, rounded_to, best, learnt_to]), []

    def demanded(trials: Any, float_layers: Any, *_: Any) -> float:
        about.append(trials._writer.write(float_layers).data)
        return next(measured)

    monkeypatch.setattr(sys.modules["densenet_deploy.workflows.quantize.quantize"], "demanded", demanded)
    _with(monkeypatch, 50.0, 60.0, 70.0)
    found = quantize(network, IMAGES, asked)
    assert found.report.finetune.kept is (kept != "nothing")
    first, rounded, better, learnt = about
    assert len({first, rounded, learnt}) == 3
    assert first == plain
    assert better == (plain if kept == "nothing" else rounded)
    assert found.to_bytes() == {"nothing": plain, "rounded": rounded, "learnt": learnt}[kept]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_file(network: Model) -> None:
    first, again = (quantize(network, IMAGES, dataclasses.replace(OPTIONS, finetune_seed=1)) for _ in range(2))
    assert first.to_bytes() == again.to_bytes()
    assert first.report.finetune.seed == 1


@pytest.mark.slow
def test_layers_may_stay_float(network: Model) -> None:
    found = quantize(network, IMAGES, dataclasses.replace(OPTIONS, float_layers=("features.conv0",)))
    assert found.report.finetune.steps == 12
    assert "features.conv0" in found.report.float_layers
    assert found.report.finetune.kept


def test_too_few_images_are_refused(network: Model) -> None:
    with pytest.raises(DataError) as caught:
        quantize(network, IMAGES[:47], OPTIONS)
    assert "47" in caught.value.why
    assert quantize(network, IMAGES[:48], OPTIONS).report.finetune.held_out == 12


def test_without_pytorch_the_package_is_named(network: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    with pytest.raises(MissingPackageError) as caught:
        quantize(network, IMAGES, OPTIONS)
    assert (caught.value.exit_code, "torch" in str(caught.value)) == (5, True)


@pytest.mark.parametrize("given", [{"finetune_seconds": 0.9}, {"finetune_seed": -1}])
def test_numbers_are_checked(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        QuantizeOptions(**given)
    QuantizeOptions(finetune_seconds=1.0, finetune_seed=0)


def test_a_recipe_file_may_ask_for_it(tmp_path: Path) -> None:
    from densenet_deploy.workflows.quantize.options import load_recipe

    file = tmp_path / "mine.toml"
    file.write_text('base = "openvino"\nfinetune = true\nfinetune-seconds = 60.0\n')
    assert (load_recipe(file).finetune, load_recipe(file).finetune_seconds) == (True, 60.0)
