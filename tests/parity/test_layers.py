"""Layer by layer: matched by name, in execution order, and honest about what could not be compared."""

import numpy as np
import pytest

from densenet_deploy.errors import DataError
from densenet_deploy.parity.compare import compare
from densenet_deploy.parity.gates import Gate
from densenet_deploy.parity.layers import SkippedLayer, compare_layers, first_divergence, worst_first

GATES = (Gate("cosine", 0.999),)


def batches(count=3, **errors):
    """Batches of tensors conv0, norm0, classifier, each with white noise of the given size added."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        clean = {name: rng.standard_normal((2, 8)) for name in ("conv0", "norm0", "classifier")}
        yield {name: array + errors.get(name, 0.0) * rng.standard_normal((2, 8)) for name, array in clean.items()}


def test_layers_come_in_execution_order_whatever_the_candidate_s():
    reversed_names = ({name: batch[name] for name in reversed(batch)} for batch in batches())
    comparison = compare_layers(batches(), reversed_names)
    assert [layer.name for layer in comparison.layers] == ["conv0", "norm0", "classifier"]
    assert comparison.skipped == ()


def test_a_layer_s_parity_is_that_of_all_its_batches():
    comparison = compare_layers(batches(), batches(norm0=0.1))
    ours, theirs = (np.concatenate([b["norm0"] for b in batches(**e)]) for e in ({}, {"norm0": 0.1}))
    found, expected = comparison.layers[1].parity, compare(ours, theirs, class_scores=False)
    assert (found.count, found.max_abs, found.top1_agreement) == (expected.count, expected.max_abs, None)
    assert found.sqnr_db == pytest.approx(expected.sqnr_db, rel=1e-12)  # the same float64 terms, summed batch by batch


def test_the_first_divergence_is_the_first_in_order_not_the_worst():
    layers = compare_layers(batches(), batches(norm0=0.2, classifier=0.8)).layers
    assert first_divergence(layers, GATES) == "norm0"
    assert [layer.name for layer in worst_first(layers)] == ["classifier", "norm0", "conv0"]


def test_equal_models_diverge_nowhere_and_keep_their_order():
    layers = compare_layers(batches(), batches()).layers
    assert first_divergence(layers, GATES) is None
    assert worst_first(layers) == list(layers)


def test_a_layer_with_nan_is_worst_of_all():
    def broken():
        for batch in batches(classifier=5.0):
            yield batch | {"norm0": np.where(batch["norm0"] > 0, np.nan, batch["norm0"])}

    layers = compare_layers(batches(), broken()).layers
    assert worst_first(layers)[0].name == "norm0"
    assert first_divergence(layers, ()) == "norm0"


def test_what_cannot_be_matched_is_skipped_with_the_reason():
    ours = {"conv0": np.ones((1, 2)), "fused": np.ones(3), "pool0": np.ones((1, 4)), "shape": np.ones((0, 2))}
    theirs = {"conv0": np.ones((1, 2)), "quantized": np.ones(3), "pool0": np.ones((1, 2, 2)), "shape": np.ones((0, 2))}
    comparison = compare_layers([ours], [theirs])
    assert [layer.name for layer in comparison.layers] == ["conv0"]
    assert comparison.skipped == (
        SkippedLayer("fused", "only in the reference"),
        SkippedLayer("pool0", "shape (1, 4) in the reference, (1, 2, 2) in the candidate"),
        SkippedLayer("shape", "empty"),
        SkippedLayer("quantized", "only in the candidate"),
    )


def test_a_layer_missing_from_one_batch_is_skipped_whole():
    later = {"conv0": np.ones((1, 2))}
    first = later | {"norm0": np.ones((1, 2))}
    comparison = compare_layers([first, first], [first, later])
    assert [layer.name for layer in comparison.layers] == ["conv0"]
    assert comparison.skipped == (SkippedLayer("norm0", "only in the reference"),)


@pytest.mark.parametrize(("ours", "theirs"), [(2, 3), (3, 2)])
def test_different_numbers_of_batches_are_refused(ours, theirs):
    with pytest.raises(DataError, match="more batches"):
        compare_layers(batches(ours), batches(theirs))
