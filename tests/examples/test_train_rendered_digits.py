"""Training on rendered digits, with a small DenseNet and few images: it learns, repeats itself and leaves a model."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from densenet_deploy.models.build import build_model
from densenet_deploy.sources import load
from densenet_deploy.variants import find_variant
from densenet_deploy.workflows.evaluate import evaluate
from examples.digits_data import LABELS
from examples.rendered_digits import PREPROCESSING, images_of, inputs_from
from examples.train_rendered_digits import WEIGHTS_NAME, RenderedOptions, Sizes, batches, train, write_results
from examples.training import TrainingPlan, accuracy_of, fit

QUICK = RenderedOptions(variant="cifar-bc-10-8", epochs=1, images=48, batch_size=16)
FEW = Sizes(calibration=30, held_out=20)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small network of one epoch: the folder with its results, and the accuracy that training reported."""
    folder = tmp_path_factory.mktemp("rendered")
    return folder, write_results(folder, train(QUICK), QUICK, 1.4, FEW)


def test_what_training_leaves_is_a_model_that_evaluate_reads_alike(trained):
    folder, accuracy = trained
    report = evaluate(folder / WEIGHTS_NAME, folder / "held_out")
    assert report.count == FEW.held_out
    assert report.top1 == accuracy
    assert report.notes == ()  # neither untrained nor guessing how to prepare images


def test_the_weights_say_what_they_are(trained):
    loaded = load(trained[0] / WEIGHTS_NAME)
    assert loaded.origin.is_trained
    assert loaded.variant.preprocessing == PREPROCESSING
    assert list(loaded.labels) == (trained[0] / "labels.txt").read_text().split() == list(LABELS)
    assert loaded.module.spec.num_classes == 10
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}


def test_images_are_written_in_folders_of_their_digit(trained):
    for split, count in asdict(FEW).items():
        files = sorted((trained[0] / split).glob("*/*.png"))
        assert len(files) == count
        assert all(int(file.stem) % 10 == int(file.parent.name) for file in files)


def test_the_report_says_how_it_came_about(trained):
    folder, accuracy = trained
    report = json.loads((folder / "training.json").read_text())
    assert report["options"] == asdict(QUICK)
    assert report["images"] == {"training": 48, "calibration": 30, "held_out": 20}
    assert report["held_out_accuracy"] == accuracy
    assert report["seconds"] == 1
    assert report["nuisance"]["noise"][0] > 0


def test_a_seed_repeats_a_training_and_another_does_not():
    first, again, other = (train(replace(QUICK, seed=seed)).classifier.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def small_network():
    return build_model(replace(find_variant("cifar-bc-10-8").spec, num_classes=10), seed=0)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=1, momentum=0.9)


def first_inputs(count):
    data = images_of("training", range(count))
    return torch.from_numpy(inputs_from(data.images)), torch.from_numpy(data.digits)


@pytest.mark.slow
def test_training_learns_what_it_sees():
    """The same 40 images again and again: a network that learned nothing reads one in ten right."""
    inputs, digits = first_inputs(40)
    plan, model = TrainingPlan(epochs=30, batch_size=20), small_network()
    fit(model, sgd(model), lambda _: zip(inputs.split(20), digits.split(20), strict=True), 40, plan)
    assert accuracy_of(model, inputs, digits) > 0.5
    assert not model.training


@pytest.mark.parametrize(("bfloat16_epochs", "dtypes"), [(0, ["float32"] * 2), (1, ["bfloat16", "float32"])])
def test_the_last_epochs_compute_in_float32(bfloat16_epochs, dtypes):
    model, seen = small_network(), []
    model.features.conv0.register_forward_hook(lambda module, inputs, output: seen.append(str(output.dtype)[6:]))
    fit(model, sgd(model), lambda _: [first_inputs(8)], 8, TrainingPlan(epochs=2), bfloat16_epochs)
    assert seen == dtypes


def test_images_get_harder_until_the_easy_share_is_over():
    """Half of 4 epochs of 8 images are eased: batch by batch noisier, and from number 16 on what anyone gets."""
    options = replace(QUICK, epochs=4, images=8, batch_size=4, easy_share=0.5)
    seen = torch.cat([inputs for epoch in range(4) for inputs, _ in batches(epoch, options)])
    final = torch.from_numpy(inputs_from(images_of("training", range(32)).images))
    assert [torch.equal(seen[i : i + 4], final[i : i + 4]) for i in range(0, 32, 4)] == [False] * 4 + [True] * 4


def test_without_an_easy_share_every_image_is_hard():
    options = replace(QUICK, images=8, easy_share=0.0)
    ((inputs, digits),) = batches(0, options)
    assert torch.equal(inputs, first_inputs(8)[0])
    assert digits.tolist() == list(range(8))
