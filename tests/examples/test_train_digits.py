"""The digits example: what is committed is what its scripts make, and the network reads as well as it says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calibration.make_samples import COUNT, FOLDER, SEED, balanced_sample
from densenet_deploy.runtime.images import load_image
from densenet_deploy.runtime.preprocess import prepare_batch
from densenet_deploy.sources import load
from examples.digits_data import LABELS, PREPROCESSING, Digits, digits_split, inputs_from, write_images
from examples.train_digits import OUTPUT, TrainingOptions, accuracy, train, write_results

QUICK = TrainingOptions(variant="cifar-bc-10-8", batch_size=8)
WEIGHTS = OUTPUT / "densenet_digits.safetensors"


@pytest.fixture(scope="module")
def split():
    return digits_split()


def images_in(folder: Path) -> dict[str, np.ndarray]:
    """Decoded images by relative path: other versions of zlib may compress the same pixels to other bytes."""
    return {
        path.relative_to(folder).as_posix(): np.asarray(Image.open(path)) for path in sorted(folder.glob("*/*.png"))
    }


def assert_same_images(committed, made):
    assert committed.keys() == made.keys()
    assert all(np.array_equal(committed[name], made[name]) for name in made)


@pytest.mark.slow
def test_the_committed_network_reads_held_out_files_as_well_as_it_says(split):
    loaded, report = load(WEIGHTS), json.loads((OUTPUT / "training.json").read_text())
    files = sorted((OUTPUT / "held_out").glob("*/*.png"))
    inputs = prepare_batch([load_image(file) for file in files], loaded.variant.preprocessing)
    with torch.inference_mode():
        read = loaded.module(torch.from_numpy(inputs)).argmax(1).tolist()
    right = [loaded.labels[digit] == file.parent.name for digit, file in zip(read, files, strict=True)]
    assert len(files) == report["split"]["held_out"] == 360
    assert np.mean(right) == pytest.approx(report["held_out_accuracy"])
    assert np.mean(right) >= 0.985


def test_the_committed_weights_are_small_and_say_what_they_are():
    loaded = load(WEIGHTS)
    assert WEIGHTS.stat().st_size < 1_500_000
    assert loaded.variant.name == TrainingOptions().variant
    assert loaded.variant.preprocessing == PREPROCESSING
    assert list(loaded.labels) == (OUTPUT / "labels.txt").read_text().split() == list(LABELS)
    assert loaded.manifest.weights.sha256 == loaded.origin.sha256
    assert loaded.origin.is_trained


def test_the_committed_held_out_images_are_the_held_out_split(split, tmp_path):
    write_images(tmp_path, split[1])
    assert_same_images(images_in(OUTPUT / "held_out"), images_in(tmp_path))


def test_the_committed_calibration_samples_are_balanced_training_digits(split, tmp_path):
    sample = balanced_sample(split[0], COUNT, SEED)
    write_images(tmp_path, sample)
    assert_same_images(images_in(FOLDER), images_in(tmp_path))
    counts = np.bincount(sample.digits)
    assert counts.sum() == 128
    assert counts.max() - counts.min() <= 1


def test_no_scan_is_both_trained_on_and_held_out(split):
    training, held_out = split
    assert len(training.digits) + len(held_out.digits) == 1797
    assert not {p.tobytes() for p in training.images} & {p.tobytes() for p in held_out.images}


def test_training_sees_what_a_runner_sees_of_the_file(split, tmp_path):
    few = Digits(split[0].images[:3], split[0].digits[:3])
    write_images(tmp_path, few)
    files = [tmp_path / str(digit) / f"{number:04d}.png" for number, digit in enumerate(few.digits)]
    seen = prepare_batch([load_image(file) for file in files], PREPROCESSING)
    assert np.array_equal(inputs_from(few.images), seen)


def test_a_seed_repeats_a_training(split):
    few = Digits(split[0].images[:32], split[0].digits[:32])
    first, again, other = (train(few, replace(QUICK, epochs=1, seed=seed)).classifier.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.slow
def test_training_learns_and_its_results_load(split, tmp_path):
    few = Digits(split[0].images[:64], split[0].digits[:64])
    options = replace(QUICK, epochs=24, most_degrees=0.0, most_shift=0.0)
    model = train(few, options)
    assert accuracy(model, few) > 0.5  # a guess is right once in ten
    score = write_results(tmp_path, model, options, (few, few))
    assert score == accuracy(load(tmp_path / WEIGHTS.name).module, few)
