"""The commands that make everything again hold what files record, and words in capitals for what none does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.workflows.html_report.commands import commands_for
from densenet_deploy.workflows.html_report.inputs import Benchmark
from densenet_deploy.workflows.html_report.material import Material, ReportSources
from densenet_deploy.workflows.html_report.models import FileFacts, ModelFacts
from densenet_deploy.workflows.html_report.tuning import Tuning
from tests.workflows.html_report.conftest import Desk, result
from tests.workflows.html_report.test_decision import trial


def model(kind: str, name: str, source: str, labels: tuple[str, ...] = ()) -> ModelFacts:
    manifest = Manifest("121", {}, WeightsOrigin(source, "0" * 64), Preprocessing(), labels)
    return ModelFacts(kind, "fp32", (FileFacts(Path(name), 1, ""),), manifest, (), "", None, ())


def lines(*models: ModelFacts, **read: Any) -> str:
    material = Material(ReportSources((Path("a.onnx"),)), models, **read)
    return "\n".join(line for _, group in commands_for(material) for line in group)


def test_a_file_of_weights_lies_where_the_reader_knows() -> None:
    made = lines(model("onnx", "a.onnx", "net.safetensors", ("cat", "dog")))
    assert "--weights PATH/net.safetensors" in made
    assert "--labels LABELS.txt" in made
    assert "--labels" not in lines(model("onnx", "a.onnx", "net.safetensors"))


def test_a_checkpoint_that_is_given_is_named_and_brings_its_labels() -> None:
    checkpoint = model("checkpoint", "deep/net.safetensors", "net.safetensors", ("cat", "dog"))
    made = lines(model("onnx", "a.onnx", "net.safetensors", ("cat", "dog")), checkpoint)
    assert "--weights deep/net.safetensors" in made
    assert "--labels" not in made
    assert "--labels" in lines(model("onnx", "a.onnx", "net.safetensors", ("dog", "cat")), checkpoint)


@pytest.mark.parametrize("source", ["none", "DenseNet121_Weights.IMAGENET1K_V1"])
def test_weights_that_have_a_name_are_called_by_it(source: str) -> None:
    assert f"--weights {source} " in lines(model("onnx", "a.onnx", source))


def test_a_tuning_is_asked_for_what_it_was_asked_for(desk: Desk) -> None:
    tried = [trial(desk, threads=1), trial(desk, threads=2, model="out/a.int8.onnx", precision="int8")]
    facts: dict[str, object] = {"chosen": None, "pareto": [], "candidates": tried, "goal": "throughput"}
    facts["limits"] = {"max_drop": 0.5, "max_latency_ms": 20.0, "max_memory_bytes": 3 * 2**20}
    made = lines(tunings=(Tuning.read(desk.write("tune.json", facts | {"state": "out/tune.state.json"})),))
    assert made.startswith(f"densenet-deploy tune {desk.slow} --calibration CALIBRATION_FIGURES --data LABELLED")
    assert "--max-drop 0.5 --max-latency 20 --max-memory 3 --goal throughput" in made
    assert "--backend onnxruntime --threads 1,2 --batch 1 -o out --json" in made


def test_a_tuning_that_asked_for_nothing_is_asked_for_nothing(desk: Desk) -> None:
    facts = {"chosen": None, "pareto": [], "candidates": [trial(desk, top1=None)], "limits": {"max_drop": None}}
    made = lines(tunings=(Tuning.read(desk.write("tune.json", facts)),))
    assert made.startswith(f"densenet-deploy tune {desk.slow} --backend onnxruntime --threads 1 --batch 1 --json")


def test_without_candidates_the_float_model_of_the_report_is_tuned(desk: Desk) -> None:
    tuning = Tuning.read(desk.write("tune.json", {"chosen": None, "pareto": []}))
    assert "densenet-deploy tune x/a.onnx --json" in lines(model("onnx", "x/a.onnx", "none"), tunings=(tuning,))
    assert "densenet-deploy tune FLOAT_MODEL.onnx --json" in lines(tunings=(tuning,))


@pytest.mark.parametrize(("recorded", "said"), [({"seconds_each": 2.5}, "2.5"), ({}, "SECONDS")])
def test_a_benchmark_takes_as_long_again(recorded: dict[str, float], said: str, desk: Desk) -> None:
    path = desk.write("b.json", {"results": [result("a.onnx", 1.0, "")]} | recorded)
    assert f"--seconds {said} --rounds 3 --json" in lines(benchmarks=(Benchmark.read(path),))
