"""Arrays are checked before they reach native code: names, types, shapes and values, to the last limit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from densenet_deploy.errors import FeedError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.feeds import TensorSpec, as_array, checked_feeds, delivered, value_limit

FLOAT32 = np.dtype(np.float32)
IMAGE = TensorSpec("image", (None, 3, 4, 5), FLOAT32)
MASK = TensorSpec("mask", (2,), np.dtype(np.int64))


def refused(*args: object, **named: object) -> FeedError:
    """The error of `checked_feeds`."""
    with pytest.raises(FeedError) as caught:
        checked_feeds(*args, **named)  # type: ignore[arg-type]
    return caught.value


class Foreign:
    """An array of another library."""

    def __init__(self, array: np.ndarray | Exception) -> None:
        self._array = array

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        if isinstance(self._array, Exception):
            raise self._array
        return self._array


class TestSpecs:
    """What a model takes."""

    def test_a_spec_prints_its_name_shape_and_type(self) -> None:
        assert str(IMAGE) == "image (N, 3, 4, 5) float32"

    def test_a_batch_replaces_only_a_first_dimension_that_takes_any_size(self) -> None:
        assert IMAGE.of_batch(7) == TensorSpec("image", (7, 3, 4, 5), FLOAT32)
        for spec in (MASK, TensorSpec("scalar", (), FLOAT32), TensorSpec("rows", (3, None), FLOAT32)):
            assert spec.of_batch(7) is spec

    @pytest.mark.parametrize(
        ("shape", "expected", "fits"),
        [
            ((1, 3), (1, 3), True),
            ((2, 3), (None, 3), True),
            ((1, 3), (None, 3), True),
            ((0, 3), (None, 3), False),  # a batch of nothing
            ((0, 3), (0, 3), True),
            ((2, 4), (None, 3), False),
            ((4, 3), (2, 3), False),
            ((2, 3), (2, None), True),
            ((2, 0), (2, None), False),
            ((3,), (None, 3), False),
            ((2, 3, 1), (None, 3), False),
            ((), (), True),
            ((), (None,), False),
        ],
    )
    def test_a_shape_fits_if_every_size_does(
        self, shape: tuple[int, ...], expected: tuple[int | None, ...], fits: bool
    ) -> None:
        assert TensorSpec("x", expected, FLOAT32).fits(shape) is fits


class TestNames:
    """Every input gets one array."""

    def test_arrays_come_back_by_the_names_of_the_inputs_in_their_order(self) -> None:
        image, mask = np.ones((1, 3, 4, 5), np.float32), np.zeros(2, np.int64)
        fed = checked_feeds((IMAGE, MASK), {"mask": mask, "image": image}, None)
        assert list(fed) == ["image", "mask"]
        assert fed["image"] is image
        assert fed["mask"] is mask

    def test_one_array_is_that_of_the_only_input(self) -> None:
        assert checked_feeds((MASK,), np.array([3, 4]), None)["mask"].tolist() == [3, 4]

    @pytest.mark.parametrize(
        ("feeds", "subject"),
        [
            ({"image": 1}, "image"),
            ({}, "nothing"),
            ({"image": 1, "mask": 1, "extra": 1}, "image, mask, extra"),
            ({"image": 1, "masc": 1}, "image, masc"),
            (np.zeros(2), "one array"),
        ],
    )
    def test_other_names_or_numbers_of_arrays_are_refused(self, feeds: object, subject: str) -> None:
        assert refused((IMAGE, MASK), feeds, None).subject == subject


class TestArrays:
    """An array of any library is looked at, never cast."""

    def test_an_array_is_itself(self) -> None:
        array = np.zeros(2)
        assert as_array("x", array) is array

    def test_a_tensor_is_looked_at_without_a_copy_even_if_it_wants_a_gradient(self) -> None:
        tensor = torch.zeros(2, requires_grad=True)
        array = as_array("x", tensor)
        with torch.no_grad():
            tensor[1] = 5
        assert array.tolist() == [0, 5]
        assert array.dtype == np.float32

    def test_whatever_shows_an_array_is_one(self) -> None:
        array = np.arange(3, dtype=np.int16)
        assert as_array("x", Foreign(array)) is array

    def test_a_tensor_on_another_device_is_fetched(self) -> None:
        class OnDevice(Foreign):
            def detach(self) -> OnDevice:
                return self

            def cpu(self) -> np.ndarray:
                return np.arange(3)

        assert as_array("x", OnDevice(TypeError("not on this device"))).tolist() == [0, 1, 2]

    @pytest.mark.parametrize("value", [[1.0, 2.0], 3, None, "text"])
    def test_what_shows_none_is_refused(self, value: object) -> None:
        with pytest.raises(FeedError) as caught:
            as_array("x", value)
        assert caught.value.subject == "x"
        assert type(value).__name__ in caught.value.why

    @pytest.mark.parametrize("error", [TypeError, ValueError, RuntimeError])
    def test_what_cannot_show_it_says_why_in_one_line(self, error: type[Exception]) -> None:
        with pytest.raises(FeedError) as caught:
            as_array("x", Foreign(error("on another planet\nstack trace")))
        assert caught.value.subject == "x"
        assert caught.value.why.endswith(": on another planet")

    def test_a_type_that_numpy_does_not_have_is_refused(self) -> None:
        with pytest.raises(FeedError) as caught:
            as_array("x", torch.zeros(2, dtype=torch.bfloat16))
        assert caught.value.subject == "x"

    def test_a_strided_view_is_made_contiguous_with_its_values(self) -> None:
        view = np.arange(8, dtype=np.int64)[::4]
        fed = checked_feeds((MASK,), view, None)["mask"]
        assert fed.flags.c_contiguous
        assert fed.tolist() == [0, 4]

    def test_a_number_stays_without_axes(self) -> None:
        assert checked_feeds((TensorSpec("number", (), FLOAT32),), np.array(3, np.float32), None)["number"].shape == ()


def test_errors_do_not_print_the_array() -> None:
    row = TensorSpec("row", (None, 3), FLOAT32)
    for bad in (
        [[1.0] * 500] * 500,
        np.ones((40, 50)),
        {"image": np.ones(999)},
        "x" * 10_000,
        np.ones(999, np.float32),
    ):
        assert len(str(refused((row,), bad, 1.0))) < 300


class TestTypesAndShapes:
    """Nothing is converted, and the error says what would."""

    @pytest.mark.parametrize(
        ("dtype", "fix"), [(np.float64, "array.astype(float32)"), (np.uint8, "densenet_deploy.runtime.preprocess")]
    )
    def test_another_type_is_refused(self, dtype: type, fix: str) -> None:
        error = refused((IMAGE,), np.zeros((1, 3, 4, 5), dtype), None)
        assert error.subject == "image"
        assert fix in error.fix

    @pytest.mark.parametrize(
        ("shape", "fix"),
        [
            ((1, 4, 5, 3), "array.transpose(0, 3, 1, 2)"),
            ((1, 3, 5, 3), "resize or batch"),  # as many rows as channels: it may be (N, C, H, W)
            ((1, 4, 4, 5), "resize or batch"),  # four channels
            ((1, 4, 3, 5), "resize or batch"),  # (N, H, C, W) is nobody's layout
            ((3, 4, 5), "array[None]"),
            ((4, 5), "resize or batch"),
            ((1, 1, 3, 4, 5), "resize or batch"),
            ((2, 4, 5, 3, 1), "resize or batch"),
            ((0, 3, 4, 5), "resize or batch"),
        ],
    )
    def test_another_shape_is_refused(self, shape: tuple[int, ...], fix: str) -> None:
        error = refused((IMAGE,), np.zeros(shape, np.float32), None)
        assert error.subject == "image"
        assert fix in error.fix


def fed(*values: float, limit: float | None, dtype: type = np.float32) -> list[float]:
    """Feed values to an input of that many."""
    spec = TensorSpec("x", (len(values),), np.dtype(dtype))
    return checked_feeds((spec,), np.array(values, dtype), limit)["x"].tolist()


class TestValues:
    """Values beyond those of any normalized image, NaN and Inf do not reach a model."""

    def test_the_limit_is_eight_times_the_range_of_a_normalized_image(self) -> None:
        # The largest value of ImageNet's normalization: white in blue, (1 - 0.406) / 0.225 = 2.64.
        assert value_limit(Preprocessing()) == pytest.approx(8 * 2.64, rel=1e-12)

    def test_the_limit_looks_at_both_ends_of_the_range(self) -> None:
        dark = Preprocessing(mean=(0.0, 0.0, 0.75), std=(1.0, 1.0, 0.25))  # from -3 to 1
        assert value_limit(dark) == 24
        bright = Preprocessing(mean=(0.0, 0.5, 0.5), std=(0.25, 1.0, 1.0))  # from -0.5 to 4
        assert value_limit(bright) == 32

    def test_without_a_preprocessing_every_finite_number_passes(self) -> None:
        limit = value_limit(None)
        largest = float(np.finfo(np.float32).max)
        assert limit == largest
        assert fed(-largest, largest, limit=limit) == [-largest, largest]

    def test_the_limit_itself_passes_on_both_sides(self) -> None:
        assert fed(-2.0, 0.0, 2.0, limit=2.0) == [-2, 0, 2]

    @pytest.mark.parametrize("outside", [math.nextafter(2, 3), -math.nextafter(2, 3), 2e9, -2e9])
    def test_one_value_beyond_the_limit_is_refused(self, outside: float) -> None:
        with pytest.raises(FeedError) as caught:
            fed(0.0, outside, 1.0, limit=2.0, dtype=np.float64)
        assert caught.value.subject == "x"
        assert "check_values=False" in caught.value.fix

    @pytest.mark.parametrize("outside", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("limit", [2.0, value_limit(None)])
    def test_one_value_that_is_no_number_is_refused_as_such(self, outside: float, limit: float) -> None:
        with pytest.raises(FeedError) as caught:
            fed(0.0, outside, 1.0, limit=limit)
        assert caught.value.subject == "x"
        assert "NaN" in caught.value.why

    def test_without_a_limit_nothing_is_checked(self) -> None:
        assert fed(math.inf, 1e30, limit=None) == [math.inf, pytest.approx(1e30)]

    def test_half_precision_is_checked_and_integers_are_not(self) -> None:
        with pytest.raises(FeedError):
            fed(3.0, limit=2.0, dtype=np.float16)
        assert fed(3, limit=2.0, dtype=np.int64) == [3]


class TestDelivery:
    """Results go into the buffers of the caller."""

    def results(self) -> dict[str, np.ndarray]:
        return {"logits": np.array([1.0, 2.0], np.float32), "features": np.array([3.0], np.float32)}

    def test_a_buffer_is_filled_and_returned_beside_the_other_results(self) -> None:
        results, buffer = self.results(), np.zeros(2, np.float32)
        found = delivered(results, {"logits": buffer})
        assert list(found) == ["logits", "features"]
        assert found["logits"] is buffer
        assert buffer.tolist() == [1, 2]
        assert found["features"] is results["features"]

    def test_a_buffer_for_no_output_is_refused(self) -> None:
        with pytest.raises(FeedError) as caught:
            delivered(self.results(), {"b": np.zeros(2, np.float32), "a": np.zeros(2, np.float32)})
        assert caught.value.subject == "a, b"

    @pytest.mark.parametrize("buffer", [np.zeros(2), np.zeros(1, np.float32), np.zeros((1, 2), np.float32)])
    def test_a_buffer_of_another_type_or_shape_is_refused_and_left_alone(self, buffer: np.ndarray) -> None:
        with pytest.raises(FeedError) as caught:
            delivered(self.results(), {"logits": buffer})
        assert caught.value.subject == "logits"
        assert not buffer.any()
