"""The search of `tune` on machines whose true speeds are known: what it finds, skips, and never chooses."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from densenet_deploy.analysis.choice import overlap, undominated
from densenet_deploy.bench.machine import Machine
from densenet_deploy.bench.rounds import Interval
from densenet_deploy.parity.compare import ParityMeter
from densenet_deploy.workflows.tune.cache import ResultCache
from densenet_deploy.workflows.tune.candidates import ModelFile, Trial
from densenet_deploy.workflows.tune.measure import Budget, Failure, Quality, SpeedResults, TrialSpeed
from densenet_deploy.workflows.tune.report import TuneReport, report_of
from densenet_deploy.workflows.tune.search import BUDGETS, GROUP_SIZE, Limits, Search

MIB = 2**20
REFERENCE_MS = 10.0
WITHIN = 1.05  # of the best, as a choice has to be
MACHINE = Machine("cpu", 2, "system", "3", {}, "2026-01-01", 0.0)


def _quality(noise: float = 0.0, top1: float | None = None, auroc: float | None = None) -> Quality:
    """Answers to 64 images that differ from the FP32 model's by `noise`."""
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((64, 10))
    meter = ParityMeter()
    meter.update(reference, reference + noise * rng.standard_normal(reference.shape))
    labelled = 0 if top1 is None and auroc is None else 1000
    return Quality(meter.result(), 64, "seeded inputs", top1, labelled, auroc)


def _file(form: str, size: int = 1000) -> ModelFile:
    return ModelFile(Path(f"net.{form}.onnx"), "net", form, form.split(".")[0], f"hash of {form}", size)


@dataclass
class KnownMachine:
    """A measurer whose true latencies are known: each round is off by a random factor, and `rounds` counts them."""

    latency_ms: Callable[[Trial], float]
    qualities: Mapping[str, Quality | Failure] = field(default_factory=dict)
    memory_mib: Callable[[Trial], float] = lambda _one: 100.0
    noise: float = 0.02
    rounds: dict[Trial, int] = field(default_factory=dict)
    compared: list[tuple[str, str]] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    reference: Trial = field(default_factory=lambda: Trial(_file("fp32", 4000), "onnxruntime", 2, 1))

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def speeds(self, trials: Sequence[Trial], budget: Budget) -> SpeedResults:
        self.groups.append(len(trials))
        reference = self._times(REFERENCE_MS, budget.rounds)
        return SpeedResults(tuple(reference), tuple(self._speed(one, reference, budget) for one in trials))

    def quality(self, file: ModelFile, backend: str) -> Quality | Failure:
        self.compared.append((file.form, backend))
        return self.qualities.get(file.form, _quality())

    def _times(self, true: float, rounds: int) -> np.ndarray:
        return true * np.exp(self.noise * self._rng.standard_normal(rounds))

    def _speed(self, one: Trial, reference: np.ndarray, budget: Budget) -> TrialSpeed | Failure:
        true = self.latency_ms(one)
        if math.isnan(true):
            return Failure("cannot run: no such operator")
        self.rounds[one] = self.rounds.get(one, 0) + budget.rounds
        speed = Interval.of(list(reference / self._times(true, budget.rounds) * one.batch))
        return TrialSpeed(speed, int(self.memory_mib(one) * MIB), "cpu", "fp32")


def _trials(
    forms: Sequence[str] = ("fp32", "fp16", "int8.openvino"), threads: Sequence[int] = (1, 2), batch: int = 1
) -> list[Trial]:
    sizes = {"fp32": 4000, "fp16": 2000}
    return [
        Trial(_file(form, sizes.get(form, 1000)), backend, count, batch)
        for form in forms
        for backend in ("onnxruntime", "openvino")
        for count in threads
    ]


def _true(one: Trial) -> float:
    """Two threads, OpenVINO and INT8 are each faster."""
    forms = {"fp32": 20.0, "fp16": 24.0, "int8": 9.0}
    backend = 1.0 if one.backend == "openvino" else 1.3
    return forms[one.file.precision] * backend / (1.7 if one.threads == 2 else 1.0)


def _search(measurer: KnownMachine, trials: Sequence[Trial], limits: Limits | None = None, goal="latency"):
    search = Search(measurer, limits or Limits(), goal)
    chosen = search.run(trials)
    report = report_of(search, trials, machine=MACHINE, seconds=1.0, results=ResultCache(Path("no state")))
    assert (chosen is None) == (report.chosen is None)
    return report, chosen


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_the_choice_is_near_the_best_on_any_machine(seed, noise):
    """True latencies are drawn anew for every seed, some of them within percents of each other."""
    trials = _trials(("fp32", "fp16", "bf16", "int8.openvino"), (1, 2, 4))
    drawn = dict(zip(trials, 10 * np.random.default_rng(seed).uniform(0.8, 3.0, len(trials)), strict=True))
    _, chosen = _search(KnownMachine(drawn.__getitem__, noise=noise), trials)
    assert chosen is not None
    tolerance = WITHIN if noise < 0.05 else 1.15  # a round that is off by 10 % cannot tell 5 % in 15 rounds
    assert drawn[chosen] <= min(drawn.values()) * tolerance


@pytest.mark.parametrize("seed", range(20))
def test_sentence_table_and_figures_agree_on_noisy_machines(seed):
    trials = _trials(("fp32", "fp16", "bf16", "int8.openvino"), (1, 2, 4))
    drawn = dict(zip(trials, 10 * np.random.default_rng(seed).uniform(0.8, 1.4, len(trials)), strict=True))
    measurer = KnownMachine(drawn.__getitem__, noise=0.3)
    measurer._rng = np.random.default_rng(seed)
    report, _ = _search(measurer, trials)
    chosen = report.chosen
    assert chosen is not None
    timed = [one for one in report.candidates if one.latency_ms is not None and one.parity is not None]
    for one in timed:
        if one.latency_ms < chosen.latency_ms:
            assert one.interval_ms[1] >= chosen.interval_ms[0], "what has the better median is as fast for all we know"
    ties = [one for one in timed if one.key != chosen.key and overlap(one.interval_ms, chosen.interval_ms)]
    assert ("As fast as" in report.reason) == bool(ties)
    assert ("The fastest of" in report.reason) == (not ties)
    rows = [row.split() for row in str(report).splitlines() if "  chosen  " in row]
    assert len(rows) == 1
    assert f"{chosen.latency_ms:.2f}" in rows[0]
    assert sum("  as fast  " in row for row in str(report).splitlines()) == len(ties)
    for one in timed:
        assert one.latency_ms * one.speedup.median == pytest.approx(chosen.latency_ms * chosen.speedup.median)


def test_the_search_times_far_less_than_everything_at_length():
    trials = _trials(("fp32", "fp16", "bf16", "int8.openvino"), (1, 2, 4, 8))
    drawn = dict(zip(trials, np.linspace(5, 60, len(trials)), strict=True))
    measurer = KnownMachine(drawn.__getitem__)
    assert _search(measurer, trials)[1] == trials[0]
    at_length = sum(budget.rounds for budget in BUDGETS) * len(trials)
    assert sum(measurer.rounds.values()) < at_length / 3
    assert max(measurer.groups) <= GROUP_SIZE


def test_if_all_are_alike_only_a_few_are_timed_at_length():
    measurer = KnownMachine(lambda _one: 10.0, noise=0.001)
    assert _search(measurer, _trials())[1] is not None
    at_length = BUDGETS[0].rounds + BUDGETS[2].rounds
    assert sum(rounds >= at_length for rounds in measurer.rounds.values()) <= 4 * GROUP_SIZE


def test_among_equally_fast_ones_the_better_answers_then_the_smaller_file_decide():
    trials = [Trial(_file(form, size), "openvino", 1, 1) for form, size in (("fp32", 4000), ("fp16", 2000))]
    same = KnownMachine(lambda _one: 10.0, noise=0.0)
    assert _search(same, trials)[1].file.form == "fp16"
    worse = KnownMachine(lambda _one: 10.0, {"fp16": _quality(0.05)}, noise=0.0)
    assert _search(worse, trials)[1].file.form == "fp32"


def test_a_choice_that_is_not_the_fastest_says_so():
    trials = [Trial(_file(form), "openvino", 1, 1) for form in ("fp32", "fp16")]
    true = {"fp32": 10.0, "fp16": 9.95}
    measurer = KnownMachine(lambda one: true[one.file.form], {"fp16": _quality(0.05)}, noise=0.004)
    report, chosen = _search(measurer, trials)
    assert chosen.file.form == "fp32"
    assert report.chosen.latency_ms > min(one.latency_ms for one in report.candidates)
    assert "As fast as net.fp16.onnx" in report.reason
    assert "Chosen over it for better answers" in report.reason
    assert "fp32" in [one.form for one in report.pareto]


def test_a_dominated_candidate_is_neither_chosen_nor_on_the_front():
    """BF16 is slower, larger in memory, not smaller as a file and answers worse than FP16."""
    trials = [Trial(file, "openvino", 1, 1) for file in (_file("fp16", 2000), _file("bf16", 2000))]
    measurer = KnownMachine(
        lambda one: 10.0 if one.file.form == "fp16" else 11.5,
        {"bf16": _quality(0.05)},
        lambda one: 100.0 if one.file.form == "fp16" else 120.0,
    )
    report, chosen = _search(measurer, trials)
    assert chosen.file.form == "fp16"
    assert [one.form for one in report.pareto] == ["fp16"]


def test_a_slower_candidate_is_on_the_front_if_it_is_better_at_something():
    report, chosen = _search(KnownMachine(_true, {"int8.openvino": _quality(0.05)}), _trials())
    assert {one.form for one in report.pareto} == {"fp32", "fp16", "int8.openvino"}
    assert chosen.file.form == "int8.openvino"
    assert [one.form for one in report.pareto if one.outcome == "chosen"] == ["int8.openvino"]


def test_threads_that_do_not_help_are_dropped_in_the_first_round():
    measurer = KnownMachine(_true)
    report, _ = _search(measurer, _trials())
    single = [one for one in report.candidates if one.threads == 1]
    assert all("slower than" in one.outcome for one in single)
    assert all(rounds == BUDGETS[0].rounds for one, rounds in measurer.rounds.items() if one.threads == 1)


def test_a_drop_that_is_too_large_is_not_chosen_and_one_within_the_limit_is():
    qualities = {"fp32": _quality(top1=0.80), "fp16": _quality(top1=0.799), "int8.openvino": _quality(top1=0.78)}
    strict, chosen = _search(KnownMachine(_true, qualities), _trials(), Limits(max_drop=0.5))
    assert chosen.file.form == "fp32"
    assert any("--max-drop" in one.outcome for one in strict.candidates)
    loose, chosen = _search(KnownMachine(_true, qualities), _trials(), Limits(max_drop=2.0))
    assert chosen.file.form == "int8.openvino"
    assert loose.chosen.drop_points == pytest.approx(2.0)
    assert (loose.chosen.top1, loose.chosen.labelled) == (0.78, 1000)
    assert "top-1 78.00% against 80.00% of 1000 images" in loose.reason


def test_the_drop_of_a_multilabel_model_is_that_of_its_auroc():
    qualities = {"fp32": _quality(auroc=0.80), "fp16": _quality(auroc=0.799), "int8.openvino": _quality(auroc=0.78)}
    _, chosen = _search(KnownMachine(_true, qualities), _trials(), Limits(max_drop=0.5))
    assert chosen.file.form == "fp32"
    loose, chosen = _search(KnownMachine(_true, qualities), _trials(), Limits(max_drop=2.0))
    assert chosen.file.form == "int8.openvino"
    assert loose.chosen.drop_points == pytest.approx(2.0)
    assert (loose.chosen.top1, loose.chosen.auroc, loose.chosen.labelled) == (None, 0.78, 1000)
    assert "AUROC 0.7800 against 0.8000 of 1000 images" in loose.reason
    header, first, *_ = loose.to_text().partition("#  ")[2].splitlines()
    assert "  AUROC  " in header
    assert "0.7800" in first


def test_without_labels_a_drop_counts_the_answers_that_changed():
    quality = _quality(0.5)
    changed = 100 * (1 - quality.parity.top1_agreement)
    assert changed > 0
    qualities = {"int8.openvino": quality}
    report, _ = _search(KnownMachine(_true, qualities), _trials(), Limits(max_drop=changed))
    assert report.chosen.drop_points == changed
    _, kept = _search(KnownMachine(_true, qualities), _trials(), Limits(max_drop=changed - 0.1))
    assert kept.file.form == "fp32"


def test_memory_and_latency_are_kept_together():
    def memory(one: Trial) -> float:
        return 300.0 if one.backend == "openvino" else 100.0

    report, chosen = _search(KnownMachine(_true, memory_mib=memory), _trials(), Limits(None, 8.0, 200 * MIB))
    assert (chosen.backend, chosen.file.form) == ("onnxruntime", "int8.openvino")
    assert report.chosen.latency_ms <= 8.0
    assert report.chosen.limits_missed == ()


@pytest.mark.parametrize(
    ("limits", "option"),
    [
        (Limits(max_latency_ms=1.0), "--max-latency 1 cannot be kept"),
        (Limits(max_memory_bytes=50 * MIB), "--max-memory 50 cannot be kept"),
        (Limits(max_drop=0.0), "--max-drop 0 cannot be kept"),
    ],
)
def test_a_limit_that_cannot_be_kept_is_named(limits, option):
    measurer = KnownMachine(_true, {"int8.openvino": _quality(0.5)})
    report, _ = _search(measurer, _trials(("int8.openvino",)), limits)
    assert report.chosen is None
    assert option in report.reason
    assert report.failure.exit_code == 4
    assert option in str(report.failure)
    assert report.to_json()["chosen"] is None
    assert option in str(report)


def test_limits_that_can_only_be_kept_one_by_one_are_reported():
    def memory(one: Trial) -> float:
        return 300.0 if one.threads == 2 else 100.0

    report, _ = _search(KnownMachine(_true, memory_mib=memory), _trials(), Limits(None, 7.0, 200 * MIB))
    assert report.chosen is None
    assert "each limit can be kept alone" in report.reason


def test_what_cannot_run_or_gives_nan_is_dropped_with_the_reason():
    broken = ParityMeter()
    broken.update(np.ones((4, 3)), np.full((4, 3), np.nan))
    nan = Quality(broken.result(), 4, "seeded inputs")
    measurer = KnownMachine(
        lambda one: math.nan if one.file.form == "bf16" else _true(one),
        {"int8.openvino": nan, "fp16": Failure("cannot run")},
    )
    report, chosen = _search(measurer, _trials(("fp32", "fp16", "bf16", "int8.openvino")))
    outcomes = {one.form: one.outcome for one in report.candidates if one.threads == 2}
    assert outcomes["bf16"] == "cannot run: no such operator"
    assert "NaN" in outcomes["int8.openvino"]
    assert outcomes["fp16"] == "cannot run"
    assert chosen.file.form == "fp32"


def test_a_finalist_that_fails_later_is_not_chosen():
    trials = [Trial(_file(form), "openvino", 1, 1) for form in ("fp32", "fp16")]

    class Unreliable(KnownMachine):
        """FP16 is the faster one, and fails when it is timed at length."""

        def _speed(self, one: Trial, reference: np.ndarray, budget: Budget) -> TrialSpeed | Failure:
            if one.file.form == "fp16" and budget.rounds > BUDGETS[0].rounds:
                return Failure("cannot run: its process was killed")
            return super()._speed(one, reference, budget)

    report, chosen = _search(Unreliable(lambda one: 10.0 if one.file.form == "fp32" else 9.95), trials)
    assert chosen.file.form == "fp32"
    assert [one.outcome for one in report.candidates if one.form == "fp16"] == ["cannot run: its process was killed"]


def test_nothing_runs():
    report, _ = _search(KnownMachine(lambda _one: math.nan), _trials())
    assert report.chosen is None
    assert report.pareto == ()
    assert report.failure is not None


def test_batches_matter_to_throughput_only():
    """A batch of eight takes as long as five calls of one."""
    trials = [*_trials(threads=(2,)), *_trials(threads=(2,), batch=8)]
    measurer = KnownMachine(lambda one: _true(one) * (5 if one.batch == 8 else 1))
    assert _search(measurer, trials)[1].batch == 1
    assert _search(measurer, trials, goal="throughput")[1].batch == 8
    assert _search(measurer, trials, Limits(max_latency_ms=10.0), goal="throughput")[1].batch == 1


def test_answers_are_not_compared_where_a_limit_is_certainly_missed():
    measurer = KnownMachine(_true)
    _search(measurer, _trials(), Limits(max_latency_ms=8.0))
    assert set(measurer.compared) == {("int8.openvino", "openvino"), ("int8.openvino", "onnxruntime")}


def test_a_report_reads_its_own_json_and_names_the_file_to_ship():
    report, chosen = _search(KnownMachine(_true), _trials())
    facts = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert TuneReport.from_json(facts) == report
    assert facts["chosen"]["model"] == str(chosen.file.path)
    assert facts["chosen"]["path"] == str(chosen.file.path.absolute())
    assert facts["chosen"]["sha256"] == chosen.file.sha256
    assert facts["chosen"]["command"].startswith("densenet-deploy benchmark ")
    assert facts["chosen"]["reason"] == facts["reason"]
    assert facts["dry_run"] is False


def test_a_report_names_every_candidate_once():
    report, _ = _search(KnownMachine(_true), _trials())
    facts = report.to_json()
    assert len(facts["candidates"]) == len(_trials())
    assert {name: facts["chosen"][name] for name in facts["pareto"][0]} in facts["pareto"]
    assert all(one["outcome"] for one in facts["candidates"])
    assert "chosen      net.int8.openvino.onnx" in str(report)
    assert "--backend openvino --threads 2 --batch 1" in str(report)


def test_the_undominated():
    assert undominated([(1.0, 2.0), (2.0, 1.0), (2.0, 2.0)]) == (0, 1)
    assert undominated([(1.0, 1.0), (1.0, 1.0)]) == (0,)
    assert undominated([]) == ()


def test_a_candidate_says_what_it_is_and_how_fast():
    report, _ = _search(KnownMachine(_true, noise=0.0), _trials())
    chosen = report.chosen
    assert str(chosen) == f"{chosen.title}: {chosen.reason}"
    (front, *_) = report.pareto
    assert str(front) == f"{front.title}: {front.latency_ms:.2f} ms per call"
    assert str(dataclasses.replace(front, latency_ms=None)) == f"{front.title}: not timed"
