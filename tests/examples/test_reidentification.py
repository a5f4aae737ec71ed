"""The re-identification example: its persons, and the search by features in float and in INT8."""

import numpy as np
import pytest

from densenet_deploy import Classifier
from examples.reidentification import SIZE, draw, main, rank1


def test_a_person_is_dressed_alike_in_every_image_and_unlike_others():
    first, again, other = draw(1, 0), draw(1, 1), draw(2, 0)
    assert (first.shape, first.dtype) == ((*SIZE, 3), np.uint8)
    shirt = (slice(90, 110), slice(60, 68))
    means = [image[shirt].mean((0, 1)) for image in (first, again, other)]
    assert np.abs(means[0] / means[0].sum() - means[1] / means[1].sum()).max() < 0.05
    assert not np.array_equal(first, again)
    assert np.abs(means[0] - means[2]).max() > 20


@pytest.mark.slow
def test_unseen_persons_are_found_by_features(tmp_path):
    main(tmp_path)
    for name in ("person.onnx", "person.int8.onnx"):
        with Classifier.open(tmp_path / name) as classify:
            assert classify.preprocessing.shape == (3, *SIZE)
            assert rank1(classify, range(2000, 2032)) > 0.25  # chance is 1 in 32
