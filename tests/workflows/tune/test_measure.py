"""How good and how fast a candidate is: what counts more, and what a candidate that fails becomes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from densenet_deploy.analysis.choice import EQUAL_SQNR_DB
from densenet_deploy.artifacts import sha256_of
from densenet_deploy.bench.rounds import RoundResults
from densenet_deploy.errors import BackendError
from densenet_deploy.parity.compare import ParityMeter
from densenet_deploy.workflows.load import load
from densenet_deploy.workflows.tune.cache import ResultCache
from densenet_deploy.workflows.tune.candidates import ModelFile, Trial, _powers_of_two
from densenet_deploy.workflows.tune.measure import Failure, LocalMeasurer, Quality
from densenet_deploy.workflows.tune.models import FloatModel


def quality(error: float, **accuracy: float) -> Quality:
    reference = np.arange(12.0).reshape(4, 3)
    meter = ParityMeter()
    meter.update(reference, reference + error * np.array([[1.0, -1, 1]] * 4))
    return Quality(meter.result(), 4, "seeded inputs", **accuracy)


def test_the_score_is_the_accuracy_or_the_sqnr_up_to_where_all_are_alike() -> None:
    power = np.mean(np.arange(12.0) ** 2)
    assert quality(1.0).score == pytest.approx(10 * math.log10(power))
    assert quality(0.0).score == quality(1e-6).score == EQUAL_SQNR_DB
    assert quality(1.0, top1=0.5).score == 0.5
    assert quality(math.nan, top1=0.5).score == -math.inf


def file_of(path: Path) -> ModelFile:
    return ModelFile(path, "net", "fp32", "fp32", sha256_of(path), path.stat().st_size)


@pytest.fixture
def measurer(tiny_onnx: Path, tmp_path: Path) -> LocalMeasurer:
    file, known = file_of(tiny_onnx), load(tiny_onnx)
    models = {"net": FloatModel(file, known.manifest.preprocessing, known.manifest)}
    results = ResultCache(tmp_path / "results.json")
    return LocalMeasurer(Trial(file, "onnxruntime", 1, 1), models, results, device="cpu")


@pytest.mark.parametrize(("where", "kind"), [("calibration", "calibration images"), (None, "seeded inputs")])
def test_answers_are_compared_on_the_images_that_there_are(
    measurer: LocalMeasurer, tiny_onnx: Path, images: Path, where: str | None, kind: str
) -> None:
    here = dataclasses.replace(measurer, samples=7, **({where: images} if where else {}))
    found = here.quality(file_of(tiny_onnx), "onnxruntime")
    assert isinstance(found, Quality)
    assert (found.kind, found.images) == (kind, 7 if where else 64)
    assert (found.parity.sqnr_db, found.accuracy) == (math.inf, None)


def test_accuracy_is_measured_where_images_have_labels(measurer: LocalMeasurer, tiny_onnx: Path, images: Path) -> None:
    found = dataclasses.replace(measurer, data=images).quality(file_of(tiny_onnx), "openvino")
    assert isinstance(found, Quality)
    assert (found.kind, found.images, found.labelled) == ("images of the labelled data", 10, 10)
    assert found.top1 == 0.1, "the same image in ten classes"


def test_what_cannot_run_is_a_failure_with_its_reason(measurer: LocalMeasurer, tiny_onnx: Path) -> None:
    found = measurer.quality(file_of(tiny_onnx), "torch")
    assert isinstance(found, Failure)
    assert found.reason.startswith("cannot run: ")
    trial = Trial(file_of(tiny_onnx), "openvino", 1, 1)
    error = BackendError("openvino", "has no such operator", "use another")
    results = RoundResults({}, {}, failures={"0": error})
    assert measurer._speed(trial, "0", results) == Failure("cannot run: has no such operator")


@pytest.mark.parametrize(("most", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_threads_are_doubled_up_to_all_cpus(most: int, counts: list[int]) -> None:
    assert list(_powers_of_two(most)) == counts
