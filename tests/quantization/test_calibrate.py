"""Ranges are collected in one pass, exactly resumed, in constant memory; unusable data and models are refused."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest

from densenet_deploy.errors import DataError, FeedError, ModelFileError, UnknownNameError, UsageError
from densenet_deploy.graph.onnx_file import expose_values
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.quantization.cache import CalibrationCache
from densenet_deploy.quantization.calibrate import Checkpoint, calibrate, collect_ranges
from densenet_deploy.quantization.calibration_data import open_calibration_data
from densenet_deploy.quantization.observers.histogram import HistogramOptions
from densenet_deploy.quantization.observers.minmax import MinMaxOptions
from densenet_deploy.quantization.observers.observer import (
    CalibrationConfig,
    observer_options,
    observers,
    parse_observer_options,
)
from densenet_deploy.quantization.observers.percentile import PercentileOptions
from densenet_deploy.runtime.runner import open_runner
from tests.function_runner import FunctionRunner
from tests.quantization.observed import samples, two_layers

MINMAX = CalibrationConfig("minmax", MinMaxOptions(headroom=0.0))
TINY = Preprocessing(image_size=32, resize=36)
REPOSITORY = Path(__file__).parents[2]


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name].low, theirs[name].low)
        np.testing.assert_array_equal(ours[name].high, theirs[name].high)


def interrupted(images, after):
    """Yield `after` images, then raise as Ctrl-C does."""
    yield from images[:after]
    raise KeyboardInterrupt


# --- results


def test_ranges_are_those_of_all_activations_by_tensor_and_channel():
    images = samples(40)
    found = collect_ranges(FunctionRunner(two_layers), images, MINMAX)
    every = two_layers(np.concatenate(images))
    assert list(found) == ["signed", "relu"]
    for name, ranges in found.items():
        np.testing.assert_array_equal(ranges.low, every[name].min(axis=(0, 2, 3)))
        np.testing.assert_array_equal(ranges.high, every[name].max(axis=(0, 2, 3)))


def test_only_the_configured_tensors_are_observed():
    found = collect_ranges(FunctionRunner(two_layers), samples(32), CalibrationConfig("mse", tensors=("relu",)))
    assert list(found) == ["relu"]


@pytest.mark.parametrize("observer", observers.names())
def test_a_real_network_shows_its_inner_tensors(observer, tiny_onnx, tmp_path):
    path = tmp_path / "exposed.onnx"
    onnx.save(expose_values(onnx.load(tiny_onnx)), path)
    with open_runner(path, backend="onnxruntime") as runner:
        relus = tuple(spec.name for spec in runner.outputs if "relu" in spec.name.lower())
        images = samples(32, size=32)
        found = collect_ranges(runner, images, CalibrationConfig(observer, tensors=relus))
        highest = np.max([runner.run({"input": image})[relus[0]].max(axis=(0, 2, 3)) for image in images], axis=0)
    assert tuple(found) == relus
    assert all((ranges.low >= 0).all() for ranges in found.values())
    assert (found[relus[0]].high <= 1.11 * highest).all()  # min-max adds a tenth
    # Clipping at 8 bits, 99.99 % or the least divergence cuts an outlier off, not most of the range.
    assert (found[relus[0]].high > 0.3 * highest).all()


@pytest.mark.parametrize(("wrap", "total"), [(list, 35), (iter, None)])
def test_progress_is_reported_after_every_sample(wrap, total):
    heard = []
    collect_ranges(FunctionRunner(two_layers), wrap(samples(35)), MINMAX, progress=lambda *step: heard.append(step))
    assert heard == [(done, total) for done in range(1, 36)]


# --- interrupted and resumed


@pytest.mark.parametrize("observer", observers.names())
@pytest.mark.parametrize("after", [33, 40, 59])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(observer, after, tmp_path):
    plan, images = CalibrationConfig(observer), samples(60)
    checkpoint = Checkpoint(tmp_path / "run.npz", "these samples", every=10)
    with pytest.raises(KeyboardInterrupt):
        collect_ranges(FunctionRunner(two_layers), interrupted(images, after), plan, checkpoint)
    runner, heard = FunctionRunner(two_layers), []
    resumed = collect_ranges(runner, images, plan, checkpoint, lambda done, _: heard.append(done))
    assert runner.runs == 60 - after // 10 * 10
    assert heard == list(range(1, 61))
    assert_same(resumed, collect_ranges(FunctionRunner(two_layers), images, plan))
    assert not checkpoint.path.exists()


@pytest.mark.parametrize(
    ("plan", "identity"),
    [
        (CalibrationConfig("percentile"), "other model"),
        (CalibrationConfig("percentile", PercentileOptions(percentile=99.0)), "model"),
        (CalibrationConfig("percentile", tensors=("relu",)), "model"),
        (CalibrationConfig("mse"), "model"),
    ],
    ids=["identity", "options", "tensors", "observer"],
)
def test_a_checkpoint_of_something_else_is_not_used(plan, identity, tmp_path):
    path, images = tmp_path / "run.npz", samples(60)
    leave_checkpoint(path, images)
    runner = FunctionRunner(two_layers)
    found = collect_ranges(runner, images, plan, Checkpoint(path, identity, every=10))
    assert runner.runs == 60
    assert_same(found, collect_ranges(FunctionRunner(two_layers), images, plan))


@pytest.mark.parametrize("others", [samples(60, seed=1), samples(60)[:35]], ids=["other samples", "fewer samples"])
def test_a_checkpoint_of_other_samples_is_refused(others, tmp_path):
    path = tmp_path / "run.npz"
    leave_checkpoint(path, samples(60))
    with pytest.raises(DataError) as caught:
        collect_ranges(FunctionRunner(two_layers), others, CalibrationConfig("percentile"), Checkpoint(path, "model"))
    assert caught.value.subject == str(path)


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "pickle"])
def test_a_damaged_checkpoint_is_not_used(damage, tmp_path):
    path, images, plan = tmp_path / "run.npz", samples(60), CalibrationConfig("percentile")
    leave_checkpoint(path, images)
    whole = path.read_bytes()
    middle = len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    path.write_bytes({"cut": whole[:middle], "changed": changed, "empty": b"", "pickle": b"\x80\x04K\x01."}[damage])
    runner = FunctionRunner(two_layers)
    found = collect_ranges(runner, images, plan, Checkpoint(path, "model", every=10))
    assert runner.runs == 60
    assert_same(found, collect_ranges(FunctionRunner(two_layers), images, plan))


def leave_checkpoint(path, images):
    with pytest.raises(KeyboardInterrupt):
        collect_ranges(
            FunctionRunner(two_layers),
            interrupted(images, 45),
            CalibrationConfig("percentile"),
            Checkpoint(path, "model", every=10),
        )
    assert path.exists()


# --- unusable data and models


@pytest.mark.parametrize("count", [0, 1, 31])
def test_too_few_samples_are_refused_before_the_model_runs(count):
    runner = FunctionRunner(two_layers)
    with pytest.raises(DataError) as caught:
        collect_ranges(runner, samples(count), MINMAX, origin="a/folder")
    assert caught.value.subject == "a/folder"
    assert f"{count} samples" in caught.value.why
    assert runner.runs == 0


def test_the_same_image_over_and_over_is_refused():
    runner = FunctionRunner(two_layers)
    with pytest.raises(DataError):
        collect_ranges(runner, samples(1) * 40, MINMAX)
    assert runner.runs == 0


def test_black_images_and_other_single_colours_are_refused():
    black = np.broadcast_to(np.float32([-2.1, -2.0, -1.8]).reshape(1, 3, 1, 1), (1, 3, 8, 8))
    for images in ([black] * 32, [black + np.float32(0.1 * n) for n in range(32)]):
        with pytest.raises(DataError):
            collect_ranges(FunctionRunner(two_layers), images, MINMAX)


def test_a_few_black_or_repeated_images_among_others_are_fine():
    images = samples(30)
    images += [images[0], np.zeros((1, 3, 8, 8), np.float32)]
    assert collect_ranges(FunctionRunner(two_layers), images, MINMAX)


@pytest.mark.parametrize("observer", observers.names())
def test_an_activation_that_overflows_names_the_tensor_and_the_sample(observer):
    def overflowing(batch):
        tensors = two_layers(batch)
        return tensors | {"relu": tensors["relu"] * np.float32(3e38 if batch.max() > 50 else 1)}

    images = samples(40)
    images[36][0, 1, 2, 3] = 55
    with np.errstate(over="ignore"), pytest.raises(ModelFileError) as caught:
        collect_ranges(FunctionRunner(overflowing), images, CalibrationConfig(observer))
    assert caught.value.subject == "tensor 'relu'"
    assert "sample 37" in caught.value.why


def test_a_sample_that_the_model_does_not_take_is_refused_by_the_runner():
    with pytest.raises(FeedError):
        collect_ranges(FunctionRunner(two_layers), samples(32, size=16), MINMAX)


def test_an_unknown_observer_or_tensor_names_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        CalibrationConfig("entrop")
    assert "'entropy'" in caught.value.fix
    with pytest.raises(UnknownNameError) as caught:
        collect_ranges(FunctionRunner(two_layers), samples(32), CalibrationConfig("mse", tensors=("relu1",)))
    assert "'relu'" in caught.value.fix


def test_options_of_another_observer_are_refused():
    with pytest.raises(UsageError) as caught:
        CalibrationConfig("percentile", HistogramOptions())
    assert caught.value.subject == "HistogramOptions"


def test_a_tensor_without_channels_is_refused():
    runner = FunctionRunner(lambda batch: {"sum": batch.sum(axis=(1, 2, 3))})
    with pytest.raises(ModelFileError) as caught:
        collect_ranges(runner, samples(32), MINMAX)
    assert caught.value.subject == "tensor 'sum'"


# --- memory

CHILD = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    import numpy as np
    from densenet_deploy.quantization.calibrate import collect_ranges
    from densenet_deploy.quantization.observers.observer import CalibrationConfig
    from tests.function_runner import FunctionRunner
    from tests.quantization.observed import two_layers

    count, kept = int(sys.argv[1]), [] if sys.argv[2] == "leaking" else None

    def images():
        rng = np.random.default_rng(0)
        for _ in range(count):
            image = rng.standard_normal((1, 3, 32, 32), np.float32)
            if kept is not None:
                kept.append(image)
            yield image

    for observer in ("minmax", "entropy"):  # the latter represents all that keep histograms
        collect_ranges(FunctionRunner(two_layers, 32), images(), CalibrationConfig(observer))
    status = Path("/proc/self/status").read_text().splitlines()
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
    """
)


def peak_kilobytes(count, kind):
    """Peak memory of a fresh process (VmHWM: unlike ru_maxrss it does not begin at that of the parent)."""
    command = [sys.executable, "-c", CHILD, str(count), kind]
    return int(subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to read a peak of memory")
def test_memory_does_not_grow_with_the_number_of_images():
    few, many = peak_kilobytes(64, "streaming"), peak_kilobytes(1024, "streaming")
    assert many <= 1.1 * few
    assert peak_kilobytes(1024, "leaking") > 1.1 * few  # the test notices a leak


def test_at_most_32_samples_are_taken_ahead():
    taken, ahead = [], []

    def images():
        for image in samples(100):
            taken.append(1)
            yield image

    collect_ranges(
        FunctionRunner(two_layers), images(), MINMAX, progress=lambda done, _: ahead.append(len(taken) - done)
    )
    assert max(ahead) == 31
    assert ahead[-1] == 0


# --- a model, its data and the cache


def test_a_model_is_calibrated_once_and_then_found_in_the_cache(tiny_onnx, tmp_path):
    model, config = onnx.load(tiny_onnx), CalibrationConfig(tensors=("features.conv0",))
    data = open_calibration_data(np.concatenate(samples(32, size=32)), TINY)
    cache, heard = CalibrationCache(tmp_path), []
    first = calibrate(model, data, config, cache, lambda *step: heard.append(step))
    assert heard[-1] == (32, 32)
    again = calibrate(model, data, config, cache)
    assert_same(first.ranges, again.ranges)
    assert list(first.ranges) == ["features.conv0", "input"]
    assert again.note != first.note
    assert_same(first.ranges, calibrate(model, data, config).ranges)


def test_data_without_an_identity_are_not_cached(tiny_onnx, tmp_path):
    """Two lists of other images must not share an entry."""
    model, config, cache = onnx.load(tiny_onnx), CalibrationConfig(), CalibrationCache(tmp_path)
    first, second = (
        calibrate(model, open_calibration_data(samples(32, size=32, seed=seed), TINY), config, cache) for seed in (0, 1)
    )
    assert list(tmp_path.iterdir()) == []
    assert any((first.ranges[name].high != second.ranges[name].high).any() for name in first.ranges)


def test_asking_for_too_few_samples_is_refused_with_that_number(tiny_onnx):
    data = open_calibration_data(samples(40, size=32), TINY, samples=8)
    with pytest.raises(DataError) as caught:
        calibrate(onnx.load(tiny_onnx), data, CalibrationConfig())
    assert caught.value.why.startswith("8 samples were asked for")


# --- options of observers


def test_options_are_read_by_name():
    expected = PercentileOptions(bins=2048, percentile=99.9)
    assert observer_options("percentile", {"bins": 2048, "percentile": 99.9}) == expected
    assert parse_observer_options("percentile", ["bins=2048", "percentile = 99.9"]) == expected
    assert parse_observer_options("minmax", ["headroom=0"]) == MinMaxOptions(headroom=0.0)


@pytest.mark.parametrize(
    ("observer", "facts"),
    [
        ("percentile", {"percentil": 99.0}),
        ("percentile", {"percentile": "99"}),
        ("percentile", {"percentile": 101.0}),
        ("percentile", {"bins": 1000}),
        ("minmax", {"percentile": 99.0}),
        ("minmax", {"headroom": True}),
        ("maximum", {}),
    ],
)
def test_invalid_options_are_refused(observer, facts):
    with pytest.raises(UsageError):
        observer_options(observer, facts)


@pytest.mark.parametrize("text", ["percentile", "percentile=", "=1", "percentile=high", "percentile=NaN"])
def test_malformed_options_are_refused(text):
    with pytest.raises(UsageError):
        parse_observer_options("percentile", [text])
