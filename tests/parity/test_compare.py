"""Parity metrics against formulas written out plainly, edge cases, several outputs, and inner tensors."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pytest

from densenet_deploy.errors import DataError
from densenet_deploy.parity.compare import (
    ComparisonMeter,
    ParityMeter,
    compare,
    compare_outputs,
    matched_outputs,
    outputs_of,
    parity_of,
    worst_first,
)
from tests.function_runner import FunctionRunner
from tests.parity.layers import compare_layers

# Both sides sum the same float64 terms in another order: for a few thousand terms that moves under 1e-12 of the sum.
SUMMATION = 1e-12


def pair(shape=(40, 12), error=0.1, seed=0):
    """White noise and the same with an error, float64."""
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal(shape)
    return reference, reference + error * rng.standard_normal(shape)


# -- by hand


def test_metrics_of_four_numbers_are_those_counted_by_hand():
    parity = compare(np.array([[3.0, -4.0], [0.0, 0.0]]), np.array([[3.0, -2.0], [1.0, -2.0]]))
    # r − c = 0, −2, −1, 2; Σr² = 25, Σc² = 9 + 4 + 1 + 4 = 18, Σrc = 9 + 8, Σ(r − c)² = 9
    assert parity.max_abs == 2.0
    assert parity.mean_abs == 5 / 4
    assert parity.max_rel == pytest.approx(2e6, rel=SUMMATION)  # 2 / (0 + 1e-6)
    assert parity.mean_rel == pytest.approx((0 + 2 / 4.000001 + 1e6 + 2e6) / 4, rel=SUMMATION)
    assert parity.cosine == pytest.approx(17 / (5 * math.sqrt(18)), rel=SUMMATION)
    assert parity.sqnr_db == pytest.approx(10 * math.log10(25 / 9), rel=SUMMATION)
    # r about its means 1.5, −2: ±1.5, ∓2, hence 2 · 6.25; c about 2, −2: ±1, 0; the errors ±0.5, ∓2, hence 2 · 4.25
    assert parity.centred_sqnr_db == pytest.approx(10 * math.log10(12.5 / 8.5), rel=SUMMATION)
    assert (parity.top1_agreement, parity.top5_agreement) == (1.0, None)
    assert (parity.count, parity.nonfinite) == (4, 0)


def test_a_single_value_has_all_metrics():
    parity = compare(np.array([-2.0]), np.array([-3.0]))
    assert (parity.max_abs, parity.mean_abs, parity.cosine) == (1.0, 1.0, 1.0)
    assert parity.max_rel == parity.mean_rel == pytest.approx(1 / 2.000001, rel=SUMMATION)
    assert parity.sqnr_db == pytest.approx(10 * math.log10(4), rel=SUMMATION)
    assert (parity.centred_sqnr_db, parity.top1_agreement, parity.count) == (None, None, 1)


def test_small_errors_stay_small():
    parity = compare(np.full((2, 2), 2.0), np.full((2, 2), 2.0 - 2**-10))
    assert (parity.max_abs, parity.mean_abs) == (2**-10, 2**-10)
    assert parity.max_rel == pytest.approx(2**-11, rel=1e-6)  # ε beside a reference of 2
    assert parity.mean_rel == pytest.approx(2**-11, rel=1e-6)


def test_an_error_counts_alike_in_both_directions():
    for sign in (1, -1):
        parity = compare(np.array([[-1.0, -1.0]]), np.array([[-1.0, -1.0 + sign * 0.25]]))
        assert parity.max_abs == 0.25
        assert parity.max_rel == pytest.approx(0.25, rel=2e-6)  # ε beside a reference of 1
        assert parity.sqnr_db == pytest.approx(10 * math.log10(2 * 16), rel=SUMMATION)


def test_vectors_of_length_one_are_not_zero():
    parity = compare(np.array([[1.0, 0.0]]), np.array([[0.6, 0.8]]))
    assert parity.cosine == pytest.approx(0.6, rel=SUMMATION)
    assert compare(np.array([[3.0, 4.0]]), np.array([[1.0, 0.0]])).cosine == pytest.approx(0.6, rel=SUMMATION)
    noise_of_one = compare(np.array([[3.0, 4.0]]), np.array([[3.0, 5.0]]))
    assert noise_of_one.sqnr_db == pytest.approx(10 * math.log10(25), rel=SUMMATION)


def test_rounding_never_takes_the_cosine_beyond_one():
    ones = np.ones(3)  # 3 / (√3 · √3) is 1 + 2e-16
    assert compare(ones, ones).cosine == 1.0
    assert compare(ones, -ones).cosine == -1.0


ZEROS, ONES = np.zeros((2, 3)), np.ones((2, 3))


@pytest.mark.parametrize(
    ("reference", "candidate", "cosine", "sqnr_db"),
    [(ZEROS, ZEROS, 1.0, math.inf), (ZEROS, ONES, 0.0, -math.inf), (ONES, ZEROS, 0.0, 0.0)],
)
def test_an_array_of_zeros_is_like_itself_only(reference, candidate, cosine, sqnr_db):
    parity = compare(reference, candidate)
    assert (parity.cosine, parity.sqnr_db) == (cosine, sqnr_db)


# -- against formulas


def test_metrics_are_those_of_their_formulas():
    reference, candidate = pair()
    r, c = reference.ravel(), candidate.ravel()
    parity = compare(reference, candidate)
    assert parity.max_abs == np.max(np.abs(r - c))
    assert parity.mean_abs == pytest.approx(np.mean(np.abs(r - c)), rel=SUMMATION)
    assert parity.max_rel == np.max(np.abs(r - c) / (np.abs(r) + 1e-6))
    assert parity.mean_rel == pytest.approx(np.mean(np.abs(r - c) / (np.abs(r) + 1e-6)), rel=SUMMATION)
    assert parity.cosine == pytest.approx(r @ c / np.linalg.norm(r) / np.linalg.norm(c), rel=SUMMATION)
    assert parity.sqnr_db == pytest.approx(10 * np.log10(np.sum(r**2) / np.sum((r - c) ** 2)), rel=SUMMATION)
    assert (parity.count, parity.nonfinite) == (480, 0)


def test_agreements_are_those_of_sorting_every_row():
    reference, candidate = pair(error=1.0)
    best = [int(np.argmax(row)) for row in reference]
    order = [list(np.argsort(-row, kind="stable")) for row in candidate]
    parity = compare(reference, candidate)
    assert parity.top1_agreement == np.mean([b == o[0] for b, o in zip(best, order, strict=True)])
    assert parity.top5_agreement == np.mean([b in o[:5] for b, o in zip(best, order, strict=True)])
    assert 0 < parity.top1_agreement < parity.top5_agreement < 1


def test_the_centred_sqnr_is_that_of_its_formula():
    reference, candidate = (array + 5.0 for array in pair())
    noise = (reference - reference.mean(0)) - (candidate - candidate.mean(0))
    expected = 10 * np.log10(np.sum((reference - reference.mean(0)) ** 2) / np.sum(noise**2))
    parity = compare(reference, candidate)
    # the formula of this test loses the last digits of the means to the offset of 5
    assert parity.centred_sqnr_db == pytest.approx(expected, abs=1e-9)
    assert parity.sqnr_db > parity.centred_sqnr_db + 10  # a constant 5 beside a signal of variance 1: 14 dB


@pytest.mark.parametrize("cuts", [(1, 8), (2, 4, 39), (20,)], ids=str)
def test_batches_add_up_to_the_whole_however_they_are_cut(cuts):
    reference, candidate = (array + 3.0 for array in pair(error=1.0))
    meter = ParityMeter()
    for ours, theirs in zip(np.split(reference, cuts), np.split(candidate, cuts), strict=True):
        meter.update(ours, theirs)
    whole = compare(reference, candidate).to_json()
    assert meter.result().to_json() == {name: pytest.approx(value, rel=SUMMATION) for name, value in whole.items()}


def test_the_largest_error_of_any_batch_is_kept():
    meter = ParityMeter()
    for error in (0.25, 0.5, 0.125):
        meter.update(np.ones((1, 2)), np.ones((1, 2)) + error)
    assert meter.result().max_abs == 0.5
    assert meter.result().max_rel == pytest.approx(0.5, rel=2e-6)  # ε beside a reference of 1


def test_memory_does_not_grow_with_the_number_of_batches():
    reference, candidate = pair()
    meter = ParityMeter()
    meter.update(reference, candidate)
    tracemalloc.start()
    for _ in range(200):
        meter.update(reference, candidate)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2 * reference.nbytes  # keeping the 200 batches would hold 200 of it


def test_small_errors_on_large_values_do_not_cancel():
    reference = np.full((1, 1000), 1e6)
    candidate = reference + 1e-3
    # √(Σr²) / √(Σ(r−c)²) is 1e9; 1e6 + 1e-3 is itself rounded to 1.2e-10, which is 1e-7 of the error
    assert compare(reference, candidate).sqnr_db == pytest.approx(180.0, abs=1e-5)


def test_half_precision_is_measured_in_double():
    reference = np.full((1, 100), 300.0, np.float16)  # its square overflows float16
    parity = compare(reference, reference - np.float16(0.25))
    assert parity.sqnr_db == pytest.approx(20 * math.log10(1200), rel=SUMMATION)


def test_identical_arrays_have_infinite_sqnr_and_null_in_json():
    reference, _ = pair()
    parity = compare(reference, reference.copy())
    assert (parity.max_abs, parity.max_rel, parity.sqnr_db, parity.centred_sqnr_db) == (0.0, 0.0, math.inf, math.inf)
    assert parity.cosine == pytest.approx(1.0, rel=SUMMATION)
    assert parity.to_json()["sqnr_db"] is None


# -- agreement


def test_equal_scores_rank_the_lower_class_first():
    tied = np.array([[1.0, 1.0, 0.0]])
    assert compare(tied, np.array([[2.0, 1.0, 0.0]])).top1_agreement == 1.0
    assert compare(tied, np.array([[1.0, 2.0, 0.0]])).top1_agreement == 0.0
    assert compare(np.array([[0.0, 1.0, 0.0]]), tied).top1_agreement == 0.0


def test_the_sixth_of_equal_classes_is_not_among_the_first_five():
    flat = np.zeros((1, 8))
    fifth, sixth = np.eye(8)[[4]], np.eye(8)[[5]]
    assert compare(fifth, flat).top5_agreement == 1.0
    assert compare(sixth, flat).top5_agreement == 0.0


@pytest.mark.parametrize("shape", [(3, 1), (3,), (), (2, 2, 2), (3, 4, 2, 2)])
def test_agreement_has_no_meaning_without_class_scores(shape):
    parity = compare(np.ones(shape), np.ones(shape))
    assert (parity.top1_agreement, parity.top5_agreement) == (None, None)


@pytest.mark.parametrize(("classes", "top5"), [(2, None), (5, None), (6, 1.0)])
def test_top5_has_a_meaning_from_six_classes_on_and_top1_from_two(classes, top5):
    parity = compare(np.eye(classes), np.eye(classes))
    assert (parity.top1_agreement, parity.top5_agreement) == (1.0, top5)


def test_features_are_not_class_scores():
    assert compare(np.eye(8), np.eye(8), class_scores=False).top1_agreement is None


# -- values that are not finite


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_nonfinite_value_is_counted_and_its_sample_does_not_agree(broken):
    reference, candidate = np.eye(8), np.eye(8)
    candidate[3, 0] = broken
    parity = compare(reference, candidate)
    assert (parity.nonfinite, parity.count) == (1, 64)
    assert (parity.top1_agreement, parity.top5_agreement) == (7 / 8, 7 / 8)
    assert parity.max_abs == 0.0  # of the values that remain
    swapped = compare(candidate, reference)
    assert (swapped.nonfinite, swapped.top1_agreement) == (1, 7 / 8)


def test_means_are_over_the_values_that_are_finite():
    parity = compare(np.array([[1.0, 1.0, math.nan]]), np.array([[2.0, 4.0, 1.0]]))
    assert (parity.mean_abs, parity.count, parity.nonfinite) == (2.0, 3, 1)
    assert parity.mean_rel == pytest.approx(2.0, rel=2e-6)  # ε beside a reference of 1


def test_nothing_finite_leaves_numbers_without_meaning():
    parity = compare(np.ones((2, 8)), np.full((2, 8), math.nan))
    metrics = parity.to_json()
    assert math.isnan(parity.max_abs)
    assert (metrics.pop("count"), metrics.pop("nonfinite")) == (16, 16)
    assert (metrics.pop("top1_agreement"), metrics.pop("top5_agreement")) == (0.0, 0.0)
    assert set(metrics.values()) == {None}


def test_json_is_finite_numbers_or_null():
    for parity in (compare(*pair()), compare(ZEROS, ONES), compare(ONES, ONES)):
        assert json.loads(json.dumps(parity.to_json(), allow_nan=False)) == parity.to_json()


# -- the centred SQNR


def test_the_centred_sqnr_does_not_depend_on_an_offset_or_a_constant_error():
    reference, candidate = pair()
    plain = compare(reference, candidate).centred_sqnr_db
    # offsets of 1e6 leave 1e-10 of each value, against an error of 0.1
    assert compare(reference + 1e6, candidate + 1e6).centred_sqnr_db == pytest.approx(plain, abs=1e-6)
    assert compare(reference, candidate + 3.0).centred_sqnr_db == pytest.approx(plain, abs=1e-9)


def test_outputs_that_do_not_depend_on_the_image_have_no_signal():
    constant = np.full((3, 4), 0.1)  # of which the mean is not 0.1
    assert compare(constant, np.full((3, 4), 0.7)).centred_sqnr_db == math.inf
    varying = np.arange(12.0).reshape(3, 4)
    assert compare(constant, varying).centred_sqnr_db == -math.inf


@pytest.mark.parametrize("shape", [(1, 8), (8,), ()])
def test_the_centred_sqnr_needs_two_samples(shape):
    assert compare(np.ones(shape), np.zeros(shape)).centred_sqnr_db is None


def test_the_centred_sqnr_of_two_samples_of_one_value():
    # about the means 1 and 1.5: ∓1 and ∓1.5, which differ by ±0.5
    parity = compare(np.array([[0.0], [2.0]]), np.array([[0.0], [3.0]]))
    assert parity.centred_sqnr_db == pytest.approx(10 * math.log10(2 / 0.5), rel=SUMMATION)


def test_the_centred_sqnr_is_measured_unless_it_is_not_wanted():
    for meter, is_measured in ((ParityMeter(), True), (ParityMeter(centred=False), False)):
        meter.update(np.eye(3), np.eye(3) / 2)
        assert (meter.result().centred_sqnr_db is not None) == is_measured
        assert meter.result().top1_agreement == 1.0


def test_the_centred_sqnr_covers_the_samples_without_nan():
    reference, candidate = pair(shape=(6, 2, 4))
    broken = candidate.copy()
    broken[[0, 3], 1, 2] = math.nan
    kept = [1, 2, 4, 5]
    meter = ParityMeter()
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        meter.update(reference[rows], broken[rows])
    expected = compare(reference[kept], candidate[kept]).centred_sqnr_db
    assert meter.result().centred_sqnr_db == pytest.approx(expected, rel=SUMMATION)


# -- what cannot be compared


def test_different_shapes_are_refused():
    with pytest.raises(DataError) as caught:
        compare(np.zeros((2, 3)), np.zeros((2, 1)))  # which would broadcast
    assert caught.value.subject == "parity"


def test_samples_of_another_shape_are_refused_later_too():
    meter = ParityMeter()
    meter.update(np.zeros((2, 3)), np.zeros((2, 3)))
    with pytest.raises(DataError) as caught:
        meter.update(np.zeros((2, 4)), np.zeros((2, 4)))
    assert caught.value.subject == "parity"


NOTHING = {
    "no batch": ParityMeter().result,
    "no outputs": ComparisonMeter().result,
    "empty arrays": lambda: compare(np.zeros((0, 8)), np.zeros((0, 8))),
    "no batches": lambda: compare_outputs([], []),
}


@pytest.mark.parametrize("nothing", NOTHING.values(), ids=NOTHING)
def test_comparing_nothing_is_an_error(nothing):
    with pytest.raises(DataError) as caught:
        nothing()
    assert caught.value.subject == "parity"


# -- several outputs


def outputs(**arrays):
    return {name: np.array([values, values[::-1]], float) for name, values in arrays.items()}


REFERENCE = outputs(logits=[1, 2, 3], features=[4, 5, 6])


def test_every_output_is_compared_by_name():
    candidate = outputs(features=[4, 5, 7], logits=[1, 2, 3], other=[0])
    parities = compare_outputs([REFERENCE, REFERENCE], [candidate, candidate], {"logits"})
    assert list(parities) == ["logits", "features"]
    assert (parities["logits"].max_abs, parities["features"].max_abs) == (0.0, 1.0)
    assert (parities["logits"].top1_agreement, parities["features"].top1_agreement) == (1.0, None)
    assert parities["logits"].count == 12


def test_outputs_of_other_names_are_compared_by_position():
    candidate = outputs(scores=[1, 2, 4], features=[4, 5, 6])
    parities = compare_outputs([REFERENCE], [candidate])
    assert (parities["logits"].max_abs, parities["features"].max_abs) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("reference", "candidate", "pairs"),
    [
        ("ab", "ab", ["aa", "bb"]),
        ("ab", "ba", ["aa", "bb"]),
        ("ab", "abc", ["aa", "bb"]),
        ("ab", "cd", ["ac", "bd"]),
        ("abc", "dbe", ["ad", "bb", "ce"]),
        ("", "a", []),
    ],
)
def test_outputs_are_matched_by_name_and_the_others_by_position(reference, candidate, pairs):
    assert matched_outputs(list(reference), list(candidate)) == [tuple(names) for names in pairs]


@pytest.mark.parametrize(("candidate", "missing"), [("b", "a"), ("a", "b"), ("acd", "b"), ("", "a")])
def test_an_output_without_a_counterpart_is_named(candidate, missing):
    with pytest.raises(DataError) as caught:
        matched_outputs(["a", "b"], list(candidate))
    assert caught.value.subject == missing


@pytest.mark.parametrize(("ours", "theirs"), [(2, 3), (3, 2)])
def test_different_numbers_of_batches_are_refused(ours, theirs):
    with pytest.raises(DataError) as caught:
        compare_outputs(batches(ours), batches(theirs))
    assert caught.value.subject == "parity"


def means(batch):
    return {"means": batch.mean(axis=(2, 3))}


def test_two_runners_are_compared_on_the_same_samples_of_which_one_is_held_at_a_time():
    runs = []

    def halved(batch):
        runs.append(len(taken))
        return {"means": means(batch)["means"] / 2}

    def samples():
        for value in (1.0, 2.0, 4.0):
            taken.append(value)
            yield np.full((2, 3, 8, 8), value, np.float32)

    taken = [0.0]
    reference, candidate = FunctionRunner(means), FunctionRunner(halved)
    runs.clear()
    parities = parity_of(reference, candidate, samples())
    assert list(parities) == ["means"]
    assert (parities["means"].max_abs, parities["means"].count) == (2.0, 18)
    assert (reference.sizes, candidate.sizes) == ([2, 2, 2], [2, 2, 2])
    assert runs == [2, 3, 4]


def test_outputs_come_batch_by_batch():
    (first, second) = outputs_of(FunctionRunner(means), [np.ones((1, 3, 8, 8), np.float32) * value for value in (1, 2)])
    assert first["means"].tolist() == [[1.0] * 3]
    assert second["means"].tolist() == [[2.0] * 3]


# -- inner tensors


def batches(count=3, **errors):
    """Batches of tensors conv0, norm0, classifier, each with white noise of the given size added."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        clean = {name: rng.standard_normal((2, 8)) for name in ("conv0", "norm0", "classifier")}
        yield {name: array + errors.get(name, 0.0) * rng.standard_normal((2, 8)) for name, array in clean.items()}


def test_layers_come_in_the_execution_order_of_the_reference():
    reversed_names = ({name: batch[name] for name in reversed(batch)} for batch in batches())
    comparison = compare_layers(batches(), reversed_names)
    assert list(comparison.layers) == ["conv0", "norm0", "classifier"]
    assert comparison.skipped == {}


def test_the_parity_of_a_layer_covers_all_batches_and_only_what_layers_have():
    comparison = compare_layers(batches(), batches(norm0=0.1))
    ours, theirs = (np.concatenate([b["norm0"] for b in batches(**e)]) for e in ({}, {"norm0": 0.1}))
    found, expected = comparison.layers["norm0"], compare(ours, theirs)
    assert (found.count, found.max_abs) == (expected.count, expected.max_abs)
    assert (found.top1_agreement, found.centred_sqnr_db) == (None, None)
    assert found.sqnr_db == pytest.approx(expected.sqnr_db, rel=SUMMATION)


def test_a_layer_with_nan_is_worst_of_all():
    def broken():
        for batch in batches(classifier=5.0):
            yield batch | {"norm0": np.where(batch["norm0"] > 0, np.nan, batch["norm0"])}

    layers = compare_layers(batches(), broken()).layers
    assert list(worst_first(layers)) == ["norm0", "classifier", "conv0"]


def test_layers_that_do_not_match_are_skipped_with_the_reason():
    ours = {"fused": np.ones(3), "pool0": np.ones((1, 4)), "shape": np.ones((0, 2)), "conv0": np.ones((1, 2))}
    theirs = {"quantized": np.ones(3), "pool0": np.ones((1, 2, 2)), "shape": np.ones((0, 2)), "conv0": np.ones((1, 2))}
    comparison = compare_layers([ours], [theirs])
    assert list(comparison.layers) == ["conv0"]
    assert comparison.skipped == {
        "fused": "only in the reference",
        "pool0": "shape (1, 4) in the reference, (1, 2, 2) in the candidate",
        "shape": "empty",
        "quantized": "only in the candidate",
    }


def test_a_layer_missing_from_one_batch_is_skipped_for_the_first_reason():
    whole = {"conv0": np.ones((1, 2)), "norm0": np.ones((1, 2))}
    without = {"conv0": np.ones((1, 2))}
    comparison = compare_layers([whole, whole, without], [whole, without, whole])
    assert list(comparison.layers) == ["conv0"]
    assert comparison.layers["conv0"].count == 6
    assert comparison.skipped == {"norm0": "only in the reference"}
