"""Parity metrics against formulas written out plainly, edge cases, several outputs, and inner tensors."""

import json
import math
import tracemalloc

import numpy as np
import pytest

from densenet_deploy.errors import DataError
from densenet_deploy.parity.compare import (
    ComparisonMeter,
    Parity,
    ParityMeter,
    compare,
    compare_outputs,
    parity_of,
    worst,
    worst_first,
)
from densenet_deploy.parity.samples import noise
from densenet_deploy.runtime.runner import open_runner
from tests.parity.layers import compare_layers

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


def test_features_are_not_class_scores():
    assert compare(np.eye(8), np.eye(8), class_scores=False).top1_agreement is None


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_nonfinite_value_is_counted_and_its_sample_does_not_agree(broken):
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


def test_different_shapes_are_refused():
    with pytest.raises(DataError) as caught:
        compare(np.zeros((2, 3)), np.zeros((2, 4)))
    assert caught.value.subject == "parity"


def test_samples_of_another_shape_are_refused_later_too():
    meter = ParityMeter()
    meter.update(np.zeros((2, 3)), np.zeros((2, 3)))
    with pytest.raises(DataError):
        meter.update(np.zeros((2, 4)), np.zeros((2, 4)))


NOTHING = [
    ParityMeter().result,
    ComparisonMeter().result,
    lambda: compare(np.zeros((0, 8)), np.zeros((0, 8))),
    lambda: compare_outputs([], []),
    lambda: worst({}),
]


@pytest.mark.parametrize("nothing", NOTHING)
def test_comparing_nothing_is_an_error(nothing):
    with pytest.raises(DataError):
        nothing()


def test_a_line_of_text():
    line = str(compare(*pair(error=0.001)))
    assert "\n" not in line
    assert "cosine 0.99999" in line
    assert "top-1 agreement 100.00%" in line
    assert "NaN" in str(compare(ONES, np.full((2, 3), math.nan)))


def test_the_centred_sqnr_is_that_of_its_formula():
    reference, candidate = (array + 5.0 for array in pair())
    noise = (reference - reference.mean(0)) - (candidate - candidate.mean(0))
    expected = 10 * np.log10(np.sum((reference - reference.mean(0)) ** 2) / np.sum(noise**2))
    parity = compare(reference, candidate)
    # the formula of this test, in float64, loses the last digits of the means to the offset of 5
    assert parity.centred_sqnr_db == pytest.approx(expected, abs=1e-9)
    assert parity.sqnr_db > parity.centred_sqnr_db + 10  # a constant 5 beside a signal of variance 1: 14 dB


def test_the_centred_sqnr_does_not_depend_on_an_offset_or_a_constant_error():
    reference, candidate = (array.astype(float) for array in pair())
    plain = compare(reference, candidate).centred_sqnr_db
    # offsets of 1e6 leave 1e-10 of each value, against an error of 0.1
    assert compare(reference + 1e6, candidate + 1e6).centred_sqnr_db == pytest.approx(plain, abs=1e-6)
    assert compare(reference, candidate + 3.0).centred_sqnr_db == pytest.approx(plain, abs=1e-9)


def test_outputs_that_do_not_depend_on_the_image_have_no_signal():
    constant = np.full((3, 4), 0.1)
    assert compare(constant, np.full((3, 4), 0.7)).centred_sqnr_db == math.inf
    varying = np.arange(12.0).reshape(3, 4)
    assert compare(constant, varying).centred_sqnr_db == -math.inf


@pytest.mark.parametrize("shape", [(1, 8), (8,), ()])
def test_the_centred_sqnr_needs_two_samples(shape):
    parity = compare(np.ones(shape), np.zeros(shape))
    assert parity.centred_sqnr_db is None
    assert "centred" not in str(parity)


def test_the_centred_sqnr_covers_the_samples_without_nan():
    reference, candidate = pair(shape=(6, 8))
    broken = candidate.copy()
    broken[[0, 3], 2] = math.nan
    kept = [1, 2, 4, 5]
    meter = ParityMeter()
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        meter.update(reference[rows], broken[rows])
    expected = compare(reference[kept], candidate[kept]).centred_sqnr_db
    assert meter.result().centred_sqnr_db == pytest.approx(expected, rel=SUMMATION)
    assert f"(centred {expected:.1f} dB)" in str(meter.result())


PARITIES = [compare(*pair()), compare(ONES, ONES), compare(ZEROS, ONES), compare(ONES[:1], ZEROS[:1])]


@pytest.mark.parametrize("parity", PARITIES)
def test_parity_reads_its_own_json(parity):
    read = Parity.from_json(json.loads(json.dumps(parity.to_json())))
    assert read.sqnr_db == parity.sqnr_db
    assert read.to_json() == parity.to_json()


def test_json_of_nothing_finite_and_of_older_files_is_read():
    facts = compare(ONES, np.full((2, 3), math.nan)).to_json()
    del facts["centred_sqnr_db"]
    read = Parity.from_json(facts)
    assert (read.centred_sqnr_db, read.nonfinite) == (None, 6)
    assert math.isnan(read.sqnr_db)
    assert math.isnan(read.max_abs)


def outputs(**arrays):
    return {name: np.array([values, values[::-1]], float) for name, values in arrays.items()}


REFERENCE = outputs(logits=[1, 2, 3], features=[4, 5, 6])


def test_every_output_is_compared_by_name():
    candidate = outputs(features=[4, 5, 7], logits=[1, 2, 3], other=[0])
    parities = compare_outputs([REFERENCE, REFERENCE], [candidate, candidate])
    assert list(parities) == ["logits", "features"]
    assert (parities["logits"].max_abs, parities["features"].max_abs) == (0.0, 1.0)
    assert (parities["logits"].top1_agreement, parities["features"].top1_agreement) == (1.0, None)
    assert worst(parities) == ("features", parities["features"])


def test_outputs_of_other_names_are_compared_by_position():
    candidate = outputs(scores=[1, 2, 4], features=[4, 5, 6])
    parities = compare_outputs([REFERENCE], [candidate])
    assert (parities["logits"].max_abs, parities["features"].max_abs) == (1.0, 0.0)


@pytest.mark.parametrize("candidate", [outputs(logits=[1, 2, 3]), outputs(a=[1], b=[2], logits=[1, 2, 3])])
def test_a_missing_output_is_named(candidate):
    with pytest.raises(DataError) as caught:
        ComparisonMeter().update(REFERENCE, candidate)
    assert caught.value.subject == "features"


def test_an_output_with_nan_is_the_worst():
    parities = compare_outputs([REFERENCE], [outputs(logits=[-9, 2, 3], features=[math.nan, 5, 6])])
    assert worst(parities)[0] == "features"


def test_two_runners_are_compared_on_the_same_samples(tiny_onnx):
    with open_runner(tiny_onnx, "onnxruntime", "cpu") as runner:
        parities = parity_of(runner, runner, noise(3, (1, 3, 32, 32)))
    assert {name: parity.sqnr_db for name, parity in parities.items()} == {"logits": math.inf}
    assert parities["logits"].count == 30


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


def test_the_parity_of_a_layer_covers_all_batches():
    comparison = compare_layers(batches(), batches(norm0=0.1))
    ours, theirs = (np.concatenate([b["norm0"] for b in batches(**e)]) for e in ({}, {"norm0": 0.1}))
    found, expected = comparison.layers["norm0"], compare(ours, theirs, class_scores=False)
    assert (found.count, found.max_abs, found.top1_agreement) == (expected.count, expected.max_abs, None)
    assert found.sqnr_db == pytest.approx(expected.sqnr_db, rel=1e-12)  # the same float64 terms, summed batch by batch


def test_layers_are_sorted_with_the_worst_first():
    layers = compare_layers(batches(), batches(norm0=0.2, classifier=0.8)).layers
    assert list(worst_first(layers)) == ["classifier", "norm0", "conv0"]


def test_layers_of_equal_models_keep_their_order():
    layers = compare_layers(batches(), batches()).layers
    assert list(worst_first(layers)) == list(layers)


def test_a_layer_with_nan_is_worst_of_all():
    def broken():
        for batch in batches(classifier=5.0):
            yield batch | {"norm0": np.where(batch["norm0"] > 0, np.nan, batch["norm0"])}

    layers = compare_layers(batches(), broken()).layers
    assert next(iter(worst_first(layers))) == "norm0"


def test_layers_that_do_not_match_are_skipped_with_the_reason():
    ours = {"conv0": np.ones((1, 2)), "fused": np.ones(3), "pool0": np.ones((1, 4)), "shape": np.ones((0, 2))}
    theirs = {"conv0": np.ones((1, 2)), "quantized": np.ones(3), "pool0": np.ones((1, 2, 2)), "shape": np.ones((0, 2))}
    comparison = compare_layers([ours], [theirs])
    assert list(comparison.layers) == ["conv0"]
    assert comparison.skipped == {
        "fused": "only in the reference",
        "pool0": "shape (1, 4) in the reference, (1, 2, 2) in the candidate",
        "shape": "empty",
        "quantized": "only in the candidate",
    }


def test_a_layer_missing_from_one_batch_is_skipped():
    later = {"conv0": np.ones((1, 2))}
    first = later | {"norm0": np.ones((1, 2))}
    comparison = compare_layers([first, first], [first, later])
    assert list(comparison.layers) == ["conv0"]
    assert comparison.skipped == {"norm0": "only in the reference"}


@pytest.mark.parametrize(("ours", "theirs"), [(2, 3), (3, 2)])
def test_different_numbers_of_batches_are_refused(ours, theirs):
    with pytest.raises(DataError):
        compare_outputs(batches(ours), batches(theirs))
