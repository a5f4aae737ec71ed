"""Ranges are collected in one pass, exactly resumed, in constant memory; what cannot be calibrated is refused."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest

from densenet_deploy.errors import DataError, FeedError, ModelFileError, UnknownNameError, UsageError
from densenet_deploy.graph.onnx_file import expose_values
from densenet_deploy.quantize.calibrate import CalibrationPlan, Checkpoint, collect_ranges
from densenet_deploy.quantize.observers.histogram import HistogramOptions
from densenet_deploy.quantize.observers.minmax import MinMaxOptions
from densenet_deploy.quantize.observers.observer import observers
from densenet_deploy.quantize.observers.percentile import PercentileOptions
from densenet_deploy.runtime.runner import open_runner
from tests.function_runner import FunctionRunner
from tests.quantize.observed import samples, two_layers

MINMAX = CalibrationPlan("minmax", MinMaxOptions(headroom=0.0))
REPOSITORY = Path(__file__).parents[2]


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name].low, theirs[name].low)
        np.testing.assert_array_equal(ours[name].high, theirs[name].high)


def interrupted(images, after):
    """Yield `after` images, then do as Ctrl-C does."""
    yield from images[:after]
    raise KeyboardInterrupt


# --- what comes out


def test_ranges_are_those_of_all_activations_by_tensor_and_channel():
    images = samples(40)
    found = collect_ranges(FunctionRunner(two_layers), images, MINMAX)
    every = two_layers(np.concatenate(images))
    assert list(found) == ["signed", "relu"]
    for name, ranges in found.items():
        np.testing.assert_array_equal(ranges.low, every[name].min(axis=(0, 2, 3)))
        np.testing.assert_array_equal(ranges.high, every[name].max(axis=(0, 2, 3)))


def test_only_the_planned_tensors_are_observed():
    found = collect_ranges(FunctionRunner(two_layers), samples(32), CalibrationPlan("mse", tensors=("relu",)))
    assert list(found) == ["relu"]


@pytest.mark.parametrize("observer", observers.names())
def test_a_real_network_shows_its_inner_tensors(observer, tiny_onnx, tmp_path):
    path = tmp_path / "exposed.onnx"
    onnx.save(expose_values(onnx.load(tiny_onnx)), path)
    with open_runner(path, backend="onnxruntime") as runner:
        relus = tuple(spec.name for spec in runner.outputs if "relu" in spec.name.lower())
        images = samples(32, size=32)
        found = collect_ranges(runner, images, CalibrationPlan(observer, tensors=relus))
        highest = np.max([runner.run({"input": image})[relus[0]].max(axis=(0, 2, 3)) for image in images], axis=0)
    assert tuple(found) == relus
    assert all((ranges.low >= 0).all() for ranges in found.values())
    assert (found[relus[0]].high <= 1.11 * highest).all()  # min-max adds a tenth
    # Clipping at 8 bits, 99.99 % or the least divergence takes an outlier off, not most of the range.
    assert (found[relus[0]].high > 0.3 * highest).all()


def test_the_listener_hears_of_every_sample():
    heard = []
    collect_ranges(FunctionRunner(two_layers), samples(35), MINMAX, listener=heard.append)
    assert heard == list(range(1, 36))


# --- interrupted and resumed


@pytest.mark.parametrize("observer", observers.names())
@pytest.mark.parametrize("after", [33, 40, 59])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(observer, after, tmp_path):
    plan, images = CalibrationPlan(observer), samples(60)
    checkpoint = Checkpoint(tmp_path / "run.npz", "these samples", every=10)
    with pytest.raises(KeyboardInterrupt):
        collect_ranges(FunctionRunner(two_layers), interrupted(images, after), plan, checkpoint)
    runner, heard = FunctionRunner(two_layers), []
    resumed = collect_ranges(runner, images, plan, checkpoint, heard.append)
    assert runner.runs == 60 - after // 10 * 10
    assert heard == list(range(1, 61))
    assert_same(resumed, collect_ranges(FunctionRunner(two_layers), images, plan))
    assert not checkpoint.path.exists()


@pytest.mark.parametrize(
    ("plan", "identity"),
    [
        (CalibrationPlan("percentile"), "other model"),
        (CalibrationPlan("percentile", PercentileOptions(percentile=99.0)), "model"),
        (CalibrationPlan("percentile", tensors=("relu",)), "model"),
        (CalibrationPlan("mse"), "model"),
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
    with pytest.raises(DataError, match="was made with other samples; remove it"):
        collect_ranges(FunctionRunner(two_layers), others, CalibrationPlan("percentile"), Checkpoint(path, "model"))


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "pickle"])
def test_a_damaged_checkpoint_is_not_used(damage, tmp_path):
    path, images, plan = tmp_path / "run.npz", samples(60), CalibrationPlan("percentile")
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
            CalibrationPlan("percentile"),
            Checkpoint(path, "model", every=10),
        )
    assert path.exists()


# --- what is refused


@pytest.mark.parametrize("count", [0, 1, 31])
def test_too_few_samples_are_refused_before_the_model_runs(count):
    runner = FunctionRunner(two_layers)
    with pytest.raises(DataError, match=f"a/folder: has {count} samples; give at least 32"):
        collect_ranges(runner, samples(count), MINMAX, origin="a/folder")
    assert runner.runs == 0


def test_the_same_image_over_and_over_is_refused():
    runner = FunctionRunner(two_layers)
    with pytest.raises(DataError, match="same image"):
        collect_ranges(runner, samples(1) * 40, MINMAX)
    assert runner.runs == 0


def test_black_images_and_other_single_colours_are_refused():
    black = np.broadcast_to(np.float32([-2.1, -2.0, -1.8]).reshape(1, 3, 1, 1), (1, 3, 8, 8))
    for images in ([black] * 32, [black + np.float32(0.1 * n) for n in range(32)]):
        with pytest.raises(DataError, match="one colour"):
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
    with np.errstate(over="ignore"), pytest.raises(ModelFileError, match=r"'relu'.*Inf for calibration sample 37"):
        collect_ranges(FunctionRunner(overflowing), images, CalibrationPlan(observer))


def test_a_sample_that_the_model_does_not_take_is_refused_by_the_runner():
    with pytest.raises(FeedError, match="input"):
        collect_ranges(FunctionRunner(two_layers), samples(32, size=16), MINMAX)


def test_an_unknown_observer_or_tensor_names_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'entropy'"):
        CalibrationPlan("entrop")
    with pytest.raises(UnknownNameError, match="did you mean 'relu'"):
        collect_ranges(FunctionRunner(two_layers), samples(32), CalibrationPlan("mse", tensors=("relu1",)))


def test_options_of_another_observer_are_refused():
    with pytest.raises(UsageError, match="are no options of 'percentile'; give PercentileOptions"):
        CalibrationPlan("percentile", HistogramOptions())


def test_a_tensor_without_channels_is_refused():
    runner = FunctionRunner(lambda batch: {"sum": batch.sum(axis=(1, 2, 3))})
    with pytest.raises(ModelFileError, match=r"tensor 'sum'.*no float32 channels"):
        collect_ranges(runner, samples(32), MINMAX)


# --- memory

CHILD = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    import numpy as np
    from densenet_deploy.quantize.calibrate import CalibrationPlan, collect_ranges
    from tests.function_runner import FunctionRunner
    from tests.quantize.observed import two_layers

    count, kept = int(sys.argv[1]), [] if sys.argv[2] == "leaking" else None

    def images():
        rng = np.random.default_rng(0)
        for _ in range(count):
            image = rng.standard_normal((1, 3, 32, 32), np.float32)
            if kept is not None:
                kept.append(image)
            yield image

    for observer in ("minmax", "entropy"):  # the latter stands for all that keep histograms
        collect_ranges(FunctionRunner(two_layers, 32), images(), CalibrationPlan(observer))
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
    assert peak_kilobytes(1024, "leaking") > 1.1 * few  # the test sees a leak where there is one


def test_at_most_32_samples_are_taken_ahead():
    taken, ahead = [], []

    def images():
        for image in samples(100):
            taken.append(1)
            yield image

    collect_ranges(FunctionRunner(two_layers), images(), MINMAX, listener=lambda done: ahead.append(len(taken) - done))
    assert max(ahead) == 31
    assert ahead[-1] == 0
