"""Ranges are collected in one pass, exactly resumed, in constant memory; unusable data and models are refused."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from densenet_deploy.errors import DataError, FeedError, InputError, ModelFileError, UnknownNameError, UsageError
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.quantization.cache import CalibrationCache
from densenet_deploy.quantization.calibrate import Checkpoint, KeptOutputs, calibrate, collect_ranges
from densenet_deploy.quantization.calibration_data import open_calibration_data
from densenet_deploy.quantization.observers.histogram import HistogramOptions
from densenet_deploy.quantization.observers.minmax import MinMaxOptions
from densenet_deploy.quantization.observers.observer import (
    CalibrationConfig,
    observers,
)
from densenet_deploy.quantization.observers.percentile import PercentileOptions
from tests.function_runner import FunctionRunner
from tests.quantization.observed import samples, two_layers

MINMAX = CalibrationConfig("minmax", MinMaxOptions(headroom=0.0))
SMALL = Preprocessing(image_size=8, resize=9)
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
    config = CalibrationConfig("minmax", MINMAX.options, tensors=("relu",))
    found, every = (collect_ranges(FunctionRunner(two_layers), samples(32), plan) for plan in (config, MINMAX))
    assert_same(found, {"relu": every["relu"]})


def test_tensors_come_in_the_order_of_the_outputs_and_each_has_its_range():
    config = CalibrationConfig("minmax", MINMAX.options, tensors=("relu", "signed"))
    images = samples(32)
    assert_same(
        collect_ranges(FunctionRunner(two_layers), images, config),
        collect_ranges(FunctionRunner(two_layers), images, MINMAX),
    )


def test_a_tensor_may_have_channels_only():
    images = samples(32)
    found = collect_ranges(FunctionRunner(lambda batch: {"means": batch.mean(axis=(2, 3))}), images, MINMAX)
    np.testing.assert_array_equal(found["means"].low, np.min([image.mean(axis=(2, 3))[0] for image in images], axis=0))


@pytest.mark.parametrize(("wrap", "total"), [(list, 35), (iter, None)])
def test_progress_is_reported_after_every_sample(wrap, total):
    heard = []
    collect_ranges(FunctionRunner(two_layers), wrap(samples(35)), MINMAX, progress=lambda *step: heard.append(step))
    assert heard == [(done, total) for done in range(1, 36)]


# --- interrupted and resumed


@pytest.mark.parametrize(
    ("observer", "after"), [*((name, 40) for name in observers.names()), ("minmax", 33), ("minmax", 59)]
)
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
    ("plan", "identity", "runs"),
    [
        (CalibrationConfig("percentile"), "model", 20),
        (CalibrationConfig("percentile"), "another model", 60),
        (CalibrationConfig("percentile", PercentileOptions(percentile=99.0)), "model", 60),
        (CalibrationConfig("percentile", tensors=("relu",)), "model", 60),
        (CalibrationConfig("mse"), "model", 60),
    ],
    ids=["same", "identity", "options", "tensors", "observer"],
)
def test_a_checkpoint_of_something_else_is_not_used(plan, identity, runs, tmp_path):
    path, images = tmp_path / "run.npz", samples(60)
    leave_checkpoint(path, images)
    runner = FunctionRunner(two_layers)
    found = collect_ranges(runner, images, plan, Checkpoint(path, identity, every=10))
    assert runner.runs == runs
    assert_same(found, collect_ranges(FunctionRunner(two_layers), images, plan))


@pytest.mark.parametrize(
    ("facts", "runs"), [({}, 20), ({"format": 2}, 60), ({"identity": "x"}, 60), ({"plan": {}}, 60)], ids=str
)
def test_a_checkpoint_says_in_its_facts_what_it_belongs_to(facts, runs, tmp_path):
    path, images = tmp_path / "run.npz", samples(60)
    leave_checkpoint(path, images)
    with np.load(io.BytesIO(path.read_bytes()[32:])) as file:
        arrays = dict(file)
    arrays["facts"] = np.array(json.dumps(json.loads(str(arrays["facts"])) | facts))
    rewritten = io.BytesIO()
    np.savez(rewritten, **arrays)
    path.write_bytes(sealed(rewritten.getvalue()))
    runner = FunctionRunner(two_layers)
    collect_ranges(runner, images, CalibrationConfig("percentile"), Checkpoint(path, "model", every=10))
    assert runner.runs == runs


def sealed(payload):
    return hashlib.sha256(payload).digest() + payload


def test_a_checkpoint_of_many_tensors_keeps_them_apart(tmp_path):
    def many_layers(batch):
        return {f"layer{number}": batch * np.float32(number) for number in range(1, 13)}

    images, checkpoint = samples(50), Checkpoint(tmp_path / "run.npz", "model", every=10)
    with pytest.raises(KeyboardInterrupt):
        collect_ranges(FunctionRunner(many_layers), interrupted(images, 45), MINMAX, checkpoint)
    runner = FunctionRunner(many_layers)
    found = collect_ranges(runner, images, MINMAX, checkpoint)
    assert runner.runs == 10
    assert_same(found, collect_ranges(FunctionRunner(many_layers), images, MINMAX))


@pytest.mark.parametrize("every", [0, 2**31 + 1])
def test_how_often_a_checkpoint_is_written_has_limits(every, tmp_path):
    with pytest.raises(UsageError) as caught:
        Checkpoint(tmp_path, "model", every)
    assert caught.value.subject == f"every={every}"
    assert [Checkpoint(tmp_path, "model", every).every for every in (1, 2**31)] == [1, 2**31]
    assert Checkpoint(tmp_path, "model").every == 128


def test_a_checkpoint_is_on_the_disk_before_it_replaces_an_older_one(monkeypatch, tmp_path):
    synced, sync = [], os.fsync

    def recording(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", recording)
    leave_checkpoint(tmp_path / "run.npz", samples(60))  # after 10, 20, 30 and 40 samples
    assert synced[1::2] == [tmp_path.stat().st_ino] * 4
    assert synced[-2] == (tmp_path / "run.npz").stat().st_ino


def test_a_run_shorter_than_the_first_checkpoint_leaves_none(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run.npz", "model")
    assert collect_ranges(FunctionRunner(two_layers), samples(32), MINMAX, checkpoint)
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_about_a_checkpoint_is_an_error_of_its_path(tmp_path):
    path = tmp_path / "run.npz"

    def in_the_way(done, _):
        if done == 32:
            path.mkdir()

    for run in ("at the end", "at the start"):
        with pytest.raises(InputError) as caught:
            collect_ranges(FunctionRunner(two_layers), samples(32), MINMAX, Checkpoint(path, "model"), in_the_way)
        assert caught.value.subject == str(path), run


@pytest.mark.parametrize("others", [samples(60, seed=1), samples(60)[:35]], ids=["other samples", "fewer samples"])
def test_a_checkpoint_of_other_samples_is_refused(others, tmp_path):
    path = tmp_path / "run.npz"
    leave_checkpoint(path, samples(60))
    with pytest.raises(DataError) as caught:
        collect_ranges(FunctionRunner(two_layers), others, CalibrationConfig("percentile"), Checkpoint(path, "model"))
    assert caught.value.subject == str(path)


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "pickle", "sealed pickle"])
def test_a_damaged_checkpoint_is_not_used_and_said_to_be(damage, tmp_path, caplog):
    path, images, plan = tmp_path / "run.npz", samples(60), CalibrationConfig("percentile")
    leave_checkpoint(path, images)
    whole = path.read_bytes()
    middle = len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    pickle = b"\x80\x04K\x01."
    kinds = {"cut": whole[:middle], "changed": changed, "empty": b"", "pickle": pickle, "sealed pickle": sealed(pickle)}
    path.write_bytes(kinds[damage])
    runner = FunctionRunner(two_layers)
    with caplog.at_level(logging.WARNING):
        found = collect_ranges(runner, images, plan, Checkpoint(path, "model", every=10))
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]
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
    for origin, subject in (({"origin": "a/folder"}, "a/folder"), ({}, "calibration")):
        with pytest.raises(DataError) as caught:
            collect_ranges(runner, samples(count), MINMAX, **origin)
        assert caught.value.subject == subject
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


@pytest.mark.parametrize("place", [0, 1, 31])
def test_one_image_that_differs_is_enough_if_it_is_among_the_first_32(place):
    one, other = samples(2)
    images = [one] * 40
    images[place] = other
    assert collect_ranges(FunctionRunner(two_layers), images, MINMAX)
    with pytest.raises(DataError):
        collect_ranges(FunctionRunner(two_layers), [*[one] * 32, other], MINMAX)


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


@pytest.mark.parametrize(
    "function",
    [
        lambda batch: {"t": batch.sum(axis=(1, 2, 3))},
        lambda batch: {"t": batch.sum()},
        lambda batch: {"t": batch.astype(np.float64)},
    ],
    ids=["one axis", "a number", "float64"],
)
def test_a_tensor_without_float32_channels_is_refused(function):
    with pytest.raises(ModelFileError) as caught:
        collect_ranges(FunctionRunner(function, outputs={"t": (None,)}), samples(32), MINMAX)
    assert caught.value.subject == "tensor 't'"


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


@pytest.mark.slow
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


GRAPH = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[2, 3, 1, 1] w, float[N, 3, 8, 8] input) => (float[N, 2, 8, 8] y)
<float[2, 3, 1, 1] w = {1, 0, -1, 0.5, 0, 0}>
{
    c = Conv (input, w)
    best = ArgMax <axis: int = 1> (c)
    y = Relu (c)
}
"""


def small_model():
    """Inputs of 8 by 8 pixels; `c` has the channels R − B and R / 2. The weights stand among the inputs too."""
    model = onnx.parser.parse_model(GRAPH)
    facts = Manifest("121", {}, WeightsOrigin("none", "00", 0), SMALL).to_strings()
    onnx.helper.set_model_props(model, facts)
    return model


def expected_ranges(images):
    """Of `c` in min-max without headroom."""
    c = np.concatenate([[image[0, 0] - image[0, 2], image[0, 0] / 2] for image in images], axis=1).reshape(2, -1)
    return c.min(axis=1), c.max(axis=1)


def test_a_model_is_calibrated_once_and_then_found_in_the_cache(tmp_path):
    model, images, cache, heard = small_model(), samples(40), CalibrationCache(tmp_path), []
    data = open_calibration_data(np.concatenate(images), SMALL)
    first = calibrate(model, data, MINMAX, cache, lambda *step: heard.append(step))
    assert heard == [(done, 40) for done in range(1, 41)]
    assert list(first.ranges) == ["c", "y", "input"]  # whole numbers have no range
    low, high = expected_ranges(images)
    np.testing.assert_allclose(first.ranges["c"].low, low, rtol=1e-6)  # of float32
    np.testing.assert_allclose(first.ranges["c"].high, high, rtol=1e-6)
    np.testing.assert_array_equal(first.ranges["y"].low, [0, 0])
    np.testing.assert_array_equal(first.ranges["input"].high, data.input_range().high)
    again = calibrate(model, data, MINMAX, cache, lambda *step: heard.append(step))
    assert len(heard) == 40
    uncached = calibrate(model, data, MINMAX)
    for other in (again, uncached):
        assert_same(other.ranges, first.ranges)
    notes = [calibration.note for calibration in (first, again, uncached)]
    assert notes == [f"calibration: {note}" for note in ("nothing is cached yet", "from the cache", "not cached")]


def test_an_interrupted_calibration_continues_from_the_cache(tmp_path):
    model, images, cache = small_model(), np.concatenate(samples(260)), CalibrationCache(tmp_path)
    data = open_calibration_data(images, SMALL)

    def interrupt(done, _):
        if done == 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, data, MINMAX, cache, interrupt)
    (partial,) = tmp_path.iterdir()
    assert partial.name.endswith(".partial.npz")
    found = calibrate(model, data, MINMAX, cache)
    assert not partial.exists()
    assert_same(found.ranges, calibrate(model, data, MINMAX).ranges)


@pytest.mark.parametrize("with_cache", [True, False])
def test_values_that_the_data_may_hold_are_run(with_cache, tmp_path):
    wide = np.concatenate(samples(32)) * np.float32(400)
    data = open_calibration_data(wide, SMALL, check_values=False)
    config = CalibrationConfig("minmax", MINMAX.options, ("c",))
    found = calibrate(small_model(), data, config, CalibrationCache(tmp_path) if with_cache else None)
    np.testing.assert_allclose(found.ranges["c"].high, expected_ranges(np.split(wide, 32))[1], rtol=1e-6)


def test_data_without_an_identity_are_not_cached(tmp_path):
    """Two lists of other images must not share an entry."""
    model, cache = small_model(), CalibrationCache(tmp_path)
    first, second = (
        calibrate(model, open_calibration_data(samples(32, seed=seed), SMALL), MINMAX, cache) for seed in (0, 1)
    )
    assert first.note == second.note == "calibration: not cached"
    assert list(tmp_path.iterdir()) == []
    assert (first.ranges["c"].high != second.ranges["c"].high).all()


def test_asking_for_too_few_samples_is_refused_with_that_number():
    assert calibrate(small_model(), open_calibration_data(samples(40), SMALL, samples=32), MINMAX)
    with pytest.raises(DataError) as caught:
        calibrate(small_model(), open_calibration_data(samples(40), SMALL, samples=31), MINMAX)
    assert caught.value.subject == "calibration"
    assert caught.value.why.startswith("31 samples were asked for")


def test_errors_name_where_the_data_come_from(tmp_path):
    path = tmp_path / "data.npy"
    np.save(path, np.concatenate(samples(31)))
    with pytest.raises(DataError) as caught:
        calibrate(small_model(), open_calibration_data(path, SMALL), MINMAX)
    assert caught.value.subject == str(path)


# --- the outputs of the graph


def test_outputs_of_the_first_samples_are_kept_beside_the_ranges(tmp_path):
    model, images = small_model(), samples(40)
    names = [value.name for value in model.graph.output]
    data, config = open_calibration_data(np.concatenate(images), SMALL), CalibrationConfig(tensors=("c",))
    cache = CalibrationCache(tmp_path)
    found = calibrate(model, data, config, cache, keep=33)
    assert len(found.outputs) == 33
    session = onnxruntime.InferenceSession(model.SerializeToString())
    ours = list(data)
    for sample, kept in zip(ours, found.outputs, strict=False):
        assert list(kept) == names
        np.testing.assert_allclose(kept[names[0]], session.run([names[0]], {"input": sample})[0], atol=1e-5)
    assert set(found.ranges) == {"c", "input"}, "an output is not observed because it is kept"
    again = calibrate(model, data, config, cache, keep=33)
    assert_same(again.ranges, found.ranges)
    assert again.outputs == (), "the cache holds ranges alone"
    assert calibrate(model, data, config).outputs == ()


def test_what_would_take_more_than_64_mib_is_not_kept():
    kept = KeptOutputs(["y"], 10)
    for number in range(1, 4):
        kept.add(number, {"y": np.zeros((1, 2**23), np.float32), "other": np.zeros(1)})
    assert [list(outputs) for outputs in kept.found] == [["y"], ["y"]], "of 32 MiB each"
    late = KeptOutputs(["y"], 10)
    late.add(2, {"y": np.zeros(1)})  # a run that was resumed
    assert late.found == []
