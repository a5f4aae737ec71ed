"""Parity metrics against formulas written out plainly, and what each means at the edges."""

import json
import math
import tracemalloc

import numpy as np
import pytest

from densenet_deploy.errors import DataError
from densenet_deploy.parity.compare import ParityMeter, compare

# Both sides sum the same float64 terms in another order: for a few thousand terms that moves under 1e-12 of the sum.
SUMMATION = 1e-12


def pair(shape=(40, 12), error=0.1, seed=0):
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal(shape, np.float32)
    return reference, reference + error * rng.standard_normal(shape, np.float32)


def test_metrics_are_those_of_their_formulas():
    reference, candidate = pair()
    r, c = reference.astype(float).ravel(), candidate.astype(float).ravel()
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


def test_batches_add_up_to_the_whole_however_they_are_cut():
    reference, candidate = pair(error=1.0)
    meter = ParityMeter()
    for part in (slice(0, 1), slice(1, 8), slice(8, 40)):
        meter.update(reference[part], candidate[part])
    whole = compare(reference, candidate).to_json()
    assert meter.result().to_json() == {name: pytest.approx(value, rel=SUMMATION) for name, value in whole.items()}


def test_memory_does_not_grow_with_the_number_of_batches():
    reference, candidate = pair()
    meter = ParityMeter()
    meter.update(reference, candidate)
    tracemalloc.start()
    for _ in range(200):
        meter.update(reference, candidate)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < reference.nbytes  # one batch; keeping the 200 would hold 200 of it


def test_small_errors_on_large_values_do_not_cancel():
    reference = np.full((1, 1000), 1e6)
    candidate = reference + 1e-3
    # √(Σr²) / √(Σ(r−c)²) is 1e9; 1e6 + 1e-3 is itself rounded to 1.2e-10, which is 1e-7 of the error
    assert compare(reference, candidate).sqnr_db == pytest.approx(180.0, abs=1e-5)


def test_half_precision_is_measured_in_double():
    reference = np.full((1, 100), 300.0, np.float16)  # its square overflows float16
    assert compare(reference, reference).cosine == pytest.approx(1.0, rel=SUMMATION)


def test_identical_arrays_have_infinite_sqnr_and_null_in_json():
    reference, _ = pair()
    parity = compare(reference, reference.copy())
    assert (parity.max_abs, parity.max_rel, parity.sqnr_db) == (0.0, 0.0, math.inf)
    assert parity.cosine == pytest.approx(1.0, rel=SUMMATION)
    assert parity.to_json()["sqnr_db"] is None


ZEROS, ONES = np.zeros((2, 3)), np.ones((2, 3))


@pytest.mark.parametrize(
    ("reference", "candidate", "cosine", "sqnr_db"),
    [(ZEROS, ZEROS, 1.0, math.inf), (ZEROS, ONES, 0.0, -math.inf), (ONES, ZEROS, 0.0, 0.0), (ONES, -ONES, -1.0, None)],
)
def test_zero_and_opposite_arrays(reference, candidate, cosine, sqnr_db):
    parity = compare(reference, candidate)
    assert parity.cosine == pytest.approx(cosine, rel=SUMMATION)
    assert sqnr_db is None or parity.sqnr_db == sqnr_db


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


@pytest.mark.parametrize("shape", [(3, 1), (3,), (3, 4, 2, 2)])
def test_agreement_has_no_meaning_without_class_scores(shape):
    parity = compare(np.ones(shape), np.ones(shape))
    assert (parity.top1_agreement, parity.top5_agreement) == (None, None)


def test_top5_has_no_meaning_among_five_classes_but_top1_has():
    parity = compare(np.eye(5), np.eye(5))
    assert (parity.top1_agreement, parity.top5_agreement) == (1.0, None)


def test_features_are_no_class_scores():
    assert compare(np.eye(8), np.eye(8), class_scores=False).top1_agreement is None


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_broken_value_is_counted_and_its_sample_agrees_with_nothing(broken):
    reference, candidate = np.eye(8), np.eye(8)
    candidate[3, 0] = broken
    parity = compare(reference, candidate)
    assert (parity.nonfinite, parity.count) == (1, 64)
    assert (parity.top1_agreement, parity.top5_agreement) == (7 / 8, 7 / 8)
    assert parity.max_abs == 0.0  # of the values that remain
    assert compare(candidate, reference).nonfinite == 1


def test_nothing_finite_leaves_numbers_without_meaning():
    parity = compare(np.ones((2, 8)), np.full((2, 8), math.nan))
    metrics = parity.to_json()
    assert (metrics.pop("count"), metrics.pop("nonfinite")) == (16, 16)
    assert (metrics.pop("top1_agreement"), metrics.pop("top5_agreement")) == (0.0, 0.0)
    assert set(metrics.values()) == {None}


def test_json_is_finite_numbers_or_null():
    for parity in (compare(*pair()), compare(ZEROS, ONES), compare(ONES, ONES)):
        assert json.loads(json.dumps(parity.to_json(), allow_nan=False)) == parity.to_json()


def test_different_shapes_are_refused_with_both_named():
    with pytest.raises(DataError, match=r"\(2, 3\).*\(2, 4\)"):
        compare(np.zeros((2, 3)), np.zeros((2, 4)))


def test_samples_of_another_shape_are_refused_later_too():
    meter = ParityMeter()
    meter.update(np.zeros((2, 3)), np.zeros((2, 3)))
    with pytest.raises(DataError, match="followed by"):
        meter.update(np.zeros((2, 4)), np.zeros((2, 4)))


def test_nothing_compared_is_no_success():
    with pytest.raises(DataError, match="nothing was compared"):
        ParityMeter().result()
    with pytest.raises(DataError, match="nothing was compared"):
        compare(np.zeros((0, 8)), np.zeros((0, 8)))


def test_a_line_for_people():
    line = str(compare(*pair(error=0.001)))
    assert "\n" not in line
    assert "cosine 0.99999" in line
    assert "top-1 agreement 100.00%" in line
    assert "NaN" in str(compare(ONES, np.full((2, 3), math.nan)))
