"""The MSE observer against the same sums value by value: the threshold with the least squared error."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.quantization.observers.mse import MSEObserver, MSEOptions
from tests.quantization.observers.channels import observed, sparse_counts, with_counts

POINTS = (np.arange(8) + 0.5) / 8


def _errors(counts: np.ndarray, steps: int) -> np.ndarray:
    """The sum of squared errors of each channel, (C, 256), under 256 thresholds; bins are 1 wide."""
    bins = counts.shape[1]
    values = np.arange(bins)[:, None] + POINTS
    errors = []
    for threshold in np.arange(1, 257) * bins / 256:
        step = threshold / steps
        quantized = np.clip(np.round(values / step), 0, steps) * step
        errors.append(counts @ ((values - quantized) ** 2).mean(axis=1))
    return np.transpose(errors)


@pytest.mark.parametrize(
    ("levels", "low", "steps", "bins"),
    [(256, 0.0, 255, 256), (256, -1.0, 127, 512), (16, 0.0, 15, 256), (16, -1.0, 7, 256), (5, -1.0, 1, 256)],
)
def test_no_other_threshold_has_a_smaller_error(levels, low, steps, bins):
    counts = sparse_counts(150, bins, seed=levels)
    observer = with_counts(MSEObserver, counts, low, MSEOptions(bins=bins, levels=levels))
    candidates = observer.ranges().high.round().astype(int) * 256 // bins
    errors = _errors(counts, steps)
    found = np.take_along_axis(errors, candidates[:, None] - 1, axis=1)[:, 0]
    # sums in another order: equal errors may differ in their last bits
    np.testing.assert_allclose(found, errors.min(axis=1), rtol=1e-9)


def test_signed_and_unsigned_channels_are_told_apart():
    """At 4 levels an unsigned channel has steps 0, 1, 2 and 3 thirds, a signed one only 0 and 1 on either side."""
    data = np.zeros((1, 2, 4, 4), np.float32)
    data[0, :] = np.repeat([3.99, 2.66, 1.33, 0.0], 4).reshape(4, 4)
    data[0, 1, 3, 3] = -0.001
    high = observed(MSEObserver, data, options=MSEOptions(levels=4)).ranges().high
    assert high[0] == pytest.approx(3.99, abs=1 / 64)
    assert high[1] == pytest.approx((3.99 + 2.66) / 2, abs=1 / 64)  # which both become; 1.33 becomes 0


def test_eight_bits_are_assumed():
    assert MSEOptions() == MSEOptions(bins=1024, pixels=128, levels=256)
    counts = sparse_counts(20, 1024, seed=0)
    explicit = with_counts(MSEObserver, counts, 0.0, MSEOptions(levels=256)).ranges().high
    default = MSEObserver(20)
    default.restore(with_counts(MSEObserver, counts, 0.0, MSEOptions()).state())
    assert default.ranges().high.tolist() == explicit.tolist()


@pytest.mark.parametrize("levels", [4, 256])
def test_a_quantizer_has_4_to_256_levels(levels):
    assert MSEOptions(levels=levels).levels == levels
    beyond = levels - 1 if levels == 4 else levels + 1
    with pytest.raises(UsageError) as caught:
        MSEOptions(levels=beyond)
    assert caught.value.subject == f"levels={beyond}"


def test_its_histogram_has_the_options_of_histograms():
    with pytest.raises(UnknownNameError):
        MSEOptions(bins=1000)
