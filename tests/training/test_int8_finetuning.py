"""Fine-tuning: what is trained and where it ends, never worse, the same seed, limits of time."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper

from densenet_deploy.quantization import half_classifier
from densenet_deploy.training.graph_module import GraphModule
from densenet_deploy.training.int8_finetuning import (
    Finetuned,
    FinetuneOptions,
    Samples,
    _batches,
    _Schedule,
    batch_size,
    finetune,
    mixed,
    trained_initializers,
)
from tests.graph.passes.networks import make_network
from tests.graph.passes.networks import run as run_values
from tests.training.test_graph_module import expected, quantized

RECIPES = ("onnxruntime", "openvino", "tensorrt")
BRIEF = FinetuneOptions(steps=8, batch=8, lr=0.03, seconds=1000)


def samples(count: int, seed: int) -> Samples:
    """Noise, and what the float network gives for it."""
    network = make_network("classifier")
    images = np.random.default_rng(seed).standard_normal((count, *network.images.shape[1:]), np.float32) / 2
    (name,) = (value.name for value in network.proto.graph.output)
    return Samples(images, {name: run_values(network.proto, images)[name]})


LEARNT, HELD_OUT, FLOAT = samples(24, 0).inputs, samples(8, 1), make_network("classifier").proto


def run(recipe: str, options: FinetuneOptions = BRIEF) -> Finetuned:
    return finetune(quantized(recipe)[0], FLOAT, LEARNT, HELD_OUT, options)


def numbers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("recipe", RECIPES)
def test_numbers_change_inside_of_the_range_of_the_recipe_and_nothing_else_does(recipe: str) -> None:
    model = quantized(recipe)[0]
    found = run(recipe, dataclasses.replace(BRIEF, steps=8, lr=0.5))
    before, after = numbers(model), numbers(found.model)
    limit = 127 if recipe == "tensorrt" else 63
    names = set(trained_initializers(model, np.random.default_rng(0)))
    assert {name for name in before if not np.array_equal(before[name], after[name])} <= names
    assert all(before[name].dtype == after[name].dtype for name in before)
    weights = [name for name in names if before[name].dtype == np.int8 and before[name].ndim == 4]
    assert max(np.abs(before[name]).max() for name in weights) == limit
    assert max(np.abs(after[name].astype(int)).max() for name in weights) == limit
    stripped = [onnx.ModelProto.FromString(one.SerializeToString()) for one in (model, found.model)]
    for one in stripped:
        del one.graph.initializer[:]
    assert stripped[0].SerializeToString() == stripped[1].SerializeToString()


@pytest.mark.parametrize("recipe", ["onnxruntime", "openvino"])
def test_the_file_comes_closer_to_the_float_network(recipe: str) -> None:
    """Judged by ONNX Runtime on images that were not learnt from."""
    found = run(recipe, dataclasses.replace(BRIEF, steps=40))
    (wanted,) = HELD_OUT.outputs.values()
    noise = [
        np.square(expected(model, HELD_OUT.inputs)[0] - wanted).sum() for model in (quantized(recipe)[0], found.model)
    ]
    assert found.best > 0
    assert noise[1] < 0.8 * noise[0]
    gain = 10 * np.log10(noise[0] / noise[1])
    assert gain == pytest.approx(found.held_out_db[found.best] - found.held_out_db[0], abs=0.5)


def test_a_learning_rate_that_ruins_the_network_ends_with_the_bytes_of_the_recipe() -> None:
    found = run("onnxruntime", dataclasses.replace(BRIEF, lr=30.0))
    assert max(found.held_out_db[1:]) < found.held_out_db[0]
    assert found.best == 0
    assert found.model.SerializeToString() == quantized("onnxruntime")[0].SerializeToString()


def test_before_the_first_step_the_file_is_what_it_was() -> None:
    """Weights start somewhere in their cells, which round to the stored values."""
    model = quantized("openvino")[0]
    trained = trained_initializers(model, np.random.default_rng(3))
    before = numbers(model)
    assert all(np.array_equal(one.stored().astype(before[name].dtype), before[name]) for name, one in trained.items())
    weight = next(one for name, one in trained.items() if before[name].ndim == 4)
    away = np.abs(weight.parameter.detach().numpy() - weight.stored())
    assert 0.4 < away.max() <= 0.45 + 1e-5


def test_the_same_seed_gives_the_same_bytes_and_another_one_others() -> None:
    first, again, other = (run("openvino", dataclasses.replace(BRIEF, seed=seed)) for seed in (1, 1, 2))
    assert first.model.SerializeToString() == again.model.SerializeToString()
    assert first.model.SerializeToString() != other.model.SerializeToString()


def test_weights_bounds_biases_and_the_classifier_are_trained_and_factors_are_not() -> None:
    model = quantized("onnxruntime")[0]
    trained, stored = trained_initializers(model, np.random.default_rng(0)), numbers(model)
    for node in model.graph.node:
        if node.op_type == "QLinearConv":
            assert (node.input[3] in trained) == (stored[node.input[3]].shape[1] > 1)
            assert (node.input[8] in trained) == bool(stored[node.input[8]].any())
            assert trained.keys().isdisjoint(set(node.input) - {node.input[3], node.input[8]})
        if node.op_type in ("Max", "Min"):
            assert node.input[1] in trained
        if node.op_type == "Gemm":
            assert set(node.input[1:]) <= set(trained)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert {types[name] for name in trained} == {
        TensorProto.INT8,
        TensorProto.UINT8,
        TensorProto.INT32,
        TensorProto.FLOAT,
    }


def test_a_classifier_that_is_stored_as_fp16_is_trained_and_stored_so() -> None:
    graph = ir.from_proto(quantized("openvino")[0])
    gemm = next(node for node in graph.graph if node.op_type == "Gemm")
    plain = str(gemm.inputs[1].name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(half_classifier, "_FEWEST", 1)
        assert half_classifier.halve(graph.graph, gemm)
    model = ir.to_proto(graph)
    trained = trained_initializers(model, np.random.default_rng(0))
    assert f"{plain}:half" in trained
    before = numbers(model)
    found = finetune(model, FLOAT, LEARNT, HELD_OUT, dataclasses.replace(BRIEF, steps=40))
    after = numbers(found.model)
    assert found.best > 0
    assert after[f"{plain}:half"].dtype == np.float16
    assert (after[f"{plain}:half"] != before[f"{plain}:half"]).any()


def test_a_bias_near_the_end_of_int32_stays_off_it() -> None:
    model = quantized("onnxruntime")[0]
    node = next(node for node in model.graph.node if node.op_type == "QLinearConv")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[8])
    bias.CopyFrom(numpy_helper.from_array(np.full(tuple(bias.dims), 2**31 - 500, np.int32), bias.name))
    trained = trained_initializers(model, np.random.default_rng(0))[bias.name]
    trained.parameter.data.fill_(100.0)
    assert set(trained.stored().tolist()) == {2**31 - 129}
    trained.parameter.data.fill_(-1.0)
    assert set(trained.stored().tolist()) == {2**31 - 500 - 128}


# -- time and order


def test_a_schedule_without_haste_makes_all_steps_and_looks_eight_times() -> None:
    schedule = _Schedule(FinetuneOptions(steps=80, seconds=1000), 0.0)
    assert schedule.share == 1.0
    checks = [schedule.is_check_after_step(now) for now in range(1, 81)]
    assert [place for place, is_check in enumerate(checks, start=1) if is_check] == list(range(10, 81, 10))
    assert (schedule.done, schedule.planned, schedule.share) == (80, 80, 0.0)
    assert schedule.end == "all steps were made"


def test_steps_that_do_not_fit_are_not_planned() -> None:
    """Two seconds a step and a tenth for checks, 100 seconds of which 6 are over: 3 + 42 steps."""
    schedule = _Schedule(FinetuneOptions(steps=80, seconds=100), 0.0)
    for now in (2, 4, 6):
        schedule.is_check_after_step(now)
    assert (schedule.planned, schedule.end) == (3 + int(94 / 2.2), "that is what fits into 100 s")


def test_what_takes_longer_than_planned_ends_at_the_limit() -> None:
    schedule = _Schedule(FinetuneOptions(steps=80, seconds=100), 0.0)
    for now in (0.1, 0.2, 0.3, 100.0):
        assert not schedule.is_check_after_step(now)
    assert schedule.is_check_after_step(100.1)
    assert schedule.done == schedule.planned == 5


def test_a_step_takes_fewer_of_large_images() -> None:
    sizes = {side: batch_size((5, 3, side, side)) for side in (32, 100, 101, 128, 224, 232, 1024)}
    assert sizes == {32: 16, 100: 16, 101: 15, 128: 9, 224: 3, 232: 2, 1024: 2}


def test_batches_hold_every_image_once_an_epoch() -> None:
    batches = _batches(6, 4, np.random.default_rng(0))
    drawn = np.concatenate([next(batches) for _ in range(3)])
    assert sorted(drawn[:6]) == sorted(drawn[6:]) == list(range(6))
    assert drawn[:6].tolist() != drawn[6:].tolist()


def test_an_image_is_mixed_with_another_and_keeps_the_larger_share() -> None:
    images = np.float32([1, 10, 100, 1000]).reshape(4, 1, 1, 1)
    drawn = [mixed(images, np.random.default_rng(seed)).ravel() for seed in range(20)]
    assert all((one >= images.ravel() / 2).all() and (one <= (images.ravel() + 1000) / 2).all() for one in drawn)
    assert mixed(images, np.random.default_rng(0)).dtype == np.float32
    assert len({tuple(one) for one in drawn}) > 15  # few of 24 orders are the same


def test_a_fixed_batch_may_be_any() -> None:
    model = quantized("onnxruntime")[0]
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    assert len(GraphModule(model).names) == 1
    assert finetune(model, FLOAT, LEARNT, HELD_OUT, BRIEF).steps == 8
