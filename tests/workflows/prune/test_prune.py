"""Pruning from a source to a file that every other part of the toolkit takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from densenet_deploy.errors import (
    CheckpointError,
    DataError,
    GateError,
    ModelFileError,
    OutputExistsError,
    UsageError,
)
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.model import Model
from densenet_deploy.models.operations import parameter_shapes
from densenet_deploy.parity.samples import natural_images
from densenet_deploy.quantization.calibration_data import open_calibration_data
from densenet_deploy.variants.spec import DenseNetSpec
from densenet_deploy.workflows.cast import cast
from densenet_deploy.workflows.compare import measured_parity
from densenet_deploy.workflows.export import export
from densenet_deploy.workflows.inspect.inspect import inspect
from densenet_deploy.workflows.load import load
from densenet_deploy.workflows.prune.options import PruneOptions
from densenet_deploy.workflows.prune.preparation import SplitImages, judging_folder
from densenet_deploy.workflows.prune.prune import prune
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.quantize import quantize
from tests.conftest import DIGITS
from tests.foreign_networks import Encoding, written
from tests.pruning.test_reconstruction import weights_of

pytestmark = pytest.mark.filterwarnings("ignore::densenet_deploy.UntrainedWeightsWarning")

SPEC = DenseNetSpec(growth_rate=4, blocks=(2, 2), init_features=8, bn_size=2, stem="cifar", num_classes=5)
SAMPLES = Path(__file__).parents[3] / "calibration" / "samples"
HALF = PruneOptions(ratio=0.5)


def images(count: int = 32, size: int = 16) -> np.ndarray:
    return np.concatenate(list(natural_images(count, Preprocessing.default(size), 3)))


def checkpoint(spec: DenseNetSpec = SPEC, size: int = 16, **changes: Any) -> Model:
    """A network with seeded weights for small images."""
    return load({**weights_of(spec), **changes}, image_size=size)


@pytest.fixture(scope="module")
def network() -> Model:
    return checkpoint()


@pytest.fixture(scope="module")
def halved(network: Model) -> Model:
    return prune(network, images(), HALF)


def widths_in(model: Model) -> list[int]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.onnx.graph.initializer}
    return [shape[1] for name, shape in shapes.items() if name.endswith("conv2.weight")]


def test_a_ratio_halves_every_bottleneck_and_stays_in_the_family(halved: Model) -> None:
    assert widths_in(halved) == [4, 4, 4, 4]
    assert halved.spec == dataclasses.replace(SPEC, bn_size=1)
    report = halved.report
    assert [(layer.before, layer.after) for layer in report.layers.values()] == [(8, 4)] * 4
    assert (report.removed, report.widths, report.chosen_on, report.held_out) == (0.5, "uniform", 24, 8)
    assert halved.name.endswith(".pruned")
    assert set(report.to_json()) >= {"onnx", "macs_before", "macs_after", "parity"}


def test_multiply_accumulates_are_those_of_the_layers_that_shrank(halved: Model) -> None:
    """A channel costs one weight of conv1 for each that it reads, and 9·4 of conv2; there are 16x16 and 8x8 pixels."""
    first = sum(4 * (entering + 36) for entering in (8, 12)) * 16**2
    second = sum(4 * (entering + 36) for entering in (8, 12)) * 8**2
    assert halved.report.macs_before - halved.report.macs_after == first + second


def test_the_checkpoint_that_is_saved_loads_again_with_the_same_outputs(halved: Model, tmp_path: Path) -> None:
    path = halved.save(tmp_path / "small.safetensors")
    again = load(path)
    assert again.spec == halved.spec
    assert halved.manifest.weights.source == "pruned from state_dict"
    batch = images(4)
    np.testing.assert_allclose(
        again.runner("torch").run(batch)["logits"], halved.runner().run(batch)["logits"], atol=1e-5
    )
    assert export(again).report.parity.sqnr_db > 100


def test_parity_is_measured_on_images_that_did_not_choose(network: Model, halved: Model) -> None:
    every = images()
    unused = [every[place : place + 1] for place in range(3, 32, 4)]
    expected = measured_parity(export(network), halved, unused)["logits"]
    assert halved.report.parity.sqnr_db == pytest.approx(expected.sqnr_db, abs=1e-3)


def test_unequal_widths_are_stated_loaded_exported_inspected_and_quantized(network: Model, tmp_path: Path) -> None:
    small = prune(network, images(64), PruneOptions(ratio=0.5, widths="per-layer"))
    assert small.report.macs_after <= prune(network, images(64), HALF).report.macs_after
    assert len(set(small.spec.bottlenecks)) > 1
    assert widths_in(small) == list(small.spec.bottlenecks)
    again = load(small.save(tmp_path / "small.safetensors"))
    assert again.spec == small.spec
    assert inspect(again).parameters == sum(
        int(np.prod(shape)) for name, shape in parameter_shapes(small.spec).items() if "running" not in name
    )
    stripped = load(dict(again.weights), image_size=16)
    assert stripped.spec == small.spec, "the shapes alone say it"
    int8 = quantize(small, images(64), QuantizeOptions(recipe="onnxruntime", never_slower=False))
    assert int8.report.layers_float == 0
    assert load(int8.save(tmp_path / "small.int8.onnx")).spec == small.spec


def test_a_graph_without_its_checkpoint_is_pruned_as_well(network: Model, halved: Model, tmp_path: Path) -> None:
    path = export(network).save(tmp_path / "net.onnx")
    small = prune(path, images(), HALF, out=tmp_path)
    assert (small.path, small.report.onnx) == (tmp_path / "net.pruned.onnx",) * 2
    assert small.spec == halved.spec
    batch = images(4)
    np.testing.assert_allclose(small.runner().run(batch)["logits"], halved.runner().run(batch)["logits"], atol=1e-5)
    with pytest.raises(UsageError) as caught:
        prune(path, images(), HALF, out=tmp_path / "net.safetensors")
    assert "checkpoint" in caught.value.why
    with pytest.raises(OutputExistsError):
        prune(path, images(), HALF, out=tmp_path)


def test_a_checkpoint_is_written_where_one_is_asked_for(network: Model, tmp_path: Path) -> None:
    out = tmp_path / "small.safetensors"
    report = prune(network, images(), HALF, out=out).report
    assert (report.onnx, report.checkpoint, out.is_file()) == (None, out, True)
    assert [path.name for path in tmp_path.iterdir()] == ["small.safetensors"]
    with pytest.raises(OutputExistsError):
        prune(network, images(), HALF, out=out)


@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize("flat", [True, False])
def test_files_of_other_exporters_are_pruned(flat: bool, batch: int | str) -> None:
    model = written(Encoding(flat=flat, norm="caffe", weights="constants", batch=batch))
    small = prune(model, images(64), HALF)
    assert (small.spec, small.manifest.variant) == (None, "third-party")
    assert {layer.after for layer in small.report.layers.values()} == {4}
    assert small.report.macs_after < small.report.macs_before
    assert np.isfinite(small.report.parity.sqnr_db)


@pytest.mark.slow
def test_a_graph_for_images_of_any_size_still_takes_any() -> None:
    proto = export(checkpoint()).onnx
    free = onnx.ModelProto()
    free.CopyFrom(proto)
    for axis in (2, 3):
        free.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    del free.graph.value_info[:]
    del free.metadata_props[:]
    small = prune(free, list(images(32, 224)), HALF)
    for size in (16, 20):
        assert small.runner().run(images(2, size))["logits"].shape == (2, 5)


def test_a_graph_that_takes_pixels_still_does(network: Model) -> None:
    from densenet_deploy.workflows.export import ExportOptions

    pixels = export(network, ExportOptions(input="uint8"))
    calibration = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), dtype=np.uint8)
    small = prune(pixels, list(calibration), HALF)
    assert small.manifest.preprocessing.dtype == "uint8"
    assert small.runner().run(calibration[:2])["logits"].shape == (2, 5)
    assert small.report.parity.sqnr_db > 10


# -- what is refused


@pytest.mark.parametrize(
    ("options", "subject"),
    [
        ({}, "prune"),
        ({"ratio": 0.5, "min_sqnr": 30}, "--ratio and --min-sqnr"),
        ({"max_drop": 1, "min_sqnr": 30}, "--max-drop and --min-sqnr"),
        ({"ratio": 0.0}, "ratio=0"),
        ({"ratio": 1.0}, "ratio=1"),
        ({"ratio": -0.1}, "ratio=-0.1"),
        ({"ratio": float("nan")}, "ratio=nan"),
        ({"min_sqnr": 201.0}, "min-sqnr=201.0"),
        ({"max_drop": 101.0}, "max-drop=101.0"),
        ({"ratio": 0.5, "widths": "wide"}, "wide"),
        ({"min_sqnr": 30, "widths": "uniform"}, "widths=uniform"),
        ({"ratio": 0.5, "samples": 0}, "samples=0"),
        ({"ratio": 0.5, "finetune_seconds": 0.5}, "finetune-seconds=0.5"),
        ({"ratio": 0.5, "finetune_seed": -1}, "finetune-seed=-1"),
    ],
)
def test_options_that_ask_for_nothing_or_for_two_things_are_refused(options: dict[str, Any], subject: str) -> None:
    with pytest.raises(UsageError) as caught:
        PruneOptions(**options)
    assert str(caught.value.subject) == subject


def test_a_layer_without_channels_is_refused_before_an_image_is_read(network: Model) -> None:
    for ratio, why in ((0.95, "without channels"), (0.01, "removes no channel")):
        with pytest.raises(UsageError) as caught:
            prune(network, np.zeros(0), PruneOptions(ratio=ratio))
        assert why in caught.value.why


def test_a_checkpoint_that_is_not_written_names_those_that_are(network: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        prune(network, images(), HALF, out=tmp_path / "small.pth")
    assert caught.value.fix == "name an .onnx or a .safetensors file"


@pytest.mark.parametrize(("ratio", "is_reachable"), [(0.875, True), (0.9, False)])
def test_widths_per_layer_that_cannot_remove_as_much_are_refused(ratio: float, is_reachable: bool) -> None:
    """A layer keeps an eighth of its channels, 4 of 32; a ratio of 0.9 leaves 3."""
    network = checkpoint(dataclasses.replace(SPEC, growth_rate=8, bn_size=4))
    options = PruneOptions(ratio=ratio, widths="per-layer")
    if is_reachable:
        assert widths_in(prune(network, images(), options)) == [4] * 4
        return
    with pytest.raises(UsageError) as caught:
        prune(network, images(), options)
    assert "88% of the multiply-accumulates at most" in str(caught.value)


def test_plain_layers_have_nothing_to_prune() -> None:
    model = checkpoint(dataclasses.replace(SPEC, bn_size=0))
    with pytest.raises(ModelFileError) as caught:
        prune(model, images(), HALF)
    assert "features.denseblock1.denselayer1.conv1: a layer without bottleneck" in caught.value.why
    assert caught.value.exit_code == 3


def test_what_is_not_float32_is_refused_by_name(network: Model) -> None:
    int8 = quantize(network, images(), QuantizeOptions(recipe="onnxruntime", never_slower=False))
    for source, word in ((int8, "quantized"), (cast(network), "fp16")):
        with pytest.raises(ModelFileError) as caught:
            prune(source, images(), HALF)
        assert word in caught.value.why
        assert str(caught.value.subject) == source.name


def test_images_that_cannot_judge_are_refused(network: Model, tmp_path: Path) -> None:
    broken = images()
    broken[5, 0, 0, 0] = np.nan
    for data, why in ((images(31), "has 31 samples"), (broken, "NaN"), (np.repeat(images(1), 32, 0), "same image")):
        with pytest.raises(DataError) as caught:
            prune(network, data, HALF, out=tmp_path)
        assert why in caught.value.why
    assert list(tmp_path.iterdir()) == []


def test_few_pixels_per_weight_are_said(network: Model) -> None:
    spec = dataclasses.replace(SPEC, growth_rate=16, blocks=(1, 1, 1), bn_size=4)
    small = prune(checkpoint(spec), images(), HALF)
    assert any("fewer than 2 pixels per weight" in note for note in small.notes)
    assert not any("pixels per weight" in note for note in prune(network, images(), HALF).notes)


def test_a_checkpoint_of_other_widths_in_one_layer_is_still_refused(halved: Model) -> None:
    weights = dict(halved.weights)
    name = "features.denseblock1.denselayer1.conv1.weight"
    weights[name] = weights[name][:-1]
    with pytest.raises(CheckpointError):
        load(weights)


# -- limits


def test_the_smallest_network_within_an_sqnr_keeps_it(network: Model) -> None:
    loose, tight = (prune(network, images(64), PruneOptions(min_sqnr=limit)) for limit in (15, 25))
    for model, limit in ((loose, 15), (tight, 25)):
        assert model.report.parity.sqnr_db >= limit
        assert (model.report.widths, model.report.trials > 0) == ("per-layer", True)
    assert loose.report.macs_after <= tight.report.macs_after < tight.report.macs_before


def test_a_limit_that_no_channel_keeps_is_a_gate_and_nothing_is_written(network: Model, tmp_path: Path) -> None:
    with pytest.raises(GateError) as caught:
        prune(network, images(64), PruneOptions(min_sqnr=150), out=tmp_path)
    assert (caught.value.exit_code, list(tmp_path.iterdir())) == (4, [])


def test_max_drop_wants_labels(network: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        prune(network, images(), PruneOptions(max_drop=1))
    assert "--max-drop needs" in caught.value.why


def test_all_images_that_did_not_choose_judge_an_accuracy(tmp_path: Path) -> None:
    data = open_calibration_data(SAMPLES, Preprocessing.default(16), 64)
    split = SplitImages.of(data, most=40)
    assert (len(split.choosing), len(split.judging), split.left_out) == (40, 16, 8)
    chose = [path for place, path in enumerate(data.paths) if place % 4 != 3][:40]
    with judging_folder(SAMPLES, data, 40) as folder:
        judging = {path.resolve() for path in folder.rglob("*.png")}
    everything = {path.resolve() for path in SAMPLES.rglob("*.png")}
    assert judging == everything - {path.resolve() for path in chose}


def test_a_class_of_which_all_images_chose_is_refused(tmp_path: Path) -> None:
    """Without it the folders would stand for other classes."""
    for place, file in enumerate(sorted(SAMPLES.rglob("*.png"))[:40]):
        target = tmp_path / ("only" if place == 0 else "rest") / file.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(file.read_bytes())
    data = open_calibration_data(tmp_path, Preprocessing.default(16), 40)
    place = [path.parent.name for path in data.paths].index("only")
    paths = list(data.paths)
    paths[0], paths[place] = paths[place], paths[0]
    with (
        pytest.raises(DataError) as caught,
        judging_folder(tmp_path, dataclasses.replace(data, paths=tuple(paths)), 40),
    ):
        pass
    assert str(caught.value.subject).endswith("only")


# -- properties


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    growth_rate=st.integers(2, 5),
    blocks=st.lists(st.integers(1, 2), min_size=1, max_size=2).map(tuple),
    bn_size=st.integers(2, 4),
    stem=st.sampled_from(["cifar", "3x3-pool"]),
    head=st.sampled_from(["classifier", "multiscale"]),
)
def test_dead_channels_go_first_and_nothing_changes(
    growth_rate: int, blocks: tuple[int, ...], bn_size: int, stem: str, head: str
) -> None:
    spec = DenseNetSpec(growth_rate, blocks, 6, bn_size=bn_size, stem=stem, head=head, num_classes=4)
    weights, dead = weights_of(spec), growth_rate
    for name, array in weights.items():
        if name.endswith("norm2.weight"):
            array[:dead] = 0
        if name.endswith("norm2.bias"):
            array[:dead] = -1
        if name.endswith("conv2.weight"):
            array[:, :dead] = 0
    small = prune(load(weights, image_size=16), images(), PruneOptions(ratio=dead / (bn_size * growth_rate)))
    assert small.spec == dataclasses.replace(spec, bn_size=bn_size - 1)
    assert small.report.parity.sqnr_db > 90


# -- fine-tuning


def test_fine_tuning_is_kept_only_where_it_is_better_and_the_checkpoint_has_it(network: Model, tmp_path: Path) -> None:
    options = dataclasses.replace(HALF, finetune=True, finetune_seconds=1.0)
    tuned = prune(network, images(64), options)
    found = tuned.report.finetune
    assert tuned.report.held_out == 8
    best = found.sqnr_after_db if found.kept else found.sqnr_before_db
    assert tuned.report.parity.sqnr_db == pytest.approx(best, abs=0.01)
    assert found.kept == (found.sqnr_after_db > found.sqnr_before_db)
    again, batch = load(tuned.save(tmp_path / "tuned.safetensors")), images(4)
    np.testing.assert_allclose(
        again.runner("torch").run(batch)["logits"], tuned.runner().run(batch)["logits"], atol=1e-4
    )


@pytest.mark.slow
def test_fine_tuning_that_ends_worse_keeps_the_refit(network: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from densenet_deploy.training import float_finetuning

    original = float_finetuning.finetune

    def worse(model: onnx.ModelProto, *arguments: Any) -> Any:
        found = original(model, *arguments)
        broken = onnx.ModelProto()
        broken.CopyFrom(model)
        for tensor in broken.graph.initializer:
            if tensor.name == "classifier.weight":
                tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * 1.5).tobytes()
        return dataclasses.replace(found, model=broken, best=1)

    plain = prune(network, images(64), HALF)
    monkeypatch.setattr(float_finetuning, "finetune", worse)
    tuned = prune(network, images(64), dataclasses.replace(HALF, finetune=True, finetune_seconds=1.0))
    assert not tuned.report.finetune.kept
    assert "not kept" in str(tuned.report)
    assert "not closer on the images held out" in str(tuned.report)
    assert tuned.manifest.weights.sha256 == plain.manifest.weights.sha256


def one_class(model: onnx.ModelProto, *_: Any) -> Any:
    """A fine-tuning after which the network answers with the class 3 alone."""
    from densenet_deploy.training.graph_module import with_initializers
    from densenet_deploy.training.int8_finetuning import Finetuned

    numbers = {name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer if (name := tensor.name)}
    changed = {"classifier.weight": numbers["classifier.weight"] * 0, "classifier.bias": np.float32(np.arange(10) == 3)}
    return Finetuned(with_initializers(model, changed), 8, (1.0, 2.0), 1, "all steps were made")


@pytest.mark.parametrize("refit", [0.0, 1.0])
def test_an_accuracy_that_was_limited_is_that_of_the_fine_tuned_network(
    refit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the outputs are closer says nothing about the limit that was asked for."""
    from densenet_deploy.training import float_finetuning
    from densenet_deploy.workflows.prune import choice, finetuning

    monkeypatch.setattr(float_finetuning, "finetune", one_class)
    monkeypatch.setattr(finetuning, "_sqnr_db", lambda *_: [10.0, 20.0])
    judged = choice.JudgedAccuracy
    monkeypatch.setattr(choice, "JudgedAccuracy", lambda before, _, images: judged(before, refit, images))
    source = checkpoint(dataclasses.replace(SPEC, num_classes=10))
    tuned = prune(source, SAMPLES, PruneOptions(max_drop=100, samples=64, finetune=True))
    data = open_calibration_data(SAMPLES, source.manifest.preprocessing, 64)
    with judging_folder(SAMPLES, data, 48) as folder:
        share = len(list((folder / "3").iterdir())) / len(list(folder.rglob("*.png")))
    assert tuned.report.finetune.kept == (refit == 0)
    assert tuned.report.accuracy.after == (pytest.approx(share) if refit == 0 else 1.0)
    assert ("accuracy on the images held out would fall" in str(tuned.report)) == (refit == 1)


# -- the digits


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "floor"), [(0.25, 27.0), (0.5, 21.0)])
def test_a_pruned_network_of_digits_keeps_its_accuracy_through_int8(ratio: float, floor: float) -> None:
    from densenet_deploy.workflows.evaluate import evaluate

    small = prune(DIGITS / "densenet_digits.safetensors", SAMPLES, PruneOptions(ratio=ratio))
    assert small.report.parity.sqnr_db > floor
    int8 = quantize(small, SAMPLES, QuantizeOptions(recipe="onnxruntime", never_slower=False))
    assert int8.report.layers_float == 0
    assert int8.report.parity.sqnr_db > 35
    assert evaluate(int8, DIGITS / "held_out").top1 >= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_widths_by_error_are_no_worse_than_uniform_ones_at_the_same_cost(ratio: float) -> None:
    weights = DIGITS / "densenet_digits.safetensors"
    uniform, chosen = (
        prune(weights, SAMPLES, PruneOptions(ratio, widths=widths)) for widths in ("uniform", "per-layer")
    )
    assert chosen.report.macs_after <= uniform.report.macs_after
    assert chosen.report.parity.sqnr_db >= uniform.report.parity.sqnr_db
