"""The search of `tune` on machines whose true speeds are known: what it finds, spares, and never chooses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from densenet_deploy.analysis.pareto import undominated
from densenet_deploy.bench.machine import Machine
from densenet_deploy.bench.rounds import Interval
from densenet_deploy.parity.compare import ParityMeter
from densenet_deploy.workflows.tune.candidates import Candidate, ModelFile
from densenet_deploy.workflows.tune.report import TuneReport
from densenet_deploy.workflows.tune.results import Lap, Limits, Quality
from densenet_deploy.workflows.tune.search import HEAT_SIZE, PACES, Question, Search
from densenet_deploy.workflows.tune.track import Pace

MIB = 2**20
REFERENCE_MS = 10.0
WITHIN = 1.05  # of the best, as a choice has to be
MACHINE = Machine("cpu", 2, "system", "3", {}, "2026-01-01", 0.0)


def _quality(noise: float = 0.0, top1: float | None = None) -> Quality:
    """Answers to 64 images that differ from the float model's by `noise`."""
    rng = np.random.default_rng(0)
    wanted = rng.standard_normal((64, 10))
    meter = ParityMeter()
    meter.update(wanted, wanted + noise * rng.standard_normal(wanted.shape))
    return Quality(meter.result(), 64, "seeded inputs", top1, 0 if top1 is None else 1000)


@dataclass
class KnownMachine:
    """A track whose true latencies are known: each turn is off by a random factor, and `turns` counts them."""

    latency_ms: Callable[[Candidate], float]
    qualities: Mapping[str, Quality | str] = field(default_factory=dict)
    memory_mib: Callable[[Candidate], float] = lambda _one: 100.0
    noise: float = 0.02
    turns: dict[Candidate, int] = field(default_factory=dict)
    compared: list[tuple[str, str]] = field(default_factory=list)
    heats: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def heat(self, field: Sequence[Candidate], pace: Pace) -> dict[Candidate, Lap | str]:
        self.heats.append(len(field))
        reference = self._times(REFERENCE_MS, pace.rounds)
        return {one: self._lap(one, reference, pace) for one in field}

    def quality(self, file: ModelFile, backend: str) -> Quality | str:
        self.compared.append((file.form, backend))
        return self.qualities.get(file.form, _quality())

    def _times(self, true: float, rounds: int) -> np.ndarray:
        return true * np.exp(self.noise * self._rng.standard_normal(rounds))

    def _lap(self, one: Candidate, reference: np.ndarray, pace: Pace) -> Lap | str:
        true = self.latency_ms(one)
        if math.isnan(true):
            return "cannot run: no such operator"
        self.turns[one] = self.turns.get(one, 0) + pace.rounds
        times = self._times(true, pace.rounds)
        interval = Interval.of(list(times))
        speed = Interval.of(list(reference / times * one.batch))
        memory = int(self.memory_mib(one) * MIB)
        return Lap(speed, interval.median, interval.low, interval.high, memory, "cpu", "fp32", pace.rounds)


def _file(form: str, size: int = 1000) -> ModelFile:
    return ModelFile(Path(f"net.{form}.onnx"), "net", form, form.split(".")[0], f"hash of {form}", size)


def _candidates(
    forms: Sequence[str] = ("fp32", "fp16", "int8.openvino"), threads: Sequence[int] = (1, 2), batch: int = 1
) -> list[Candidate]:
    sizes = {"fp32": 4000, "fp16": 2000}
    return [
        Candidate(_file(form, sizes.get(form, 1000)), backend, count, batch)
        for form in forms
        for backend in ("onnxruntime", "openvino")
        for count in threads
    ]


def _true(one: Candidate) -> float:
    """Two threads, OpenVINO and INT8 are each faster."""
    forms = {"fp32": 20.0, "fp16": 24.0, "int8": 9.0}
    backend = 1.0 if one.backend == "openvino" else 1.3
    return forms[one.file.precision] * backend / (1.7 if one.threads == 2 else 1.0)


def _search(track: KnownMachine, candidates: Sequence[Candidate], limits: Limits | None = None, goal="latency"):
    question = Question(limits or Limits(), goal)
    tried = Search(track, question).run(candidates)
    return TuneReport(tried, question.limits, goal, "reference", MACHINE, 1.0, 0, 0, Path("state"))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_the_choice_is_near_the_best_whatever_the_machine(seed, noise):
    """True latencies drawn anew for every seed, some of them within per cents of each other."""
    candidates = _candidates(("fp32", "fp16", "bf16", "int8.openvino"), (1, 2, 4))
    drawn = dict(zip(candidates, 10 * np.random.default_rng(seed).uniform(0.8, 3.0, len(candidates)), strict=True))
    track = KnownMachine(drawn.__getitem__, noise=noise)
    chosen = _search(track, candidates).chosen
    assert chosen is not None
    tolerance = WITHIN if noise < 0.05 else 1.15  # a turn that is off by 10 % cannot tell 5 % in 15 rounds for sure
    assert drawn[chosen.candidate] <= min(drawn.values()) * tolerance


def test_the_search_times_far_less_than_everything_at_length():
    candidates = _candidates(("fp32", "fp16", "bf16", "int8.openvino"), (1, 2, 4, 8))
    drawn = dict(zip(candidates, np.linspace(5, 60, len(candidates)), strict=True))
    track = KnownMachine(drawn.__getitem__)
    assert _search(track, candidates).chosen.candidate == candidates[0]
    at_length = sum(pace.rounds for pace in PACES) * len(candidates)
    assert sum(track.turns.values()) < at_length / 3
    assert max(track.heats) <= HEAT_SIZE


def test_all_alike_are_all_followed_no_further_than_the_size_of_a_heat():
    track = KnownMachine(lambda _one: 10.0, noise=0.001)
    candidates = _candidates()
    assert _search(track, candidates).chosen is not None
    assert sum(turns == sum(pace.rounds for pace in PACES) for turns in track.turns.values()) <= HEAT_SIZE


def test_of_equally_fast_ones_the_better_answers_then_the_smaller_file_is_taken():
    candidates = [Candidate(_file(form, size), "openvino", 1, 1) for form, size in (("fp32", 4000), ("fp16", 2000))]
    same = KnownMachine(lambda _one: 10.0, noise=0.0)
    assert _search(same, candidates).chosen.candidate.file.form == "fp16"
    worse = KnownMachine(lambda _one: 10.0, {"fp16": _quality(0.05)}, noise=0.0)
    assert _search(worse, candidates).chosen.candidate.file.form == "fp32"


def test_a_dominated_candidate_is_neither_chosen_nor_on_the_front():
    """BF16 is slower, larger in memory, no smaller as a file and answers worse than FP16."""
    files = [_file("fp16", 2000), _file("bf16", 2000)]
    candidates = [Candidate(file, "openvino", 1, 1) for file in files]
    track = KnownMachine(
        lambda one: 10.0 if one.file.form == "fp16" else 11.5,
        {"bf16": _quality(0.05)},
        lambda one: 100.0 if one.file.form == "fp16" else 120.0,
    )
    report = _search(track, candidates)
    assert report.chosen.candidate.file.form == "fp16"
    assert [one.candidate.file.form for one in report.pareto] == ["fp16"]


def test_a_slower_candidate_is_on_the_front_where_it_is_better_at_something():
    report = _search(KnownMachine(_true, {"int8.openvino": _quality(0.05)}), _candidates())
    front = {one.candidate.file.form for one in report.pareto}
    assert front == {"fp32", "fp16", "int8.openvino"}
    assert report.chosen.candidate.file.form == "int8.openvino"
    assert report.chosen in report.pareto


def test_threads_that_do_not_help_are_dropped_in_the_first_heat():
    track = KnownMachine(_true)
    report = _search(track, _candidates())
    single = [one for one in report.tried if one.candidate.threads == 1]
    assert all("slower than" in one.fate for one in single)
    assert all(track.turns[one.candidate] == PACES[0].rounds for one in single)


def test_a_drop_that_is_too_large_is_not_chosen_and_one_that_is_kept_is():
    qualities = {"fp32": _quality(top1=0.80), "fp16": _quality(top1=0.799), "int8.openvino": _quality(top1=0.78)}
    strict = _search(KnownMachine(_true, qualities), _candidates(), Limits(max_drop=0.5))
    assert strict.chosen.candidate.file.form == "fp32"
    assert any("--max-drop" in one.fate for one in strict.tried)
    loose = _search(KnownMachine(_true, qualities), _candidates(), Limits(max_drop=2.0))
    assert loose.chosen.candidate.file.form == "int8.openvino"
    assert loose.chosen.drop == pytest.approx(2.0)


def test_without_labels_a_drop_counts_the_answers_that_changed():
    quality = _quality(0.5)
    changed = 100 * (1 - quality.parity.top1_agreement)
    assert changed > 0
    qualities = {"int8.openvino": quality}
    assert _search(KnownMachine(_true, qualities), _candidates(), Limits(max_drop=changed)).chosen.drop == changed
    kept = _search(KnownMachine(_true, qualities), _candidates(), Limits(max_drop=changed - 0.1)).chosen
    assert kept.candidate.file.form == "fp32"


def test_memory_and_latency_are_kept_together():
    def memory(one: Candidate) -> float:
        return 300.0 if one.backend == "openvino" else 100.0

    report = _search(KnownMachine(_true, memory_mib=memory), _candidates(), Limits(None, 8.0, 200 * MIB))
    assert report.chosen.candidate.backend == "onnxruntime"
    assert report.chosen.candidate.file.form == "int8.openvino"
    assert report.chosen.lap.latency_ms <= 8.0


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(max_latency_ms=1.0), "--max-latency 1 cannot be kept"),
        (Limits(max_memory_bytes=50 * MIB), "--max-memory 50 cannot be kept"),
        (Limits(max_drop=0.0), "--max-drop 0 cannot be kept"),
    ],
)
def test_what_cannot_be_kept_is_named(limits, said):
    forms = ("int8.openvino",)
    track = KnownMachine(_true, {"int8.openvino": _quality(0.5)})
    report = _search(track, _candidates(forms), limits)
    assert report.chosen is None
    assert said in report.reason
    assert report.failure.exit_code == 4
    assert said in str(report.failure)
    assert report.to_json()["chosen"] is None


def test_limits_that_hold_alone_and_not_together_are_told_so():
    def memory(one: Candidate) -> float:
        return 300.0 if one.threads == 2 else 100.0

    report = _search(KnownMachine(_true, memory_mib=memory), _candidates(), Limits(None, 7.0, 200 * MIB))
    assert report.chosen is None
    assert "each limit can be kept alone" in report.reason


def test_what_cannot_run_or_gives_nan_is_left_out_with_the_reason():
    broken = ParityMeter()
    broken.update(np.ones((4, 3)), np.full((4, 3), np.nan))
    nan = Quality(broken.result(), 4, "seeded inputs")
    track = KnownMachine(
        lambda one: math.nan if one.file.form == "bf16" else _true(one), {"int8.openvino": nan, "fp16": "cannot run"}
    )
    report = _search(track, _candidates(("fp32", "fp16", "bf16", "int8.openvino")))
    fates = {one.candidate.file.form: one.fate for one in report.tried if one.candidate.threads == 2}
    assert fates["bf16"] == "cannot run: no such operator"
    assert "NaN" in fates["int8.openvino"]
    assert fates["fp16"] == "cannot run"
    assert report.chosen.candidate.file.form == "fp32"


def test_nothing_runs():
    report = _search(KnownMachine(lambda _one: math.nan), _candidates())
    assert report.chosen is None
    assert "no candidate runs here" in report.reason
    assert report.pareto == ()


def test_batches_matter_to_throughput_alone():
    """A batch of eight takes as long as five calls of one."""
    candidates = [*_candidates(threads=(2,)), *_candidates(threads=(2,), batch=8)]
    track = KnownMachine(lambda one: _true(one) * (5 if one.batch == 8 else 1))
    assert _search(track, candidates).chosen.candidate.batch == 1
    assert _search(track, candidates, goal="throughput").chosen.candidate.batch == 8
    short = _search(track, candidates, Limits(max_latency_ms=10.0), goal="throughput").chosen
    assert short.candidate.batch == 1


def test_answers_are_not_compared_where_a_limit_is_missed_for_sure():
    track = KnownMachine(_true)
    _search(track, _candidates(), Limits(max_latency_ms=8.0))
    assert set(track.compared) == {("int8.openvino", "openvino"), ("int8.openvino", "onnxruntime")}


def test_a_report_names_every_candidate_once():
    report = _search(KnownMachine(_true), _candidates())
    facts = report.to_json()
    assert len(facts["candidates"]) == len(_candidates())
    assert facts["chosen"]["reason"].startswith("the shortest call of ")
    assert {name: facts["chosen"][name] for name in facts["pareto"][0]} in facts["pareto"]
    assert all(one["outcome"] for one in facts["candidates"])
    text = report.to_text()
    assert "chosen      net.int8.openvino.onnx" in text
    assert "--backend openvino --threads 2 --batch 1" in text


def test_laps_and_qualities_survive_being_kept():
    lap = Lap(Interval(1.0, 0.9, 1.1), 3.0, 2.0, 4.0, MIB, "cpu", "fp32", 3)
    assert Lap.read(lap.to_json()) == lap
    for quality in (_quality(), _quality(0.1, 0.5)):
        assert Quality.read(quality.to_json()) == quality
    with pytest.raises(KeyError):
        Quality.read({})


def test_the_undominated():
    assert undominated([(1.0, 2.0), (2.0, 1.0), (2.0, 2.0)]) == (0, 1)
    assert undominated([(1.0, 1.0), (1.0, 1.0)]) == (0,)
    assert undominated([]) == ()
