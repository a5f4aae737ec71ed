"""What quantize does beyond writing INT8: recipe files, layers left float by name, for accuracy and for speed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from densenet_deploy.bench.candidate import Candidate
from densenet_deploy.bench.rounds import Interval, Left, RoundResults
from densenet_deploy.bench.scenarios import RoundTiming
from densenet_deploy.errors import DataError, GateError, InputError, UnknownNameError, UsageError
from densenet_deploy.quantization.cache import CalibrationCache
from densenet_deploy.quantization.mixed_precision import Layer
from densenet_deploy.workflows.evaluation.report import EvaluateReport
from densenet_deploy.workflows.load import load
from densenet_deploy.workflows.quantize import layer_choice
from densenet_deploy.workflows.quantize.layer_choice import (
    Speed,
    Trials,
    layers_behind_baseline,
    layers_for_accuracy,
    layers_for_speed,
    stage_of,
    verdict,
)
from densenet_deploy.workflows.quantize.options import QuantizeOptions, load_recipe
from densenet_deploy.workflows.quantize.preparation import prepare_int8
from densenet_deploy.workflows.quantize.quantize import quantize
from densenet_deploy.workflows.stages import Stages
from tests.conftest import DIGITS
from tests.graph.passes.networks import make_network

ROOT = DIGITS.parents[1]
SAMPLES = ROOT / "calibration" / "samples"
FILES = sorted((ROOT / "calibration" / "recipes").glob("*.toml"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> CalibrationCache:
    return CalibrationCache(tmp_path_factory.mktemp("cache"))


def _quantized(model, folder, cache, **options):
    known = {"recipe": "onnxruntime", "never_slower": False, "samples": 32}
    return quantize(model, SAMPLES, QuantizeOptions(**(known | options)), out=folder, cache=cache, explain=True).report


def test_named_layers_stay_float(tiny_onnx, tmp_path, cache):
    report = _quantized(tiny_onnx, tmp_path, cache, float_layers=("features.conv0",))
    assert report.float_layers == ("features.conv0",)
    assert "features.conv0: float, asked for" in "\n".join(report.explanation)
    assert len(report.to_json()["explanation"]) == 10


def test_a_layer_that_is_not_there_is_named(tiny_onnx, tmp_path, cache):
    with pytest.raises(UnknownNameError):
        _quantized(tiny_onnx, tmp_path, cache, float_layers=("features.conv",))


def test_layers_stay_float_until_the_sqnr_is_reached(tiny_onnx, tmp_path, cache):
    wanted = _quantized(tiny_onnx, tmp_path / "all", cache, recipe="openvino").parity.sqnr_db + 1
    report = _quantized(tiny_onnx, tmp_path / "some", cache, recipe="openvino", min_sqnr=wanted)
    assert report.parity.sqnr_db >= wanted
    assert 0 < report.layers_float < 10


@pytest.mark.slow
def test_no_accuracy_may_be_lost_on_class_folders(digits_onnx, tmp_path, cache):
    report = _quantized(digits_onnx, tmp_path, cache, max_drop=0.0)
    assert report.parity.top1_agreement >= 0.98


def test_labels_are_judged_by_their_auroc(tiny_onnx, tmp_path, cache):
    report = _quantized(load(tiny_onnx, task="multilabel"), tmp_path, cache, max_drop=100.0)
    assert report.layers_float == 0
    assert "--max-drop: points of the mean AUROC" in report.notes
    assert any("only positive label" in note for note in report.notes)


@pytest.mark.parametrize("task", ["regression", "features"])
def test_a_task_without_an_accuracy_has_no_drop(tiny_onnx, tmp_path, cache, task):
    with pytest.raises(UsageError) as caught:
        _quantized(load(tiny_onnx, task=task), tmp_path, cache, max_drop=1.0)
    assert caught.value.subject == "--max-drop"
    assert list(tmp_path.iterdir()) == []


RACE = ("float", "int8")


class TimedTrials:
    """Trials that are not run: every candidate takes the milliseconds that `times` says, others those of `int8`."""

    layers = (Layer("a.1", "a", 1), Layer("a.2", "a", 1), Layer("b.1", "b", 1))

    def __init__(self, round_seconds: float = 0.1, **times: float) -> None:
        self.times, self.round_seconds, self.clock = times, round_seconds, 100.0
        self.compared: list[tuple[tuple[str, ...], int]] = []

    def compare_speed(self, choices: dict[str, frozenset[str] | None], left: Left) -> RoundResults:
        timings: dict[str, tuple[RoundTiming, ...]] = dict.fromkeys(choices, ())
        remaining: Collection[str] = list(choices)
        for number in range(40):
            self.clock += self.round_seconds
            timings |= {name: (*timings[name], RoundTiming((self.seconds(name, number),))) for name in remaining}
            found = RoundResults(timings, openings={})
            remaining = left(found)
            if not remaining:
                break
        self.compared.append((tuple(choices), len(timings["int8"])))
        self.rounds = {name: len(taken) for name, taken in timings.items()}
        return found

    def seconds(self, name: str, number: int) -> float:
        """Return what a call takes in round `number`."""
        return self.times.get(name, self.times["int8"]) / 1000

    def now(self) -> float:
        return self.clock


class JudgedTrials(TimedTrials):
    """Trials with an AUROC of 0.9 in float, and 0.1 less for each layer that is not."""

    def require_accuracy(self, option: str) -> None:
        assert option == "--max-drop"

    def noise(self, names: frozenset[str]) -> float:
        return 0.1 * (3 - len(names))

    def float_evaluated(self, data: object) -> EvaluateReport:
        return self.evaluated(frozenset({"a.1", "a.2", "b.1"}), data)

    def evaluated(self, names: frozenset[str], _data: object) -> EvaluateReport:
        return dataclasses.replace(JUDGED, auroc=round(0.9 - self.noise(names), 6))


class UndefinedTrials(JudgedTrials):
    """Trials whose images are all positive."""

    def evaluated(self, names: frozenset[str], _data: object) -> EvaluateReport:
        return JUDGED


JUDGED = EvaluateReport(
    model="m", task="multilabel", count=1, images_per_second=1.0, seconds=1.0, backend="b", device="d", precision="fp32"
)


@pytest.mark.parametrize(("max_drop", "kept"), [(9.9, 3), (10.1, 2), (20.1, 1), (30.1, 0)])
def test_as_few_layers_stay_float_as_the_drop_allows(max_drop, kept):
    found, notes = layers_for_accuracy(JudgedTrials(), QuantizeOptions(max_drop=max_drop), SAMPLES)
    assert len(found.float_layers) == kept
    assert notes == ("--max-drop: points of the mean AUROC",)


def test_an_accuracy_that_is_undefined_is_refused():
    with pytest.raises(DataError) as caught:
        layers_for_accuracy(UndefinedTrials(), QuantizeOptions(max_drop=1.0), SAMPLES)
    assert caught.value.subject == "--max-drop"


@pytest.mark.slow
def test_what_no_layer_can_give_is_a_gate(tiny_onnx, tmp_path, cache):
    with pytest.raises(GateError):
        _quantized(tiny_onnx, tmp_path, cache, min_sqnr=200.0)
    assert list(tmp_path.iterdir()) == []


def _raced(trials: TimedTrials, float_layers: frozenset[str] = frozenset(), seconds: float = 20.0):
    return layers_for_speed(trials, float_layers, seconds, trials.now)


def test_a_block_that_is_faster_in_float_is_put_back():
    trials = TimedTrials(float=3.0, int8=2.0, a=1.5)
    layers, speed = _raced(trials, frozenset({"b.1"}))
    assert layers == {"a.1", "a.2", "b.1"}
    assert speed == Speed(3.0, 2.0, 1.5, (1.5, 1.5), put_back=("a",), verdict="faster")
    assert trials.compared == [(RACE, 6), (("int8", "a"), 6), (RACE, 6)], "decided after six rounds"


def test_blocks_that_are_as_fast_stay_int8():
    trials = TimedTrials(float=3.0, int8=2.0)
    layers, speed = _raced(trials)
    assert (layers, speed.put_back, speed.untimed) == (frozenset(), (), ())
    assert trials.compared == [(RACE, 6), (("int8", "a", "b"), 6)], "nothing changed, so nothing is timed again"


@pytest.mark.parametrize(("int8", "put_back"), [(0.999, ()), (1.0, ("a", "b")), (2.0, ("a", "b"))])
def test_int8_that_gains_nothing_is_put_back_as_a_whole(int8, put_back):
    layers, speed = _raced(TimedTrials(float=1.0, int8=int8))
    assert speed.put_back == put_back
    assert speed.verdict == ("slower" if int8 == 2.0 else "tie")
    assert layers == (frozenset({"a.1", "a.2", "b.1"}) if put_back else frozenset())


def test_where_time_is_short_blocks_are_not_timed_and_that_is_said():
    """Two forms in 6 rounds of 1 s: 3 s a form, of which 14 s leave four, less INT8 itself and the last comparison."""
    for seconds, timed, untimed in ((18.9, 2, ()), (17.9, 1, ("b",)), (12.0, 0, ("a", "b"))):
        trials = TimedTrials(round_seconds=1.0, float=3.0, int8=2.0, a=1.0)
        _, speed = _raced(trials, seconds=seconds)
        assert speed.untimed == untimed, seconds
        assert speed.put_back == (("a",) if timed else ())
        assert str(speed).endswith("not timed alone: " + ", ".join(untimed)) == bool(untimed)


class NoisyTimes(TimedTrials):
    """INT8 that is faster in one round and slower in the next."""

    def seconds(self, name: str, number: int) -> float:
        return 1.0 if name != "float" else 1.5 if number % 2 == 0 else 0.7


def test_a_race_that_nothing_decides_ends_with_its_time_and_is_called_undecided():
    trials = NoisyTimes(round_seconds=2.0, int8=1.0)
    layers, speed = _raced(trials, seconds=20.0)
    assert (layers, speed.verdict, speed.put_back) == (frozenset(), "undecided", ())
    assert trials.compared == [(RACE, 10)]
    assert "undecided: give --speed-seconds more" in str(speed)


class UndecidedForms(TimedTrials):
    """The form that leaves `a` float takes 1.1 times as long as INT8 in one round, `best` times in the next; so `b`."""

    def __init__(self, best: float) -> None:
        super().__init__(float=3.0, int8=1.0)
        self.best = best

    def seconds(self, name: str, number: int) -> float:
        gains = {"a": (0.9, self.best), "b": (0.9, 1.5)}
        return 1 / gains[name][number % 2] if name in gains else self.times[name]


@pytest.mark.parametrize(("best", "rounds"), [(1.02, 6), (1.021, 40)])
def test_a_form_that_gains_two_percent_at_most_is_not_timed_further(best, rounds):
    trials = UndecidedForms(best)
    layers, speed = _raced(trials)
    assert trials.rounds == {"int8": 40, "a": rounds, "b": 40}
    assert (layers, speed.put_back) == (frozenset(), ())


@pytest.mark.parametrize(("seconds", "shown"), [(5.0, "undecided"), (6.0, "slower")])
def test_fewer_than_six_rounds_decide_nothing(seconds, shown):
    _, speed = _raced(TimedTrials(round_seconds=1.0, float=1.0, int8=2.0), seconds=seconds)
    assert (speed.verdict, bool(speed.put_back)) == (shown, shown == "slower")


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((1.0, 0.98, 1.02), "tie"),
        ((1.01, 1.001, 1.02), "tie"),
        ((1.0, 0.979, 1.02), "undecided"),
        ((1.02, 1.001, 1.03), "faster"),
        ((1.02, 1.0, 1.03), "undecided"),
        ((0.97, 0.96, 0.999), "slower"),
        ((0.97, 0.96, 1.0), "undecided"),
    ],
)
def test_what_an_interval_shows(interval, said):
    assert verdict(Interval(*interval)) == said


class NoisyTrials:
    """Trials that are not run: 30 dB, but `behind` while one of the layers `culprits` is INT8; others' form: `peer`."""

    count = 32

    def __init__(self, count: int, culprits: set[int], behind: float, peer: float) -> None:
        self.layers = tuple(Layer(f"l{place}", "block") for place in range(count))
        self.culprits, self.behind, self.peer = {f"l{place}" for place in culprits}, behind, peer
        self.tried: set[frozenset[str]] = set()

    def baseline_db(self, count: int = 32) -> float:
        return self.peer

    def sqnr_db(self, float_layers: frozenset[str], count: int = 32) -> float:
        self.tried.add(frozenset(float_layers))
        return self.behind if self.culprits - float_layers else 30.0

    def noise(self, float_layers: frozenset[str]) -> float:
        return 10 ** (-self.sqnr_db(float_layers) / 10)


@pytest.mark.parametrize("peer", [20.0, 20.5])
def test_int8_that_is_hardly_behind_others_stays_as_it_is(peer):
    trials = NoisyTrials(5, {1}, 20.0, peer)
    assert layers_behind_baseline(trials, frozenset({"l0"})) == (frozenset({"l0"}), None)
    assert trials.tried == {frozenset({"l0"})}


@pytest.mark.parametrize(
    ("count", "culprits", "kept"),
    [(5, {1}, {1}), (8, {7}, {7}), (9, {4}, {4, 5}), (20, {10, 11}, {9, 10, 11}), (16, {0, 15}, {0, 1, 14, 15})],
)
def test_the_layers_that_put_int8_behind_others_stay_float(count, culprits, kept):
    """In at most eight groups that follow each other."""
    trials = NoisyTrials(count, culprits, 20.0, 20.51)
    layers, note = layers_behind_baseline(trials, frozenset())
    assert layers == {f"l{place}" for place in kept}
    assert note is not None
    assert re.findall(r"l\d+", note) == [f"l{place}" for place in sorted(kept)]
    assert "20.0 dB" in note
    assert "20.5 dB" in note
    assert len(trials.tried) <= 30


def test_layers_that_are_float_already_stay_so_and_are_not_named():
    trials = NoisyTrials(9, {2}, 20.0, 25.0)
    layers, note = layers_behind_baseline(trials, frozenset({"l0"}))
    assert layers == {"l0", "l2"}, "eight others are eight groups"
    assert "l0" not in str(note)
    assert all("l0" in names for names in trials.tried)


def test_the_form_of_other_tools_is_measured_on_the_same_images(tiny_onnx, cache):
    ready = prepare_int8(load(tiny_onnx), SAMPLES, QuantizeOptions("onnxruntime", samples=32), Stages(), cache)
    trials = Trials(ready, load(tiny_onnx))
    assert 20 < trials.baseline_db() < trials.sqnr_db(())


def test_what_is_timed_as_int8_is_the_file_that_may_be_shipped(tiny_onnx, cache, monkeypatch):
    ready = prepare_int8(load(tiny_onnx), SAMPLES, QuantizeOptions("onnxruntime", samples=32), Stages(), cache)
    trials, found = Trials(ready, load(tiny_onnx)), {}

    def read(candidates: Iterator[tuple[str, Candidate]], **_: object) -> None:
        found.update({name: (one.model.read_bytes(), one.batch) for name, one in candidates})

    monkeypatch.setattr(layer_choice, "compare_speed", read)
    first = frozenset({trials.layers[0].name})
    trials.compare_speed({"float": None, "int8": first, "a": frozenset()}, lambda _: ())
    assert found["float"] == (tiny_onnx.read_bytes(), 1)
    assert found["int8"] == (ready.writer.write(first).data, 1)
    assert found["a"] != (ready.writer.write(()).data, 1), "its classifier is not corrected"


def test_calls_of_a_fixed_batch_are_timed(tmp_path, cache, monkeypatch):
    model = load(_of_a_fixed_batch(tmp_path / "old.onnx"))
    ready = prepare_int8(model, SAMPLES, QuantizeOptions("onnxruntime", samples=32), Stages(), cache)
    found: list[int] = []
    monkeypatch.setattr(layer_choice, "compare_speed", lambda given, **_: found.extend(one.batch for _, one in given))
    Trials(ready, model).compare_speed({"float": None, "int8": ()}, lambda _: ())
    assert found == [4, 4]


@pytest.mark.slow
def test_speed_is_really_measured(tiny_onnx, tmp_path, cache):
    """Which is faster depends on the machine: where INT8 gains nothing, the refusal says so."""
    try:
        report = _quantized(tiny_onnx, tmp_path, cache, never_slower=True).to_json()
    except GateError as refused:
        reason = r"gains nothing on this machine \((?:(\d+\.\d+) x float|each of its blocks [a-z ]+)\)"
        (ratio,) = re.findall(reason, str(refused))
        speedup = float(ratio or 1)
    else:
        speedup, slower = report["speed"]["speedup"], report["speed"]["put_back"]
        why = [sentence for sentence in report["explanation"] if "faster in float" in sentence]
        assert {stage_of(sentence.partition(":")[0]) for sentence in why} == set(slower)
    assert 0 < speedup < 100


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_shipped_recipe_files_load(path):
    assert load_recipe(path, {}).recipe in ("onnxruntime", "openvino", "tensorrt", "auto")


def test_recipe_files_are_shipped():
    assert FILES


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ('base = "onnxruntime"\nobservr = "mse"', UnknownNameError, "observer"),
        ('observer = "mse"', UsageError, "base"),
        ('base = "onnxruntime"\nalpha = "half"', UsageError, "alpha"),
        ('base = "onnxruntime"\nsamples = 1.5', UsageError, "samples"),
        ('base = "onnxruntime"\nalpha = 2.0', UsageError, "alpha"),
        ("base = ", UsageError, "TOML"),
        ('base = "other.toml"', UsageError, "built-in"),
    ],
)
def test_an_invalid_recipe_file(tmp_path, text, error, says):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(error) as caught:
        load_recipe(path, {})
    assert says in str(caught.value)


def test_the_command_line_counts_more_than_the_file(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('base = "openvino"\nalpha = 1\nobserver = "mse"\nfloat-layers = ["features.conv0"]\n')
    options = load_recipe(path, {"observer": "entropy"})
    assert (options.recipe, options.alpha, options.observer) == ("openvino", 1.0, "entropy")
    assert options.float_layers == ("features.conv0",)


def test_a_recipe_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError):
        load_recipe(tmp_path / "none.toml", {})


def test_two_demands_are_one_too_many():
    with pytest.raises(UsageError):
        QuantizeOptions(max_drop=1.0, min_sqnr=30.0)


@pytest.mark.parametrize("recipe", ["onnxruntime", "openvino"])
def test_a_third_party_graph_without_stored_shapes(recipe, tmp_path, cache):
    model = tmp_path / "third_party.onnx"
    model.write_bytes(make_network("torchvision").proto.SerializeToString())
    report = _quantized(model, tmp_path, cache, recipe=recipe, samples=32)
    assert report.layers_int8 > 10
    assert report.parity.sqnr_db > 20


def _of_a_fixed_batch(path: Path) -> Path:
    """Write a network of an old operator set, for four images."""
    weights = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    text = """<ir_version: 7, opset_import: ["" : 12]> old (float[4,3,32,32] image) => (float[4,8] scores) {
        made = Conv <pads = [1,1,1,1]> (image, weights)
        pooled = GlobalAveragePool(made)
        scores = Flatten <axis = 1> (pooled)
    }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "weights"))
    path.write_bytes(model.SerializeToString())
    return path


def test_a_graph_of_an_old_operator_set_and_a_fixed_batch(tmp_path, cache):
    report = _quantized(_of_a_fixed_batch(tmp_path / "old.onnx"), tmp_path, cache, samples=32)
    assert report.layers_int8 == 1
    assert "operator set 12 was lifted to 13" in report.notes
