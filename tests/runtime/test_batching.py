"""Every batch finds a profile: the one tuned nearest, in portions where it is too large, filled up where too small."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from densenet_deploy.errors import FeedError, ModelFileError
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.runtime import batching
from densenet_deploy.runtime.batching import (
    BatchProfile,
    Portion,
    fixed_batch,
    image_shape,
    is_nhwc,
    portions,
    run_batched,
    run_each,
    shared_cpus,
)
from densenet_deploy.runtime.feeds import TensorSpec
from tests.function_runner import FunctionRunner, Shape

WIDE = BatchProfile(1, 4, 8)
ONE = BatchProfile(1, 1, 1)
EIGHT = BatchProfile(8, 8, 8)
HIGH = BatchProfile(4, 16, 32)


def test_a_profile_is_of_single_samples_unless_it_says_more() -> None:
    assert BatchProfile() == ONE


@pytest.mark.parametrize(
    ("total", "profiles", "wanted"),
    [
        (0, (WIDE,), []),
        (1, (WIDE,), [Portion(0, 0, 1, 1)]),
        (8, (WIDE,), [Portion(0, 0, 8, 8)]),
        (9, (WIDE,), [Portion(0, 0, 8, 8), Portion(0, 8, 1, 1)]),
        (19, (WIDE,), [Portion(0, 0, 8, 8), Portion(0, 8, 8, 8), Portion(0, 16, 3, 3)]),
        (3, (HIGH,), [Portion(0, 0, 3, 4)]),  # filled up to the smallest batch
        (4, (HIGH,), [Portion(0, 0, 4, 4)]),
        (33, (HIGH,), [Portion(0, 0, 32, 32), Portion(0, 32, 1, 4)]),
        (1, (WIDE, ONE), [Portion(1, 0, 1, 1)]),  # tuned for it
        (6, (WIDE, HIGH), [Portion(0, 0, 6, 6)]),
        (12, (WIDE, HIGH), [Portion(1, 0, 12, 12)]),
        (40, (WIDE, HIGH), [Portion(1, 0, 32, 32), Portion(0, 32, 8, 8)]),
        (6, (BatchProfile(1, 1, 8), BatchProfile(1, 7, 8)), [Portion(1, 0, 6, 6)]),  # tuned for 7: off by 1, not by 5
        (6, (BatchProfile(1, 8, 8), BatchProfile(1, 5, 8)), [Portion(1, 0, 6, 6)]),
        (6, (BatchProfile(1, 5, 8), BatchProfile(1, 7, 8)), [Portion(0, 0, 6, 6)]),  # equally near: the first
        (3, (ONE, EIGHT), [Portion(1, 0, 3, 8)]),  # between two profiles
        (3, (ONE, EIGHT, BatchProfile(4, 8, 8)), [Portion(2, 0, 3, 4)]),  # the smallest batch that holds them
        (3, (BatchProfile(4, 8, 8), BatchProfile(4, 4, 8)), [Portion(1, 0, 3, 4)]),
        (10, (EIGHT, ONE), [Portion(0, 0, 8, 8), Portion(0, 8, 2, 8)]),
    ],
)
def test_a_batch_finds_its_profile(total: int, profiles: tuple[BatchProfile, ...], wanted: list[Portion]) -> None:
    assert list(portions(total, profiles)) == wanted


@pytest.mark.parametrize("profiles", [(WIDE,), (ONE, EIGHT), (HIGH, ONE), (WIDE, HIGH, ONE)])
def test_portions_cover_every_sample_once_and_stay_inside_profiles(profiles: tuple[BatchProfile, ...]) -> None:
    for total in range(1, 100):
        found = portions(total, profiles)
        assert [i for p in found for i in range(p.start, p.start + p.count)] == list(range(total))
        for portion in found:
            profile = profiles[portion.profile]
            assert profile.min <= portion.batch <= profile.max
            assert portion.count <= portion.batch


def mean_runner(shape: Shape) -> FunctionRunner:
    """A model with two outputs, one of them the mean of each sample."""
    return FunctionRunner(
        lambda batch: {"mean": batch.mean(axis=(1, 2, 3)), "copy": batch},
        input_shape=shape,
        outputs={"mean": (None,), "copy": shape},
    )


def test_a_fixed_batch_is_the_first_size_of_the_input() -> None:
    assert fixed_batch(mean_runner((5, 3, 2, 2))) == 5
    assert fixed_batch(mean_runner((None, 3, 2, 2))) is None


FLOAT32 = np.dtype(np.float32)


def runner_of(*specs: TensorSpec) -> FunctionRunner:
    runner = mean_runner((None, 3, 2, 2))
    runner.inputs = specs
    return runner


@pytest.mark.parametrize(
    "shape",
    [
        (3, 8, 8),
        (1, 8, 9),
        (4, 9, 8),
        (2, 1, 1),
        (None, 8, 8),
        (3, None, None),
        (3, 8, None),
        (None, None, None),
        (3, 8, 3),  # a narrow image
        (3, 4, 4),
        (1, 1, 1),
        (8, 4, 3),
        (4, 8, 3),
        (5, 5, 2),
        (5, 5, 5),
    ],
)
def test_the_shape_of_images_is_that_of_the_input_after_its_batch(shape: Shape) -> None:
    for batch in (None, 4):
        assert image_shape(runner_of(TensorSpec("image", (batch, *shape), FLOAT32))) == shape


NOT_ONE = "not one input, float32 NCHW or uint8 NHWC"
UINT8 = np.dtype(np.uint8)


@pytest.mark.parametrize("shape", [(8, 9, 3), (None, None, 1), (5, 5, 4)])
def test_pixels_have_their_channels_last(shape):
    for batch in (None, 4):
        assert image_shape(runner_of(TensorSpec("image", (batch, *shape), UINT8))) == (shape[2], *shape[:2])


@pytest.mark.parametrize(
    ("specs", "why"),
    [
        ((TensorSpec("image", (None, 8, 8, 3), FLOAT32),), "in the layout NHWC"),
        ((TensorSpec("image", (1, 5, 5, 1), FLOAT32),), "in the layout NHWC"),
        ((TensorSpec("image", (None, None, None, 3), FLOAT32),), "in the layout NHWC"),
        ((TensorSpec("image", (None, None, 8, 4), FLOAT32),), "in the layout NHWC"),
        ((TensorSpec("image", (None, 8, None, 4), FLOAT32),), "in the layout NHWC"),
        ((TensorSpec("image", (None, 1, 8, 8, 8), FLOAT32),), "3-D"),
        ((TensorSpec("image", (None, 3, 8, 8, 8), np.dtype(np.uint8)),), "3-D"),
        ((TensorSpec("image", (None, 3, 8), FLOAT32),), NOT_ONE),
        ((TensorSpec("image", (None, 3, 8, 8, 1, 1), FLOAT32),), NOT_ONE),
        ((TensorSpec("image", (None, 3, 8, 8), np.dtype(np.uint8)),), NOT_ONE),
        ((TensorSpec("image", (None, 3, 8, 8), np.dtype(np.float16)),), NOT_ONE),
        ((TensorSpec("image", (None, 3, 8, 8), FLOAT32),) * 2, NOT_ONE),
        ((TensorSpec("image", (None, 3, 8, 8, 8), FLOAT32),) * 2, NOT_ONE),
        ((TensorSpec("image", (None, 8, 8, 3), FLOAT32),) * 2, NOT_ONE),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(map(str, value)),
)
def test_a_model_that_takes_anything_but_one_image_is_refused_for_what_it_takes(
    specs: tuple[TensorSpec, ...], why: str
) -> None:
    with pytest.raises(ModelFileError) as caught:
        image_shape(runner_of(*specs))
    assert (caught.value.subject, caught.value.why) == (", ".join(map(str, specs)), f"is {why}")
    assert ("densenet-deploy export" in caught.value.fix) == (why == "in the layout NHWC")


def test_channels_are_last_behind_two_sides_of_more_than_four_pixels_or_of_any() -> None:
    """Both sides of each limit: 1, 3 or 4 channels; sides from 5."""
    assert [last for last in range(7) if is_nhwc((None, 8, 8, last))] == [1, 3, 4]
    assert [side for side in range(1, 8) if is_nhwc((1, side, 8, 3))] == [5, 6, 7]
    assert [side for side in range(1, 8) if is_nhwc((1, 8, side, 3))] == [5, 6, 7]
    assert is_nhwc((1, None, None, 1))
    for shape in ((8, 8, 3), (1, 8, 8, 8, 3), (1, 8, 8, None), (1, 3, 8, 3), ()):
        assert not is_nhwc(shape)


def samples(count: int) -> np.ndarray:
    """Samples with the means 0, 1, 2 and so on."""
    return np.arange(count, dtype=np.float32).repeat(12).reshape(count, 3, 2, 2)


def test_a_model_that_takes_any_batch_gets_all_samples_at_once() -> None:
    runner = mean_runner((None, 3, 2, 2))
    assert run_batched(runner, samples(5))["mean"].tolist() == [0, 1, 2, 3, 4]
    assert runner.sizes == [5]


def test_a_fixed_batch_gets_portions_filled_up_with_the_last_sample_and_the_filling_is_dropped() -> None:
    fed: list[list[float]] = []

    def function(batch: np.ndarray) -> dict[str, np.ndarray]:
        fed.append(batch[:, 0, 0, 0].tolist())
        return {"first": batch[:, 0, 0, 0], "all": batch}

    runner = FunctionRunner(function, input_shape=(4, 3, 2, 2), outputs={"first": (4,), "all": (4, 3, 2, 2)})
    found = run_batched(runner, samples(7))
    assert fed == [[0, 1, 2, 3], [4, 5, 6, 6]]
    assert found["first"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert np.array_equal(found["all"], samples(7))
    assert run_batched(runner, samples(1))["first"].tolist() == [0]


def test_a_batch_of_the_fixed_size_is_fed_without_a_copy() -> None:
    given = samples(4)
    assert np.shares_memory(run_batched(mean_runner((4, 3, 2, 2)), given)["copy"], given)


@pytest.mark.parametrize("batch", [None, 2])
def test_pixels_are_normalized_for_a_model_that_takes_floats_and_says_how(batch: int | None) -> None:
    preprocessing = Preprocessing(2, "none", (0.5,) * 3, (0.25,) * 3)
    manifest = Manifest("121", {}, WeightsOrigin("none", "0" * 64), preprocessing)
    shape = (batch, 3, 2, 2)
    runner = FunctionRunner(lambda given: {"y": given}, input_shape=shape, outputs={"y": shape}, manifest=manifest)
    pixels = np.arange(36, dtype=np.uint8).reshape(3, 2, 2, 3)
    expected = (pixels.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(run_batched(runner, pixels)["y"], expected, rtol=1e-6)
    np.testing.assert_array_equal(run_batched(runner, samples(3))["y"], samples(3))  # floats are normalized already


def test_pixels_are_refused_where_nothing_says_how_they_become_floats() -> None:
    with pytest.raises(FeedError) as caught:
        run_batched(mean_runner((None, 3, 2, 2)), np.zeros((1, 2, 2, 3), np.uint8))
    assert caught.value.subject == "input"


@pytest.mark.parametrize("batch", [None, 4])
def test_no_samples_are_refused(batch: int | None) -> None:
    with pytest.raises(FeedError) as caught:
        run_batched(mean_runner((batch, 3, 2, 2)), samples(0))
    assert caught.value.subject == "input"


# --- many single images


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_each_sample_comes_with_its_outputs_in_order(calls: int) -> None:
    samples = [np.full((1, 3, 8, 8), number, np.float32) for number in range(7)]
    runner = FunctionRunner(lambda batch: {"mean": batch.mean(axis=(1, 2, 3))})
    found = list(run_each(runner, samples, calls))
    assert [sample[0, 0, 0, 0] for sample, _ in found] == list(range(7))
    assert [outputs["mean"].tolist() for _, outputs in found] == [[number] for number in range(7)]


def test_as_many_run_at_the_same_time_as_were_asked_for_and_few_are_held() -> None:
    meeting, read = threading.Barrier(2, timeout=60), list[int]()

    def together(batch: np.ndarray) -> dict[str, np.ndarray]:
        if batch.any():  # not the example that tells the shapes
            meeting.wait()  # which one call alone would not pass
        return {"y": batch}

    def counted() -> Iterator[np.ndarray]:
        for number in range(1, 9):
            read.append(number)
            yield np.full((1, 3, 8, 8), number, np.float32)

    results = run_each(FunctionRunner(together), counted(), 2)
    next(results)
    assert read == [1, 2, 3]
    assert len(list(results)) == 7


def test_an_error_of_one_call_is_raised_and_ends_the_others() -> None:
    def failing(batch: np.ndarray) -> dict[str, np.ndarray]:
        if batch.max() == 3:
            raise ValueError("3")
        return {"y": batch}

    runner = FunctionRunner(failing)
    samples = (np.full((1, 3, 8, 8), number, np.float32) for number in range(9))
    with pytest.raises(ValueError, match="3"):
        list(run_each(runner, samples, 2))
    assert runner.runs <= 6


@pytest.mark.parametrize(
    ("cpus", "backend", "shared"),
    [
        (1, "onnxruntime", (1, 1)),
        (2, "onnxruntime", (2, 1)),
        (4, "onnxruntime", (4, 1)),
        (16, "onnxruntime", (4, 4)),
        (2, "openvino", (2, 1)),
        (16, "openvino", (4, 4)),
        (16, "torch", (1, 16)),
        (2, None, (1, 2)),
    ],
)
def test_whole_images_run_side_by_side(
    cpus: int, backend: str | None, shared: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "usable_cpus", lambda: cpus)
    assert shared_cpus(backend) == shared
