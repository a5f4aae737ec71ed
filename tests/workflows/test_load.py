"""Getting hold of a model: from a variant, from a checkpoint, with everything that travels with it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

from densenet_deploy.artifacts import Artifact, is_checkpoint_name
from densenet_deploy.errors import InputError, ModelFileError, UnknownNameError, UsageError
from densenet_deploy.facts import Architecture
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.model import InputDescription, Model, UntrainedWeightsWarning, untrained_note
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.workflows.export import export
from densenet_deploy.workflows.load import input_of, load, open_model, preprocessing_of, several
from tests.conftest import TINY

TEN = tuple("abcdefghij")
ALL = ("image_size", "resize", "interpolation", "mean", "std")


def _logits(module: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return module(torch.ones(1, 3, 32, 32)).numpy()


def test_a_variant_is_built_by_name():
    model = load("cifar-bc-40-12", num_classes=7)
    assert model.spec.num_classes == 7
    assert not model.module.training
    assert model.manifest.variant == "cifar-bc-40-12"


def test_a_checkpoint_says_its_architecture_and_classes(checkpoint):
    expected = load(architecture=TINY, num_classes=10, seed=5).module
    np.testing.assert_array_equal(_logits(load(checkpoint).module), _logits(expected))
    assert load(checkpoint).manifest.weights.source == "tiny.pth"


def test_a_module_runs_with_its_facts(checkpoint):
    with open_model(checkpoint) as from_file, open_runner(load(checkpoint)) as from_module:
        assert from_file.manifest == from_module.manifest
        assert from_file.placement.backend == "torch"


def test_a_seed_makes_the_weights():
    one, same, other = (load(architecture=TINY, seed=seed) for seed in (1, 1, 2))
    assert one.manifest.weights == same.manifest.weights
    assert one.manifest.weights.sha256 != other.manifest.weights.sha256


def test_untrained_models_say_so_and_trained_ones_do_not(checkpoint):
    with pytest.warns(UntrainedWeightsWarning):
        untrained = load(architecture=TINY, seed=3)
    assert untrained_note(untrained.manifest) == ("untrained weights (random, seed 3): predictions are meaningless",)
    assert untrained_note(load(checkpoint).manifest) == ()
    assert untrained_note(None) == ()


def test_an_unknown_variant_names_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        load("122")
    assert "'121'" in caught.value.fix


def test_a_missing_checkpoint_is_an_input_error(tmp_path):
    with pytest.raises(InputError) as caught:
        load(tmp_path / "gone.pth")
    assert caught.value.subject == str(tmp_path / "gone.pth")


def test_only_numbers_that_were_given_change_the_architecture():
    assert Architecture().changes() == {}
    assert Architecture(growth_rate=4, compression=0.7).changes() == {"growth_rate": 4, "compression": 0.7}


def test_labels_say_how_many_classes_an_untrained_model_has():
    model = load("121", architecture=TINY, labels=TEN)
    assert model.spec.num_classes == 10
    assert model.manifest.labels == TEN


def test_labels_must_be_as_many_as_the_classes(checkpoint):
    with pytest.raises(UsageError) as caught:
        load(checkpoint, labels=("a", "b", "c"))
    assert caught.value.subject == "labels"


def test_labels_are_read_from_a_file(tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    assert load("121", architecture=TINY, labels=tmp_path / "labels.txt").manifest.labels == ("cat", "dog")


def _preprocessing(**numbers: object) -> Preprocessing:
    return load(architecture=TINY, **numbers).manifest.preprocessing


def test_preprocessing_is_the_variants_unless_stated():
    own = _preprocessing()
    assert own.image_size == 32
    stated = _preprocessing(image_size=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert stated == Preprocessing(image_size=64, resize=64 * 256 // 224, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert _preprocessing(image_size=64, resize=64).resize == 64


def test_an_image_too_small_for_the_blocks_is_refused():
    with pytest.raises(UsageError) as caught:
        _preprocessing(image_size=1)
    assert caught.value.subject == "image-size=1"


def test_facts_that_nobody_stated_are_assumed(checkpoint):
    assert load(checkpoint).manifest.assumed == ("image_size", "resize", "interpolation", "mean", "std")
    stated = load(checkpoint, image_size=32, mean=0.5)
    assert stated.manifest.assumed == ("resize", "interpolation", "std")


def test_facts_that_replace_others_are_noted(checkpoint, tiny_onnx, tmp_path):
    """Answers change with them, and no comparison of models shows it."""
    path = load(tiny_onnx, mean=0.5, std=(0.1, 0.2, 0.3), resize=36).save(tmp_path / "stated.onnx")
    notes = load(path, mean=(0.9, 0.8, 0.7), std=0.05, resize=40, interpolation="nearest").notes
    assert [note for note in notes if "is used" in note] == [
        "mean: 0.9 0.8 0.7 is used, the model states 0.5",
        "std: 0.05 is used, the model states 0.1 0.2 0.3",
        "resize: 40 is used, the model states 36",
    ], "nobody stated an interpolation"
    assert not any("is used" in note for note in load(path, mean=0.5, resize=36).notes)
    assert not any("is used" in note for note in load(checkpoint, mean=0.9).notes)


def test_facts_can_be_stated_of_a_graph_without_any(torchvision_onnx):
    plain, stated = load(torchvision_onnx), load(torchvision_onnx, labels=TEN, task="multilabel", std=0.5)
    assert (plain.manifest.labels, plain.manifest.assumed) == ((), ("resize", "interpolation", "mean", "std"))
    assert (stated.manifest.labels, stated.manifest.task, stated.manifest.assumed) == (
        TEN, "multilabel", ("resize", "interpolation", "mean"),
    )  # fmt: skip
    with stated.runner() as runner:
        assert runner.manifest == stated.manifest


def test_stated_facts_are_saved_with_the_graph(torchvision_onnx, tiny_onnx, tmp_path):
    for source in (torchvision_onnx, tiny_onnx):
        stated = load(source, labels=TEN, task="multilabel")
        again = load(stated.save(tmp_path / f"{source.stem}.saved.onnx"))
        assert again.manifest == stated.manifest
        onnx.checker.check_model(onnx.load(again.path))


def test_a_graph_of_another_size_than_stated_is_refused(torchvision_onnx):
    with pytest.raises(UsageError) as caught:
        load(torchvision_onnx, image_size=64)
    assert caught.value.subject == "image-size=64"


# --- graphs of other channels and sides


def graph(*shape: int | str) -> onnx.ModelProto:
    """A network of somebody else that takes images of this shape."""
    image = ",".join(map(str, ("N", *shape)))
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g (float[{image}] x) => (float[N,K] scores)'
        "{ mean = GlobalAveragePool(x)  scores = Flatten(mean) }"
    )


@pytest.mark.parametrize(
    ("shape", "expected", "assumed"),
    [
        ((3, 32, 32), Preprocessing(32, 36), ALL[1:]),
        ((1, 32, 32), Preprocessing(32, 36, (0.0,), (1.0,)), ALL[1:]),
        ((4, 64, 32), Preprocessing((64, 32), (64, 32), (0.0,) * 4, (1.0,) * 4), ALL[1:]),
        ((3, "H", "W"), Preprocessing(224, 256), ALL),
        ((3, 64, "W"), Preprocessing(64, 73), ALL),
        ((3, "H", 64), Preprocessing(64, 73), ALL),
        (("C", 64, 64), Preprocessing(64, 73), ALL[1:]),
    ],
)
def test_what_a_graph_does_not_say_is_assumed(shape, expected, assumed):
    model = load(graph(*shape))
    described = input_of(model)
    assert model.manifest.is_third_party
    assert preprocessing_of(model) == expected
    assert described == InputDescription.of(expected, assumed)
    assert described.shape == expected.shape


@pytest.mark.parametrize("shape", [(32, 32, 3), ("H", "W", 1), (1, 8, 8, 8), (3, 32)])
def test_a_graph_that_takes_no_images_is_refused_when_its_input_is_asked_for(shape):
    model = load(graph(*shape))
    for ask in (input_of, preprocessing_of, lambda model: load(model, mean=0.5)):
        with pytest.raises(ModelFileError) as caught:
            ask(model)
        assert caught.value.subject == model.name


@pytest.mark.parametrize(
    ("stated", "expected", "assumed"),
    [
        ({"image_size": 64}, Preprocessing(64, 73), ALL[1:]),
        ({"image_size": (64, 32)}, Preprocessing((64, 32), (64, 32)), ALL[1:]),
        ({"image_size": 64, "resize": 70}, Preprocessing(64, 70), ALL[2:]),
        ({"resize": "none"}, Preprocessing(224, "none"), ("image_size", *ALL[2:])),
        ({"resize": (256, 128)}, Preprocessing(224, (256, 128)), ("image_size", *ALL[2:])),
        ({"channels": 1}, Preprocessing(224, 256, (0.0,), (1.0,)), ALL),
        ({"channels": 4, "mean": 0.5}, Preprocessing(224, 256, (0.5,) * 4, (1.0,) * 4), (*ALL[:3], "std")),
        ({"channels": 2, "mean": (0.1, 0.2), "std": 0.5}, Preprocessing(224, 256, (0.1, 0.2), (0.5, 0.5)), ALL[:3]),
        ({"interpolation": "bicubic"}, Preprocessing(interpolation="bicubic"), ("image_size", "resize", *ALL[3:])),
    ],
    ids=str,
)
def test_what_a_dynamic_graph_leaves_open_may_be_stated(stated, expected, assumed):
    for model in (load(graph("C", "H", "W"), **stated), load(load(graph("C", "H", "W")), **stated)):
        assert model.manifest.preprocessing == expected
        assert model.manifest.assumed == assumed
        assert input_of(model) == InputDescription.of(expected, assumed)
        assert preprocessing_of(model) == expected


def test_the_size_of_a_dynamic_graph_is_stated_once():
    dynamic = load(graph(3, "H", "W"), labels=TEN[:5])
    assert dynamic.manifest.assumed == ALL
    for size, resize in ((64, 73), ((64, 32), (64, 32)), (224, 256)):
        model = load(dynamic, image_size=size)
        assert model.manifest.preprocessing == Preprocessing(size, resize)
        assert model.manifest.assumed == ALL[1:]
    assert load(model, image_size=224).manifest == model.manifest
    with pytest.raises(UsageError):
        load(model, image_size=64)
    kept = load(load(model, resize=230), mean=0.5)
    assert (kept.manifest.preprocessing.resize, kept.manifest.assumed) == (230, ("interpolation", "std"))


@pytest.mark.parametrize(
    ("shape", "stated", "subject", "taken"),
    [
        ((3, 32, 32), {"image_size": 64}, "image-size=64", "32 pixels"),
        ((3, 32, 32), {"image_size": (32, 64)}, "image-size=32x64", "32 pixels"),
        ((3, 64, 32), {"image_size": (32, 64)}, "image-size=32x64", "64x32 pixels"),
        ((3, 64, 32), {"image_size": 64}, "image-size=64", "64x32 pixels"),
        ((3, 64, "W"), {"image_size": 32}, "image-size=32", "64x? pixels"),
        ((3, "H", 64), {"image_size": (64, 32)}, "image-size=64x32", "?x64 pixels"),
        ((3, 32, 32), {"channels": 1}, "channels=1", "3 channels"),
        ((1, 32, 32), {"channels": 3}, "channels=3", "1 channels"),
        ((1, "H", "W"), {"image_size": 64, "channels": 3}, "channels=3", "1 channels"),
    ],
)
def test_a_size_or_channels_other_than_the_graphs_are_refused(shape, stated, subject, taken):
    for source in (graph(*shape), load(graph(*shape), interpolation="nearest")):
        with pytest.raises(UsageError) as caught:
            load(source, **stated)
        assert (caught.value.subject, caught.value.why) == (subject, f"{load(source).name} takes {taken}")


@pytest.mark.parametrize(
    ("shape", "stated"),
    [
        ((3, 32, 32), {"image_size": 32, "channels": 3}),
        ((1, 64, 32), {"image_size": (64, 32), "channels": 1}),
        ((3, 64, "W"), {"image_size": (64, 32)}),
        ((3, "H", 64), {"image_size": (32, 64)}),
    ],
)
def test_what_agrees_with_the_graph_may_be_stated(shape, stated):
    made = load(graph(*shape), **stated).manifest
    assert made.preprocessing.image_size == stated["image_size"]
    assert "image_size" not in made.assumed


@pytest.mark.parametrize("fact", ["mean", "std"])
@pytest.mark.parametrize(("channels", "count"), [(1, 3), (3, 2), (4, 3)])
def test_normalization_is_one_number_or_one_per_channel(fact, channels, count):
    with pytest.raises(UsageError) as caught:
        load(graph(channels, 32, 32), **{fact: (0.5,) * count})
    assert caught.value.subject.startswith(f"{fact}=")
    assert f"{count} numbers for {channels} channels" in caught.value.why
    preprocessing = load(graph(channels, 32, 32), **{fact: 0.25}).manifest.preprocessing
    assert getattr(preprocessing, fact) == (0.25,) * channels


def test_the_smaller_side_is_large_enough_for_the_blocks():
    assert _preprocessing(image_size=(64, 32)).shape == (3, 64, 32)
    for size in ((64, 1), (1, 64)):
        with pytest.raises(UsageError) as caught:
            _preprocessing(image_size=size)
        assert caught.value.subject == "image-size=1"


def test_stated_facts_of_a_gray_rectangle_are_saved_with_the_graph(tmp_path):
    stated = load(graph(1, 64, 32), labels=TEN[:5], mean=0.5, resize="none")
    again = load(stated.save(tmp_path / "gray.onnx"))
    assert again.manifest == stated.manifest
    assert again.manifest.preprocessing == Preprocessing((64, 32), "none", (0.5,), (1.0,))
    assert str(input_of(again)) == "1x64x32, no resize, mean 0.5, std 1 (assumed: interpolation, std)"


def test_a_file_that_cannot_show_its_graph_is_of_the_size_in_its_facts(tiny_onnx, tmp_path):
    import openvino

    openvino.save_model(openvino.convert_model(tiny_onnx), tmp_path / "tiny.xml", compress_to_fp16=False)
    artifact = dataclasses.replace(Artifact.open(tmp_path / "tiny.xml"), manifest=load(tiny_onnx).manifest)
    model = Model("tiny", artifact.manifest, artifact=artifact)
    assert load(model, image_size=32, channels=3).manifest.preprocessing.image_size == 32
    for stated in ({"image_size": 64}, {"channels": 1}):
        with pytest.raises(UsageError):
            load(model, **stated)


def test_whatever_holds_a_graph_loads(tiny_onnx):
    data = tiny_onnx.read_bytes()
    for source in (str(tiny_onnx), tiny_onnx, data, onnx.load(tiny_onnx), load(tiny_onnx)):
        assert load(source).manifest.spec["growth_rate"] == 4
        assert load(source).onnx.graph.node


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"image_size": 0}, "image-size=0"),
        ({"resize": 8193}, "resize=8193"),
        ({"num_classes": 0}, "num-classes=0"),
        ({"mean": (0.5, math.nan, 0.5)}, "mean=nan"),
        ({"mean": (0.5, 0.5, math.inf)}, "mean=inf"),
        ({"std": (1.0, 0.0, 1.0)}, "std=0.0"),
        ({"std": (1.0, math.nan, 1.0)}, "std=nan"),
        ({"std": (1.0, 1.0, math.inf)}, "std=inf"),
    ],
)
def test_numbers_out_of_range_are_usage_errors(wrong, named):
    with pytest.raises(UsageError) as caught:
        load("121", **wrong)
    assert caught.value.subject == named


@pytest.mark.parametrize(
    ("name", "expected"), [("a.pth", True), ("a.PT", True), ("a.safetensors", True), ("a.onnx", False), ("121", False)]
)
def test_checkpoints_go_by_suffix(tmp_path, name, expected):
    assert is_checkpoint_name(tmp_path / name) == expected


@pytest.mark.parametrize(("stated", "subject"), [({"lables": TEN}, "lables"), ({"num_classes": 5}, "num_classes=5")])
def test_what_cannot_be_stated_of_a_loaded_model_is_refused(torchvision_onnx, stated, subject):
    with pytest.raises(UsageError) as caught:
        load(load(torchvision_onnx), **stated)
    assert caught.value.subject == subject


def test_labels_and_thresholds_are_as_many_as_the_outputs_of_a_graph(torchvision_onnx):
    with pytest.raises(UsageError) as caught:
        load(torchvision_onnx, labels=("a", "b"))
    assert caught.value.subject == "labels"
    for stated in ({"task": "multilabel", "thresholds": (0.1, 0.2)}, {"thresholds": 0.5}):
        with pytest.raises(UsageError) as wrong:
            load(torchvision_onnx, **stated)
        assert wrong.value.subject == "thresholds"


def test_a_module_that_is_not_a_densenet_cannot_be_saved_as_weights(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with pytest.raises(ModelFileError) as caught:
        load(module).save(tmp_path / "weights.safetensors")
    assert caught.value.subject == "sequential"


def test_a_stated_size_is_fixed_in_a_graph_that_takes_any(tmp_path):
    model = load(graph(3, "H", "W"), image_size=(64, 32))
    (given,) = model.onnx.graph.input
    assert [dim.dim_value for dim in given.type.tensor_type.shape.dim[1:]] == [3, 64, 32]
    assert model.notes[-1] == "the graph, which takes images of any size, was fixed to 64x32"
    onnx.checker.check_model(model.onnx, full_check=True)
    with model.runner("onnxruntime") as runner:
        assert runner.inputs[0].shape == (None, 3, 64, 32)
    again = load(model.save(tmp_path / "fixed.onnx"))
    assert (again.manifest, again.notes) == (model.manifest, ())


@pytest.mark.parametrize("shape", [(3, 64, 32), (3, 64, "W")])
def test_one_side_that_is_open_is_fixed_too_and_a_fixed_graph_stays(shape):
    source = graph(*shape)
    stated = load(source, image_size=(64, 32))
    assert [dim.dim_value for dim in stated.onnx.graph.input[0].type.tensor_type.shape.dim[2:]] == [64, 32]
    assert any("was fixed" in note for note in stated.notes) == ("W" in shape)
    assert load(source).onnx.graph.input[0] == source.graph.input[0]


def test_one_source_is_taken_as_one_and_several_as_several():
    network = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ReLU())
    for one in ("chest.onnx", Path("chest.onnx"), b"graph", network, network.state_dict(), graph(3, 8, 8), load("121")):
        assert several(one) == (one,)
    for many in (["a.onnx", network], ("a.onnx", network), iter(["a.onnx", network])):
        assert several(many) == ("a.onnx", network)
    assert several([]) == several(()) == ()


@pytest.mark.parametrize("facts", [{}, {"mean": 0.5, "std": 0.25}])
def test_of_a_file_that_keeps_weights_elsewhere_the_bytes_hold_them(tmp_path, facts):
    whole = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,8,8] x) => (float[N,2,8,8] y)'
        "<float[2,3,1,1] w = {1, 2, 3, 4, 5, 6}> { y = Conv(x, w) }"
    )
    onnx.save(whole, tmp_path / "split.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    model = load(tmp_path / "split.onnx", **facts)
    saved = onnx.load(model.save(tmp_path / "saved.onnx"), load_external_data=False)
    assert onnx.numpy_helper.to_array(saved.graph.initializer[0]).ravel().tolist() == [1, 2, 3, 4, 5, 6]
    assert export(tmp_path / "split.onnx", out=tmp_path / "out" / "exported.onnx", **facts).path.is_file()


@pytest.mark.parametrize("operator", ["Sigmoid", "Softmax"])
def test_the_activation_that_a_graph_ends_in_travels_to_files_whose_graph_cannot_be_read(operator):
    source = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,8,8] x) => (float[N,3] y)'
        f"{{ m = GlobalAveragePool(x)  f = Flatten(m)  y = {operator}(f) }}"
    )
    assert load(source).manifest.activations == {"y": operator.lower()}
    assert load(graph(3, 8, 8)).manifest.activations == {}


def test_stated_channels_are_those_of_a_module_that_repeats_them():
    class Gray(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 2, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.conv(images.repeat(1, 3, 1, 1)).mean((2, 3))

    model = load(Gray().eval(), channels=1, image_size=8)
    with open_runner(model) as runner:
        assert runner.inputs[0].shape[1] == 1
        assert runner(np.zeros((2, 1, 8, 8), np.float32))["logits"].shape == (2, 2)


def test_labels_of_several_outputs_are_noted_where_they_are_stated(checkpoint, torchvision_onnx):
    shared = ("crane", *"abcdefg", "crane", "g")
    note = "labels of several outputs: 'crane' (0, 8), 'g' (7, 9); results show their index, too"
    for source in (checkpoint, torchvision_onnx):
        model = load(source, labels=shared)
        assert model.notes[-1] == note
        assert model.manifest.labels == shared
        assert note not in load(source, labels=TEN).notes
    assert load(model).notes == model.notes
    many = load(checkpoint, labels=(*"aabbccddee",)).notes[-1]
    assert many.startswith("labels of several outputs: 'a' (0, 1), 'b' (2, 3), 'c' (4, 5) and 2 more; ")
