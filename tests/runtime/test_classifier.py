"""A classifier prepares, runs and names. The model here is a real runner whose arithmetic is a Python function."""

import dataclasses
import io
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from PIL import Image

from densenet_deploy.errors import (
    DataError,
    FeedError,
    ImageError,
    InputError,
    ModelFileError,
    RunnerStateError,
    UsageError,
)
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.runtime import preprocess
from densenet_deploy.runtime.classifier import Classifier, Number, Prediction, Score, read_labels
from densenet_deploy.runtime.images import LoadedImage
from tests.function_runner import FunctionRunner, Shape

COLOURS = ("red", "green", "blue")
MEANS = onnx.parser.parse_model(
    """<ir_version: 8, opset_import: ["" : 18]> means (float[N,3,8,8] input) => (float[N,3] logits)
    { pooled = GlobalAveragePool(input)  logits = Flatten(pooled) }"""
)
TINY = Preprocessing(image_size=8, resize=9)


def mean_colour(batch: np.ndarray) -> np.ndarray:
    """Logits of a model that knows red, green and blue: the mean of each channel."""
    return batch.mean(axis=(2, 3))


def running(
    function: Callable[[np.ndarray], np.ndarray],
    input_shape: Shape = (None, 3, 8, 8),
    output: str = "logits",
    output_shape: Shape = (None, 3),
    manifest: Manifest | None = None,
) -> FunctionRunner:
    """A runner of one output, which `function` makes."""
    return FunctionRunner(
        lambda batch: {output: function(batch)},
        input_shape=input_shape,
        outputs={output: output_shape},
        manifest=manifest,
    )


def manifest(labels: tuple[str, ...] = COLOURS, preprocessing: Preprocessing = TINY) -> Manifest:
    return Manifest("cifar-10-4", {}, WeightsOrigin("none", "0" * 64, seed=0), preprocessing, labels)


def image(colour: str) -> LoadedImage:
    return LoadedImage(Image.new("RGB", (12, 10), colour))


def best(prediction: Prediction) -> str | None:
    return prediction.top[0].label


def constant(*logits: float) -> Classifier:
    rows = np.array([logits], np.float32)
    runner = running(lambda batch: rows.repeat(len(batch), axis=0), output_shape=(None, len(logits)))
    return Classifier(runner, preprocessing=TINY)


# --- what comes out


def test_the_classes_come_best_first_with_labels_and_softmax():
    classify = Classifier(running(mean_colour, manifest=manifest()))
    top = classify(image("lime"), top_k=2).top
    assert [(score.label, score.index) for score in top] == [("green", 1), ("blue", 2)]
    # Solid lime: logits (0-m)/s, (1-m)/s, (0-m)/s of ImageNet's normalization.
    logits = (np.array([0, 1, 0]) - TINY.mean) / TINY.std
    wanted = np.exp(logits) / np.exp(logits).sum()
    assert top[0].score == pytest.approx(wanted[1], rel=1e-5)  # float32 normalization


class TestSources:
    """An image is classified in whatever form its user holds it."""

    def sources(self, path: Path) -> list:
        image("blue").pixels.save(path)
        pixels = np.asarray(image("blue").pixels)
        data = path.read_bytes()
        files = [path, str(path), data, bytearray(data), io.BytesIO(data)]
        return [*files, Image.open(path), image("blue").pixels, pixels, torch.tensor(pixels), image("blue")]

    def test_all_forms_classify_alike_one_by_one_and_in_lists(self, tmp_path):
        sources = self.sources(tmp_path / "sky.png")
        with Classifier(running(mean_colour, manifest=manifest())) as classify:
            predictions = classify(sources)
            assert predictions == classify(tuple(sources)) == classify.classify_batch(sources)
            assert [classify(source) for source in sources] == list(predictions)
        assert best(predictions[0]) == "blue"
        assert len(set(predictions)) == 1
        assert classify([]) == ()

    def test_many_images_run_in_batches(self):
        runner = running(mean_colour, manifest=manifest())
        assert len(Classifier(runner)([image("red")] * 70)) == 70
        assert runner.sizes == [32, 32, 6]

    @pytest.mark.parametrize("bad", [np.zeros((8, 8, 3)), torch.zeros(3, 8, 8, dtype=torch.uint8), 7, None])
    def test_anything_else_is_a_feed_error(self, bad):
        with pytest.raises(FeedError) as caught:
            constant(0, 1)(bad)
        assert caught.value.subject == "image"


class TestOpen:
    """A classifier opens what a runner opens; labels and preprocessing can be given."""

    def test_a_module_with_labels_and_preprocessing(self, tmp_path):
        (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
        module = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        with torch.no_grad():
            module[0].weight.copy_(torch.eye(3).reshape(3, 3, 1, 1))
        for labels in (COLOURS, list(COLOURS), tmp_path / "labels.txt", str(tmp_path / "labels.txt")):
            with Classifier.open(module, device="cpu", labels=labels, preprocessing=TINY) as classify:
                assert best(classify(image("blue"))) == "blue"
                (sentence,) = classify.assumptions
                assert "multiclass" in sentence
        with Classifier.open(module, device="cpu", preprocessing=TINY, task="multiclass") as classify:
            assert classify.assumptions == ()

    def test_a_path_bytes_and_a_model_proto(self, tmp_path):
        path = tmp_path / "means.onnx"
        onnx.save(MEANS, path)
        for source in (path, MEANS.SerializeToString(), MEANS):
            with Classifier.open(source, device="cpu", labels=COLOURS) as classify:
                assert best(classify(image("lime"))) == "green"
                assert classify.preprocessing.image_size == 8

    def test_a_runner_of_a_model_that_does_not_suit_is_closed(self):
        class Kept(Classifier):
            """Keeps the runner that it was given."""

            def __init__(self, runner, **options):
                type(self).runner = runner
                super().__init__(runner, **options)

        with pytest.raises(UsageError) as caught:
            Kept.open(MEANS, device="cpu", labels=["one"])
        assert caught.value.subject == "labels"
        assert not Kept.runner.is_usable
        with Kept.open(MEANS, device="cpu"):
            assert Kept.runner.is_usable
        assert not Kept.runner.is_usable


def test_huge_logits_overflow_nothing_and_scores_sum_to_one():
    top = constant(3e38, -3e38, 3e38).classify(image("red")).top
    assert [score.score for score in top] == [0.5, 0.5, 0.0]


def test_scores_that_underflow_keep_the_order_of_their_logits():
    top = constant(0, 5, 9_000, 1).classify(image("red")).top
    assert [(score.index, score.score) for score in top] == [(2, 1.0), (1, 0.0), (3, 0.0), (0, 0.0)]


def test_of_equal_scores_the_lower_index_comes_first():
    top = constant(1, 2, 2, 1, 2).classify(image("red")).top
    assert [score.index for score in top] == [1, 2, 4, 0, 3]
    many = constant(*[0, 1] * 50).classify(image("red"), top_k=60).top  # enough for an unstable sort to show
    assert [score.index for score in many] == [*range(1, 100, 2), *range(0, 20, 2)]


def test_top_k_is_at_most_the_number_of_classes_and_at_least_one():
    classify = constant(1, 2, 3)
    assert len(classify(image("red"), top_k=99).top) == 3
    assert len(classify(image("red"), top_k=1).top) == 1
    seven = constant(*range(7))
    assert len(seven(image("red")).top) == len(seven.classify_batch([image("red")])[0].top) == 5
    for wrong in (0, -1, 1.5, None, "3"):
        with pytest.raises(UsageError) as caught:
            classify(image("red"), top_k=wrong)
        assert caught.value.subject == f"top_k={wrong!r}"
    assert len(classify(image("red"), top_k=np.int64(2)).top) == 2


def test_without_labels_the_index_is_all_there_is():
    top = constant(0, 2).classify(image("red"), top_k=1).top
    assert top[0].label is None
    assert str(top[0]) == " 88.1 %  class 1"


@pytest.mark.parametrize(
    ("outputs", "are_scores"),
    [
        ((0.1, 0.7, 0.2), True),
        ((0.0, 1.0, 0.0), True),
        ((0.1, 0.7, 0.2009), True),  # a thousandth less or more: scores of half precision
        ((0.1, 0.7, 0.1991), True),
        ((0.1, 0.7, 0.2011), False),
        ((0.1, 0.7, 0.1989), False),
        ((0.1, 0.5, 0.2), False),
        ((0.3, 0.9, -0.2), False),
        ((0.0, 0.0, 0.0), False),
        ((0.5, 0.7, 0.8), False),
    ],
)
def test_the_softmax_of_a_third_party_model_is_not_applied_again(outputs, are_scores):
    expected = outputs if are_scores else np.exp(outputs) / np.exp(outputs).sum()
    row = constant(*outputs).scores(np.array(outputs, np.float32))
    assert row == pytest.approx(expected, rel=1e-6)  # the outputs are float32


def test_scores_of_half_precision_are_summed_in_double():
    """In half precision the sum is rounded to 1.001, which would pass."""
    row = np.array([0.5, 0.5, 0.0012], np.float16)
    exact = row.astype(float)
    assert constant(*row).scores(row) == pytest.approx(np.exp(exact) / np.exp(exact).sum(), rel=1e-12)


def test_a_prediction_prints_as_a_small_table_in_plain_characters():
    prediction = Prediction((Score(1, "tabby", 0.9712), Score(0, "two\nlines\x1b[31m", 0.02)))
    assert str(prediction) == " 97.1 %  tabby\n  2.0 %  two\\nlines\\x1b[31m"


def test_labels_of_several_classes_are_told_apart_by_their_index():
    classify = Classifier(running(mean_colour, manifest=manifest(("crane", "dog", "crane"))))
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    prediction = classify(red, top_k=3)
    assert [score.label for score in prediction.top] == ["crane", "crane", "dog"]
    assert [score.name for score in prediction.top] == ["crane (0)", "crane (2)", "dog"]
    assert [set(score) for score in prediction.to_json()["top"]] == [{"index", "label", "score"}] * 3
    assert "crane (2)" in prediction._repr_html_()
    assert str(Number(1, "age", 3.0, is_shared=True)) == "3  age (1)"
    both = Classifier(running(mean_colour, manifest=manifest(("a", "a", "b"))), task="regression")
    assert [number.name for number in both(red).values] == ["a (0)", "a (1)", "b"]


def test_a_prediction_has_a_json_and_an_html_form():
    prediction = Prediction((Score(1, "<b>", 0.9712), Score(0, None, 0.02)), notes=("a note",))
    assert prediction.to_json() == {
        "top": [{"index": 1, "label": "<b>", "score": 0.9712}, {"index": 0, "label": None, "score": 0.02}],
        "notes": ["a note"],
    }
    page = prediction._repr_html_()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "97.1%" in page
    assert "a note" in page
    assert "positive" not in page
    assert page.count("<td") == 4


def test_what_was_lost_in_reading_is_in_the_prediction():
    file = io.BytesIO()
    Image.new("RGBA", (9, 9)).save(file, "PNG")
    assert constant(0, 1).classify(file.getvalue()).notes == ("transparency is dropped",)


# --- batches


def test_a_dynamic_model_runs_all_images_at_once():
    runner = running(mean_colour, manifest=manifest())
    predictions = Classifier(runner).classify_batch([image(c) for c in ("red", "blue", "lime")])
    assert [best(p) for p in predictions] == ["red", "blue", "green"]
    assert runner.sizes == [3]


def test_a_fixed_batch_is_filled_up_and_the_filling_dropped():
    runner = running(mean_colour, input_shape=(2, 3, 8, 8), output_shape=(2, 3), manifest=manifest())
    colours = ["red", "blue", "lime"]
    predictions = Classifier(runner).classify_batch([image(c) for c in colours])
    alone = [Classifier(running(mean_colour, manifest=manifest())).classify(image(c)) for c in colours]
    assert list(predictions) == alone
    assert runner.sizes == [2, 2]


def test_a_fixed_batch_is_full_as_often_as_can_be():
    runner = running(mean_colour, input_shape=(64, 3, 8, 8), output_shape=(64, 3), manifest=manifest())
    assert len(Classifier(runner).classify_batch([image("red")] * 65)) == 65
    assert runner.sizes == [64, 64]


@pytest.mark.parametrize("batch", [None, 4])
def test_no_images_give_no_predictions(batch):
    runner = running(mean_colour, input_shape=(batch, 3, 8, 8), manifest=manifest())
    assert Classifier(runner).classify_batch([]) == ()
    assert runner.sizes == []


def test_threads_get_the_serial_answers():
    classify = Classifier(running(mean_colour, manifest=manifest()))
    images = [image(colour) for colour in ("red", "lime", "blue")] * 20
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(classify, images)) == list(map(classify, images))


def test_an_image_is_resized_by_as_many_threads_as_the_model_runs_on(monkeypatch):
    runner, used = running(mean_colour, manifest=manifest()), []
    runner.placement = dataclasses.replace(runner.placement, threads=3)
    resized = preprocess.resized_part
    monkeypatch.setattr(
        preprocess, "resized_part", lambda *given, **named: (used.append(named["threads"]), resized(*given, **named))[1]
    )
    classify = Classifier(runner)
    classify([image("red"), classify.prepare(image("red")), classify.prepare(image("red"), threads=2)])
    assert used == [1, 2, 3]


# --- what the model does not say


def test_a_manifest_leaves_nothing_to_assume():
    classify = Classifier(running(mean_colour, manifest=manifest()))
    assert (classify.preprocessing, classify.labels, classify.assumptions) == (TINY, COLOURS, ())


@pytest.mark.parametrize(("side", "size"), [(32, 32), (None, 224)])
def test_a_third_party_model_gets_imagenets_preprocessing_as_an_assumption(side, size):
    classify = Classifier(running(mean_colour, input_shape=(None, 3, side, side), output="output"))
    assert classify.preprocessing == Preprocessing(size, size * 256 // 224)
    assert classify.labels == ()
    images, task = classify.assumptions
    assert f"3x{size}x{size}" in images
    assert "multiclass" in task


def test_what_is_not_assumed_is_not_said():
    runner = running(mean_colour, input_shape=(None, 3, 8, 8))
    assert len(Classifier(runner, preprocessing=TINY).assumptions) == 1
    assert Classifier(runner, preprocessing=TINY, task="multiclass").assumptions == ()
    (sentence,) = Classifier(runner, task="multiclass").assumptions
    assert "3x8x8" in sentence


@pytest.mark.parametrize(("shape", "made"), [((1, 8, 12), (1, 8, 12)), ((4, None, 16), (4, 16, 16))])
def test_images_of_other_channels_and_sides_are_prepared_as_the_model_takes_them(shape, made):
    seen = []

    def sums(batch):
        seen.append(batch.shape)
        return batch.sum(axis=(2, 3))

    classify = Classifier(running(sums, input_shape=(None, *shape), output_shape=(None, shape[0])), task="regression")
    assert classify.preprocessing.shape == made
    pixels = np.full((*made[1:], made[0]), 51, np.uint8)
    (prediction,) = classify([pixels])
    assert seen == [(1, *made)]
    assert [number.value for number in prediction.values] == pytest.approx([0.2 * made[1] * made[2]] * made[0])


def test_a_file_is_read_in_the_channels_of_the_model(tmp_path):
    path = tmp_path / "colors.png"
    Image.new("RGB", (8, 8), (255, 0, 0)).save(path)
    runner = running(lambda batch: batch.mean(axis=(2, 3)), (None, 1, 8, 8), output_shape=(None, 1))
    prediction = Classifier(runner, task="regression")(path)
    assert prediction.values[0].value == pytest.approx(76 / 255)  # the luma of red: 0.299·255
    assert prediction.notes == ("colors are converted to gray",)


def test_an_array_of_other_channels_is_refused():
    with pytest.raises(FeedError) as caught:
        constant(0, 1)(np.zeros((8, 8), np.uint8))
    assert caught.value.subject == "image"
    assert "(H, W, 3)" in caught.value.fix


def test_what_the_caller_gives_comes_first():
    other = Preprocessing(image_size=8, resize=20)
    classify = Classifier(running(mean_colour, manifest=manifest()), preprocessing=other, labels=["a", "b", "c"])
    assert (classify.preprocessing, classify.labels, classify.assumptions) == (other, ("a", "b", "c"), ())


# --- what is refused


def test_feature_maps_are_refused():
    for name in ("output", "logits", "features"):
        with pytest.raises(ModelFileError) as caught:
            Classifier(running(mean_colour, output=name, output_shape=(None, 3, 7, 7)))
        assert caught.value.subject.startswith(name)


def test_scores_of_one_pixel_are_rows():
    runner = running(lambda batch: mean_colour(batch)[:, :, None, None], output_shape=(None, 3, 1, 1))
    assert best(Classifier(runner, labels=COLOURS, preprocessing=TINY)(image("lime"))) == "green"


def of_outputs(*names: str) -> FunctionRunner:
    """A model whose output number i is i everywhere."""
    return FunctionRunner(
        lambda batch: {name: np.full((len(batch), 2), index, np.float32) for index, name in enumerate(names)},
        outputs=dict.fromkeys(names, (None, 2)),
    )


def test_of_several_outputs_the_one_called_logits_counts():
    classify = Classifier(of_outputs("features", "logits"), preprocessing=TINY)
    assert classify.logits(np.zeros((1, 3, 8, 8), np.float32)).tolist() == [[1, 1]]
    assert Classifier(of_outputs("scores"), preprocessing=TINY).labels == ()
    classify = Classifier(of_outputs("scores", "other"), preprocessing=TINY, task="multiclass")
    assert classify.logits(np.zeros((1, 3, 8, 8), np.float32)).tolist() == [[0, 0]]
    (sentence,) = classify.assumptions
    assert "scores, other" in sentence


@pytest.mark.parametrize("shape", [(None, 8, 8, 3), (None, None, None, 3), (None, 3), (None, 3, 8, 8, 8)])
def test_a_model_that_takes_no_images_is_refused(shape):
    with pytest.raises(ModelFileError) as caught:
        Classifier(running(mean_colour, input_shape=shape))
    assert caught.value.subject.startswith("input")


@pytest.mark.parametrize("shape", [(None, 1, 8, 8), (None, 3, 8, 9), (None, 3, 9, 8)])
def test_preprocessing_of_other_channels_or_sides_is_refused(shape):
    with pytest.raises(FeedError) as caught:
        Classifier(running(mean_colour, input_shape=shape, manifest=manifest()))
    assert caught.value.subject == "preprocessing"
    assert "3x8x8" in caught.value.why
    assert "x".join(map(str, shape[1:])) in caught.value.why


def test_an_unknown_side_is_a_question_mark_where_another_does_not_fit():
    with pytest.raises(FeedError) as caught:
        Classifier(running(mean_colour, input_shape=(None, 3, None, 9), manifest=manifest()))
    assert caught.value.why == "produces images of 3x8x8, the model takes 3x?x9"


def test_preprocessing_that_does_not_fit_the_model_is_refused():
    with pytest.raises(FeedError) as caught:
        Classifier(running(mean_colour, input_shape=(None, 3, 16, 16), manifest=manifest()))
    assert caught.value.subject == "preprocessing"


def test_labels_must_be_as_many_as_classes():
    with pytest.raises(UsageError) as caught:
        Classifier(running(mean_colour, manifest=manifest(("cat", "dog"))))
    assert caught.value.subject == "labels"
    unknown_width = running(mean_colour, output_shape=(None, None), manifest=manifest(("cat", "dog")))
    classify = Classifier(unknown_width)
    with pytest.raises(UsageError) as caught:
        classify(image("red"))
    assert caught.value.subject == "labels"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_are_never_made_of_broken_logits(value):
    with pytest.raises(ModelFileError) as caught:
        constant(0, value).classify(image("red"))
    assert caught.value.subject == "logits"


def test_a_bad_image_is_an_image_error(tmp_path):
    (tmp_path / "cat.jpg").write_text("<html>")
    with pytest.raises(ImageError) as caught:
        constant(0, 1).classify(tmp_path / "cat.jpg")
    assert caught.value.subject == str(tmp_path / "cat.jpg")


def test_the_classifier_closes_its_runner():
    with Classifier(running(mean_colour, manifest=manifest())) as classify:
        classify(image("red"))
    with pytest.raises(RunnerStateError):
        classify(image("red"))


def test_opening_a_file_that_is_not_a_model_is_refused(tmp_path):
    with pytest.raises(InputError):
        Classifier.open(tmp_path / "none.onnx")


# --- label files


@pytest.mark.parametrize(
    "data", [b"cat\nbig dog\n", b"cat\nbig dog", b"\xef\xbb\xbfcat\r\nbig dog\r\n", b" cat \n\tbig dog\n"]
)
def test_labels_are_the_lines_of_a_file(tmp_path, data):
    path = tmp_path / "labels.txt"
    path.write_bytes(data)
    assert read_labels(path) == ("cat", "big dog")


def test_only_line_ends_end_labels(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes("caf\u00e9\u2028x\n\x0cy".encode())
    assert read_labels(path) == ("caf\u00e9\u2028x", "y")


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf\r\n \n", b"cat\n\ndog\n", b"cat\n\n", b"cat\ncaf\xe9\n"])
def test_a_label_file_with_a_fault_is_refused(tmp_path, data):
    path = tmp_path / "labels.txt"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_labels(path)
    assert caught.value.subject == str(path)


def test_a_missing_label_file_is_named(tmp_path: Path):
    with pytest.raises(InputError) as caught:
        read_labels(tmp_path / "none.txt")
    assert caught.value.subject == str(tmp_path / "none.txt")


def described(task: str | None, variant: str = "121", labels: tuple[str, ...] = COLOURS) -> Manifest:
    return Manifest(variant, {}, WeightsOrigin("a.pth", "0" * 64), TINY, labels, task=task)


def scores(manifest: Manifest, *outputs: float) -> list[float]:
    row = np.array(outputs, np.float32)
    runner = running(mean_colour, output_shape=(None, len(outputs)), manifest=manifest)
    return Classifier(runner).scores(row).tolist()


def test_the_logits_of_a_network_of_ours_are_never_taken_for_scores():
    assert scores(described("multiclass"), 0.0, 1.0, 0.0) == pytest.approx([0.211942, 0.576117, 0.211942], abs=1e-6)
    assert scores(described("multiclass", "third-party"), 0.0, 1.0, 0.0) == [0, 1, 0]
    assert scores(described("multilabel"), 0.0, 1.0, 0.5) == pytest.approx([0.5, 0.731059, 0.622459], abs=1e-6)
    assert scores(described("multilabel", "third-party"), 0.0, 1.0, 0.5) == [0, 1, 0.5]


@pytest.mark.parametrize("variant", ["121", "third-party"])
@pytest.mark.parametrize("outputs", [(-0.5, 0.5, 1.0), (0.0, 0.5, 1.5), (-2.0, -1.0, -0.5), (2.0, 3.0, 4.0)])
def test_each_label_of_a_multilabel_model_has_a_sigmoid_of_its_own(outputs, variant):
    wanted = [1 / (1 + math.exp(-value)) for value in outputs]
    assert scores(described("multilabel", variant), *outputs) == pytest.approx(wanted, rel=1e-12)


def test_sigmoids_of_huge_logits_overflow_nothing():
    low, limit, below, high = scores(described("multilabel", labels=()), -1e38, -700, -700.5, 1e38)
    assert low == below == limit == pytest.approx(math.exp(-700), rel=1e-12)
    assert high == 1


def test_a_multilabel_model_may_have_one_label():
    assert scores(described("multilabel", labels=("cat",)), 0.0) == [0.5]


# --- the answers of the four tasks


def answered(task: str, *outputs: float, **facts) -> Prediction:
    """What a model of ours with these outputs says of an image."""
    rows = np.array([outputs], np.float32)
    described = Manifest("121", {}, WeightsOrigin("a.pth", "0" * 64), TINY, task=task, **facts)
    runner = running(
        lambda batch: rows.repeat(len(batch), axis=0), output_shape=(None, len(outputs)), manifest=described
    )
    return Classifier(runner)(image("red"))


def test_a_multiclass_model_names_the_best_classes_without_a_verdict():
    prediction = answered("multiclass", 0.0, 2.0, 1.0, labels=COLOURS)
    assert [(score.label, score.positive) for score in prediction.top] == [
        ("green", None), ("blue", None), ("red", None),
    ]  # fmt: skip
    assert (prediction.values, prediction.features) == ((), None)
    assert prediction.to_json().keys() == {"top", "notes"}
    assert prediction.to_json()["top"][0].keys() == {"index", "label", "score"}


def test_a_multilabel_model_says_of_each_label_whether_it_holds():
    prediction = answered("multilabel", 0.0, 2.0, -2.0, labels=COLOURS, thresholds=(0.6, 0.5, 0.1))
    assert [(score.label, score.positive) for score in prediction.top] == [
        ("green", True), ("red", False), ("blue", True),
    ]  # fmt: skip
    assert str(prediction) == " 88.1 %  yes  green\n 50.0 %  no   red\n 11.9 %  yes  blue"
    assert prediction.to_json()["top"][1] == {"index": 0, "label": "red", "score": 0.5, "positive": False}
    page = prediction._repr_html_()
    left, right = 'style="text-align:left"', 'style="text-align:right"'
    assert f"<th {left}>class</th><th {right}>score</th><th {left}>positive</th>" in page
    assert f"<td {left}>green</td><td {right}>88.1%</td><td {left}>yes</td>" in page
    assert f"<td {left}>red</td><td {right}>50.0%</td><td {left}>no</td>" in page


@pytest.mark.parametrize(("labels", "names"), [((), ("output 0", "output 1")), (("a\n", "<b>"), ("a\\n", "<b>"))])
def test_a_regression_gives_its_numbers_in_their_order(labels, names):
    prediction = answered("regression", 1.5, 1234567.0, labels=labels)
    assert [number.value for number in prediction.values] == [1.5, 1234567.0]
    assert [number.index for number in prediction.values] == [0, 1]
    assert str(prediction) == f"1.5  {names[0]}\n1.23457e+06  {names[1]}"
    assert prediction.to_json() == {
        "top": [],
        "values": [
            {"index": 0, "label": labels[0] if labels else None, "value": 1.5},
            {"index": 1, "label": labels[1] if labels else None, "value": 1234567.0},
        ],
        "notes": [],
    }
    page = prediction._repr_html_()
    assert f'<td style="text-align:left">{names[0]}</td><td style="text-align:right">1.5</td>' in page
    assert "<b>" not in page
    assert "<th" not in page


def test_features_are_a_vector_of_which_json_has_the_length_and_norm():
    prediction = answered("features", 3.0, 0.0, -4.0)
    assert prediction.features is not None
    assert prediction.features.values.tolist() == [3, 0, -4]
    assert str(prediction) == "3 features, norm 5"
    assert prediction.to_json() == {"top": [], "features": {"length": 3, "norm": 5.0}, "notes": []}
    assert ">3 features, norm 5</td>" in prediction._repr_html_()


def test_top_k_does_not_cut_numbers():
    rows = np.arange(7, dtype=np.float32)[None]
    runner = running(lambda _: rows, output_shape=(None, 7))
    prediction = Classifier(runner, preprocessing=TINY, task="regression").classify(image("red"), top_k=1)
    assert len(prediction.values) == 7


def test_the_task_that_the_caller_states_comes_first():
    runner = running(mean_colour, manifest=described("multiclass"))
    assert Classifier(runner, task="regression")(image("red")).values
    assert Classifier(runner, task="features")(image("red")).features
    with pytest.raises(UsageError) as caught:
        Classifier(runner, task="regresion")
    assert "regression" in caught.value.fix


def test_one_number_is_not_a_softmax():
    prediction = constant(1.0)(image("red"))
    assert (prediction.top, len(prediction.values)) == ((), 1)
    with pytest.raises(UsageError) as caught:
        Classifier(running(mean_colour, output_shape=(None, 1)), preprocessing=TINY, task="multiclass")
    assert caught.value.subject == "task=multiclass"


def test_one_number_per_image_needs_no_axis_of_classes():
    classifier = Classifier(running(lambda batch: batch.mean((1, 2, 3)), output_shape=(None,)), preprocessing=TINY)
    inputs = np.zeros((3, 3, 8, 8), np.float32) + np.arange(3, dtype=np.float32)[:, None, None, None]
    assert classifier.logits(inputs).tolist() == [[0], [1], [2]]


def test_as_many_rows_as_images_are_required():
    classifier = Classifier(running(lambda batch: batch.mean((0, 2, 3)), output_shape=(None,)), preprocessing=TINY)
    with pytest.raises(ModelFileError) as caught:
        classifier.logits(np.zeros((2, 3, 8, 8), np.float32))
    assert caught.value.subject == "logits"
    assert classifier.logits(np.zeros((3, 3, 8, 8), np.float32)).shape == (3, 1)


@pytest.mark.parametrize("text", ['{"0": "cat",\n"1": "dog"}', '\n ["cat",\n"dog"]'])
def test_labels_in_json_are_refused(tmp_path, text):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(DataError) as caught:
        read_labels(tmp_path / "labels.json")
    assert caught.value.subject == str(tmp_path / "labels.json")
    assert "JSON" in caught.value.why


@pytest.mark.parametrize(
    "names", [("cat [tabby]", "dog {all}"), ("{",), ("[", "]"), ("[PAD]", "[UNK]", "a"), ("1", "2")]
)
def test_labels_with_brackets_are_labels(tmp_path, names):
    (tmp_path / "labels.txt").write_text("\n".join(names))
    assert read_labels(tmp_path / "labels.txt") == names
